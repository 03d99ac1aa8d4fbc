// SPDX-License-Identifier: GPL-2.0
#include "qemu.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define COMMAND_MS	30000
#define START_MS	3600000
#define NO_LIMIT	1000000		/* of the dirty rate, MiB/s */

/* "QEVM" and a version, before the sections (migration/savevm.c, qemu_savevm_state_header()). */
#define STREAM_HEADER	8

static int out_of_memory(struct error *err)
{
	return error_set(err, ENOMEM, "out of memory");
}

static int simple(struct qemu *qemu, const char *command, struct error *err)
{
	json_t *result = qmp_command(&qemu->qmp, command, NULL, -1, COMMAND_MS, err);

	json_decref(result);
	return result ? 0 : -EIO;
}

static int read_status(struct qemu *qemu, struct error *err)
{
	json_t *result = qmp_command(&qemu->qmp, "query-status", NULL, -1, COMMAND_MS, err);
	const char *status;

	if (!result)
		return -EIO;
	status = json_string_value(json_object_get(result, "status"));
	snprintf(qemu->status, sizeof(qemu->status), "%s", status ? status : "?");
	json_decref(result);
	return 0;
}

static int check_status(const struct qemu *qemu, struct error *err)
{
	/* States in which RAM and devices are whole (qapi/run-state.json). */
	static const char *const good[] = {
		"running", "paused", "prelaunch", "io-error", "watchdog", "suspended", "debug",
		"guest-panicked", "shutdown",
	};
	size_t i;

	for (i = 0; i < sizeof(good) / sizeof(*good); i++)
		if (!strcmp(qemu->status, good[i]))
			return 0;
	return error_set(err, EBUSY, "QEMU is in state '%s': the VM can't be saved now; wait until it is running or paused",
			 qemu->status);
}

static int check_migration(struct qemu *qemu, struct error *err)
{
	static const char *const over[] = { "none", "completed", "failed", "cancelled" };
	json_t *result = qmp_command(&qemu->qmp, "query-migrate", NULL, -1, COMMAND_MS, err);
	json_t *reasons;
	const char *status;
	size_t i;
	int ret = 0;

	if (!result)
		return -EIO;
	reasons = json_object_get(result, "blocked-reasons");
	status = json_string_value(json_object_get(result, "status"));
	if (json_array_size(reasons)) {
		ret = error_set(err, EOPNOTSUPP, "QEMU says that this VM can't be saved: %s",
				json_string_value(json_array_get(reasons, 0)) ?: "?");
	} else if (status) {
		ret = -EBUSY;
		for (i = 0; i < sizeof(over) / sizeof(*over); i++)
			if (!strcmp(status, over[i]))
				ret = 0;
		if (ret)
			error_set(err, EBUSY, "a migration is running (%s); wait for its end or cancel it", status);
	}
	json_decref(result);
	return ret;
}

/* Devices that xen-save-devices-state leaves out, or whose memory it would restore too late. */
static int check_devices(struct qemu *qemu, struct error *err)
{
	static const char *const bad[] = { "vfio-", "virtio-mem" };
	char *text = qmp_hmp(&qemu->qmp, "info qtree", err);
	char needle[32];
	int ret = 0;
	size_t i;

	if (!text)
		return -EIO;
	for (i = 0; i < sizeof(bad) / sizeof(*bad) && !ret; i++) {
		snprintf(needle, sizeof(needle), "dev: %s", bad[i]);
		if (strstr(text, needle))
			ret = error_set(err, EOPNOTSUPP, "the VM has a %s device, whose state can't be saved; unplug it first",
					bad[i]);
	}
	free(text);
	return ret;
}

static int read_machine(struct qemu *qemu, struct error *err)
{
	json_t *result = qmp_command(&qemu->qmp, "qom-get",
				     json_pack("{s:s, s:s}", "path", "/machine", "property", "type"),
				     -1, COMMAND_MS, err);
	size_t len;

	if (!result)
		return -EIO;
	snprintf(qemu->machine, sizeof(qemu->machine), "%s",
		 json_string_value(result) ? json_string_value(result) : "");
	json_decref(result);
	len = strlen(qemu->machine);
	if (len > 8 && !strcmp(qemu->machine + len - 8, "-machine"))
		qemu->machine[len - 8] = 0;
	if (!qemu->machine[0])
		return error_set(err, EPROTO, "QEMU doesn't tell its machine type");
	return 0;
}

int qemu_check_saveable(struct qemu *qemu, struct error *err)
{
	int ret = check_migration(qemu, err);

	return ret ? ret : check_devices(qemu, err);
}

int qemu_look_again(struct qemu *qemu, struct error *err)
{
	int ret = read_status(qemu, err);

	/* What we have done ourselves before is no change. */
	qemu->qmp.changed = false;
	if (!ret)
		ret = check_status(qemu, err);
	return ret ? ret : qemu_check_saveable(qemu, err);
}

void qemu_drain(struct qemu *qemu)
{
	qmp_drain(&qemu->qmp);
}

int qemu_attach(struct qemu *qemu, const char *socket, pid_t pid, struct error *err)
{
	int ret;

	*qemu = (struct qemu){ .qmp.fd = -1 };
	ret = qmp_connect(&qemu->qmp, socket, err);
	if (ret)
		return ret;
	qemu->pid = pid ? pid : qemu->qmp.peer;
	ret = qemu_look_again(qemu, err);
	if (!ret)
		ret = read_machine(qemu, err);
	if (ret)
		qemu_detach(qemu);
	return ret;
}

int qemu_adopt(struct qemu *qemu, int fd, struct error *err)
{
	int ret;

	*qemu = (struct qemu){ .qmp.fd = -1 };
	/* It may have all of its memory to allocate first; if it ends, so does the socket. */
	ret = qmp_greet(&qemu->qmp, fd, START_MS, err);
	return ret ? ret : read_machine(qemu, err);
}

static int set_multifd(struct qemu *qemu, unsigned int channels, struct error *err)
{
	json_t *result = qmp_command(&qemu->qmp, "migrate-set-capabilities",
				     json_pack("{s:[{s:s, s:b}]}", "capabilities", "capability", "multifd",
					       "state", channels != 0), -1, COMMAND_MS, err);

	if (result && channels) {
		json_decref(result);
		result = qmp_command(&qemu->qmp, "migrate-set-parameters",
				     json_pack("{s:i, s:b}", "multifd-channels", (int)channels, "direct-io", 1),
				     -1, COMMAND_MS, err);
	}
	json_decref(result);
	return result ? 0 : -EIO;
}

int qemu_load(struct qemu *qemu, const char *uri, unsigned int channels, struct error *err)
{
	const struct timespec rest = { .tv_nsec = 1000000 };
	struct error ignored;
	json_t *result;
	const char *status;
	int ret = -EAGAIN;

	/* From QEMU 9.1 on. */
	if (channels && set_multifd(qemu, channels, &ignored))
		set_multifd(qemu, 0, &ignored);
	result = qmp_command(&qemu->qmp, "migrate-incoming", json_pack("{s:s}", "uri", uri), -1, COMMAND_MS, err);
	if (!result)
		return -EIO;
	json_decref(result);
	while (ret == -EAGAIN) {
		/* There is no limit: it may be terabytes, and QEMU answers nobody while it reads RAM. */
		result = qmp_command(&qemu->qmp, "query-migrate", NULL, -1, INT_MAX, err);
		if (!result)
			return -EIO;
		status = json_string_value(json_object_get(result, "status"));
		if (status && !strcmp(status, "completed"))
			ret = 0;
		else if (status && !strcmp(status, "failed"))
			ret = error_set(err, EIO, "QEMU can't load it: %s", json_string_value(
					json_object_get(result, "error-desc")) ?: "see its own messages");
		json_decref(result);
		if (ret == -EAGAIN)
			nanosleep(&rest, NULL);
	}
	return ret;
}

void qemu_quit(struct qemu *qemu)
{
	struct error ignored;

	simple(qemu, "quit", &ignored);
}

void qemu_detach(struct qemu *qemu)
{
	qmp_close(&qemu->qmp);
	free(qemu->blocks);
	qemu->blocks = NULL;
	qemu->nr_blocks = 0;
}

bool qemu_is_running(const struct qemu *qemu)
{
	/* A suspended VM may wake. */
	return !strcmp(qemu->status, "running") || !strcmp(qemu->status, "suspended");
}

int qemu_look_status(struct qemu *qemu, struct error *err)
{
	int ret = read_status(qemu, err);

	qemu->qmp.changed = false;
	return ret;
}

int qemu_stop(struct qemu *qemu, bool *stopped, struct error *err)
{
	int ret;

	qemu->qmp.stopped = false;
	ret = simple(qemu, "stop", err);
	/* The event comes before the answer, and only if there was something to stop. */
	*stopped = ret || qemu->qmp.stopped;
	qemu->qmp.changed = false;
	return ret;
}

int qemu_check_stopped(struct qemu *qemu, struct error *err)
{
	char before[sizeof(qemu->status)];
	int ret;

	memcpy(before, qemu->status, sizeof(before));
	ret = read_status(qemu, err);
	if (!ret && (qemu_is_running(qemu) || qemu->qmp.changed))
		ret = error_set(err, EBUSY, "the VM was resumed or reset by another client while it was saved; save it again");
	/* Another client may have it migrate. */
	if (!ret)
		ret = check_status(qemu, err);
	memcpy(qemu->status, before, sizeof(before));
	return ret;
}

bool qemu_is_alive(const struct qemu *qemu)
{
	struct pollfd pfd = { .fd = (int)syscall(SYS_pidfd_open, qemu->pid, 0), .events = POLLIN };
	bool alive = pfd.fd >= 0 && poll(&pfd, 1, 1000) == 0;

	if (pfd.fd >= 0)
		close(pfd.fd);
	return alive;
}

int qemu_cont(struct qemu *qemu, struct error *err)
{
	return simple(qemu, "cont", err);
}

int qemu_cont_unless_gone(struct qemu *qemu, struct error *err)
{
	const struct timespec rest = { .tv_nsec = 100000000 };
	bool refused = false;
	int ret;

	for (;;) {
		while (!(ret = read_status(qemu, err)) && !strcmp(qemu->status, "finish-migrate"))
			nanosleep(&rest, NULL);
		if (ret || !strcmp(qemu->status, "postmigrate"))
			return ret;
		ret = qemu_cont(qemu, err);
		/* Refused: the end of a migration may have begun just then. */
		if (!ret || refused)
			return ret;
		refused = true;
	}
}

/* MiB a second, of each vCPU. */
static int limit_dirty_rate(struct qemu *qemu, uint64_t rate, struct error *err)
{
	json_t *result = qmp_command(&qemu->qmp, "set-vcpu-dirty-limit",
				     json_pack("{s:I}", "dirty-rate", (json_int_t)rate), -1, COMMAND_MS,
				     err);

	json_decref(result);
	return result ? 0 : -EIO;
}

int qemu_log_writes(struct qemu *qemu, bool on, struct error *err)
{
	json_t *result;
	bool used;

	if (!on)
		return simple(qemu, "cancel-vcpu-dirty-limit", err);
	result = qmp_command(&qemu->qmp, "query-vcpu-dirty-limit", NULL, -1, COMMAND_MS, err);
	if (!result)
		return -EIO;
	used = json_array_size(result);
	json_decref(result);
	if (used)
		return error_set(err, EBUSY, "QEMU limits the VM's dirty rate already");
	return limit_dirty_rate(qemu, NO_LIMIT, err);
}

int qemu_throttle(struct qemu *qemu, uint64_t bytes_per_second, struct error *err)
{
	uint64_t mib = bytes_per_second >> 20;

	return limit_dirty_rate(qemu, !bytes_per_second ? NO_LIMIT : mib ? mib : 1, err);
}

const char *qemu_hidden_writer(struct qemu *qemu)
{
	static const struct {
		const char *needle, *name;
	} devices[] = {
		{ "vdpa", "vDPA" }, { "rdma", "RDMA" }, { "vhost-user", "vhost-user" },
		{ "dev: xen-", "Xen guest" },
	};
	/* Drivers that have a disk's controller to themselves, or leave the disk to another process. */
	static const char *const drivers[] = { "nvme", "vfio", "vdpa", "vhost-user" };
	struct error ignored;
	json_t *nodes = qmp_command(&qemu->qmp, "query-named-block-nodes", json_pack("{s:b}", "flat", 1),
				    -1, COMMAND_MS, &ignored);
	char *tree = qmp_hmp(&qemu->qmp, "info qtree", &ignored);
	char *nets = qmp_hmp(&qemu->qmp, "info network", &ignored);
	const char *found = nodes && tree && nets ? NULL : "something unknown", *driver;
	json_t *node;
	size_t i, j;

	for (i = 0; i < sizeof(devices) / sizeof(*devices) && !found; i++)
		if (strstr(tree, devices[i].needle) || strstr(nets, devices[i].needle))
			found = devices[i].name;
	json_array_foreach(nodes, i, node) {
		driver = json_string_value(json_object_get(node, "drv"));
		for (j = 0; driver && j < sizeof(drivers) / sizeof(*drivers) && !found; j++)
			if (strstr(driver, drivers[j]))
				found = "a disk of nvme://, VFIO, vDPA or vhost-user";
	}
	json_decref(nodes);
	free(nets);
	free(tree);
	return found;
}

/*
 * A line of `info ramblock` (QEMU system/physmem.c, ram_block_format()): name, page size
 * with unit, offset, used, total, address, ro or rw.
 */
static int parse_block(char *line, struct qemu_block *block)
{
	char *word[16], *save, *w;
	size_t n = 0, unit;
	unsigned long long size;

	for (w = strtok_r(line, " \t\r", &save); w && n < 16; w = strtok_r(NULL, " \t\r", &save))
		word[n++] = w;
	/* Without a name: not plugged in anywhere, and not in QEMU's stream either. */
	if (n == 7)
		return -ENOENT;
	if (n != 8)
		return -EPROTO;
	if (strlen(word[0]) >= sizeof(block->name))
		return -ENAMETOOLONG;
	strcpy(block->name, word[0]);
	size = strtoull(word[1], NULL, 10);
	unit = !strcmp(word[2], "KiB") ? 10 : !strcmp(word[2], "MiB") ? 20 :
	       !strcmp(word[2], "GiB") ? 30 : 0;
	block->page_size = size << unit;
	block->used = strtoull(word[4], NULL, 0);
	block->hva = strtoull(word[6], NULL, 0);
	return block->hva && block->page_size ? 0 : -EPROTO;
}

int qemu_list_blocks(struct qemu *qemu, struct error *err)
{
	char *text = qmp_hmp(&qemu->qmp, "info ramblock", err);
	char *line, *save;
	int ret = 0;

	if (!text)
		return -EIO;
	free(qemu->blocks);
	qemu->blocks = NULL;
	qemu->nr_blocks = 0;
	line = strtok_r(text, "\n", &save);	/* the heading */
	if (!line || !strstr(line, "HVA"))
		ret = error_set(err, EPROTO, "QEMU's list of RAM blocks has no addresses; QEMU 9.0 or newer is needed");
	while (!ret && (line = strtok_r(NULL, "\n", &save))) {
		struct qemu_block block, *more;

		if (!strchr(line, '0'))
			continue;
		ret = parse_block(line, &block);
		if (ret == -ENOENT) {
			ret = 0;
			continue;
		}
		if (ret) {
			error_set(err, EPROTO, "QEMU's list of RAM blocks isn't understood at: %s", line);
			break;
		}
		if (!block.used)
			continue;
		more = realloc(qemu->blocks, (qemu->nr_blocks + 1) * sizeof(*more));
		if (!more) {
			ret = out_of_memory(err);
			break;
		}
		qemu->blocks = more;
		qemu->blocks[qemu->nr_blocks++] = block;
	}
	free(text);
	return ret;
}

int qemu_vm_fd(struct qemu *qemu, struct error *err)
{
	char path[64], target[64];
	struct dirent *entry;
	int pidfd, fd;
	ssize_t n;
	DIR *dir;

	pidfd = (int)syscall(SYS_pidfd_open, qemu->pid, 0);
	if (pidfd < 0)
		return error_set(err, errno, "process %d behind the QMP socket: %s; name QEMU's with --pid",
				 (int)qemu->pid, strerror(errno));
	snprintf(path, sizeof(path), "/proc/%d/fd", (int)qemu->pid);
	dir = opendir(path);
	if (!dir) {
		fd = error_set(err, errno, "%s: %s; run as root", path, strerror(errno));
		goto out;
	}
	fd = -ENXIO;
	while (fd == -ENXIO && (entry = readdir(dir))) {
		n = readlinkat(dirfd(dir), entry->d_name, target, sizeof(target) - 1);
		if (n < 0)
			continue;
		target[n] = 0;
		if (strcmp(target, "anon_inode:kvm-vm"))
			continue;
		fd = (int)syscall(SYS_pidfd_getfd, pidfd, atoi(entry->d_name), 0);
		if (fd < 0)
			fd = error_set(err, errno, "taking QEMU's VM descriptor: %s; run as root", strerror(errno));
	}
	if (fd == -ENXIO)
		error_set(err, ENXIO, "process %d has no KVM VM; start QEMU with -accel kvm, or name its process with --pid",
			  (int)qemu->pid);
	closedir(dir);
out:
	close(pidfd);
	return fd;
}

int qemu_open_devices(struct qemu *qemu, struct error *err)
{
	int mem = memfd_create("kvmsnap-devices", MFD_CLOEXEC), fd, ret;
	char path[64];
	json_t *result;
	long long fdset;

	if (mem < 0)
		return error_set(err, errno, "memfd_create: %s", strerror(errno));
	/* QEMU opens the fdset's member for writing alone: the access mode must be that. */
	snprintf(path, sizeof(path), "/proc/self/fd/%d", mem);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0) {
		ret = error_set(err, errno, "%s: %s", path, strerror(errno));
		close(mem);
		return ret;
	}
	result = qmp_command(&qemu->qmp, "add-fd", NULL, fd, COMMAND_MS, err);
	ret = result ? 0 : -EIO;
	fdset = json_integer_value(json_object_get(result, "fdset-id"));
	json_decref(result);
	if (!ret && (fdset < 0 || fdset == LLONG_MAX))
		ret = error_set(err, EPROTO, "QMP: QEMU has a descriptor set %lld", fdset);
	if (ret) {
		close(fd);
		close(mem);
		return ret;
	}
	qemu->devices = mem;
	qemu->to_devices = fd;
	qemu->fdset = fdset + 1;
	return 0;
}

void qemu_close_devices(struct qemu *qemu)
{
	struct error ignored;

	if (!qemu->fdset)
		return;
	json_decref(qmp_command(&qemu->qmp, "remove-fd", json_pack("{s:I}", "fdset-id", (json_int_t)qemu->fdset - 1),
				-1, COMMAND_MS, &ignored));
	close(qemu->devices);
	close(qemu->to_devices);
	qemu->fdset = 0;
}

int qemu_device_state(struct qemu *qemu, struct error *err)
{
	char path[64];
	json_t *result;
	struct stat st;
	int fd;

	/* QEMU's descriptor has the offset of ours. */
	if (lseek(qemu->to_devices, 0, SEEK_SET) < 0 || ftruncate(qemu->to_devices, 0) < 0)
		return error_set(err, errno, "device state: %s", strerror(errno));
	/* live=false: the default would inactivate the block devices of a paused VM. */
	snprintf(path, sizeof(path), "/dev/fdset/%lld", qemu->fdset - 1);
	result = qmp_command(&qemu->qmp, "xen-save-devices-state",
			     json_pack("{s:s, s:b}", "filename", path, "live", 0),
			     -1, COMMAND_MS, err);
	if (!result)
		return -EIO;
	json_decref(result);
	if (fstat(qemu->devices, &st) < 0 || st.st_size <= STREAM_HEADER)
		return error_set(err, EPROTO, "QEMU wrote no device state");
	fd = lseek(qemu->devices, STREAM_HEADER, SEEK_SET) < 0 ? -1 : fcntl(qemu->devices, F_DUPFD_CLOEXEC, 0);
	return fd < 0 ? error_set(err, errno, "device state: %s", strerror(errno)) : fd;
}

int qemu_read_memory(struct qemu *qemu, uint64_t hva, void *buf, size_t len, struct error *err)
{
	while (len) {
		struct iovec local = { .iov_base = buf, .iov_len = len };
		struct iovec remote = { .iov_base = (void *)(uintptr_t)hva, .iov_len = len };
		ssize_t n = process_vm_readv(qemu->pid, &local, 1, &remote, 1, 0);

		if (n <= 0)
			return error_set(err, n ? errno : EFAULT, "reading QEMU's memory at 0x%llx: %s",
					 (unsigned long long)hva, strerror(n ? errno : EFAULT));
		buf = (char *)buf + n;
		hva += (uint64_t)n;
		len -= (size_t)n;
	}
	return 0;
}
