// SPDX-License-Identifier: GPL-2.0
#include "machine.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "kvmsnap.h"
#include "reaper.h"

#define HUGE		(2UL << 20)

/* RAM is two memslots, in both address spaces when there is SMM. */
#define SLOT_LOW	0
#define SLOT_HIGH	7

static int fail(const char *what)
{
	int err = errno;

	fprintf(stderr, "vmm: %s: %s\n", what, strerror(err));
	return -err;
}

static int set_slot(struct machine *m, unsigned int as, unsigned int id, size_t start, size_t end,
		    bool log)
{
	struct kvm_userspace_memory_region slot = {
		.slot = as << 16 | id,
		.flags = log ? KVM_MEM_LOG_DIRTY_PAGES : 0,
		.guest_phys_addr = start,
		.memory_size = end - start,
		.userspace_addr = (uintptr_t)m->ram + start,
	};

	return ioctl(m->vm, KVM_SET_USER_MEMORY_REGION, &slot) < 0 ?
	       fail("KVM_SET_USER_MEMORY_REGION") : 0;
}

static int set_slots(struct machine *m, size_t low_end, size_t end, bool log)
{
	unsigned int low = m->swapped ? SLOT_HIGH : SLOT_LOW, high = SLOT_LOW + SLOT_HIGH - low, as;
	int err = 0;

	for (as = 0; as <= m->config.smm && !err; as++) {
		err = set_slot(m, as, low, 0, low_end, log);
		if (!err)
			err = set_slot(m, as, high, m->config.ram / 2, end, log);
	}
	return err;
}

int machine_logging(struct machine *m, bool on)
{
	return set_slots(m, m->config.ram / 2, m->config.ram, on);
}

int machine_swap_slots(struct machine *m)
{
	int err = set_slots(m, 0, m->config.ram / 2, false);

	m->swapped = !m->swapped;
	return err ? err : machine_logging(m, true);
}

/* Where the SMM handler counts: two pages, one in each memslot; nobody else writes the first. */
static uint32_t *smm_counter(const struct machine *m, unsigned int nr)
{
	return (uint32_t *)(m->ram + (nr ? m->config.ram - GUEST_PAGE : GUEST_SMM_COUNTER));
}

static void load_guest(struct machine *m)
{
	uint64_t *table = (uint64_t *)(m->ram + GUEST_TABLES);
	uint64_t i, x = m->config.seed | 1;
	unsigned int nr;
	bool zeros = false;
	size_t at;

	/* PML4, PDPT, and four directories of 2 MiB pages: 4 GiB, one to one. */
	table[0] = (GUEST_TABLES + 0x1000) | 3;
	for (i = 0; i < 4; i++)
		table[512 + i] = (GUEST_TABLES + 0x2000 + i * 0x1000) | 3;
	for (i = 0; i < 2048; i++)
		table[1024 + i] = i * HUGE | 0x83;

	memcpy(m->ram + GUEST_CODE, __start_guest, (size_t)(__stop_guest - __start_guest));

	/* In SMM, 16-bit code: inc dword [counter 0], inc dword [counter 1], rsm. */
	for (nr = 0; nr < m->config.vcpus; nr++) {
		char *smm = m->ram + GUEST_SMBASE(nr) + 0x8000;

		for (i = 0; i < 2; i++) {
			uint32_t addr = (uint32_t)((char *)smm_counter(m, (unsigned int)i) - m->ram);

			memcpy(smm, "\x67\x66\xff\x05", 4);
			memcpy(smm + 4, &addr, 4);
			smm += 8;
		}
		memcpy(smm, "\x0f\xaa", 2);
	}

	/* Content: every page differs, and some, mostly neighbours as in an OS, are zeros. */
	for (at = GUEST_HEAP; at + GUEST_PAGE <= m->config.filled; at += GUEST_PAGE) {
		if (at % (64 * GUEST_PAGE) == 0)
			zeros = xorshift(&x) % 8 == 0;
		for (i = 0; i < GUEST_PAGE && !zeros; i += 8)
			*(uint64_t *)(m->ram + at + i) = xorshift(&x);
	}
}

static int create_ram(struct machine *m)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
	size_t ram = m->config.ram;
	char *p;

	m->memfd = -1;
	if (m->config.kind == RAM_MEMFD || m->config.kind == RAM_HUGETLB) {
		m->memfd = memfd_create("ram", MFD_CLOEXEC |
					(m->config.kind == RAM_HUGETLB ? MFD_HUGETLB : 0));
		if (m->memfd < 0 || ftruncate(m->memfd, (off_t)ram) < 0)
			return fail("memory file");
		flags = MAP_SHARED;
	}
	/* Huge pages of the guest are such of the host only when both are aligned. */
	p = mmap(NULL, ram + HUGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (p == MAP_FAILED)
		return fail("mmap");
	p = (char *)(((uintptr_t)p + HUGE - 1) & ~(HUGE - 1));
	m->ram = mmap(p, ram, PROT_READ | PROT_WRITE, flags | MAP_FIXED, m->memfd, 0);
	if (m->ram == MAP_FAILED)
		return fail("mmap of RAM");
	madvise(m->ram, ram, m->config.kind == RAM_SMALL ? MADV_NOHUGEPAGE : MADV_HUGEPAGE);
	return 0;
}

static int create_vcpu(struct machine *m, unsigned int nr)
{
	struct vcpu *vcpu = &m->vcpus[nr];
	struct { struct kvm_msrs head; struct kvm_msr_entry entry; } smbase = {
		.head.nmsrs = 1, .entry = { .index = 0x9e, .data = GUEST_SMBASE(nr) },
	};
	struct { struct kvm_cpuid2 head; struct kvm_cpuid_entry2 entries[256]; } cpuid = {
		.head.nent = 256,
	};
	struct guest_args *args = (struct guest_args *)(m->ram + GUEST_ARGS + nr * GUEST_PAGE);
	struct kvm_segment code = {
		.limit = ~0U, .selector = 8, .type = 11, .present = 1, .s = 1, .l = 1, .g = 1,
	};
	struct kvm_segment data = code;
	struct kvm_sregs sregs;
	long tsc_khz;
	struct kvm_regs regs = {
		.rip = GUEST_CODE + (uint64_t)((const char *)guest_main - __start_guest),
		.rflags = 2,
		.rdi = GUEST_ARGS + nr * GUEST_PAGE,
		.rsp = GUEST_STACKS + (nr + 1) * GUEST_PAGE - 8,
	};

	vcpu->m = m;
	vcpu->nr = nr;
	vcpu->fd = ioctl(m->vm, KVM_CREATE_VCPU, nr);
	if (vcpu->fd < 0)
		return fail("KVM_CREATE_VCPU");
	vcpu->run = mmap(NULL, m->run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu->fd, 0);
	if (vcpu->run == MAP_FAILED)
		return fail("mmap of a vCPU");
	if (ioctl(m->kvm, KVM_GET_SUPPORTED_CPUID, &cpuid) < 0 ||
	    ioctl(vcpu->fd, KVM_SET_CPUID2, &cpuid) < 0)
		return fail("KVM_SET_CPUID2");

	data.type = 3;
	data.selector = 16;
	data.l = 0;
	data.db = 1;
	if (ioctl(vcpu->fd, KVM_GET_SREGS, &sregs) < 0)
		return fail("KVM_GET_SREGS");
	sregs.cs = code;
	sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
	sregs.cr0 = 0x80050033;		/* PG, AM, WP, NE, ET, MP, PE */
	sregs.cr3 = GUEST_TABLES;
	sregs.cr4 = 0x20;		/* PAE */
	sregs.efer = 0x500;		/* LMA, LME */
	if (ioctl(vcpu->fd, KVM_SET_SREGS, &sregs) < 0 || ioctl(vcpu->fd, KVM_SET_REGS, &regs) < 0)
		return fail("registers");
	/* What it saves there when it enters SMM must not be another's. */
	if (m->config.smm && ioctl(vcpu->fd, KVM_SET_MSRS, &smbase) != 1)
		return fail("SMBASE");

	tsc_khz = ioctl(vcpu->fd, KVM_GET_TSC_KHZ);
	*args = (struct guest_args){
		.cycles = m->config.rate && tsc_khz > 0 ? (uint64_t)tsc_khz * 1000 / m->config.rate : 0,
		.pattern = m->config.pattern,
		.first = GUEST_HEAP / GUEST_PAGE,
		.pages = (m->config.dirtied - GUEST_HEAP) / GUEST_PAGE,
		.seed = m->config.seed + nr * 0x9e3779b97f4a7c15,
	};
	return 0;
}

/* Park while the machine is paused.  False when it is to end. */
static bool may_run(struct machine *m)
{
	bool stop;

	pthread_mutex_lock(&m->lock);
	if (m->pause && !m->stop) {
		m->running--;
		pthread_cond_broadcast(&m->changed);
		while (m->pause && !m->stop)
			pthread_cond_wait(&m->changed, &m->lock);
		m->running++;
	}
	stop = m->stop;
	if (stop) {
		m->running--;
		pthread_cond_broadcast(&m->changed);
	}
	pthread_mutex_unlock(&m->lock);
	return !stop;
}

static void kicked(int sig)
{
	(void)sig;
}

static void *run_vcpu(void *arg)
{
	struct vcpu *vcpu = arg;
	struct machine *m = vcpu->m;
	uint64_t x = m->config.seed + vcpu->nr + 1;

	while (may_run(m)) {
		vcpu->run->immediate_exit = 0;
		/* A pause that came before this line is seen here, one after it kicks. */
		if (atomic_load(&m->pause))
			continue;
		if (m->config.smm && xorshift(&x) % 2 && ioctl(vcpu->fd, KVM_SMI) == 0)
			atomic_fetch_add(&m->smis, 1);
		if (ioctl(vcpu->fd, KVM_RUN, 0) < 0) {
			if (errno == EINTR || errno == EAGAIN)
				continue;
			fail("KVM_RUN");
			abort();
		}
		switch (vcpu->run->exit_reason) {
		case KVM_EXIT_DIRTY_RING_FULL:
			atomic_fetch_add(&m->ring_full, 1);
			/* No room for what the vCPU is to write next: have it made. */
			if (m->config.reap_ms)
				reaper_reap(m);
			else if (kvmsnap_harvest(atomic_load(&m->session), NULL))
				usleep(1000);	/* logging is on, tracking is not yet or no more */
			break;
		default:
			fprintf(stderr, "vmm: vCPU %u exits for reason %u at %#llx\n", vcpu->nr,
				vcpu->run->exit_reason, vcpu->run->hw.hardware_exit_reason);
			abort();
		}
	}
	return NULL;
}

/* Kick vCPUs out of the guest now and then, so that SMIs are taken. */
static void kick(struct machine *m)
{
	unsigned int i;

	for (i = 0; i < m->config.vcpus; i++) {
		m->vcpus[i].run->immediate_exit = 1;
		pthread_kill(m->vcpus[i].thread, MACHINE_KICK);
	}
}

static void write_memory(struct machine *m, uint64_t *x)
{
	uint64_t bytes = xorshift(x) % (3 * GUEST_PAGE) + 1, i;
	uint64_t at = GUEST_HEAP + xorshift(x) % (m->config.ram - GUEST_HEAP - bytes - GUEST_PAGE);

	for (i = 0; i < bytes; i++)
		m->ram[at + i] = (char)xorshift(x);
	/* After the last byte is stored.  Without a session there is nobody to tell. */
	kvmsnap_mark_dirty(atomic_load(&m->session), (uintptr_t)m->ram + at, bytes);
	atomic_fetch_add(&m->device_writes, 1);
}

static void drop_memory(struct machine *m, uint64_t *x)
{
	size_t size = m->config.kind == RAM_HUGETLB ? HUGE : GUEST_PAGE;
	size_t at = HUGE + xorshift(x) % ((m->config.ram - 2 * HUGE) / size) * size;
	int err;

	if (m->memfd >= 0) {
		err = fallocate(m->memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				(off_t)at, (off_t)size);
		kvmsnap_mark_dirty(atomic_load(&m->session), (uintptr_t)m->ram + at, size);
	} else {
		/* The module sees this by itself: nothing to mark. */
		err = madvise(m->ram + at, size, MADV_DONTNEED);
	}
	if (!err)
		atomic_fetch_add(&m->balloon_drops, 1);
}

static void *run_device(void *arg)
{
	struct machine *m = arg;
	uint64_t x = ~m->config.seed;
	struct timespec rest = { .tv_nsec = 500000 };

	while (may_run(m)) {
		if (m->config.device)
			write_memory(m, &x);
		if (m->config.balloon)
			drop_memory(m, &x);
		if (m->config.smm)
			kick(m);
		nanosleep(&rest, NULL);
	}
	return NULL;
}

static void *run_reaper(void *arg)
{
	struct machine *m = arg;

	while (may_run(m)) {
		reaper_reap(m);
		usleep(m->config.reap_ms * 1000);
	}
	return NULL;
}

int machine_create(struct machine *m, const struct machine_config *config)
{
	struct kvm_enable_cap cap = { .cap = KVM_CAP_DIRTY_LOG_RING, .args[0] = config->ring * 16ULL };
	struct sigaction action = { .sa_handler = kicked };
	unsigned int i;
	int err;

	memset(m, 0, sizeof(*m));
	m->config = *config;
	m->session = -1;
	m->pause = true;
	pthread_mutex_init(&m->lock, NULL);
	pthread_cond_init(&m->changed, NULL);
	pthread_mutex_init(&m->reap, NULL);
	sigaction(MACHINE_KICK, &action, NULL);

	err = create_ram(m);
	if (err)
		return err;
	m->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (m->kvm < 0)
		return fail("/dev/kvm");
	m->run_bytes = (size_t)ioctl(m->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	m->vm = ioctl(m->kvm, KVM_CREATE_VM, 0);
	if (m->vm < 0)
		return fail("KVM_CREATE_VM");
	/* Before the first vCPU. */
	if (ioctl(m->vm, KVM_ENABLE_CAP, &cap) < 0)
		return fail("KVM_CAP_DIRTY_LOG_RING");
	ioctl(m->vm, KVM_SET_TSS_ADDR, 0xfffbd000UL);
	if (config->smm && ioctl(m->vm, KVM_CHECK_EXTENSION, KVM_CAP_MULTI_ADDRESS_SPACE) < 2) {
		errno = EOPNOTSUPP;
		return fail("SMM address space");
	}
	err = machine_logging(m, false);
	if (err)
		return err;
	load_guest(m);
	for (i = 0; i < config->vcpus && !err; i++)
		err = create_vcpu(m, i);
	if (err)
		return err;
	for (i = 0; i < config->vcpus && config->reap_ms && !err; i++)
		err = reaper_map(m, &m->vcpus[i]);
	if (err)
		return err;
	m->running = config->vcpus + 1 + !!config->reap_ms;
	for (i = 0; i < config->vcpus; i++)
		pthread_create(&m->vcpus[i].thread, NULL, run_vcpu, &m->vcpus[i]);
	pthread_create(&m->device, NULL, run_device, m);
	if (config->reap_ms)
		pthread_create(&m->reaper, NULL, run_reaper, m);
	machine_pause(m);
	return 0;
}

void machine_pause(struct machine *m)
{
	struct timespec rest = { .tv_nsec = 200000 };

	pthread_mutex_lock(&m->lock);
	m->pause = true;
	/* A kick between the vCPU's look at the flag and KVM_RUN is kept by immediate_exit. */
	while (m->running) {
		pthread_mutex_unlock(&m->lock);
		kick(m);
		nanosleep(&rest, NULL);
		pthread_mutex_lock(&m->lock);
	}
	pthread_mutex_unlock(&m->lock);
}

void machine_resume(struct machine *m)
{
	pthread_mutex_lock(&m->lock);
	m->pause = false;
	pthread_cond_broadcast(&m->changed);
	pthread_mutex_unlock(&m->lock);
}

void machine_destroy(struct machine *m)
{
	unsigned int i;

	pthread_mutex_lock(&m->lock);
	m->stop = true;
	pthread_cond_broadcast(&m->changed);
	pthread_mutex_unlock(&m->lock);
	machine_pause(m);
	if (m->config.reap_ms)
		pthread_join(m->reaper, NULL);
	for (i = 0; i < m->config.vcpus; i++) {
		pthread_join(m->vcpus[i].thread, NULL);
		reaper_unmap(m, &m->vcpus[i]);
		munmap(m->vcpus[i].run, m->run_bytes);
		close(m->vcpus[i].fd);
	}
	pthread_join(m->device, NULL);
	free(m->noted);
	close(m->vm);
	close(m->kvm);
	if (m->memfd >= 0)
		close(m->memfd);
	munmap(m->ram, m->config.ram);
}

static bool read_at(int fd, char *buf, size_t bytes, size_t at)
{
	if (pread(fd, buf, bytes, (off_t)at) == (ssize_t)bytes)
		return true;
	perror("vmm: reading the file");
	return false;
}

long machine_differs(const struct machine *m, int fd, const uint16_t *part)
{
	static char buf[1 << 20];
	size_t at, i, nr;
	long differ = 0;

	for (at = 0; at < m->config.ram; at += sizeof(buf)) {
		if (!read_at(fd, buf, sizeof(buf), at))
			return -1;
		for (i = 0; i < sizeof(buf); i += GUEST_PAGE) {
			nr = part ? part[(at + i) / GUEST_PAGE] : 0;
			if (nr && !read_at(fd, buf + i, GUEST_PAGE, nr * m->config.ram + at + i))
				return -1;
			if (memcmp(buf + i, m->ram + at + i, GUEST_PAGE) && !differ++)
				fprintf(stderr, "vmm: page %#zx differs\n", at + i);
		}
	}
	return differ;
}

uint64_t machine_work(const struct machine *m)
{
	uint64_t work = 0;
	unsigned int i;

	for (i = 0; i < m->config.vcpus; i++)
		work += ((const volatile struct guest_args *)
			 (m->ram + GUEST_ARGS + i * GUEST_PAGE))->work;
	return work;
}

uint64_t machine_smm_work(const struct machine *m)
{
	return *(volatile uint32_t *)smm_counter(m, 0);
}
