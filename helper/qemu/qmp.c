// SPDX-License-Identifier: GPL-2.0
#include "qmp.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define GREETING_MS	5000
#define MAX_LINE	(16 << 20)

static long long now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000LL + ts.tv_nsec / 1000000;
}

/* The next message, whatever it is; NULL with @err set. */
static json_t *receive(struct qmp *qmp, long long deadline, struct error *err)
{
	struct pollfd pfd = { .fd = qmp->fd, .events = POLLIN };
	json_error_t jerr;
	json_t *msg;
	char *end, *bigger;
	ssize_t n;
	int ready;

	for (;;) {
		end = qmp->len ? memchr(qmp->buf, '\n', qmp->len) : NULL;
		if (end) {
			size_t line = (size_t)(end - qmp->buf) + 1;

			msg = json_loadb(qmp->buf, line, 0, &jerr);
			memmove(qmp->buf, end + 1, qmp->len - line);
			qmp->len -= line;
			if (!msg)
				error_set(err, EPROTO, "QMP: not JSON: %s; is this a QMP socket (-qmp), not HMP?",
					  jerr.text);
			return msg;
		}
		if (qmp->len == qmp->size) {
			if (qmp->size >= MAX_LINE) {
				error_set(err, EPROTO, "QMP: a line without end; is this a QMP socket?");
				return NULL;
			}
			bigger = realloc(qmp->buf, qmp->size ? qmp->size * 2 : 65536);
			if (!bigger) {
				error_set(err, ENOMEM, "out of memory");
				return NULL;
			}
			qmp->buf = bigger;
			qmp->size = qmp->size ? qmp->size * 2 : 65536;
		}

		ready = (int)(deadline - now_ms());
		ready = poll(&pfd, 1, ready > 0 ? ready : 0);
		if (ready < 0 && errno == EINTR)
			continue;
		if (ready == 0) {
			error_set(err, ETIMEDOUT,
				  "QMP: no answer from QEMU; another client may be connected, close it");
			return NULL;
		}
		n = read(qmp->fd, qmp->buf + qmp->len, qmp->size - qmp->len);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0) {
			qmp->lost = true;
			error_set(err, n < 0 ? errno : EPIPE, "QMP: connection lost: %s",
				  n < 0 ? strerror(errno) : "closed by QEMU");
			return NULL;
		}
		qmp->len += (size_t)n;
	}
}

static int send_line(struct qmp *qmp, const char *text, size_t len, int fd)
{
	union {
		char buf[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control;
	struct iovec iov = { .iov_base = (void *)text, .iov_len = len };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };

	if (fd >= 0) {
		struct cmsghdr *cmsg;

		memset(&control, 0, sizeof(control));
		msg.msg_control = control.buf;
		msg.msg_controllen = sizeof(control.buf);
		cmsg = CMSG_FIRSTHDR(&msg);
		cmsg->cmsg_level = SOL_SOCKET;
		cmsg->cmsg_type = SCM_RIGHTS;
		cmsg->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(cmsg), &fd, sizeof(int));
	}
	while (iov.iov_len) {
		ssize_t n = sendmsg(qmp->fd, &msg, MSG_NOSIGNAL);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		iov.iov_base = (char *)iov.iov_base + n;
		iov.iov_len -= (size_t)n;
		msg.msg_control = NULL;
		msg.msg_controllen = 0;
	}
	return 0;
}

static void note_event(struct qmp *qmp, const char *event)
{
	if (!event)
		return;
	qmp->stopped |= !strcmp(event, "STOP");
	qmp->changed |= !strcmp(event, "RESUME") || !strcmp(event, "RESET");
}

json_t *qmp_command(struct qmp *qmp, const char *command, json_t *args, int fd, int timeout_ms,
		    struct error *err)
{
	long long deadline = now_ms() + timeout_ms;
	json_t *request, *msg, *result = NULL;
	char *text;
	int ret;

	if (qmp->lost) {
		json_decref(args);
		error_set(err, EPIPE, "QMP: %s: the connection is lost", command);
		return NULL;
	}
	/* The id tells its answer from a late one to a command that had timed out. */
	qmp->id++;
	request = json_pack("{s:s, s:o*, s:I}", "execute", command, "arguments", args,
			    "id", (json_int_t)qmp->id);
	text = request ? json_dumps(request, JSON_COMPACT) : NULL;
	json_decref(request);
	if (!text) {
		error_set(err, ENOMEM, "out of memory");
		return NULL;
	}
	ret = send_line(qmp, text, strlen(text), fd);
	free(text);
	if (ret) {
		qmp->lost = true;
		error_set(err, -ret, "QMP: sending %s: %s", command, strerror(-ret));
		return NULL;
	}

	while (!result) {
		msg = receive(qmp, deadline, err);
		if (!msg)
			return NULL;
		note_event(qmp, json_string_value(json_object_get(msg, "event")));
		if (json_integer_value(json_object_get(msg, "id")) != qmp->id) {
			json_decref(msg);
			/* Events don't hold up the end; an answer that is there counts, however late. */
			if (now_ms() <= deadline)
				continue;
			error_set(err, ETIMEDOUT, "QMP: no answer from QEMU to %s", command);
			return NULL;
		}
		result = json_incref(json_object_get(msg, "return"));
		if (!result) {
			const char *desc = json_string_value(
				json_object_get(json_object_get(msg, "error"), "desc"));

			error_set(err, EIO, "QMP: QEMU refuses %s: %s", command, desc ? desc : "?");
			json_decref(msg);
			return NULL;
		}
		json_decref(msg);
	}
	return result;
}

void qmp_drain(struct qmp *qmp)
{
	struct pollfd pfd = { .fd = qmp->fd, .events = POLLIN };
	struct error ignored;
	json_t *msg;

	while (poll(&pfd, 1, 0) > 0) {
		msg = receive(qmp, now_ms(), &ignored);
		if (!msg)
			return;		/* part of one, or the end: the next command will tell */
		json_decref(msg);
	}
}

char *qmp_hmp(struct qmp *qmp, const char *line, struct error *err)
{
	json_t *result = qmp_command(qmp, "human-monitor-command",
				     json_pack("{s:s}", "command-line", line), -1, 30000, err);
	char *text = NULL;

	if (result) {
		text = strdup(json_string_value(result) ? json_string_value(result) : "");
		if (!text)
			error_set(err, ENOMEM, "out of memory");
	}
	json_decref(result);
	return text;
}

int qmp_greet(struct qmp *qmp, int fd, int timeout_ms, struct error *err)
{
	json_t *msg;
	bool met = false;

	*qmp = (struct qmp){ .fd = fd };
	msg = receive(qmp, now_ms() + timeout_ms, err);
	if (msg && !json_object_get(msg, "QMP"))
		error_set(err, EPROTO, "no QMP greeting; is this QEMU's -qmp socket?");
	else if (msg)
		met = true;
	json_decref(msg);
	if (met) {
		msg = qmp_command(qmp, "qmp_capabilities", NULL, -1, timeout_ms, err);
		met = msg;
		json_decref(msg);
	}
	if (!met)
		qmp_close(qmp);
	return met ? 0 : -EPROTO;
}

int qmp_connect(struct qmp *qmp, const char *path, struct error *err)
{
	const struct timeval limit = { .tv_sec = GREETING_MS / 1000 }, none = { 0 };
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	struct ucred cred = { 0 };
	socklen_t len = sizeof(cred);
	struct error inner;
	int fd, ret;

	*qmp = (struct qmp){ .fd = -1 };
	if (strlen(path) >= sizeof(addr.sun_path))
		return error_set(err, ENAMETOOLONG, "QMP socket %s: the path is too long", path);
	strcpy(addr.sun_path, path);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return error_set(err, errno, "socket: %s", strerror(errno));
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
	if (connect(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0) {
		/* QEMU takes one at a time, and the kernel holds no more than two others for it. */
		if (errno == EAGAIN)
			ret = error_set(err, EBUSY, "QMP socket %s: another client is connected, and others wait; close them",
					path);
		else
			ret = error_set(err, errno,
					"QMP socket %s: %s; start QEMU with -qmp unix:%s,server=on,wait=off",
					path, strerror(errno), path);
		close(fd);
		return ret;
	}
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &none, sizeof(none));
	getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len);
	ret = qmp_greet(qmp, fd, GREETING_MS, &inner);
	qmp->peer = cred.pid;
	return ret ? error_set(err, -ret, "QMP socket %s: %s", path, inner.text) : 0;
}

void qmp_give_up(struct qmp *qmp)
{
	qmp->lost = true;
}

void qmp_close(struct qmp *qmp)
{
	if (qmp->fd >= 0)
		close(qmp->fd);
	free(qmp->buf);
	*qmp = (struct qmp){ .fd = -1 };
}
