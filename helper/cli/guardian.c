// SPDX-License-Identifier: GPL-2.0
#include "guardian.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

/* What the helper writes into the pipe. */
#define SAYS_STOPPED	's'
#define SAYS_RESUMED	'r'
#define SAYS_LOGGING	'l'
#define SAYS_QUIET	'q'
#define SAYS_DONE	'd'

/*
 * Have QEMU do something.  It carries commands out in order, so it does not matter what the
 * helper had sent; 0xff ends a command that it had begun.  The answer is waited for without
 * a limit, because QEMU drops what a closed connection had queued.
 */
static void command(int qmp_fd, const char *name)
{
	char text[128], answer[4096 + 1];
	size_t len = 0;
	ssize_t n;

	n = snprintf(text, sizeof(text), "\xff\n{\"execute\":\"%s\",\"id\":\"guardian-%s\"}\n", name, name);
	if (send(qmp_fd, text, (size_t)n, MSG_NOSIGNAL) < 0)
		return;
	snprintf(text, sizeof(text), "\"guardian-%s\"", name);
	for (;;) {
		n = recv(qmp_fd, answer + len, sizeof(answer) - 1 - len, 0);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return;
		len += (size_t)n;
		answer[len] = 0;
		if (memmem(answer, len, text, strlen(text)))
			return;
		/* Keep what the word may have begun in. */
		if (len > 128) {
			memmove(answer, answer + len - 64, 64);
			len = 64;
		}
	}
}

static void guard(int pipe_fd, int qmp_fd, const char *partial)
{
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
		else
			logging = c == SAYS_LOGGING;
	}
	/* The pipe closed without a word: the helper is dead.  The guest comes first. */
	if (stopped)
		command(qmp_fd, "cont");
	if (logging)
		command(qmp_fd, "cancel-vcpu-dirty-limit");
	if (partial)
		unlink(partial);
	_exit(0);
}

int guardian_start(struct guardian *guardian, int qmp_fd, const char *partial, struct error *err)
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
		dup2(qmp_fd, 1);
		close_range(2, ~0U, 0);
		guard(0, 1, partial);
	}
	waitpid(pid, &status, 0);
	close(fds[0]);
	guardian->fd = fds[1];
	return status ? error_set(err, EAGAIN, "starting the guardian process: %s", strerror(EAGAIN)) : 0;
}

static void say(struct guardian *guardian, char c)
{
	/* A dead guardian can't be helped; the save goes on without. */
	while (guardian->fd >= 0 && write(guardian->fd, &c, 1) < 0 && errno == EINTR)
		;
}

void guardian_stopped(struct guardian *guardian, bool stopped)
{
	say(guardian, stopped ? SAYS_STOPPED : SAYS_RESUMED);
}

void guardian_logging(struct guardian *guardian, bool logging)
{
	say(guardian, logging ? SAYS_LOGGING : SAYS_QUIET);
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
