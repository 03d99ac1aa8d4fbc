// SPDX-License-Identifier: GPL-2.0
/* The contract of the ioctls: sizes, tails, flags, reserved fields, descriptors, ranges. */
#include "kvmsnap_test.h"

#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/time.h>

FIXTURE(abi) {
	int session, vm, target;
	char *mem;
};

FIXTURE_SETUP(abi)
{
	self->mem = map_anonymous(4 * MIB);
	ASSERT_NE(NULL, self->mem);
	self->vm = vm_create(self->mem, 4 * MIB);
	ASSERT_LE(0, self->vm);
	self->session = kvmsnap_open(NULL);
	ASSERT_LE(0, self->session);
	self->target = target_create(16 * MIB);
	ASSERT_LE(0, self->target);
}

FIXTURE_TEARDOWN(abi)
{
	close(self->session);
	close(self->vm);
	close(self->target);
	munmap(self->mem, 4 * MIB);
}

TEST_F(abi, info)
{
	struct kvmsnap_info info;

	memset(&info, 0xa5, sizeof(info));
	ASSERT_EQ(0, kvmsnap_info(self->session, &info));
	EXPECT_EQ(KVMSNAP_ABI_VERSION, info.abi_version);
	EXPECT_EQ(4096, info.page_size);
	EXPECT_EQ(0, info.reserved);
	EXPECT_LT(0, info.max_regions);
	EXPECT_LE(1 << 20, info.max_request_bytes);
	EXPECT_LE(4, info.max_requests);
	EXPECT_LT(1ULL << 40, info.max_bytes);
}

TEST_F(abi, unknown_numbers)
{
	struct kvmsnap_info info = { .size = sizeof(info) };

	EXPECT_EQ(ENOTTY, call(self->session, _IO(KVMSNAP_TYPE, KVMSNAP_CMD_GET_HASHES + 1), &info));
	EXPECT_EQ(ENOTTY, call(self->session, _IO(KVMSNAP_TYPE, 0xff), &info));
	EXPECT_EQ(ENOTTY, call(self->session, _IO(KVMSNAP_TYPE + 1, KVMSNAP_CMD_INFO), &info));
	EXPECT_EQ(ENOTTY, call(self->session, _IOWR(KVMSNAP_TYPE, KVMSNAP_CMD_INFO, info), &info));
}

/* Every ioctl, with arguments that are as good as can be had. */
#define COMMANDS(X)							\
	X(INFO, struct kvmsnap_info)					\
	X(BIND_VM, struct kvmsnap_bind_vm)				\
	X(SET_TARGET, struct kvmsnap_set_target)			\
	X(ADD_REGION, struct kvmsnap_add_region)			\
	X(QUEUE, struct kvmsnap_queue)					\
	X(WAIT, struct kvmsnap_wait)					\
	X(CANCEL, struct kvmsnap_cancel)				\
	X(STATS, struct kvmsnap_stats)					\
	X(GET_BITMAP, struct kvmsnap_get_bitmap)			\
	X(SET_EVENTFD, struct kvmsnap_set_eventfd)			\
	X(TRACK, struct kvmsnap_track)					\
	X(HARVEST, struct kvmsnap_harvest)				\
	X(MARK_DIRTY, struct kvmsnap_mark_dirty)			\
	X(SET_STAGE, struct kvmsnap_set_stage)				\
	X(SET_PHASE, struct kvmsnap_set_phase)				\
	X(GET_HASHES, struct kvmsnap_get_hashes)

static const struct {
	const char *name;
	unsigned long number;
	uint32_t size;
} commands[] = {
#define X(name, type) { #name, KVMSNAP_##name, sizeof(type) },
	COMMANDS(X)
#undef X
};

TEST_F(abi, phases)
{
	struct kvmsnap_stats stats;

	ASSERT_EQ(0, kvmsnap_stats(self->session, &stats));
	EXPECT_EQ(KVMSNAP_PHASE_NONE, stats.phase);
	EXPECT_EQ(-EINVAL, kvmsnap_set_phase(self->session, KVMSNAP_PHASE_NONE, 0));
	EXPECT_EQ(-EOPNOTSUPP, kvmsnap_set_phase(self->session, KVMSNAP_PHASE_FAILED + 1, 0));
	ASSERT_EQ(0, kvmsnap_set_phase(self->session, KVMSNAP_PHASE_STOPPED, 12345));
	ASSERT_EQ(0, kvmsnap_stats(self->session, &stats));
	EXPECT_EQ(KVMSNAP_PHASE_STOPPED, stats.phase);
	EXPECT_EQ(12345, stats.pause_ns);
}

TEST_F(abi, sizes_and_tails)
{
	char *page = map_anonymous(2 * PAGE);
	uint32_t *size = (uint32_t *)page;
	size_t i;

	ASSERT_NE(NULL, page);
	for (i = 0; i < ARRAY_SIZE(commands); i++) {
		TH_LOG("%s", commands[i].name);
		memset(page, 0, PAGE);
		*size = 0;
		EXPECT_EQ(EINVAL, call(self->session, commands[i].number, page));
		*size = commands[i].size - 1;
		EXPECT_EQ(EINVAL, call(self->session, commands[i].number, page));
		/* A tail that we don't know must be zero. */
		*size = commands[i].size + 8;
		page[commands[i].size + 7] = 1;
		EXPECT_EQ(E2BIG, call(self->session, commands[i].number, page));
		page[commands[i].size + 7] = 0;
		*size = PAGE + 1;
		EXPECT_EQ(E2BIG, call(self->session, commands[i].number, page));
		*size = UINT32_MAX;
		EXPECT_EQ(E2BIG, call(self->session, commands[i].number, page));
		/* Zero, it is accepted: no error that is about the size. */
		*size = commands[i].size + 8;
		EXPECT_NE(E2BIG, call(self->session, commands[i].number, page));
		EXPECT_EQ(EFAULT, call(self->session, commands[i].number, NULL));
	}
	/* The end of a structure in unmapped memory. */
	munmap(page + PAGE, PAGE);
	for (i = 0; i < ARRAY_SIZE(commands); i++) {
		size = (uint32_t *)(page + PAGE - 4);
		*size = commands[i].size;
		EXPECT_EQ(EFAULT, call(self->session, commands[i].number, size));
	}
	munmap(page, PAGE);
}

TEST_F(abi, unknown_flags)
{
	uint32_t arg[64];
	size_t i;

	for (i = 0; i < ARRAY_SIZE(commands); i++) {
		TH_LOG("%s", commands[i].name);
		memset(arg, 0, sizeof(arg));
		arg[0] = commands[i].size;
		arg[1] = 1u << 31;
		EXPECT_EQ(EOPNOTSUPP, call(self->session, commands[i].number, arg));
	}
}

TEST_F(abi, reserved_fields)
{
	struct kvmsnap_bind_vm bind = { sizeof(bind), 0, self->vm, 1 };
	struct kvmsnap_set_target target = { .size = sizeof(target), .fd = self->target, .reserved = 1 };
	struct kvmsnap_add_region region = {
		.size = sizeof(region), .hva = (uintptr_t)self->mem, .length = PAGE, .reserved = 1,
	};
	struct kvmsnap_get_bitmap bitmap = { .size = sizeof(bitmap), .nr_pages = 1, .reserved = 1 };
	struct kvmsnap_set_eventfd event = { sizeof(event), 0, -1, 1 };

	EXPECT_EQ(EINVAL, call(self->session, KVMSNAP_BIND_VM, &bind));
	EXPECT_EQ(EINVAL, call(self->session, KVMSNAP_SET_TARGET, &target));
	EXPECT_EQ(EINVAL, call(self->session, KVMSNAP_ADD_REGION, &region));
	EXPECT_EQ(EINVAL, call(self->session, KVMSNAP_GET_BITMAP, &bitmap));
	EXPECT_EQ(EINVAL, call(self->session, KVMSNAP_SET_EVENTFD, &event));
}

TEST_F(abi, vm_descriptors)
{
	int kvm = open("/dev/kvm", O_RDWR), vcpu = ioctl(self->vm, KVM_CREATE_VCPU, 0);
	int memfd = memfd_create("kvm-vm", 0), event = eventfd(0, 0);

	EXPECT_EQ(-EBADF, kvmsnap_bind_vm(self->session, -1));
	EXPECT_EQ(-EBADF, kvmsnap_bind_vm(self->session, 12345));
	EXPECT_EQ(-ENXIO, kvmsnap_bind_vm(self->session, kvm));
	ASSERT_LE(0, vcpu);
	EXPECT_EQ(-ENXIO, kvmsnap_bind_vm(self->session, vcpu));
	EXPECT_EQ(-ENXIO, kvmsnap_bind_vm(self->session, memfd));
	EXPECT_EQ(-ENXIO, kvmsnap_bind_vm(self->session, event));
	EXPECT_EQ(-ENXIO, kvmsnap_bind_vm(self->session, self->target));
	EXPECT_EQ(-ENXIO, kvmsnap_bind_vm(self->session, self->session));
	EXPECT_EQ(0, kvmsnap_bind_vm(self->session, self->vm));
	EXPECT_EQ(-EBUSY, kvmsnap_bind_vm(self->session, self->vm));
	close(kvm);
	close(vcpu);
	close(memfd);
	close(event);
}

static void on_alarm(int sig)
{
	(void)sig;
}

/* No call fails for a signal that its caller survives; who binds waits for locks that heed signals. */
TEST_F(abi, bind_among_signals)
{
	struct sigaction action = { .sa_handler = on_alarm };
	struct itimerval often = { { .tv_usec = 300 }, { .tv_usec = 300 } }, never = { 0 };
	int session, failed = 0, i;

	ASSERT_EQ(0, sigaction(SIGALRM, &action, NULL));
	ASSERT_EQ(0, setitimer(ITIMER_REAL, &often, NULL));
	for (i = 0; i < 500; i++) {
		session = kvmsnap_open(NULL);
		if (session < 0 || kvmsnap_bind_vm(session, self->vm))
			failed++;
		close(session);
	}
	ASSERT_EQ(0, setitimer(ITIMER_REAL, &never, NULL));
	EXPECT_EQ(0, failed);
}

TEST_F(abi, target_descriptors)
{
	char path[64];
	int pipes[2], fd;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", self->target);
	EXPECT_EQ(-EBADF, kvmsnap_set_target(self->session, -1));

	fd = open(path, O_RDONLY);
	EXPECT_EQ(-EBADF, kvmsnap_set_target(self->session, fd));
	close(fd);
	fd = open(path, O_PATH);
	EXPECT_EQ(-EBADF, kvmsnap_set_target(self->session, fd));
	close(fd);
	fd = open(path, O_WRONLY | O_APPEND);
	EXPECT_EQ(-EINVAL, kvmsnap_set_target(self->session, fd));
	close(fd);
	fd = open(test_dir(), O_RDONLY | O_DIRECTORY);
	EXPECT_EQ(-EBADF, kvmsnap_set_target(self->session, fd));
	close(fd);
	fd = open("/dev/null", O_RDWR);
	EXPECT_EQ(-ENXIO, kvmsnap_set_target(self->session, fd));
	close(fd);
	ASSERT_EQ(0, pipe(pipes));
	EXPECT_EQ(-ENXIO, kvmsnap_set_target(self->session, pipes[1]));
	close(pipes[0]);
	close(pipes[1]);
	fd = socket(AF_UNIX, SOCK_STREAM, 0);
	EXPECT_EQ(-ENXIO, kvmsnap_set_target(self->session, fd));
	close(fd);
	EXPECT_EQ(-ENXIO, kvmsnap_set_target(self->session, self->session));
	/* Memory is no place for a snapshot. */
	fd = memfd_create("target", 0);
	EXPECT_EQ(-EOPNOTSUPP, kvmsnap_set_target(self->session, fd));
	close(fd);
	fd = open("/dev/shm", O_TMPFILE | O_RDWR, 0600);
	ASSERT_LE(0, fd);
	EXPECT_EQ(-EOPNOTSUPP, kvmsnap_set_target(self->session, fd));
	close(fd);
	fd = open("/proc/self/comm", O_RDWR);
	EXPECT_EQ(-EOPNOTSUPP, kvmsnap_set_target(self->session, fd));
	close(fd);

	/* Write-only will do, with or without O_DIRECT. */
	fd = open(path, O_WRONLY);
	EXPECT_EQ(0, kvmsnap_set_target(self->session, fd));
	close(fd);
	fd = open(path, O_WRONLY | O_DIRECT);
	EXPECT_EQ(0, kvmsnap_set_target(self->session, fd));
	close(fd);
}

TEST_F(abi, regions)
{
	uint64_t mem = (uintptr_t)self->mem;
	int i;

	EXPECT_EQ(-ENODEV, kvmsnap_add_region(self->session, mem, PAGE, 0, 0));
	ASSERT_EQ(0, kvmsnap_bind_vm(self->session, self->vm));
	EXPECT_EQ(-EINVAL, kvmsnap_add_region(self->session, mem, 0, 0, 0));
	EXPECT_EQ(-EINVAL, kvmsnap_add_region(self->session, mem + 1, PAGE, 0, 0));
	EXPECT_EQ(-EINVAL, kvmsnap_add_region(self->session, mem, PAGE + 512, 0, 0));
	EXPECT_EQ(-EINVAL, kvmsnap_add_region(self->session, mem, PAGE, 512, 0));
	EXPECT_EQ(-EINVAL, kvmsnap_add_region(self->session, -PAGE, 2 * PAGE, 0, 0));
	EXPECT_EQ(-EINVAL, kvmsnap_add_region(self->session, 1ULL << 63, PAGE, 0, 0));
	EXPECT_EQ(-EINVAL, kvmsnap_add_region(self->session, mem, PAGE, INT64_MAX & -PAGE, 0));
	EXPECT_EQ(-EINVAL, kvmsnap_add_region(self->session, mem, PAGE, -PAGE, 0));
	EXPECT_EQ(-EOVERFLOW, kvmsnap_add_region(self->session, PAGE, 1ULL << 45, 0, 0));

	EXPECT_EQ(0, kvmsnap_add_region(self->session, mem, 4 * PAGE, 0, 0));
	/* Overlaps: the same, an end, a start; in memory, then in the target. */
	EXPECT_EQ(-EEXIST, kvmsnap_add_region(self->session, mem, 4 * PAGE, MIB, 0));
	EXPECT_EQ(-EEXIST, kvmsnap_add_region(self->session, mem + 3 * PAGE, 2 * PAGE, MIB, 0));
	EXPECT_EQ(-EEXIST, kvmsnap_add_region(self->session, mem - PAGE, 2 * PAGE, MIB, 0));
	EXPECT_EQ(-EEXIST, kvmsnap_add_region(self->session, mem + MIB, PAGE, 3 * PAGE, 0));
	EXPECT_EQ(1, kvmsnap_add_region(self->session, mem + 4 * PAGE, PAGE, 4 * PAGE, 0));
	for (i = 2; i < 256; i++)
		ASSERT_EQ(i, kvmsnap_add_region(self->session, mem + (i + 3) * PAGE, PAGE,
						(i + 3) * PAGE, 0));
	EXPECT_EQ(-ENOSPC, kvmsnap_add_region(self->session, mem + 2 * MIB, PAGE, 2 * MIB, 0));
}

TEST_F(abi, queue)
{
	struct kvmsnap_range range = { .region_id = 0, .first_page = 0, .nr_pages = 1 };
	struct kvmsnap_queue queue = { .size = sizeof(queue) };
	uint64_t mem = (uintptr_t)self->mem;
	struct kvmsnap_range many[33];
	int i;

	EXPECT_EQ(-ENODEV, kvmsnap_queue_all(self->session, NULL));
	ASSERT_EQ(0, kvmsnap_bind_vm(self->session, self->vm));
	EXPECT_EQ(-ENODEV, kvmsnap_queue_all(self->session, NULL));
	ASSERT_EQ(0, kvmsnap_set_target(self->session, self->target));
	EXPECT_EQ(-ENODEV, kvmsnap_queue_all(self->session, NULL));
	ASSERT_EQ(0, kvmsnap_add_region(self->session, mem, 8 * PAGE, 0, 0));

	queue.kind = 7;
	EXPECT_EQ(EOPNOTSUPP, call(self->session, KVMSNAP_QUEUE, &queue));
	queue.kind = KVMSNAP_PASS_ALL;
	queue.nr_ranges = 1;
	EXPECT_EQ(EINVAL, call(self->session, KVMSNAP_QUEUE, &queue));
	EXPECT_EQ(-EINVAL, kvmsnap_queue_ranges(self->session, &range, 0, NULL));
	EXPECT_EQ(-EINVAL, kvmsnap_queue_ranges(self->session, &range, KVMSNAP_MAX_RANGES + 1, NULL));
	EXPECT_EQ(-EFAULT, kvmsnap_queue_ranges(self->session, NULL, 1, NULL));
	range.region_id = 1;
	EXPECT_EQ(-ENOENT, kvmsnap_queue_ranges(self->session, &range, 1, NULL));
	range.region_id = 0;
	range.nr_pages = 0;
	EXPECT_EQ(-EINVAL, kvmsnap_queue_ranges(self->session, &range, 1, NULL));
	range.nr_pages = 9;
	EXPECT_EQ(-ERANGE, kvmsnap_queue_ranges(self->session, &range, 1, NULL));
	range.nr_pages = 1;
	range.first_page = 8;
	EXPECT_EQ(-ERANGE, kvmsnap_queue_ranges(self->session, &range, 1, NULL));
	range.nr_pages = UINT64_MAX;
	range.first_page = 1;
	EXPECT_EQ(-ERANGE, kvmsnap_queue_ranges(self->session, &range, 1, NULL));
	range.nr_pages = 1;
	range.reserved = 1;
	EXPECT_EQ(-EINVAL, kvmsnap_queue_ranges(self->session, &range, 1, NULL));

	/* A target that is too small, by a byte. */
	ASSERT_EQ(0, ftruncate(self->target, 8 * PAGE - 1));
	EXPECT_EQ(-EFBIG, kvmsnap_queue_all(self->session, NULL));
	ASSERT_EQ(0, ftruncate(self->target, 8 * PAGE));

	/* A limit that write() would have kept. */
	ASSERT_EQ(0, setrlimit(RLIMIT_FSIZE, &(struct rlimit){ 8 * PAGE - 1, RLIM_INFINITY }));
	EXPECT_EQ(-EFBIG, kvmsnap_queue_all(self->session, NULL));
	ASSERT_EQ(0, setrlimit(RLIMIT_FSIZE, &(struct rlimit){ RLIM_INFINITY, RLIM_INFINITY }));

	/* The same page over and over. */
	range = (struct kvmsnap_range){ .nr_pages = 1 };
	for (i = 0; i < 33; i++)
		many[i] = range;
	EXPECT_EQ(-EINVAL, kvmsnap_queue_ranges(self->session, many, 33, NULL));
	EXPECT_EQ(0, save_all(self->session));
}

TEST_F(abi, wait_poll_and_eventfd)
{
	int event = eventfd(0, EFD_NONBLOCK), pipes[2];
	struct pollfd pfd = { .fd = self->session, .events = POLLIN };
	struct kvmsnap_wait wait;
	uint64_t count = 0, pass = 0;

	memset(&wait, 0xa5, sizeof(wait));
	ASSERT_EQ(0, kvmsnap_wait(self->session, 0, &wait));
	EXPECT_EQ(KVMSNAP_STATE_IDLE, wait.state);
	EXPECT_EQ(0, wait.error);
	EXPECT_EQ(0, wait.pass);
	EXPECT_EQ(UINT64_MAX, wait.error_offset);
	EXPECT_EQ(0, poll(&pfd, 1, 0));

	ASSERT_EQ(0, pipe(pipes));
	EXPECT_EQ(-EINVAL, kvmsnap_set_eventfd(self->session, pipes[0]));
	EXPECT_EQ(-EINVAL, kvmsnap_set_eventfd(self->session, -2));
	EXPECT_EQ(-EBADF, kvmsnap_set_eventfd(self->session, 12345));
	close(pipes[0]);
	close(pipes[1]);
	ASSERT_EQ(0, kvmsnap_set_eventfd(self->session, event));

	fill_pages(self->mem, 4 * MIB / PAGE, 1);
	ASSERT_EQ(0, kvmsnap_bind_vm(self->session, self->vm));
	ASSERT_EQ(0, kvmsnap_set_target(self->session, self->target));
	ASSERT_EQ(0, kvmsnap_add_region(self->session, (uintptr_t)self->mem, 4 * MIB, 0, 0));
	ASSERT_EQ(0, kvmsnap_queue_all(self->session, &pass));
	EXPECT_EQ(1, pass);
	ASSERT_EQ(1, poll(&pfd, 1, 30000 * (int)slowness()));
	EXPECT_EQ(POLLIN, pfd.revents);
	EXPECT_EQ(8, read(event, &count, 8));
	EXPECT_EQ(1, count);
	ASSERT_EQ(0, kvmsnap_wait(self->session, 0, &wait));
	EXPECT_EQ(1, wait.pass);
	EXPECT_EQ(0, poll(&pfd, 1, 0));
	ASSERT_EQ(0, kvmsnap_set_eventfd(self->session, -1));
	ASSERT_EQ(0, save_all(self->session));
	EXPECT_EQ(-1, read(event, &count, 8));
	close(event);
}

TEST_F(abi, bitmap_arguments)
{
	uint8_t bits[128];

	ASSERT_EQ(0, kvmsnap_bind_vm(self->session, self->vm));
	ASSERT_EQ(0, kvmsnap_add_region(self->session, (uintptr_t)self->mem, 100 * PAGE, 0, 0));
	EXPECT_EQ(-ENOENT, kvmsnap_get_bitmap(self->session, 1, 0, 1, bits));
	EXPECT_EQ(-EINVAL, kvmsnap_get_bitmap(self->session, 0, 1, 1, bits));
	EXPECT_EQ(-EINVAL, kvmsnap_get_bitmap(self->session, 0, 0, 0, bits));
	EXPECT_EQ(-ERANGE, kvmsnap_get_bitmap(self->session, 0, 0, 101, bits));
	EXPECT_EQ(-ERANGE, kvmsnap_get_bitmap(self->session, 0, 64, 37, bits));
	EXPECT_EQ(-ERANGE, kvmsnap_get_bitmap(self->session, 0, 128, 1, bits));
	EXPECT_EQ(-EFAULT, kvmsnap_get_bitmap(self->session, 0, 0, 100, NULL));

	/* Just the bytes asked for are written, and the bits past the end are 0. */
	memset(bits, 0xa5, sizeof(bits));
	ASSERT_EQ(0, kvmsnap_get_bitmap(self->session, 0, 0, 100, bits));
	EXPECT_EQ(0, bits[15]);
	EXPECT_EQ(0xa5, bits[16]);
	fill_pages(self->mem, 100, 1);
	ASSERT_EQ(0, kvmsnap_set_target(self->session, self->target));
	ASSERT_EQ(0, save_all(self->session));
	ASSERT_EQ(0, kvmsnap_get_bitmap(self->session, 0, 64, 30, bits));
	EXPECT_EQ(0xff, bits[2]);
	EXPECT_EQ(0x3f, bits[3]);
	EXPECT_EQ(0, bits[4]);
}

TEST_F(abi, library_says_what_the_ioctl_says)
{
	EXPECT_EQ(-ENOENT, kvmsnap_open("/dev/no-such-kvmsnap"));
	EXPECT_EQ(-EBADF, kvmsnap_cancel(-1));
	EXPECT_EQ(0, kvmsnap_cancel(self->session));
}

TEST_HARNESS_MAIN
