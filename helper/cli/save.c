// SPDX-License-Identifier: GPL-2.0
/*
 * kvmsnap save: a stopped save of a QEMU VM.
 *
 * The order, and what each step's failure undoes:
 *   attach to QEMU, open session and target    nothing is changed yet
 *   stop the VM, if it runs                    resume
 *   device state -> memory (its pre_save handlers may still write RAM)
 *   lay the file out, give it its size
 *   RAM -> file, by the module; what no memslot maps, by us
 *   resume, unless told otherwise
 *   records, bitmaps, device state -> file; durable; its name
 * A failure removes the partial file and leaves the VM as it was found.  Should this
 * process be killed, its guardian does both.
 */
#include "cli.h"
#include "guardian.h"
#include "target.h"
#include "../lib/kvmsnap.h"
#include "../qemu/qemu.h"
#include "../snapfile/snapfile.h"

#include <errno.h>
#include <getopt.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char save_usage[] =
	"usage: kvmsnap save --qmp SOCKET (--output FILE | --fd N) [OPTION]...\n"
	"Save a QEMU VM.  It is stopped while its memory is written, and then resumed if it was\n"
	"running.  Stock QEMU restores the file with -global migration.mapped-ram=on\n"
	"-incoming file:FILE.\n"
	"  --qmp SOCKET      QEMU's QMP socket (-qmp unix:SOCKET,server=on,wait=off)\n"
	"  --output FILE     new file, or a block device\n"
	"  --fd N            write to the descriptor N, which was opened for it\n"
	"  --force           replace FILE, once the new one is whole\n"
	"  --stay-stopped    don't resume the VM\n"
	"  --sync none|data|full   how durable the file is when the command ends (full)\n"
	"  --pid PID         QEMU's process, when its socket was made by another\n"
	"  --device NODE     the module's device (/dev/kvmsnap)\n"
	"  --json            report as JSON\n"
	"  --quiet           no report\n";

struct options {
	const char *qmp, *output, *device;
	int fd;
	pid_t pid;
	bool force, stay_stopped, json, quiet;
	enum sync sync;
};

/* Where the time went, in seconds. */
struct phases {
	double stop, devices, ram, resume, commit, paused, total;
};

struct save {
	const struct options *opt;
	struct qemu qemu;
	struct target target;
	struct guardian guardian;
	struct snapfile snap;
	struct kvmsnap_stats stats;
	struct phases phases;
	uint64_t own_bytes;		/* written by us, not by the module */
	int session, vm_fd, devices;
	bool stopped_by_us;
	double stopped_at;
};

static volatile sig_atomic_t interrupted;

static void on_signal(int sig)
{
	interrupted = sig;
}

static void catch_signals(void)
{
	struct sigaction action = { .sa_handler = on_signal };

	struct sigaction old;

	/* No SA_RESTART: waits end, and look at the flag. */
	sigaction(SIGINT, &action, NULL);
	sigaction(SIGTERM, &action, NULL);
	/* nohup stays nohup. */
	sigaction(SIGHUP, &action, &old);
	if (old.sa_handler == SIG_IGN)
		signal(SIGHUP, SIG_IGN);
	signal(SIGPIPE, SIG_IGN);
	/* Not to be suspended while the guest waits for us. */
	signal(SIGTSTP, SIG_IGN);
	signal(SIGTTIN, SIG_IGN);
	signal(SIGTTOU, SIG_IGN);
}

/* Blocks that QEMU fills before it loads a stream, or that are small: written whole. */
static bool is_small_block(const struct qemu_block *block)
{
	return block->used <= 16 << 20 || strstr(block->name, "/rom@") ||
	       strstr(block->name, "vram") || strstr(block->name, "pflash") ||
	       strstr(block->name, ".rom") || strstr(block->name, ".bios");
}

static int open_session(struct save *save, struct error *err)
{
	int ret;

	save->session = kvmsnap_open(save->opt->device);
	if (save->session < 0)
		return error_set(err, -save->session, "%s: %s%s",
				 save->opt->device ? save->opt->device : "/dev/kvmsnap",
				 strerror(-save->session),
				 save->session == -ENOENT ? "; load the module: modprobe kvmsnap" :
				 save->session == -EACCES ? "; run as root" : "");
	save->vm_fd = qemu_vm_fd(&save->qemu, err);
	if (save->vm_fd < 0)
		return save->vm_fd;
	ret = kvmsnap_bind_vm(save->session, save->vm_fd);
	if (ret)
		return error_set(err, -ret, "binding QEMU's VM: %s%s", strerror(-ret),
				 ret == -EPERM ? "; it needs CAP_SYS_PTRACE: run as root" : "");
	ret = kvmsnap_set_target(save->session, save->target.fd);
	if (ret)
		return error_set(err, -ret, "%s: %s", save->target.path ? save->target.path : "the target",
				 ret == -EOPNOTSUPP ?
				 "no direct I/O to a disk there (tmpfs?); choose a file on a disk's file system or a block device" :
				 strerror(-ret));
	return 0;
}

/* A block that the VM's memslots don't map: through our own memory. */
static int copy_block(struct save *save, size_t i, struct error *err)
{
	const struct qemu_block *from = &save->qemu.blocks[i];
	struct snap_block *to = &save->snap.blocks[i];
	uint64_t done = 0;
	size_t len;
	char *buf = malloc(SNAP_ALIGN);
	int ret = buf ? 0 : error_set(err, ENOMEM, "out of memory");

	while (!ret && done < to->length) {
		len = to->length - done < SNAP_ALIGN ? (size_t)(to->length - done) : SNAP_ALIGN;
		ret = qemu_read_memory(&save->qemu, from->hva + done, buf, len, err);
		if (ret)
			break;
		ret = snap_pwrite(save->target.fd, buf, len, to->pages_offset + done);
		if (ret)
			error_set(err, -ret, "writing RAM block %s: %s", to->name, strerror(-ret));
		done += len;
	}
	if (!ret) {
		for (done = 0; done < to->length / SNAP_PAGE; done++)
			to->bitmap[done / 8] |= (uint8_t)(1 << done % 8);
		save->own_bytes += to->length;
	}
	free(buf);
	return ret;
}

static const char *advice(int error)
{
	switch (error) {
	case ENOSPC:
	case EDQUOT:
		return "; free some space or choose another place";
	case EIO:
		return "; see the kernel log for the disk's errors";
	case ESRCH:
		return " (QEMU's process ended)";
	case EFAULT:
		return ": guest memory can't be read";
	case EBUSY:
		return ": guest memory is served by userfaultfd (postcopy?); wait for its end";
	case EDEADLK:
		return ": the guest's memory is mapped from this very file; choose another";
	default:
		return "";
	}
}

/*
 * Wait for the pass, with progress.  A signal cancels it, and its end is not waited for: what
 * is in flight goes to a file that is removed, and must not hold the guest.
 */
static int wait_pass(struct save *save, struct error *err)
{
	struct kvmsnap_wait wait;
	double began = now();
	int ret;

	for (;;) {
		ret = kvmsnap_wait(save->session, 100 * 1000000LL, &wait);
		if (interrupted) {
			kvmsnap_cancel(save->session);
			return error_set(err, EINTR, "interrupted");
		}
		if (ret != -ETIME && ret != -EINTR)
			break;
		if (kvmsnap_stats(save->session, &save->stats) == 0)
			progress_show("saving", save->stats.pages_done, save->stats.pages_total,
				      save->stats.bytes_written, began);
	}
	progress_clear();
	if (!ret)
		ret = kvmsnap_stats(save->session, &save->stats);
	if (ret)
		return error_set(err, -ret, "waiting for the module: %s", strerror(-ret));
	if (wait.error && wait.error_offset != UINT64_MAX)
		return error_set(err, wait.error, "writing RAM at offset %llu of the file: %s%s",
				 (unsigned long long)wait.error_offset, strerror(wait.error),
				 advice(wait.error));
	if (wait.error)
		return error_set(err, wait.error, "saving RAM: %s%s", strerror(wait.error),
				 advice(wait.error));
	return 0;
}

static int save_ram(struct save *save, struct error *err)
{
	size_t i, nr = save->qemu.nr_blocks, in_module = 0;
	int *region = calloc(nr, sizeof(*region));
	int ret = region ? 0 : error_set(err, ENOMEM, "out of memory");

	for (i = 0; i < nr && !ret; i++) {
		const struct qemu_block *block = &save->qemu.blocks[i];

		region[i] = kvmsnap_add_region(save->session, block->hva, block->used,
					       save->snap.blocks[i].pages_offset,
					       is_small_block(block) ? KVMSNAP_REGION_WHOLE : 0);
		if (region[i] >= 0)
			in_module++;
		else if (region[i] != -ENXIO)
			ret = error_set(err, -region[i], "RAM block %s: %s", block->name,
					region[i] == -ENOSPC ? "the VM has more blocks than the module takes" :
					strerror(-region[i]));
	}
	if (!ret && in_module) {
		ret = kvmsnap_queue_all(save->session, NULL);
		if (ret)
			error_set(err, -ret, "starting the save: %s%s", strerror(-ret), advice(-ret));
	}
	/* Ours, while the module is at work on its own. */
	for (i = 0; i < nr && !ret; i++)
		if (region[i] < 0)
			ret = copy_block(save, i, err);
	if (!ret && in_module)
		ret = wait_pass(save, err);
	for (i = 0; i < nr && !ret; i++) {
		struct snap_block *block = &save->snap.blocks[i];

		if (region[i] >= 0)
			ret = kvmsnap_get_bitmap(save->session, (uint32_t)region[i], 0,
						 block->length / SNAP_PAGE, block->bitmap);
		if (ret)
			error_set(err, -ret, "reading the module's bitmap: %s", strerror(-ret));
	}
	free(region);
	return ret;
}

static int resume(struct save *save, struct error *err)
{
	double began = now();
	int ret;

	if (!save->stopped_by_us)
		return 0;
	ret = qemu_cont(&save->qemu, err);
	if (ret)
		return ret;
	save->stopped_by_us = false;
	guardian_stopped(&save->guardian, 0);
	save->phases.resume = now() - began;
	save->phases.paused = now() - save->stopped_at;
	return 0;
}

/* Everything between attaching and letting go. */
static int save_vm(struct save *save, struct error *err)
{
	double began;
	size_t i;
	int ret;

	ret = guardian_start(&save->guardian, save->qemu.qmp.fd, save->target.partial, err);
	if (ret)
		return ret;
	if (interrupted)
		return error_set(err, EINTR, "interrupted");

	began = now();
	if (qemu_is_running(&save->qemu)) {
		guardian_stopped(&save->guardian, 1);
		save->stopped_by_us = true;
		save->stopped_at = began;
		ret = qemu_stop(&save->qemu, &save->stopped_by_us, err);
		if (ret)
			return ret;
		/* Somebody else was first: it stays stopped. */
		if (!save->stopped_by_us)
			guardian_stopped(&save->guardian, 0);
	}
	save->phases.stop = now() - began;

	began = now();
	save->devices = qemu_device_state(&save->qemu, err);
	if (save->devices < 0)
		return save->devices;
	save->phases.devices = now() - began;

	began = now();
	ret = qemu_list_blocks(&save->qemu, err);
	snprintf(save->snap.machine, sizeof(save->snap.machine), "%s", save->qemu.machine);
	for (i = 0; i < save->qemu.nr_blocks && !ret; i++)
		ret = snap_add_block(&save->snap, save->qemu.blocks[i].name,
				     save->qemu.blocks[i].used, err);
	if (ret)
		return ret;
	snap_layout(&save->snap);
	ret = target_size(&save->target, save->snap.devices_offset, err);
	if (!ret)
		ret = save_ram(save, err);
	if (ret)
		return ret;
	save->phases.ram = now() - began;
	ret = qemu_check_stopped(&save->qemu, err);
	if (ret)
		return ret;

	/* RAM and devices are taken: the guest need not wait for the rest. */
	if (!save->opt->stay_stopped) {
		ret = resume(save, err);
		if (ret)
			return ret;
	}
	began = now();
	if (interrupted)
		return error_set(err, EINTR, "interrupted");
	ret = snap_write(&save->snap, save->target.fd, save->devices, err);
	/* Where there is no name to give it at the end, the magic number is the commit. */
	if (!ret && !save->target.partial)
		ret = target_sync(&save->target, save->opt->sync, err);
	if (!ret)
		ret = snap_seal(save->target.fd, err);
	if (!ret)
		ret = target_commit(&save->target, save->opt->sync, err);
	if (save->target.committed)
		guardian_end(&save->guardian);
	save->phases.commit = now() - began;
	return ret;
}

static void report(const struct save *save)
{
	const struct phases *p = &save->phases;
	uint64_t bytes = save->stats.bytes_written + save->own_bytes, ram = 0;
	double rate = p->ram > 0 ? (double)bytes / p->ram : 0;
	json_t *json;
	size_t i;

	for (i = 0; i < save->snap.nr_blocks; i++)
		ram += save->snap.blocks[i].length;
	if (save->opt->json) {
		json = json_pack("{s:s*, s:s, s:I, s:I, s:I, s:I, s:I, s:f, s:f, s:f, s:{s:f, s:f, s:f, s:f, s:f}}",
				 "file", save->opt->output,
				 "machine", save->snap.machine,
				 "file_bytes", (json_int_t)save->snap.size,
				 "ram_bytes", (json_int_t)ram,
				 "written_bytes", (json_int_t)bytes,
				 "zero_bytes", (json_int_t)(save->stats.pages_zero * SNAP_PAGE),
				 "untouched_bytes", (json_int_t)(save->stats.pages_untouched * SNAP_PAGE),
				 "bytes_per_second", rate,
				 "paused_seconds", p->paused,
				 "seconds", p->total,
				 "phases", "stop", p->stop, "devices", p->devices, "ram", p->ram,
				 "resume", p->resume, "commit", p->commit);
		if (json) {
			json_dumpf(json, stdout, JSON_INDENT(2));
			putchar('\n');
		}
		json_decref(json);
		return;
	}
	if (save->opt->quiet)
		return;
	printf("saved %s: %s of %s RAM in %.2f s (%s/s), %.2f s in all\n",
	       save->opt->output ? save->opt->output : "to the descriptor",
	       human_bytes((double)bytes), human_bytes((double)ram), p->ram, human_bytes(rate), p->total);
	if (p->paused > 0)
		printf("guest stopped for %.1f ms: stop %.1f, devices %.1f, RAM %.1f, resume %.1f\n",
		       p->paused * 1e3, p->stop * 1e3, p->devices * 1e3, p->ram * 1e3, p->resume * 1e3);
	else if (qemu_is_running(&save->qemu))
		printf("the guest stays stopped\n");
}

static int run(const struct options *opt, struct error *err)
{
	struct save save = {
		.opt = opt, .session = -1, .vm_fd = -1, .devices = -1, .guardian.fd = -1,
		.qemu.qmp.fd = -1, .target.fd = -1,
	};
	double began = now();
	struct error second;
	int ret;

	ret = qemu_attach(&save.qemu, opt->qmp, opt->pid, err);
	if (!ret)
		ret = target_open(&save.target, opt->output, opt->fd, opt->force, err);
	if (!ret)
		ret = open_session(&save, err);
	if (!ret)
		ret = save_vm(&save, err);
	save.phases.total = now() - began;

	/* As it was found.  If we can't resume it, the guardian goes on trying. */
	if (ret && save.stopped_by_us && resume(&save, &second)) {
		guardian_leave(&save.guardian);
		if (qemu_is_alive(&save.qemu)) {
			struct error first = *err;

			error_set(err, -ret, "%.500s; and the VM is not resumed yet: %.300s; use cont in QEMU's monitor",
				  first.text, second.text);
		}
	}
	if (!ret)
		report(&save);
	target_close(&save.target);
	guardian_end(&save.guardian);
	if (save.session >= 0)
		close(save.session);
	if (save.vm_fd >= 0)
		close(save.vm_fd);
	if (save.devices >= 0)
		close(save.devices);
	snap_free(&save.snap);
	qemu_detach(&save.qemu);
	return ret;
}

int cmd_save(int argc, char **argv)
{
	enum { QMP = 256, OUTPUT, FD, FORCE, STAY, SYNC, PID, DEVICE, JSON, QUIET };
	static const struct option longs[] = {
		{ "qmp", required_argument, NULL, QMP },
		{ "output", required_argument, NULL, OUTPUT },
		{ "fd", required_argument, NULL, FD },
		{ "force", no_argument, NULL, FORCE },
		{ "stay-stopped", no_argument, NULL, STAY },
		{ "sync", required_argument, NULL, SYNC },
		{ "pid", required_argument, NULL, PID },
		{ "device", required_argument, NULL, DEVICE },
		{ "json", no_argument, NULL, JSON },
		{ "quiet", no_argument, NULL, QUIET },
		{ "help", no_argument, NULL, 'h' },
		{ 0 }
	};
	struct options opt = { .fd = -1, .sync = SYNC_FULL };
	struct error err = { "" };
	char *end;
	int c, ret;

	while ((c = getopt_long(argc, argv, "h", longs, NULL)) != -1) {
		switch (c) {
		case QMP:
			opt.qmp = optarg;
			break;
		case OUTPUT:
			opt.output = optarg;
			break;
		case FD:
			opt.fd = (int)strtol(optarg, &end, 10);
			if (*end || end == optarg || opt.fd < 0)
				return usage_error(save_usage, "--fd %s: not a descriptor number", optarg);
			break;
		case FORCE:
			opt.force = true;
			break;
		case STAY:
			opt.stay_stopped = true;
			break;
		case SYNC:
			if (!strcmp(optarg, "none"))
				opt.sync = SYNC_NONE;
			else if (!strcmp(optarg, "data"))
				opt.sync = SYNC_DATA;
			else if (!strcmp(optarg, "full"))
				opt.sync = SYNC_FULL;
			else
				return usage_error(save_usage, "--sync %s: none, data or full", optarg);
			break;
		case PID:
			opt.pid = (pid_t)strtol(optarg, &end, 10);
			if (*end || opt.pid <= 0)
				return usage_error(save_usage, "--pid %s: not a process number", optarg);
			break;
		case DEVICE:
			opt.device = optarg;
			break;
		case JSON:
			opt.json = true;
			break;
		case QUIET:
			opt.quiet = true;
			break;
		case 'h':
			fputs(save_usage, stdout);
			return 0;
		default:
			fputs(save_usage, stderr);
			return EXIT_USAGE;
		}
	}
	if (optind < argc)
		return usage_error(save_usage, "%s: not expected", argv[optind]);
	if (!opt.qmp)
		return usage_error(save_usage, "--qmp SOCKET is missing");
	if (!opt.output == (opt.fd < 0))
		return usage_error(save_usage, "one of --output FILE and --fd N is needed");

	catch_signals();
	ret = run(&opt, &err);
	if (!ret)
		return 0;
	complain(&err);
	return interrupted ? EXIT_INTERRUPTED : 1;
}
