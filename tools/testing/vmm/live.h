/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A live save of one's own VM with libkvmsnap: what a VMM has to do, in the order in which
 * it has to do it.
 */
#ifndef LIVE_H
#define LIVE_H

#include <linux/kvmsnap.h>
#include <stdint.h>

#include "machine.h"

struct live_options {
	unsigned int max_passes;	/* with the machine running; 0: none, it is paused at once */
	double max_downtime;		/* seconds, wished for; negative: all the passes */
	uint64_t min_work;		/* of the guest, in passes that go on until it is done, */
	unsigned long min_full;		/* and until its rings were full that often */
	bool hash;			/* keep hashes, and compare in the last pass */
	bool compare_only;		/* do without the dirty ring: compare in every pass */
	uint64_t stage;			/* bytes of the last pass to keep in kernel memory, 0 for none */
};

struct live_report {
	unsigned int passes;		/* with the machine running */
	uint64_t bytes;			/* written, of all passes */
	uint64_t last_pages;		/* of the last pass, with the machine stopped */
	uint64_t work;			/* rounds the guest did during the save */
	struct kvmsnap_stats stats;	/* after the last pass */
	/*
	 * Seconds; pause is from the order to stop until all runs again, write what the last
	 * pass took of it.
	 */
	double total, pause, stop, harvest, write, resume;
};

/*
 * Begin to follow @m, which is running, for saves to @fd: guest physical address N at offset N.
 * Returns the session, or a negative errno.
 */
int live_begin(struct machine *m, int fd, const struct live_options *options);

/*
 * Have the session's target hold what @m's memory is.  The machine stays paused when @stay_paused is
 * set or an error is returned.  For the next one kvmsnap_set_target_at(KVMSNAP_TARGET_CURRENT) names
 * a file that has all of the last.  0 or a negative errno.
 */
int live_generation(struct machine *m, int session, const struct live_options *options, bool stay_paused,
		    struct live_report *report);

/* Follow it no more. */
void live_end(struct machine *m, int session, const struct live_options *options);

/* All of these, for one save. */
int live_save(struct machine *m, int fd, const struct live_options *options, bool stay_paused,
	      struct live_report *report);

#endif
