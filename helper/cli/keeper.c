// SPDX-License-Identifier: GPL-2.0
#include "keeper.h"
#include "cli.h"
#include "options.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define FOLDER	"/run/kvmsnap"
#define BACKLOG	4
#define FIRST_MS	10000	/* for the client that had us started to say what it wants */

/* What a client sends, with its standard output and standard error.  It may be of another version than the keeper. */
struct request {
	uint64_t version;		/* REQUEST_VERSION */
	struct save_options opt;	/* whose pointers mean nothing */
	bool last;
	char qmp[4096], output[4096], device[256];
};

#define REQUEST_VERSION	(0x6b767300ULL << 32 | sizeof(struct request))

struct reply {
	pid_t pid;			/* of the keeper */
	int status;			/* to exit with; -1 at first: it has begun */
};

struct keeper {
	struct save_options opt;	/* of the request that is being served */
	struct saver saver;
	bool open;			/* @saver is */
	char qmp[4096];			/* what @saver is connected to */
	char output[4096], device[256];
};

/* The keeper of a QMP socket: where it listens. */
static int keeper_address(const char *qmp, struct sockaddr_un *addr, struct error *err)
{
	struct stat st;

	if (stat(qmp, &st) < 0)
		return error_set(err, errno, "QMP socket %s: %s; start QEMU with -qmp unix:%s,server=on,wait=off",
				 qmp, strerror(errno), qmp);
	*addr = (struct sockaddr_un){ .sun_family = AF_UNIX };
	snprintf(addr->sun_path, sizeof(addr->sun_path), FOLDER "/%lx-%lx",
		 (unsigned long)st.st_dev, (unsigned long)st.st_ino);
	if ((mkdir(FOLDER, 0700) < 0 && errno != EEXIST) || lstat(FOLDER, &st) < 0)
		return error_set(err, errno, FOLDER ": %s; run as root", strerror(errno));
	if (!S_ISDIR(st.st_mode) || st.st_uid != geteuid() || st.st_mode & 077)
		return error_set(err, EPERM, FOLDER " is not a folder of this user's alone");
	return 0;
}

/* Take what the request says; its descriptors become our outputs. */
static int receive(int client, struct request *request)
{
	union {
		char buf[CMSG_SPACE(2 * sizeof(int))];
		struct cmsghdr align;
	} control;
	struct iovec iov = { .iov_base = request, .iov_len = sizeof(*request) };
	struct msghdr msg = {
		.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.buf,
		.msg_controllen = sizeof(control.buf),
	};
	struct cmsghdr *cmsg;
	int fds[2], ret = 0;

	if (recv(client, &request->version, sizeof(request->version), MSG_PEEK | MSG_WAITALL) !=
	    sizeof(request->version) || request->version != REQUEST_VERSION)
		return -EPROTO;
	if (recvmsg(client, &msg, MSG_WAITALL | MSG_CMSG_CLOEXEC) != sizeof(*request))
		return -EPROTO;
	cmsg = CMSG_FIRSTHDR(&msg);
	if (!cmsg || cmsg->cmsg_type != SCM_RIGHTS || cmsg->cmsg_len != CMSG_LEN(sizeof(fds)))
		return -EPROTO;
	memcpy(fds, CMSG_DATA(cmsg), sizeof(fds));
	if (dup2(fds[0], STDOUT_FILENO) < 0 || dup2(fds[1], STDERR_FILENO) < 0)
		ret = -errno;
	close(fds[0]);
	close(fds[1]);
	request->qmp[sizeof(request->qmp) - 1] = 0;
	request->output[sizeof(request->output) - 1] = 0;
	request->device[sizeof(request->device) - 1] = 0;
	return ret;
}

static int send_request(int server, const struct request *request)
{
	union {
		char buf[CMSG_SPACE(2 * sizeof(int))];
		struct cmsghdr align;
	} control = { { 0 } };
	struct iovec iov = { .iov_base = (void *)request, .iov_len = sizeof(*request) };
	struct msghdr msg = {
		.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.buf,
		.msg_controllen = sizeof(control.buf),
	};
	struct cmsghdr *cmsg = CMSG_FIRSTHDR(&msg);
	int fds[2] = { STDOUT_FILENO, STDERR_FILENO };

	cmsg->cmsg_level = SOL_SOCKET;
	cmsg->cmsg_type = SCM_RIGHTS;
	cmsg->cmsg_len = CMSG_LEN(sizeof(fds));
	memcpy(CMSG_DATA(cmsg), fds, sizeof(fds));
	return sendmsg(server, &msg, MSG_NOSIGNAL) == sizeof(*request) ? 0 : -EPIPE;
}

/* Serve a client.  True to go on. */
static bool serve(struct keeper *keeper, int client)
{
	const volatile sig_atomic_t *interrupted = catch_signals();
	struct error err = { "" };
	struct request request;
	struct reply reply = { getpid(), -1 };
	int ret = receive(client, &request), sig = take_signal();

	if (sig && sig != SIGINT)
		return false;
	if (ret || write(client, &reply, sizeof(reply)) < 0)
		return keeper->open;
	if (!keeper->open)
		memcpy(keeper->qmp, request.qmp, sizeof(keeper->qmp));
	keeper->opt = request.opt;
	keeper->opt.qmp = keeper->qmp;
	memcpy(keeper->output, request.output, sizeof(keeper->output));
	memcpy(keeper->device, request.device, sizeof(keeper->device));
	keeper->opt.device = keeper->device[0] ? keeper->device : NULL;
	if (!keeper->open) {
		ret = saver_open(&keeper->saver, &keeper->opt, interrupted, &err);
		keeper->open = !ret;
	}
	if (!ret)
		ret = saver_round(&keeper->saver, keeper->output, -1, &err);
	if (!ret)
		saver_report(&keeper->saver);
	else
		complain(&err);
	/* A SIGINT is the client's, and may have come too late for its save. */
	sig = take_signal();
	reply.status = !ret ? 0 : sig ? EXIT_INTERRUPTED : 1;
	fflush(stdout);
	/* The client may have gone; the save counts all the same. */
	send(client, &reply, sizeof(reply), MSG_NOSIGNAL);
	if (!keeper->open || (!ret && request.last) || (sig && sig != SIGINT))
		return false;
	saver_look_ahead(&keeper->saver);
	return true;
}

/* Wait for clients: for one that has us follow a QEMU, and then for as long as there is that QEMU. */
static void keep(int listener)
{
	static struct keeper keeper;
	const volatile sig_atomic_t *interrupted = catch_signals();
	bool on = true;

	/* A SIGINT is a client's, for its save, and came too late for that. */
	while (on && (!*interrupted || take_signal() == SIGINT)) {
		struct pollfd fds[2] = {
			{ .fd = listener, .events = POLLIN },
			{ .fd = keeper.open ? keeper.saver.qemu.qmp.fd : -1, .events = POLLIN },
		};
		int ready = poll_signals(fds, 2, keeper.open ? -1 : FIRST_MS);

		if (ready < 0)
			continue;
		on = ready > 0;
		if (fds[1].revents) {
			qemu_drain(&keeper.saver.qemu);
			on = !keeper.saver.qemu.qmp.lost;
		}
		if (on && fds[0].revents) {
			int client = accept4(listener, NULL, NULL, SOCK_CLOEXEC);

			if (client >= 0)
				on = serve(&keeper, client);
			close(client);
			/* Nothing of the client's is kept. */
			dup2(STDIN_FILENO, STDOUT_FILENO);
			dup2(STDIN_FILENO, STDERR_FILENO);
			/* The connection may be the guardian's now. */
			if (keeper.open && keeper.saver.qemu.qmp.lost)
				on = false;
		}
	}
	if (keeper.open)
		saver_close(&keeper.saver);
}

/* Start the keeper: a process that nobody waits for.  The listening socket is there afterwards. */
static int start(const struct sockaddr_un *addr, int lock, struct error *err)
{
	int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), null, status = 0;
	pid_t pid;

	if (listener < 0)
		return error_set(err, errno, "socket: %s", strerror(errno));
	/* One that nobody listens at is of a keeper that was killed. */
	unlink(addr->sun_path);
	if (bind(listener, (const struct sockaddr *)addr, sizeof(*addr)) < 0 ||
	    listen(listener, BACKLOG) < 0) {
		close(listener);
		return error_set(err, errno, "%s: %s", addr->sun_path, strerror(errno));
	}
	fflush(stdout);
	pid = fork();
	if (pid == 0) {
		pid = fork();
		if (pid)
			_exit(pid < 0);
		close(lock);
		setsid();
		if (chdir("/") < 0)
			_exit(1);
		null = open("/dev/null", O_RDWR);
		if (null < 0 || dup2(null, STDIN_FILENO) < 0 || dup2(null, STDOUT_FILENO) < 0 ||
		    dup2(null, STDERR_FILENO) < 0)
			_exit(1);
		if (null > STDERR_FILENO)
			close(null);
		/* Nothing of the caller's is to stay open for as long as the VM lives. */
		if (listener != 3)
			dup3(listener, 3, O_CLOEXEC);
		close_range(4, ~0U, 0);
		listener = 3;
		prctl(PR_SET_NAME, "kvmsnap-keep");
		keep(listener);
		unlink(addr->sun_path);
		_exit(0);
	}
	close(listener);
	if (pid < 0 || waitpid(pid, &status, 0) < 0 || status)
		return error_set(err, EAGAIN, "starting the keeper process: %s", strerror(EAGAIN));
	return 0;
}

static int connect_to(const struct sockaddr_un *addr)
{
	int server = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (server >= 0 && connect(server, (const struct sockaddr *)addr, sizeof(*addr)) < 0) {
		int ret = -errno;

		close(server);
		return ret;
	}
	return server < 0 ? -errno : server;
}

/* A connection to the keeper, which is started if there is none: one, whoever else is about to. */
static int reach(const struct sockaddr_un *addr, struct error *err)
{
	int lock = open(FOLDER, O_RDONLY | O_DIRECTORY | O_CLOEXEC), server, ret = 0;

	if (lock < 0 || flock(lock, LOCK_EX) < 0) {
		ret = error_set(err, errno, FOLDER ": %s", strerror(errno));
		close(lock);
		return ret;
	}
	server = connect_to(addr);
	if (server == -ECONNREFUSED || server == -ENOENT) {
		ret = start(addr, lock, err);
		server = ret ? ret : connect_to(addr);
	}
	close(lock);
	if (server < 0 && !ret)
		error_set(err, -server, "%s: %s", addr->sun_path, strerror(-server));
	return server;
}

int keeper_save(const struct save_options *opt, const char *output, bool last)
{
	static struct request request;
	struct sockaddr_un addr;
	struct error err = { "" };
	struct reply reply = { 0, -1 };
	int server, ret = keeper_address(opt->qmp, &addr, &err);
	const volatile sig_atomic_t *interrupted;
	char *qmp = realpath(opt->qmp, NULL), cwd[4096] = "";
	ssize_t n;

	/* The keeper is elsewhere. */
	if (!ret && output[0] != '/' && !getcwd(cwd, sizeof(cwd)))
		ret = error_set(&err, errno, "%s: the working directory: %s", output, strerror(errno));
	if (!ret && (snprintf(request.output, sizeof(request.output), "%s%s%s", cwd, cwd[0] ? "/" : "", output) >=
			     (int)sizeof(request.output) ||
		     !qmp || strlen(qmp) >= sizeof(request.qmp) ||
		     (opt->device && strlen(opt->device) >= sizeof(request.device))))
		ret = error_set(&err, ENAMETOOLONG, "%s: %s", output, strerror(ENAMETOOLONG));
	server = ret ? ret : reach(&addr, &err);
	if (server < 0) {
		complain(&err);
		free(qmp);
		return 1;
	}
	strcpy(request.qmp, qmp);
	free(qmp);
	request.version = REQUEST_VERSION;
	request.opt = *opt;
	request.last = last;
	strcpy(request.device, opt->device ? opt->device : "");
	interrupted = catch_signals();
	ret = send_request(server, &request);
	while (!ret && reply.status < 0) {
		/* Its save is to be interrupted, not its life: it takes the signal for ours. */
		if (reply.pid && *interrupted) {
			take_signal();
			kill(reply.pid, SIGINT);
		}
		/* It serves another: it will find us gone. */
		if (*interrupted) {
			close(server);
			return EXIT_INTERRUPTED;
		}
		if (poll_signals(&(struct pollfd){ .fd = server, .events = POLLIN }, 1, -1) < 0)
			continue;
		n = read(server, &reply, sizeof(reply));
		if (n != sizeof(reply) && !(n < 0 && errno == EINTR))
			ret = -EPIPE;
	}
	close(server);
	if (ret) {
		error_set(&err, EPIPE, "the process that follows the VM has ended, or is of another version of kvmsnap; save again, if need be after pkill kvmsnap-keep");
		complain(&err);
	}
	return reply.status < 0 ? 1 : reply.status;
}
