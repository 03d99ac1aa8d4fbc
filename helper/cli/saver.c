// SPDX-License-Identifier: GPL-2.0
/*
 * The order of a generation, and what each step's failure undoes:
 *   open the target                            nothing is changed yet
 *   live: lay the file out, RAM -> file while the VM runs, until what is left is little.
 *   Where soft-dirty bits help, the VM stops for a moment after the first pass: they are
 *   cleared with no I/O in flight.  So it does later on, where that pays, and device state
 *   then tells, as it does at the end, if I/O went on
 *   stop the VM, if it runs                    resume
 *   device state -> memory (its pre_save handlers may still write RAM)
 *   lay the file out, or what is new of it, give it its size
 *   RAM -> file, by the module; what no memslot maps, by us.  After live passes, and where there
 *   is a generation before: what differs from what the file holds, which all of RAM is compared
 *   for, or what may have been written since (follow.h)
 *   device state once more, and RAM too, if a device has used its queues meanwhile (queues.h)
 *   resume, unless told otherwise
 *   records, bitmaps, device state -> file; durable; its name
 * A failure removes what was written and leaves the VM as it was found.  Should this process be
 * killed, its guardian does both.
 */
#include "saver.h"
#include "cli.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* For whoever watches; that it can't be told is no reason to fail. */
static void tell(const struct saver *saver, enum kvmsnap_phase phase, double pause)
{
	if (saver->ram.session >= 0)
		kvmsnap_set_phase(saver->ram.session, phase, pause > 0 ? (uint64_t)(pause * 1e9) : 0);
}

/* @failed: the round has, and there is no telling what became of the VM. */
static int resume(struct saver *saver, bool failed, struct error *err)
{
	struct round *round = &saver->round;
	double began = now();
	int ret;

	if (!round->stopped_by_us)
		return 0;
	ret = failed ? qemu_cont_unless_gone(&saver->qemu, err) : qemu_cont(&saver->qemu, err);
	if (ret)
		return ret;
	round->stopped_by_us = false;
	guardian_stopped(&saver->guardian, false);
	round->phases.resume = now() - began;
	round->phases.paused += now() - round->stopped_at;
	tell(saver, KVMSNAP_PHASE_RESUMED, round->phases.paused);
	return 0;
}

static int stop(struct saver *saver, struct error *err)
{
	struct round *round = &saver->round;
	int ret = qemu_look_status(&saver->qemu, err);

	if (ret || !qemu_is_running(&saver->qemu))
		return ret;
	guardian_stopped(&saver->guardian, true);
	round->stopped_at = now();
	ret = qemu_stop(&saver->qemu, &round->stopped_by_us, err);
	/* Somebody else was first: it stays stopped. */
	if (!round->stopped_by_us)
		guardian_stopped(&saver->guardian, false);
	tell(saver, KVMSNAP_PHASE_STOPPED, round->expected);
	return ret;
}

/*
 * The last pass's seconds without the writing.  The first and the last had the same to look at,
 * and what they took more or less is what they wrote more or less.
 */
static double look_seconds(const struct saver *saver)
{
	const struct ram *ram = &saver->ram;
	double last = (double)ram->stats.bytes_written, first = (double)ram->first.bytes_written;
	double look = saver->compare_seconds ? saver->compare_seconds : ram->seconds;

	if (first > last && saver->first_seconds > look)
		look -= last * (saver->first_seconds - look) / (first - last);
	return look > 0 ? look : 0;
}

/* Does the stage hold what the last pass wrote?  Then the VM won't have to wait for the disk. */
static bool is_staged(const struct saver *saver)
{
	return saver->opt->stage && saver->ram.stats.bytes_written <= saver->opt->stage;
}

/*
 * How long would the VM stop for another pass?  Where everything is compared, about as long as for
 * the last pass.  Otherwise the part of that which there is to look at, the looking at soft-dirty bits, their
 * clearing if another generation follows, and, unless it is staged, the writing.  Negative when it can't be said.
 */
static double downtime(struct saver *saver, bool staged, struct error *err)
{
	const struct ram *ram = &saver->ram;
	double bytes = (double)ram->stats.bytes_written, written = (double)ram->first.bytes_written;
	double content = written / SNAP_PAGE + (double)ram->first.pages_zero, looks;
	double look = look_seconds(saver), began = now();
	int64_t expect;

	if (!saver->follow.ring)
		return staged ? look : ram->seconds;
	expect = follow_expect(&saver->follow, err);
	if (expect < 0)
		return (double)expect;
	saver->round.bits = now() - began + (saver->opt->incremental ? saver->follow.clear_seconds : 0);
	looks = (double)expect + (double)ram->stats.pages_dirty;
	if (looks > content)
		looks = content;
	if (content > 0)
		looks *= look / content;
	saver->round.looks = looks;
	looks += saver->round.bits;
	return staged || !written ? looks : looks + bytes * saver->first_seconds / written;
}

/* Has it been, all the time?  If not, bits that were cleared meanwhile tell nothing. */
static int check_stopped(struct saver *saver, struct error *err)
{
	int ret = qemu_check_stopped(&saver->qemu, err);

	if (ret)
		saver->follow.cleared = false;
	return ret;
}

/* Device state as it is now, in place of what was taken before. */
static int take_devices(struct saver *saver, struct queues *queues, struct error *err)
{
	struct round *round = &saver->round;
	double began = now();
	int ret;

	if (round->devices >= 0)
		close(round->devices);
	round->devices = qemu_device_state(&saver->qemu, err);
	ret = round->devices < 0 ? round->devices : queues_read(queues, round->devices, err);
	round->phases.devices += now() - began;
	return ret;
}

/*
 * The VM stops for as long as soft-dirty bits take to be cleared.  They never tell what is written after they were
 * looked at and before that: 1, and all of RAM is to be compared, if a device has used its queues meanwhile.
 */
static int clear_bits(struct saver *saver, struct error *err)
{
	struct round *round = &saver->round;
	double paused = round->phases.paused, devices = round->phases.devices;
	bool looks = saver->follow.cleared, used = false;
	struct queues queues;
	int ret = stop(saver, err);

	if (!ret && looks)
		ret = take_devices(saver, &round->queues, err);
	if (!ret)
		ret = follow_clear(&saver->follow, err);
	if (!ret && round->queues.nr) {
		ret = take_devices(saver, &queues, err);
		if (!ret) {
			used = queues_used(&round->queues, &queues);
			queues_free(&queues);
		}
	}
	queues_free(&round->queues);
	if (!ret)
		ret = check_stopped(saver, err);
	if (!ret)
		ret = resume(saver, false, err);
	round->clear_seconds = round->phases.paused - paused;
	round->phases.clear += round->clear_seconds - (round->phases.devices - devices);
	tell(saver, KVMSNAP_PHASE_LIVE, round->expected);
	if (ret)
		saver->follow.cleared = false;
	return ret ? ret : used;
}

/* A pass; over everything where somebody else has switched the ring off, now or before it was on. */
static int tracked_pass(struct saver *saver, uint32_t kind, uint32_t flags, const char *what,
			struct error *err)
{
	int ret = ram_pass(&saver->ram, kind, flags, what, err);

	if (ret != -ENODATA || kind == KVMSNAP_PASS_ALL)
		return ret;
	if (saver->follow.ring)
		follow_lost(&saver->follow);
	return ram_pass(&saver->ram, KVMSNAP_PASS_ALL, flags, what, err);
}

/*
 * To have soft-dirty bits start anew takes as long as it did the last time, for certain; that the last
 * pass has less to look at then is a hope, and with the VM stopped it looks faster than it did.
 */
static bool clearing_pays(const struct saver *saver)
{
	return saver->round.looks > 4 * saver->round.clear_seconds;
}

/*
 * The next pass while the VM runs.  The session's first is over everything; then, if there are
 * soft-dirty bits, one that compares everything begins where they do.  Later ones are over what they
 * tell.
 */
static int live_pass(struct saver *saver, struct error *err)
{
	struct round *round = &saver->round;
	struct ram *ram = &saver->ram;
	bool first = !ram->any_pass, everything = !first && !saver->follow.ring;
	char what[32];
	int ret = 0;

	if (!first && follow_has_bits(&saver->follow)) {
		everything = !saver->follow.cleared;
		if (everything || clearing_pays(saver)) {
			ret = clear_bits(saver, err);
			everything |= ret > 0;
		} else {
			ret = follow_collect(&saver->follow, false, err);
			everything = !ret;
		}
	}
	if (ret < 0)
		return ret;
	snprintf(what, sizeof(what), "pass %ld", ++round->passes);
	ret = tracked_pass(saver, everything ? KVMSNAP_PASS_ALL : KVMSNAP_PASS_DIRTY,
			   first ? 0 : KVMSNAP_QUEUE_COMPARE, what, err);
	/* What was written before they were cleared they don't tell, and it is not all found. */
	if (ret && everything)
		saver->follow.cleared = false;
	if (ret)
		return ret;
	if (first)
		saver->first_seconds = ram->seconds;
	else if (ram->seconds > 0)
		round->dirty_rate = (double)ram->stats.bytes_written / ram->seconds;
	if (everything)
		saver->compare_seconds = ram->seconds;
	return 0;
}

/* Write RAM while the VM runs, until the rest can be written in the pause. */
static int live_passes(struct saver *saver, struct error *err)
{
	const struct save_options *opt = saver->opt;
	struct round *round = &saver->round;
	struct ram *ram = &saver->ram;
	double before, wanted;
	bool stage_helps;
	int ret;

	tell(saver, KVMSNAP_PHASE_LIVE, 0);
	for (;;) {
		before = round->expected - round->bits;
		ret = live_pass(saver, err);
		if (ret)
			return ret;
		wanted = downtime(saver, is_staged(saver), err);
		if (wanted < 0)
			return (int)wanted;
		round->expected = round->phases.paused + wanted;
		tell(saver, KVMSNAP_PHASE_LIVE, round->expected);
		if (round->expected <= opt->max_downtime || round->passes >= opt->max_passes)
			break;
		/*
		 * It goes on unless all stops together do not get shorter any more, because the guest
		 * writes as fast as we do, or the stop before another pass took what that has saved.  Bits
		 * take what they take.
		 */
		if (round->passes < 3 || round->expected - round->bits < before * 0.9)
			continue;
		if (!opt->throttle || !saver->follow.ring || round->throttled)
			break;
		ret = qemu_throttle(&saver->qemu, opt->throttle, err);
		if (ret)
			return ret;
		round->throttled = true;
		saver->throttled = true;
	}

	stage_helps = !is_staged(saver) && downtime(saver, true, err) <= opt->allow_downtime;
	wanted += round->phases.paused;
	if (wanted > opt->allow_downtime)
		return error_set(err, ETIME,
				 "the guest would stop for about %.0f ms, and %.0f ms are allowed: it changes %s/s%s%s; allow more with --allow-downtime %.0fms%s%s",
				 wanted * 1e3, opt->allow_downtime * 1e3, human_bytes(round->dirty_rate),
				 saver->follow.ring ? "" : ", and all of its memory is compared at the end: ",
				 saver->follow.ring ? "" : saver->follow.why, wanted * 1.2e3,
				 stage_helps ? ", or keep the disk out of it with a --stage of more than " : "",
				 stage_helps ? human_bytes((double)ram->stats.bytes_written) : "");
	return 0;
}

/* All that may have been written since soft-dirty bits were cleared, and differs from what the file holds. */
static int write_tracked(struct saver *saver, uint32_t how, bool on, const char *what, struct error *err)
{
	int ret = follow_collect(&saver->follow, on, err);

	if (ret < 0)
		return ret;
	return tracked_pass(saver, ret ? KVMSNAP_PASS_DIRTY : KVMSNAP_PASS_ALL, how, what, err);
}

/* All of RAM, or what has changed since the live passes or the last generation; the VM is stopped. */
static int write_rest(struct saver *saver, struct error *err)
{
	uint32_t how = saver->opt->stage ? KVMSNAP_QUEUE_STAGE : KVMSNAP_QUEUE_STOPPED;
	bool first = !saver->ram.any_pass;
	int ret;

	if (saver->followed) {
		ret = write_tracked(saver, first ? how : how | KVMSNAP_QUEUE_COMPARE, saver->opt->incremental,
				    "the rest", err);
		if (!ret && saver->opt->incremental)
			ret = follow_begin(&saver->follow, err);
	} else {
		ret = ram_pass(&saver->ram, KVMSNAP_PASS_ALL, saver->opt->stage ? how : 0, "saving", err);
	}
	if (first && !ret)
		saver->first_seconds = saver->ram.seconds;
	saver->round.last_looks = first ? 0 : saver->ram.stats.pages_total;
	return ret ? ret : ram_copy_rest(&saver->ram, err);
}

/* How often RAM is gone over again, at most.  A stopped guest's queues are full, or empty, before long. */
#define MAX_PASSES_AGAIN	20
/* Where all of it is written again. */
#define MAX_PASSES_WRITTEN	3

/* RAM again, as far as it may have been written meanwhile. */
static int write_again(struct saver *saver, struct error *err)
{
	struct round *round = &saver->round;
	uint32_t how = saver->opt->stage ? KVMSNAP_QUEUE_STAGE : KVMSNAP_QUEUE_STOPPED;
	bool hashes = saver->followed || saver->opt->checksum;
	int ret;

	if (round->passes_again++ == (hashes ? MAX_PASSES_AGAIN : MAX_PASSES_WRITTEN))
		return error_set(err, EBUSY, "%s goes on writing the memory of the stopped VM: save it again, or without that device",
				 round->writer);
	ret = ram_settle(&saver->ram, err);
	if (ret)
		return ret;
	round->last_bytes += saver->ram.stats.bytes_written;
	if (hashes)
		how |= KVMSNAP_QUEUE_COMPARE;
	ret = ram_add_blocks(&saver->ram, err);
	if (ret)
		return ret;
	/* What was written while bits were looked at and cleared for the next generation they don't tell. */
	if (saver->followed && (!saver->opt->incremental || round->passes_again > 1))
		ret = write_tracked(saver, how, false, "again", err);
	else
		ret = ram_pass(&saver->ram, KVMSNAP_PASS_ALL, how, "again", err);
	return ret ? ret : ram_copy_rest(&saver->ram, err);
}

/*
 * RAM is written: do devices' queues in it belong to their state still?  If not, that is taken again, and RAM, until
 * they do.
 */
static int check_queues(struct saver *saver, struct error *err)
{
	struct round *round = &saver->round;
	struct queues queues;
	const char *used;
	double began;
	int ret;

	while (round->queues.nr) {
		ret = take_devices(saver, &queues, err);
		if (ret)
			return ret;
		used = queues_used(&round->queues, &queues);
		if (!used) {
			queues_free(&queues);
			/* Those that went before RAM: what saving them writes is in it. */
			return queues_put_back(&round->queues, round->devices, err);
		}
		snprintf(round->writer, sizeof(round->writer), "%s", used);
		queues_free(&round->queues);
		round->queues = queues;
		ret = check_stopped(saver, err);
		if (ret)
			return ret;
		began = now();
		ret = write_again(saver, err);
		if (ret)
			return ret;
		round->phases.ram += now() - began;
	}
	return 0;
}

static void close_ahead(struct saver *saver)
{
	if (saver->ahead >= 0)
		close(saver->ahead);
	saver->ahead = -1;
}

void saver_forget(struct saver *saver, const char *why)
{
	saver->why = why;
	chain_free(&saver->chain);
	close_ahead(saver);
	if (saver->last >= 0)
		close(saver->last);
	saver->last = -1;
}

/* Read what the next generation is to be appended to; if that can't be done, it is a full one. */
static int load_chain(struct saver *saver, struct error *err)
{
	struct chain *chain = &saver->chain;
	int ret = chain_load_last(chain, saver->last, err);

	/* It ends where the last generation does, or what is behind would be cut off. */
	if (!ret && (chain->torn || chain->generation[chain->nr - 1].record.generation != saver->generation))
		ret = error_set(err, EBADMSG, "%s: generation %llu is not to be found any more; see kvmsnap verify",
				saver->last_path, (unsigned long long)saver->generation);
	if (ret)
		saver_forget(saver, "the last one's file can't be read any more");
	return ret;
}

static int open_appended(struct saver *saver, struct error *err)
{
	struct round *round = &saver->round;
	int ret = saver->chain.nr ? 0 : load_chain(saver, err);

	if (ret)
		return ret;
	round->content = CONTENT_APPENDED;
	round->output = saver->last_path;
	return target_append(&round->target, saver->last_path, saver->last, saver->chain.end, err);
}

/* The target begins as the last generation. */
static int clone_last(struct saver *saver, struct error *err)
{
	struct target *target = &saver->round.target;
	int ret = -EOPNOTSUPP;

	if (saver->chain.nr)
		return ret;
	if (saver->ahead >= 0)
		ret = target_take(target, saver->ahead, saver->last_ram_end, err);
	if (!ret)
		saver->ahead = -1;
	return ret == -EOPNOTSUPP ? target_clone(target, saver->last, saver->last_ram_end, err) : ret;
}

/* Open what the generation goes to. */
static int open_target(struct saver *saver, const char *path, int fd, struct error *err)
{
	const struct save_options *opt = saver->opt;
	struct round *round = &saver->round;
	int ret;

	if (saver->chain.nr && !target_has_name(saver->last, saver->last_path))
		saver_forget(saver, "the last one's file has another name now");
	round->output = path;
	round->content = CONTENT_FULL;
	if (saver->last >= 0 && saver->last_path &&
	    ((path && target_has_name(saver->last, path) && !opt->force) || (saver->chain.nr && opt->append)))
		return open_appended(saver, err);
	if (saver->last < 0 && !round->why)
		round->why = saver->why;
	ret = target_open(&round->target, path, fd, opt->force, err);
	if (ret == -EEXIST && opt->incremental && saver->last < 0)
		return error_set(err, EEXIST, "%s exists, and nothing follows it%s%s: the next generation has all of memory; choose a new file (--force drops what is in this one)",
				 path, round->why ? ", because " : "", round->why ? round->why : "");
	if (ret || saver->last < 0)
		return ret;
	ret = clone_last(saver, err);
	if (ret != -EOPNOTSUPP) {
		round->content = CONTENT_CLONE;
		return ret;
	}
	if (opt->append && saver->last_path) {
		target_close(&round->target);
		return open_appended(saver, err);
	}
	round->why = "blocks can't be shared with the last generation's file; name that again to append to it";
	return 0;
}

/* The layout, and the tracking if it is wanted, for the session's first generation. */
static int prepare(struct saver *saver, struct error *err)
{
	const struct save_options *opt = saver->opt;
	int ret = ram_add_blocks(&saver->ram, err);

	if (!ret && opt->stage != saver->stage) {
		ret = kvmsnap_set_stage(saver->ram.session, opt->stage);
		if (ret)
			error_set(err, -ret, "a stage of %s: %s; choose a smaller --stage",
				  human_bytes((double)opt->stage), strerror(-ret));
		saver->stage = ret ? 0 : opt->stage;
	}
	if (ret)
		return ret;
	if (saver->followed) {
		follow_look(&saver->follow);
		return 0;
	}
	/* A VM that is stopped has nothing to run for. */
	if (opt->incremental || (opt->live && qemu_is_running(&saver->qemu))) {
		ret = follow_start(&saver->follow, err);
		saver->followed = !ret;
		saver->renew = ret;
	} else if (opt->checksum) {
		ret = kvmsnap_track(saver->ram.session, KVMSNAP_TRACK_COMPARE, KVMSNAP_TRACK_HASH);
		if (ret)
			error_set(err, -ret, "keeping checksums: %s", strerror(-ret));
	}
	return ret;
}

#define CHECKSUM_PIECE	(1u << 17)	/* pages at a time */

/* Those of a block's pages, from @first on: the module's, or of what we have copied ourselves. */
static int get_checksums(struct saver *saver, size_t block, uint64_t first, uint64_t nr, uint64_t *sums,
			 uint8_t key[RECORD_KEY])
{
	const struct target *target = &saver->round.target;
	const struct snap_block *b = &saver->snap.blocks[block];
	int region = saver->ram.blocks[block].region, ret = 0;
	uint8_t page[SNAP_PAGE];
	uint64_t i;

	if (region >= 0)
		return kvmsnap_get_hashes(saver->ram.session, (uint32_t)region, first, nr, sums, key);
	for (i = 0; i < nr && !ret; i++) {
		ret = snap_pread(target->fd, page, sizeof(page),
				 target->base + b->pages_offset + (first + i) * SNAP_PAGE);
		if (!ret)
			sums[i] = snap_checksum(page, key);
	}
	return ret;
}

/* Checksums of all that the file has, at @at; *end is behind them. */
static int write_checksums(struct saver *saver, struct record *record, uint64_t at, uint64_t *end,
			   struct error *err)
{
	struct ram *ram = &saver->ram;
	uint64_t *sums = malloc(CHECKSUM_PIECE * sizeof(*sums)), page, n, to;
	int ret = sums ? 0 : -ENOMEM;
	bool ours;
	size_t i;

	/* The module's first: the key is its. */
	for (ours = false;; ours = true) {
		to = at;
		for (i = 0; i < ram->nr && !ret; i++) {
			uint64_t pages = saver->snap.blocks[i].length / SNAP_PAGE;

			for (page = 0; page < pages && !ret && ours == (ram->blocks[i].region < 0); page += n) {
				n = pages - page < CHECKSUM_PIECE ? pages - page : CHECKSUM_PIECE;
				ret = get_checksums(saver, i, page, n, sums, record->key);
				if (!ret)
					ret = snap_pwrite(saver->round.target.fd, sums, n * sizeof(*sums),
							  to + page * sizeof(*sums));
			}
			to += pages * sizeof(*sums);
		}
		if (ours)
			break;
	}
	record->checksums = at;
	*end = to;
	free(sums);
	return ret ? error_set(err, -ret, "writing checksums: %s", strerror(-ret)) : 0;
}

static uint64_t checksum_bytes(const struct saver *saver)
{
	uint64_t pages = 0;
	size_t i;

	for (i = 0; saver->opt->checksum && i < saver->snap.nr_blocks; i++)
		pages += saver->snap.blocks[i].length / SNAP_PAGE;
	return pages * sizeof(uint64_t);
}

static int describe(const struct saver *saver, struct record *record, struct error *err)
{
	const struct round *round = &saver->round;
	size_t i;
	int ret = 0;

	*record = (struct record){
		.generation = saver->generation + 1, .time = round->time, .written = saver->ram.bytes,
		.base = round->target.base,
	};
	if (round->content == CONTENT_CLONE && saver->last_path) {
		const char *slash = strrchr(saver->last_path, '/');

		record_set_parent(record, slash ? slash + 1 : saver->last_path);
	}
	for (i = 0; i < saver->snap.nr_blocks && !ret; i++)
		ret = record_add_block(record, saver->snap.blocks[i].name, saver->snap.blocks[i].length,
				       round->target.base + saver->snap.blocks[i].pages_offset);
	return ret ? error_set(err, -ret, "out of memory") : 0;
}

/* A hole's worth behind a stream, for its record. */
#define RECORD_ROOM	(64u << 10)

/* What goes behind RAM, of a file of its own: records, device state, checksums.  Not yet its magic. */
static int write_ordinary(struct saver *saver, struct record *record, struct error *err)
{
	struct round *round = &saver->round;
	int fd = round->target.fd, ret;
	uint64_t at, end, room;

	ret = snap_write(&saver->snap, fd, round->devices, err);
	if (ret)
		return ret;
	round->file_bytes = saver->snap.size;
	at = snap_round_up(saver->snap.size, SNAP_PAGE);
	end = at + RECORD_ROOM;
	/* A block device may have the room that the stream needs, and not more. */
	room = target_room(&round->target);
	if (round->target.device && room < end + SNAP_ALIGN + checksum_bytes(saver)) {
		if (saver->opt->checksum)
			fprintf(stderr, "kvmsnap: %s has no room for checksums: there are none\n",
				round->output ? round->output : "the device");
		/* Nor is there an old record, which may be of the same VM. */
		return target_clear(&round->target, at, err);
	}
	if (saver->opt->checksum)
		ret = write_checksums(saver, record, end, &end, err);
	record->end = snap_round_up(end, SNAP_ALIGN);
	if (!ret)
		ret = record_write(record, fd, at, &end, err);
	if (!ret && end > at + RECORD_ROOM)
		ret = error_set(err, EOVERFLOW, "the VM has too many RAM blocks");
	/* What was there before may have had others behind it. */
	if (!ret)
		ret = target_clear(&round->target, record->end, err);
	if (!ret && !round->target.device && ftruncate(fd, (off_t)record->end) < 0)
		ret = error_set(err, errno, "sizing the file: %s", strerror(errno));
	round->file_bytes = record->end;
	return ret;
}

/* Its parts and their bitmaps grow with the generations: not beyond what can be read again. */
static int check_appended(const struct record *record, int fd, struct error *err)
{
	struct generation generation = { .record = *record };
	struct error inner;
	int ret = generation_load(&generation, fd, &inner);

	generation_unload(&generation);
	return ret ? error_set(err, EFBIG, "the file has too many generations for another (%.200s): choose a new one, or see kvmsnap compact",
			       inner.text) : 0;
}

/* The same behind others; the record, which makes it one, comes last. */
static int write_appended(struct saver *saver, struct record *record, struct error *err)
{
	struct round *round = &saver->round;
	int fd = round->target.fd, ret;
	struct snapfile parts;
	uint64_t end;

	ret = chain_next(&saver->chain, &saver->snap, &parts, err);
	if (ret)
		return ret;
	record->stream = round->target.base + snap_round_up(saver->snap.ram_end, SNAP_PAGE);
	ret = snap_append(&parts, fd, record->stream, round->devices, err);
	round->stream = record->stream;
	end = parts.size;
	snap_free(&parts);
	if (!ret && saver->opt->checksum)
		ret = write_checksums(saver, record, snap_round_up(end, SNAP_PAGE), &end, err);
	record->end = snap_round_up(end, SNAP_ALIGN);
	round->file_bytes = record->end;
	if (!ret && ftruncate(fd, (off_t)record->end) < 0)
		ret = error_set(err, errno, "sizing the file: %s", strerror(errno));
	if (!ret)
		ret = check_appended(record, fd, err);
	if (!ret)
		ret = target_sync(&round->target, saver->opt->sync, err);
	return ret ? ret : record_write(record, fd, record->base, &end, err);
}

/* RAM is in the file; what makes it a generation follows. */
static int commit(struct saver *saver, struct error *err)
{
	struct round *round = &saver->round;
	struct target *target = &round->target;
	struct record record;
	int ret = describe(saver, &record, err);

	if (!ret)
		ret = target->appends ? write_appended(saver, &record, err) :
					write_ordinary(saver, &record, err);
	record_free(&record);
	/* Where there is no name to give it at the end, the magic number is the commit. */
	if (!ret && !target->partial && !target->appends)
		ret = target_sync(target, saver->opt->sync, err);
	if (!ret && !target->appends)
		ret = snap_seal(target->fd, err);
	if (!ret)
		ret = target_commit(target, saver->opt->sync, err);
	round->committed = target->committed;
	if (round->committed)
		guardian_partial(&saver->guardian, NULL, err);
	return ret;
}

/* By how many seconds the pause may be longer than allowed: it was thought to be shorter, but a disk may hang. */
#define OVERDUE			5

/* Everything between opening the target and letting go of it. */
static int save_round(struct saver *saver, struct error *err)
{
	struct round *round = &saver->round;
	uint32_t flags = 0;
	double began;
	int ret;

	if (*saver->interrupted)
		return error_set(err, EINTR, "interrupted");
	if (round->content != CONTENT_FULL)
		flags = saver->astray ? KVMSNAP_TARGET_BEFORE : KVMSNAP_TARGET_CURRENT;
	ret = ram_begin(&saver->ram, flags, err);
	if (ret)
		return ret;
	round->begun = true;
	saver->astray = true;
	ret = prepare(saver, err);
	if (ret)
		return ret;

	ret = qemu_open_devices(&saver->qemu, err);
	began = now();
	if (!ret && saver->opt->live && qemu_is_running(&saver->qemu)) {
		saver->ram.bandwidth = saver->opt->bandwidth;
		ret = live_passes(saver, err);
		/* Nothing holds up a guest that is stopped. */
		saver->ram.bandwidth = 0;
	}
	if (ret)
		return ret;
	round->phases.live = now() - began;

	began = now();
	if (qemu_is_running(&saver->qemu))
		ret = stop(saver, err);
	if (ret)
		return ret;
	round->time = time(NULL);
	round->phases.stop = now() - (round->stopped_by_us ? round->stopped_at : began);

	ret = take_devices(saver, &round->queues, err);
	if (ret)
		return ret;

	began = now();
	if (saver->opt->live && round->stopped_by_us)
		saver->ram.deadline = round->stopped_at + saver->opt->allow_downtime + OVERDUE - round->phases.paused;
	ret = ram_add_blocks(&saver->ram, err);
	if (!ret)
		ret = write_rest(saver, err);
	round->phases.ram = now() - began;
	if (!ret)
		ret = check_queues(saver, err);
	saver->ram.deadline = 0;
	if (ret) {
		/* Nobody has looked whether it was stopped when they were cleared. */
		saver->follow.cleared = false;
		return ret;
	}
	ret = check_stopped(saver, err);
	if (ret)
		return ret;

	/* RAM and devices are taken: the guest need not wait for the rest. */
	if (!saver->opt->stay_stopped) {
		ret = resume(saver, false, err);
		if (ret)
			return ret;
	}
	/*
	 * What came meanwhile QEMU has left out of the device state without a word.  That it is gone now, or
	 * migrates, is no harm.
	 */
	ret = qemu_check_saveable(&saver->qemu, err);
	if (ret == -EOPNOTSUPP)
		return ret;
	if (follow_look(&saver->follow))
		return error_set(err, EBUSY, "%s was plugged in while the VM was saved; save it again",
				 saver->follow.hidden);
	qemu_close_devices(&saver->qemu);
	began = now();
	ret = ram_finish(&saver->ram, round->target.appends, err);
	if (ret)
		return ret;
	round->phases.stage = now() - began;
	round->last_bytes += saver->ram.stats.bytes_written;
	if (*saver->interrupted)
		return error_set(err, EINTR, "interrupted");
	began = now();
	ret = commit(saver, err);
	round->phases.commit = now() - began;
	return ret;
}

static void set_last(struct saver *saver, const char *path, int fd)
{
	close_ahead(saver);
	if (saver->last >= 0)
		close(saver->last);
	saver->last = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	/* Nobody is to write over it: the next one has its blocks.  Who does already is no reason to fail. */
	target_lock(saver->last, TARGET_CONTENT, true);
	/* The round's report names it still. */
	if (path != saver->last_path) {
		free(saver->last_path);
		saver->last_path = path ? strdup(path) : NULL;
	}
}

int saver_moved(struct saver *saver, const char *path, int fd, struct error *err)
{
	chain_free(&saver->chain);
	set_last(saver, path, fd);
	return load_chain(saver, err);
}

void saver_look_ahead(struct saver *saver)
{
	if (saver->ahead < 0 && saver->last >= 0 && saver->last_path && !saver->chain.nr && !saver->renew)
		saver->ahead = target_clone_ahead(saver->last_path, saver->last, saver->last_ram_end);
}

/* What was saved is what the next one follows. */
static void succeed(struct saver *saver)
{
	struct round *round = &saver->round;
	const char *path = round->output;
	struct error ignored;

	saver->generation++;
	saver->last_ram_end = saver->snap.ram_end;
	saver->astray = false;
	saver->why = NULL;
	if (!saver->opt->incremental)
		return;
	chain_free(&saver->chain);
	if (round->target.device)
		saver_forget(saver, "the last one is on a block device, which has room for one");
	else if (round->content == CONTENT_APPENDED)
		/* If it can't be read now, the next one is a full one. */
		saver_moved(saver, path, round->target.fd, &ignored);
	else
		set_last(saver, path, round->target.fd);
}

/* A session of the module, with nothing in it. */
static int open_session(struct saver *saver, struct error *err)
{
	saver->follow = (struct follow){ .ram = &saver->ram, .guardian = &saver->guardian, .own = -1 };
	saver->ram = (struct ram){
		.qemu = &saver->qemu, .target = &saver->round.target, .snap = &saver->snap,
		.interrupted = saver->interrupted, .session = -1, .vm_fd = -1,
	};
	snprintf(saver->snap.machine, sizeof(saver->snap.machine), "%s", saver->qemu.machine);
	saver->followed = false;
	saver->throttled = false;
	saver->renew = false;
	saver->astray = false;
	saver->compare_seconds = 0;
	saver->stage = 0;
	return ram_open(&saver->ram, saver->opt->device, err);
}

/* Nothing of this goes on beyond a change of the VM's RAM blocks. */
static void close_session(struct saver *saver)
{
	follow_end(&saver->follow);
	ram_close(&saver->ram);
	snap_free(&saver->snap);
	saver_forget(saver, NULL);
}

/*
 * The module holds the file of a round that has failed until another is named, and the disk is short of what it
 * takes, perhaps.  But nobody waits for I/O that hangs.
 */
static void give_back(struct saver *saver)
{
	const struct target *target = &saver->round.target;
	struct kvmsnap_wait wait;

	if (target->fd >= 0 && target->partial && saver->ram.session >= 0 &&
	    !kvmsnap_wait(saver->ram.session, 1000000000, &wait) && ftruncate(target->fd, 0) < 0)
		fprintf(stderr, "kvmsnap: taking back what was written: %s\n", strerror(errno));
}

static int try_round(struct saver *saver, const char *path, int fd, const char *why, struct error *err)
{
	struct round *round = &saver->round;
	double began = now();
	struct error second;
	int ret;

	*round = (struct round){ .target.fd = -1, .devices = -1, .why = why };
	ret = qemu_look_again(&saver->qemu, err);
	if (!ret)
		ret = guardian_partial(&saver->guardian, path, err);
	if (!ret)
		ret = open_target(saver, path, fd, err);
	if (!ret)
		ret = save_round(saver, err);
	if (round->committed)
		succeed(saver);
	/* The module knows no more what the last file has, which is a base for nothing now. */
	if (ret && round->begun && round->content == CONTENT_FULL)
		saver_forget(saver, saver->generation ? "one of all of memory has failed since" : NULL);
	/* Nor is the layout all the session's. */
	if (ret && saver->snap.nr_blocks != saver->ram.nr)
		saver->renew = true;
	/* As it was wanted: nobody is to have it go on. */
	if (!ret && saver->opt->stay_stopped)
		guardian_stopped(&saver->guardian, false);

	/* As it was found.  If we can't resume it, the guardian goes on trying. */
	if (ret && round->stopped_by_us && resume(saver, true, &second)) {
		guardian_leave(&saver->guardian);
		qmp_give_up(&saver->qemu.qmp);
		if (qemu_is_alive(&saver->qemu)) {
			struct error first = *err;

			error_set(err, -ret, "%.500s; and the VM is not resumed yet: %.300s; use cont in QEMU's monitor",
				  first.text, second.text);
		}
	}
	qemu_close_devices(&saver->qemu);
	if (!saver->opt->incremental)
		follow_end(&saver->follow);
	else if (saver->throttled && !qemu_throttle(&saver->qemu, 0, &second))
		/* What can't be done now is tried after the next one; the guardian will at the end. */
		saver->throttled = false;
	round->phases.total = now() - began;
	tell(saver, ret ? KVMSNAP_PHASE_FAILED : KVMSNAP_PHASE_DONE, round->phases.paused);
	if (ret)
		give_back(saver);
	target_close(&round->target);
	guardian_partial(&saver->guardian, NULL, err);
	if (round->devices >= 0)
		close(round->devices);
	queues_free(&round->queues);
	return ret;
}

int saver_round(struct saver *saver, const char *path, int fd, struct error *err)
{
	const char *why = saver->generation ? "the writes since then were not followed" : NULL;
	int ret = 0;

	if (!saver->renew) {
		ret = try_round(saver, path, fd, NULL, err);
		if (ret != -ESTALE)
			return ret;
		saver->renew = true;
		if (!saver->generation)
			return ret;
		why = "the VM's memory is laid out anew";
	}
	close_session(saver);
	ret = open_session(saver, err);
	if (ret)
		saver->renew = true;
	return ret ? ret : try_round(saver, path, fd, why, err);
}

int saver_open(struct saver *saver, const struct save_options *opt,
	       const volatile sig_atomic_t *interrupted, struct error *err)
{
	int ret;

	*saver = (struct saver){
		.opt = opt, .interrupted = interrupted, .guardian.fd = -1, .qemu.qmp.fd = -1, .last = -1,
		.ahead = -1, .follow.own = -1,
		.round = { .target.fd = -1, .devices = -1 }, .ram = { .session = -1, .vm_fd = -1 },
	};
	ret = qemu_attach(&saver->qemu, opt->qmp, opt->pid, err);
	if (!ret)
		ret = open_session(saver, err);
	if (!ret)
		ret = guardian_start(&saver->guardian, &saver->qemu.qmp, opt->qmp, err);
	if (ret)
		saver_close(saver);
	return ret;
}

void saver_close(struct saver *saver)
{
	close_session(saver);
	guardian_end(&saver->guardian);
	qemu_detach(&saver->qemu);
	free(saver->last_path);
}

static const char *content_name(enum content content)
{
	static const char *const names[] = { "full", "clone", "appended" };

	return names[content];
}

void saver_report(const struct saver *saver)
{
	const struct round *round = &saver->round;
	const struct phases *p = &round->phases;
	uint64_t bytes = saver->ram.bytes, ram = 0;
	uint64_t staged = saver->ram.stats.pages_staged * SNAP_PAGE;
	double seconds = p->live + p->ram + p->stage, rate = seconds > 0 ? (double)bytes / seconds : 0;
	json_t *json;
	size_t i;

	for (i = 0; i < saver->snap.nr_blocks; i++)
		ram += saver->snap.blocks[i].length;
	if (saver->opt->json) {
		json = json_pack("{s:I, s:s, s:s*, s:I, s:o*, s:o, s:I, s:I, s:I, s:I, s:I, s:f, s:f, s:f, s:I, s:f, s:I, s:I, s:I, s:I, s:s*, s:s*, s:b, s:b, s:{s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f}}",
				 "generation", (json_int_t)saver->generation,
				 "content", content_name(round->content), "why", round->why,
				 "stream", (json_int_t)round->stream,
				 "file", json_text(round->output),
				 "machine", json_text(saver->snap.machine),
				 "file_bytes", (json_int_t)round->file_bytes,
				 "ram_bytes", (json_int_t)ram,
				 "written_bytes", (json_int_t)bytes,
				 "zero_bytes", (json_int_t)(saver->ram.first.pages_zero * SNAP_PAGE),
				 "untouched_bytes", (json_int_t)(saver->ram.first.pages_untouched * SNAP_PAGE),
				 "bytes_per_second", rate,
				 "paused_seconds", p->paused,
				 "seconds", p->total,
				 "live_passes", (json_int_t)round->passes,
				 "changed_bytes_per_second", round->dirty_rate,
				 "paused_written_bytes", (json_int_t)(round->last_bytes - staged),
				 "staged_bytes", (json_int_t)staged,
				 "paused_compared_bytes", (json_int_t)(round->last_looks * SNAP_PAGE),
				 "passes_again", (json_int_t)round->passes_again,
				 "writer", round->passes_again ? round->writer : NULL,
				 "tracking", !saver->followed ? NULL : saver->follow.ring ? "ring" : "compare",
				 "soft_dirty", saver->follow.cleared, "throttled", round->throttled,
				 "phases", "live", p->live, "clear", p->clear, "stop", p->stop, "devices", p->devices, "ram", p->ram,
				 "resume", p->resume, "stage", p->stage, "commit", p->commit);
		if (json) {
			json_dumpf(json, stdout, JSON_INDENT(2));
			putchar('\n');
		}
		json_decref(json);
		return;
	}
	if (saver->opt->quiet)
		return;
	printf("saved %s: %s of %s RAM in %.2f s (%s/s), %.2f s in all\n",
	       round->output ? round->output : "to the descriptor",
	       human_bytes((double)bytes), human_bytes((double)ram), seconds, human_bytes(rate), p->total);
	if (round->passes)
		printf("%ld pass%s while the guest ran, which changed %s/s; %s in the last, with it stopped, of %s that %s\n",
		       round->passes, round->passes == 1 ? "" : "es", human_bytes(round->dirty_rate),
		       human_bytes((double)round->last_bytes),
		       human_bytes((double)(round->last_looks * SNAP_PAGE)),
		       saver->follow.cleared ? "may have changed" : "had to be compared");
	if (saver->opt->incremental)
		printf("generation %llu: %s%s%s\n", (unsigned long long)saver->generation,
		       round->content == CONTENT_FULL ? "all of memory" :
		       round->content == CONTENT_CLONE ? "what has changed, over a reflink of the last" :
		       "what has changed, appended", round->why ? "; " : "", round->why ? round->why : "");
	if (round->stream)
		printf("to load it: -incoming file:%s,offset=%llu\n", round->output,
		       (unsigned long long)round->stream);
	if (saver->followed && !saver->follow.ring)
		printf("all memory was compared at the end: %s\n", saver->follow.why);
	else if (saver->follow.hidden)
		printf("all memory was compared at the end: soft-dirty bits don't tell what is written by %s\n",
		       saver->follow.hidden);
	if (round->passes_again)
		printf("memory was gone over %ld more time%s: %s wrote it while the guest was stopped\n",
		       round->passes_again, round->passes_again == 1 ? "" : "s", round->writer);
	if (round->throttled)
		printf("the guest was throttled: each vCPU to %s/s of changes\n",
		       human_bytes((double)saver->opt->throttle));
	if (staged)
		printf("%s of that was staged, and written in %.1f ms%s\n", human_bytes((double)staged),
		       p->stage * 1e3, saver->opt->stay_stopped ? "" : " while the guest ran on");
	if (p->paused > 0) {
		printf("guest stopped for %.1f ms: ", p->paused * 1e3);
		if (p->clear > 0)
			printf("soft-dirty bits %.1f, ", p->clear * 1e3);
		printf("stop %.1f, devices %.1f, RAM %.1f, resume %.1f\n",
		       p->stop * 1e3, p->devices * 1e3, p->ram * 1e3, p->resume * 1e3);
	} else if (qemu_is_running(&saver->qemu)) {
		printf("the guest stays stopped\n");
	}
}

