// SPDX-License-Identifier: GPL-2.0
/*
 * kvmsnap save: a save of a QEMU VM, stopped or live.
 *
 * The order, and what each step's failure undoes:
 *   attach to QEMU, open session and target    nothing is changed yet
 *   live: lay the file out, RAM -> file while the VM runs, until what is left is little.
 *   Where soft-dirty bits help, the VM stops for a moment after the first pass: they are
 *   cleared with no I/O in flight
 *   stop the VM, if it runs                    resume
 *   device state -> memory (its pre_save handlers may still write RAM)
 *   lay the file out, or what is new of it, give it its size
 *   RAM -> file, by the module; what no memslot maps, by us.  After live passes: what
 *   differs from what the file holds, which all of RAM is compared for, or what may have been
 *   written since (follow.h)
 *   resume, unless told otherwise
 *   records, bitmaps, device state -> file; durable; its name
 * A failure removes the partial file and leaves the VM as it was found.  Should this
 * process be killed, its guardian does both.
 */
#include "cli.h"
#include "follow.h"
#include "guardian.h"
#include "ram.h"

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
	"Save a QEMU VM.  It is stopped while its memory is written (with --live, while the last\n"
	"of it is), and then resumed if it was running.  Stock QEMU restores the file with\n"
	"-global migration.mapped-ram=on -incoming file:FILE.\n"
	"  --qmp SOCKET      QEMU's QMP socket (-qmp unix:SOCKET,server=on,wait=off)\n"
	"  --output FILE     new file, or a block device\n"
	"  --fd N            write to the descriptor N, which was opened for it\n"
	"  --force           replace FILE, once the new one is whole\n"
	"  --live            write memory while the VM runs, and then what has changed\n"
	"  --max-downtime T  live: pause to aim at, as in 300ms or 1.5s (300ms)\n"
	"  --allow-downtime T  live: the longest pause to put up with (--max-downtime)\n"
	"  --max-passes N    live: passes with the VM running (10)\n"
	"  --bandwidth RATE  live: the most that is written while the VM runs, as in 200M a second\n"
	"  --throttle RATE   live: if the VM changes its memory too fast, have each vCPU change no more\n"
	"                    than that, as in 50M a second; QEMU needs a dirty ring\n"
	"  --stage SIZE      live: kernel memory for the last pages, as in 256M: the VM runs again\n"
	"                    when they are copied, and they are written behind it\n"
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
	bool force, live, stay_stopped, json, quiet;
	double max_downtime, allow_downtime;	/* seconds; 0 for the default */
	long max_passes;
	uint64_t stage;			/* bytes */
	uint64_t bandwidth, throttle;	/* bytes a second, 0 for none */
	enum sync sync;
};

/* Where the time went, in seconds. */
struct phases {
	double live, stop, devices, ram, resume, stage, commit, paused, total;
	double clear;			/* short stops in the live phase; in @paused too */
};

struct save {
	const struct options *opt;
	struct qemu qemu;
	struct target target;
	struct guardian guardian;
	struct snapfile snap;
	struct ram ram;
	struct follow follow;
	struct phases phases;
	long passes;			/* live ones */
	double compare_seconds;		/* of a live pass that compared everything; 0 for none */
	uint64_t last_looks;		/* pages that the last pass was over */
	uint64_t last_bytes;		/* written with the VM stopped */
	double first_seconds;		/* the first live pass took */
	double expected;		/* seconds that the last stop will take, as far as is known */
	double dirty_rate;		/* bytes a second that the guest changed in the last live pass */
	int devices;
	bool stopped_by_us, throttled;
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

/* For whoever watches; that it can't be told is no reason to fail. */
static void tell(const struct save *save, enum kvmsnap_phase phase, double pause)
{
	if (save->ram.session >= 0)
		kvmsnap_set_phase(save->ram.session, phase, pause > 0 ? (uint64_t)(pause * 1e9) : 0);
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
	guardian_stopped(&save->guardian, false);
	save->phases.resume = now() - began;
	save->phases.paused += now() - save->stopped_at;
	tell(save, KVMSNAP_PHASE_RESUMED, save->phases.paused);
	return 0;
}

static int stop(struct save *save, struct error *err)
{
	int ret;

	guardian_stopped(&save->guardian, true);
	save->stopped_by_us = true;
	save->stopped_at = now();
	ret = qemu_stop(&save->qemu, &save->stopped_by_us, err);
	/* Somebody else was first: it stays stopped. */
	if (!ret && !save->stopped_by_us)
		guardian_stopped(&save->guardian, false);
	tell(save, KVMSNAP_PHASE_STOPPED, save->expected);
	return ret;
}

/*
 * The last pass's seconds without the writing.  The first and the last had the same to look at,
 * and what they took more or less is what they wrote more or less.
 */
static double look_seconds(const struct save *save)
{
	const struct ram *ram = &save->ram;
	double last = (double)ram->stats.bytes_written, first = (double)ram->first.bytes_written;
	double look = save->compare_seconds ? save->compare_seconds : ram->seconds;

	if (first > last && save->first_seconds > look)
		look -= last * (save->first_seconds - look) / (first - last);
	return look > 0 ? look : 0;
}

/* Does the stage hold what the last pass wrote?  Then the VM won't have to wait for the disk. */
static bool is_staged(const struct save *save)
{
	return save->opt->stage && save->ram.stats.bytes_written <= save->opt->stage;
}

/*
 * How long would the VM stop for another pass?  Where everything is compared, about as long as for
 * the last pass.  Otherwise the part of that which there is to look at, and, unless it is staged,
 * the writing.  Negative when it can't be said.
 */
static double downtime(struct save *save, bool staged, struct error *err)
{
	const struct ram *ram = &save->ram;
	double bytes = (double)ram->stats.bytes_written, written = (double)ram->first.bytes_written;
	double content = written / SNAP_PAGE + (double)ram->first.pages_zero, looks;
	int64_t expect;

	if (!save->follow.ring)
		return staged ? look_seconds(save) : ram->seconds;
	expect = follow_expect(&save->follow, err);
	if (expect < 0)
		return (double)expect;
	looks = (double)expect + (double)ram->stats.pages_dirty;
	if (looks > content)
		looks = content;
	if (content > 0)
		looks *= look_seconds(save) / content;
	return staged || !written ? looks : looks + bytes * save->first_seconds / written;
}

/* The VM stops for as long as soft-dirty bits take to be cleared. */
static int clear_bits(struct save *save, struct error *err)
{
	double before = save->phases.paused;
	int ret = stop(save, err);

	if (!ret)
		ret = follow_clear(&save->follow, err);
	if (!ret)
		ret = resume(save, err);
	save->phases.clear += save->phases.paused - before;
	tell(save, KVMSNAP_PHASE_LIVE, save->expected);
	return ret;
}

/* A pass; over everything, from now on, if somebody else has switched the ring off. */
static int tracked_pass(struct save *save, uint32_t kind, uint32_t flags, const char *what,
			struct error *err)
{
	int ret = ram_pass(&save->ram, kind, flags, what, err);

	if (ret != -ENODATA || !save->follow.ring)
		return ret;
	follow_lost(&save->follow);
	return ram_pass(&save->ram, KVMSNAP_PASS_ALL, flags, what, err);
}

/*
 * The next pass while the VM runs.  The first is over everything; then, if there are soft-dirty
 * bits, one that compares everything begins where they do.
 */
static int live_pass(struct save *save, struct error *err)
{
	struct ram *ram = &save->ram;
	bool everything = save->passes && !save->follow.ring;
	char what[32];
	int ret = 0;

	if (save->passes && follow_has_bits(&save->follow)) {
		everything = !save->follow.cleared;
		ret = clear_bits(save, err);
	}
	if (ret)
		return ret;
	snprintf(what, sizeof(what), "pass %ld", ++save->passes);
	ret = tracked_pass(save, everything ? KVMSNAP_PASS_ALL : KVMSNAP_PASS_DIRTY,
			   save->passes > 1 ? KVMSNAP_QUEUE_COMPARE : 0, what, err);
	if (save->passes == 1)
		save->first_seconds = ram->seconds;
	else if (ram->seconds > 0)
		save->dirty_rate = (double)ram->stats.bytes_written / ram->seconds;
	if (everything)
		save->compare_seconds = ram->seconds;
	return ret;
}

/* Write RAM while the VM runs, until the rest can be written in the pause. */
static int live_passes(struct save *save, struct error *err)
{
	const struct options *opt = save->opt;
	struct ram *ram = &save->ram;
	double before, wanted = 0, cost;
	bool stage_helps;
	int ret;

	ret = opt->stage ? kvmsnap_set_stage(ram->session, opt->stage) : 0;
	if (ret)
		return error_set(err, -ret, "a stage of %s: %s; choose a smaller --stage",
				 human_bytes((double)opt->stage), strerror(-ret));
	tell(save, KVMSNAP_PHASE_LIVE, 0);
	ret = ram_add_blocks(ram, err);
	if (!ret)
		ret = follow_start(&save->follow, err);
	if (ret)
		return ret;
	ram->bandwidth = opt->bandwidth;
	for (;;) {
		before = wanted;
		cost = save->phases.clear;
		ret = live_pass(save, err);
		if (ret)
			return ret;
		cost = save->phases.clear - cost;
		wanted = downtime(save, is_staged(save), err);
		if (wanted < 0)
			return (int)wanted;
		save->expected = save->phases.paused + wanted;
		tell(save, KVMSNAP_PHASE_LIVE, save->expected);
		if (save->expected <= opt->max_downtime || save->passes >= opt->max_passes)
			break;
		/*
		 * It goes on unless it does not get shorter any more, because the guest writes as
		 * fast as we do, or the stop before another pass takes as long as that can save.
		 */
		if (save->passes < 3 || (wanted < before * 0.9 && cost < wanted / 2))
			continue;
		if (!opt->throttle || !save->follow.ring || save->throttled)
			break;
		ret = qemu_throttle(&save->qemu, opt->throttle, err);
		if (ret)
			return ret;
		save->throttled = true;
	}
	ram->bandwidth = 0;

	stage_helps = !is_staged(save) && downtime(save, true, err) <= opt->allow_downtime;
	wanted += save->phases.paused;
	if (wanted > opt->allow_downtime)
		return error_set(err, ETIME,
				 "the guest would stop for about %.0f ms, and %.0f ms are allowed: it changes %s/s%s%s; allow more with --allow-downtime %.0fms%s%s",
				 wanted * 1e3, opt->allow_downtime * 1e3, human_bytes(save->dirty_rate),
				 save->follow.ring ? "" : ", and all of its memory is compared at the end: ",
				 save->follow.ring ? "" : save->follow.why, wanted * 1.2e3,
				 stage_helps ? ", or keep the disk out of it with a --stage of more than " : "",
				 stage_helps ? human_bytes((double)ram->stats.bytes_written) : "");
	return 0;
}

/* All of RAM, or what has changed since the live passes, with the VM stopped. */
static int write_rest(struct save *save, struct error *err)
{
	uint32_t how = save->opt->stage ? KVMSNAP_QUEUE_STAGE : KVMSNAP_QUEUE_STOPPED;
	struct ram *ram = &save->ram;
	int ret;

	if (save->passes) {
		ret = follow_collect(&save->follow, err);
		if (ret < 0)
			return ret;
		ret = tracked_pass(save, ret ? KVMSNAP_PASS_DIRTY : KVMSNAP_PASS_ALL,
				   how | KVMSNAP_QUEUE_COMPARE, "the rest", err);
		save->last_looks = ram->stats.pages_total;
	} else {
		ret = ram_pass(ram, KVMSNAP_PASS_ALL, 0, "saving", err);
	}
	return ret ? ret : ram_copy_rest(ram, err);
}

/* Everything between attaching and letting go. */
static int save_vm(struct save *save, struct error *err)
{
	double began;
	int ret;

	ret = guardian_start(&save->guardian, save->qemu.qmp.fd, save->target.partial, err);
	if (ret)
		return ret;
	if (interrupted)
		return error_set(err, EINTR, "interrupted");
	snprintf(save->snap.machine, sizeof(save->snap.machine), "%s", save->qemu.machine);

	/* A VM that is stopped has nothing to run for. */
	began = now();
	if (save->opt->live && qemu_is_running(&save->qemu)) {
		ret = live_passes(save, err);
		if (ret)
			return ret;
	}
	save->phases.live = now() - began;

	began = now();
	if (qemu_is_running(&save->qemu)) {
		ret = stop(save, err);
		if (ret)
			return ret;
	}
	save->phases.stop = now() - began;

	began = now();
	save->devices = qemu_device_state(&save->qemu, err);
	if (save->devices < 0)
		return save->devices;
	save->phases.devices = now() - began;

	began = now();
	ret = ram_add_blocks(&save->ram, err);
	if (!ret)
		ret = write_rest(save, err);
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
	ret = ram_finish(&save->ram, err);
	if (ret)
		return ret;
	save->phases.stage = now() - began;
	save->last_bytes = save->ram.stats.bytes_written;
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
	uint64_t bytes = save->ram.bytes, ram = 0;
	uint64_t staged = save->ram.stats.pages_staged * SNAP_PAGE;
	double seconds = p->live + p->ram + p->stage, rate = seconds > 0 ? (double)bytes / seconds : 0;
	json_t *json;
	size_t i;

	for (i = 0; i < save->snap.nr_blocks; i++)
		ram += save->snap.blocks[i].length;
	if (save->opt->json) {
		json = json_pack("{s:s*, s:s, s:I, s:I, s:I, s:I, s:I, s:f, s:f, s:f, s:I, s:f, s:I, s:I, s:I, s:s*, s:b, s:b, s:{s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f}}",
				 "file", save->opt->output,
				 "machine", save->snap.machine,
				 "file_bytes", (json_int_t)save->snap.size,
				 "ram_bytes", (json_int_t)ram,
				 "written_bytes", (json_int_t)bytes,
				 "zero_bytes", (json_int_t)(save->ram.first.pages_zero * SNAP_PAGE),
				 "untouched_bytes", (json_int_t)(save->ram.first.pages_untouched * SNAP_PAGE),
				 "bytes_per_second", rate,
				 "paused_seconds", p->paused,
				 "seconds", p->total,
				 "live_passes", (json_int_t)save->passes,
				 "changed_bytes_per_second", save->dirty_rate,
				 "paused_written_bytes", (json_int_t)(save->last_bytes - staged),
				 "staged_bytes", (json_int_t)staged,
				 "paused_compared_bytes", (json_int_t)(save->last_looks * SNAP_PAGE),
				 "tracking", !save->passes ? NULL : save->follow.ring ? "ring" : "compare",
				 "soft_dirty", save->follow.cleared, "throttled", save->throttled,
				 "phases", "live", p->live, "clear", p->clear, "stop", p->stop, "devices", p->devices, "ram", p->ram,
				 "resume", p->resume, "stage", p->stage, "commit", p->commit);
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
	       human_bytes((double)bytes), human_bytes((double)ram), seconds, human_bytes(rate), p->total);
	if (save->passes)
		printf("%ld pass%s while the guest ran, which changed %s/s; %s in the last, with it stopped, of %s that %s\n",
		       save->passes, save->passes == 1 ? "" : "es", human_bytes(save->dirty_rate),
		       human_bytes((double)save->last_bytes),
		       human_bytes((double)(save->last_looks * SNAP_PAGE)),
		       save->follow.cleared ? "may have changed" : "had to be compared");
	if (save->passes && !save->follow.ring)
		printf("all memory was compared at the end: %s\n", save->follow.why);
	else if (save->follow.hidden)
		printf("all memory was compared at the end: soft-dirty bits don't tell what is written by %s\n",
		       save->follow.hidden);
	if (save->throttled)
		printf("the guest was throttled: each vCPU to %s/s of changes\n",
		       human_bytes((double)save->opt->throttle));
	if (staged)
		printf("%s of that was staged, and written in %.1f ms%s\n", human_bytes((double)staged),
		       p->stage * 1e3, save->opt->stay_stopped ? "" : " while the guest ran on");
	if (p->paused > 0)
		printf("guest stopped for %.1f ms: soft-dirty bits %.1f, stop %.1f, devices %.1f, RAM %.1f, resume %.1f\n",
		       p->paused * 1e3, p->clear * 1e3, p->stop * 1e3, p->devices * 1e3, p->ram * 1e3, p->resume * 1e3);
	else if (qemu_is_running(&save->qemu))
		printf("the guest stays stopped\n");
}

static int run(const struct options *opt, struct error *err)
{
	struct save save = {
		.opt = opt, .devices = -1, .guardian.fd = -1, .qemu.qmp.fd = -1, .target.fd = -1,
		.follow = { .ram = &save.ram, .guardian = &save.guardian },
		.ram = {
			.qemu = &save.qemu, .target = &save.target, .snap = &save.snap,
			.interrupted = &interrupted, .session = -1, .vm_fd = -1,
		},
	};
	double began = now();
	struct error second;
	int ret;

	ret = qemu_attach(&save.qemu, opt->qmp, opt->pid, err);
	if (!ret)
		ret = target_open(&save.target, opt->output, opt->fd, opt->force, err);
	if (!ret)
		ret = ram_open(&save.ram, opt->device, err);
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
	follow_end(&save.follow);
	tell(&save, ret ? KVMSNAP_PHASE_FAILED : KVMSNAP_PHASE_DONE, save.phases.paused);
	if (!ret)
		report(&save);
	target_close(&save.target);
	guardian_end(&save.guardian);
	ram_close(&save.ram);
	if (save.devices >= 0)
		close(save.devices);
	snap_free(&save.snap);
	qemu_detach(&save.qemu);
	return ret;
}

/* "500us", "20ms", "1.5s" or "2", in seconds; negative when it is none. */
static double parse_time(const char *text)
{
	char *end;
	double value = strtod(text, &end);

	if (end == text || !(value >= 0) || value > 1e6)
		return -1;
	if (!strcmp(end, "us"))
		return value / 1e6;
	if (!strcmp(end, "ms"))
		return value / 1e3;
	return !*end || !strcmp(end, "s") ? value : -1;
}

/* "500000", "64K", "256M", "1.5G": bytes; 0 when it is none. */
static uint64_t parse_size(const char *text)
{
	static const char units[] = "KMGT";
	char *end;
	const char *unit;
	double value = strtod(text, &end);

	if (end == text || !(value >= 1))
		return 0;
	if (*end) {
		unit = strchr(units, *end);
		if (!unit || end[1])
			return 0;
		value *= (double)(1ULL << 10 * (unit - units + 1));
	}
	return value < 1e18 ? (uint64_t)value : 0;
}

int cmd_save(int argc, char **argv)
{
	enum { QMP = 256, OUTPUT, FD, FORCE, LIVE, MAX_DOWNTIME, ALLOW_DOWNTIME, MAX_PASSES, BANDWIDTH, THROTTLE, STAGE, STAY, SYNC, PID, DEVICE, JSON, QUIET };
	static const struct option longs[] = {
		{ "qmp", required_argument, NULL, QMP },
		{ "output", required_argument, NULL, OUTPUT },
		{ "fd", required_argument, NULL, FD },
		{ "force", no_argument, NULL, FORCE },
		{ "live", no_argument, NULL, LIVE },
		{ "max-downtime", required_argument, NULL, MAX_DOWNTIME },
		{ "allow-downtime", required_argument, NULL, ALLOW_DOWNTIME },
		{ "max-passes", required_argument, NULL, MAX_PASSES },
		{ "bandwidth", required_argument, NULL, BANDWIDTH },
		{ "throttle", required_argument, NULL, THROTTLE },
		{ "stage", required_argument, NULL, STAGE },
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
		case LIVE:
			opt.live = true;
			break;
		case MAX_DOWNTIME:
			opt.max_downtime = parse_time(optarg);
			if (opt.max_downtime <= 0)
				return usage_error(save_usage, "--max-downtime %s: not a time such as 300ms or 1.5s", optarg);
			break;
		case ALLOW_DOWNTIME:
			opt.allow_downtime = parse_time(optarg);
			if (opt.allow_downtime <= 0)
				return usage_error(save_usage, "--allow-downtime %s: not a time such as 300ms or 1.5s", optarg);
			break;
		case MAX_PASSES:
			opt.max_passes = strtol(optarg, &end, 10);
			if (*end || opt.max_passes <= 0)
				return usage_error(save_usage, "--max-passes %s: not a number of 1 or more", optarg);
			break;
		case BANDWIDTH:
			opt.bandwidth = parse_size(optarg);
			if (!opt.bandwidth)
				return usage_error(save_usage, "--bandwidth %s: not a rate such as 200M (bytes a second)", optarg);
			break;
		case THROTTLE:
			opt.throttle = parse_size(optarg);
			if (!opt.throttle)
				return usage_error(save_usage, "--throttle %s: not a rate such as 50M (bytes a second)", optarg);
			break;
		case STAGE:
			opt.stage = parse_size(optarg);
			if (!opt.stage)
				return usage_error(save_usage, "--stage %s: not a size such as 64M or 1G", optarg);
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

	if (!opt.live && (opt.max_downtime || opt.allow_downtime || opt.max_passes || opt.stage ||
			  opt.bandwidth || opt.throttle))
		return usage_error(save_usage, "--max-downtime, --allow-downtime, --max-passes, --bandwidth, --throttle and --stage go with --live");
	if (!opt.max_downtime)
		opt.max_downtime = opt.allow_downtime && opt.allow_downtime < 0.3 ? opt.allow_downtime : 0.3;
	if (!opt.allow_downtime)
		opt.allow_downtime = opt.max_downtime;
	if (!opt.max_passes)
		opt.max_passes = 10;

	catch_signals();
	ret = run(&opt, &err);
	if (!ret)
		return 0;
	complain(&err);
	return interrupted ? EXIT_INTERRUPTED : 1;
}
