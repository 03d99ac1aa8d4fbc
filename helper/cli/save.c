// SPDX-License-Identifier: GPL-2.0
/* kvmsnap save: a generation of a QEMU VM, the only one or with --incremental one of several. */
#include "cli.h"
#include "keeper.h"
#include "options.h"
#include "saver.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char save_usage[] =
	"usage: kvmsnap save --qmp SOCKET (--output FILE | --fd N) [OPTION]...\n"
	"Save a QEMU VM.  It is stopped while its memory is written (with --live, while the last\n"
	"of it is), and then resumed if it was running.  Stock QEMU restores the file with\n"
	"-global migration.mapped-ram=on -incoming file:FILE.\n"
	"  --output FILE     new file, or a block device\n"
	"  --fd N            write to the descriptor N, which was opened for it\n"
	"  --force           replace FILE, once the new one is whole\n"
	"  --incremental     write what has changed since the last --incremental save, over a reflink\n"
	"                    of its file, or, if FILE is that file, behind it; a process stays that\n"
	"                    follows the VM's writes meanwhile and keeps the QMP socket\n"
	"  --last            the same, and no longer follow the VM\n"
	"  --stay-stopped    don't resume the VM\n"
	SAVE_OPTIONS_USAGE;

static int save_once(const struct save_options *opt, const char *output, int fd, struct error *err)
{
	struct saver saver;
	int ret = saver_open(&saver, opt, catch_signals(), err);

	if (ret)
		return ret;
	ret = saver_round(&saver, output, fd, err);
	if (!ret)
		saver_report(&saver);
	saver_close(&saver);
	return ret;
}

int cmd_save(int argc, char **argv)
{
	enum { OUTPUT = OPT_OWN, FD, INCREMENTAL, LAST };
	static const struct option longs[] = {
		{ "output", required_argument, NULL, OUTPUT },
		{ "fd", required_argument, NULL, FD },
		{ "force", no_argument, NULL, OPT_FORCE },
		{ "incremental", no_argument, NULL, INCREMENTAL },
		{ "last", no_argument, NULL, LAST },
		{ "stay-stopped", no_argument, NULL, OPT_STAY },
		SAVE_OPTIONS,
		{ 0 }
	};
	struct save_options opt = { .sync = SYNC_FULL };
	struct error err = { "" };
	const char *output = NULL;
	bool last = false;
	int c, status, fd = -1;
	char *end;

	while ((c = getopt_long(argc, argv, "h", longs, NULL)) != -1) {
		switch (c) {
		case OUTPUT:
			output = optarg;
			break;
		case FD:
			fd = (int)strtol(optarg, &end, 10);
			if (*end || end == optarg || fd < 0)
				return usage_error(save_usage, "--fd %s: not a descriptor number", optarg);
			break;
		case OPT_FORCE:
			opt.force = true;
			break;
		case OPT_STAY:
			opt.stay_stopped = true;
			break;
		case LAST:
			last = true;
			opt.incremental = true;
			break;
		case INCREMENTAL:
			opt.incremental = true;
			break;
		default:
			status = options_take(&opt, c, save_usage);
			if (status >= 0)
				return status;
		}
	}
	if (optind < argc)
		return usage_error(save_usage, "%s: not expected", argv[optind]);
	status = options_check(&opt, save_usage);
	if (status >= 0)
		return status;
	if (!output == (fd < 0))
		return usage_error(save_usage, "one of --output FILE and --fd N is needed");
	if (opt.incremental && fd >= 0)
		return usage_error(save_usage, "--incremental goes with --output FILE");

	if (opt.incremental)
		return keeper_save(&opt, output, last);
	if (!save_once(&opt, output, fd, &err))
		return 0;
	complain(&err);
	return take_signal() ? EXIT_INTERRUPTED : 1;
}
