/* SPDX-License-Identifier: GPL-2.0 */
#ifndef KVMSNAP_DIRTY_H
#define KVMSNAP_DIRTY_H

#include <linux/types.h>
#include <linux/kvmsnap.h>

struct kvmsnap_region;
struct kvmsnap_session;

int kvmsnap_dirty_alloc(struct kvmsnap_region *region, bool hash);
void kvmsnap_dirty_mark(struct kvmsnap_session *session, struct kvmsnap_region *region,
			u64 first_page, u64 nr_pages);
void kvmsnap_dirty_mark_part(struct kvmsnap_session *session, struct kvmsnap_region *region,
			     u64 start, u64 end);
void kvmsnap_dirty_mark_hva(struct kvmsnap_session *session, u64 start, u64 end);
void kvmsnap_dirty_mark_region(struct kvmsnap_session *session, struct kvmsnap_region *region);
void kvmsnap_dirty_mark_written(struct kvmsnap_session *session, struct kvmsnap_region *region);
void kvmsnap_dirty_mark_all(struct kvmsnap_session *session);
bool kvmsnap_dirty_any(const struct kvmsnap_region *region, u64 first_page, u32 nr_pages);
void kvmsnap_dirty_take(struct kvmsnap_session *session, struct kvmsnap_region *region,
			u64 first_page, u32 nr_pages, enum kvmsnap_pass_kind kind);

#endif
