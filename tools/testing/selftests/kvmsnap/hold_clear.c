// SPDX-License-Identifier: GPL-2.0
/*
 * Preloaded into kvmsnap: the pass behind the first clearing of another process's soft-dirty bits takes KVMSNAP_HOLD_PASS
 * seconds more, so that to clear them again pays.  Before that is done, the file that KVMSNAP_HOLD names is made, and
 * nothing goes on until it is gone.
 */
#include <fcntl.h>
#include <linux/kvmsnap.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

static int clearings, held;

/* Of the process whose bits are cleared by writing to @fd; -1 for any other file. */
static int cleared(int fd)
{
	char name[64], path[64] = "";
	int pid, end = 0;

	snprintf(name, sizeof(name), "/proc/self/fd/%d", fd);
	if (readlink(name, path, sizeof(path) - 1) < 0)
		return -1;
	return sscanf(path, "/proc/%d/clear_refs%n", &pid, &end) == 1 && end && !path[end] ? pid : -1;
}

ssize_t write(int fd, const void *bytes, size_t length)
{
	const char *hold = getenv("KVMSNAP_HOLD");
	int pid = hold ? cleared(fd) : -1;

	if (pid != -1 && pid != getpid() && ++clearings == 2) {
		close(open(hold, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
		while (access(hold, F_OK) == 0)
			usleep(1000);
	}
	return syscall(SYS_write, fd, bytes, length);
}

int ioctl(int fd, unsigned long request, ...)
{
	va_list args;
	void *arg;

	va_start(args, request);
	arg = va_arg(args, void *);
	va_end(args);
	if (request == KVMSNAP_QUEUE && clearings == 1 && !held++)
		sleep((unsigned int)atoi(getenv("KVMSNAP_HOLD_PASS")));
	return (int)syscall(SYS_ioctl, fd, request, arg);
}
