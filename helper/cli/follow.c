// SPDX-License-Identifier: GPL-2.0
#include "follow.h"
#include "cli.h"
#include "../qemu/softdirty.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* How long QEMU may take to switch logging on; it does so in a thread of its own. */
#define LOGGING_SECONDS	10

/* Addresses that are to be marked, in the order of which they were found. */
struct ranges {
	struct kvmsnap_hva_range *range;
	size_t nr, room;
};

static int add_range(void *data, uint64_t start, uint64_t bytes)
{
	struct ranges *ranges = data;

	if (ranges->nr == ranges->room) {
		size_t room = ranges->room ? 2 * ranges->room : 1024;
		void *more = realloc(ranges->range, room * sizeof(*ranges->range));

		if (!more)
			return -ENOMEM;
		ranges->range = more;
		ranges->room = room;
	}
	ranges->range[ranges->nr++] = (struct kvmsnap_hva_range){ .hva = start, .length = bytes };
	return 0;
}

/* Their pages, rather. */
static int count_range(void *data, uint64_t start, uint64_t bytes)
{
	int64_t *pages = data;

	(void)start;
	*pages += (int64_t)(bytes / SNAP_PAGE);
	return 0;
}

static int mark(struct follow *follow, const struct ranges *ranges, struct error *err)
{
	size_t at, n;
	int ret = 0;

	for (at = 0; at < ranges->nr && !ret; at += n) {
		n = ranges->nr - at < KVMSNAP_MAX_RANGES ? ranges->nr - at : KVMSNAP_MAX_RANGES;
		ret = kvmsnap_mark_dirty_ranges(follow->ram->session, ranges->range + at, (uint32_t)n);
	}
	return ret ? error_set(err, -ret, "marking what QEMU has written: %s", strerror(-ret)) : 0;
}

/* Runs of pages whose bits are set. */
static int find_bits(uint64_t hva, const uint8_t *bits, uint64_t pages, softdirty_found_fn *found, void *data)
{
	uint64_t i, from;
	int ret = 0;

	for (i = 0; i < pages && !ret; i++) {
		if (!bits[i / 8]) {
			i |= 7;
			continue;
		}
		for (from = i; i < pages && bits[i / 8] & 1 << i % 8; i++)
			;
		if (i > from)
			ret = found(data, hva + from * SNAP_PAGE, (i - from) * SNAP_PAGE);
	}
	return ret;
}

/* What soft-dirty bits tell, or cannot, since they were cleared. */
static int scan(struct follow *follow, softdirty_found_fn *found, void *data, struct error *err)
{
	const struct ram *ram = follow->ram;
	size_t i;
	int ret = 0;

	for (i = 0; i < ram->nr && !ret; i++) {
		uint64_t bytes = ram->snap->blocks[i].length;
		const struct follow_block *block = i < follow->nr ? &follow->blocks[i] : NULL;

		if (ram->blocks[i].region < 0)
			continue;
		if (!follow->cleared || !block || !block->soft)
			ret = found(data, ram->blocks[i].hva, bytes);
		else
			ret = softdirty_scan(ram->qemu->pid, ram->blocks[i].hva, bytes, found, data, err);
		if (!ret && block && block->suspect)
			ret = find_bits(ram->blocks[i].hva, block->suspect, bytes / SNAP_PAGE, found, data);
	}
	return ret == -ENOMEM ? error_set(err, ENOMEM, "out of memory") : ret;
}

/* Wait until every memslot logs.  0, -ENODATA when that does not come about, or -EINTR. */
static int wait_for_logging(struct follow *follow)
{
	const struct timespec rest = { .tv_nsec = 20000000 };
	int i, ret = -ENODATA;

	for (i = 0; i < LOGGING_SECONDS * 50 && ret == -ENODATA; i++) {
		if (*follow->ram->interrupted)
			return -EINTR;
		ret = kvmsnap_harvest(follow->ram->session, NULL);
		if (ret == -ENODATA)
			nanosleep(&rest, NULL);
	}
	return ret;
}

static int start_ring(struct follow *follow)
{
	struct qemu *qemu = follow->ram->qemu;
	struct error ignored;
	int ret;

	/* Before the first write is logged. */
	ret = kvmsnap_track(follow->ram->session, KVMSNAP_TRACK_OBSERVER, KVMSNAP_TRACK_HASH);
	if (ret == -EOPNOTSUPP)
		follow->why = "QEMU runs without a dirty ring (-accel kvm,dirty-ring-size=65536)";
	if (ret)
		return ret;
	/* QEMU can be asked if somebody has it log, but not for both of two who ask at once. */
	follow->own = softdirty_own(qemu->pid);
	if (follow->own == -EBUSY) {
		follow->why = "another kvmsnap follows the VM";
		return 0;
	}
	guardian_logging(follow->guardian, true);
	ret = qemu_log_writes(qemu, true, &ignored);
	if (ret == -EBUSY) {
		guardian_logging(follow->guardian, false);
		follow->why = "the VM's dirty rate is limited by somebody else";
		return 0;
	}
	/* Without an answer there is no telling. */
	follow->logging = true;
	if (ret) {
		follow->why = "QEMU does not switch its dirty ring on";
		return 0;
	}
	ret = wait_for_logging(follow);
	if (ret == -ENODATA)
		follow->why = "QEMU does not log all memory in its dirty ring";
	follow->ring = !ret;
	return ret == -ENODATA ? 0 : ret;
}

int follow_start(struct follow *follow, struct error *err)
{
	struct ram *ram = follow->ram;
	bool soft;
	size_t i;
	int ret;

	ret = start_ring(follow);
	if (ret == -EOPNOTSUPP)
		ret = kvmsnap_track(ram->session, KVMSNAP_TRACK_COMPARE, KVMSNAP_TRACK_HASH);
	if (ret)
		return error_set(err, -ret, "following the VM's memory: %s", strerror(-ret));
	if (!follow->ring)
		return 0;

	follow->blocks = calloc(ram->nr, sizeof(*follow->blocks));
	if (!follow->blocks)
		return error_set(err, ENOMEM, "out of memory");
	follow->nr = ram->nr;
	follow->hidden = qemu_hidden_writer(ram->qemu);
	soft = !follow->hidden && softdirty_works();
	for (i = 0; i < ram->nr && soft; i++)
		follow->blocks[i].soft = softdirty_covers(ram->qemu->pid, ram->blocks[i].hva,
							  ram->snap->blocks[i].length);
	return 0;
}

bool follow_look(struct follow *follow)
{
	size_t i;

	if (!follow_has_bits(follow))
		return false;
	follow->hidden = qemu_hidden_writer(follow->ram->qemu);
	if (!follow->hidden)
		return false;
	for (i = 0; i < follow->nr; i++)
		follow->blocks[i].soft = false;
	follow->cleared = false;
	return true;
}

void follow_lost(struct follow *follow)
{
	follow->ring = false;
	follow->why = "QEMU does not log all memory any more: some was plugged in, or its dirty limit was cancelled";
}

bool follow_has_bits(const struct follow *follow)
{
	size_t i;

	for (i = 0; i < follow->nr && follow->ring; i++)
		if (follow->blocks[i].soft && follow->ram->blocks[i].region >= 0)
			return true;
	return false;
}

/*
 * Bits are lost of a page that is on its way elsewhere while they are cleared: its later writes
 * are not seen either.  Such a page was taken out of the page tables, which the notifier told,
 * since the last pass saw it there: it is in the dirty set, and suspect until the next clear.
 */
static int read_suspects(struct follow *follow, struct error *err)
{
	const struct ram *ram = follow->ram;
	size_t i;
	int ret = 0;

	for (i = 0; i < follow->nr && !ret; i++) {
		struct follow_block *block = &follow->blocks[i];
		uint64_t pages = ram->snap->blocks[i].length / SNAP_PAGE;

		if (!block->soft || ram->blocks[i].region < 0)
			continue;
		if (!block->suspect)
			block->suspect = malloc((pages + 63) / 64 * 8);
		if (!block->suspect)
			return error_set(err, ENOMEM, "out of memory");
		ret = kvmsnap_get_dirty(ram->session, (uint32_t)ram->blocks[i].region, 0, pages,
					block->suspect);
	}
	return ret ? error_set(err, -ret, "reading the dirty set: %s", strerror(-ret)) : 0;
}

static int clear(struct follow *follow, struct error *err)
{
	double began = now();
	int ret = softdirty_clear(follow->ram->qemu->pid, err);

	if (!ret)
		ret = read_suspects(follow, err);
	follow->cleared |= !ret;
	follow->clear_seconds = now() - began;
	return ret;
}

int follow_clear(struct follow *follow, struct error *err)
{
	struct ranges ranges = { 0 };
	bool before = follow->cleared;
	int ret = before ? scan(follow, add_range, &ranges, err) : 0;

	if (!ret)
		ret = clear(follow, err);
	/* The first time there is no telling: a pass over everything is to follow. */
	if (!ret && before)
		ret = mark(follow, &ranges, err);
	/* So it is when what they told is lost. */
	if (ret)
		follow->cleared = false;
	free(ranges.range);
	return ret;
}

int64_t follow_expect(struct follow *follow, struct error *err)
{
	int64_t pages = 0;
	int ret = scan(follow, count_range, &pages, err);

	return ret ? ret : pages;
}

int follow_collect(struct follow *follow, bool on, struct error *err)
{
	struct ranges ranges = { 0 };
	int ret;

	if (!follow->ring)
		return 0;
	ret = kvmsnap_harvest(follow->ram->session, NULL);
	if (ret == -ENODATA) {
		follow_lost(follow);
		return 0;
	}
	if (ret)
		return error_set(err, -ret, "harvesting the dirty rings: %s", strerror(-ret));
	ret = scan(follow, add_range, &ranges, err);
	if (!ret && on && follow->cleared)
		ret = clear(follow, err);
	if (!ret)
		ret = mark(follow, &ranges, err);
	if (ret)
		follow->cleared = false;
	free(ranges.range);
	return ret ? ret : 1;
}

int follow_begin(struct follow *follow, struct error *err)
{
	return !follow->cleared && follow_has_bits(follow) ? clear(follow, err) : 0;
}

void follow_end(struct follow *follow)
{
	struct error ignored;
	size_t i;

	if (follow->logging) {
		if (!qemu_log_writes(follow->ram->qemu, false, &ignored)) {
			guardian_logging(follow->guardian, false);
		} else {
			guardian_leave(follow->guardian);
			qmp_give_up(&follow->ram->qemu->qmp);
		}
		follow->logging = false;
	}
	if (follow->own >= 0)
		close(follow->own);
	follow->own = -1;
	for (i = 0; i < follow->nr; i++)
		free(follow->blocks[i].suspect);
	free(follow->blocks);
	follow->blocks = NULL;
	follow->nr = 0;
}
