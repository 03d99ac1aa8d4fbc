/* SPDX-License-Identifier: GPL-2.0 */
/* Constants of QEMU's migration stream (migration/savevm.h, migration/ram.c). */
#ifndef FORMAT_H
#define FORMAT_H

#include <stdint.h>

#define QEMU_VM_FILE_MAGIC	0x5145564du	/* "QEVM" */
#define QEMU_VM_FILE_VERSION	3u

#define QEMU_VM_EOF		0x00
#define QEMU_VM_SECTION_START	0x01
#define QEMU_VM_SECTION_PART	0x02
#define QEMU_VM_SECTION_END	0x03
#define QEMU_VM_SECTION_FULL	0x04
#define QEMU_VM_SUBSECTION	0x05
#define QEMU_VM_VMDESCRIPTION	0x06
#define QEMU_VM_CONFIGURATION	0x07
#define QEMU_VM_COMMAND		0x08
#define QEMU_VM_SECTION_FOOTER	0x7e

#define RAM_SAVE_FLAG_ZERO		0x02
#define RAM_SAVE_FLAG_MEM_SIZE		0x04
#define RAM_SAVE_FLAG_PAGE		0x08
#define RAM_SAVE_FLAG_EOS		0x10
#define RAM_SAVE_FLAG_CONTINUE		0x20
#define RAM_SAVE_FLAG_MULTIFD_FLUSH	0x200

#define MAPPED_RAM_HDR_VERSION	1u

/*
 * Ours, behind the first RAM block's record, where QEMU does not look: how far the device sections
 * and the stream go, big-endian offsets in the file.  Device state tells neither, and holds bytes
 * that the guest chooses.
 */
#define SNAP_TAG_MAGIC		"KVMSNAP\2"

struct snap_tag {
	char magic[8];
	uint64_t devices_end, stream_end;
};

/* Devices number their sections from 0; RAM's is far away from theirs. */
#define SNAP_RAM_SECTION	0x4b534e50u

#endif
