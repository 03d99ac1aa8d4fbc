// SPDX-License-Identifier: GPL-2.0
/*
 * What each ioctl does when the kernel runs out of memory, or can't reach the caller's, in its N-th
 * try, for every N: /proc/self/fail-nth (Documentation/fault-injection).  It says so, by an errno
 * that is documented; the step is done again, the save goes on, and the file equals memory.  A reply
 * that could not be copied leaves done what was done: then the session is closed instead.  Runs on a
 * kernel that has fault injection (make test-debug), where kmemleak is asked at the end.
 */
#include "kvmsnap_test.h"

#include "live.h"

#define RAM	(4 * MIB)
#define STAGE	(1 * MIB)

static const struct machine_config config = {
	.ram = RAM, .kind = RAM_SMALL, .vcpus = 1, .ring = 1024, .pattern = PATTERN_SEQUENTIAL, .filled = RAM / 2,
	.dirtied = MIB, .seed = 7,
};

/* A VMM in the middle of a save, and what its steps work on. */
struct saving {
	struct machine *m;
	int session, file[3], event, region;
	uint64_t hash[16];
	uint8_t bitmap[RAM / PAGE / 8], key[16];
	struct kvmsnap_stats stats;
	unsigned int writes;
};

static int step_open(struct saving *s)
{
	s->session = kvmsnap_open(NULL);
	return s->session < 0 ? s->session : 0;
}

static int step_bind(struct saving *s) { return kvmsnap_bind_vm(s->session, s->m->vm); }
static int step_target(struct saving *s) { return kvmsnap_set_target(s->session, s->file[0]); }
static int step_eventfd(struct saving *s) { return kvmsnap_set_eventfd(s->session, s->event); }
static int step_stage(struct saving *s) { return kvmsnap_set_stage(s->session, STAGE); }
static int step_stats(struct saving *s) { return kvmsnap_stats(s->session, &s->stats); }
static int step_cancel(struct saving *s) { return kvmsnap_cancel(s->session); }
static int step_all(struct saving *s) { return kvmsnap_queue_all(s->session, NULL); }
static int step_dirty(struct saving *s) { return kvmsnap_queue_dirty(s->session, 0, NULL); }

static int step_region(struct saving *s)
{
	s->region = kvmsnap_add_region(s->session, (uintptr_t)s->m->ram, RAM, 0, 0);
	return s->region < 0 ? s->region : 0;
}

static int step_track(struct saving *s)
{
	return kvmsnap_track(s->session, KVMSNAP_TRACK_OWNER, KVMSNAP_TRACK_HASH);
}

static int step_harvest(struct saving *s)
{
	struct kvmsnap_harvest harvest;

	return kvmsnap_harvest(s->session, &harvest);
}

static int step_staged(struct saving *s)
{
	return kvmsnap_queue_dirty(s->session, KVMSNAP_QUEUE_COMPARE | KVMSNAP_QUEUE_STAGE, NULL);
}

static int step_wait_staged(struct saving *s)
{
	struct kvmsnap_wait wait;

	return kvmsnap_wait_staged(s->session, PASS_LIMIT, &wait);
}

static int step_wait(struct saving *s)
{
	struct kvmsnap_wait wait;
	int err = kvmsnap_wait(s->session, PASS_LIMIT, &wait);

	return err ? err : -(int)wait.error;
}

/* A pass that was cancelled, or was over before. */
static int step_wait_cancelled(struct saving *s)
{
	int err = step_wait(s);

	return err == -ECANCELED ? 0 : err;
}

/* The VMM writes, and tells of it. */
static int step_write(struct saving *s)
{
	char *at = s->m->ram + RAM / 2 + s->writes % 64 * 3 * PAGE;

	memset(at, (int)++s->writes, 5000);
	return kvmsnap_mark_dirty(s->session, (uintptr_t)at, 5000);
}

static int step_bitmap(struct saving *s)
{
	return kvmsnap_get_written(s->session, (uint32_t)s->region, 0, RAM / PAGE, s->bitmap);
}

static int step_hashes(struct saving *s)
{
	return kvmsnap_get_hashes(s->session, (uint32_t)s->region, 0, 16, s->hash, s->key);
}

/* The next generation's file holds what the last one's does; and when it failed, so does one more. */
static int step_current(struct saving *s)
{
	return kvmsnap_set_target_at(s->session, s->file[1], 0, KVMSNAP_TARGET_CURRENT);
}

static int step_before(struct saving *s)
{
	return kvmsnap_set_target_at(s->session, s->file[2], 0, KVMSNAP_TARGET_BEFORE);
}

static const struct step {
	const char *name;
	int (*run)(struct saving *s);
} steps[] = {
	{ "open", step_open }, { "BIND_VM", step_bind }, { "SET_TARGET", step_target },
	{ "ADD_REGION", step_region }, { "SET_EVENTFD", step_eventfd }, { "SET_STAGE", step_stage },
	{ "TRACK", step_track }, { "QUEUE, all", step_all }, { "WAIT", step_wait },
	{ "MARK_DIRTY", step_write }, { "HARVEST", step_harvest }, { "QUEUE, staged", step_staged },
	{ "WAIT, staged", step_wait_staged }, { "WAIT for the stage", step_wait },
	{ "GET_BITMAP", step_bitmap }, { "GET_HASHES", step_hashes }, { "STATS", step_stats },
	{ "SET_TARGET, current", step_current }, { "MARK_DIRTY for the next", step_write },
	{ "QUEUE to be cancelled", step_dirty }, { "CANCEL", step_cancel },
	{ "WAIT for the cancelled", step_wait_cancelled }, { "SET_TARGET, before", step_before },
	{ "MARK_DIRTY again", step_write }, { "QUEUE, dirty", step_dirty }, { "WAIT for the dirty", step_wait },
};

#define NR_STEPS (sizeof(steps) / sizeof(*steps))

static int fail_nth = -1;

/* Have the @nth chance to fail be taken, 0 for none; what is left of the last order. */
static int arm(unsigned int nth)
{
	char text[16] = "";
	int left = pread(fail_nth, text, sizeof(text) - 1, 0) > 0 ? atoi(text) : -1;

	snprintf(text, sizeof(text), "%u", nth);
	return pwrite(fail_nth, text, strlen(text), 0) < 0 ? -1 : left;
}

static int copy_file(int from, int to)
{
	char *buf = malloc(RAM);
	int ret = buf && pread(from, buf, RAM, 0) == (ssize_t)RAM && pwrite(to, buf, RAM, 0) == (ssize_t)RAM ? 0 : -1;

	free(buf);
	return ret;
}

enum outcome { NOT_REACHED, SURVIVED, CLOSED, WRONG };

/* A save in which step @which fails at its @nth chance; it ends there, or is done as a @whole. */
static enum outcome save_with_fault(struct machine *m, size_t which, unsigned int nth, bool whole, int *err)
{
	struct saving s = { .m = m, .session = -1 };
	enum outcome outcome = SURVIVED;
	size_t i;
	int ret, left;

	for (i = 0; i < 3; i++)
		s.file[i] = target_create(RAM);
	s.event = eventfd(0, EFD_CLOEXEC);
	*err = 0;
	for (i = 0; i < (whole ? NR_STEPS : which + 1) && outcome != CLOSED && outcome != WRONG; i++) {
		if (steps[i].run == step_current &&
		    (copy_file(s.file[0], s.file[1]) || copy_file(s.file[0], s.file[2]))) {
			outcome = WRONG;
			break;
		}
		if (i == which)
			arm(nth);
		ret = steps[i].run(&s);
		if (i == which) {
			left = arm(0);
			if (left)
				outcome = NOT_REACHED;
			*err = -ret;
			/* Once more, and it is done; but not what was done without a word that it was. */
			if (ret == -EFAULT)
				outcome = CLOSED;
			else if (ret)
				ret = steps[i].run(&s);
		}
		if (ret && outcome != CLOSED) {
			fprintf(stderr, "# %s fails: %s; chance %u of %s gave %s\n", steps[i].name, strerror(-ret), nth,
				steps[which].name, strerror(*err));
			outcome = WRONG;
		}
	}
	if (whole && outcome != CLOSED && outcome != WRONG && machine_differs(m, s.file[2], NULL))
		outcome = WRONG;
	close(s.session);
	for (i = 0; i < 3; i++)
		close(s.file[i]);
	close(s.event);
	return outcome;
}

FIXTURE(fault) {
};

FIXTURE_SETUP(fault)
{
}

FIXTURE_TEARDOWN(fault)
{
}

TEST_F_TIMEOUT(fault, every_chance, 3000)
{
	static const char *const settings[] = {
		"failslab/ignore-gfp-wait=N", "failslab/verbose=0", "fail_page_alloc/ignore-gfp-wait=N",
		"fail_page_alloc/ignore-gfp-highmem=N", "fail_page_alloc/min-order=0", "fail_page_alloc/verbose=0",
		"fail_usercopy/verbose=0",
	};
	unsigned int nth, taken = 0;
	struct machine m;
	size_t i;

	fail_nth = open("/proc/thread-self/fail-nth", O_RDWR | O_CLOEXEC);
	if (fail_nth < 0)
		SKIP(return, "this kernel has no fault injection; make test-debug builds one that has");
	for (i = 0; i < sizeof(settings) / sizeof(*settings); i++)
		ASSERT_EQ(0, run("s=%s; echo ${s#*=} >/sys/kernel/debug/${s%%%%=*}", settings[i]));
	ASSERT_EQ(0, machine_create(&m, &config));
	ASSERT_EQ(0, machine_logging(&m, true));
	for (i = 0; i < NR_STEPS; i++) {
		enum outcome outcome = SURVIVED;
		int err;

		for (nth = 1; outcome != NOT_REACHED && nth < 1000; nth++) {
			/* Steps have up to some hundred chances, most of them in a loop. */
			outcome = save_with_fault(&m, i, nth, nth < 4 || nth % 16 == 0, &err);
			ASSERT_NE(WRONG, outcome);
			EXPECT_TRUE(!err || err == ENOMEM || err == EFAULT || err == EAGAIN)
				TH_LOG("chance %u of %s gave %s", nth, steps[i].name, strerror(err));
			taken += outcome != NOT_REACHED;
		}
		EXPECT_GT(1000, nth);
		TH_LOG("%s: %u chances", steps[i].name, nth - 2);
	}
	machine_destroy(&m);
	TH_LOG("%u failures injected", taken);
	EXPECT_LT(50, taken);
	EXPECT_EQ(0, module_references());
	close(fail_nth);
}

TEST_HARNESS_MAIN
