/* SPDX-License-Identifier: GPL-2.0 */
#ifndef KVMSNAP_PAGES_H
#define KVMSNAP_PAGES_H

#include <linux/mm.h>
#include <linux/siphash.h>

struct kvmsnap_region;

/**
 * struct kvmsnap_readin - a page of a disk's file that is to come into memory
 * @addr: where the guest has it
 * @asked: how often reading ahead was asked for, which may come to nothing
 * @read: reading that page alone was
 * @file: that kvmsnap_readin_start() is to read, with a reference; NULL for none
 * @pos: in @file, in bytes
 * @bytes: to read ahead
 * @folio: to read alone, locked, with a reference; NULL to read ahead
 */
struct kvmsnap_readin {
	unsigned long addr;
	unsigned int asked;
	bool read;
	struct file *file;
	loff_t pos;
	unsigned long bytes;
	struct folio *folio;
};

long kvmsnap_pages_get(struct mm_struct *mm, unsigned long start, unsigned long nr,
		       struct page **pages, struct kvmsnap_readin *readin);
void kvmsnap_readin_start(struct kvmsnap_readin *readin);
void kvmsnap_pages_put(struct page *page, unsigned long nr);
bool kvmsnap_page_is_zero(struct page *page);
u64 kvmsnap_page_hash(const siphash_key_t *key, struct page *page);
int kvmsnap_region_maps_file(struct mm_struct *mm, const struct kvmsnap_region *region,
			     const struct file *file);

#endif
