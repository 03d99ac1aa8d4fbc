// SPDX-License-Identifier: GPL-2.0
#include "live.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "kvmsnap.h"

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static int fail(const char *what, int err)
{
	fprintf(stderr, "vmm: %s: %s\n", what, strerror(-err));
	return err;
}

static int waited(int err, const struct kvmsnap_wait *wait)
{
	return err || wait->error ? fail("writing RAM", err ? err : -wait->error) : 0;
}

/* The end of a pass. */
static int finish(int session, struct live_report *report)
{
	struct kvmsnap_wait wait;
	int err = waited(kvmsnap_wait(session, -1, &wait), &wait);

	if (err)
		return err;
	kvmsnap_stats(session, &report->stats);
	report->bytes += report->stats.bytes_written;
	return 0;
}

/* Write what is dirty, or what all pages are compared for. */
static int queue(int session, bool compare, uint32_t flags)
{
	return compare ? kvmsnap_queue_compare(session, flags, NULL) :
			 kvmsnap_queue_dirty(session, flags, NULL);
}

/* A pass while the machine runs.  The seconds it took go to *took. */
static int pass(int session, bool compare, struct live_report *report, double *took)
{
	double began = now();
	int err;

	err = queue(session, compare, 0);
	if (err)
		return fail("starting a pass", err);
	err = finish(session, report);
	*took = now() - began;
	return err;
}

/* The last pass: with a stage, only until the machine may run again. */
static int last_pass(int session, bool compare, bool stage)
{
	struct kvmsnap_wait wait;
	int err;

	err = queue(session, compare, stage ? KVMSNAP_QUEUE_STAGE : KVMSNAP_QUEUE_STOPPED);
	if (err)
		return fail("starting a pass", err);
	return waited(kvmsnap_wait_staged(session, -1, &wait), &wait);
}

/* What has been written meanwhile, and is to be written in the next pass. */
static int look(const struct machine *m, int session, const struct live_options *options,
		struct live_report *report)
{
	int err = options->compare_only || m->config.reap_ms ? 0 : kvmsnap_harvest(session, NULL);

	kvmsnap_stats(session, &report->stats);
	return err ? fail("harvesting", err) : 0;
}

static uint32_t track_mode(const struct machine *m, const struct live_options *options)
{
	return options->compare_only ? KVMSNAP_TRACK_COMPARE :
	       m->config.reap_ms ? KVMSNAP_TRACK_OBSERVER : KVMSNAP_TRACK_OWNER;
}

int live_begin(struct machine *m, int fd, const struct live_options *options)
{
	bool hash = options->hash || options->compare_only;
	uint32_t mode = track_mode(m, options);
	int session = kvmsnap_open(NULL), err;

	if (session < 0)
		return fail("/dev/kvmsnap", session);
	err = kvmsnap_bind_vm(session, m->vm);
	if (!err)
		err = kvmsnap_set_target(session, fd);
	if (!err)
		err = kvmsnap_add_region(session, (uintptr_t)m->ram, m->config.ram, 0, 0);
	if (err >= 0)
		err = kvmsnap_set_stage(session, options->stage);
	if (err < 0) {
		close(session);
		return fail("setting up", err);
	}

	/*
	 * 1. vCPUs' writes go to the rings, and the module empties these.  Or it watches us do so,
	 * and that from before the first write is logged.
	 */
	err = mode == KVMSNAP_TRACK_OWNER ? machine_logging(m, true) : 0;
	if (!err)
		err = kvmsnap_track(session, mode, hash ? KVMSNAP_TRACK_HASH : 0);
	if (!err && mode == KVMSNAP_TRACK_OBSERVER)
		err = machine_logging(m, true);
	/* 2. The device tells of its own; what it wrote before is dirty anyway. */
	if (!err && !options->compare_only)
		atomic_store(&m->session, session);
	if (!err)
		return session;
	fail("tracking", err);
	live_end(m, session, options);
	return err;
}

int live_generation(struct machine *m, int session, const struct live_options *options, bool stay_paused,
		    struct live_report *report)
{
	double began = now(), took, rate, stopped, at;
	uint64_t work = machine_work(m);
	bool hash = options->hash || options->compare_only;
	int err;

	memset(report, 0, sizeof(*report));
	/* 3. While the machine runs: until what is left can be written in the pause. */
	while (options->max_passes) {
		err = pass(session, options->compare_only && report->passes, report, &took);
		if (err)
			return err;
		report->passes++;
		rate = took > 0 ? (double)report->stats.bytes_written / took : 0;
		/* A test wants the machine to have done so much; that a ring is full, which looking prevents. */
		if (machine_work(m) - work < options->min_work || m->ring_full < options->min_full)
			continue;
		err = look(m, session, options, report);
		if (err)
			return err;
		if (report->passes >= options->max_passes ||
		    (options->max_downtime >= 0 &&
		     (double)(report->stats.pages_dirty * GUEST_PAGE) <= rate * options->max_downtime))
			break;
	}

	/* 4. Nothing may write any more.  Here a VMM saves the state of its devices. */
	stopped = now();
	machine_pause(m);
	report->stop = now() - stopped;
	report->work = machine_work(m) - work;

	/* 5. What the vCPUs wrote last, after the last ioctl on any of them. */
	at = now();
	err = options->compare_only ? 0 : kvmsnap_harvest(session, NULL);
	if (err)
		return fail("harvesting", err);
	report->harvest = now() - at;

	/* 6. After this the file equals memory; with a stage, it will. */
	at = now();
	err = last_pass(session, hash, options->stage);
	if (err)
		return err;
	report->write = now() - at;

	at = now();
	if (!stay_paused)
		machine_resume(m);
	report->resume = now() - at;
	report->pause = now() - stopped;

	/* 7. What the stage holds is written behind the running machine. */
	err = finish(session, report);
	report->last_pages = report->stats.pages_written;
	report->total = now() - began;
	return err;
}

void live_end(struct machine *m, int session, const struct live_options *options)
{
	/* 8. No logging, and room in the rings again, so that nobody waits for a harvest. */
	if (!options->compare_only) {
		machine_logging(m, false);
		kvmsnap_harvest(session, NULL);
	}
	atomic_store(&m->session, -1);
	close(session);
}

int live_save(struct machine *m, int fd, const struct live_options *options, bool stay_paused,
	      struct live_report *report)
{
	int session = live_begin(m, fd, options), err;

	if (session < 0)
		return session;
	err = live_generation(m, session, options, stay_paused, report);
	live_end(m, session, options);
	return err;
}
