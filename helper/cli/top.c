// SPDX-License-Identifier: GPL-2.0
/* kvmsnap top: running saves, again and again, by netlink. */
#include "cli.h"
#include "../lib/kvmsnap.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const char top_usage[] =
	"usage: kvmsnap top [--interval SECONDS] [--count N]\n"
	"Watch running saves: passes, rates, the pause to come, and where in RAM the guest writes.\n"
	"  --interval SECONDS   between looks (1)\n"
	"  --count N            end after N looks; without, when interrupted\n";

#define MAX_SESSIONS	256

/* What a session was at the last look, for the rates. */
struct sample {
	uint32_t id;
	uint64_t pass, bytes, harvested;
};

struct look {
	double seconds;			/* since the last one; 0 for the first */
	struct sample before[MAX_SESSIONS], now[MAX_SESSIONS];
	unsigned int nr_before, nr_now, shown;
};

static const struct sample *find(const struct look *look, uint32_t id)
{
	unsigned int i;

	for (i = 0; i < look->nr_before; i++)
		if (look->before[i].id == id)
			return &look->before[i];
	return NULL;
}

/* How much of each piece of RAM is dirty, from none to all. */
static void print_map(const struct kvmsnap_session_info *info)
{
	static const char shades[] = " .:-=+*#%@";
	unsigned int i;

	fputs("     RAM [", stdout);
	for (i = 0; i < KVMSNAP_GENL_MAP_CELLS; i++)
		putchar(shades[(info->map[i] * 9 + 254) / 255]);
	fputs("] dirty\n", stdout);
}

static int show(const struct kvmsnap_session_info *info, void *data)
{
	const struct kvmsnap_stats *s = &info->stats;
	struct look *look = data;
	const struct sample *before = find(look, info->id);
	double written = 0, dirtied = 0;

	if (look->nr_now < MAX_SESSIONS)
		look->now[look->nr_now++] = (struct sample){
			.id = info->id, .pass = s->pass, .bytes = s->bytes_written,
			.harvested = s->harvested,
		};
	if (before && look->seconds > 0) {
		/* The bytes of a pass begin at 0. */
		written = (double)(s->bytes_written - (before->pass == s->pass ? before->bytes : 0)) /
			  look->seconds;
		dirtied = (double)(s->harvested - before->harvested) * KVMSNAP_PAGE_SIZE /
			  look->seconds;
	}
	if (!look->shown++)
		printf("%4s %8s %-8s %5s %5s %14s %14s %12s %10s\n", "id", "VM", "save", "pass",
		       "done", "written", "ring", "dirty", "pause");
	printf("%4u %8d %-8s %5llu %4.0f%% %12s/s %12s/s %12s %7.0f ms\n", info->id, (int)info->vm_pid,
	       s->phase ? phase_name(s->phase) : state_name(s->state), (unsigned long long)s->pass,
	       s->pages_total ? (double)s->pages_done * 100 / (double)s->pages_total : 0,
	       human_bytes(written), human_bytes(dirtied),
	       human_bytes((double)s->pages_dirty * KVMSNAP_PAGE_SIZE), (double)s->pause_ns / 1e6);
	if (info->has_map)
		print_map(info);
	return 0;
}

int cmd_top(int argc, char **argv)
{
	enum { INTERVAL = 256, COUNT };
	static const struct option longs[] = {
		{ "interval", required_argument, NULL, INTERVAL },
		{ "count", required_argument, NULL, COUNT },
		{ "help", no_argument, NULL, 'h' },
		{ 0 }
	};
	static struct look look;
	double interval = 1, last = 0;
	long count = -1;
	bool screen = isatty(STDOUT_FILENO);
	struct timespec rest;
	char *end;
	int c, ret;

	while ((c = getopt_long(argc, argv, "h", longs, NULL)) != -1) {
		switch (c) {
		case INTERVAL:
			interval = strtod(optarg, &end);
			if (*end || end == optarg || !(interval >= 0.05) || interval > 3600)
				return usage_error(top_usage, "--interval %s: not seconds from 0.05 to 3600",
						   optarg);
			break;
		case COUNT:
			count = strtol(optarg, &end, 10);
			if (*end || end == optarg || count <= 0)
				return usage_error(top_usage, "--count %s: not a number of 1 or more", optarg);
			break;
		case 'h':
			fputs(top_usage, stdout);
			return 0;
		default:
			fputs(top_usage, stderr);
			return EXIT_USAGE;
		}
	}
	if (optind < argc)
		return usage_error(top_usage, "%s: not expected", argv[optind]);

	for (;;) {
		look.seconds = last > 0 ? now() - last : 0;
		last = now();
		look.nr_now = look.shown = 0;
		if (screen)
			fputs("\033[H\033[J", stdout);
		ret = kvmsnap_list_sessions(show, &look);
		if (ret)
			return no_sessions(ret);
		if (!look.shown)
			puts("no saves are running");
		if (fflush(stdout))
			return 1;
		memcpy(look.before, look.now, sizeof(look.now));
		look.nr_before = look.nr_now;
		if (count > 0 && !--count)
			return 0;
		rest.tv_sec = (time_t)interval;
		rest.tv_nsec = (long)((interval - (double)rest.tv_sec) * 1e9);
		nanosleep(&rest, NULL);
	}
}
