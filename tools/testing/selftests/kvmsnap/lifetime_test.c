// SPDX-License-Identifier: GPL-2.0
/*
 * The end of things, each with writes in flight: close, exec, fork, kill, descriptors
 * passed on, unload, freeze.  A suspended device-mapper device keeps writes in flight for
 * as long as a test wants.
 */
#include "kvmsnap_test.h"

#include <grp.h>
#include <linux/fs.h>
#include <sys/prctl.h>
#include <sys/socket.h>

#define BYTES	(32 * MIB)

FIXTURE(held) {
	const char *dm;
	char path[64];
};

/* The device is suspended: what is submitted stays in flight until release(). */
static void hold(const char *dm)
{
	run("dmsetup suspend --noflush %s", dm);
}

static void release(const char *dm)
{
	run("dmsetup resume %s", dm);
}

FIXTURE_SETUP(held)
{
	self->dm = getenv("KVMSNAP_DM");
	if (!self->dm)
		SKIP(return, "no device-mapper device");
	snprintf(self->path, sizeof(self->path), "/dev/mapper/%s", self->dm);
	ASSERT_EQ(0, module_references());
}

FIXTURE_TEARDOWN(held)
{
	int i;

	if (!self->dm)
		return;
	release(self->dm);
	/* Nothing of the test is left, in the module or behind the device. */
	for (i = 0; i < 100 * (int)slowness() && module_references(); i++)
		usleep(50000);
	EXPECT_EQ(0, module_references());
}

static int begin(struct setup *s, const char *path)
{
	if (setup_with(s, map_anonymous(BYTES), BYTES, open(path, O_RDWR | O_CLOEXEC), 0))
		return -1;
	fill_pages(s->mem, BYTES / PAGE, 1);
	return 0;
}

/* Queue, and wait until writes are in flight. */
static int queue_held(int session)
{
	struct kvmsnap_stats stats;
	int i;

	if (kvmsnap_queue_all(session, NULL))
		return -1;
	for (i = 0; i < 500 * (int)slowness(); i++) {
		if (kvmsnap_stats(session, &stats))
			return -1;
		if (stats.in_flight > 4)
			return 0;
		usleep(10000);
	}
	return -1;
}

static int unload(void)
{
	return run("rmmod kvmsnap 2>/dev/null");
}

TEST_F(held, close)
{
	struct setup s;
	double began;

	ASSERT_EQ(0, begin(&s, self->path));
	hold(self->dm);
	ASSERT_EQ(0, queue_held(s.session));
	began = seconds();
	EXPECT_EQ(0, close(s.session));
	EXPECT_GT(slowness(), seconds() - began);
	/* The session lives on in its writes: the module can't go. */
	EXPECT_NE(0, unload());
	EXPECT_EQ(1, module_references());
	munmap(s.mem, BYTES);
	/* But not in its VM, which goes with its own descriptor. */
	EXPECT_EQ(0, run("ls -d /sys/kernel/debug/kvm/%d-* >/dev/null", getpid()));
	close(s.vm);
	EXPECT_NE(0, run("ls -d /sys/kernel/debug/kvm/%d-* 2>/dev/null", getpid()));
	close(s.target);
	EXPECT_EQ(1, module_references());
}

TEST_F(held, cancel)
{
	struct kvmsnap_wait wait;
	struct setup s;

	ASSERT_EQ(0, begin(&s, self->path));
	hold(self->dm);
	ASSERT_EQ(0, queue_held(s.session));
	ASSERT_EQ(0, kvmsnap_cancel(s.session));
	/* Over only when nothing is in flight. */
	EXPECT_EQ(-ETIME, kvmsnap_wait(s.session, SECOND / 2, &wait));
	EXPECT_EQ(KVMSNAP_STATE_RUNNING, wait.state);
	EXPECT_EQ(-EBUSY, kvmsnap_set_target(s.session, s.target));
	EXPECT_EQ(-EBUSY, kvmsnap_queue_all(s.session, NULL));
	EXPECT_EQ(-EBUSY, kvmsnap_add_region(s.session, (uintptr_t)s.mem + BYTES, PAGE, BYTES, 0));
	release(self->dm);
	ASSERT_EQ(0, kvmsnap_wait(s.session, 10 * slowness() * SECOND, &wait));
	EXPECT_EQ(KVMSNAP_STATE_FAILED, wait.state);
	EXPECT_EQ(ECANCELED, wait.error);
	EXPECT_EQ(-ECANCELED, kvmsnap_queue_all(s.session, NULL));
	/* And once more, to the end. */
	ASSERT_EQ(0, kvmsnap_set_target(s.session, s.target));
	EXPECT_EQ(0, save_all(s.session));
	EXPECT_TRUE(same_as_file(s.target, 0, s.mem, BYTES));
	setup_close(&s);
}

/* Written guest memory of a file: a fault would read the page that it is for alone, and wait for it.  NULL on failure. */
static void *map_disk(int fd)
{
	void *mem = map_memory(BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd);

	if (!mem)
		return NULL;
	fill_pages(mem, BYTES / PAGE, 5);
	return fsync(fd) || madvise(mem, BYTES, MADV_RANDOM) ? NULL : mem;
}

/* A process that releases the device after a while, when a test that fails would never end. */
static pid_t release_after(const char *dm, unsigned int seconds)
{
	pid_t child = fork();

	if (child)
		return child;
	sleep(seconds * slowness());
	release(dm);
	_exit(0);
}

static void end(pid_t child)
{
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
}

/* Guest memory is a file's, on a device that doesn't answer, and nothing of it is in memory. */
TEST_F(held, guest_memory)
{
	int memory = open(self->path, O_RDWR | O_CLOEXEC);
	struct kvmsnap_wait wait;
	struct setup s;
	double began;
	pid_t child;
	void *mem = map_disk(memory);

	ASSERT_NE(NULL, mem);
	ASSERT_EQ(0, madvise(mem, BYTES, MADV_DONTNEED));
	ASSERT_EQ(0, posix_fadvise(memory, 0, 0, POSIX_FADV_DONTNEED));
	ASSERT_EQ(0, setup_with(&s, mem, BYTES, target_create(BYTES), 0));
	hold(self->dm);
	child = release_after(self->dm, 10);
	ASSERT_EQ(0, kvmsnap_queue_all(s.session, NULL));
	usleep(500000);
	/* The address space can be changed meanwhile, */
	began = seconds();
	munmap(map_anonymous(PAGE), PAGE);
	EXPECT_GT(slowness(), seconds() - began);
	/* and the pass is not held up. */
	EXPECT_EQ(-ETIME, kvmsnap_wait(s.session, 0, &wait));
	ASSERT_EQ(0, kvmsnap_cancel(s.session));
	ASSERT_EQ(0, kvmsnap_wait(s.session, 10 * slowness() * SECOND, &wait));
	EXPECT_EQ(ECANCELED, wait.error);
	end(child);
	release(self->dm);
	ASSERT_EQ(0, kvmsnap_set_target(s.session, s.target));
	ASSERT_EQ(0, save_all(s.session));
	EXPECT_TRUE(same_as_file(s.target, 0, s.mem, BYTES));
	setup_close(&s);
	close(memory);
}

/*
 * The same, and what is read ahead goes again before anybody has seen it: that nothing comes of reading ahead is no
 * reason to have a fault wait for the device.
 */
TEST_F(held, guest_memory_that_is_evicted)
{
	int memory = open(self->path, O_RDWR | O_CLOEXEC), round;
	struct kvmsnap_wait wait;
	pid_t evictor, child;
	struct setup s;
	double began;
	void *mem = map_disk(memory);

	ASSERT_NE(NULL, mem);
	ASSERT_EQ(0, setup_with(&s, mem, BYTES, target_create(BYTES), 0));
	evictor = fork();
	if (!evictor) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		munmap(mem, BYTES);
		for (;;)
			posix_fadvise(memory, 0, 0, POSIX_FADV_DONTNEED);
	}
	for (round = 0; round < 10; round++) {
		ASSERT_EQ(0, madvise(mem, BYTES, MADV_DONTNEED));
		/* Before it is held: where this fails there is no fork() then. */
		child = release_after(self->dm, 5);
		ASSERT_EQ(0, kvmsnap_queue_all(s.session, NULL));
		usleep(200000);
		hold(self->dm);
		usleep(50000);
		began = seconds();
		munmap(map_anonymous(PAGE), PAGE);
		EXPECT_GT(slowness(), seconds() - began);
		kvmsnap_cancel(s.session);
		ASSERT_EQ(0, kvmsnap_wait(s.session, 4 * slowness() * SECOND, &wait));
		end(child);
		release(self->dm);
		ASSERT_EQ(0, kvmsnap_set_target(s.session, s.target));
	}
	end(evictor);
	ASSERT_EQ(0, save_all(s.session));
	EXPECT_TRUE(same_as_file(s.target, 0, s.mem, BYTES));
	setup_close(&s);
	close(memory);
}

/* A rate beyond all bounds, when writes begin that had to wait: there are more than requests. */
TEST_F(held, boundless_rate)
{
	struct kvmsnap_queue how = { .bytes_per_second = UINT64_MAX };
	size_t bytes = 4 * BYTES;
	struct kvmsnap_wait wait;
	struct setup s;

	ASSERT_EQ(0, setup_with(&s, map_anonymous(bytes), bytes, open(self->path, O_RDWR | O_CLOEXEC), 0));
	fill_pages(s.mem, bytes / PAGE, 1);
	hold(self->dm);
	ASSERT_EQ(0, kvmsnap_queue(s.session, &how, NULL));
	usleep(1500000);
	release(self->dm);
	ASSERT_EQ(0, kvmsnap_wait(s.session, PASS_LIMIT, &wait));
	EXPECT_EQ(0, wait.error);
	EXPECT_TRUE(same_as_file(s.target, 0, s.mem, bytes));
	setup_close(&s);
}

/* The machine is to be suspended while workers wait for a target that does not answer. */
TEST_F(held, freezer)
{
	size_t bytes = 4 * BYTES;
	struct kvmsnap_wait wait;
	struct setup s;

	if (run("echo freezer >/sys/power/pm_test"))
		SKIP(return, "this kernel can't try to freeze (CONFIG_PM_SLEEP_DEBUG)");
	ASSERT_EQ(0, setup_with(&s, map_anonymous(bytes), bytes, open(self->path, O_RDWR | O_CLOEXEC), 0));
	fill_pages(s.mem, bytes / PAGE, 1);
	hold(self->dm);
	ASSERT_EQ(0, kvmsnap_queue_all(s.session, NULL));
	usleep(500000);
	EXPECT_EQ(0, run("echo freeze >/sys/power/state"));
	release(self->dm);
	ASSERT_EQ(0, run("echo none >/sys/power/pm_test"));
	ASSERT_EQ(0, kvmsnap_wait(s.session, PASS_LIMIT, &wait));
	EXPECT_EQ(0, wait.error);
	EXPECT_TRUE(same_as_file(s.target, 0, s.mem, bytes));
	setup_close(&s);
}

/* While they keep a slow target busy: what is staged is written by one of them. */
TEST_F(held, freezer_and_slow_target)
{
	const struct kvmsnap_queue how = { .kind = KVMSNAP_PASS_ALL, .flags = KVMSNAP_QUEUE_STAGE };
	size_t bytes = 64 * MIB, at;
	struct kvmsnap_stats stats;
	struct kvmsnap_wait wait;
	struct setup s;

	if (run("modprobe -q dm-delay") || run("echo freezer >/sys/power/pm_test"))
		SKIP(return, "this kernel can't try to freeze (CONFIG_PM_SLEEP_DEBUG), or has no dm-delay");
	ASSERT_EQ(0, setup_with(&s, map_anonymous(bytes), bytes, open(self->path, O_RDWR | O_CLOEXEC), 0));
	for (at = 0; at < bytes; at += 2 * PAGE)
		fill_pages(s.mem + at, 1, at);
	ASSERT_EQ(0, run("blkdiscard -z -l %zu %s", bytes, self->path));
	ASSERT_EQ(0, kvmsnap_set_stage(s.session, bytes));
	ASSERT_EQ(0, dm_load(self->dm, "0 $size delay $dev 0 0 $dev 0 40\\n"));
	ASSERT_EQ(0, kvmsnap_queue(s.session, &how, NULL));
	ASSERT_EQ(0, kvmsnap_wait_staged(s.session, PASS_LIMIT, &wait));
	ASSERT_EQ(0, run("echo %u >/sys/power/pm_freeze_timeout", 3000 * slowness()));
	EXPECT_EQ(0, run("echo freeze >/sys/power/state"));
	EXPECT_EQ(0, run("echo 20000 >/sys/power/pm_freeze_timeout; echo none >/sys/power/pm_test"));
	ASSERT_EQ(0, kvmsnap_stats(s.session, &stats));
	EXPECT_EQ(KVMSNAP_STATE_RUNNING, stats.state);
	ASSERT_EQ(0, dm_load(self->dm, DM_LINEAR));
	ASSERT_EQ(0, kvmsnap_wait(s.session, PASS_LIMIT, &wait));
	EXPECT_EQ(0, wait.error);
	EXPECT_TRUE(same_as_file(s.target, 0, s.mem, bytes));
	setup_close(&s);
}

static void nothing(int signal)
{
	(void)signal;
}

TEST_F(held, interrupted_wait)
{
	struct kvmsnap_wait wait;
	struct setup s;
	pid_t child;
	int status;

	ASSERT_EQ(0, begin(&s, self->path));
	hold(self->dm);
	ASSERT_EQ(0, queue_held(s.session));
	child = fork();
	if (!child) {
		kvmsnap_wait(s.session, -1, &wait);
		_exit(0);
	}
	usleep(200000);
	kill(child, SIGKILL);
	EXPECT_EQ(child, waitpid(child, &status, 0));
	/* While it waited. */
	EXPECT_EQ(SIGKILL, status);
	/* A signal that it has a use for ends its waiting, and is not taken for the end of the pass. */
	child = fork();
	if (!child) {
		signal(SIGUSR1, nothing);
		if (kvmsnap_wait(s.session, -1, &wait) != -EINTR)
			_exit(1);
		_exit(wait.state == KVMSNAP_STATE_RUNNING && wait.error == EINTR ? 0 : 2);
	}
	usleep(200000);
	kill(child, SIGUSR1);
	EXPECT_EQ(child, waitpid(child, &status, 0));
	EXPECT_EQ(0, status);
	release(self->dm);
	ASSERT_EQ(0, kvmsnap_wait(s.session, 10 * slowness() * SECOND, &wait));
	EXPECT_EQ(0, wait.error);
	setup_close(&s);
}

TEST_F(held, killed_vmm)
{
	int ready[2], status;
	double began;
	pid_t child;
	char c;

	ASSERT_EQ(0, pipe(ready));
	hold(self->dm);
	child = fork();
	if (!child) {
		struct setup s;

		if (begin(&s, self->path) || queue_held(s.session))
			_exit(1);
		if (write(ready[1], "r", 1) != 1)
			_exit(1);
		pause();
	}
	close(ready[1]);
	ASSERT_EQ(1, read(ready[0], &c, 1));
	began = seconds();
	kill(child, SIGKILL);
	ASSERT_EQ(child, waitpid(child, &status, 0));
	EXPECT_TRUE(WIFSIGNALED(status));
	EXPECT_GT(2 * slowness(), seconds() - began);
	EXPECT_EQ(1, module_references());
	close(ready[0]);
}

/* A VMM in another process, a session of ours on its VM. */
struct vmm {
	pid_t pid;
	int vm;
	char *mem;
};

static int send_fd(int sock, int fd)
{
	char control[CMSG_SPACE(sizeof(int))] = { 0 }, c = 'f';
	struct iovec iov = { &c, 1 };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control,
			      .msg_controllen = sizeof(control) };
	struct cmsghdr *cmsg = CMSG_FIRSTHDR(&msg);

	cmsg->cmsg_level = SOL_SOCKET;
	cmsg->cmsg_type = SCM_RIGHTS;
	cmsg->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(cmsg), &fd, sizeof(int));
	return sendmsg(sock, &msg, 0) == 1 ? 0 : -1;
}

static int receive_fd(int sock)
{
	char control[CMSG_SPACE(sizeof(int))] = { 0 }, c;
	struct iovec iov = { &c, 1 };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control,
			      .msg_controllen = sizeof(control) };
	int fd = -1;

	if (recvmsg(sock, &msg, 0) == 1 && CMSG_FIRSTHDR(&msg))
		memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&msg)), sizeof(int));
	return fd;
}

/* Its memory is mapped, unfilled, here too, so that the address is known. */
static int vmm_start(struct vmm *vmm)
{
	int socks[2];

	vmm->mem = map_anonymous(BYTES);
	if (!vmm->mem || socketpair(AF_UNIX, SOCK_STREAM, 0, socks))
		return -1;
	vmm->pid = fork();
	if (!vmm->pid) {
		int vm = vm_create(vmm->mem, BYTES);

		prctl(PR_SET_PDEATHSIG, SIGKILL);
		fill_pages(vmm->mem, BYTES / PAGE, 21);
		if (send_fd(socks[1], vm))
			_exit(1);
		for (;;)
			pause();
	}
	vmm->vm = receive_fd(socks[0]);
	close(socks[0]);
	close(socks[1]);
	return vmm->vm < 0 ? -1 : 0;
}

TEST(another_process)
{
	int session = kvmsnap_open(NULL), target = target_create(BYTES);
	char *copy = malloc(BYTES);
	struct vmm vmm;

	ASSERT_EQ(0, vmm_start(&vmm));
	ASSERT_EQ(0, kvmsnap_bind_vm(session, vmm.vm));
	ASSERT_EQ(0, kvmsnap_set_target(session, target));
	/* Only what is the VM's: both ends in its memslots. */
	EXPECT_EQ(-ENXIO, kvmsnap_add_region(session, (uintptr_t)vmm.mem + BYTES, PAGE, 0, 0));
	EXPECT_EQ(-ENXIO, kvmsnap_add_region(session, (uintptr_t)vmm.mem - PAGE, 2 * PAGE, 0, 0));
	EXPECT_EQ(-ENXIO, kvmsnap_add_region(session, (uintptr_t)vmm.mem, BYTES + PAGE, 0, 0));
	ASSERT_EQ(0, kvmsnap_add_region(session, (uintptr_t)vmm.mem, BYTES, 0, 0));
	ASSERT_EQ(0, save_all(session));
	fill_pages(copy, BYTES / PAGE, 21);
	EXPECT_TRUE(same_as_file(target, 0, copy, BYTES));
	free(copy);
	kill(vmm.pid, SIGKILL);
	waitpid(vmm.pid, NULL, 0);
	close(vmm.vm);
	close(session);
	close(target);
}

/* The session goes to another process while it writes; the VMM keeps the VM. */
TEST_F(held, passed_on)
{
	int socks[2], status;
	struct kvmsnap_wait wait;
	struct setup s;
	pid_t child;

	ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM, 0, socks));
	child = fork();
	if (!child) {
		int session = receive_fd(socks[1]);

		/* Our own memory is no part of it. */
		if (kvmsnap_wait(session, 30 * SECOND, &wait) || wait.error)
			_exit(1);
		if (kvmsnap_bind_vm(session, 0) != -EBUSY)
			_exit(2);
		_exit(save_all(session) ? 3 : 0);
	}
	ASSERT_EQ(0, begin(&s, self->path));
	hold(self->dm);
	ASSERT_EQ(0, queue_held(s.session));
	ASSERT_EQ(0, send_fd(socks[0], s.session));
	close(s.session);
	release(self->dm);
	ASSERT_EQ(child, waitpid(child, &status, 0));
	EXPECT_EQ(0, status);
	EXPECT_TRUE(same_as_file(s.target, 0, s.mem, BYTES));
	s.session = -1;
	setup_close(&s);
	close(socks[0]);
	close(socks[1]);
}

TEST_F(held, killed_vmm_of_another_session)
{
	struct pollfd pfd = { .events = POLLIN };
	int session, target, event = eventfd(0, 0), i;
	struct kvmsnap_wait wait;
	struct vmm vmm;
	uint64_t count;

	session = kvmsnap_open(NULL);
	target = open(self->path, O_RDWR | O_CLOEXEC);
	ASSERT_EQ(0, vmm_start(&vmm));
	ASSERT_EQ(0, kvmsnap_bind_vm(session, vmm.vm));
	ASSERT_EQ(0, kvmsnap_set_target(session, target));
	ASSERT_EQ(0, kvmsnap_set_eventfd(session, event));
	ASSERT_EQ(0, kvmsnap_add_region(session, (uintptr_t)vmm.mem, BYTES, 0, 0));
	hold(self->dm);
	ASSERT_EQ(0, queue_held(session));
	kill(vmm.pid, SIGKILL);
	/* It dies although its pages are being written. */
	ASSERT_EQ(vmm.pid, waitpid(vmm.pid, NULL, 0));
	release(self->dm);
	ASSERT_EQ(0, kvmsnap_wait(session, 10 * slowness() * SECOND, &wait));
	EXPECT_EQ(KVMSNAP_STATE_DEAD, wait.state);
	/* All of it was in flight, or the rest was given up. */
	EXPECT_TRUE(wait.error == 0 || wait.error == ESRCH);
	EXPECT_EQ(8, read(event, &count, 8));
	pfd.fd = session;
	EXPECT_EQ(1, poll(&pfd, 1, 0));
	EXPECT_TRUE(pfd.revents & POLLHUP);
	for (i = 0; i < 2; i++)
		EXPECT_EQ(-ESRCH, kvmsnap_queue_all(session, NULL));
	EXPECT_EQ(-ESRCH, kvmsnap_set_target(session, target));
	close(vmm.vm);
	close(session);
	close(target);
	close(event);
}

TEST(killed_vmm_when_idle)
{
	int session = kvmsnap_open(NULL), i;
	struct kvmsnap_wait wait;
	struct vmm vmm;

	ASSERT_EQ(0, vmm_start(&vmm));
	ASSERT_EQ(0, kvmsnap_bind_vm(session, vmm.vm));
	kill(vmm.pid, SIGKILL);
	waitpid(vmm.pid, NULL, 0);
	for (i = 0; i < 100; i++) {
		ASSERT_EQ(0, kvmsnap_wait(session, 0, &wait));
		if (wait.state == KVMSNAP_STATE_DEAD)
			break;
		usleep(10000);
	}
	EXPECT_EQ(KVMSNAP_STATE_DEAD, wait.state);
	EXPECT_EQ(-ESRCH, kvmsnap_add_region(session, (uintptr_t)vmm.mem, PAGE, 0, 0));
	close(session);
	/* And one that binds it too late. */
	session = kvmsnap_open(NULL);
	EXPECT_EQ(-ESRCH, kvmsnap_bind_vm(session, vmm.vm));
	close(vmm.vm);
	close(session);
}

/* The descriptor of the VM goes first: the session has its own reference. */
TEST(vm_closed_first)
{
	struct setup s;

	ASSERT_EQ(0, setup_with(&s, map_anonymous(BYTES), BYTES, target_create(BYTES), 0));
	fill_pages(s.mem, BYTES / PAGE, 1);
	close(s.vm);
	ASSERT_EQ(0, save_all(s.session));
	EXPECT_TRUE(same_as_file(s.target, 0, s.mem, BYTES));
	close(s.target);
	close(s.session);
	munmap(s.mem, BYTES);
}

TEST(target_closed_first)
{
	struct setup s;
	int again;
	char path[64];

	ASSERT_EQ(0, setup_with(&s, map_anonymous(BYTES), BYTES, target_create(BYTES), 0));
	snprintf(path, sizeof(path), "/proc/self/fd/%d", s.target);
	again = open(path, O_RDONLY);
	fill_pages(s.mem, BYTES / PAGE, 1);
	close(s.target);
	ASSERT_EQ(0, save_all(s.session));
	EXPECT_TRUE(same_as_file(again, 0, s.mem, BYTES));
	close(again);
	close(s.session);
	close(s.vm);
	munmap(s.mem, BYTES);
}

/* fork(): the session is the descriptor's, and its VM stays the parent's. */
TEST(child_goes_on_with_the_session)
{
	struct setup s;
	int status;
	pid_t child;

	ASSERT_EQ(0, setup_with(&s, map_anonymous(BYTES), BYTES, target_create(BYTES), 0));
	fill_pages(s.mem, BYTES / PAGE, 1);
	child = fork();
	if (!child) {
		memset(s.mem, 0, BYTES);	/* its own copy */
		_exit(save_all(s.session));
	}
	ASSERT_EQ(child, waitpid(child, &status, 0));
	EXPECT_EQ(0, status);
	EXPECT_TRUE(same_as_file(s.target, 0, s.mem, BYTES));
	setup_close(&s);
}

/* exec(): the old address space is gone, and with it the VM. */
TEST_F(held, exec)
{
	int status, ready[2];
	pid_t child;
	char c;

	ASSERT_EQ(0, pipe(ready));
	hold(self->dm);
	child = fork();
	if (!child) {
		struct setup s;

		if (begin(&s, self->path) || queue_held(s.session))
			_exit(1);
		fcntl(s.session, F_SETFD, 0);
		execl("/bin/sh", "sh", "-c", "echo r >&$0; exec sleep 1000", (char[]){ '0' + ready[1], 0 }, NULL);
		_exit(1);
	}
	ASSERT_EQ(1, read(ready[0], &c, 1));
	/* The image was replaced with writes in flight; the descriptor is still open. */
	EXPECT_EQ(1, module_references() >= 1);
	kill(child, SIGKILL);
	EXPECT_EQ(child, waitpid(child, &status, 0));
	EXPECT_TRUE(WIFSIGNALED(status));
	close(ready[0]);
	close(ready[1]);
}

TEST(frozen_file_system)
{
	struct kvmsnap_wait wait;
	struct kvmsnap_stats stats;
	char path[256];
	struct setup s;
	int fs;

	ASSERT_EQ(0, run("cd %s && truncate -s 200M frozen.img && mkfs.ext4 -qF frozen.img && mkdir -p frozen && "
			 "mount -o loop frozen.img frozen", test_dir()));
	snprintf(path, sizeof(path), "%s/frozen/target", test_dir());
	ASSERT_EQ(0, setup_with(&s, map_anonymous(BYTES), BYTES,
				open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600), 0));
	ASSERT_EQ(0, ftruncate(s.target, BYTES));
	fill_pages(s.mem, BYTES / PAGE, 1);
	snprintf(path, sizeof(path), "%s/frozen", test_dir());
	fs = open(path, O_RDONLY | O_CLOEXEC);
	ASSERT_EQ(0, ioctl(fs, FIFREEZE, 0));

	/* It waits, and can be cancelled while it waits. */
	EXPECT_EQ(0, kvmsnap_queue_all(s.session, NULL));
	EXPECT_EQ(-ETIME, kvmsnap_wait(s.session, SECOND / 2, &wait));
	EXPECT_EQ(0, kvmsnap_stats(s.session, &stats));
	EXPECT_EQ(0, stats.in_flight);
	EXPECT_EQ(0, kvmsnap_cancel(s.session));
	EXPECT_EQ(0, kvmsnap_wait(s.session, 5 * slowness() * SECOND, &wait));
	EXPECT_EQ(ECANCELED, wait.error);

	/* It waits, and goes on after the thaw. */
	EXPECT_EQ(0, kvmsnap_set_target(s.session, s.target));
	EXPECT_EQ(0, kvmsnap_queue_all(s.session, NULL));
	EXPECT_EQ(-ETIME, kvmsnap_wait(s.session, SECOND / 2, &wait));
	EXPECT_EQ(0, ioctl(fs, FITHAW, 0));
	EXPECT_EQ(0, kvmsnap_wait(s.session, 30 * slowness() * SECOND, &wait));
	EXPECT_EQ(0, wait.error);
	EXPECT_TRUE(same_as_file(s.target, 0, s.mem, BYTES));
	close(fs);
	setup_close(&s);
	EXPECT_EQ(0, run("cd %s && umount frozen && rm -rf frozen frozen.img", test_dir()));
}

/* As another user, with an open device: one's own VM and no other. */
TEST(permission)
{
	int session = kvmsnap_open(NULL), kvm = open("/dev/kvm", O_RDWR), status, own;
	struct vmm vmm;
	pid_t child;

	ASSERT_EQ(0, vmm_start(&vmm));
	child = fork();
	if (!child) {
		if (setgroups(0, NULL) || setgid(65534) || setuid(65534))
			_exit(1);
		if (kvmsnap_open(NULL) != -EACCES)
			_exit(2);
		if (kvmsnap_bind_vm(session, vmm.vm) != -EPERM)
			_exit(3);
		own = ioctl(kvm, KVM_CREATE_VM, 0);
		if (own < 0 || kvmsnap_bind_vm(session, own))
			_exit(4);
		_exit(0);
	}
	ASSERT_EQ(child, waitpid(child, &status, 0));
	EXPECT_EQ(0, status);
	kill(vmm.pid, SIGKILL);
	waitpid(vmm.pid, NULL, 0);
	close(vmm.vm);
	close(session);
	close(kvm);
}

static int print_session(const struct kvmsnap_session_info *info, void *data)
{
	*(struct kvmsnap_session_info *)data = *info;
	return 0;
}

TEST(netlink_lists_sessions)
{
	struct kvmsnap_session_info info = { 0 };
	struct setup s;

	ASSERT_EQ(0, setup_with(&s, map_anonymous(BYTES), BYTES, target_create(BYTES), 0));
	fill_pages(s.mem, 10, 1);
	ASSERT_EQ(0, save_all(s.session));
	ASSERT_EQ(0, kvmsnap_list_sessions(print_session, &info));
	EXPECT_EQ(getpid(), info.owner_pid);
	EXPECT_EQ(getpid(), info.vm_pid);
	EXPECT_LT(0, info.id);
	EXPECT_EQ(10, info.stats.pages_written);
	EXPECT_EQ(KVMSNAP_STATE_IDLE, info.stats.state);
	setup_close(&s);
	info.id = 0;
	ASSERT_EQ(0, kvmsnap_list_sessions(print_session, &info));
	EXPECT_EQ(0, info.id);
}

/* When WAIT has returned, close leaves nothing behind: the next command may unmount or unload. */
TEST(nothing_is_left_after_wait)
{
	struct kvmsnap_wait wait;
	int i, left = 0;

	ASSERT_EQ(0, module_references());
	for (i = 0; i < 300; i++) {
		struct setup s;

		ASSERT_EQ(0, setup_with(&s, map_anonymous(MIB), MIB, target_create(MIB), 0));
		fill_pages(s.mem, 1, 1);
		ASSERT_EQ(0, kvmsnap_queue_all(s.session, NULL));
		ASSERT_EQ(0, kvmsnap_wait(s.session, PASS_LIMIT, &wait));
		close(s.session);
		s.session = -1;
		left += module_references() != 0;
		setup_close(&s);
	}
	EXPECT_EQ(0, left);
}

/* Load and unload; and with a session open it stays. */
TEST(load_and_unload)
{
	int session = kvmsnap_open(NULL), i;

	ASSERT_LE(0, session);
	EXPECT_NE(0, unload());
	close(session);
	for (i = 0; i < 5; i++) {
		EXPECT_EQ(0, unload());
		EXPECT_EQ(0, run("modprobe kvmsnap"));
	}
}

TEST_HARNESS_MAIN
