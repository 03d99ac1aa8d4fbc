// SPDX-License-Identifier: GPL-2.0
/* The commands that main.c names, which the fuzzer of another does not call. */
#include "cli/cli.h"

#define COMMAND(name) int cmd_##name(int argc, char **argv) { (void)argc; (void)argv; return 0; }
COMMAND(save)
COMMAND(checkpoint)
COMMAND(restore)
COMMAND(list)
COMMAND(compact)
COMMAND(export)
COMMAND(info)
COMMAND(verify)
COMMAND(status)
COMMAND(top)
