/* SPDX-License-Identifier: GPL-2.0 */
#ifndef KVMSNAP_PAGES_H
#define KVMSNAP_PAGES_H

#include <linux/mm.h>
#include <linux/siphash.h>

struct kvmsnap_region;

long kvmsnap_pages_get(struct mm_struct *mm, unsigned long start, unsigned long nr,
		       struct page **pages);
void kvmsnap_pages_put(struct page *page, unsigned long nr);
bool kvmsnap_page_is_zero(struct page *page);
u64 kvmsnap_page_hash(const siphash_key_t *key, struct page *page);
int kvmsnap_region_maps_file(struct mm_struct *mm, const struct kvmsnap_region *region,
			     const struct file *file);

#endif
