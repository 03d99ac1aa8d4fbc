/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the test programs share: a real VM with memory, a session bound to it, a target.
 *
 * Environment, set by tools/testing/test: KVMSNAP_DIR, a folder on a disk's file system;
 * KVMSNAP_DM, the name of a device-mapper device that tests may reload, suspend and resume;
 * KVMSNAP_SLOW, how many times as long as usual everything may take.
 */
#ifndef KVMSNAP_TEST_H
#define KVMSNAP_TEST_H

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* For limits: how many times as slow as usual it may be. */
static inline unsigned int slowness(void)
{
	int slow = getenv("KVMSNAP_SLOW") ? atoi(getenv("KVMSNAP_SLOW")) : 1;

	return slow > 1 ? (unsigned int)slow : 1;
}

static inline unsigned int slow_alarm(unsigned int seconds)
{
	return alarm(seconds * slowness());
}

/* The harness's limits are constants, and it keeps them with alarm(). */
#define alarm slow_alarm
#include "kselftest_harness.h"
#undef alarm

/* Seconds a test: the machine may be an emulated one. */
#undef TEST_TIMEOUT_DEFAULT
#define TEST_TIMEOUT_DEFAULT 240

#include "kvmsnap.h"

#define PAGE	4096UL
#define MIB	(1UL << 20)
#define SECOND	1000000000LL

/* Nanoseconds within which a pass that nothing hinders has ended. */
#define PASS_LIMIT	(slowness() * 60 * SECOND)

/* ioctl() as 0 or a positive errno. */
static inline int call(int fd, unsigned long number, void *arg)
{
	return ioctl(fd, number, arg) < 0 ? errno : 0;
}

static inline const char *test_dir(void)
{
	return getenv("KVMSNAP_DIR") ? getenv("KVMSNAP_DIR") : "/tmp";
}

/* A VM of this process with memory at guest address 0, in one memslot.  -1 on failure. */
static inline int vm_create(void *mem, size_t bytes)
{
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC), vm;
	struct kvm_userspace_memory_region slot = {
		.slot = 0, .guest_phys_addr = 0, .memory_size = bytes,
		.userspace_addr = (uintptr_t)mem,
	};

	if (kvm < 0)
		return -1;
	vm = ioctl(kvm, KVM_CREATE_VM, 0);
	close(kvm);
	if (vm >= 0 && mem && ioctl(vm, KVM_SET_USER_MEMORY_REGION, &slot) < 0) {
		close(vm);
		return -1;
	}
	return vm;
}

static inline void *map_memory(size_t bytes, int prot, int flags, int fd)
{
	void *p = mmap(NULL, bytes, prot, flags | MAP_NORESERVE, fd, 0);

	return p == MAP_FAILED ? NULL : p;
}

static inline void *map_anonymous(size_t bytes)
{
	return map_memory(bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
}

/* An unnamed file of that size on the test's disk. */
static inline int target_create(size_t bytes)
{
	char path[256];
	int fd;

	snprintf(path, sizeof(path), "%s/target.XXXXXX", test_dir());
	fd = mkostemp(path, O_CLOEXEC);
	if (fd < 0)
		return -1;
	unlink(path);
	if (ftruncate(fd, (off_t)bytes) < 0) {
		close(fd);
		return -1;
	}
	return fd;
}

/* Fill pages with something that depends on @seed and on the page. */
static inline void fill_pages(void *mem, size_t pages, uint64_t seed)
{
	uint64_t *p = mem;
	size_t i;

	for (i = 0; i < pages * (PAGE / 8); i++)
		p[i] = (seed + i / (PAGE / 8) + 1) * 0x9e3779b97f4a7c15 + i;
}

/* Queue all and wait for its end: 0, the pass's error, or the errno of the call. */
static inline int save_all(int session)
{
	struct kvmsnap_wait wait;
	int err = kvmsnap_queue_all(session, NULL);

	if (err)
		return -err;
	err = kvmsnap_wait(session, PASS_LIMIT, &wait);
	return err ? -err : wait.error;
}

/* Is the target's content at @offset the same as memory? */
static inline bool same_as_file(int fd, uint64_t offset, const void *mem, size_t bytes)
{
	char *buf = malloc(bytes);
	bool same = buf && pread(fd, buf, bytes, (off_t)offset) == (ssize_t)bytes &&
		    !memcmp(buf, mem, bytes);

	free(buf);
	return same;
}

static inline bool bit(const uint8_t *bitmap, uint64_t page)
{
	return bitmap[page / 8] >> (page % 8) & 1;
}

/* Run a shell command; its exit status. */
static inline int run(const char *fmt, ...)
{
	char command[1024];
	va_list ap;
	int status;

	va_start(ap, fmt);
	vsnprintf(command, sizeof(command), fmt, ap);
	va_end(ap);
	status = system(command);
	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static inline int swap_on(void)
{
	return run("cd %s && rm -f swap && dd if=/dev/zero of=swap bs=1M count=96 status=none && "
		   "chmod 600 swap && mkswap -q swap && swapon swap", test_dir());
}

static inline int swap_off(void)
{
	return run("cd %s && swapoff swap && rm swap", test_dir());
}

/*
 * Load another table into the test's device.  @table goes through the shell's printf: $dev
 * is the disk below, which every table must use, $size its sectors.
 */
static inline int dm_load(const char *dm, const char *table)
{
	return run("dev=$(dmsetup deps -o devno %s | tr -d ' ()' | tr , : | cut -d: -f2-); "
		   "size=$(cat /sys/dev/block/$dev/size); modprobe -q dm-flakey; "
		   "dmsetup suspend %s && printf \"%s\" | dmsetup reload %s && dmsetup resume %s",
		   dm, dm, table, dm, dm);
}

#define DM_LINEAR "0 $size linear $dev 0\\n"

static inline int dm_open(const char *dm)
{
	char path[64];

	snprintf(path, sizeof(path), "/dev/mapper/%s", dm);
	return open(path, O_RDWR | O_CLOEXEC);
}

static inline long read_number(const char *path)
{
	char buf[64] = "";
	int fd = open(path, O_RDONLY);

	if (fd < 0 || read(fd, buf, sizeof(buf) - 1) < 0)
		buf[0] = 0;
	close(fd);
	return buf[0] ? atol(buf) : -1;
}

/* A counter of /proc/vmstat, or -1. */
static inline long vm_event(const char *name)
{
	char line[128], found[64];
	FILE *f = fopen("/proc/vmstat", "r");
	long value, result = -1;

	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "%63s %ld", found, &value) == 2 && !strcmp(found, name))
			result = value;
	if (f)
		fclose(f);
	return result;
}

static inline long module_references(void)
{
	return read_number("/sys/module/kvmsnap/refcnt");
}

static inline double seconds(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

/* A session bound to a VM of ours with a target; the memory is one region at offset 0. */
struct setup {
	char *mem;
	size_t bytes;
	int vm, session, target, region;
};

static inline int setup_with(struct setup *s, void *mem, size_t bytes, int target, uint32_t flags)
{
	*s = (struct setup){ .mem = mem, .bytes = bytes, .target = target, .vm = -1, .session = -1 };
	if (!mem || target < 0)
		return -1;
	s->vm = vm_create(mem, bytes);
	s->session = kvmsnap_open(NULL);
	if (s->vm < 0 || s->session < 0 || kvmsnap_bind_vm(s->session, s->vm) ||
	    kvmsnap_set_target(s->session, target))
		return -1;
	s->region = kvmsnap_add_region(s->session, (uintptr_t)mem, bytes, 0, flags);
	return s->region < 0 ? -1 : 0;
}

static inline void setup_close(struct setup *s)
{
	close(s->session);
	close(s->vm);
	close(s->target);
	munmap(s->mem, s->bytes);
}

#endif
