// SPDX-License-Identifier: GPL-2.0
/*
 * The dirty set: the pages of which the target may not hold the bytes that memory holds.
 *
 * A bit a page, in each region, from TRACK on.  The rule that everything rests on: a page
 * leaves the set before its bytes are read, and any write after that read puts it back.
 *  - kvmsnap_dirty_take() is the one way out.  A worker takes a chunk's bits by fully
 *    ordered atomic operations, and reads the pages after.
 *  - Marking is the way in: by the harvester once the ring entry is reset (ring.c), by the
 *    mmu notifier once an invalidation is over (kvm.c), by the VMM once its own write is
 *    done (MARK_DIRTY), and by a write to the target that failed.  Who marks has the
 *    guest's or host's write behind it, so that it is in the bytes of whoever takes the
 *    bit after.
 *
 * Marking takes no lock and may happen in any context.  Regions are only ever added, and
 * published by by_hva and nr_regions when whole; they go with the session, when the notifier is
 * unregistered and no harvester and no worker is left.
 */
#include <linux/bitmap.h>
#include <linux/vmalloc.h>

#include "dirty.h"
#include "session.h"

/* Set the bits of @mask in a word of the set. */
static void kvmsnap_dirty_set(struct kvmsnap_session *session, unsigned long *word,
			      unsigned long mask)
{
	unsigned long old;

	/*
	 * Not skipped when the bits are set already, short of ordering it after the write
	 * that is behind us: a worker may just be taking them.
	 */
	old = atomic_long_fetch_or(mask, (atomic_long_t *)word);
	if (mask & ~old)
		atomic64_add(hweight_long(mask & ~old), &session->ring.dirty);
}

/**
 * kvmsnap_dirty_mark() - put pages into the set
 * @session: tracking
 * @region: one of its regions
 * @first_page: index in @region
 * @nr_pages: within @region
 *
 * Context: any, also atomic.
 */
void kvmsnap_dirty_mark(struct kvmsnap_session *session, struct kvmsnap_region *region,
			u64 first_page, u64 nr_pages)
{
	while (nr_pages) {
		unsigned int start = first_page % BITS_PER_LONG;
		unsigned int n = min_t(u64, nr_pages, BITS_PER_LONG - start);

		kvmsnap_dirty_set(session, region->dirty + BIT_WORD(first_page),
				  GENMASK(start + n - 1, start));
		first_page += n;
		nr_pages -= n;
	}
}

/**
 * kvmsnap_dirty_mark_part() - put into the set what a region has of a range
 * @session: tracking
 * @region: one of its regions
 * @start: first host address
 * @end: behind the last
 *
 * Context: any, also atomic.
 */
void kvmsnap_dirty_mark_part(struct kvmsnap_session *session, struct kvmsnap_region *region,
			     u64 start, u64 end)
{
	u64 from = max(start, region->hva);
	u64 to = min(end, region->hva + kvmsnap_region_bytes(region));

	/* Before 6.1.50 a tree that is added to may say that a region is longer than it is. */
	if (from >= to)
		return;
	from = (from - region->hva) >> PAGE_SHIFT;
	to = DIV_ROUND_UP_ULL(to - region->hva, PAGE_SIZE);
	kvmsnap_dirty_mark(session, region, from, to - from);
}

/**
 * kvmsnap_dirty_mark_hva() - put into the set what regions have of a range
 * @session: tracking
 * @start: first host address
 * @end: behind the last; pages that the range only touches are marked whole
 *
 * Context: any, also atomic.
 */
void kvmsnap_dirty_mark_hva(struct kvmsnap_session *session, u64 start, u64 end)
{
	struct kvmsnap_region *region;
	unsigned long at = start;

	if (start >= end)
		return;
	mt_for_each(&session->by_hva, region, at, end - 1)
		kvmsnap_dirty_mark_part(session, region, start, end);
}

/* Put all pages of a region into the set.  Process context. */
void kvmsnap_dirty_mark_region(struct kvmsnap_session *session, struct kvmsnap_region *region)
{
	u64 page, n;

	for (page = 0; page < region->nr_pages; page += n) {
		n = min_t(u64, region->nr_pages - page, SZ_1M);
		kvmsnap_dirty_mark(session, region, page, n);
		cond_resched();
	}
}

/* What was written since the target was set is in no target any more.  Process context, no pass. */
void kvmsnap_dirty_mark_written(struct kvmsnap_session *session, struct kvmsnap_region *region)
{
	u64 word, page, words = BITS_TO_LONGS(region->nr_pages);

	for (word = 0; word < words; word++) {
		unsigned long bits = region->written[word];

		if (bits)
			kvmsnap_dirty_set(session, region->dirty + word, bits);
		for (page = word * BITS_PER_LONG; bits && region->hash; page++, bits >>= 1)
			if (bits & 1)
				region->hash[page] = 0;
		if (!(word % 4096))
			cond_resched();
	}
}

/* Put all pages into the set.  Process context. */
void kvmsnap_dirty_mark_all(struct kvmsnap_session *session)
{
	u32 i, nr = kvmsnap_session_nr_regions(session);

	for (i = 0; i < nr; i++)
		kvmsnap_dirty_mark_region(session, session->regions[i]);
}

/* Is any of a chunk's pages in the set?  What is marked meanwhile stays for another pass. */
bool kvmsnap_dirty_any(const struct kvmsnap_region *region, u64 first_page, u32 nr_pages)
{
	u64 word = BIT_WORD(first_page), end = word + BITS_TO_LONGS(nr_pages);

	while (word < end)
		if (READ_ONCE(region->dirty[word++]))
			return true;
	return false;
}

/**
 * kvmsnap_dirty_take() - take the pages of a pass out of the set
 * @session: tracking
 * @region: one of its regions
 * @first_page: of a chunk of the region: starts at a word of the bitmap
 * @nr_pages: of the chunk
 * @kind: of the pass; for KVMSNAP_PASS_DIRTY the chunk's todo bits become what was taken,
 *	for KVMSNAP_PASS_RANGES they say what to take
 *
 * What memory held when this returns, or something newer, is what the caller reads after.
 * Context: the worker that has taken the chunk.
 */
void kvmsnap_dirty_take(struct kvmsnap_session *session, struct kvmsnap_region *region,
			u64 first_page, u32 nr_pages, enum kvmsnap_pass_kind kind)
{
	u64 word = BIT_WORD(first_page), end = word + BITS_TO_LONGS(nr_pages);

	for (; word < end; word++) {
		atomic_long_t *dirty = (atomic_long_t *)(region->dirty + word);
		unsigned long mask = kind == KVMSNAP_PASS_RANGES ? region->todo[word] : ~0UL;
		/* Fully ordered: what is read after was written before, or marks it again. */
		unsigned long old = atomic_long_fetch_andnot(mask, dirty) & mask;

		if (kind == KVMSNAP_PASS_DIRTY)
			region->todo[word] = old;
		if (old)
			atomic64_sub(hweight_long(old), &session->ring.dirty);
	}
}

/* Give a region the bitmaps that tracking needs, and hashes.  May sleep; -ENOMEM. */
int kvmsnap_dirty_alloc(struct kvmsnap_region *region, bool hash)
{
	int err = kvmsnap_region_clear_todo(region);

	if (!err && !region->dirty) {
		region->dirty = kvmsnap_bitmap_alloc(region);
		err = region->dirty ? 0 : -ENOMEM;
	}
	if (!err && !region->written) {
		region->written = kvmsnap_bitmap_alloc(region);
		err = region->written ? 0 : -ENOMEM;
	}
	if (!err && hash && !region->hash) {
		region->hash = kvmsnap_hash_alloc(region);
		err = region->hash ? 0 : -ENOMEM;
	}
	return err;
}
