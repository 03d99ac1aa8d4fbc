// SPDX-License-Identifier: GPL-2.0
#include "reader.h"
#include "format.h"

#include <endian.h>
#include <errno.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_CAPABILITIES 64

int snap_pread(int fd, void *buf, size_t len, uint64_t offset)
{
	while (len) {
		ssize_t n = pread(fd, buf, len, (off_t)offset);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n ? -errno : -ENODATA;
		buf = (char *)buf + n;
		offset += (uint64_t)n;
		len -= (size_t)n;
	}
	return 0;
}

uint64_t snap_file_size(int fd)
{
	uint64_t size = 0;
	struct stat st;

	if (fstat(fd, &st) < 0 || (S_ISBLK(st.st_mode) && ioctl(fd, BLKGETSIZE64, &size) < 0))
		return 0;
	return S_ISBLK(st.st_mode) ? size : (uint64_t)st.st_size;
}

int reader_open_pipe(struct reader *r, int fd, const volatile sig_atomic_t *interrupted, struct error *err)
{
	*r = (struct reader){
		.fd = fd, .err = err, .buffer = malloc(READER_BUFFER), .interrupted = interrupted,
	};
	return r->buffer ? 0 : error_set(err, ENOMEM, "out of memory");
}

void reader_close(struct reader *r)
{
	free(r->buffer);
	r->buffer = NULL;
}

int reader_fail(struct reader *r, const char *what)
{
	if (!r->ret)
		r->ret = error_set(r->err, EBADMSG, "not a whole %s: %s at offset %llu",
				   r->buffer ? "migration stream" : "mapped-ram file", what,
				   (unsigned long long)r->pos);
	return r->ret;
}

/* Have something in the buffer of a pipe.  False at its end. */
static bool fill(struct reader *r)
{
	ssize_t n;

	if (r->next < r->filled)
		return true;
	do {
		if (*r->interrupted) {
			r->ret = error_set(r->err, EINTR, "interrupted");
			return false;
		}
		n = read(r->fd, r->buffer, READER_BUFFER);
	} while (n < 0 && errno == EINTR);
	if (n < 0)
		r->ret = error_set(r->err, errno, "reading the stream: %s", strerror(errno));
	r->next = 0;
	r->filled = n > 0 ? (size_t)n : 0;
	return r->filled;
}

size_t reader_get_some(struct reader *r, void *buf, size_t len)
{
	size_t n;

	if (r->ret || !fill(r))
		return 0;
	n = r->filled - r->next < len ? r->filled - r->next : len;
	memcpy(buf, r->buffer + r->next, n);
	r->next += n;
	r->pos += n;
	return n;
}

static void get_from_pipe(struct reader *r, uint8_t *buf, size_t len)
{
	size_t n;

	for (; len; buf += n, len -= n) {
		n = reader_get_some(r, buf, len);
		if (!n) {
			reader_fail(r, "it ends too early");
			return;
		}
	}
}

void reader_get(struct reader *r, void *buf, size_t len)
{
	memset(buf, 0, len);
	if (r->ret)
		return;
	if (r->buffer) {
		get_from_pipe(r, buf, len);
		return;
	}
	if (len > r->size - r->pos) {
		reader_fail(r, "it ends too early");
		return;
	}
	r->ret = snap_pread(r->fd, buf, len, r->pos);
	if (r->ret)
		error_set(r->err, -r->ret, "reading at offset %llu: %s", (unsigned long long)r->pos,
			  strerror(-r->ret));
	r->pos += len;
}

uint8_t reader_get8(struct reader *r)
{
	uint8_t v;

	reader_get(r, &v, 1);
	return v;
}

uint16_t reader_get16(struct reader *r)
{
	uint16_t v;

	reader_get(r, &v, 2);
	return be16toh(v);
}

uint32_t reader_get32(struct reader *r)
{
	uint32_t v;

	reader_get(r, &v, 4);
	return be32toh(v);
}

uint64_t reader_get64(struct reader *r)
{
	uint64_t v;

	reader_get(r, &v, 8);
	return be64toh(v);
}

uint8_t reader_peek8(struct reader *r)
{
	uint8_t v = reader_get8(r);

	r->pos -= !r->ret;
	r->next -= r->buffer && !r->ret;
	return v;
}

void reader_skip(struct reader *r, uint64_t len)
{
	uint8_t buf[4096];

	for (; r->buffer && len && !r->ret; len -= len < sizeof(buf) ? len : sizeof(buf))
		reader_get(r, buf, len < sizeof(buf) ? (size_t)len : sizeof(buf));
	if (r->buffer)
		return;
	if (!r->ret && len > r->size - r->pos)
		reader_fail(r, "it ends too early");
	r->pos += r->ret ? 0 : len;
}

bool is_printable(const uint8_t *p, size_t len)
{
	size_t i;

	for (i = 0; i < len; i++)
		if (p[i] <= ' ' || p[i] > '~')
			return false;
	return true;
}

void reader_get_counted(struct reader *r, char name[SNAP_MAX_NAME + 1])
{
	uint8_t len = reader_get8(r);

	reader_get(r, name, len);
	name[r->ret ? 0 : len] = 0;
	if (!is_printable((uint8_t *)name, strlen(name)) || strlen(name) != (r->ret ? 0 : len))
		reader_fail(r, "a name that isn't one");
}

static void get_capabilities(struct reader *r, bool *mapped)
{
	char name[SNAP_MAX_NAME + 1];
	uint32_t i, n = reader_get32(r);

	if (n > MAX_CAPABILITIES)
		reader_fail(r, "too many capabilities");
	for (i = 0; i < n && !r->ret; i++) {
		reader_get_counted(r, name);
		*mapped |= !strcmp(name, "mapped-ram");
		/* RAM of which the stream has nothing. */
		if (!r->ret && strcmp(name, "mapped-ram"))
			reader_fail(r, "a capability that isn't known");
	}
}

void reader_get_head(struct reader *r, char machine[128], bool *mapped)
{
	char name[SNAP_MAX_NAME + 1];
	uint8_t uuid[16];
	uint32_t len;

	*mapped = false;
	if (reader_get32(r) != QEMU_VM_FILE_MAGIC || reader_get32(r) != QEMU_VM_FILE_VERSION)
		reader_fail(r, "no QEMU migration header");
	if (!r->ret && reader_get8(r) != QEMU_VM_CONFIGURATION)
		reader_fail(r, "no configuration section");
	len = reader_get32(r);
	if (len >= 128) {
		reader_fail(r, "a machine type that is too long");
		return;
	}
	reader_get(r, machine, len);
	machine[len] = 0;
	if (!is_printable((uint8_t *)machine, len))
		reader_fail(r, "a machine type that isn't one");
	while (!r->ret && reader_peek8(r) == QEMU_VM_SUBSECTION) {
		reader_get8(r);
		reader_get_counted(r, name);
		reader_get32(r);		/* version */
		if (!strcmp(name, "configuration/capabilities")) {
			get_capabilities(r, mapped);
		} else if (!strcmp(name, "configuration/target-page-bits")) {
			if (reader_get32(r) != 12)
				reader_fail(r, "pages that are not 4096 bytes");
		} else if (!strcmp(name, "configuration/uuid")) {
			reader_get(r, uuid, sizeof(uuid));
		} else {
			reader_fail(r, "an unknown configuration");
		}
	}
}
