// SPDX-License-Identifier: GPL-2.0
/*
 * First and only process of a test guest: fills memory with a pattern that it can check,
 * says "guest: ready", then counts on the console, checking a part of the pattern at each
 * step.  What it prints after a restore shows that it went on, and that its memory is
 * what it left there.
 *
 * Kernel arguments: fill=MIB (64) pattern memory; zero=MIB (8) memory written and zeroed
 * again; tick=MS (200) between steps; seed=N (1); thp=0|1 use huge pages (1); writers=N (0)
 * processes that rewrite memory, MIB of it each as write=MIB (8) says, and check what they find
 * there; rest=MS (0) that they sleep after every 16 pages; disk=0|1 read the first disk into memory,
 * past the page cache (0); files=0|1 replace files of the ext4 on it, and check what they hold (0);
 * net=0|1 receive what comes by eth0 (0); port=KIB write as much to the first virtio-serial port, as
 * fast as that goes, bytes of which each is the one before plus 1, as 0 is 250 (0); video=0|1 change the
 * video mode and write into the frame buffer again and again (0); online=0|1 use CPUs as they are
 * plugged in (0); symbol=NAME say where it is in the kernel.
 *
 * Modules in /modules are loaded first, in the order of their names.
 */
#include <arpa/inet.h>
#include <dirent.h>
#include <fcntl.h>
#include <linux/if_ether.h>
#include <net/if.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096UL
/* MiB for page tables, huge pages in the making, and what the host takes and gives. */
#define SPARE 12

static char cmdline[4096];

/* What the processes have done. */
static volatile struct counts {
	unsigned long bad, writes, reads, files, modes;
} *counts;

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

static int check(const uint64_t *page, size_t from, uint64_t key)
{
	size_t i;

	for (i = from; i < PAGE / 8; i++)
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

/*
 * Rewrite pages at random: new content, other content and the old again, or zeros.  A
 * page's first word and a table elsewhere tell which content it has: where they disagree,
 * or the content is another, one of them is from another time.
 */
static void writer(uint64_t seed, size_t pages, int thp, useconds_t rest)
{
	uint64_t *mem = (uint64_t *)map(pages * PAGE, thp);
	uint64_t *number = (uint64_t *)map(pages * 8, 0);
	static uint64_t zeros[PAGE / 8], copy[PAGE / 8];
	uint64_t n, i, *page;
	int ok;

	for (n = 1;; n++) {
		i = mix(seed + n) % pages;
		page = mem + i * (PAGE / 8);
		if (number[i])
			ok = page[0] == number[i] && check(page, 1, mix(seed ^ number[i]));
		else
			ok = !memcmp(page, zeros, PAGE);
		if (!ok)
			__atomic_fetch_add(&counts->bad, 1, __ATOMIC_RELAXED);
		switch (mix(~n) % 8) {
		case 0:
			memset(page, 0, PAGE);
			number[i] = 0;
			break;
		case 1:
			memcpy(copy, page, PAGE);
			memset(page, (int)n, PAGE);
			memcpy(page, copy, PAGE);
			break;
		default:
			fill(page, mix(seed ^ n));
			page[0] = n;
			number[i] = n;
		}
		__atomic_fetch_add(&counts->writes, 1, __ATOMIC_RELAXED);
		if (rest && n % 16 == 0)
			usleep(rest);
	}
}

/* Have the disk written into memory, by the host: 64 buffers of 64 KiB in turn. */
static void reader(uint64_t seed)
{
	size_t bytes = 64 << 10;
	char *mem = map(64 * bytes, 0);
	off_t blocks;
	uint64_t n;
	int fd;

	while ((fd = open("/dev/vda", O_RDONLY | O_DIRECT)) < 0)
		usleep(100000);
	blocks = lseek(fd, 0, SEEK_END) / (off_t)bytes;
	for (n = 0;; n++) {
		if (pread(fd, mem + n % 64 * bytes, bytes,
			  (off_t)(mix(seed + n) % (uint64_t)blocks) * (off_t)bytes) == (ssize_t)bytes)
			counts->reads++;
		else
			counts->bad++;
		usleep(2000);
	}
}

/* Is that what the file @path is, which was written as the @n-th? */
static bool check_file(const char *path, uint64_t seed, uint64_t n)
{
	uint64_t page[PAGE / 8], pages = 0;
	int fd = open(path, O_RDONLY);
	ssize_t got;

	if (fd < 0)
		return false;
	/* From the disk, not as it was left in memory. */
	posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
	while ((got = read(fd, page, PAGE)) == (ssize_t)PAGE && check(page, 0, mix(seed ^ n) + pages))
		pages++;
	close(fd);
	return got == 0 && pages == 1 + n % 32;
}

/* Replace files by others, durably, as databases do, and read what is there. */
static void files(uint64_t seed)
{
	uint64_t page[PAGE / 8], number[64] = { 0 }, n, i, j;
	char path[32];
	bool ok;
	int fd;

	mkdir("/mnt", 0755);
	while (mount("/dev/vda", "/mnt", "ext4", 0, NULL) < 0)
		usleep(100000);
	for (n = 1;; n++) {
		i = mix(seed + n) % 64;
		snprintf(path, sizeof(path), "/mnt/%d", (int)i);
		ok = !number[i] || check_file(path, seed, number[i]);
		fd = open("/mnt/new", O_WRONLY | O_CREAT | O_TRUNC, 0600);
		for (j = 0; j < 1 + n % 32; j++) {
			fill(page, mix(seed ^ n) + j);
			ok = ok && write(fd, page, PAGE) == (ssize_t)PAGE;
		}
		ok = ok && fsync(fd) == 0 && close(fd) == 0 && rename("/mnt/new", path) == 0;
		number[i] = n;
		if (!ok)
			__atomic_fetch_add(&counts->bad, 1, __ATOMIC_RELAXED);
		counts->files++;
		usleep(5000);
	}
}

/* Have packets written into memory, by the host, and keep the last of them. */
static void receiver(void)
{
	char *mem = map(64 * PAGE, 0);
	struct ifreq ifr = { .ifr_name = "eth0" };
	int fd = socket(AF_PACKET, SOCK_RAW, htons(ETH_P_ALL));
	unsigned long n;

	while (ioctl(fd, SIOCGIFFLAGS, &ifr) < 0)
		usleep(100000);
	ifr.ifr_flags |= IFF_UP | IFF_PROMISC;
	ioctl(fd, SIOCSIFFLAGS, &ifr);
	for (n = 0;; n++)
		if (recv(fd, mem + n % 64 * PAGE, PAGE, 0) > 0)
			counts->reads++;
}

/* Have the host read memory, whenever it likes. */
static void port(uint64_t seed, uint64_t count)
{
	static uint8_t bytes[3000];
	size_t i, length, done;
	uint64_t n, sum = 0;
	uint8_t next = 0;
	ssize_t wrote;
	int fd;

	while ((fd = open("/dev/vport0p1", O_WRONLY)) < 0)
		usleep(100000);
	for (n = 0; sum < count; n++) {
		length = 1 + mix(seed + n) % sizeof(bytes);
		for (i = 0; i < length; i++) {
			bytes[i] = next;
			next = next == 250 ? 0 : next + 1;
		}
		for (done = 0; done < length; done += (size_t)wrote) {
			wrote = write(fd, bytes + done, length - done);
			if (wrote < 0) {
				wrote = 0;
				usleep(10000);
			}
		}
		sum += length;
	}
	for (;;)
		pause();
}

/* Wait for a resource of the VGA device, and map its first @bytes. */
static volatile char *map_vga(int nr, size_t bytes)
{
	char path[64];
	void *p;
	int fd;

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/0000:00:02.0/resource%d", nr);
	while ((fd = open(path, O_RDWR)) < 0)
		usleep(100000);
	p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	return p;
}

/*
 * Switch between video modes, and the legacy window to RAM and back, both of which change what
 * memory is where (QEMU docs/specs/standard-vga.rst); draw in between.
 */
static void video(uint64_t seed)
{
	size_t bytes = 16 << 20, pages = bytes / PAGE;
	uint64_t *mem = (uint64_t *)map_vga(0, bytes), n, i;
	volatile char *io = map_vga(2, PAGE);
	volatile uint16_t *vbe = (volatile uint16_t *)(io + 0x500);
	volatile uint16_t *sequencer = (volatile uint16_t *)(io + 0x404);

	/* The writers are busy all the time, and would let it have a turn twice a second. */
	setpriority(PRIO_PROCESS, 0, -10);
	for (n = 1;; n++) {
		vbe[4] = 0;
		vbe[1] = n % 2 ? 640 : 800;
		vbe[2] = n % 2 ? 480 : 600;
		vbe[3] = n % 3 ? 32 : 16;
		vbe[4] = n % 4 ? 0xc1 : 0;		/* enabled, linear, not cleared; or text */
		*sequencer = 0x0f02;			/* all planes */
		*sequencer = n % 2 ? 0x0e04 : 0x0604;	/* chained, or not */
		i = (256 + mix(seed + n) % (pages - 256)) * (PAGE / 8);	/* past what text uses */
		fill(mem + i, n);
		if (!check(mem + i, 0, n))
			__atomic_fetch_add(&counts->bad, 1, __ATOMIC_RELAXED);
		counts->modes++;
		usleep(20000);
	}
}

/* Nobody else here does it. */
static void online(void)
{
	char path[64];
	int i, fd;

	for (;; usleep(100000)) {
		for (i = 1; i < 8; i++) {
			snprintf(path, sizeof(path), "/sys/devices/system/cpu/cpu%d/online", i);
			fd = open(path, O_WRONLY);
			if (fd >= 0 && write(fd, "1", 1) < 0)
				printf("guest: CPU %d stays offline\n", i);
			close(fd);
		}
	}
}

static void load_modules(void)
{
	struct dirent **names;
	int i, fd, n = scandir("/modules", &names, NULL, alphasort);
	char path[300];

	for (i = 0; i < n; i++) {
		snprintf(path, sizeof(path), "/modules/%s", names[i]->d_name);
		fd = open(path, O_RDONLY);
		if (names[i]->d_name[0] != '.' && syscall(SYS_finit_module, fd, "", 0) < 0)
			printf("guest: FAILED to load %s\n", path);
		close(fd);
	}
}

/* MiB that processes may take before the kernel reclaims what it needs. */
static unsigned long available(void)
{
	FILE *in = fopen("/proc/meminfo", "r");
	unsigned long kib = 0;
	char line[128];

	while (in && fgets(line, sizeof(line), in))
		sscanf(line, "MemAvailable: %lu", &kib);
	if (in)
		fclose(in);
	return kib >> 10;
}

/* "guest: symbol ADDRESS NAME". */
static void print_symbol(void)
{
	char line[512], wanted[128], *name, *p = strstr(cmdline, "symbol=");
	FILE *in = p ? fopen("/proc/kallsyms", "r") : NULL;

	if (!in || sscanf(p, "symbol=%127s", wanted) != 1)
		return;
	while (fgets(line, sizeof(line), in)) {
		name = strrchr(line, ' ');
		if (name && strlen(wanted) + 2 == strlen(name) && !strncmp(name + 1, wanted, strlen(wanted)))
			printf("guest: symbol %.16s %s\n", line, wanted);
	}
	fclose(in);
}

/* No more than was asked for: each character is an exit to QEMU. */
static void report(unsigned long step)
{
	printf("guest: tick %lu bad %lu", step, counts->bad);
	if (arg("writers", 0))
		printf(" writes %lu", counts->writes);
	if (arg("disk", 0) || arg("net", 0))
		printf(" reads %lu", counts->reads);
	if (arg("files", 0))
		printf(" files %lu", counts->files);
	if (arg("video", 0))
		printf(" modes %lu", counts->modes);
	if (arg("online", 0))
		printf(" cpus %ld", sysconf(_SC_NPROCESSORS_ONLN));
	printf("\n");
}

int main(void)
{
	unsigned long pages, zero, seed, tick, step, wanted, i;
	struct timespec wait;
	char *mem, *zeros;
	int fd, thp;

	mkdir("/dev", 0755);
	mkdir("/proc", 0755);
	mkdir("/sys", 0755);
	mount("dev", "/dev", "devtmpfs", 0, NULL);
	mount("proc", "/proc", "proc", 0, NULL);
	mount("sys", "/sys", "sysfs", 0, NULL);
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

	load_modules();
	print_symbol();
	/* Killing the writers, or all of it, is what the kernel would do later. */
	wanted = (pages >> 8) + (zero >> 20) + arg("writers", 0) * (arg("write", 8) + 2) + SPARE;
	if (available() < wanted) {
		printf("guest: FAILED: %lu MiB of memory free, %lu needed\n", available(), wanted);
		for (;;)
			pause();
	}
	counts = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	mem = map(pages * PAGE + 1, thp);
	for (i = 0; i < pages; i++)
		fill((uint64_t *)(mem + i * PAGE), mix(seed + i));
	zeros = map(zero + 1, thp);
	memset(zeros, 0xa5, zero);
	memset(zeros, 0, zero);
	for (i = 0; i < arg("writers", 0); i++)
		if (fork() == 0)
			writer(mix(seed + i), arg("write", 8) << 20 >> 12, (int)i % 2,
			       (useconds_t)arg("rest", 0) * 1000);
	if (arg("disk", 0) && fork() == 0)
		reader(seed);
	if (arg("files", 0) && fork() == 0)
		files(seed);
	if (arg("net", 0) && fork() == 0)
		receiver();
	if (arg("port", 0) && fork() == 0)
		port(seed, arg("port", 0) << 10);
	if (arg("video", 0) && fork() == 0)
		video(seed);
	if (arg("online", 0) && fork() == 0)
		online();
	/* The one that reports comes first. */
	setpriority(PRIO_PROCESS, 0, -15);
	printf("guest: ready, %lu pages, %lu MiB free\n", pages, available());

	wait.tv_sec = tick / 1000;
	wait.tv_nsec = tick % 1000 * 1000000;
	for (step = 1;; step++) {
		/* A sixteenth of the pages each step. */
		for (i = step % 16; i < pages; i += 16)
			if (!check((uint64_t *)(mem + i * PAGE), 0, mix(seed + i)))
				__atomic_fetch_add(&counts->bad, 1, __ATOMIC_RELAXED);
		report(step);
		nanosleep(&wait, NULL);
	}
}
