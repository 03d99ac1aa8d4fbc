/* SPDX-License-Identifier: GPL-2.0 */
#ifndef REAPER_H
#define REAPER_H

struct machine;
struct vcpu;

/* Map a new vCPU's ring; 0 or -1, said on stderr. */
int reaper_map(struct machine *m, struct vcpu *vcpu);
void reaper_unmap(struct machine *m, struct vcpu *vcpu);

/* Empty all rings.  From any thread. */
void reaper_reap(struct machine *m);

/* Have it set a bit for each page that it reaps.  -1 without memory. */
int reaper_note(struct machine *m);

#endif
