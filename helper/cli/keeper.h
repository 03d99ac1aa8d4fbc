/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The keeper: a process that stays between `save --incremental` and the next one, with QEMU and
 * the module's session, so that the VM's writes are followed on.  Each such command is its client:
 * it passes on its options, folder and output, and waits.
 *
 * There is one a QMP socket; its own socket lies in /run/kvmsnap, root's alone.  It ends with QEMU,
 * after --last, and when it gets a signal; then nothing of it is left in QEMU.
 */
#ifndef KEEPER_H
#define KEEPER_H

#include "saver.h"

/* Have it save to @output, starting it if there is none.  Returns a status to exit with. */
int keeper_save(const struct save_options *opt, const char *output, bool last);

#endif
