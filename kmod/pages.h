/* SPDX-License-Identifier: GPL-2.0 */
#ifndef KVMSNAP_PAGES_H
#define KVMSNAP_PAGES_H

#include <linux/mm.h>

struct inode;
struct kvmsnap_region;

/* Finds holes of memory files on descriptors of our own; one a worker. */
struct kvmsnap_seeker {
	struct inode *inode;	/* of @file; compared, not dereferenced */
	struct file *file;
};

long kvmsnap_pages_get(struct mm_struct *mm, struct kvmsnap_seeker *seeker,
		       unsigned long start, unsigned long nr, struct page **pages);
void kvmsnap_pages_put(struct page *page, unsigned long nr);
bool kvmsnap_page_is_zero(struct page *page);
void kvmsnap_seeker_release(struct kvmsnap_seeker *seeker);
bool kvmsnap_region_maps_file(struct mm_struct *mm, const struct kvmsnap_region *region,
			      const struct file *file);

#endif
