// SPDX-License-Identifier: GPL-2.0
/*
 * vmm: a small virtual machine monitor that saves its own VM while it runs.  It is there to
 * be read by who wants to build on libkvmsnap (live.c), and to be tested and measured.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "live.h"

static const char usage[] =
	"usage: vmm --output FILE [OPTION]...\n"
	"Run a VM whose guest dirties memory, and save its memory to FILE meanwhile.\n"
	"  --ram MIB           memory (256)\n"
	"  --kind huge|small|memfd|hugetlb\n"
	"  --filled MIB        how much of it has content (half)\n"
	"  --dirtied MIB       how much of it the guest writes to (16)\n"
	"  --vcpus N           (2)\n"
	"  --ring N            entries of each dirty ring, a power of two (4096)\n"
	"  --pattern sequential|random|same|zero|aba\n"
	"  --device --balloon --smm   write memory from outside the guest, drop pages, take SMIs\n"
	"  --reap-ms N                reap its rings itself, as QEMU does, and have that observed\n"
	"  --passes N          at most, with the VM running (10)\n"
	"  --downtime MS       wished for (20)\n"
	"  --hash              keep hashes of what is written, and compare at the end\n"
	"  --stage MIB         keep what the last pass writes in kernel memory meanwhile (0)\n"
	"  --compare-only      without the dirty ring: compare in every pass\n"
	"  --seed N\n"
	"  --seconds S         run that long before the save (0.5)\n";

static const char *const kinds[] = { "huge", "small", "memfd", "hugetlb" };
static const char *const patterns[] = { "sequential", "random", "same", "zero", "aba" };

static int lookup(const char *const *names, int nr, const char *name)
{
	int i;

	for (i = 0; i < nr; i++)
		if (!strcmp(names[i], name))
			return i;
	fprintf(stderr, "vmm: %s: not known\n%s", name, usage);
	exit(2);
}

int main(int argc, char **argv)
{
	enum { RAM = 256, KIND, FILLED, DIRTIED, VCPUS, RING, PATTERN, DEVICE, BALLOON, SMM, REAP_MS, PASSES,
	       DOWNTIME, HASH, COMPARE_ONLY, STAGE, SEED, SECONDS, OUTPUT };
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
		{ "seed", required_argument, NULL, SEED }, { "seconds", required_argument, NULL, SECONDS },
		{ "output", required_argument, NULL, OUTPUT }, { 0 }
	};
	struct machine_config config = { .ram = 256 << 20, .vcpus = 2, .ring = 4096,
		.dirtied = 16 << 20, .seed = 1 };
	struct live_options options = { .max_passes = 10, .max_downtime = 0.02 };
	const char *output = NULL;
	double run = 0.5;
	struct live_report report;
	struct machine machine;
	int fd, c, err;

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
		case OUTPUT: output = optarg; break;
		default: fputs(usage, stderr); return 2;
		}
	}
	if (!config.filled)
		config.filled = config.ram / 2;
	if (!output || !config.vcpus || config.vcpus > GUEST_MAX_VCPUS || config.ram % (4 << 20) ||
	    config.ram > 4UL << 30 || config.dirtied < 2 << 20 || config.dirtied > config.ram ||
	    config.filled > config.ram) {
		fputs(usage, stderr);
		return 2;
	}

	fd = open(output, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0 || ftruncate(fd, (off_t)config.ram) < 0) {
		fprintf(stderr, "vmm: %s: %s\n", output, strerror(errno));
		return 1;
	}
	if (machine_create(&machine, &config))
		return 1;
	machine_resume(&machine);
	usleep((useconds_t)(run * 1e6));
	err = live_save(&machine, fd, &options, true, &report);
	machine_pause(&machine);
	if (!err)
		err = machine_differs(&machine, fd) != 0;
	printf("{\"passes\": %u, \"bytes\": %llu, \"last_pages\": %llu, \"work\": %llu, \"seconds\": %.4f,\n"
	       " \"pause_ms\": %.3f, \"stop_ms\": %.3f, \"harvest_ms\": %.3f, \"write_ms\": %.3f,\n"
	       " \"harvested\": %llu, \"harvests\": %llu, \"all_dirty\": %llu, \"same\": %llu, \"ring_full\": %lu,\n"
	       " \"device_writes\": %lu, \"balloon_drops\": %lu, \"smm_work\": %llu, \"exact\": %s}\n",
	       report.passes, (unsigned long long)report.bytes, (unsigned long long)report.last_pages,
	       (unsigned long long)report.work, report.total, report.pause * 1e3, report.stop * 1e3,
	       report.harvest * 1e3, report.write * 1e3, (unsigned long long)report.stats.harvested,
	       (unsigned long long)report.stats.harvests, (unsigned long long)report.stats.all_dirty,
	       (unsigned long long)report.stats.pages_same, machine.ring_full, machine.device_writes,
	       machine.balloon_drops, (unsigned long long)machine_smm_work(&machine),
	       err ? "false" : "true");
	machine_destroy(&machine);
	close(fd);
	return err ? 1 : 0;
}
