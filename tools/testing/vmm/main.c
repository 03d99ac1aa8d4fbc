// SPDX-License-Identifier: GPL-2.0
/*
 * vmm: a small virtual machine monitor that saves its own VM while it runs.  It is there to
 * be read by who wants to build on libkvmsnap (live.c), and to be tested and measured.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "kvmsnap.h"
#include "live.h"
#include "reaper.h"

static const char usage[] =
	"usage: vmm --output FILE [OPTION]...\n"
	"Run a VM whose guest dirties memory, and save its memory to FILE meanwhile.\n"
	"  --ram MIB           memory (256)\n"
	"  --kind huge|small|memfd|hugetlb\n"
	"  --filled MIB        how much of it has content (half)\n"
	"  --dirtied MIB       how much of it the guest writes to (16)\n"
	"  --vcpus N           (2)\n"
	"  --ring N            entries of each dirty ring, a power of two (65536)\n"
	"  --pattern sequential|random|same|zero|aba|fill\n"
	"  --device --balloon --smm   write memory from outside the guest, drop pages, take SMIs\n"
	"  --reap-ms N                reap its rings itself, as QEMU does, and have that observed\n"
	"  --passes N          at most, with the VM running (10)\n"
	"  --downtime MS       wished for (20)\n"
	"  --hash              keep hashes of what is written, and compare at the end\n"
	"  --stage MIB         keep what the last pass writes in kernel memory meanwhile (0)\n"
	"  --compare-only      without the dirty ring: compare in every pass\n"
	"  --rate N            pages a second that each vCPU writes to (as many as it can)\n"
	"  --seed N\n"
	"  --seconds S         run that long before the save (0.5)\n"
	"  --generations N     to FILE, FILE.1, ...: what has changed, over reflinks (1)\n"
	"  --append            all to FILE: what has changed, one behind the other\n"
	"  --bench-harvest     save nothing: what does an entry of the ring cost?\n";

static const char *const kinds[] = { "huge", "small", "memfd", "hugetlb" };
static const char *const patterns[] = { "sequential", "random", "same", "zero", "aba", "fill" };

static int lookup(const char *const *names, int nr, const char *name)
{
	int i;

	for (i = 0; i < nr; i++)
		if (!strcmp(names[i], name))
			return i;
	fprintf(stderr, "vmm: %s: not known\n%s", name, usage);
	exit(2);
}

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static void print_report(const struct live_report *report, const struct machine *m, bool exact, double clone)
{
	printf("{\"passes\": %u, \"bytes\": %llu, \"last_pages\": %llu, \"work\": %llu, \"seconds\": %.4f, \"clone_ms\": %.3f,\n"
	       " \"pause_ms\": %.3f, \"stop_ms\": %.3f, \"harvest_ms\": %.3f, \"write_ms\": %.3f,\n"
	       " \"harvested\": %llu, \"harvests\": %llu, \"all_dirty\": %llu, \"same\": %llu, \"ring_full\": %lu,\n"
	       " \"device_writes\": %lu, \"balloon_drops\": %lu, \"smm_work\": %llu, \"exact\": %s}\n",
	       report->passes, (unsigned long long)report->bytes, (unsigned long long)report->last_pages,
	       (unsigned long long)report->work, report->total, clone * 1e3, report->pause * 1e3, report->stop * 1e3,
	       report->harvest * 1e3, report->write * 1e3, (unsigned long long)report->stats.harvested,
	       (unsigned long long)report->stats.harvests, (unsigned long long)report->stats.all_dirty,
	       (unsigned long long)report->stats.pages_same, m->ring_full, m->device_writes,
	       m->balloon_drops, (unsigned long long)machine_smm_work(m), exact ? "true" : "false");
}

/* The file of generation @nr: the first one's size, or a reflink of @last.  -1. */
static int open_generation(const char *output, unsigned int nr, int last, size_t bytes)
{
	char path[4096];
	int fd;

	snprintf(path, sizeof(path), nr ? "%s.%u" : "%s", output, nr);
	fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0 || (nr ? ioctl(fd, FICLONE, last) : ftruncate(fd, (off_t)bytes)) < 0) {
		fprintf(stderr, "vmm: %s: %s\n", path, strerror(errno));
		return -1;
	}
	return fd;
}

/* Note in @part which pages generation @nr has.  A negative errno. */
static int note_written(const struct machine *m, int session, unsigned int nr, uint16_t *part)
{
	size_t pages = m->config.ram / GUEST_PAGE, i;
	uint8_t *written = calloc(1, (pages + 63) / 64 * 8);
	int err = written ? kvmsnap_get_written(session, 0, 0, pages, written) : -ENOMEM;

	for (i = 0; !err && i < pages; i++)
		if (written[i / 8] & 1 << i % 8)
			part[i] = (uint16_t)nr;
	free(written);
	return err;
}

/*
 * Each generation after the first is what has changed: over a reflink of the last, which is made when that
 * one is there (the more pieces a file has, the longer it takes); or with @part behind the last in its file,
 * and @part, zeros at first, notes for each page which generation had it last.
 */
static int save(struct machine *m, const char *output, unsigned int generations, uint16_t *part,
		const struct live_options *options)
{
	struct live_options next = *options;
	struct live_report report;
	int fd = open_generation(output, 0, -1, m->config.ram * (part ? generations : 1)), session, child = -1, err;
	double began, clone = 0;
	unsigned int i;
	long differ;

	if (fd < 0)
		return -1;
	session = live_begin(m, fd, options);
	if (session < 0)
		return session;
	next.max_passes = 0;
	for (i = 0, err = 0; i < generations && !err; i++) {
		began = now();
		if (i) {
			machine_resume(m);
			usleep(300000);
			began = now();
			err = child < 0 ? -1 : kvmsnap_set_target_at(session, child, part ? i * m->config.ram : 0,
								     KVMSNAP_TARGET_CURRENT);
			close(fd);
			fd = child;
		}
		if (!err)
			err = live_generation(m, session, i ? &next : options, true, &report);
		if (err)
			break;
		report.total = now() - began;
		err = part ? note_written(m, session, i, part) : 0;
		if (err)
			break;
		differ = machine_differs(m, fd, part);
		print_report(&report, m, !differ, clone);
		err = differ != 0;
		began = now();
		if (!err && i + 1 < generations)
			child = part ? dup(fd) : open_generation(output, i + 1, fd, m->config.ram);
		clone = now() - began;
	}
	live_end(m, session, options);
	close(fd);
	return err;
}

#define HARVESTS	20

/*
 * What an entry of the dirty ring costs who empties it: the module, or with --reap-ms a VMM that does
 * it itself and notes the page in a bitmap.  With the vCPUs paused and their rings filled, so that
 * nothing else happens; meant for a clock that counts instructions, and rare harvests in the background.
 */
static int bench_harvest(struct machine *m, const char *output)
{
	bool own = m->config.reap_ms;
	struct kvmsnap_harvest result;
	struct kvmsnap_stats stats;
	int fd = open_generation(output, 0, -1, m->config.ram), session = -1, err, i;
	unsigned long entries = 0, had;
	double at, took = 0;

	if (own)
		err = reaper_note(m) ? -1 : machine_logging(m, true);
	else
		err = session = live_begin(m, fd, &(struct live_options){ .max_passes = 0 });
	for (i = 0; i < HARVESTS && err >= 0; i++) {
		machine_resume(m);
		usleep(20000);
		machine_pause(m);
		if (own) {
			had = m->reaped;
			at = now();
			reaper_reap(m);
			took += now() - at;
			entries += m->reaped - had;
		} else {
			kvmsnap_stats(session, &stats);
			at = now();
			err = kvmsnap_harvest(session, &result);
			took += now() - at;
			entries += result.harvested - stats.harvested;
		}
	}
	printf("{\"entries\": %lu, \"ns_per_entry\": %.1f}\n", entries,
	       entries ? took * 1e9 / (double)entries : 0);
	machine_resume(m);
	if (session >= 0)
		live_end(m, session, &(struct live_options){ 0 });
	close(fd);
	return err < 0 ? err : 0;
}

int main(int argc, char **argv)
{
	enum { RAM = 256, KIND, FILLED, DIRTIED, VCPUS, RING, PATTERN, DEVICE, BALLOON, SMM, REAP_MS, PASSES,
	       DOWNTIME, HASH, COMPARE_ONLY, STAGE, SEED, SECONDS, OUTPUT, GENERATIONS, APPEND, BENCH, RATE };
	static const struct option longs[] = {
		{ "ram", required_argument, NULL, RAM }, { "kind", required_argument, NULL, KIND },
		{ "filled", required_argument, NULL, FILLED },
		{ "dirtied", required_argument, NULL, DIRTIED },
		{ "vcpus", required_argument, NULL, VCPUS }, { "ring", required_argument, NULL, RING },
		{ "pattern", required_argument, NULL, PATTERN }, { "device", no_argument, NULL, DEVICE },
		{ "balloon", no_argument, NULL, BALLOON }, { "smm", no_argument, NULL, SMM },
		{ "reap-ms", required_argument, NULL, REAP_MS },
		{ "passes", required_argument, NULL, PASSES },
		{ "downtime", required_argument, NULL, DOWNTIME }, { "hash", no_argument, NULL, HASH },
		{ "compare-only", no_argument, NULL, COMPARE_ONLY },
		{ "stage", required_argument, NULL, STAGE },
		{ "rate", required_argument, NULL, RATE },
		{ "seed", required_argument, NULL, SEED }, { "seconds", required_argument, NULL, SECONDS },
		{ "output", required_argument, NULL, OUTPUT },
		{ "generations", required_argument, NULL, GENERATIONS },
		{ "append", no_argument, NULL, APPEND },
		{ "bench-harvest", no_argument, NULL, BENCH }, { 0 }
	};
	struct machine_config config = { .ram = 256 << 20, .vcpus = 2, .ring = 65536,
		.dirtied = 16 << 20, .seed = 1 };
	struct live_options options = { .max_passes = 10, .max_downtime = 0.02 };
	const char *output = NULL;
	double run = 0.5;
	unsigned int generations = 1;
	bool bench = false, append = false;
	uint16_t *part = NULL;
	struct machine machine;
	int c, err;

	while ((c = getopt_long(argc, argv, "", longs, NULL)) != -1) {
		switch (c) {
		case RAM: config.ram = strtoul(optarg, NULL, 0) << 20; break;
		case KIND: config.kind = (enum ram_kind)lookup(kinds, NR_RAM_KINDS, optarg); break;
		case FILLED: config.filled = strtoul(optarg, NULL, 0) << 20; break;
		case DIRTIED: config.dirtied = strtoul(optarg, NULL, 0) << 20; break;
		case VCPUS: config.vcpus = (unsigned int)atoi(optarg); break;
		case RING: config.ring = (unsigned int)atoi(optarg); break;
		case PATTERN: config.pattern = (enum guest_pattern)lookup(patterns, NR_PATTERNS, optarg); break;
		case DEVICE: config.device = true; break;
		case BALLOON: config.balloon = true; break;
		case SMM: config.smm = true; break;
		case REAP_MS: config.reap_ms = (unsigned int)atoi(optarg); break;
		case PASSES: options.max_passes = (unsigned int)atoi(optarg); break;
		case DOWNTIME: options.max_downtime = atof(optarg) / 1e3; break;
		case HASH: options.hash = true; break;
		case COMPARE_ONLY: options.compare_only = true; break;
		case STAGE: options.stage = strtoul(optarg, NULL, 0) << 20; break;
		case SEED: config.seed = strtoull(optarg, NULL, 0); break;
		case SECONDS: run = atof(optarg); break;
		case RATE: config.rate = strtoul(optarg, NULL, 0); break;
		case OUTPUT: output = optarg; break;
		case GENERATIONS: generations = (unsigned int)atoi(optarg); break;
		case APPEND: append = true; break;
		case BENCH: bench = true; break;
		default: fputs(usage, stderr); return 2;
		}
	}
	if (!config.filled)
		config.filled = config.ram / 2;
	if (!output || !config.vcpus || config.vcpus > GUEST_MAX_VCPUS || config.ram % (4 << 20) ||
	    config.ram > 16UL << 30 || config.dirtied < 2 << 20 || config.dirtied > config.ram ||
	    config.filled > config.ram) {
		fputs(usage, stderr);
		return 2;
	}

	if (append) {
		part = calloc(config.ram / GUEST_PAGE, sizeof(*part));
		if (!part || generations > UINT16_MAX) {
			fputs("vmm: too many generations, or no memory\n", stderr);
			return 1;
		}
	}
	if (machine_create(&machine, &config))
		return 1;
	machine_resume(&machine);
	usleep((useconds_t)(run * 1e6));
	err = bench ? bench_harvest(&machine, output) : save(&machine, output, generations, part, &options);
	machine_destroy(&machine);
	free(part);
	return err ? 1 : 0;
}
