// SPDX-License-Identifier: GPL-2.0
/*
 * First and only process of a test guest: fills memory with a pattern that it can check,
 * says "guest: ready", then counts on the console, checking a part of the pattern at each
 * step.  What it prints after a restore shows that it went on, and that its memory is
 * what it left there.
 *
 * Kernel arguments: fill=MIB (64) pattern memory; zero=MIB (8) memory written and zeroed
 * again; tick=MS (200) between steps; seed=N (1); thp=0|1 use huge pages (1).
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096UL

static char cmdline[4096];

static unsigned long arg(const char *name, unsigned long value)
{
	const char *p = cmdline;
	size_t len = strlen(name);

	while ((p = strstr(p, name))) {
		if ((p == cmdline || p[-1] == ' ') && p[len] == '=')
			return strtoul(p + len + 1, NULL, 0);
		p += len;
	}
	return value;
}

/* splitmix64 */
static uint64_t mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15;
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
	x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
	return x ^ (x >> 31);
}

static void fill(uint64_t *page, uint64_t key)
{
	size_t i;

	for (i = 0; i < PAGE / 8; i++)
		page[i] = key + i * 0x100000001b3;
}

static int check(const uint64_t *page, uint64_t key)
{
	size_t i;

	for (i = 0; i < PAGE / 8; i++)
		if (page[i] != key + i * 0x100000001b3)
			return 0;
	return 1;
}

static char *map(size_t bytes, int thp)
{
	char *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED) {
		printf("guest: FAILED to map %zu bytes\n", bytes);
		for (;;)
			pause();
	}
	madvise(p, bytes, thp ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
	return p;
}

int main(void)
{
	unsigned long pages, zero, seed, tick, step, i, bad = 0;
	struct timespec wait;
	char *mem, *zeros;
	int fd, thp;

	mkdir("/dev", 0755);
	mkdir("/proc", 0755);
	mount("dev", "/dev", "devtmpfs", 0, NULL);
	mount("proc", "/proc", "proc", 0, NULL);
	fd = open("/dev/console", O_RDWR);
	if (fd >= 0) {
		dup2(fd, 0);
		dup2(fd, 1);
		dup2(fd, 2);
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	fd = open("/proc/cmdline", O_RDONLY);
	if (fd >= 0 && read(fd, cmdline, sizeof(cmdline) - 1) < 0)
		cmdline[0] = 0;

	pages = arg("fill", 64) << 20 >> 12;
	zero = arg("zero", 8) << 20;
	seed = mix(arg("seed", 1));
	tick = arg("tick", 200);
	thp = arg("thp", 1);

	mem = map(pages * PAGE + 1, thp);
	for (i = 0; i < pages; i++)
		fill((uint64_t *)(mem + i * PAGE), mix(seed + i));
	zeros = map(zero + 1, thp);
	memset(zeros, 0xa5, zero);
	memset(zeros, 0, zero);
	printf("guest: ready, %lu pages\n", pages);

	wait.tv_sec = tick / 1000;
	wait.tv_nsec = tick % 1000 * 1000000;
	for (step = 1;; step++) {
		/* A sixteenth of the pages each step. */
		for (i = step % 16; i < pages; i += 16)
			if (!check((uint64_t *)(mem + i * PAGE), mix(seed + i)))
				bad++;
		printf("guest: tick %lu bad %lu\n", step, bad);
		nanosleep(&wait, NULL);
	}
}
