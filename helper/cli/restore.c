// SPDX-License-Identifier: GPL-2.0
/*
 * kvmsnap restore: QEMU with what a snapshot file has.
 *
 * QEMU is started as the user says, waiting for a stream, with a monitor of ours.  What it has is
 * compared with the file before anything is loaded: stock QEMU takes a file for another machine and
 * goes wrong, or stops in the middle.
 *
 * With --instant RAM is mapped from the file, privately, and the stream has the rest: small blocks
 * and devices.  The file must be an ordinary one of kvmsnap's, where zeros read as zeros; others are
 * copied first.
 */
#include "cli.h"
#include "file.h"
#include "options.h"
#include "target.h"
#include "../qemu/qemu.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static const char restore_usage[] =
	"usage: kvmsnap restore FILE [OPTION]... -- qemu-system-x86_64 ARG...\n"
	"Run QEMU, with the arguments that the saved one had, with what FILE has.\n"
	"  --generation N    not the newest one\n"
	"  --instant         map RAM from FILE, which is read as it is needed: the VM runs at once\n"
	"  --warm            with --instant: read FILE ahead in the background\n"
	"  --channels N      read by N threads of QEMU's with direct I/O, 0 for without (4)\n"
	"  --print           print how stock QEMU alone loads it, and do nothing\n";

#define MAX_ARGS	4096

struct restore {
	const char *path;
	uint64_t number;
	bool instant, warm, print;
	unsigned int channels;
	char **qemu_args;		/* up to a NULL */

	struct chain chain;
	struct generation *generation;
	int fd;				/* of the file that it is in */
	char file[64];			/* what QEMU opens that by */
	int stream;			/* with --instant, for what is not mapped; QEMU inherits it */
	char uri[128];			/* what it is told to load */

	char *argv[MAX_ARGS];		/* QEMU's; those of ours are not freed */
	int argc;
	const char *mapped[64];		/* blocks that are RAM from the file */
	size_t nr_mapped;
};

static int add_arg(struct restore *r, const char *arg, struct error *err)
{
	if (r->argc + 1 == MAX_ARGS || !arg)
		return error_set(err, E2BIG, "too many arguments for QEMU");
	r->argv[r->argc++] = (char *)arg;
	return 0;
}

/* Is it to be RAM from the file? */
static bool is_mapped(const char *name, const void *data)
{
	const struct restore *r = data;
	size_t i;

	for (i = 0; i < r->nr_mapped; i++)
		if (!strcmp(r->mapped[i], name))
			return true;
	return false;
}

/* The backend that maps a block; counts it as mapped. */
static char *backend(struct restore *r, const struct record_block *block, struct error *err)
{
	char *text;

	if (r->nr_mapped == sizeof(r->mapped) / sizeof(*r->mapped) ||
	    asprintf(&text, "memory-backend-file,id=%s,mem-path=%s,offset=%" PRIu64 ",size=%" PRIu64
		     ",share=off,readonly=on,rom=off", block->name, r->file, block->pages_offset,
		     block->length) < 0) {
		error_set(err, ENOMEM, "too many memory backends");
		return NULL;
	}
	r->mapped[r->nr_mapped++] = block->name;
	return text;
}

/* The value of key= in an option with commas; its length in *len.  NULL when there is none. */
static const char *option_value(const char *option, const char *key, size_t *len)
{
	size_t key_len = strlen(key);
	const char *at = option;

	while (at) {
		if (!strncmp(at, key, key_len) && at[key_len] == '=') {
			at += key_len + 1;
			*len = strcspn(at, ",");
			return at;
		}
		at = strchr(at, ',');
		at = at ? at + 1 : NULL;
	}
	return NULL;
}

/* Is it memory that others map too?  A memfd that nobody has is none. */
static bool is_shared(const char *backend)
{
	size_t len;
	const char *share = option_value(backend, "share", &len);

	return share && !strncmp(backend, "memory-backend-file", 19) &&
	       ((len == 2 && !strncmp(share, "on", 2)) || (len == 3 && !strncmp(share, "yes", 3)) ||
		(len == 4 && !strncmp(share, "true", 4)));
}

/* The user's arguments, with backends of RAM replaced, and ours. */
static int map_ram(struct restore *r, struct error *err)
{
	bool named = false;
	const struct record_block *block;
	const char *id;
	size_t len;
	int i, ret = 0;

	for (i = 0; r->qemu_args[i] && !ret; i++) {
		const char *arg = r->qemu_args[i], *before = i ? r->qemu_args[i - 1] : "";

		named |= option_value(arg, "memory-backend", &len) != NULL;
		if (strstr(arg, "vhost-user"))
			return error_set(err, EOPNOTSUPP, "a vhost-user device (%s) shares RAM, which can't be mapped from the snapshot then; restore without --instant",
					 arg);
		if (strncmp(arg, "memory-backend-", 15) || (strcmp(before, "-object") && strcmp(before, "--object"))) {
			ret = add_arg(r, arg, err);
			continue;
		}
		id = option_value(arg, "id", &len);
		block = id ? record_find_block(&r->generation->record, id, len) : NULL;
		if (block && is_shared(arg))
			return error_set(err, EOPNOTSUPP, "RAM that others share (%s) can't be mapped from the snapshot; restore without --instant",
					 arg);
		ret = add_arg(r, block ? backend(r, block, err) : arg, err);
	}
	block = named || is_mapped("pc.ram", r) ? NULL : record_find_block(&r->generation->record, "pc.ram", 6);
	if (!ret && block) {
		ret = add_arg(r, "-object", err);
		if (!ret)
			ret = add_arg(r, backend(r, block, err), err);
		if (!ret)
			ret = add_arg(r, "-machine", err);
		if (!ret)
			ret = add_arg(r, "memory-backend=pc.ram", err);
	}
	if (!ret && !r->nr_mapped)
		ret = error_set(err, EOPNOTSUPP, "no RAM block of the file is one that could be mapped; restore without --instant");
	return ret;
}

static int copy_progress(uint64_t bytes, void *data)
{
	const struct restore *r = data;

	(void)r;
	progress_show("copying", bytes, 0, bytes, 0);
	return 0;
}

/* A generation that can't be mapped where it is, as a file of its own beside it, without a name. */
static int copy_out(struct restore *r, struct error *err)
{
	size_t nr = (size_t)(r->generation - r->chain.generation);
	double began = now();
	struct chain chain;
	struct stat st;
	int fd, ret;

	/* The copy would go to where devices are. */
	if (fstat(r->fd, &st) < 0 || S_ISBLK(st.st_mode))
		return error_set(err, EOPNOTSUPP, "%s is a device without a record of kvmsnap's (it had no room, or QEMU wrote it), from which RAM can't be mapped; restore without --instant",
				 r->path);
	fd = target_nameless(r->path);
	ret = fd < 0 ? error_set(err, errno, "%s: a file for a copy: %s", r->path, strerror(errno)) :
	      chain_copy(&r->chain, r->fd, nr, nr, fd, copy_progress, r, err);
	progress_clear();
	if (!ret)
		ret = chain_load(&chain, fd, err);
	if (ret) {
		if (fd >= 0)
			close(fd);
		return ret;
	}
	fprintf(stderr, "kvmsnap: generation %" PRIu64 " of %s was copied in %.2f s, to be mapped\n",
		r->generation->record.generation, r->path, now() - began);
	chain_free(&r->chain);
	close(r->fd);
	r->chain = chain;
	r->generation = &r->chain.generation[0];
	r->fd = fd;
	return 0;
}

/* Find the generation, open for QEMU too, and keep others from writing over it. */
static int open_file(struct restore *r, struct error *err)
{
	int ret = file_find(&r->chain, r->path, r->number, &r->generation, err);

	if (ret < 0)
		return ret;
	r->fd = ret;
	/* QEMU inherits it, and the lock with it. */
	if (target_lock(r->fd, TARGET_CONTENT, true) == -EBUSY)
		return error_set(err, EBUSY, "%s is being written", r->path);
	if (r->instant && (!r->generation->record.generation || r->generation->record.base)) {
		ret = copy_out(r, err);
		if (ret)
			return ret;
	}
	if (fcntl(r->fd, F_SETFD, 0) < 0)
		return error_set(err, errno, "%s: %s", r->path, strerror(errno));
	snprintf(r->file, sizeof(r->file), "/proc/self/fd/%d", r->fd);
	return 0;
}

/* Differences between what QEMU has and what the file has, a line each, on stderr. */
struct differences {
	int nr;
};

static void differ(struct differences *d, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void differ(struct differences *d, const char *fmt, ...)
{
	va_list ap;

	if (!d->nr++)
		fprintf(stderr, "kvmsnap: this QEMU is not like the one that was saved:\n");
	fputs("  ", stderr);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fputc('\n', stderr);
}

static void compare_ram(const struct restore *r, const struct qemu *qemu, struct differences *d)
{
	size_t i;

	for (i = 0; i < r->generation->record.nr_blocks; i++) {
		const struct record_block *block = &r->generation->record.blocks[i];
		size_t j;

		for (j = 0; j < qemu->nr_blocks && strcmp(qemu->blocks[j].name, block->name); j++)
			;
		if (j == qemu->nr_blocks)
			differ(d, "RAM block %s of %s is missing: add the memory or device that it is of (-m, -object, -device)",
			       block->name, human_bytes((double)block->length));
		/* QEMU checks no length, and goes on writing.  Its own tables, which the file's replace, may get longer. */
		else if (qemu->blocks[j].used != block->length &&
			 (strncmp(block->name, "/rom@", 5) || qemu->blocks[j].used < block->length))
			differ(d, "RAM block %s has %s, and %s in the file: -m %" PRIu64 "M, if it is the main memory; otherwise the same firmware and options of the device",
			       block->name, human_bytes((double)qemu->blocks[j].used),
			       human_bytes((double)block->length), block->length >> 20);
	}
	for (i = 0; i < qemu->nr_blocks; i++)
		if (!record_find_block(&r->generation->record, qemu->blocks[i].name, strlen(qemu->blocks[i].name)))
			differ(d, "RAM block %s of %s is not in the file: leave its memory or device out",
			       qemu->blocks[i].name, human_bytes((double)qemu->blocks[i].used));
}

static bool has_section(const struct snapfile *snap, const char *name)
{
	size_t i;

	for (i = 0; i < snap->nr_devices; i++)
		if (!strcmp(snap->devices[i].name, name))
			return true;
	return false;
}

static int vcpus(const struct snapfile *snap)
{
	size_t i;
	int n = 0;

	for (i = 0; i < snap->nr_devices; i++)
		n += !strcmp(snap->devices[i].name, "cpu") || !strncmp(snap->devices[i].name, "cpu#", 4);
	return n;
}

/* Sections of vCPUs are told of as a number. */
static bool is_vcpus(const char *name)
{
	return !strcmp(name, "cpu") || !strncmp(name, "cpu#", 4) || !strcmp(name, "cpu_common") ||
	       !strncmp(name, "cpu_common#", 11) || !strncmp(name, "apic#", 5);
}

static int compare_devices(const struct restore *r, struct qemu *qemu, struct differences *d,
			   struct error *err)
{
	const struct snapfile *saved = &r->generation->snap;
	struct snapfile now_;
	size_t i;
	int fd = qemu_open_devices(qemu, err), ret;

	if (!fd)
		fd = qemu_device_state(qemu, err);
	qemu_close_devices(qemu);
	if (fd < 0)
		return fd;
	ret = snap_parse_devices(&now_, fd, lseek(fd, 0, SEEK_CUR), err);
	close(fd);
	if (ret)
		return ret;
	if (vcpus(saved) != vcpus(&now_))
		differ(d, "it has %d vCPUs, and the file %d: -smp %d", vcpus(&now_), vcpus(saved), vcpus(saved));
	for (i = 0; i < saved->nr_devices; i++)
		if (!is_vcpus(saved->devices[i].name) && !has_section(&now_, saved->devices[i].name))
			differ(d, "the device of state %s is missing: add it", saved->devices[i].name);
	for (i = 0; i < now_.nr_devices; i++)
		if (!is_vcpus(now_.devices[i].name) && !has_section(saved, now_.devices[i].name))
			differ(d, "device state %s is not in the file: leave the device out", now_.devices[i].name);
	snap_free(&now_);
	return 0;
}

static pid_t qemu_pid;

/* QEMU is there, or will soon be, and waits for its stream: look at it, and load. */
static int load(struct restore *r, int monitor, struct error *err)
{
	struct differences d = { 0 };
	struct qemu qemu;
	int ret = !r->instant ? 0 : generation_stream(r->generation, r->fd, is_mapped, r, r->stream, err);

	if (!ret)
		ret = qemu_adopt(&qemu, monitor, err);
	/* It would wait for its stream for ever. */
	if (ret) {
		kill(qemu_pid, SIGTERM);
		return ret;
	}
	if (strcmp(qemu.machine, r->generation->snap.machine))
		differ(&d, "it is a machine %s, and the file of a %s: -machine %s", qemu.machine,
		       r->generation->snap.machine, r->generation->snap.machine);
	ret = qemu_list_blocks(&qemu, err);
	if (!ret)
		compare_ram(r, &qemu, &d);
	if (!ret)
		ret = compare_devices(r, &qemu, &d, err);
	if (!ret && d.nr)
		ret = error_set(err, EINVAL, "nothing was loaded");
	if (!ret)
		ret = qemu_load(&qemu, r->uri, r->instant ? 0 : r->channels, err);
	if (ret)
		qemu_quit(&qemu);
	/* QEMU has a descriptor of each, for life: of what it needs no more it is to hold neither memory nor a lock. */
	else if (r->instant)
		(void)!ftruncate(r->stream, 0);
	else
		target_unlock(r->fd, TARGET_CONTENT);
	qemu_detach(&qemu);
	return ret;
}

/* Have the data of @fd from @at to @end in the page cache, and no holes.  readahead() may read a part of it. */
static void read_ahead(int fd, off_t at, off_t end)
{
	static char buf[1 << 20];
	off_t hole;
	ssize_t n;

	while (at < end && (at = lseek(fd, at, SEEK_DATA)) >= 0 && at < end) {
		hole = lseek(fd, at, SEEK_HOLE);
		if (hole < 0 || hole > end)
			hole = end;
		for (; at < hole; at += n) {
			n = pread(fd, buf, hole - at < (off_t)sizeof(buf) ? (size_t)(hole - at) : sizeof(buf), at);
			if (n <= 0)
				return;
		}
	}
}

/* Read what QEMU has mapped, in the background, for as long as we are there.  The process, or -1. */
static pid_t warm(const struct restore *r)
{
	pid_t pid = fork();
	size_t i;
	int null;

	if (pid)
		return pid;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	signal(SIGTERM, SIG_DFL);
	signal(SIGHUP, SIG_DFL);
	/* Whoever reads what QEMU says need not wait for us. */
	null = open("/dev/null", O_RDWR);
	if (null >= 0) {
		dup2(null, STDOUT_FILENO);
		dup2(null, STDERR_FILENO);
	}
	for (i = 0; i < r->generation->record.nr_blocks; i++) {
		const struct record_block *block = &r->generation->record.blocks[i];

		if (is_mapped(block->name, r))
			read_ahead(r->fd, (off_t)block->pages_offset, (off_t)(block->pages_offset + block->length));
	}
	_exit(0);
}

static void pass_on(int sig)
{
	if (qemu_pid > 0)
		kill(qemu_pid, sig);
}

/* What QEMU is to load. */
static int make_uri(struct restore *r, struct error *err)
{
	if (!r->instant) {
		file_incoming(r->uri, sizeof(r->uri), r->file, &r->generation->record);
		return 0;
	}
	r->stream = memfd_create("kvmsnap-stream", 0);
	if (r->stream < 0)
		return error_set(err, errno, "memfd_create: %s", strerror(errno));
	snprintf(r->uri, sizeof(r->uri), "file:/proc/self/fd/%d", r->stream);
	return 0;
}

static int run(struct restore *r, int *status, struct error *err)
{
	struct sigaction action = { .sa_handler = pass_on };
	pid_t warmer = -1;
	char chardev[64];
	int monitor[2], i, ret = open_file(r, err);

	if (!ret && r->instant)
		ret = map_ram(r, err);
	for (i = 0; !ret && !r->instant && r->qemu_args[i]; i++)
		ret = add_arg(r, r->qemu_args[i], err);
	if (!ret)
		ret = make_uri(r, err);
	if (!ret && socketpair(AF_UNIX, SOCK_STREAM, 0, monitor) < 0)
		ret = error_set(err, errno, "socketpair: %s", strerror(errno));
	if (ret)
		return ret;
	snprintf(chardev, sizeof(chardev), "socket,id=kvmsnap-restore,fd=%d", monitor[1]);
	{
		const char *const ours[] = {
			"-chardev", chardev, "-mon", "chardev=kvmsnap-restore,mode=control",
			"-global", "migration.mapped-ram=on", "-incoming", "defer",
		};

		for (i = 0; i < (int)(sizeof(ours) / sizeof(*ours)) && !ret; i++)
			ret = add_arg(r, ours[i], err);
	}
	if (ret)
		return ret;
	fcntl(monitor[0], F_SETFD, FD_CLOEXEC);
	qemu_pid = fork();
	if (qemu_pid == 0) {
		execvp(r->argv[0], r->argv);
		fprintf(stderr, "kvmsnap: %s: %s\n", r->argv[0], strerror(errno));
		_exit(127);
	}
	close(monitor[1]);
	if (qemu_pid < 0) {
		close(monitor[0]);
		return error_set(err, errno, "fork: %s", strerror(errno));
	}
	/* From here on we are QEMU's shadow: it gets our signals, and we end as it does. */
	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGHUP, &action, NULL);
	signal(SIGINT, SIG_IGN);
	signal(SIGPIPE, SIG_IGN);
	ret = load(r, monitor[0], err);
	if (!ret && r->warm)
		warmer = warm(r);
	if (ret)
		complain(err);
	while (waitpid(qemu_pid, status, 0) < 0 && errno == EINTR)
		;
	if (warmer > 0 && kill(warmer, SIGKILL) == 0)
		waitpid(warmer, NULL, 0);
	return ret;
}

/* Quoted for a shell, where it needs to be. */
static void print_arg(const char *arg)
{
	const char *p;

	if (*arg && !arg[strcspn(arg, " \t\n'\"\\$`&|;<>()*?[]#~!{}")]) {
		printf("%s ", arg);
		return;
	}
	putchar('\'');
	for (p = arg; *p; p++)
		fputs(*p == '\'' ? "'\\''" : (char[]){ *p, 0 }, stdout);
	fputs("' ", stdout);
}

static int print_command(struct restore *r, struct error *err)
{
	int i, ret = open_file(r, err);
	char uri[4352];

	if (ret)
		return ret;
	for (i = 0; r->qemu_args[i]; i++)
		print_arg(r->qemu_args[i]);
	printf("-global migration.mapped-ram=on -incoming ");
	file_incoming(uri, sizeof(uri), r->path, &r->generation->record);
	print_arg(uri);
	putchar('\n');
	return 0;
}

int cmd_restore(int argc, char **argv)
{
	static const struct option longs[] = {
		{ "generation", required_argument, NULL, 'g' },
		{ "instant", no_argument, NULL, 'i' },
		{ "warm", no_argument, NULL, 'w' },
		{ "channels", required_argument, NULL, 'c' },
		{ "print", no_argument, NULL, 'p' },
		{ "help", no_argument, NULL, 'h' },
		{ 0 }
	};
	static struct restore r = { .channels = 4, .fd = -1 };
	struct error err = { "" };
	int c, ret, status = 0, own;
	char *end;

	/* What is behind -- is QEMU's. */
	for (own = 1; own < argc && strcmp(argv[own], "--"); own++)
		;
	r.qemu_args = argv + (own < argc ? own + 1 : argc);
	while ((c = getopt_long(own, argv, "h", longs, NULL)) != -1) {
		switch (c) {
		case 'g':
			if (!parse_number(optarg, &r.number))
				return usage_error(restore_usage, "--generation %s: not a number of 1 or more", optarg);
			break;
		case 'i':
			r.instant = true;
			break;
		case 'w':
			r.warm = true;
			break;
		case 'c':
			r.channels = (unsigned int)strtoul(optarg, &end, 10);
			if (*end || end == optarg || *optarg == '-' || r.channels > 255)
				return usage_error(restore_usage, "--channels %s: not a number up to 255", optarg);
			break;
		case 'p':
			r.print = true;
			break;
		case 'h':
			fputs(restore_usage, stdout);
			return 0;
		default:
			fputs(restore_usage, stderr);
			return EXIT_USAGE;
		}
	}
	if (own - optind != 1)
		return usage_error(restore_usage, own == optind ? "FILE is missing" : "one FILE at a time; QEMU and its arguments come behind --");
	if (!r.qemu_args[0])
		return usage_error(restore_usage, "QEMU and its arguments are missing: -- qemu-system-x86_64 ARG...");
	if (r.warm && !r.instant)
		return usage_error(restore_usage, "--warm goes with --instant");
	if (r.print && r.instant)
		return usage_error(restore_usage, "--print tells how to load it without kvmsnap, which --instant needs");
	r.path = argv[optind];

	ret = r.print ? print_command(&r, &err) : run(&r, &status, &err);
	chain_free(&r.chain);
	if (ret) {
		if (!qemu_pid)
			complain(&err);
		return 1;
	}
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
