/* SPDX-License-Identifier: GPL-2.0 */
#ifndef KVMSNAP_REGION_H
#define KVMSNAP_REGION_H

#include <linux/mm.h>
#include <linux/kvmsnap.h>

static_assert(PAGE_SIZE == KVMSNAP_PAGE_SIZE);

#define KVMSNAP_MAX_REGIONS	256
/* Of all regions together; at four bits a page that is 2 GiB of bitmaps; of hashes 32 GiB. */
#define KVMSNAP_MAX_BYTES	BIT_ULL(44)
/* Pages of one call's ranges, each as often as it is named, by those of all regions: calls end. */
#define KVMSNAP_MAX_OVERLAP	4

/*
 * For what has a length that the caller or the VMM chooses: charged to the owner; no news when
 * there is not enough, and nobody is killed for it.
 */
#define KVMSNAP_GFP	(GFP_KERNEL_ACCOUNT | __GFP_NOWARN | __GFP_RETRY_MAYFAIL)

/* A worker takes a chunk at a time: 2 MiB of a region, aligned in the region. */
#define KVMSNAP_CHUNK_PAGES	512

/**
 * struct kvmsnap_region - a range of host addresses and its place in the target
 * @id: index in the session
 * @flags: of enum kvmsnap_region_flags
 * @hva: first byte, in the VM's process
 * @offset: where it lies in the target, from session->target_offset on
 * @nr_pages: length
 * @present: a bit a page: written to the target.  While a pass runs, only the
 *	writer's done_work sets bits; all else happens between passes.
 * @todo: a bit a page: the pass has yet to take it; NULL until a pass over ranges or
 *	tracking needs it.  A chunk's bits belong to the worker that has taken the chunk.
 * @dirty: a bit a page: in the dirty set (dirty.c); NULL before tracking
 * @written: a bit a page: written since the target was set; NULL before tracking.  As @present
 * @hash: of each page's bytes in the target, 0 where that is not known; NULL when no hashes
 *	are kept.  A chunk's entries belong to the worker that has taken the chunk, and
 *	those of a write in flight to its completion.
 *
 * The fields but the bitmaps' bits don't change after the region is in its session.
 */
struct kvmsnap_region {
	u32 id;
	u32 flags;
	u64 hva;
	u64 offset;
	u64 nr_pages;
	unsigned long *present;
	unsigned long *todo;
	unsigned long *dirty;
	unsigned long *written;
	u64 *hash;
};

struct kvmsnap_region *kvmsnap_region_alloc(const struct kvmsnap_add_region *arg);
void kvmsnap_clear(void *p, u64 bytes);
unsigned long *kvmsnap_bitmap_alloc(const struct kvmsnap_region *region);
u64 *kvmsnap_hash_alloc(const struct kvmsnap_region *region);
void kvmsnap_region_free(struct kvmsnap_region *region);
int kvmsnap_region_clear_todo(struct kvmsnap_region *region);
void kvmsnap_region_begin(struct kvmsnap_region *region, bool empty);
int kvmsnap_copy_out(void __user *to, const void *from, u64 bytes);
int kvmsnap_region_copy_bitmap(const unsigned long *bitmap, u64 first_page, u64 nr_pages,
			       void __user *user);
bool kvmsnap_region_overlaps(const struct kvmsnap_region *a, const struct kvmsnap_region *b);

static inline u64 kvmsnap_region_bytes(const struct kvmsnap_region *region)
{
	return region->nr_pages << PAGE_SHIFT;
}

static inline u64 kvmsnap_region_chunks(const struct kvmsnap_region *region)
{
	return DIV_ROUND_UP_ULL(region->nr_pages, KVMSNAP_CHUNK_PAGES);
}

static inline u64 kvmsnap_region_bitmap_bytes(const struct kvmsnap_region *region)
{
	return BITS_TO_LONGS(region->nr_pages) * sizeof(long);
}

static inline u64 kvmsnap_region_hash_bytes(const struct kvmsnap_region *region)
{
	return region->nr_pages * sizeof(u64);
}

#endif
