// SPDX-License-Identifier: GPL-2.0
#include "guardian.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

/* What the helper writes into the pipe. */
#define SAYS_STOPPED	's'
#define SAYS_RESUMED	'r'
#define SAYS_DONE	'd'

static void guard(int pipe_fd, int qmp_fd, const char *partial)
{
	static const char cont[] = "{\"execute\":\"cont\"}\n";
	char state = SAYS_RESUMED, c, answer[4096];
	ssize_t n;

	while ((n = read(pipe_fd, &c, 1)) != 0) {
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 || c == SAYS_DONE)
			_exit(0);
		state = c;
	}
	/* The pipe closed without a word: the helper is dead. */
	if (partial)
		unlink(partial);
	if (state == SAYS_STOPPED) {
		/*
		 * QEMU carries commands out in order, so it does not matter what the helper
		 * had sent; a line that it had begun is ended first.  We stay until an answer
		 * comes, because QEMU drops what a closed connection had queued.
		 */
		struct timeval limit = { .tv_sec = 5 };
		int i;

		setsockopt(qmp_fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
		if (send(qmp_fd, "\n", 1, MSG_NOSIGNAL) == 1 &&
		    send(qmp_fd, cont, sizeof(cont) - 1, MSG_NOSIGNAL) > 0)
			for (i = 0; i < 64; i++) {
				n = recv(qmp_fd, answer, sizeof(answer) - 1, 0);
				if (n <= 0)
					break;
				answer[n] = 0;
				if (strstr(answer, "\"RESUME\""))
					break;
			}
	}
	_exit(0);
}

int guardian_start(struct guardian *guardian, int qmp_fd, const char *partial, struct error *err)
{
	int fds[2], i;
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
		if (fork() != 0)
			_exit(0);
		/* Out of the reach of a terminal's or a service manager's signals to the helper. */
		setsid();
		for (i = 1; i < 32; i++)
			if (i != SIGKILL && i != SIGSTOP)
				signal(i, SIG_IGN);
		prctl(PR_SET_NAME, "kvmsnap-guard");
		/* Above all our end of the pipe, and the session, which is to end with the helper. */
		for (i = 0; i < 1024; i++)
			if (i != fds[0] && i != qmp_fd)
				close(i);
		guard(fds[0], qmp_fd, partial);
	}
	waitpid(pid, NULL, 0);
	close(fds[0]);
	guardian->fd = fds[1];
	return 0;
}

static void say(struct guardian *guardian, char c)
{
	/* A dead guardian can't be helped; the save goes on without. */
	while (guardian->fd >= 0 && write(guardian->fd, &c, 1) < 0 && errno == EINTR)
		;
}

void guardian_stopped(struct guardian *guardian, int stopped)
{
	say(guardian, stopped ? SAYS_STOPPED : SAYS_RESUMED);
}

void guardian_end(struct guardian *guardian)
{
	say(guardian, SAYS_DONE);
	if (guardian->fd >= 0)
		close(guardian->fd);
	guardian->fd = -1;
}
