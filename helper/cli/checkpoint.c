// SPDX-License-Identifier: GPL-2.0
/*
 * kvmsnap checkpoint: a generation every so often.  Files are DIR/NAME-NUMBER.snap.  Where the file
 * system shares blocks each is a generation; elsewhere the first one has all, and is compacted into
 * a new one when it has twice as many as are to be kept.
 */
#include "cli.h"
#include "folder.h"
#include "options.h"
#include "saver.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

static const char checkpoint_usage[] =
	"usage: kvmsnap checkpoint --qmp SOCKET --dir DIR [OPTION]...\n"
	"Save a QEMU VM again and again, each time what has changed, until interrupted or QEMU ends.\n"
	"The QMP socket is in use meanwhile.\n"
	"  --dir DIR         where to: DIR/NAME-NUMBER.snap\n"
	"  --name NAME       (vm)\n"
	"  --every T         from one to the next, as in 2s (10s)\n"
	"  --keep N          generations that are kept, at least (10)\n"
	"  --count N         end after that many\n"
	SAVE_OPTIONS_USAGE;

struct checkpoint {
	struct save_options save;
	const char *dir, *name;
	double every;			/* seconds */
	uint64_t keep, count;
	uint64_t compact_at;		/* when a file has that many generations */
	const volatile sig_atomic_t *interrupted;
	struct saver saver;
};

static int make_durable(const char *path, struct error *err)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC), ret = 0;

	if (fd < 0 || fdatasync(fd) < 0)
		ret = error_set(err, errno, "making %s durable: %s", path, strerror(errno));
	if (fd >= 0)
		close(fd);
	return ret;
}

/*
 * Files of ours but the newest @keep go.  They may have been durable for long: so the oldest that stays is made
 * so first, whatever --sync says.
 */
static int remove_old(const struct checkpoint *c, uint64_t keep, struct error *err)
{
	struct folder folder;
	size_t i;
	int ret = folder_read(&folder, c->dir, c->name, err);

	if (!ret && folder.nr > keep && c->save.sync == SYNC_NONE)
		ret = make_durable(folder.file[folder.nr - keep].path, err);
	for (i = 0; !ret && i + keep < folder.nr; i++)
		if (unlink(folder.file[i].path) < 0 && errno != ENOENT)
			ret = error_set(err, errno, "%s: %s", folder.file[i].path, strerror(errno));
	folder_free(&folder);
	return ret;
}

static int is_interrupted(uint64_t bytes, void *data)
{
	const struct checkpoint *c = data;

	(void)bytes;
	return *c->interrupted;
}

/* The newest generations of the file that others are appended to, in a new one; the old one goes. */
static int compact(struct checkpoint *c, struct error *err)
{
	struct saver *saver = &c->saver;
	struct chain *chain = &saver->chain;
	size_t first = chain->nr - c->keep;
	struct target target = { .fd = -1 };
	char path[4096];
	int ret;

	folder_path(path, sizeof(path), c->dir, c->name, chain->generation[first].record.generation);
	ret = guardian_partial(&saver->guardian, path, err);
	if (!ret)
		ret = target_open(&target, path, -1, false, err);
	if (!ret)
		ret = chain_copy(chain, saver->last, first, chain->nr - 1, target.fd, is_interrupted, c, err);
	/* Whatever --sync says: what it takes the place of may have been durable for long. */
	if (!ret)
		ret = target_commit(&target, SYNC_FULL, err);
	guardian_partial(&saver->guardian, NULL, err);
	if (!ret) {
		unlink(saver->last_path);
		ret = saver_moved(saver, path, target.fd, err);
	} else if (target.committed) {
		/* Its name may not last, and the newest would be looked for in it. */
		unlink(path);
	}
	target_close(&target);
	if (!ret)
		c->compact_at = 2 * c->keep;
	return ret;
}

/* Seconds pass, with an ear for QEMU. */
static void wait_until(struct checkpoint *c, double when)
{
	struct pollfd pfd = { .fd = c->saver.qemu.qmp.fd, .events = POLLIN };

	while (now() < when && !*c->interrupted && !c->saver.qemu.qmp.lost) {
		int ms = (int)((when - now()) * 1e3) + 1;

		if (poll_signals(&pfd, 1, ms) > 0)
			qemu_drain(&c->saver.qemu);
	}
}

/*
 * Keep what is to be kept of what is there.  A file that could not be compacted, for want of room say,
 * is let grow before that is tried again.
 */
static int tidy(struct checkpoint *c, struct error *err)
{
	struct saver *saver = &c->saver;
	int ret = 0;

	/* The first of a file, or each is one. */
	if (!saver->chain.nr) {
		c->compact_at = 2 * c->keep;
		return remove_old(c, c->keep, err);
	}
	if (saver->chain.nr >= c->compact_at) {
		ret = compact(c, err);
		if (ret)
			c->compact_at = saver->chain.nr + c->keep;
	}
	/* Those of earlier runs, once this file has enough. */
	return ret || saver->chain.nr < c->keep ? ret : remove_old(c, 1, err);
}

/* A generation.  @saved counts it, whatever happens after. */
static int one(struct checkpoint *c, uint64_t *saved, struct error *err)
{
	struct saver *saver = &c->saver;
	char path[4096];
	int ret;

	folder_path(path, sizeof(path), c->dir, c->name, saver->generation + 1);
	ret = saver_round(saver, path, -1, err);
	/* What others are appended to gets no longer: its file system, or a limit. */
	if (ret == -EFBIG && saver->chain.nr) {
		if (saver->chain.nr <= c->keep || compact(c, err)) {
			if (*c->interrupted)
				return -EINTR;
			saver_forget(saver, "the last one's file can't get any longer");
		}
		ret = saver_round(saver, path, -1, err);
	}
	if (ret)
		return ret;
	++*saved;
	saver_report(saver);
	fflush(stdout);
	return tidy(c, err);
}

/* Another with these files would remove ours.  The lock is there for as long as we are. */
static int lock_name(const struct checkpoint *c, struct error *err)
{
	char path[4096];
	int fd;

	snprintf(path, sizeof(path), "%s/.%s.lock", c->dir, c->name);
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0)
		return error_set(err, errno, "%s: %s", path, strerror(errno));
	if (flock(fd, LOCK_EX | LOCK_NB) == 0)
		return 0;
	close(fd);
	return error_set(err, EBUSY, "another kvmsnap checkpoint saves to %s as %s; choose another --name or --dir",
			 c->dir, c->name);
}

/* Go on with what the folder has.  After a failure nothing is open but the lock. */
static int start(struct checkpoint *c, struct error *err)
{
	struct folder folder = { 0 };
	int ret = lock_name(c, err);

	if (!ret)
		ret = folder_read(&folder, c->dir, c->name, err);
	if (!ret)
		ret = saver_open(&c->saver, &c->save, c->interrupted, err);
	if (!ret && folder.nr)
		c->saver.generation = folder.newest;
	folder_free(&folder);
	return ret;
}

static int checkpoints(struct checkpoint *c, struct error *err)
{
	uint64_t done = 0;
	double next;
	int ret = 0;

	for (next = now(); !ret && !*c->interrupted; next += c->every) {
		if (next < now())
			next = now();
		saver_look_ahead(&c->saver);
		wait_until(c, next);
		if (*c->interrupted || c->saver.qemu.qmp.lost)
			break;
		ret = one(c, &done, err);
		if (c->count && done == c->count)
			return ret;
		/* The VM runs, and so does the tracking: the next one may find more room. */
		if (ret && !c->saver.qemu.qmp.lost && ret != -ESRCH && !*c->interrupted) {
			complain(err);
			ret = 0;
		}
	}
	if (*c->interrupted)
		return error_set(err, EINTR, "interrupted; %llu generations were saved", (unsigned long long)done);
	if (!ret && c->saver.qemu.qmp.lost)
		return error_set(err, ESRCH, "QEMU has gone, or closed its QMP socket; %llu generations were saved",
				 (unsigned long long)done);
	return ret;
}

int cmd_checkpoint(int argc, char **argv)
{
	enum { DIR_ = OPT_OWN, NAME, EVERY, KEEP, COUNT };
	static const struct option longs[] = {
		{ "dir", required_argument, NULL, DIR_ },
		{ "name", required_argument, NULL, NAME },
		{ "every", required_argument, NULL, EVERY },
		{ "keep", required_argument, NULL, KEEP },
		{ "count", required_argument, NULL, COUNT },
		SAVE_OPTIONS,
		{ 0 }
	};
	static struct checkpoint c = {
		.save = { .sync = SYNC_FULL, .incremental = true, .append = true },
		.name = "vm", .every = 10, .keep = 10,
	};
	struct error err = { "" };
	struct stat st;
	int o, ret, status;
	char *end;

	while ((o = getopt_long(argc, argv, "h", longs, NULL)) != -1) {
		switch (o) {
		case DIR_:
			c.dir = optarg;
			break;
		case NAME:
			c.name = optarg;
			if (!*optarg || strchr(optarg, '/') || *optarg == '.')
				return usage_error(checkpoint_usage, "--name %s: not the beginning of a file's name", optarg);
			break;
		case EVERY:
			c.every = parse_time(optarg);
			if (c.every < 0)
				return usage_error(checkpoint_usage, "--every %s: not a time such as 500ms or 2s", optarg);
			break;
		case KEEP:
			c.keep = strtoull(optarg, &end, 10);
			if (*end || !c.keep || *optarg == '-')
				return usage_error(checkpoint_usage, "--keep %s: not a number of 1 or more", optarg);
			break;
		case COUNT:
			c.count = strtoull(optarg, &end, 10);
			if (*end || !c.count || *optarg == '-')
				return usage_error(checkpoint_usage, "--count %s: not a number of 1 or more", optarg);
			break;
		default:
			status = options_take(&c.save, o, checkpoint_usage);
			if (status >= 0)
				return status;
		}
	}
	if (optind < argc)
		return usage_error(checkpoint_usage, "%s: not expected", argv[optind]);
	status = options_check(&c.save, checkpoint_usage);
	if (status >= 0)
		return status;
	if (!c.dir)
		return usage_error(checkpoint_usage, "--dir DIR is missing");
	if (stat(c.dir, &st) < 0 || !S_ISDIR(st.st_mode)) {
		error_set(&err, ENOTDIR, "%s: not a folder; make it first", c.dir);
		complain(&err);
		return 1;
	}
	c.interrupted = catch_signals();
	ret = start(&c, &err);
	if (!ret) {
		ret = checkpoints(&c, &err);
		saver_close(&c.saver);
	}
	if (!ret)
		return 0;
	complain(&err);
	return take_signal() ? EXIT_INTERRUPTED : 1;
}
