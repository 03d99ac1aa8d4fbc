// SPDX-License-Identifier: GPL-2.0
/*
 * Kinds and states of guest memory: each is saved right, and no page of it is allocated,
 * un-merged or lost by the save.
 */
#include "kvmsnap_test.h"

#include <linux/userfaultfd.h>
#include <sys/swap.h>
#include <sys/syscall.h>

/* Resident pages of a mapping of ours. */
static long resident(const void *mem, size_t bytes)
{
	unsigned long start, end, kib, total = 0;
	bool in = false;
	char line[512];
	FILE *f = fopen("/proc/self/smaps", "r");

	while (f && fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
			in = start < (uintptr_t)mem + bytes && end > (uintptr_t)mem;
		else if (in && sscanf(line, "Rss: %lu", &kib) == 1)
			total += kib;
	}
	if (f)
		fclose(f);
	return (long)(total * 1024 / PAGE);
}

/* A pattern of touched pages: single ones, runs, huge pages' worth. */
static void touch(char *mem, size_t bytes)
{
	fill_pages(mem, 1, 1);
	fill_pages(mem + 100 * PAGE, 50, 2);
	fill_pages(mem + 8 * MIB - PAGE, 2, 3);
	fill_pages(mem + 16 * MIB, 4 * MIB / PAGE, 4);
	fill_pages(mem + bytes - PAGE, 1, 5);
}

TEST(untouched_anonymous_memory_stays_untouched)
{
	size_t bytes = 1024 * MIB;
	struct kvmsnap_stats stats;
	struct setup s;
	long before;

	ASSERT_EQ(0, setup_with(&s, map_anonymous(bytes), bytes, target_create(bytes), 0));
	madvise(s.mem, bytes, MADV_NOHUGEPAGE);
	touch(s.mem, bytes);
	before = resident(s.mem, bytes);
	ASSERT_LT(1000, before);
	ASSERT_EQ(0, save_all(s.session));
	EXPECT_EQ(before, resident(s.mem, bytes));
	ASSERT_EQ(0, kvmsnap_stats(s.session, &stats));
	EXPECT_EQ(before, stats.pages_written);
	EXPECT_EQ(bytes / PAGE - before, stats.pages_untouched);
	EXPECT_TRUE(same_as_file(s.target, 0, s.mem, 32 * MIB));
	setup_close(&s);
}

TEST(huge_pages)
{
	size_t bytes = 64 * MIB;
	struct setup s;

	ASSERT_EQ(0, setup_with(&s, map_anonymous(bytes), bytes, target_create(bytes), 0));
	madvise(s.mem, bytes, MADV_HUGEPAGE);
	touch(s.mem, bytes);
	ASSERT_EQ(0, save_all(s.session));
	EXPECT_TRUE(same_as_file(s.target, 0, s.mem, bytes));
	setup_close(&s);
}

TEST(hugetlbfs)
{
	size_t bytes = 32 * MIB;
	struct kvmsnap_stats stats;
	struct setup s;
	long before;
	int shared;

	ASSERT_EQ(0, run("echo 16 >/proc/sys/vm/nr_hugepages"));
	for (shared = 0; shared < 2; shared++) {
		char *mem = map_memory(bytes, PROT_READ | PROT_WRITE, MAP_ANONYMOUS | MAP_HUGETLB |
				       (shared ? MAP_SHARED : MAP_PRIVATE), -1);

		ASSERT_NE(NULL, mem);
		ASSERT_EQ(0, setup_with(&s, mem, bytes, target_create(bytes), 0));
		fill_pages(s.mem, 3, 1);
		fill_pages(s.mem + 6 * MIB, 3 * MIB / PAGE, 2);
		before = read_number("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages");
		ASSERT_EQ(13, before);
		ASSERT_EQ(0, save_all(s.session));
		EXPECT_EQ(before, read_number("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages"));
		ASSERT_EQ(0, kvmsnap_stats(s.session, &stats));
		EXPECT_EQ(13 * 512, stats.pages_untouched);
		EXPECT_EQ(3 + 3 * MIB / PAGE, stats.pages_written);
		EXPECT_TRUE(same_as_file(s.target, 0, s.mem, bytes));
		setup_close(&s);
	}
	run("echo 0 >/proc/sys/vm/nr_hugepages");
}

/* While a pass must not write yet, it has no reference on memory either. */
TEST(a_slow_pass_lets_memory_go)
{
	static const char path[] = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";
	struct kvmsnap_queue how = { .bytes_per_second = 1 };
	size_t bytes = 32 * MIB;
	struct kvmsnap_wait wait;
	struct setup s;
	char *mem;
	int i;

	ASSERT_EQ(0, run("echo 16 >/proc/sys/vm/nr_hugepages"));
	mem = map_memory(bytes, PROT_READ | PROT_WRITE, MAP_ANONYMOUS | MAP_HUGETLB | MAP_SHARED, -1);
	ASSERT_NE(NULL, mem);
	ASSERT_EQ(0, setup_with(&s, mem, bytes, target_create(bytes), 0));
	fill_pages(mem, bytes / PAGE, 1);
	ASSERT_EQ(0, read_number(path));
	ASSERT_EQ(0, kvmsnap_queue(s.session, &how, NULL));
	usleep(1000000 * slowness());
	ASSERT_EQ(mem, mmap(mem, bytes, PROT_NONE, MAP_ANONYMOUS | MAP_PRIVATE | MAP_FIXED, -1, 0));
	for (i = 0; i < 50 * (int)slowness() && read_number(path) < 16; i++)
		usleep(100000);
	EXPECT_EQ(16, read_number(path));
	EXPECT_EQ(-ETIME, kvmsnap_wait(s.session, 0, &wait));
	ASSERT_EQ(0, kvmsnap_cancel(s.session));
	ASSERT_EQ(0, kvmsnap_wait(s.session, 10 * slowness() * SECOND, &wait));
	EXPECT_EQ(ECANCELED, wait.error);
	setup_close(&s);
	run("echo 0 >/proc/sys/vm/nr_hugepages");
}

FIXTURE(file) {
	size_t bytes;
	struct setup s;
	int fd;
};

FIXTURE_VARIANT(file) {
	enum { MEMORY, DISK, DEVICE } where;
	int flags;
};

FIXTURE_VARIANT_ADD(file, memfd_shared) { MEMORY, MAP_SHARED };
FIXTURE_VARIANT_ADD(file, memfd_private) { MEMORY, MAP_PRIVATE };
FIXTURE_VARIANT_ADD(file, disk_shared) { DISK, MAP_SHARED };
FIXTURE_VARIANT_ADD(file, disk_private) { DISK, MAP_PRIVATE };
FIXTURE_VARIANT_ADD(file, device_shared) { DEVICE, MAP_SHARED };
FIXTURE_VARIANT_ADD(file, device_private) { DEVICE, MAP_PRIVATE };

FIXTURE_SETUP(file)
{
	const char *dm = getenv("KVMSNAP_DM");

	if (variant->where == DEVICE && !dm)
		SKIP(return, "no device-mapper device");
	self->bytes = 64 * MIB;
	self->fd = variant->where == DEVICE ? dm_open(dm) :
		   variant->where == DISK ? target_create(self->bytes) : memfd_create("guest", 0);
	if (variant->where != DEVICE)
		ASSERT_EQ(0, ftruncate(self->fd, (off_t)self->bytes));
	ASSERT_EQ(0, setup_with(&self->s, map_memory(self->bytes, PROT_READ | PROT_WRITE, variant->flags,
						     self->fd),
				self->bytes, target_create(self->bytes), 0));
}

FIXTURE_TEARDOWN(file)
{
	setup_close(&self->s);
	close(self->fd);
}

TEST_F(file, is_saved)
{
	char page[PAGE];

	touch(self->s.mem, self->bytes);
	/* What comes into the file by another way than the mapping. */
	memset(page, 0x5a, PAGE);
	ASSERT_EQ(PAGE, pwrite(self->fd, page, PAGE, 40 * MIB));
	ASSERT_EQ(0, save_all(self->s.session));
	EXPECT_TRUE(same_as_file(self->s.target, 0, self->s.mem, self->bytes));
}

/*
 * Evicted: memory files and private copies to swap, where the page table or the file alone
 * knows of them; pages of a disk's file to that file, from where the save reads them.
 */
TEST_F(file, evicted_pages)
{
	char *copy = malloc(self->bytes);
	long total;

	touch(self->s.mem, self->bytes);
	memcpy(copy, self->s.mem, self->bytes);
	total = resident(self->s.mem, self->bytes);
	ASSERT_EQ(0, swap_on());
	ASSERT_EQ(0, madvise(self->s.mem, self->bytes, MADV_PAGEOUT));
	if (variant->where != MEMORY) {
		ASSERT_EQ(0, fsync(self->fd));
		ASSERT_EQ(0, madvise(self->s.mem, self->bytes, MADV_PAGEOUT));
		ASSERT_EQ(0, run("echo 1 >/proc/sys/vm/drop_caches"));
	}
	EXPECT_GT(total / 2, resident(self->s.mem, self->bytes));
	ASSERT_EQ(0, save_all(self->s.session));
	EXPECT_EQ(0, swap_off());
	EXPECT_TRUE(same_as_file(self->s.target, 0, copy, self->bytes));
	free(copy);
}

/* What nobody has read yet: there is nothing in the page tables, and of a disk nothing in memory. */
TEST_F(file, never_mapped_pages)
{
	char *copy = malloc(self->bytes);

	fill_pages(copy, self->bytes / PAGE, 6);
	ASSERT_EQ((ssize_t)self->bytes, pwrite(self->fd, copy, self->bytes, 0));
	if (variant->where != MEMORY) {
		ASSERT_EQ(0, fsync(self->fd));
		ASSERT_EQ(0, run("echo 1 >/proc/sys/vm/drop_caches"));
	}
	ASSERT_EQ(0, save_all(self->s.session));
	EXPECT_TRUE(same_as_file(self->s.target, 0, copy, self->bytes));
	free(copy);
}

TEST(holes_of_memory_files_stay_holes)
{
	size_t bytes = 64 * MIB;
	struct stat before, after;
	struct setup s;
	int fd, i;

	for (i = 0; i < 2; i++) {
		fd = memfd_create("guest", 0);
		ASSERT_EQ(0, ftruncate(fd, (off_t)bytes));
		ASSERT_EQ(0, setup_with(&s, map_memory(bytes, PROT_READ | PROT_WRITE,
						       i ? MAP_SHARED : MAP_PRIVATE, fd),
					bytes, target_create(bytes), 0));
		touch(s.mem, bytes);
		ASSERT_EQ(0, fstat(fd, &before));
		ASSERT_EQ(0, save_all(s.session));
		ASSERT_EQ(0, fstat(fd, &after));
		EXPECT_EQ(before.st_blocks, after.st_blocks);
		setup_close(&s);
		close(fd);
	}
}

#ifndef KVM_CREATE_GUEST_MEMFD
struct kvm_create_guest_memfd {
	__u64 size, flags, reserved[6];
};

#define KVM_CREATE_GUEST_MEMFD	_IOWR(KVMIO, 0xd4, struct kvm_create_guest_memfd)
#endif

/* A guest_memfd that the host may map, as memory of an ordinary memslot. */
TEST(holes_of_guest_memfd_stay_holes)
{
	size_t bytes = 64 * MIB;
	/* To be mapped, and shared from the start. */
	struct kvm_create_guest_memfd create = { .size = bytes, .flags = 3 };
	int vm = vm_create(NULL, 0), fd = ioctl(vm, KVM_CREATE_GUEST_MEMFD, &create);
	struct setup s;
	long before;

	if (fd < 0)
		SKIP(return, "this kernel has no guest_memfd that can be mapped");
	ASSERT_EQ(0, setup_with(&s, map_memory(bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd), bytes,
				target_create(bytes), 0));
	touch(s.mem, bytes);
	before = resident(s.mem, bytes);
	EXPECT_LT(before, (long)(8 * MIB / PAGE));
	ASSERT_EQ(0, save_all(s.session));
	EXPECT_EQ(before, resident(s.mem, bytes));
	EXPECT_TRUE(same_as_file(s.target, 0, s.mem, bytes));
	setup_close(&s);
	close(fd);
	close(vm);
}

TEST(swapped_anonymous_pages)
{
	size_t bytes = 64 * MIB;
	struct kvmsnap_stats stats;
	struct setup s;
	char *copy = malloc(bytes);
	long total;

	ASSERT_EQ(0, setup_with(&s, map_anonymous(bytes), bytes, target_create(bytes), 0));
	madvise(s.mem, bytes, MADV_NOHUGEPAGE);
	touch(s.mem, bytes);
	memcpy(copy, s.mem, bytes);
	total = resident(s.mem, bytes);
	ASSERT_EQ(0, swap_on());
	ASSERT_EQ(0, madvise(s.mem, bytes, MADV_PAGEOUT));
	EXPECT_GT(total / 2, resident(s.mem, bytes));
	ASSERT_EQ(0, save_all(s.session));
	ASSERT_EQ(0, kvmsnap_stats(s.session, &stats));
	EXPECT_LE(1000, stats.pages_written);
	EXPECT_EQ(0, swap_off());
	EXPECT_TRUE(same_as_file(s.target, 0, copy, bytes));
	free(copy);
	setup_close(&s);
}

TEST(zero_page_mappings)
{
	struct kvmsnap_stats stats;
	volatile char sum = 0;
	struct setup s;
	size_t i;

	ASSERT_EQ(0, setup_with(&s, map_anonymous(16 * MIB), 16 * MIB, target_create(16 * MIB), 0));
	madvise(s.mem + 8 * MIB, 8 * MIB, MADV_HUGEPAGE);
	for (i = 0; i < 16 * MIB; i += PAGE)
		sum += s.mem[i];
	ASSERT_EQ(0, save_all(s.session));
	ASSERT_EQ(0, kvmsnap_stats(s.session, &stats));
	EXPECT_EQ(0, stats.pages_written);
	setup_close(&s);
}

TEST(unmapped_in_the_middle)
{
	struct kvmsnap_wait wait;
	struct setup s;

	ASSERT_EQ(0, setup_with(&s, map_anonymous(16 * MIB), 16 * MIB, target_create(16 * MIB), 0));
	fill_pages(s.mem, 16 * MIB / PAGE, 1);
	ASSERT_EQ(0, munmap(s.mem + 5 * MIB + 3 * PAGE, 7 * PAGE));
	ASSERT_EQ(0, kvmsnap_queue_all(s.session, NULL));
	ASSERT_EQ(0, kvmsnap_wait(s.session, PASS_LIMIT, &wait));
	EXPECT_EQ(EFAULT, wait.error);
	EXPECT_EQ(5 * MIB + 3 * PAGE, wait.error_offset);
	setup_close(&s);
}

TEST(unreadable_in_the_middle)
{
	struct kvmsnap_wait wait;
	struct setup s;

	ASSERT_EQ(0, setup_with(&s, map_anonymous(16 * MIB), 16 * MIB, target_create(16 * MIB), 0));
	fill_pages(s.mem, 16 * MIB / PAGE, 1);
	ASSERT_EQ(0, mprotect(s.mem + 9 * MIB, PAGE, PROT_NONE));
	ASSERT_EQ(0, kvmsnap_queue_all(s.session, NULL));
	ASSERT_EQ(0, kvmsnap_wait(s.session, PASS_LIMIT, &wait));
	EXPECT_EQ(EFAULT, wait.error);
	EXPECT_EQ(9 * MIB, wait.error_offset);
	/* Readable again, it works. */
	ASSERT_EQ(0, mprotect(s.mem + 9 * MIB, PAGE, PROT_READ));
	ASSERT_EQ(0, kvmsnap_set_target(s.session, s.target));
	EXPECT_EQ(0, save_all(s.session));
	EXPECT_TRUE(same_as_file(s.target, 0, s.mem, s.bytes));
	setup_close(&s);
}

TEST(memory_file_that_was_cut_short)
{
	struct kvmsnap_wait wait;
	struct setup s;
	int fd = memfd_create("guest", 0);

	ASSERT_EQ(0, ftruncate(fd, 16 * MIB));
	ASSERT_EQ(0, setup_with(&s, map_memory(16 * MIB, PROT_READ | PROT_WRITE, MAP_SHARED, fd), 16 * MIB,
				target_create(16 * MIB), 0));
	fill_pages(s.mem, 16 * MIB / PAGE, 1);
	ASSERT_EQ(0, ftruncate(fd, 15 * MIB));
	ASSERT_EQ(0, kvmsnap_queue_all(s.session, NULL));
	ASSERT_EQ(0, kvmsnap_wait(s.session, PASS_LIMIT, &wait));
	EXPECT_EQ(EFAULT, wait.error);
	EXPECT_EQ(15 * MIB, wait.error_offset);
	setup_close(&s);
	close(fd);
}

TEST(merged_pages_stay_merged)
{
	size_t bytes = 16 * MIB;
	long merged = 0, i;
	struct setup s;

	if (access("/sys/kernel/mm/ksm/run", W_OK))
		SKIP(return, "no KSM in this kernel");
	ASSERT_EQ(0, setup_with(&s, map_anonymous(bytes), bytes, target_create(bytes), 0));
	for (i = 0; i < (long)(bytes / PAGE); i++)
		fill_pages(s.mem + i * PAGE, 1, i % 4);
	ASSERT_EQ(0, madvise(s.mem, bytes, MADV_MERGEABLE));
	ASSERT_EQ(0, run("cd /sys/kernel/mm/ksm && echo 10000 >pages_to_scan && echo 1 >sleep_millisecs && echo 1 >run"));
	for (i = 0; i < 600 && merged < 4000; i++) {
		usleep(100000);
		merged = read_number("/sys/kernel/mm/ksm/pages_sharing");
	}
	run("echo 0 >/sys/kernel/mm/ksm/run");
	merged = read_number("/sys/kernel/mm/ksm/pages_sharing");
	ASSERT_LE(4000, merged);
	ASSERT_EQ(0, save_all(s.session));
	EXPECT_EQ(merged, read_number("/sys/kernel/mm/ksm/pages_sharing"));
	EXPECT_TRUE(same_as_file(s.target, 0, s.mem, bytes));
	setup_close(&s);
}

/* Pages that only a userfaultfd handler could fill: an error at once, no hung worker. */
TEST(userfaultfd)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	struct kvmsnap_wait wait;
	struct setup s;
	double began;
	int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);

	ASSERT_LE(0, uffd);
	ASSERT_EQ(0, ioctl(uffd, UFFDIO_API, &api));
	ASSERT_EQ(0, setup_with(&s, map_anonymous(16 * MIB), 16 * MIB, target_create(16 * MIB), 0));
	madvise(s.mem, s.bytes, MADV_NOHUGEPAGE);
	/* What is left is one worker's: two would fail at once, and either be told of. */
	fill_pages(s.mem, 15 * MIB / PAGE, 1);
	reg.range.start = (uintptr_t)s.mem;
	reg.range.len = s.bytes;
	ASSERT_EQ(0, ioctl(uffd, UFFDIO_REGISTER, &reg));
	began = seconds();
	ASSERT_EQ(0, kvmsnap_queue_all(s.session, NULL));
	ASSERT_EQ(0, kvmsnap_wait(s.session, 30 * slowness() * SECOND, &wait));
	EXPECT_EQ(EBUSY, wait.error);
	EXPECT_EQ(15 * MIB, wait.error_offset);
	EXPECT_GT(10 * slowness(), seconds() - began);
	close(uffd);
	setup_close(&s);
}

TEST(target_is_the_guests_own_memory)
{
	int fd = target_create(16 * MIB);
	struct setup s;

	ASSERT_EQ(0, setup_with(&s, map_memory(16 * MIB, PROT_READ | PROT_WRITE, MAP_SHARED, fd), 16 * MIB,
				dup(fd), 0));
	EXPECT_EQ(-EDEADLK, kvmsnap_queue_all(s.session, NULL));
	setup_close(&s);
	close(fd);
}

/* Shared with a child by fork(): the save copies nothing. */
TEST(forked_memory_stays_shared)
{
	size_t bytes = 16 * MIB;
	struct setup s;
	long free_before, free_after;
	pid_t child;

	ASSERT_EQ(0, setup_with(&s, map_anonymous(bytes), bytes, target_create(bytes), 0));
	madvise(s.mem, bytes, MADV_NOHUGEPAGE);
	fill_pages(s.mem, bytes / PAGE, 1);
	child = fork();
	if (!child) {
		pause();
		_exit(0);
	}
	ASSERT_EQ(0, run("grep -h AnonPages /proc/meminfo | tr -dc 0-9 >/tmp/anon"));
	free_before = read_number("/tmp/anon");
	ASSERT_EQ(0, save_all(s.session));
	ASSERT_EQ(0, run("grep -h AnonPages /proc/meminfo | tr -dc 0-9 >/tmp/anon"));
	free_after = read_number("/tmp/anon");
	EXPECT_GT(4096, free_after - free_before) TH_LOG("KiB of anonymous memory");
	EXPECT_TRUE(same_as_file(s.target, 0, s.mem, bytes));
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
	setup_close(&s);
}

TEST_HARNESS_MAIN
