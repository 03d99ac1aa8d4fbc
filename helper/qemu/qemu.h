/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A running QEMU, found from its QMP socket: process, VM descriptor, RAM blocks, device
 * state.  Nothing of it is patched, traced or signalled.
 */
#ifndef QEMU_H
#define QEMU_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "error.h"
#include "qmp.h"

struct qemu_block {
	char name[256];		/* idstr, as in the migration stream */
	uint64_t hva;		/* in QEMU's process */
	uint64_t used;		/* bytes */
	uint64_t page_size;	/* bytes, of the memory behind it */
};

struct qemu {
	struct qmp qmp;
	pid_t pid;
	char machine[128];	/* type, without "-machine" */
	char status[32];	/* run state when it was attached */
	struct qemu_block *blocks;
	size_t nr_blocks;
	int devices, to_devices; /* of qemu_open_devices(), unless @fdset is 0; the latter is QEMU's too */
	long long fdset;	/* its number with QEMU, counted from 1 here */
};

/*
 * Connect and look around; refuses what can't be saved (migrating, blocked).  @pid: of
 * QEMU when the socket was made by another process, 0 for the socket's peer.
 */
int qemu_attach(struct qemu *qemu, const char *socket, pid_t pid, struct error *err);
/* The same for a QEMU that waits for an incoming stream, by its end @fd of a socket, taken over. */
int qemu_adopt(struct qemu *qemu, int fd, struct error *err);

/*
 * Have it load a mapped-ram stream and wait for the end.  @channels: of multifd, with direct I/O, if
 * this QEMU can; 0 for none.
 */
int qemu_load(struct qemu *qemu, const char *uri, unsigned int channels, struct error *err);

/* Have it end. */
void qemu_quit(struct qemu *qemu);
void qemu_detach(struct qemu *qemu);

/* Has the VM anything that can't be saved, or a migration that runs? */
int qemu_check_saveable(struct qemu *qemu, struct error *err);

/* The same, and a look at its run state, later on. */
int qemu_look_again(struct qemu *qemu, struct error *err);

/* Read what QEMU has sent unasked, so that it does not pile up there. */
void qemu_drain(struct qemu *qemu);

/* Are the vCPUs running? */
bool qemu_is_running(const struct qemu *qemu);

/* Its run state now, behind what has happened until now: a stop of somebody else's is none of ours. */
int qemu_look_status(struct qemu *qemu, struct error *err);

/* Stop it, which was running at the last look; *stopped tells whether it was until now. */
int qemu_stop(struct qemu *qemu, bool *stopped, struct error *err);

/* Has it stayed stopped since?  -EBUSY when somebody else let it go on or reset it. */
int qemu_check_stopped(struct qemu *qemu, struct error *err);

/* Is the process there?  One that is about to exit has a second to do so. */
bool qemu_is_alive(const struct qemu *qemu);
int qemu_cont(struct qemu *qemu, struct error *err);

/*
 * The same of a VM that another client may have migrated since it was stopped: when that migration is over,
 * and not if it has gone elsewhere.
 */
int qemu_cont_unless_gone(struct qemu *qemu, struct error *err);

/* With that logging on: have each vCPU dirty no more than that; QEMU's unit is 1 MiB/s.  0: no limit. */
int qemu_throttle(struct qemu *qemu, uint64_t bytes_per_second, struct error *err);

/*
 * Have vCPUs' writes logged in the dirty ring, or no longer, by way of QEMU's limit of the dirty
 * rate, set higher than any rate.  On: QEMU does it soon after the answer.  -EBUSY when somebody
 * uses the limit.  Off: up to a second.
 */
int qemu_log_writes(struct qemu *qemu, bool on, struct error *err);

/*
 * What writes to guest memory past QEMU and the page tables, and the dirty ring maybe: its name, or
 * NULL when there is nothing of the kind.
 */
const char *qemu_hidden_writer(struct qemu *qemu);

/* Read the list of RAM blocks; the VM is stopped, so that it stays valid. */
int qemu_list_blocks(struct qemu *qemu, struct error *err);

/* A duplicate of QEMU's KVM VM descriptor, or a negative errno. */
int qemu_vm_fd(struct qemu *qemu, struct error *err);

/*
 * The device sections of the migration stream, in a memory file, whose descriptor is
 * returned: sections with footers, then QEMU_VM_EOF.  The VM must be stopped.  QEMU is given the file
 * by the first of these, which may come before the stop, and taken it by the last, after it, whatever
 * failed.  The second may be called again, and replaces what is in the file, which all its descriptors have.
 */
int qemu_open_devices(struct qemu *qemu, struct error *err);
int qemu_device_state(struct qemu *qemu, struct error *err);
void qemu_close_devices(struct qemu *qemu);

/* Read QEMU's memory.  Returns 0 or a negative errno. */
int qemu_read_memory(struct qemu *qemu, uint64_t hva, void *buf, size_t len, struct error *err);

#endif
