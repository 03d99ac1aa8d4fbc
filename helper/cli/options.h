/* SPDX-License-Identifier: GPL-2.0 */
/* Options that save and checkpoint have in common. */
#ifndef OPTIONS_H
#define OPTIONS_H

#include <getopt.h>
#include <poll.h>

#include "saver.h"

enum {
	OPT_QMP = 256, OPT_FORCE, OPT_LIVE, OPT_MAX_DOWNTIME, OPT_ALLOW_DOWNTIME, OPT_MAX_PASSES,
	OPT_BANDWIDTH, OPT_THROTTLE, OPT_STAGE, OPT_STAY, OPT_CHECKSUM, OPT_SYNC, OPT_PID, OPT_DEVICE,
	OPT_JSON, OPT_QUIET, OPT_OWN	/* a command's own begin here */
};

#define SAVE_OPTIONS							\
	{ "qmp", required_argument, NULL, OPT_QMP },			\
	{ "live", no_argument, NULL, OPT_LIVE },			\
	{ "max-downtime", required_argument, NULL, OPT_MAX_DOWNTIME },	\
	{ "allow-downtime", required_argument, NULL, OPT_ALLOW_DOWNTIME }, \
	{ "max-passes", required_argument, NULL, OPT_MAX_PASSES },	\
	{ "bandwidth", required_argument, NULL, OPT_BANDWIDTH },	\
	{ "throttle", required_argument, NULL, OPT_THROTTLE },		\
	{ "stage", required_argument, NULL, OPT_STAGE },		\
	{ "checksum", no_argument, NULL, OPT_CHECKSUM },		\
	{ "sync", required_argument, NULL, OPT_SYNC },			\
	{ "pid", required_argument, NULL, OPT_PID },			\
	{ "device", required_argument, NULL, OPT_DEVICE },		\
	{ "json", no_argument, NULL, OPT_JSON },			\
	{ "quiet", no_argument, NULL, OPT_QUIET },			\
	{ "help", no_argument, NULL, 'h' }

#define SAVE_OPTIONS_USAGE							\
	"  --qmp SOCKET      QEMU's QMP socket (-qmp unix:SOCKET,server=on,wait=off)\n"	\
	"  --live            write memory while the VM runs, and then what has changed\n"	\
	"  --max-downtime T  live: pause to aim at, as in 300ms or 1.5s (300ms)\n"	\
	"  --allow-downtime T  live: the longest pause to put up with (--max-downtime)\n"	\
	"  --max-passes N    live: passes with the VM running (10)\n"			\
	"  --bandwidth RATE  live: the most that is written while the VM runs, as in 200M a second\n" \
	"  --throttle RATE   live: if the VM changes its memory too fast, have each vCPU change no more\n" \
	"                    than that, as in 50M a second; QEMU needs a dirty ring\n"	\
	"  --stage SIZE      kernel memory for the last pages, as in 256M: the VM runs again when\n" \
	"                    they are copied, and they are written behind it\n"	\
	"  --checksum        keep a checksum of each page in the file, for verify\n"	\
	"  --sync none|data|full   how durable the file is when the command ends (full)\n"	\
	"  --pid PID         QEMU's process, when its socket was made by another\n"	\
	"  --device NODE     the module's device (/dev/kvmsnap)\n"			\
	"  --json            report as JSON\n"						\
	"  --quiet           no report\n"

/*
 * Take option @c, which getopt_long() returned, with optarg.  -1 when it was, or a status to exit
 * with.
 */
int options_take(struct save_options *opt, int c, const char *usage);

/* Defaults, and what does not go together.  Likewise. */
int options_check(struct save_options *opt, const char *usage);

/* Have signals that end a process set a flag; it is returned. */
const volatile sig_atomic_t *catch_signals(void);

/* The signal that came, 0 for none; and forget it. */
int take_signal(void);

/* poll() that these signals end, with EINTR, also when one came just before. */
int poll_signals(struct pollfd *fds, nfds_t n, int ms);

/* "none", "data" or "full".  0, or -EINVAL. */
int parse_sync(const char *text, enum sync *sync);

/* A number of 1 or more. */
bool parse_number(const char *text, uint64_t *value);

/* "500us", "20ms", "1.5s" or "2", in seconds; negative when it is none. */
double parse_time(const char *text);

#endif
