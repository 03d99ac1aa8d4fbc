/* SPDX-License-Identifier: GPL-2.0 */
#ifndef KVMSNAP_CHARGE_H
#define KVMSNAP_CHARGE_H

struct cgroup_subsys_state;
struct mem_cgroup;

/**
 * struct kvmsnap_charge - who answers for what kernel threads do for a session
 * @blkcg: of who opened it: for the I/O
 * @memcg: likewise: for page tables under guest memory, and for the page cache where a file
 *	system writes through it after all
 */
struct kvmsnap_charge {
	struct cgroup_subsys_state *blkcg;
	struct mem_cgroup *memcg;
};

void kvmsnap_charge_init(struct kvmsnap_charge *charge);
void kvmsnap_charge_destroy(struct kvmsnap_charge *charge);
void kvmsnap_charge_begin(const struct kvmsnap_charge *charge);
void kvmsnap_charge_end(void);

#endif
