// SPDX-License-Identifier: GPL-2.0
/* What gets written where: contents, holes, bitmaps, figures; and what errors do. */
#include "kvmsnap_test.h"

#define BYTES	(32 * MIB)
#define PAGES	(BYTES / PAGE)

FIXTURE(io) {
	struct setup s;
	uint8_t bitmap[PAGES / 8];
};

FIXTURE_SETUP(io)
{
	ASSERT_EQ(0, setup_with(&self->s, map_anonymous(BYTES), BYTES, target_create(BYTES), 0));
}

FIXTURE_TEARDOWN(io)
{
	setup_close(&self->s);
}

TEST_F(io, all_pages)
{
	struct kvmsnap_stats stats;

	fill_pages(self->s.mem, PAGES, 1);
	ASSERT_EQ(0, save_all(self->s.session));
	EXPECT_TRUE(same_as_file(self->s.target, 0, self->s.mem, BYTES));
	ASSERT_EQ(0, kvmsnap_stats(self->s.session, &stats));
	EXPECT_EQ(KVMSNAP_STATE_IDLE, stats.state);
	EXPECT_EQ(PAGES, stats.pages_total);
	EXPECT_EQ(PAGES, stats.pages_done);
	EXPECT_EQ(PAGES, stats.pages_written);
	EXPECT_EQ(BYTES, stats.bytes_written);
	EXPECT_EQ(0, stats.pages_zero);
	EXPECT_EQ(0, stats.in_flight);
	EXPECT_LT(0, stats.max_in_flight);
	EXPECT_LT(0, stats.elapsed_ns);
	/* Contiguous pages go as large writes, of a chunk each. */
	EXPECT_EQ(BYTES / (2 * MIB), stats.requests);
}

TEST_F(io, zero_and_untouched_pages_take_no_blocks)
{
	struct kvmsnap_stats stats;
	struct stat st;
	size_t i;

	/* One page in eight with content, one in eight written with zeros, the rest untouched. */
	madvise(self->s.mem, BYTES, MADV_NOHUGEPAGE);
	for (i = 0; i < PAGES; i += 8) {
		fill_pages(self->s.mem + i * PAGE, 1, i);
		memset(self->s.mem + (i + 3) * PAGE, 0, PAGE);
	}
	ASSERT_EQ(0, save_all(self->s.session));
	ASSERT_EQ(0, kvmsnap_stats(self->s.session, &stats));
	EXPECT_EQ(PAGES / 8, stats.pages_written);
	EXPECT_EQ(PAGES / 8, stats.pages_zero);
	EXPECT_EQ(PAGES / 8 * 6, stats.pages_untouched);
	EXPECT_EQ(PAGES, stats.pages_done);

	ASSERT_EQ(0, kvmsnap_get_bitmap(self->s.session, 0, 0, PAGES, self->bitmap));
	for (i = 0; i < PAGES; i++)
		if (bit(self->bitmap, i) != (i % 8 == 0))
			break;
	EXPECT_EQ(PAGES, i);
	EXPECT_TRUE(same_as_file(self->s.target, 0, self->s.mem, BYTES));
	ASSERT_EQ(0, fsync(self->s.target));
	ASSERT_EQ(0, fstat(self->s.target, &st));
	/* Room for the file system's own extents, but not for the other pages. */
	EXPECT_GT(BYTES / 4, st.st_blocks * 512UL);
}

TEST_F(io, nothing_touched_nothing_written)
{
	struct kvmsnap_stats stats;

	ASSERT_EQ(0, save_all(self->s.session));
	ASSERT_EQ(0, kvmsnap_stats(self->s.session, &stats));
	EXPECT_EQ(0, stats.requests);
	EXPECT_EQ(PAGES, stats.pages_untouched);
}

TEST_F(io, ranges)
{
	struct kvmsnap_range ranges[] = {
		{ 0, 0, 0, 1 },			/* first page */
		{ 0, 0, PAGES - 1, 1 },		/* last page */
		{ 0, 0, 500, 100 },		/* across a chunk's end */
		{ 0, 0, 550, 100 },		/* overlaps the one before */
		{ 0, 0, 500, 100 },		/* again */
	};
	char *zeros = calloc(1, PAGE);
	struct kvmsnap_stats stats;
	struct kvmsnap_wait wait;
	size_t i;

	fill_pages(self->s.mem, PAGES, 1);
	ASSERT_EQ(0, kvmsnap_queue_ranges(self->s.session, ranges, ARRAY_SIZE(ranges), NULL));
	ASSERT_EQ(0, kvmsnap_wait(self->s.session, -1, &wait));
	ASSERT_EQ(0, wait.error);
	ASSERT_EQ(0, kvmsnap_stats(self->s.session, &stats));
	EXPECT_EQ(152, stats.pages_total);
	EXPECT_EQ(152, stats.pages_written);
	ASSERT_EQ(0, kvmsnap_get_bitmap(self->s.session, 0, 0, PAGES, self->bitmap));
	for (i = 0; i < PAGES; i++) {
		bool in = i == 0 || i == PAGES - 1 || (i >= 500 && i < 650);

		if (bit(self->bitmap, i) != in ||
		    !same_as_file(self->s.target, i * PAGE, in ? self->s.mem + i * PAGE : zeros, PAGE))
			break;
	}
	EXPECT_EQ(PAGES, i);

	/* A second pass adds to the first. */
	ASSERT_EQ(0, kvmsnap_queue_ranges(self->s.session, &(struct kvmsnap_range){ 0, 0, 1, 499 }, 1, NULL));
	ASSERT_EQ(0, kvmsnap_wait(self->s.session, -1, &wait));
	ASSERT_EQ(0, wait.error);
	EXPECT_TRUE(same_as_file(self->s.target, 0, self->s.mem, 650 * PAGE));
	free(zeros);
}

TEST_F(io, zeros_over_what_was_written)
{
	fill_pages(self->s.mem, PAGES, 1);
	ASSERT_EQ(0, save_all(self->s.session));
	/* Pages that turn to zeros, and pages that are given back. */
	memset(self->s.mem + 10 * PAGE, 0, 20 * PAGE);
	madvise(self->s.mem + 16 * MIB, 4 * MIB, MADV_DONTNEED);
	ASSERT_EQ(0, save_all(self->s.session));
	EXPECT_TRUE(same_as_file(self->s.target, 0, self->s.mem, BYTES));
}

TEST_F(io, new_target_starts_empty)
{
	int other = target_create(BYTES);

	fill_pages(self->s.mem, 100, 1);
	ASSERT_EQ(0, save_all(self->s.session));
	ASSERT_EQ(0, kvmsnap_set_target(self->s.session, other));
	ASSERT_EQ(0, kvmsnap_get_bitmap(self->s.session, 0, 0, PAGES, self->bitmap));
	EXPECT_EQ(0, self->bitmap[0]);
	memset(self->s.mem, 0, 50 * PAGE);
	ASSERT_EQ(0, save_all(self->s.session));
	ASSERT_EQ(0, kvmsnap_get_bitmap(self->s.session, 0, 0, PAGES, self->bitmap));
	EXPECT_EQ(0, self->bitmap[0]);
	EXPECT_TRUE(bit(self->bitmap, 50));
	EXPECT_TRUE(same_as_file(other, 0, self->s.mem, BYTES));
	close(other);
}

TEST(whole_regions_write_zeros_too)
{
	struct kvmsnap_stats stats;
	uint8_t bitmap[32];
	struct setup s;
	size_t i;

	ASSERT_EQ(0, setup_with(&s, map_anonymous(MIB), MIB, target_create(MIB), KVMSNAP_REGION_WHOLE));
	fill_pages(s.mem + 7 * PAGE, 1, 7);
	ASSERT_EQ(0, save_all(s.session));
	ASSERT_EQ(0, kvmsnap_stats(s.session, &stats));
	EXPECT_EQ(256, stats.pages_written);
	ASSERT_EQ(0, kvmsnap_get_bitmap(s.session, 0, 0, 256, bitmap));
	for (i = 0; i < 32 && bitmap[i] == 0xff; i++)
		;
	EXPECT_EQ(32, i);
	EXPECT_TRUE(same_as_file(s.target, 0, s.mem, MIB));
	setup_close(&s);
}

TEST(many_regions_out_of_order)
{
	char *mem = map_anonymous(64 * MIB);
	int target = target_create(128 * MIB), i;
	struct kvmsnap_stats stats;
	struct setup s;

	/* 64 regions of 1 MiB less a page, at offsets in the opposite order. */
	fill_pages(mem, 64 * MIB / PAGE, 5);
	s = (struct setup){ mem, 64 * MIB, vm_create(mem, 64 * MIB), kvmsnap_open(NULL), target, 0 };
	ASSERT_EQ(0, kvmsnap_bind_vm(s.session, s.vm));
	ASSERT_EQ(0, kvmsnap_set_target(s.session, target));
	for (i = 0; i < 64; i++)
		ASSERT_EQ(i, kvmsnap_add_region(s.session, (uintptr_t)mem + i * MIB, MIB - PAGE,
						(126 - 2 * i) * MIB + PAGE, 0));
	ASSERT_EQ(0, save_all(s.session));
	ASSERT_EQ(0, kvmsnap_stats(s.session, &stats));
	EXPECT_EQ(64 * 255, stats.pages_written);
	for (i = 0; i < 64; i++)
		ASSERT_TRUE(same_as_file(target, (126 - 2 * i) * MIB + PAGE, mem + i * MIB, MIB - PAGE));
	setup_close(&s);
}

/* What the module takes for itself: the pool, and a few bits a page. */
TEST(memory_is_bounded)
{
	size_t small = 16 * MIB, large = 4096 * MIB, pages = (large - small) / PAGE;
	struct kvmsnap_stats a, b;
	struct kvmsnap_info info;
	struct setup s;

	ASSERT_EQ(0, setup_with(&s, map_anonymous(small), small, target_create(small), 0));
	ASSERT_EQ(0, save_all(s.session));
	ASSERT_EQ(0, kvmsnap_stats(s.session, &a));
	ASSERT_EQ(0, kvmsnap_info(s.session, &info));
	setup_close(&s);
	ASSERT_EQ(0, setup_with(&s, map_anonymous(large), large, target_create(large), 0));
	fill_pages(s.mem + 1024 * MIB, 256 * MIB / PAGE, 3);
	ASSERT_EQ(0, save_all(s.session));
	ASSERT_EQ(0, kvmsnap_stats(s.session, &b));
	setup_close(&s);

	TH_LOG("16 MiB: %llu bytes, 4 GiB: %llu bytes", a.memory, b.memory);
	EXPECT_EQ(pages / 8, b.memory - a.memory);
	EXPECT_GT(info.max_requests * 12288 + 256 * 1024, a.memory);
	EXPECT_GE(info.max_requests, b.max_in_flight);
}

TEST(full_file_system)
{
	struct kvmsnap_wait wait;
	struct setup s;
	char path[256];
	int target;

	/* A file system of its own, 300 MiB, in a file. */
	ASSERT_EQ(0, run("cd %s && truncate -s 300M full.img && mkfs.ext4 -qF full.img && mkdir -p full && "
			 "mount -o loop full.img full", test_dir()));
	snprintf(path, sizeof(path), "%s/full/target", test_dir());
	target = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	ASSERT_LE(0, target);
	ASSERT_EQ(0, ftruncate(target, 400 * MIB));
	ASSERT_EQ(0, setup_with(&s, map_anonymous(400 * MIB), 400 * MIB, target, 0));
	fill_pages(s.mem, s.bytes / PAGE, 9);
	ASSERT_EQ(0, kvmsnap_queue_all(s.session, NULL));
	ASSERT_EQ(0, kvmsnap_wait(s.session, 2 * PASS_LIMIT, &wait));
	EXPECT_EQ(ENOSPC, wait.error);
	EXPECT_EQ(KVMSNAP_STATE_FAILED, wait.state);
	EXPECT_GT(400 * MIB, wait.error_offset);
	/* Sticky, until there is another target. */
	EXPECT_EQ(-ENOSPC, kvmsnap_queue_all(s.session, NULL));
	close(s.target);
	s.target = target_create(400 * MIB);
	ASSERT_EQ(0, kvmsnap_set_target(s.session, s.target));
	EXPECT_EQ(0, save_all(s.session));
	EXPECT_TRUE(same_as_file(s.target, 0, s.mem, s.bytes));
	setup_close(&s);
	EXPECT_EQ(0, run("cd %s && umount full && rm -rf full full.img", test_dir()));
}

/* A device that fails between 8 and 9 MiB. */
/* Guest memory lies on a device that can't read some of it. */
TEST(memory_that_cannot_be_read)
{
	const char *dm = getenv("KVMSNAP_DM");
	size_t bytes = 16 * MIB;
	struct kvmsnap_wait wait;
	struct setup s;
	int memory;

	if (!dm)
		SKIP(return, "no device-mapper device");
	memory = dm_open(dm);
	ASSERT_EQ(0, posix_fadvise(memory, 0, 0, POSIX_FADV_DONTNEED));
	ASSERT_EQ(0, dm_load(dm, "0 16384 linear $dev 0\\n16384 2048 error\\n"
				 "18432 $((size - 18432)) linear $dev 18432\\n"));
	ASSERT_EQ(0, setup_with(&s, mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0), bytes,
				target_create(bytes), 0));
	ASSERT_EQ(0, kvmsnap_queue_all(s.session, NULL));
	ASSERT_EQ(0, kvmsnap_wait(s.session, PASS_LIMIT, &wait));
	EXPECT_EQ(EIO, wait.error);
	EXPECT_EQ(8 * MIB, wait.error_offset);
	ASSERT_EQ(0, dm_load(dm, DM_LINEAR));
	/* It is read again when it can be. */
	ASSERT_EQ(0, kvmsnap_set_target(s.session, s.target));
	ASSERT_EQ(0, save_all(s.session));
	EXPECT_TRUE(same_as_file(s.target, 0, s.mem, bytes));
	setup_close(&s);
	close(memory);
}

TEST(device_error_tells_the_offset)
{
	const char *dm = getenv("KVMSNAP_DM");
	struct kvmsnap_wait wait;
	struct setup s;

	if (!dm)
		SKIP(return, "no device-mapper device");
	ASSERT_EQ(0, dm_load(dm, "0 16384 linear $dev 0\\n16384 2048 error\\n"
				 "18432 $((size - 18432)) linear $dev 18432\\n"));
	ASSERT_EQ(0, setup_with(&s, map_anonymous(16 * MIB), 16 * MIB, dm_open(dm), 0));
	fill_pages(s.mem, s.bytes / PAGE, 9);
	ASSERT_EQ(0, kvmsnap_queue_all(s.session, NULL));
	ASSERT_EQ(0, kvmsnap_wait(s.session, PASS_LIMIT, &wait));
	EXPECT_EQ(EIO, wait.error);
	EXPECT_EQ(8 * MIB, wait.error_offset);
	EXPECT_EQ(KVMSNAP_STATE_FAILED, wait.state);
	setup_close(&s);
	ASSERT_EQ(0, dm_load(dm, DM_LINEAR));
}

/* dm-flakey that drops everything for a second in two: fails, and then works. */
TEST(flaky_device)
{
	const char *dm = getenv("KVMSNAP_DM");
	struct setup s;
	int i, err = 0;

	if (!dm)
		SKIP(return, "no device-mapper device");
	ASSERT_EQ(0, dm_load(dm, "0 $size flakey $dev 0 1 1 1 error_writes\\n"));
	ASSERT_EQ(0, setup_with(&s, map_anonymous(16 * MIB), 16 * MIB, dm_open(dm), 0));
	fill_pages(s.mem, s.bytes / PAGE, 11);
	for (i = 0; i < 200 && err != EIO; i++) {
		err = save_all(s.session);
		usleep(20000);
	}
	EXPECT_EQ(EIO, err);
	for (i = 0; i < 200 && err; i++) {
		ASSERT_EQ(0, kvmsnap_set_target(s.session, s.target));
		err = save_all(s.session);
		usleep(20000);
	}
	EXPECT_EQ(0, err);
	setup_close(&s);
	ASSERT_EQ(0, dm_load(dm, DM_LINEAR));
}

TEST(block_device)
{
	const char *dm = getenv("KVMSNAP_DM");
	struct setup s;

	if (!dm)
		SKIP(return, "no device-mapper device");
	ASSERT_EQ(0, setup_with(&s, map_anonymous(32 * MIB), 32 * MIB, dm_open(dm),
				KVMSNAP_REGION_WHOLE));
	fill_pages(s.mem, 16 * MIB / PAGE, 13);
	ASSERT_EQ(0, save_all(s.session));
	EXPECT_TRUE(same_as_file(s.target, 0, s.mem, s.bytes));
	/* One page past its end. */
	EXPECT_EQ(1, kvmsnap_add_region(s.session, (uintptr_t)s.mem + 64 * MIB, PAGE,
					(uint64_t)lseek(s.target, 0, SEEK_END), 0));
	EXPECT_EQ(-EFBIG, kvmsnap_queue_all(s.session, NULL));
	setup_close(&s);
}

#define CGROUP	"/sys/fs/cgroup/kvmsnap-io"

/* What the test's cgroup has written, in bytes, to the device where that is most. */
static unsigned long cgroup_written(void)
{
	FILE *f = fopen(CGROUP "/io.stat", "r");
	unsigned long bytes, most = 0;
	char line[512], *at;

	while (f && fgets(line, sizeof(line), f)) {
		at = strstr(line, "wbytes=");
		bytes = at ? strtoul(at + strlen("wbytes="), NULL, 10) : 0;
		most = bytes > most ? bytes : most;
	}
	if (f)
		fclose(f);
	return most;
}

FIXTURE(cgroup) {
};

FIXTURE_SETUP(cgroup)
{
	ASSERT_EQ(0, run("echo +io +memory >/sys/fs/cgroup/cgroup.subtree_control && mkdir " CGROUP));
}

FIXTURE_TEARDOWN(cgroup)
{
	EXPECT_EQ(0, run("echo %d >/sys/fs/cgroup/cgroup.procs && rmdir " CGROUP, getpid()));
}

/* Writes are charged to the cgroup in which the session was opened. */
TEST_F(cgroup, charged_to_the_opener)
{
	const char *dm = getenv("KVMSNAP_DM");
	struct setup s;

	if (!dm)
		SKIP(return, "no device-mapper device");
	ASSERT_EQ(0, run("echo %d >" CGROUP "/cgroup.procs", getpid()));
	ASSERT_EQ(0, setup_with(&s, map_anonymous(16 * MIB), 16 * MIB, dm_open(dm), 0));
	ASSERT_EQ(0, run("echo %d >/sys/fs/cgroup/cgroup.procs", getpid()));
	fill_pages(s.mem, 16 * MIB / PAGE, 17);
	EXPECT_GT(MIB, cgroup_written());
	ASSERT_EQ(0, save_all(s.session));
	EXPECT_LE(16 * MIB, cgroup_written());
	setup_close(&s);
}

/* Page tables, which a look at memory takes that is mapped and was not used there, are too. */
TEST_F(cgroup, page_tables)
{
	size_t bytes = 256 * MIB, at;
	unsigned long tables = 0;
	char line[128];
	struct setup s;
	int memory;
	FILE *f;

	memory = memfd_create("memory", MFD_CLOEXEC);
	ASSERT_EQ(0, ftruncate(memory, (off_t)bytes));
	for (at = 0; at < bytes; at += 2 * MIB)
		ASSERT_EQ(0, fallocate(memory, 0, (off_t)at, PAGE));
	ASSERT_EQ(0, run("echo %d >" CGROUP "/cgroup.procs", getpid()));
	ASSERT_EQ(0, setup_with(&s, mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0), bytes,
				target_create(bytes), 0));
	ASSERT_EQ(0, run("echo %d >/sys/fs/cgroup/cgroup.procs", getpid()));
	ASSERT_EQ(0, save_all(s.session));
	f = fopen(CGROUP "/memory.stat", "r");
	ASSERT_NE(NULL, f);
	while (fgets(line, sizeof(line), f))
		sscanf(line, "pagetables %lu", &tables);
	fclose(f);
	EXPECT_LE(bytes / (2 * MIB) * PAGE, tables);
	setup_close(&s);
	close(memory);
}

TEST_HARNESS_MAIN
