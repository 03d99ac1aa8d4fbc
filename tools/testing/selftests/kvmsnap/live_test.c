// SPDX-License-Identifier: GPL-2.0
/*
 * Live saves by the small VMM of tools/testing/vmm, in owner mode and, where it reaps its rings
 * itself, in observer mode: whatever dirties the memory, the file equals it, byte for byte,
 * once the machine is stopped.
 *
 * KVMSNAP_ROUNDS: how many rounds the tests have that are left to chance (8 and 10).  KVMSNAP_SEED: of the
 * first of random_rounds, to repeat it.
 */
#include "kvmsnap_test.h"

#include "live.h"

#define RAM	(32 * MIB)

#define HARVEST_MS	"/sys/module/kvmsnap/parameters/harvest_ms"

static const struct machine_config small = {
	.ram = RAM, .vcpus = 2, .ring = 4096, .pattern = PATTERN_RANDOM,
	.filled = RAM / 2, .dirtied = 4 * MIB, .seed = 42,
};

/* Sessions that may observe the same machine. */
#define MAX_OBSERVERS	16

/* Of a machine that is observed.  Stock QEMU takes a second. */
#define REAP_MS	20

/* Always that many, or more until the guest has written something. */
static const struct live_options few_passes = {
	.max_passes = 3, .max_downtime = -1, .min_work = 1000,
};

/* Save a running machine of that configuration.  -1 or how many pages differ. */
static long save_live(const struct machine_config *config, const struct live_options *options,
		      struct machine *m, struct live_report *report)
{
	int target = target_create(config->ram);
	long differ = -1;

	if (target < 0 || machine_create(m, config))
		return -1;
	machine_resume(m);
	usleep(100000);
	if (!live_save(m, target, options, true, report))
		differ = machine_differs(m, target, NULL);
	machine_destroy(m);
	close(target);
	return differ;
}

/* The guest ran during the save, in several passes, and its writes were seen in the rings. */
#define EXPECT_LIVE(report)						\
do {									\
	EXPECT_LT(0, (report).work);					\
	EXPECT_LT(0, (report).stats.harvested);				\
	EXPECT_LT(1, (report).passes);					\
} while (0)

FIXTURE(pattern) {
};

FIXTURE_VARIANT(pattern) {
	enum guest_pattern pattern;
	unsigned int vcpus;
	bool reaps;
};

FIXTURE_SETUP(pattern)
{
}

FIXTURE_TEARDOWN(pattern)
{
}

FIXTURE_VARIANT_ADD(pattern, sequential) { .pattern = PATTERN_SEQUENTIAL, .vcpus = 1 };
FIXTURE_VARIANT_ADD(pattern, random) { .pattern = PATTERN_RANDOM, .vcpus = 2 };
FIXTURE_VARIANT_ADD(pattern, same) { .pattern = PATTERN_SAME, .vcpus = 2 };
FIXTURE_VARIANT_ADD(pattern, zero) { .pattern = PATTERN_ZERO, .vcpus = 3 };
FIXTURE_VARIANT_ADD(pattern, aba) { .pattern = PATTERN_ABA, .vcpus = 4 };
FIXTURE_VARIANT_ADD(pattern, sequential_observed) { .pattern = PATTERN_SEQUENTIAL, .vcpus = 4, .reaps = true };
FIXTURE_VARIANT_ADD(pattern, random_observed) { .pattern = PATTERN_RANDOM, .vcpus = 2, .reaps = true };
FIXTURE_VARIANT_ADD(pattern, same_observed) { .pattern = PATTERN_SAME, .vcpus = 1, .reaps = true };
FIXTURE_VARIANT_ADD(pattern, aba_observed) { .pattern = PATTERN_ABA, .vcpus = 3, .reaps = true };

TEST_F(pattern, is_exact)
{
	struct machine_config config = small;
	struct live_report report;
	struct machine m;

	config.pattern = variant->pattern;
	config.vcpus = variant->vcpus;
	config.reap_ms = variant->reaps ? REAP_MS : 0;
	ASSERT_EQ(0, save_live(&config, &few_passes, &m, &report));
	EXPECT_LIVE(report);
	/* Nobody but the vCPUs, and no change of the memslots but the one that has them log. */
	EXPECT_EQ(1 + variant->reaps, report.stats.all_dirty);
}

FIXTURE(kind) {
};

FIXTURE_VARIANT(kind) {
	enum ram_kind kind;
};

FIXTURE_SETUP(kind)
{
	if (variant->kind == RAM_HUGETLB)
		ASSERT_EQ(0, run("echo 40 >/proc/sys/vm/nr_hugepages"));
}

FIXTURE_TEARDOWN(kind)
{
	run("echo 0 >/proc/sys/vm/nr_hugepages");
}

FIXTURE_VARIANT_ADD(kind, huge) { RAM_HUGE };
FIXTURE_VARIANT_ADD(kind, small) { RAM_SMALL };
FIXTURE_VARIANT_ADD(kind, memfd) { RAM_MEMFD };
FIXTURE_VARIANT_ADD(kind, hugetlb) { RAM_HUGETLB };

/* Pages that a device writes, and pages that the host takes away, on every kind of RAM. */
TEST_F(kind, device_and_balloon)
{
	struct machine_config config = small;
	struct live_report report;
	struct machine m;

	config.kind = variant->kind;
	config.device = true;
	config.balloon = true;
	ASSERT_EQ(0, save_live(&config, &few_passes, &m, &report));
	EXPECT_LIVE(report);
	EXPECT_LT(0, m.device_writes);
	EXPECT_LT(0, m.balloon_drops);
}

/* Takes pages out of memory into swap again and again, as reclaim does when memory is short. */
static void *reclaim(void *arg)
{
	struct machine *m = arg;

	for (;;) {
		madvise(m->ram, m->config.ram, MADV_PAGEOUT);
		usleep(5000);
		pthread_testcancel();
	}
	return NULL;
}

FIXTURE(reclaimed) {
};

FIXTURE_VARIANT(reclaimed) {
	enum ram_kind kind;
	bool reaps;
};

FIXTURE_SETUP(reclaimed)
{
	ASSERT_EQ(0, swap_on());
}

FIXTURE_TEARDOWN(reclaimed)
{
	EXPECT_EQ(0, swap_off());
}

FIXTURE_VARIANT_ADD(reclaimed, memfd) { .kind = RAM_MEMFD };
FIXTURE_VARIANT_ADD(reclaimed, memfd_observed) { .kind = RAM_MEMFD, .reaps = true };
FIXTURE_VARIANT_ADD(reclaimed, small) { .kind = RAM_SMALL };

/* Pages go to swap and come back while they are saved and written to. */
TEST_F(reclaimed, while_saved)
{
	struct machine_config config = small;
	int target = target_create(RAM);
	struct live_report report;
	pthread_t thread;
	struct machine m;
	long swapped;

	config.kind = variant->kind;
	config.device = true;
	config.reap_ms = variant->reaps ? REAP_MS : 0;
	ASSERT_LE(0, target);
	ASSERT_EQ(0, machine_create(&m, &config));
	machine_resume(&m);
	swapped = vm_event("pswpout");
	ASSERT_EQ(0, pthread_create(&thread, NULL, reclaim, &m));
	EXPECT_EQ(0, live_save(&m, target, &few_passes, true, &report));
	EXPECT_EQ(0, machine_differs(&m, target, NULL));
	pthread_cancel(thread);
	pthread_join(thread, NULL);
	EXPECT_LIVE(report);
	EXPECT_LT(1000, vm_event("pswpout") - swapped);
	machine_destroy(&m);
	close(target);
}

/* Small rings, many vCPUs, and every write on another page: rings are full. */
TEST(full_rings)
{
	struct machine_config config = small;
	struct live_options options = few_passes;
	struct live_report report;
	struct machine m;

	/* Each vCPU goes through more pages than its ring has places. */
	options.min_full = 1;
	config.ring = 1024;
	config.vcpus = 4;
	config.pattern = PATTERN_SEQUENTIAL;
	config.dirtied = RAM;
	config.kind = RAM_SMALL;
	/* The harvester would be in time here. */
	ASSERT_EQ(0, run("echo 1000 >" HARVEST_MS));
	ASSERT_EQ(0, save_live(&config, &options, &m, &report));
	EXPECT_LIVE(report);
	EXPECT_LT(0, m.ring_full);
	EXPECT_EQ(0, run("echo 4 >" HARVEST_MS));
}

TEST(large_rings)
{
	struct machine_config config = small;
	struct live_report report;
	struct machine m;

	config.ring = 65536;
	config.vcpus = 4;
	config.dirtied = RAM;
	ASSERT_EQ(0, save_live(&config, &few_passes, &m, &report));
	EXPECT_LIVE(report);
}

/* The observer's log has to hold all that is open while full rings are reset again and again. */
TEST(full_rings_observed)
{
	struct machine_config config = small;
	struct live_options options = few_passes;
	struct live_report report;
	struct machine m;

	options.min_full = 1;
	config.reap_ms = 1000;
	config.ring = 1024;
	config.vcpus = 4;
	config.pattern = PATTERN_SEQUENTIAL;
	config.dirtied = RAM;
	config.kind = RAM_SMALL;
	ASSERT_EQ(0, save_live(&config, &options, &m, &report));
	EXPECT_LIVE(report);
	EXPECT_LT(0, m.ring_full);
	EXPECT_EQ(2, report.stats.all_dirty);
}

/* System management mode writes through memslots of its own. */
TEST(smm_address_space)
{
	struct machine_config config = small;
	struct live_report report;
	struct machine m;

	config.smm = true;
	ASSERT_EQ(0, save_live(&config, &few_passes, &m, &report));
	EXPECT_LIVE(report);
	EXPECT_LT(1, m.smis);
}

/* Hashes are kept, and the last pass compares everything with them: nothing else differs. */
TEST(hashes_agree)
{
	struct live_options options = few_passes;
	struct live_report report;
	struct machine m;

	options.hash = true;
	ASSERT_EQ(0, save_live(&small, &options, &m, &report));
	EXPECT_LIVE(report);
	EXPECT_LT(RAM / PAGE / 2, report.stats.pages_same);
}

/* KVMSNAP_ROUNDS, or @normally. */
static int rounds(int normally)
{
	const char *text = getenv("KVMSNAP_ROUNDS");

	return text ? atoi(text) : normally;
}

/* Without the ring, and without a word from the device: what differs is found. */
TEST(compare_finds_everything)
{
	struct machine_config config = small;
	struct live_options options = few_passes;
	struct live_report report;
	struct machine m;
	int i;

	options.compare_only = true;
	options.max_passes = 2;
	config.device = true;
	config.balloon = true;
	config.pattern = PATTERN_ABA;
	config.vcpus = 4;
	/* A page that is B for a moment must be caught in it by the first pass: about once a save. */
	for (i = rounds(8); i > 0; i--) {
		ASSERT_EQ(0, save_live(&config, &options, &m, &report));
		EXPECT_LT(0, report.work);
		EXPECT_LT(0, m.device_writes);
		EXPECT_LT(0, report.last_pages);
		EXPECT_EQ(0, report.stats.harvested);
	}
}

/* Everything at once, at random. */
TEST(random_rounds)
{
	uint64_t seed = getenv("KVMSNAP_SEED") ? strtoull(getenv("KVMSNAP_SEED"), NULL, 0) :
			(uint64_t)time(NULL) * 1000;
	struct live_options options = few_passes;
	struct machine_config config = small;
	struct live_report report;
	struct machine m;
	long differ;
	int i;

	for (i = rounds(10); i > 0; i--, seed++) {
		uint64_t x = seed * 0x9e3779b97f4a7c15;

		config.seed = seed;
		config.pattern = (enum guest_pattern)((x >> 60) % NR_PATTERNS);
		config.kind = (enum ram_kind)((x >> 57) % RAM_HUGETLB);
		config.vcpus = 1 + (x >> 54) % 4;
		config.ring = 1024U << (x >> 50) % 7;
		config.dirtied = (2 + (x >> 45) % 31) * MIB;
		config.filled = (2 + (x >> 40) % 31) * MIB;
		config.device = x >> 39 & 1;
		config.balloon = x >> 38 & 1;
		config.smm = x >> 37 & 1;
		config.reap_ms = x >> 35 & 1 ? 1U << (x >> 31) % 8 : 0;
		options.hash = x >> 36 & 1;
		options.compare_only = (x >> 31) % 4 == 0;
		options.max_passes = 2 + (x >> 34) % 3;
		differ = save_live(&config, &options, &m, &report);
		TH_LOG("seed %llu: %ld pages differ; pattern %d, kind %d, %u vCPUs, ring %u, %lu MiB%s%s%s%s%s: "
		       "%u passes, %llu entries", (unsigned long long)seed, differ, config.pattern,
		       config.kind, config.vcpus, config.ring, config.dirtied / MIB,
		       config.device ? ", device" : "", config.balloon ? ", balloon" : "",
		       config.smm ? ", SMM" : "", config.reap_ms ? ", observed" : "",
		       options.compare_only ? ", no ring" : options.hash ? ", hashes" : "",
		       report.passes, (unsigned long long)report.stats.harvested);
		ASSERT_EQ(0, differ);
		EXPECT_LT(0, report.work);
		EXPECT_LT(1, report.passes);
		if (!options.compare_only)
			EXPECT_LT(0, report.stats.harvested);
	}
}

/* Let a new machine run with a session that owns its rings.  @flags of TRACK.  0 or an error. */
static int run_followed(struct machine *m, int session, uint32_t flags)
{
	int err = kvmsnap_bind_vm(session, m->vm);

	if (!err)
		err = kvmsnap_add_region(session, (uintptr_t)m->ram, RAM, 0, 0);
	if (!err)
		err = machine_logging(m, true);
	if (!err)
		err = kvmsnap_track(session, KVMSNAP_TRACK_OWNER, flags);
	atomic_store(&m->session, session);
	machine_resume(m);
	return err;
}

/* A running machine that is tracked, and written to a target; by hand from there on. */
FIXTURE(live) {
	struct machine m;
	int session, target;
};

FIXTURE_SETUP(live)
{
	self->target = target_create(RAM);
	ASSERT_EQ(0, machine_create(&self->m, &small));
	self->session = kvmsnap_open(NULL);
	ASSERT_EQ(0, kvmsnap_set_target(self->session, self->target));
	ASSERT_EQ(0, run_followed(&self->m, self->session, 0));
}

FIXTURE_TEARDOWN(live)
{
	machine_logging(&self->m, false);
	machine_destroy(&self->m);
	close(self->session);
	close(self->target);
}

/* A pass over what is dirty: 0, its error, or the negative errno of the call. */
static int pass_dirty(int session, uint32_t flags)
{
	struct kvmsnap_wait wait;
	int err = kvmsnap_queue_dirty(session, flags, NULL);

	if (!err)
		err = kvmsnap_wait(session, PASS_LIMIT, &wait);
	return err ? err : wait.error;
}

/* Stop the machine and write the rest: how many pages differ then, -1 for an error. */
static long finish(struct machine *m, int session, int target)
{
	machine_pause(m);
	if (kvmsnap_harvest(session, NULL) || pass_dirty(session, KVMSNAP_QUEUE_STOPPED))
		return -1;
	return machine_differs(m, target, NULL);
}

static uint64_t all_dirty(int session)
{
	struct kvmsnap_stats stats;

	return kvmsnap_stats(session, &stats) ? 0 : stats.all_dirty;
}

/* What is ABI about the calls. */
TEST_F(live, contract)
{
	struct kvmsnap_hva_range range = { UINT64_MAX - 4096, 8192 };
	struct kvmsnap_harvest harvest;
	struct kvmsnap_stats stats;
	int other;

	EXPECT_EQ(-EALREADY, kvmsnap_track(self->session, KVMSNAP_TRACK_OWNER, 0));
	EXPECT_EQ(-EINVAL, kvmsnap_mark_dirty_ranges(self->session, &range, 1));
	EXPECT_EQ(-EINVAL, kvmsnap_mark_dirty_ranges(self->session, &range, 0));
	EXPECT_EQ(-EFAULT, kvmsnap_mark_dirty_ranges(self->session, NULL, 1));
	EXPECT_EQ(-ENODATA, kvmsnap_queue_dirty(self->session, KVMSNAP_QUEUE_COMPARE, NULL));
	EXPECT_EQ(0, kvmsnap_harvest(self->session, &harvest));
	EXPECT_LT(0, harvest.pages_dirty);

	other = kvmsnap_open(NULL);
	EXPECT_EQ(-ENODEV, kvmsnap_track(other, KVMSNAP_TRACK_OWNER, 0));
	EXPECT_EQ(-ENODATA, kvmsnap_harvest(other, NULL));
	EXPECT_EQ(-ENODATA, kvmsnap_mark_dirty(other, 0, 4096));
	ASSERT_EQ(0, kvmsnap_bind_vm(other, self->m.vm));
	EXPECT_EQ(-EBUSY, kvmsnap_track(other, KVMSNAP_TRACK_OWNER, 0));
	EXPECT_EQ(-EOPNOTSUPP, kvmsnap_track(other, 0, 0));
	EXPECT_EQ(-EOPNOTSUPP, kvmsnap_track(other, 4, 0));
	EXPECT_EQ(-EINVAL, kvmsnap_track(other, KVMSNAP_TRACK_COMPARE, 0));
	EXPECT_EQ(0, kvmsnap_track(other, KVMSNAP_TRACK_COMPARE, KVMSNAP_TRACK_HASH));
	EXPECT_EQ(-ENODATA, kvmsnap_harvest(other, NULL));
	close(other);

	/* The dirty set counts what it holds. */
	machine_pause(&self->m);
	EXPECT_EQ(0, pass_dirty(self->session, 0));
	EXPECT_EQ(0, kvmsnap_harvest(self->session, NULL));
	EXPECT_EQ(0, pass_dirty(self->session, 0));
	kvmsnap_stats(self->session, &stats);
	EXPECT_EQ(0, stats.pages_dirty);
	EXPECT_EQ(0, kvmsnap_mark_dirty(self->session, (uintptr_t)self->m.ram + 4095, 2));
	EXPECT_EQ(0, kvmsnap_mark_dirty(self->session, (uintptr_t)self->m.ram, 1));
	EXPECT_EQ(0, kvmsnap_mark_dirty(self->session, (uintptr_t)self->m.ram + RAM, 4096));
	EXPECT_EQ(0, kvmsnap_mark_dirty(self->session, (uintptr_t)self->m.ram + RAM - 1, 1));
	kvmsnap_stats(self->session, &stats);
	EXPECT_EQ(3, stats.pages_dirty);
}

/* As many regions as there may be, wall to wall, that come in no order, before and after TRACK. */
TEST(many_regions)
{
	enum { REGIONS = 256, FIRST = 17, BOTH = RAM / PAGE / (REGIONS / 2) };
	int session = kvmsnap_open(NULL), target = target_create(RAM), i;
	struct kvmsnap_stats stats;
	struct machine m;
	uintptr_t ram;

	ASSERT_EQ(0, machine_create(&m, &small));
	ASSERT_EQ(0, kvmsnap_set_target(session, target));
	ASSERT_EQ(0, kvmsnap_bind_vm(session, m.vm));
	ASSERT_EQ(0, machine_logging(&m, true));
	ram = (uintptr_t)m.ram;
	for (i = 0; i < REGIONS; i++) {
		unsigned int nr = i * 101 % REGIONS, odd = nr % 2;
		uint64_t at = (nr / 2 * BOTH + odd * FIRST) * PAGE;

		if (i == REGIONS / 2)
			ASSERT_EQ(0, kvmsnap_track(session, KVMSNAP_TRACK_OWNER, 0));
		ASSERT_EQ(i, kvmsnap_add_region(session, ram + at, (odd ? BOTH - FIRST : FIRST) * PAGE, at, 0));
	}
	EXPECT_EQ(-ENOSPC, kvmsnap_add_region(session, ram, PAGE, RAM, 0));

	EXPECT_EQ(0, pass_dirty(session, 0));
	EXPECT_EQ(0, kvmsnap_harvest(session, NULL));
	EXPECT_EQ(0, pass_dirty(session, 0));
	/* The first page of the second region, and bytes on both sides of a border. */
	EXPECT_EQ(0, kvmsnap_mark_dirty(session, ram + FIRST * PAGE, 1));
	EXPECT_EQ(0, kvmsnap_mark_dirty(session, ram + BOTH * PAGE - 1, 2));
	kvmsnap_stats(session, &stats);
	EXPECT_EQ(3, stats.pages_dirty);
	EXPECT_EQ(0, kvmsnap_mark_dirty(session, ram - PAGE, RAM + 2 * PAGE));
	kvmsnap_stats(session, &stats);
	EXPECT_EQ(RAM / PAGE, stats.pages_dirty);

	EXPECT_EQ(0, pass_dirty(session, 0));
	atomic_store(&m.session, session);
	machine_resume(&m);
	usleep(100000);
	EXPECT_EQ(0, pass_dirty(session, 0));
	EXPECT_EQ(0, finish(&m, session, target));
	EXPECT_EQ(1, all_dirty(session));
	machine_logging(&m, false);
	machine_destroy(&m);
	close(session);
	close(target);
}

/* Logging that is off, or never was possible, is an error and not a snapshot. */
TEST_F(live, unlogged_memory_is_refused)
{
	int session, vm;

	EXPECT_EQ(0, machine_logging(&self->m, false));
	EXPECT_EQ(-ENODATA, kvmsnap_queue_dirty(self->session, 0, NULL));
	/* Off and on again: everything is dirty. */
	EXPECT_EQ(0, machine_logging(&self->m, true));
	EXPECT_EQ(0, finish(&self->m, self->session, self->target));
	EXPECT_LT(1, all_dirty(self->session));

	/* Off at the start; and the rings of a closed session are free. */
	close(self->session);
	EXPECT_EQ(0, machine_logging(&self->m, false));
	self->session = kvmsnap_open(NULL);
	ASSERT_EQ(0, kvmsnap_bind_vm(self->session, self->m.vm));
	ASSERT_EQ(0, kvmsnap_add_region(self->session, (uintptr_t)self->m.ram, RAM, 0, 0));
	EXPECT_EQ(-ENODATA, kvmsnap_track(self->session, KVMSNAP_TRACK_OWNER, 0));
	EXPECT_EQ(0, machine_logging(&self->m, true));
	EXPECT_EQ(0, kvmsnap_track(self->session, KVMSNAP_TRACK_OWNER, 0));

	/* A VM without a ring. */
	vm = vm_create(self->m.ram, RAM);
	session = kvmsnap_open(NULL);
	ASSERT_EQ(0, kvmsnap_bind_vm(session, vm));
	ASSERT_EQ(0, kvmsnap_set_target(session, self->target));
	ASSERT_LE(0, kvmsnap_add_region(session, (uintptr_t)self->m.ram, RAM, 0, 0));
	EXPECT_EQ(-EOPNOTSUPP, kvmsnap_track(session, KVMSNAP_TRACK_OWNER, KVMSNAP_TRACK_HASH));
	/* Nothing of the attempt stays: a stopped save is one. */
	EXPECT_EQ(0, save_all(session));
	EXPECT_EQ(-ENODATA, kvmsnap_queue_dirty(session, 0, NULL));
	close(session);
	close(vm);
}

/* Logging that leaves pages unprotected at first would lose their writes. */
TEST_F(live, initially_set_is_refused)
{
	struct kvm_enable_cap cap = {
		.cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, .args[0] = 3,
	};

	if (ioctl(self->m.vm, KVM_ENABLE_CAP, &cap) < 0)
		SKIP(return, "KVM doesn't have KVM_DIRTY_LOG_INITIALLY_SET with a ring");
	close(self->session);
	self->session = kvmsnap_open(NULL);
	ASSERT_EQ(0, kvmsnap_bind_vm(self->session, self->m.vm));
	EXPECT_EQ(-EOPNOTSUPP, kvmsnap_track(self->session, KVMSNAP_TRACK_OWNER, 0));
}

/* A memslot goes and comes back while pages are written. */
TEST_F(live, memslots_change)
{
	struct kvmsnap_wait wait;
	int i;

	for (i = 0; i < 5; i++) {
		ASSERT_EQ(0, kvmsnap_queue_dirty(self->session, 0, NULL));
		machine_pause(&self->m);
		/* Another order: the slots' numbers stand for other memory afterwards. */
		ASSERT_EQ(0, machine_swap_slots(&self->m));
		machine_resume(&self->m);
		usleep(20000);
		ASSERT_EQ(0, kvmsnap_wait(self->session, -1, &wait));
		ASSERT_EQ(0, wait.error);
	}
	EXPECT_EQ(0, finish(&self->m, self->session, self->target));
	EXPECT_LT(1, all_dirty(self->session));
}

/* Somebody else resets the rings: what they said is lost, and so is the tracking. */
TEST_F(live, foreign_harvest)
{
	volatile struct kvm_dirty_gfn *ring = mmap(NULL, 4096 * 16, PROT_READ | PROT_WRITE, MAP_SHARED,
						   self->m.vcpus[0].fd, KVM_DIRTY_LOG_PAGE_OFFSET * PAGE);
	double end = seconds() + 20;
	unsigned int i, n = 0;

	ASSERT_NE(MAP_FAILED, (void *)ring);
	ASSERT_EQ(0, pass_dirty(self->session, 0));
	/* The harvester is slow, so that one of ours comes whole between two of its own. */
	ASSERT_EQ(0, run("echo 1000 >" HARVEST_MS));
	ASSERT_EQ(0, kvmsnap_harvest(self->session, NULL));
	while (!n && seconds() < end) {
		for (i = 0; i < 4096; i++)
			if (ring[i].flags == KVM_DIRTY_GFN_F_DIRTY) {
				ring[i].flags = KVM_DIRTY_GFN_F_RESET;
				n++;
			}
	}
	EXPECT_LT(0, ioctl(self->m.vm, KVM_RESET_DIRTY_RINGS, 0));
	EXPECT_EQ(-ESTALE, kvmsnap_harvest(self->session, NULL));
	EXPECT_EQ(-ESTALE, kvmsnap_queue_dirty(self->session, 0, NULL));
	EXPECT_EQ(0, run("echo 4 >" HARVEST_MS));
	munmap((void *)ring, 4096 * 16);
}

/*
 * The ring's memory is the VMM's to write: nonsense in it harms nobody else.  Its flags are
 * left alone: KVM itself warns of a full ring when they lie (kvm_dirty_ring_push()).
 */
TEST_F(live, scribbled_ring)
{
	volatile struct kvm_dirty_gfn *ring = mmap(NULL, 4096 * 16, PROT_READ | PROT_WRITE, MAP_SHARED,
						   self->m.vcpus[1].fd, KVM_DIRTY_LOG_PAGE_OFFSET * PAGE);
	double end = seconds() + 2;
	uint64_t x = 1;
	int passes = 0;

	ASSERT_NE(MAP_FAILED, (void *)ring);
	while (seconds() < end) {
		unsigned int i;

		for (i = 0; i < 4096; i++) {
			x = x * 6364136223846793005 + 1442695040888963407;
			ring[x >> 52].slot = (uint32_t)(x >> 20);
			ring[x >> 52].offset = x;
		}
		EXPECT_EQ(0, pass_dirty(self->session, 0));
		passes++;
	}
	EXPECT_LT(0, passes);
	munmap((void *)ring, 4096 * 16);
}

/* Cancelled, with the file thrown away: the next target gets everything. */
TEST_F(live, cancelled_then_another_target)
{
	int target = target_create(RAM);
	struct kvmsnap_wait wait;

	ASSERT_EQ(0, kvmsnap_queue_dirty(self->session, 0, NULL));
	ASSERT_EQ(0, kvmsnap_cancel(self->session));
	ASSERT_EQ(0, kvmsnap_wait(self->session, -1, &wait));
	EXPECT_TRUE(!wait.error || wait.error == ECANCELED);
	ASSERT_EQ(0, kvmsnap_set_target(self->session, target));
	ASSERT_EQ(0, pass_dirty(self->session, 0));
	EXPECT_EQ(0, finish(&self->m, self->session, target));
	close(target);
}

static void *harvest(void *arg)
{
	const int *session = arg;

	for (;;) {
		kvmsnap_harvest(*session, NULL);
		usleep(1000);
		pthread_testcancel();
	}
	return NULL;
}

/* Passes read pages while their ring entries are being reset, up to the stop. */
TEST_F(live, passes_among_harvests)
{
	int stop, passes = 0;
	pthread_t thread;
	double end;

	ASSERT_EQ(0, pthread_create(&thread, NULL, harvest, &self->session));
	for (stop = 0; stop < 10; stop++) {
		for (end = seconds() + .05; seconds() < end; passes++)
			ASSERT_EQ(0, pass_dirty(self->session, 0));
		EXPECT_EQ(0, finish(&self->m, self->session, self->target));
		machine_resume(&self->m);
	}
	EXPECT_LT(10, passes);
	pthread_cancel(thread);
	pthread_join(thread, NULL);
}

/* A target that fails in the middle: the pages are dirty again, the machine runs. */
TEST_F(live, target_fails)
{
	const char *dm = getenv("KVMSNAP_DM");
	uint64_t work = machine_work(&self->m);
	struct kvmsnap_stats stats;
	int target;

	if (!dm)
		SKIP(return, "KVMSNAP_DM names no device");
	ASSERT_EQ(0, dm_load(dm, "0 8 linear $dev 0\\n8 $((size - 8)) error\\n"));
	target = dm_open(dm);
	ASSERT_LE(0, target);
	ASSERT_EQ(0, kvmsnap_set_target(self->session, target));
	EXPECT_EQ(EIO, pass_dirty(self->session, 0));
	kvmsnap_stats(self->session, &stats);
	/* Zero pages were dealt with; all that has content is still to be written. */
	EXPECT_LE(RAM / PAGE / 4, stats.pages_dirty);
	close(target);
	ASSERT_EQ(0, dm_load(dm, DM_LINEAR));
	EXPECT_LT(work, machine_work(&self->m));
	ASSERT_EQ(0, kvmsnap_set_target(self->session, self->target));
	EXPECT_EQ(0, finish(&self->m, self->session, self->target));
}

/* How many bits are set in the bitmap of what was written to this target. */
static long count_written(int session)
{
	static uint8_t bits[RAM / PAGE / 8];
	long n = 0;
	size_t i;

	if (kvmsnap_get_written(session, 0, 0, RAM / PAGE, bits))
		return -1;
	for (i = 0; i < sizeof(bits); i++)
		n += __builtin_popcount(bits[i]);
	return n;
}

/* An unnamed copy of a target. */
static int target_copy(int from)
{
	int to = target_create(RAM);
	static char buf[MIB];
	size_t at;

	for (at = 0; at < RAM; at += sizeof(buf))
		if (pread(from, buf, sizeof(buf), (off_t)at) != sizeof(buf) ||
		    pwrite(to, buf, sizeof(buf), (off_t)at) != sizeof(buf))
			return -1;
	return to;
}

static void run_for_a_while(struct machine *m)
{
	uint64_t work = machine_work(m);

	machine_resume(m);
	while (machine_work(m) < work + 2000)
		usleep(1000);
}

/* Each generation is exact, and costs what has changed; those before stay what they were. */
TEST_F(live, generations)
{
	int parent = self->target, child, i, before;
	struct kvmsnap_stats stats;
	char *old = malloc(RAM);

	ASSERT_EQ(0, finish(&self->m, self->session, self->target));
	EXPECT_LT(0, count_written(self->session));
	for (i = 0; i < 4; i++) {
		memcpy(old, self->m.ram, RAM);
		child = target_copy(parent);
		ASSERT_EQ(0, kvmsnap_set_target_at(self->session, child, 0, KVMSNAP_TARGET_CURRENT));
		EXPECT_EQ(0, count_written(self->session));
		run_for_a_while(&self->m);
		ASSERT_EQ(0, pass_dirty(self->session, 0));
		ASSERT_EQ(0, finish(&self->m, self->session, child));
		kvmsnap_stats(self->session, &stats);
		EXPECT_LT(0, count_written(self->session));
		/* The guest writes to 4 MiB of its 32, 16 of which have content. */
		EXPECT_GE(5 * MIB / PAGE, count_written(self->session));
		EXPECT_TRUE(same_as_file(parent, 0, old, RAM));
		if (parent != self->target)
			close(parent);
		parent = child;
	}
	/* One that is cancelled, and one that is whole and not wanted: what they took comes back. */
	for (i = 0; i < 2; i++) {
		before = target_copy(parent);
		child = target_copy(parent);
		ASSERT_EQ(0, kvmsnap_set_target_at(self->session, child, 0, KVMSNAP_TARGET_CURRENT));
		run_for_a_while(&self->m);
		ASSERT_EQ(0, kvmsnap_queue_dirty(self->session, 0, NULL));
		if (!i)
			kvmsnap_cancel(self->session);
		kvmsnap_wait(self->session, -1, &(struct kvmsnap_wait){ 0 });
		kvmsnap_stats(self->session, &stats);
		if (stats.error)
			EXPECT_EQ(-ECANCELED, kvmsnap_set_target_at(self->session, before, 0,
								    KVMSNAP_TARGET_CURRENT));
		ASSERT_EQ(0, kvmsnap_set_target_at(self->session, before, 0, KVMSNAP_TARGET_BEFORE));
		EXPECT_EQ(0, finish(&self->m, self->session, before));
		EXPECT_GE(5 * MIB / PAGE, count_written(self->session));
		close(child);
		close(parent);
		parent = before;
	}
	close(parent);
	free(old);
}

/* Generations behind one another in a file: each page is in the newest part that has it. */
TEST_F(live, generations_in_one_file)
{
	enum { PARTS = 5 };
	static uint8_t bits[PARTS][RAM / PAGE / 8];
	char *ram = malloc(RAM);
	size_t page;
	int i;

	ASSERT_EQ(0, ftruncate(self->target, PARTS * RAM));
	for (i = 0; i < PARTS; i++) {
		if (i)
			ASSERT_EQ(0, kvmsnap_set_target_at(self->session, self->target, i * RAM,
							   KVMSNAP_TARGET_CURRENT));
		run_for_a_while(&self->m);
		ASSERT_LE(0, finish(&self->m, self->session, self->target));
		ASSERT_EQ(0, kvmsnap_get_written(self->session, 0, 0, RAM / PAGE, bits[i]));
	}
	memset(ram, 0, RAM);
	for (i = 0; i < PARTS; i++)
		for (page = 0; page < RAM / PAGE; page++)
			if (bit(bits[i], page))
				ASSERT_EQ(PAGE, pread(self->target, ram + page * PAGE, PAGE,
						      (off_t)(i * RAM + page * PAGE)));
	EXPECT_EQ(0, memcmp(ram, self->m.ram, RAM));
	free(ram);
}

/* What a session can't go on from. */
TEST_F(live, targets_that_continue)
{
	int other = kvmsnap_open(NULL);
	uint64_t hash;
	uint8_t key[16];

	EXPECT_EQ(-EOPNOTSUPP, kvmsnap_set_target_at(self->session, self->target, 0, 4));
	EXPECT_EQ(-EINVAL, kvmsnap_set_target_at(self->session, self->target, 0, 3));
	EXPECT_EQ(-EINVAL, kvmsnap_set_target_at(self->session, self->target, 512, 0));
	EXPECT_EQ(-EINVAL, kvmsnap_set_target_at(self->session, self->target, 1ULL << 63, 0));
	EXPECT_EQ(-EINVAL, kvmsnap_set_target_at(self->session, self->target, ~0ULL, 0));
	EXPECT_EQ(0, kvmsnap_set_target_at(self->session, self->target, (1ULL << 63) - PAGE, 0));
	EXPECT_EQ(-EFBIG, kvmsnap_queue_dirty(self->session, 0, NULL));
	EXPECT_EQ(-ENODATA, kvmsnap_get_hashes(self->session, 0, 0, 1, &hash, key));
	EXPECT_EQ(-ERANGE, kvmsnap_get_hashes(self->session, 0, RAM / PAGE, 1, &hash, key));
	EXPECT_EQ(-ENOENT, kvmsnap_get_hashes(self->session, 1, 0, 1, &hash, key));
	/* Without tracking, or without a target. */
	EXPECT_EQ(-ENODATA, kvmsnap_set_target_at(other, self->target, 0, KVMSNAP_TARGET_CURRENT));
	ASSERT_EQ(0, kvmsnap_bind_vm(other, self->m.vm));
	ASSERT_EQ(0, kvmsnap_track(other, KVMSNAP_TRACK_COMPARE, KVMSNAP_TRACK_HASH));
	EXPECT_EQ(-ENODATA, kvmsnap_set_target_at(other, self->target, 0, KVMSNAP_TARGET_BEFORE));
	close(other);
}

/*
 * A target where each write takes 40 ms, with the VM's memory in it but for what was
 * written since.  -1 when there is no device.
 */
static int slow_target(int session)
{
	const char *dm = getenv("KVMSNAP_DM");
	int target;

	if (!dm || run("modprobe -q dm-delay") ||
	    dm_load(dm, "0 $size delay $dev 0 0 $dev 0 40\\n"))
		return -1;
	target = dm_open(dm);
	if (target < 0 || run("blkdiscard -z -l %lu /dev/mapper/%s", RAM, dm) ||
	    kvmsnap_set_target(session, target) || pass_dirty(session, 0))
		return -1;
	return target;
}

FIXTURE(staged) {
	struct machine m;
	int session, target;
	char *ram;		/* at the stop */
};

FIXTURE_VARIANT(staged) {
	uint64_t bytes;
	bool compare;
};

FIXTURE_SETUP(staged)
{
	struct machine_config config = small;

	if (!getenv("KVMSNAP_DM"))
		SKIP(return, "KVMSNAP_DM names no device");
	/* Many short runs: more of them than can be in flight. */
	config.pattern = PATTERN_SAME;
	config.device = true;
	self->ram = malloc(RAM);
	ASSERT_EQ(0, machine_create(&self->m, &config));
	self->session = kvmsnap_open(NULL);
	ASSERT_EQ(0, run_followed(&self->m, self->session, variant->compare ? KVMSNAP_TRACK_HASH : 0));
	ASSERT_EQ(0, kvmsnap_set_stage(self->session, variant->bytes));
	self->target = slow_target(self->session);
	ASSERT_LE(0, self->target);
}

FIXTURE_TEARDOWN(staged)
{
	machine_logging(&self->m, false);
	machine_destroy(&self->m);
	close(self->session);
	close(self->target);
	free(self->ram);
	EXPECT_EQ(0, dm_load(getenv("KVMSNAP_DM"), DM_LINEAR));
}

FIXTURE_VARIANT_ADD(staged, all) { .bytes = RAM };
FIXTURE_VARIANT_ADD(staged, compared) { .bytes = RAM, .compare = true };
FIXTURE_VARIANT_ADD(staged, too_small) { .bytes = 100 * PAGE };
FIXTURE_VARIANT_ADD(staged, none) { .bytes = 0 };

/* Stop, keep what memory is, and start to stage it.  Seconds the guest has to wait. */
static double stage(struct machine *m, int session, char *ram, bool compare)
{
	struct kvmsnap_wait wait;
	double began;

	machine_pause(m);
	memcpy(ram, m->ram, RAM);
	began = seconds();
	if (kvmsnap_harvest(session, NULL) ||
	    (compare ? kvmsnap_queue_compare(session, KVMSNAP_QUEUE_STAGE, NULL) :
		       kvmsnap_queue_dirty(session, KVMSNAP_QUEUE_STAGE, NULL)) ||
	    kvmsnap_wait_staged(session, PASS_LIMIT, &wait) || wait.error)
		return 1e6;
	return seconds() - began;
}

/* The guest runs on, and rewrites its memory, while the target gets what was. */
TEST_F(staged, is_what_memory_was)
{
	uint64_t dirty = variant->bytes / PAGE, work;
	struct kvmsnap_stats stats;
	struct kvmsnap_wait wait;
	double staged, written;
	char *file = malloc(RAM);
	int i;

	/* Twice: a stage is used again, and what is written meanwhile is not lost. */
	for (i = 0; i < 2; i++) {
		usleep(200000);
		staged = stage(&self->m, self->session, self->ram, variant->compare);
		written = seconds();
		kvmsnap_stats(self->session, &stats);
		work = machine_work(&self->m);
		machine_resume(&self->m);
		if (variant->bytes == RAM) {
			EXPECT_EQ(KVMSNAP_STATE_RUNNING, stats.state);
			EXPECT_EQ(-EBUSY, kvmsnap_set_stage(self->session, 0));
			EXPECT_LT(100, stats.pages_staged);
		} else {
			EXPECT_EQ(dirty, stats.pages_staged);
		}
		ASSERT_EQ(0, kvmsnap_wait(self->session, PASS_LIMIT, &wait));
		EXPECT_EQ(0, wait.error);
		written = seconds() - written;
		kvmsnap_stats(self->session, &stats);
		TH_LOG("%llu pages, %llu of them staged: the guest waits %.0f ms, the target takes %.0f ms more",
		       (unsigned long long)stats.pages_written, (unsigned long long)stats.pages_staged,
		       staged * 1e3, written * 1e3);
		EXPECT_LT(100, stats.pages_written);
		/* Nothing left to write after the resume gives the guest no time to work. */
		if (variant->bytes == RAM) {
			EXPECT_LT(staged, written);
			EXPECT_LT(work, machine_work(&self->m));
		}
		ASSERT_EQ((ssize_t)RAM, pread(self->target, file, RAM, 0));
		EXPECT_EQ(0, memcmp(file, self->ram, RAM));
	}
	EXPECT_EQ(0, finish(&self->m, self->session, self->target));
	free(file);
}

/* Cancelled with all of it on the stage: that is dirty again, and the guest has run on. */
TEST_F(staged, cancelled)
{
	struct kvmsnap_stats stats;
	struct kvmsnap_wait wait;

	EXPECT_GT(30 * slowness(), stage(&self->m, self->session, self->ram, variant->compare));
	ASSERT_EQ(0, kvmsnap_cancel(self->session));
	ASSERT_EQ(0, kvmsnap_wait(self->session, PASS_LIMIT, &wait));
	EXPECT_TRUE(!wait.error || wait.error == ECANCELED);
	if (variant->bytes == RAM) {
		kvmsnap_stats(self->session, &stats);
		EXPECT_EQ(ECANCELED, wait.error);
		EXPECT_LT(100, stats.pages_dirty);
	}
	EXPECT_EQ(0, kvmsnap_set_stage(self->session, 0));
	machine_resume(&self->m);
	ASSERT_EQ(0, kvmsnap_set_target(self->session, self->target));
	ASSERT_EQ(0, pass_dirty(self->session, 0));
	EXPECT_EQ(0, finish(&self->m, self->session, self->target));
}

/* Nor is the target waited for where zeros are to be written, a run here and there. */
TEST(staged_zeros)
{
	const char *dm = getenv("KVMSNAP_DM");
	size_t bytes = 16 * MIB, i;
	struct kvmsnap_stats stats;
	struct kvmsnap_wait wait;
	struct setup s;

	if (!dm)
		SKIP(return, "KVMSNAP_DM names no device");
	ASSERT_EQ(0, setup_with(&s, map_anonymous(bytes), bytes, dm_open(dm), 0));
	ASSERT_EQ(0, madvise(s.mem, bytes, MADV_NOHUGEPAGE));
	ASSERT_EQ(0, kvmsnap_track(s.session, KVMSNAP_TRACK_COMPARE, KVMSNAP_TRACK_HASH));
	ASSERT_EQ(0, kvmsnap_set_stage(s.session, bytes));
	fill_pages(s.mem, bytes / PAGE, 7);
	ASSERT_EQ(0, save_all(s.session));
	for (i = 0; i < bytes; i += 4 * PAGE)
		ASSERT_EQ(0, madvise(s.mem + i, 2 * PAGE, MADV_DONTNEED));
	fill_pages(s.mem + PAGE, 1, 8);
	ASSERT_EQ(0, run("dmsetup suspend --noflush --nolockfs %s", dm));
	EXPECT_EQ(0, kvmsnap_queue_compare(s.session, KVMSNAP_QUEUE_STAGE, NULL));
	EXPECT_EQ(0, kvmsnap_wait_staged(s.session, PASS_LIMIT, &wait));
	kvmsnap_stats(s.session, &stats);
	ASSERT_EQ(0, run("dmsetup resume %s", dm));
	EXPECT_EQ(1, stats.pages_staged);
	EXPECT_EQ(0, stats.bytes_written);
	ASSERT_EQ(0, kvmsnap_wait(s.session, PASS_LIMIT, &wait));
	EXPECT_EQ(0, wait.error);
	kvmsnap_stats(s.session, &stats);
	EXPECT_EQ(bytes / PAGE / 2, stats.pages_written);
	EXPECT_TRUE(same_as_file(s.target, 0, s.mem, bytes));
	setup_close(&s);
}

/* The VMM ends while its memory is written from the stage: the snapshot is whole. */
TEST(staged_vmm_ends)
{
	const char *dm = getenv("KVMSNAP_DM");
	int session, status, target;
	struct kvmsnap_wait wait;
	char *ram, *file;
	pid_t pid;

	if (!dm)
		SKIP(return, "KVMSNAP_DM names no device");
	ram = mmap(NULL, RAM, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	file = malloc(RAM);
	session = kvmsnap_open(NULL);
	pid = fork();
	ASSERT_LE(0, pid);
	if (pid == 0) {
		struct machine_config config = small;
		struct machine m;

		config.device = true;
		if (machine_create(&m, &config) || run_followed(&m, session, 0) ||
		    kvmsnap_set_stage(session, RAM))
			_exit(1);
		if (slow_target(session) < 0)
			_exit(2);
		usleep(200000);
		if (stage(&m, session, ram, false) > 1e5)
			_exit(3);
		_exit(0);
	}
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	ASSERT_EQ(0, status);
	ASSERT_EQ(0, kvmsnap_wait(session, PASS_LIMIT, &wait));
	EXPECT_EQ(0, wait.error);
	EXPECT_EQ(KVMSNAP_STATE_DEAD, wait.state);
	target = dm_open(dm);
	ASSERT_LE(0, target);
	ASSERT_EQ((ssize_t)RAM, pread(target, file, RAM, 0));
	EXPECT_EQ(0, memcmp(file, ram, RAM));
	close(target);
	close(session);
	free(file);
	munmap(ram, RAM);
	EXPECT_EQ(0, dm_load(dm, DM_LINEAR));
}

/* Killed at any moment of a live save, a VMM takes everything with it. */
TEST(killed_vmm_leaves_nothing)
{
	int i, status;

	for (i = 0; i < 15; i++) {
		pid_t pid = fork();

		ASSERT_LE(0, pid);
		if (pid == 0) {
			struct live_options options = { .max_passes = 100000, .max_downtime = -1 };
			struct machine_config config = small;
			struct live_report report;
			struct machine m;

			config.reap_ms = i % 2 ? REAP_MS : 0;
			if (machine_create(&m, &config))
				_exit(1);
			machine_resume(&m);
			live_save(&m, target_create(RAM), &options, true, &report);
			_exit(0);
		}
		usleep(100000 + (useconds_t)i * 40000);
		kill(pid, SIGKILL);
		ASSERT_EQ(pid, waitpid(pid, &status, 0));
		EXPECT_EQ(SIGKILL, status);
	}
	for (i = 0; i < 500 && module_references(); i++)
		usleep(10000);
	EXPECT_EQ(0, module_references());
}

/* Sessions are closed while they are harvested and written: nobody waits, nothing is missed. */
TEST_F(live, closed_while_running)
{
	long open = module_references();
	int i;

	for (i = 0; i < 20; i++) {
		ASSERT_EQ(0, kvmsnap_queue_dirty(self->session, 0, NULL));
		usleep((useconds_t)i * 500);
		close(self->session);
		/* The next owner waits for the last harvest of the one before. */
		self->session = kvmsnap_open(NULL);
		ASSERT_EQ(0, kvmsnap_bind_vm(self->session, self->m.vm));
		ASSERT_EQ(0, kvmsnap_set_target(self->session, self->target));
		ASSERT_EQ(0, kvmsnap_add_region(self->session, (uintptr_t)self->m.ram, RAM, 0, 0));
		ASSERT_EQ(0, kvmsnap_track(self->session, KVMSNAP_TRACK_OWNER, 0));
		atomic_store(&self->m.session, self->session);
	}
	EXPECT_EQ(0, pass_dirty(self->session, 0));
	EXPECT_EQ(0, finish(&self->m, self->session, self->target));
	for (i = 0; i < 500 && module_references() > open; i++)
		usleep(10000);
	EXPECT_EQ(open, module_references());
}

/* A running machine that reaps its rings itself, and is to be observed. */
FIXTURE(observed) {
	struct machine m;
	int session, target;
};

FIXTURE_SETUP(observed)
{
	struct machine_config config = small;

	config.reap_ms = REAP_MS;
	self->target = target_create(RAM);
	ASSERT_EQ(0, machine_create(&self->m, &config));
	self->session = kvmsnap_open(NULL);
	ASSERT_EQ(0, kvmsnap_set_target(self->session, self->target));
	ASSERT_EQ(0, kvmsnap_bind_vm(self->session, self->m.vm));
	ASSERT_EQ(0, kvmsnap_add_region(self->session, (uintptr_t)self->m.ram, RAM, 0, 0));
	machine_resume(&self->m);
}

FIXTURE_TEARDOWN(observed)
{
	machine_destroy(&self->m);
	close(self->session);
	close(self->target);
}

/* Logging is another's to switch on and off: without it nothing is taken for clean. */
TEST_F(observed, logging_comes_and_goes)
{
	struct kvmsnap_wait wait;

	ASSERT_EQ(0, kvmsnap_track(self->session, KVMSNAP_TRACK_OBSERVER, KVMSNAP_TRACK_HASH));
	EXPECT_EQ(-ENODATA, kvmsnap_queue_dirty(self->session, 0, NULL));
	ASSERT_EQ(0, machine_logging(&self->m, true));
	EXPECT_EQ(0, pass_dirty(self->session, 0));
	ASSERT_EQ(0, machine_logging(&self->m, false));
	usleep(50000);
	EXPECT_EQ(-ENODATA, kvmsnap_queue_dirty(self->session, 0, NULL));
	/* Without a ring, by comparing. */
	EXPECT_EQ(0, kvmsnap_queue_compare(self->session, 0, NULL));
	EXPECT_EQ(0, kvmsnap_wait(self->session, PASS_LIMIT, &wait));
	EXPECT_EQ(0, wait.error);
	/* What was written without logging is dirty. */
	ASSERT_EQ(0, machine_logging(&self->m, true));
	EXPECT_EQ(0, pass_dirty(self->session, 0));
	EXPECT_EQ(0, finish(&self->m, self->session, self->target));
}

/* What logged before anybody listened may be open since then. */
TEST_F(observed, logged_before)
{
	struct kvmsnap_harvest harvest;

	ASSERT_EQ(0, machine_logging(&self->m, true));
	usleep(50000);
	ASSERT_EQ(0, kvmsnap_track(self->session, KVMSNAP_TRACK_OBSERVER, 0));
	EXPECT_EQ(0, pass_dirty(self->session, 0));
	machine_pause(&self->m);
	ASSERT_EQ(0, kvmsnap_harvest(self->session, &harvest));
	EXPECT_EQ(RAM / PAGE, harvest.pages_dirty);
	EXPECT_EQ(0, pass_dirty(self->session, KVMSNAP_QUEUE_STOPPED));
	EXPECT_EQ(0, machine_differs(&self->m, self->target, NULL));
	EXPECT_EQ(1, all_dirty(self->session));
}

/* From save to save, the machine running in between, with what is open at each stop. */
TEST_F(observed, stops_again_and_again)
{
	struct kvmsnap_stats stats;
	int i;

	ASSERT_EQ(0, kvmsnap_track(self->session, KVMSNAP_TRACK_OBSERVER, 0));
	ASSERT_EQ(0, machine_logging(&self->m, true));
	for (i = 0; i < 20; i++) {
		EXPECT_EQ(0, pass_dirty(self->session, 0));
		usleep((useconds_t)i * 3000);
		ASSERT_EQ(0, finish(&self->m, self->session, self->target));
		ASSERT_EQ(0, kvmsnap_stats(self->session, &stats));
		/* What is open, and not all. */
		EXPECT_GT(RAM / PAGE / 2, stats.pages_written);
		machine_resume(&self->m);
	}
	EXPECT_EQ(2, all_dirty(self->session));
}

/* Since Linux 6.16 a signal cuts a reset short: pages may then be written without being told of. */
TEST_F(observed, resets_are_cut_short)
{
	int i;

	self->m.signals = true;
	ASSERT_EQ(0, kvmsnap_track(self->session, KVMSNAP_TRACK_OBSERVER, 0));
	ASSERT_EQ(0, machine_logging(&self->m, true));
	for (i = 0; i < 1500; i++) {
		pthread_kill(self->m.reaper, MACHINE_KICK);
		usleep(200);
		if (i % 300 == 0)
			EXPECT_EQ(0, pass_dirty(self->session, 0));
	}
	ASSERT_EQ(0, finish(&self->m, self->session, self->target));
	TH_LOG("%lu resets cut short, all pages dirty %llu times", self->m.cut_short,
	       (unsigned long long)all_dirty(self->session));
}

TEST_F(observed, memslots_change)
{
	uint64_t before;
	int i;

	ASSERT_EQ(0, kvmsnap_track(self->session, KVMSNAP_TRACK_OBSERVER, 0));
	ASSERT_EQ(0, machine_logging(&self->m, true));
	for (i = 0; i < 5; i++) {
		EXPECT_EQ(0, pass_dirty(self->session, 0));
		before = all_dirty(self->session);
		machine_pause(&self->m);
		ASSERT_EQ(0, machine_swap_slots(&self->m));
		machine_resume(&self->m);
		usleep(20000);
		EXPECT_EQ(0, pass_dirty(self->session, 0));
		EXPECT_LT(before, all_dirty(self->session));
	}
	EXPECT_EQ(0, finish(&self->m, self->session, self->target));
}

/* Another process's rings may be watched by whoever may trace it. */
TEST_F(observed, from_another_process)
{
	pid_t pid;
	int status;

	pid = fork();
	if (pid == 0) {
		int session = kvmsnap_open(NULL);

		if (kvmsnap_bind_vm(session, self->m.vm) ||
		    kvmsnap_set_target(session, self->target) ||
		    kvmsnap_add_region(session, (uintptr_t)self->m.ram, RAM, 0, 0) < 0 ||
		    kvmsnap_track(session, KVMSNAP_TRACK_OBSERVER, 0))
			_exit(1);
		/* Killed while it watches. */
		raise(SIGKILL);
	}
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	ASSERT_EQ(SIGKILL, status);
	EXPECT_EQ(0, kvmsnap_track(self->session, KVMSNAP_TRACK_OBSERVER, 0));
	ASSERT_EQ(0, machine_logging(&self->m, true));
	EXPECT_EQ(0, pass_dirty(self->session, 0));
	EXPECT_EQ(0, finish(&self->m, self->session, self->target));
}

/* Each is told all, whoever comes and goes. */
TEST_F(observed, by_several)
{
	int target = target_create(RAM), other, session, i, more[MAX_OBSERVERS];

	ASSERT_EQ(0, kvmsnap_track(self->session, KVMSNAP_TRACK_OBSERVER, 0));
	for (i = 0, other = -1; i < 6; i++) {
		session = kvmsnap_open(NULL);
		ASSERT_EQ(0, kvmsnap_bind_vm(session, self->m.vm));
		ASSERT_EQ(0, kvmsnap_set_target(session, target));
		ASSERT_EQ(0, kvmsnap_add_region(session, (uintptr_t)self->m.ram, RAM, 0, 0));
		ASSERT_EQ(0, kvmsnap_track(session, KVMSNAP_TRACK_OBSERVER, 0));
		close(other);
		other = session;
	}
	ASSERT_EQ(0, machine_logging(&self->m, true));
	EXPECT_EQ(0, pass_dirty(self->session, 0));
	EXPECT_EQ(0, pass_dirty(other, 0));
	usleep(50000);
	EXPECT_EQ(0, finish(&self->m, self->session, self->target));
	EXPECT_EQ(0, finish(&self->m, other, target));
	EXPECT_EQ(2, all_dirty(self->session));
	EXPECT_EQ(2, all_dirty(other));
	close(other);
	close(target);

	/* But not without end: each costs the guest. */
	for (i = 0; i < MAX_OBSERVERS; i++) {
		more[i] = kvmsnap_open(NULL);
		ASSERT_EQ(0, kvmsnap_bind_vm(more[i], self->m.vm));
		EXPECT_EQ(i + 1 < MAX_OBSERVERS ? 0 : -EBUSY, kvmsnap_track(more[i], KVMSNAP_TRACK_OBSERVER, 0));
	}
	for (i = 0; i < MAX_OBSERVERS; i++)
		close(more[i]);
}

/* Another process's rings are not ours to reset. */
TEST(not_another_process)
{
	int session = kvmsnap_open(NULL), status;
	struct machine m;
	pid_t pid;

	ASSERT_EQ(0, machine_create(&m, &small));
	ASSERT_EQ(0, machine_logging(&m, true));
	ASSERT_EQ(0, kvmsnap_bind_vm(session, m.vm));
	pid = fork();
	if (pid == 0)
		_exit(kvmsnap_track(session, KVMSNAP_TRACK_OWNER, 0) == -EPERM ? 0 : 1);
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_EQ(0, status);
	close(session);
	machine_destroy(&m);
}

TEST_HARNESS_MAIN
