// SPDX-License-Identifier: GPL-2.0
/*
 * Regions: which host addresses are saved to which offsets, and bitmaps of their pages.
 * Pure arithmetic; no locks, no I/O.  Ranges are half open.
 */
#include <linux/overflow.h>
#include <linux/sched/signal.h>
#include <linux/sizes.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>

#include "region.h"

unsigned long *kvmsnap_bitmap_alloc(const struct kvmsnap_region *region)
{
	return __vmalloc(kvmsnap_region_bitmap_bytes(region), KVMSNAP_GFP | __GFP_ZERO);
}

u64 *kvmsnap_hash_alloc(const struct kvmsnap_region *region)
{
	return __vmalloc(kvmsnap_region_hash_bytes(region), KVMSNAP_GFP | __GFP_ZERO);
}

/**
 * kvmsnap_region_alloc() - check a range and make it a region
 * @arg: as in the ioctl
 *
 * Context: process context, may sleep.
 * Return: a region that is in no session yet, or -EINVAL, -EOVERFLOW, -ENOMEM.
 */
struct kvmsnap_region *kvmsnap_region_alloc(const struct kvmsnap_add_region *arg)
{
	struct kvmsnap_region *region;
	u64 end;

	if (!arg->length || !PAGE_ALIGNED(arg->hva | arg->length | arg->offset))
		return ERR_PTR(-EINVAL);
	if (check_add_overflow(arg->hva, arg->length, &end) || end > TASK_SIZE_MAX)
		return ERR_PTR(-EINVAL);
	if (check_add_overflow(arg->offset, arg->length, &end) || end > LLONG_MAX)
		return ERR_PTR(-EINVAL);
	if (arg->length > KVMSNAP_MAX_BYTES)
		return ERR_PTR(-EOVERFLOW);

	region = kzalloc(sizeof(*region), GFP_KERNEL_ACCOUNT);
	if (!region)
		return ERR_PTR(-ENOMEM);
	region->flags = arg->flags;
	region->hva = arg->hva;
	region->offset = arg->offset;
	region->nr_pages = arg->length >> PAGE_SHIFT;
	region->present = kvmsnap_bitmap_alloc(region);
	if (!region->present) {
		kfree(region);
		return ERR_PTR(-ENOMEM);
	}
	return region;
}

void kvmsnap_region_free(struct kvmsnap_region *region)
{
	vfree(region->present);
	vfree(region->todo);
	vfree(region->dirty);
	vfree(region->written);
	vfree(region->hash);
	kfree(region);
}

/* memset() to 0 of what may be long.  May sleep. */
void kvmsnap_clear(void *p, u64 bytes)
{
	while (bytes) {
		size_t n = min_t(u64, bytes, SZ_4M);

		memset(p, 0, n);
		p += n;
		bytes -= n;
		cond_resched();
	}
}

/* Give the region a todo bitmap that is all clear.  May sleep. */
int kvmsnap_region_clear_todo(struct kvmsnap_region *region)
{
	if (region->todo)
		kvmsnap_clear(region->todo, kvmsnap_region_bitmap_bytes(region));
	else
		region->todo = kvmsnap_bitmap_alloc(region);
	return region->todo ? 0 : -ENOMEM;
}

/* There is a new target; @empty: with nothing in it.  May sleep. */
void kvmsnap_region_begin(struct kvmsnap_region *region, bool empty)
{
	if (region->written)
		kvmsnap_clear(region->written, kvmsnap_region_bitmap_bytes(region));
	if (!empty)
		return;
	kvmsnap_clear(region->present, kvmsnap_region_bitmap_bytes(region));
	if (region->hash)
		kvmsnap_clear(region->hash, kvmsnap_region_hash_bytes(region));
}

/* In pieces: the kernel refuses 2 GiB at once.  0, -EFAULT, or -EINTR for a fatal signal. */
int kvmsnap_copy_out(void __user *to, const void *from, u64 bytes)
{
	u64 done, n;

	for (done = 0; done < bytes; done += n) {
		n = min_t(u64, bytes - done, SZ_1M);
		if (copy_to_user(to + done, from + done, n))
			return -EFAULT;
		if (fatal_signal_pending(current))
			return -EINTR;
		cond_resched();
	}
	return 0;
}

/**
 * kvmsnap_region_copy_bitmap() - copy out a bit a page
 * @bitmap: of a region
 * @first_page: a multiple of 64
 * @nr_pages: at least 1; first_page + nr_pages is within the region
 * @user: (nr_pages + 63) / 64 * 8 bytes; the bits past nr_pages become 0
 *
 * Return: 0, -EFAULT or -EINTR.
 */
int kvmsnap_region_copy_bitmap(const unsigned long *bitmap, u64 first_page, u64 nr_pages,
			       void __user *user)
{
	const unsigned long *from = bitmap + BIT_WORD(first_page);
	u64 whole = nr_pages / BITS_PER_LONG;
	unsigned long last;
	int err;

	/* The bitmap of longs in memory is the ABI's, on 64-bit little-endian machines. */
	BUILD_BUG_ON(BITS_PER_LONG != 64 || IS_ENABLED(CONFIG_CPU_BIG_ENDIAN));
	err = kvmsnap_copy_out(user, from, whole * sizeof(long));
	if (err)
		return err;
	if (nr_pages % BITS_PER_LONG) {
		last = from[whole] & BITMAP_LAST_WORD_MASK(nr_pages);
		if (copy_to_user(user + whole * sizeof(long), &last, sizeof(last)))
			return -EFAULT;
	}
	return 0;
}

static bool kvmsnap_ranges_overlap(u64 a, u64 a_len, u64 b, u64 b_len)
{
	return a < b + b_len && b < a + a_len;
}

/* Do two regions share a byte of memory or of the target? */
bool kvmsnap_region_overlaps(const struct kvmsnap_region *a, const struct kvmsnap_region *b)
{
	u64 a_len = kvmsnap_region_bytes(a), b_len = kvmsnap_region_bytes(b);

	return kvmsnap_ranges_overlap(a->hva, a_len, b->hva, b_len) ||
	       kvmsnap_ranges_overlap(a->offset, a_len, b->offset, b_len);
}
