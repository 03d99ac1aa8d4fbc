/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A QEMU VM that is saved, once or again and again.
 *
 * A saver is attached to QEMU and holds the module's session.  Each generation is a save; with
 * options.incremental the writes to memory are followed on between them, and the next one writes
 * what has changed only:
 *  - where the file system shares blocks, over a reflink of the last one's file;
 *  - where it does not, appended to the last one's file (snapfile/chain.h).
 * A generation that fails leaves the last one as it was, and the tracking too: what it wrote is
 * dirty again.
 */
#ifndef SAVER_H
#define SAVER_H

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

#include "follow.h"
#include "guardian.h"
#include "queues.h"
#include "ram.h"
#include "target.h"
#include "../qemu/qemu.h"
#include "../snapfile/chain.h"
#include "../snapfile/snapfile.h"

struct save_options {
	const char *qmp, *device;
	pid_t pid;
	bool force, live, stay_stopped, checksum, json, quiet;
	bool incremental;		/* others follow: go on tracking */
	bool append;			/* if blocks can't be shared, to the last one's file */
	double max_downtime, allow_downtime;	/* seconds; 0 for the default */
	long max_passes;
	uint64_t stage;			/* bytes */
	uint64_t bandwidth, throttle;	/* bytes a second, 0 for none */
	enum sync sync;
};

/* Where the time went, in seconds. */
struct phases {
	double live, stop, devices, ram, resume, stage, commit, paused, total;
	double clear;			/* short stops in the live phase; in @paused too */
};

/* What a generation is made of. */
enum content {
	CONTENT_FULL,			/* all of memory */
	CONTENT_CLONE,			/* a reflink of the last one, and what has changed */
	CONTENT_APPENDED,		/* what has changed, behind the last one */
};

/* One generation. */
struct round {
	struct target target;
	const char *output;		/* NULL for a descriptor */
	enum content content;
	const char *why;		/* why it is full or all was compared, though others precede it */
	struct phases phases;
	long passes;			/* live ones */
	uint64_t last_looks;		/* pages that the last pass was over */
	uint64_t last_bytes;		/* written with the VM stopped */
	double looks;			/* seconds that the last stop will take to look at pages, likewise */
	double bits;			/* and at soft-dirty bits, and to clear them */
	double clear_seconds;		/* the last stop to clear soft-dirty bits took; 0 for none yet */
	double expected;		/* seconds that the last stop will take, as far as is known */
	double dirty_rate;		/* bytes a second that the guest changed in the last live pass */
	int64_t time;			/* of the stop, seconds since 1970 */
	int devices;			/* their state; -1 before */
	struct queues queues;		/* of that */
	long passes_again;		/* because a device wrote memory with the VM stopped */
	char writer[64];		/* which */
	bool begun;			/* the session's target is this one's */
	bool stopped_by_us, throttled, committed;
	double stopped_at;
	uint64_t file_bytes, stream;	/* of the result */
};

struct saver {
	const struct save_options *opt;
	const volatile sig_atomic_t *interrupted;
	struct qemu qemu;
	struct guardian guardian;
	struct ram ram;
	struct follow follow;
	struct snapfile snap;		/* the layout, and the bitmaps of the round */
	bool followed;			/* follow_start() has succeeded */
	bool throttled;			/* QEMU is to be told that it ends */
	uint64_t stage;			/* bytes that the session has set aside */
	double compare_seconds;		/* of a live pass that compared everything; 0 for none */
	double first_seconds;		/* the first pass took */
	struct round round;

	/* The last generation. */
	uint64_t generation;		/* its number; 0 before the first */
	int last;			/* its file, -1 for none that another could follow */
	char *last_path;
	uint64_t last_ram_end;		/* in it: behind its pages */
	int ahead;			/* what the next one begins with, if that is made already; -1 */
	struct chain chain;		/* of that file, once generations are appended to it */
	bool astray;			/* the session's target is another: a round has failed since */
	bool renew;			/* the session is of no use any more */
	const char *why;		/* there is none that another could follow; NULL before the first */
};

/* Attach.  What fails here changes nothing.  @saver is closed then. */
int saver_open(struct saver *saver, const struct save_options *opt,
	       const volatile sig_atomic_t *interrupted, struct error *err);

/*
 * Save a generation to @path, or to the descriptor @fd when that is NULL, or, where one can't be
 * made of the last one at @path, behind that.  The VM is then as it was found (unless
 * stay_stopped).  After an error the next one may be tried, but for -ESRCH: QEMU is gone.
 */
int saver_round(struct saver *saver, const char *path, int fd, struct error *err);

/* All that the last generation's file has is now in the file @fd, called @path. */
int saver_moved(struct saver *saver, const char *path, int fd, struct error *err);

/* The next one follows nothing, and that is why. */
void saver_forget(struct saver *saver, const char *why);

/* When there is time: get ready what the next generation begins with, so that it need not wait for that. */
void saver_look_ahead(struct saver *saver);

/* Print what saver_round() has done, to stdout, as the options say. */
void saver_report(const struct saver *saver);

/* Let go of QEMU. */
void saver_close(struct saver *saver);

#endif
