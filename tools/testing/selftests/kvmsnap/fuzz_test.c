// SPDX-License-Identifier: GPL-2.0
/*
 * Hostile VMMs: processes whose threads do by chance what the ABI and KVM let them, against each
 * other: descriptors closed and replaced, guest memory unmapped, replaced, of userfaultfd and FUSE that
 * never answer, ring entries scribbled over, memslots changed while vCPUs run; and they are killed in
 * the middle, while their target's device may hang.  None may be left that can't be killed, no session
 * may live on, and the kernel must have nothing to say.
 *
 * What a thread does is bytes of a program.  Where the kernel has KCOV, one that has reached code that none
 * had is kept, and others are made from it.
 *
 * KVMSNAP_FUZZ: ioctls (20000).  KVMSNAP_SEED: repeats the programs, if not their order.
 * KVMSNAP_CORPUS: a file of programs, which are run first.  KVMSNAP_KEEP: keep in it, in the end, those
 * that the code reached needs.
 */
#include <linux/fuse.h>
#include <linux/kcov.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include "kvmsnap_test.h"

#define THREADS		3
#define PROGRAM		192		/* bytes, at most */
#define MAX_PROGRAMS	4096
#define COVER		(64u << 10)	/* entries of KCOV's buffer */
#define REGION		(1 * MIB)	/* each of guest memory's parts */
#define RING		(64u << 10)	/* bytes of a dirty ring */

enum { ANONYMOUS, MEMFD, UFFD, FUSE, OWN_FILE, NR_PARTS };
#define MEMORY		(NR_PARTS * REGION)

static const char *const op_names[] = {
	"open", "close", "BIND_VM", "SET_TARGET", "ADD_REGION", "QUEUE", "WAIT", "CANCEL", "STATS", "GET_BITMAP",
	"SET_EVENTFD", "TRACK", "HARVEST", "MARK_DIRTY", "SET_STAGE", "SET_PHASE", "GET_HASHES", "INFO", "garbage",
	"mmap", "munmap", "mprotect", "madvise", "memslot", "scribble", "KVM_RUN", "replace fd", "write", "save",
};

#define NR_OPS (sizeof(op_names) / sizeof(*op_names))

struct program {
	uint16_t len;
	uint8_t bytes[PROGRAM];
};

/* Of all processes. */
static struct shared {
	atomic_ulong ioctls, did[NR_OPS], worked[NR_OPS], edges;
	atomic_uint nr_programs, next_of_corpus;
	unsigned int nr_corpus;
	atomic_uchar seen[1 << 16];
	struct program program[MAX_PROGRAMS], corpus[MAX_PROGRAMS];
} *shared;

/* Where its own code is. */
static uint64_t module_start, module_bytes;

static void find_module(void)
{
	FILE *f = fopen("/proc/modules", "r");
	unsigned long bytes, start;
	char line[512];

	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "kvmsnap %lu %*s %*s %*s %lx", &bytes, &start) == 2) {
			module_start = start;
			module_bytes = bytes;
		}
	if (f)
		fclose(f);
}

static uint64_t mix(uint64_t *state)
{
	uint64_t x = *state += 0x9e3779b97f4a7c15;

	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
	x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
	return x ^ (x >> 31);
}

/* A FUSE file system with one file, which can be opened, and is never read. */
static char fuse_path[64];

static void fuse_answer(int fd, uint64_t unique, int error, const void *data, size_t len)
{
	char buf[512];
	struct fuse_out_header head = { .len = (uint32_t)(sizeof(head) + len), .error = error, .unique = unique };

	memcpy(buf, &head, sizeof(head));
	memcpy(buf + sizeof(head), data, len);
	if (write(fd, buf, head.len) < 0 && errno != ENOENT)
		perror("# fuse");
}

static void *fuse_serve(void *arg)
{
	static char buf[256 << 10];
	int fd = (int)(intptr_t)arg;

	while (read(fd, buf, sizeof(buf)) > 0 || errno == EINTR) {
		struct fuse_in_header *in = (struct fuse_in_header *)buf;
		struct fuse_attr attr = {
			.ino = in->nodeid == 1 ? 1 : 2, .mode = in->nodeid == 1 ? S_IFDIR | 0755 : S_IFREG | 0644,
			.nlink = 1, .size = REGION, .blocks = REGION / 512, .blksize = PAGE,
		};
		struct fuse_init_out init = { .major = FUSE_KERNEL_VERSION, .minor = 31, .max_write = 4096 };
		struct fuse_entry_out entry = { .nodeid = 2, .attr_valid = 1000, .entry_valid = 1000 };
		struct fuse_attr_out got = { .attr_valid = 1000, .attr = attr };
		struct fuse_open_out opened = { 0 };

		switch (in->opcode) {
		case FUSE_INIT:
			fuse_answer(fd, in->unique, 0, &init, sizeof(init));
			break;
		case FUSE_LOOKUP:
			attr.ino = 2;
			attr.mode = S_IFREG | 0644;
			entry.attr = attr;
			fuse_answer(fd, in->unique, 0, &entry, sizeof(entry));
			break;
		case FUSE_GETATTR:
			fuse_answer(fd, in->unique, 0, &got, sizeof(got));
			break;
		case FUSE_OPEN:
			fuse_answer(fd, in->unique, 0, &opened, sizeof(opened));
			break;
		case FUSE_READ:
			break;
		case FUSE_FORGET:
		case FUSE_BATCH_FORGET:
		case FUSE_INTERRUPT:
			break;
		default:
			fuse_answer(fd, in->unique, -ENOSYS, NULL, 0);
		}
	}
	return NULL;
}

static int fuse_start(void)
{
	char options[128], dir[48];
	pthread_t thread;
	int fd;

	run("modprobe -q fuse");
	fd = open("/dev/fuse", O_RDWR | O_CLOEXEC);
	snprintf(dir, sizeof(dir), "/tmp/kvmsnap-fuse.%d", (int)getpid());
	snprintf(fuse_path, sizeof(fuse_path), "%s/file", dir);
	snprintf(options, sizeof(options), "fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other", fd);
	if (fd < 0 || mkdir(dir, 0700) < 0 || mount("fuzz", dir, "fuse", 0, options) < 0 ||
	    pthread_create(&thread, NULL, fuse_serve, (void *)(intptr_t)fd))
		return -1;
	pthread_detach(thread);
	return fd;
}

static void fuse_end(int fd)
{
	/* Whoever waits for it gets an error. */
	close(fd);
	*strrchr(fuse_path, '/') = 0;
	umount2(fuse_path, MNT_DETACH);
	rmdir(fuse_path);
}

/* A hostile VMM, which its threads share: all of it changes under each of them. */
static struct {
	char *memory;
	int session[4], vm[2], vcpu, target[4], event, uffd, mem;
	struct kvm_run *run;
	char *ring;
} vmm;

/* A thread, and the program that it is in. */
struct thread {
	uint64_t random;
	const struct program *program;
	size_t at;
	int kcov;
	uint64_t *cover;
};

static uint8_t byte(struct thread *t)
{
	return t->at < t->program->len ? t->program->bytes[t->at++] : 0;
}

/* One of few choices that matter, or anything. */
static uint64_t number(struct thread *t)
{
	static const uint64_t choices[] = {
		0, 1, 2, 16, PAGE - 1, PAGE, 2 * PAGE, REGION / PAGE, REGION, MEMORY / PAGE, MEMORY, 1 << 30, UINT32_MAX,
		INT64_MAX, UINT64_MAX, UINT64_MAX - PAGE + 1,
	};
	uint8_t b = byte(t);

	if (b < 128)
		return choices[b % (sizeof(choices) / sizeof(*choices))];
	if (b < 192)
		return byte(t) * PAGE;
	return (uint64_t)byte(t) << b % 57 | byte(t);
}

static uint64_t address(struct thread *t)
{
	uint8_t b = byte(t);

	return b < 240 ? (uintptr_t)vmm.memory + (uint64_t)(b % NR_PARTS) * REGION + byte(t) % 4 * 8 * PAGE : number(t);
}

/* Mostly of a thing's kind. */
static int descriptor(struct thread *t, const int *fds, size_t nr)
{
	uint8_t b = byte(t);

	return b < 224 ? fds[b % nr] : b < 240 ? (int)byte(t) : b < 250 ? vmm.event : -1;
}

static int session(struct thread *t)
{
	return vmm.session[byte(t) % 4];
}

static long count(int op, long ret)
{
	atomic_fetch_add(&shared->ioctls, 1);
	if (ret >= 0)
		atomic_fetch_add(&shared->worked[op], 1);
	return ret;
}

static void *map_part(int part, void *at)
{
	int flags = at ? MAP_FIXED : 0, fd = -1;
	void *p = MAP_FAILED;
	char path[64];

	switch (part) {
	case MEMFD:
		fd = memfd_create("fuzz", MFD_CLOEXEC);
		if (ftruncate(fd, REGION) == 0)
			p = mmap(at, REGION, PROT_READ | PROT_WRITE, MAP_SHARED | flags, fd, 0);
		break;
	case FUSE:
		fd = open(fuse_path, O_RDONLY | O_CLOEXEC);
		p = mmap(at, REGION, PROT_READ, MAP_PRIVATE | flags, fd, 0);
		break;
	case OWN_FILE:
		snprintf(path, sizeof(path), "/proc/self/fd/%d", vmm.target[0]);
		fd = open(path, O_RDWR | O_CLOEXEC);
		p = mmap(at, REGION, PROT_READ | PROT_WRITE, MAP_SHARED | flags, fd, 0);
		break;
	}
	if (p == MAP_FAILED)
		p = mmap(at, REGION, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
	if (fd >= 0)
		close(fd);
	if (part == UFFD) {
		struct uffdio_register reg = {
			.range = { (uintptr_t)p + REGION / 2, REGION / 2 }, .mode = UFFDIO_REGISTER_MODE_MISSING,
		};

		ioctl(vmm.uffd, UFFDIO_REGISTER, &reg);
	}
	return p;
}

/* In real mode: add to a byte of each of 16 pages, 256 times, and halt. */
static const uint8_t guest_code[] = {
	0xb9, 0x00, 0x01, 0xbb, 0x00, 0x20, 0x00, 0x07, 0x81, 0xc3, 0x00, 0x10, 0xe2, 0xf8, 0xf4,
};

static void make_vm(int nr)
{
	struct kvm_enable_cap ring = { .cap = KVM_CAP_DIRTY_LOG_RING, .args = { RING } };
	struct kvm_userspace_memory_region slot = {
		.memory_size = MEMORY, .userspace_addr = (uintptr_t)vmm.memory, .flags = KVM_MEM_LOG_DIRTY_PAGES,
	};
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC), vm = ioctl(kvm, KVM_CREATE_VM, 0);
	struct kvm_sregs sregs;
	struct kvm_regs regs = { .rip = 0x1000, .rflags = 2 };

	vmm.vm[nr] = vm;
	if (nr == 0) {
		ioctl(vm, KVM_ENABLE_CAP, &ring);
		ioctl(vm, KVM_SET_USER_MEMORY_REGION, &slot);
		vmm.vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
		ioctl(vmm.vcpu, KVM_GET_SREGS, &sregs);
		sregs.cs.base = sregs.cs.selector = 0;
		ioctl(vmm.vcpu, KVM_SET_SREGS, &sregs);
		ioctl(vmm.vcpu, KVM_SET_REGS, &regs);
		vmm.ring = mmap(NULL, RING, PROT_READ | PROT_WRITE, MAP_SHARED, vmm.vcpu,
				KVM_DIRTY_LOG_PAGE_OFFSET * PAGE);
	} else {
		ioctl(vm, KVM_SET_USER_MEMORY_REGION, &slot);
	}
	close(kvm);
}

static void run_guest(void)
{
	struct kvm_regs regs = { .rip = 0x1000, .rflags = 2 };

	/* It may have been unmapped. */
	if (pwrite(vmm.mem, guest_code, sizeof(guest_code), (off_t)(uintptr_t)vmm.memory + 0x1000) < 0)
		return;
	ioctl(vmm.vcpu, KVM_SET_REGS, &regs);
	ioctl(vmm.vcpu, KVM_RUN, 0);
}

/* A save as it is meant: what is done by chance begins where this ends more often than it would by chance. */
static long whole_save(struct thread *t)
{
	int fd = kvmsnap_open(NULL), old;
	uint8_t how = byte(t);

	kvmsnap_bind_vm(fd, vmm.vm[how & 1]);
	kvmsnap_set_target(fd, vmm.target[how >> 1 & 1]);
	kvmsnap_add_region(fd, (uintptr_t)vmm.memory, how & 4 ? REGION : MEMORY, 0, how & 8 ? KVMSNAP_REGION_WHOLE : 0);
	if (how & 16)
		kvmsnap_set_stage(fd, REGION);
	if (how & 32)
		kvmsnap_track(fd, 1 + how % 3, KVMSNAP_TRACK_HASH);
	atomic_fetch_add(&shared->ioctls, 5);
	old = vmm.session[how % 4];
	vmm.session[how % 4] = fd;
	close(old);
	return kvmsnap_queue_all(fd, NULL);
}

static void raw_garbage(struct thread *t)
{
	uint8_t buf[256];
	uint32_t size = byte(t);
	size_t i;

	for (i = 0; i < sizeof(buf); i++)
		buf[i] = byte(t);
	if (byte(t) & 1)
		memcpy(buf, &size, sizeof(size));
	ioctl(session(t), _IO(KVMSNAP_TYPE, byte(t) % 20), buf);
}

static long do_op(struct thread *t, int op)
{
	static char data[64 << 10];
	struct kvmsnap_hva_range hva[2] = { { address(t), number(t) }, { address(t), PAGE } };
	struct kvmsnap_range ranges[2] = { { .region_id = byte(t) % 3, .first_page = number(t), .nr_pages = number(t) } };
	struct kvmsnap_queue how = {
		.flags = byte(t) & 7, .kind = byte(t) % 4, .ranges = (uintptr_t)ranges, .nr_ranges = byte(t) % 3,
		.bytes_per_second = number(t),
	};
	static const int64_t timeouts[] = { 0, 1000, 1000000, 20000000 };
	struct kvmsnap_harvest harvest;
	struct kvmsnap_stats stats;
	struct kvmsnap_wait wait;
	struct kvmsnap_info info;
	int fd = session(t), which, *slot;
	char *part = vmm.memory + byte(t) % NR_PARTS * REGION;
	struct kvm_userspace_memory_region memslot;
	uint8_t key[16];

	switch (op) {
	case 0:
		slot = &vmm.session[byte(t) % 4];
		if (*slot >= 0)
			return 0;
		*slot = kvmsnap_open(NULL);
		return *slot;
	case 1:
		slot = &vmm.session[byte(t) % 4];
		fd = *slot;
		*slot = -1;
		return close(fd);
	case 2:
		return count(op, kvmsnap_bind_vm(fd, descriptor(t, vmm.vm, 2)));
	case 3:
		return count(op, kvmsnap_set_target_at(fd, descriptor(t, vmm.target, 4), byte(t) < 200 ? 0 : number(t), byte(t) % 4));
	case 4:
		return count(op, kvmsnap_add_region(fd, address(t), number(t), number(t), byte(t) % 3));
	case 5:
		return count(op, kvmsnap_queue(fd, &how, NULL));
	case 6:
		return count(op, byte(t) & 1 ? kvmsnap_wait(fd, timeouts[byte(t) % 4], &wait) :
					       kvmsnap_wait_staged(fd, timeouts[byte(t) % 4], &wait));
	case 7:
		return count(op, kvmsnap_cancel(fd));
	case 8:
		return count(op, kvmsnap_stats(fd, &stats));
	case 9:
		return count(op, byte(t) & 1 ? kvmsnap_get_dirty(fd, byte(t) % 3, number(t), number(t) % 1024, data) :
					       kvmsnap_get_bitmap(fd, byte(t) % 3, number(t), number(t) % 1024, data));
	case 10:
		return count(op, kvmsnap_set_eventfd(fd, descriptor(t, &vmm.event, 1)));
	case 11:
		return count(op, kvmsnap_track(fd, byte(t) % 5, byte(t) % 3));
	case 12:
		return count(op, kvmsnap_harvest(fd, &harvest));
	case 13:
		return count(op, kvmsnap_mark_dirty_ranges(fd, hva, 1 + byte(t) % 2));
	case 14:
		return count(op, kvmsnap_set_stage(fd, number(t)));
	case 15:
		return count(op, kvmsnap_set_phase(fd, byte(t) % 10, number(t)));
	case 16:
		return count(op, kvmsnap_get_hashes(fd, byte(t) % 3, number(t), number(t) % 1024, (uint64_t *)data, key));
	case 17:
		return count(op, kvmsnap_info(fd, &info));
	case 18:
		raw_garbage(t);
		return count(op, -1);
	case 19:
		/* Not where the guest or a thread would touch it: who waits for FUSE can't be killed anyway. */
		which = byte(t) % NR_PARTS;
		return map_part(which, which == FUSE ? vmm.memory + FUSE * REGION : part) == MAP_FAILED;
	case 20:
		return munmap(part + byte(t) % 4 * PAGE, (1 + byte(t) % 64) * PAGE);
	case 21:
		return mprotect(part, (1 + byte(t)) * PAGE, byte(t) % 4);
	case 22:
		return madvise(part, REGION, byte(t) & 1 ? MADV_DONTNEED : MADV_PAGEOUT);
	case 23:
		memslot = (struct kvm_userspace_memory_region){
			.slot = byte(t) % 2, .flags = byte(t) % 4, .guest_phys_addr = byte(t) < 192 ? 0 : number(t),
			.memory_size = byte(t) & 1 ? MEMORY : 0, .userspace_addr = (uintptr_t)vmm.memory,
		};
		return count(op, ioctl(vmm.vm[0], KVM_SET_USER_MEMORY_REGION, &memslot));
	case 24:
		if (vmm.ring != MAP_FAILED)
			((uint64_t *)vmm.ring)[(byte(t) << 8 | byte(t)) % (RING / 8)] = number(t);
		return 0;
	case 25:
		return 0;	/* a thread of its own does it */
	case 26:
		/* Whatever that number was now is something else. */
		fd = descriptor(t, vmm.session, 4);
		return fd > 2 ? dup2(descriptor(t, vmm.target, 4), fd) : -1;
	case 27:
		return pwrite(vmm.target[0], data, sizeof(data), byte(t) * PAGE);
	default:
		return count(op, whole_save(t));
	}
}

/*
 * Run a program; is it one to be kept, because it has reached what none had?  Without KCOV one of the
 * corpus is taken to have.
 */
static bool run_program(struct thread *t, const struct program *program, bool of_corpus)
{
	bool fresh = false;
	uint64_t i, n;

	t->program = program;
	t->at = 0;
	if (t->cover) {
		ioctl(t->kcov, KCOV_ENABLE, KCOV_TRACE_PC);
		__atomic_store_n(&t->cover[0], 0, __ATOMIC_RELAXED);
	}
	while (t->at < program->len) {
		int op = byte(t) % (int)NR_OPS;

		atomic_fetch_add(&shared->did[op], 1);
		do_op(t, op);
	}
	if (!t->cover)
		return of_corpus;
	n = __atomic_load_n(&t->cover[0], __ATOMIC_RELAXED);
	ioctl(t->kcov, KCOV_DISABLE, 0);
	for (i = 1; i <= n && i < COVER; i++) {
		if (t->cover[i] - module_start >= module_bytes)
			continue;
		if (!atomic_exchange(&shared->seen[t->cover[i] * 0x9e3779b97f4a7c15 >> 48], 1)) {
			atomic_fetch_add(&shared->edges, 1);
			fresh = true;
		}
	}
	return fresh;
}

static void make_program(struct thread *t, struct program *program)
{
	unsigned int nr = atomic_load(&shared->nr_programs), i;

	nr = nr < MAX_PROGRAMS ? nr : MAX_PROGRAMS;
	if (nr && mix(&t->random) % 4) {
		*program = shared->program[mix(&t->random) % nr];
		if (program->len > PROGRAM)
			program->len = PROGRAM;
		for (i = mix(&t->random) % 8; i > 0 && program->len; i--)
			program->bytes[mix(&t->random) % program->len] = (uint8_t)mix(&t->random);
		/* The end of another behind its beginning. */
		if (mix(&t->random) % 3 == 0) {
			const struct program *other = &shared->program[mix(&t->random) % nr];
			size_t cut = mix(&t->random) % PROGRAM;

			memcpy(program->bytes + cut, other->bytes + cut, PROGRAM - cut);
			program->len = PROGRAM;
		}
		return;
	}
	program->len = (uint16_t)(16 + mix(&t->random) % (PROGRAM - 16));
	for (i = 0; i < program->len; i++)
		program->bytes[i] = (uint8_t)mix(&t->random);
}

static void *fuzz_thread(void *arg)
{
	struct thread t = { .random = (uintptr_t)arg, .kcov = open("/sys/kernel/debug/kcov", O_RDWR | O_CLOEXEC) };
	struct program program;
	unsigned int nr;
	bool of_corpus;

	if (t.kcov >= 0 && ioctl(t.kcov, KCOV_INIT_TRACE, COVER) == 0) {
		t.cover = mmap(NULL, COVER * 8, PROT_READ | PROT_WRITE, MAP_SHARED, t.kcov, 0);
		if (t.cover == MAP_FAILED)
			t.cover = NULL;
	}
	for (;;) {
		nr = atomic_load(&shared->next_of_corpus);
		if (nr < shared->nr_corpus)
			nr = atomic_fetch_add(&shared->next_of_corpus, 1);
		of_corpus = nr < shared->nr_corpus;
		if (of_corpus)
			program = shared->corpus[nr];
		else
			make_program(&t, &program);
		if (run_program(&t, &program, of_corpus)) {
			nr = atomic_fetch_add(&shared->nr_programs, 1);
			if (nr < MAX_PROGRAMS)
				shared->program[nr] = program;
			else
				atomic_store(&shared->nr_programs, MAX_PROGRAMS);
		}
	}
	return NULL;
}

static void hostile(uint64_t seed)
{
	const char *dm = getenv("KVMSNAP_DM");
	struct uffdio_api api = { .api = UFFD_API };
	pthread_t thread;
	int i;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	vmm.uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	ioctl(vmm.uffd, UFFDIO_API, &api);
	vmm.target[0] = target_create(MEMORY);
	vmm.target[1] = dm ? dm_open(dm) : -1;
	vmm.target[2] = target_create(MEMORY);
	vmm.target[3] = memfd_create("target", MFD_CLOEXEC);
	vmm.mem = open("/proc/self/mem", O_RDWR | O_CLOEXEC);
	vmm.event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	vmm.memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	for (i = 0; i < NR_PARTS; i++)
		map_part(i, vmm.memory + (size_t)i * REGION);
	fill_pages(vmm.memory, 2 * REGION / PAGE, seed);
	for (i = 0; i < 2; i++)
		make_vm(i);
	for (i = 0; i < 4; i++)
		vmm.session[i] = kvmsnap_open(NULL);
	for (i = 0; i < THREADS; i++)
		pthread_create(&thread, NULL, fuzz_thread, (void *)(uintptr_t)(seed + (unsigned int)i));
	for (;;) {
		run_guest();
		atomic_fetch_add(&shared->did[25], 1);
		usleep(10000);
	}
}

/* Let it live so long, or until all its threads wait for what never answers. */
static void live_for(useconds_t time)
{
	unsigned long before = atomic_load(&shared->ioctls), was = before, now;
	useconds_t idle = 0, past;

	for (past = 0; past < time && idle < 500000; past += 50000) {
		usleep(50000);
		now = atomic_load(&shared->ioctls);
		idle = now > was || now == before ? 0 : idle + 50000;
		was = now;
	}
}

/* Wait for its end: false when it can't be killed. */
static bool reap(pid_t pid)
{
	char command[128];
	int i;

	for (i = 0; i < 600 * (int)slowness(); i++) {
		if (waitpid(pid, NULL, WNOHANG) == pid)
			return true;
		usleep(100000);
	}
	snprintf(command, sizeof(command), "for t in /proc/%d/task/*; do cat $t/comm $t/stack; done | sed 's/^/# /'", (int)pid);
	run("%s", command);
	return false;
}

static void load_corpus(const char *path)
{
	FILE *f = path ? fopen(path, "r") : NULL;
	struct program p;

	while (f && shared->nr_corpus < MAX_PROGRAMS && fread(&p.len, 2, 1, f) == 1 && p.len <= PROGRAM &&
	       fread(p.bytes, 1, p.len, f) == p.len)
		shared->corpus[shared->nr_corpus++] = p;
	if (f)
		fclose(f);
}

static void keep_corpus(const char *path)
{
	FILE *f = path && atomic_load(&shared->edges) ? fopen(path, "w") : NULL;
	unsigned int i, nr = atomic_load(&shared->nr_programs);

	for (i = 0; f && i < nr && i < MAX_PROGRAMS; i++) {
		fwrite(&shared->program[i].len, 2, 1, f);
		fwrite(shared->program[i].bytes, 1, shared->program[i].len, f);
	}
	if (f)
		fclose(f);
}

FIXTURE(hostile) {
	int fuse;
};

FIXTURE_SETUP(hostile)
{
	self->fuse = fuse_start();
	ASSERT_LE(0, self->fuse);
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, shared);
	load_corpus(getenv("KVMSNAP_CORPUS"));
	find_module();
	ASSERT_NE(0, module_start);
}

FIXTURE_TEARDOWN(hostile)
{
	const char *keep = getenv("KVMSNAP_KEEP");

	if (keep && *keep)
		keep_corpus(getenv("KVMSNAP_CORPUS"));
	fuse_end(self->fuse);
	munmap(shared, sizeof(*shared));
}

TEST_F_TIMEOUT(hostile, vmms, 36000)
{
	unsigned long wanted = getenv("KVMSNAP_FUZZ") ? strtoul(getenv("KVMSNAP_FUZZ"), NULL, 10) : 20000;
	uint64_t seed = getenv("KVMSNAP_SEED") ? strtoull(getenv("KVMSNAP_SEED"), NULL, 10) : (uint64_t)time(NULL);
	unsigned int killed = 0, died = 0, i;
	double began = seconds(), told = began;
	const char *dm = getenv("KVMSNAP_DM");
	uint64_t random = seed;
	pid_t pid;

	TH_LOG("seed %llu", (unsigned long long)seed);
	while (atomic_load(&shared->ioctls) < wanted) {
		bool suspend = dm && mix(&random) % 8 == 0;

		pid = fork();
		ASSERT_LE(0, pid);
		if (!pid)
			hostile(mix(&random));
		/* Some die young; making a VM takes longer than most of what is done with it. */
		live_for(50000 + (useconds_t)(mix(&random) % (mix(&random) % 2 ? 1500000 : 12000000)));
		if (suspend)
			ASSERT_EQ(0, run("dmsetup suspend --noflush --nolockfs %s", dm));
		if (suspend)
			usleep(100000);
		died += waitpid(pid, NULL, WNOHANG) == pid;
		if (kill(pid, SIGKILL) == 0)
			killed++;
		if (suspend) {
			usleep(200000);
			ASSERT_EQ(0, run("dmsetup resume %s", dm));
		}
		if (waitpid(pid, NULL, WNOHANG) == 0)
			ASSERT_TRUE(reap(pid));
		if (seconds() - told > 30) {
			told = seconds();
			TH_LOG("%.0f s: %lu ioctls, %u killed, %u had died", told - began,
			       atomic_load(&shared->ioctls), killed, died);
		}
	}
	for (i = 0; i < 100 && module_references(); i++)
		usleep(100000);
	EXPECT_EQ(0, module_references());
	for (i = 0; i < NR_OPS; i++)
		TH_LOG("%10lu %-12s %10lu worked", atomic_load(&shared->did[i]), op_names[i],
		       atomic_load(&shared->worked[i]));
	TH_LOG("%lu ioctls, %u programs of the corpus, %u processes killed, %u had died; %lu places in the module reached, %u programs kept",
	       atomic_load(&shared->ioctls), shared->nr_corpus, killed, died, atomic_load(&shared->edges),
	       atomic_load(&shared->nr_programs));
	/* By chance, but what a save is made of has been done many times. */
	EXPECT_LT(wanted / 1000, atomic_load(&shared->worked[NR_OPS - 1]));
}

TEST_HARNESS_MAIN
