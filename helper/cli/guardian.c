// SPDX-License-Identifier: GPL-2.0
#include "guardian.h"
#include "target.h"
#include "../qemu/qmp.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* What the helper writes into the pipe. */
#define SAYS_STOPPED	's'
#define SAYS_RESUMED	'r'
#define SAYS_LOGGING	'l'
#define SAYS_QUIET	'q'
#define SAYS_PARTIAL	'p'	/* and a file's provisional path with its final 0; empty for none */
#define SAYS_DONE	'd'

/* Of QEMU's answers the part that may be of interest; events in between may be longer. */
#define MAX_ANSWER	1024

static const struct timespec rest = { .tv_nsec = 100000000 };

/*
 * Have QEMU do something.  It carries commands out in order, so it does not matter what the
 * helper had sent; 0xff ends a command that it had begun.  The answer is waited for without
 * a limit, because QEMU drops what a closed connection had queued.  Returns the answer, until the next
 * command, or NULL when the connection is lost.
 */
static const char *command(int qmp_fd, const char *name)
{
	static char answer[4 * MAX_ANSWER + 1];
	char text[128], *id = NULL;
	size_t len = 0;
	ssize_t n;

	n = snprintf(text, sizeof(text), "\xff\n{\"execute\":\"%s\",\"id\":\"guardian-%s\"}\n", name, name);
	if (send(qmp_fd, text, (size_t)n, MSG_NOSIGNAL) < 0)
		return NULL;
	snprintf(text, sizeof(text), "\"guardian-%s\"", name);
	while (!id || !strchr(id, '\n')) {
		if (len == sizeof(answer) - 1) {
			memmove(answer, answer + len - MAX_ANSWER, MAX_ANSWER);
			len = MAX_ANSWER;
		}
		n = recv(qmp_fd, answer + len, sizeof(answer) - 1 - len, 0);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return NULL;
		len += (size_t)n;
		answer[len] = 0;
		id = memmem(answer, len, text, strlen(text));
	}
	*strchr(id, '\n') = 0;
	while (id > answer && id[-1] != '\n')
		id--;
	return id;
}

/*
 * Another client may have had the VM migrate since it was stopped: when that is over it is resumed, but
 * not if it has gone elsewhere.  False when the connection is lost.
 */
static bool resume(int qmp_fd)
{
	bool refused = false;
	const char *answer;

	for (;;) {
		answer = command(qmp_fd, "query-status");
		if (!answer || strstr(answer, "\"postmigrate\""))
			return answer;
		if (strstr(answer, "\"finish-migrate\"")) {
			nanosleep(&rest, NULL);
			continue;
		}
		answer = command(qmp_fd, "cont");
		/* Refused: the end of a migration may have begun just then. */
		if (!answer || refused || !strstr(answer, "\"error\""))
			return answer;
		refused = true;
	}
}

/* The guest comes first.  False when the connection is lost. */
static bool undo(int qmp_fd, bool stopped, bool logging)
{
	return (!stopped || resume(qmp_fd)) && (!logging || command(qmp_fd, "cancel-vcpu-dirty-limit"));
}

/*
 * The same by a connection of our own, when the helper's was lost.  Another client may keep us
 * waiting; without QEMU, or when another has taken its place, there is nothing to do.
 */
static void undo_anew(const char *path, pid_t peer, bool stopped, bool logging)
{
	struct error ignored;
	struct qmp qmp;
	bool done;
	int ret;

	do {
		ret = qmp_connect(&qmp, path, &ignored);
		if (!ret) {
			done = qmp.peer != peer || undo(qmp.fd, stopped, logging);
			qmp_close(&qmp);
			if (done)
				return;
		}
		nanosleep(&rest, NULL);
	} while (ret != -ECONNREFUSED && ret != -ENOENT);
}

/* What follows SAYS_PARTIAL, written together with it. */
static void read_path(int pipe_fd, char path[GUARDIAN_MAX_PATH + 1])
{
	size_t len = 0;
	ssize_t n;

	do {
		n = read(pipe_fd, path + len, 1);
		if (n <= 0 && errno != EINTR)
			break;
		len += n > 0;
	} while (len <= GUARDIAN_MAX_PATH && (!len || path[len - 1]));
	path[len ? len - 1 : 0] = 0;
}

static void guard(int pipe_fd, int qmp_fd, const char *path, pid_t peer)
{
	static char partial[GUARDIAN_MAX_PATH + 1];
	bool stopped = false, logging = false;
	ssize_t n;
	char c;

	while ((n = read(pipe_fd, &c, 1)) != 0) {
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 || c == SAYS_DONE)
			_exit(0);
		if (c == SAYS_STOPPED || c == SAYS_RESUMED)
			stopped = c == SAYS_STOPPED;
		else if (c == SAYS_PARTIAL)
			read_path(pipe_fd, partial);
		else
			logging = c == SAYS_LOGGING;
	}
	/* The pipe closed without a word: the helper is dead, or at its end. */
	if (!undo(qmp_fd, stopped, logging))
		undo_anew(path, peer, stopped, logging);
	if (partial[0])
		target_remove_torn(partial, true);
	_exit(0);
}

int guardian_start(struct guardian *guardian, const struct qmp *qmp, const char *path, struct error *err)
{
	int fds[2], i, status = 0;
	pid_t pid;

	guardian->fd = -1;
	if (pipe2(fds, O_CLOEXEC) < 0)
		return error_set(err, errno, "pipe: %s", strerror(errno));
	/* Two forks: the guardian is nobody's child to be waited for. */
	pid = fork();
	if (pid < 0) {
		close(fds[0]);
		close(fds[1]);
		return error_set(err, errno, "fork: %s", strerror(errno));
	}
	if (pid == 0) {
		pid = fork();
		if (pid)
			_exit(pid < 0);
		/* Out of the reach of signals to the helper's process group. */
		setsid();
		for (i = 1; i < 32; i++)
			if (i != SIGKILL && i != SIGSTOP)
				signal(i, SIG_IGN);
		prctl(PR_SET_NAME, "kvmsnap-guard");
		/* Above all our end of the pipe, and the session, which is to end with the helper. */
		dup2(fds[0], 0);
		dup2(qmp->fd, 1);
		close_range(2, ~0U, 0);
		guard(0, 1, path, qmp->peer);
	}
	waitpid(pid, &status, 0);
	close(fds[0]);
	guardian->fd = fds[1];
	return status ? error_set(err, EAGAIN, "starting the guardian process: %s", strerror(EAGAIN)) : 0;
}

/* In one piece: less than a pipe takes at once. */
static void say_text(struct guardian *guardian, const char *text, size_t len)
{
	/* A dead guardian can't be helped; the save goes on without. */
	while (guardian->fd >= 0 && write(guardian->fd, text, len) < 0 && errno == EINTR)
		;
}

static void say(struct guardian *guardian, char c)
{
	say_text(guardian, &c, 1);
}

void guardian_stopped(struct guardian *guardian, bool stopped)
{
	say(guardian, stopped ? SAYS_STOPPED : SAYS_RESUMED);
}

void guardian_logging(struct guardian *guardian, bool logging)
{
	say(guardian, logging ? SAYS_LOGGING : SAYS_QUIET);
}

int guardian_partial(struct guardian *guardian, const char *path, struct error *err)
{
	char text[GUARDIAN_MAX_PATH + 2] = { SAYS_PARTIAL }, cwd[GUARDIAN_MAX_PATH] = "";
	int len = 0;

	/* It stays where it was started. */
	if (path && path[0] != '/' && !getcwd(cwd, sizeof(cwd)))
		return error_set(err, errno, "the current folder: %s", strerror(errno));
	if (path)
		len = snprintf(text + 1, sizeof(text) - 1, "%s%s%s" TARGET_PARTIAL, cwd, cwd[0] ? "/" : "", path);
	if (len > GUARDIAN_MAX_PATH)
		return error_set(err, ENAMETOOLONG, "%s: the path is longer than %d bytes", path, GUARDIAN_MAX_PATH);
	say_text(guardian, text, strlen(text) + 1);
	return 0;
}

void guardian_end(struct guardian *guardian)
{
	say(guardian, SAYS_DONE);
	guardian_leave(guardian);
}

void guardian_leave(struct guardian *guardian)
{
	if (guardian->fd >= 0)
		close(guardian->fd);
	guardian->fd = -1;
}
