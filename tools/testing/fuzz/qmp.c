// SPDX-License-Identifier: GPL-2.0
/*
 * libFuzzer: any bytes as what a QEMU says on its QMP socket.  The first byte, 0 to 8, chooses what it is asked;
 * the answers' ids count from 1.
 */
#include <stdint.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "qemu/qemu.h"

#define MAX_SIZE	100000	/* what a socket holds without a reader */

static void ask(struct qemu *qemu, uint8_t what)
{
	struct error err;
	bool stopped;

	switch (what) {
	case '0':
		qemu_look_again(qemu, &err);
		break;
	case '1':
		qemu_list_blocks(qemu, &err);
		break;
	case '2':
		qemu_hidden_writer(qemu);
		break;
	case '3':
		if (!qemu_log_writes(qemu, true, &err))
			qemu_throttle(qemu, 1 << 20, &err);
		qemu_log_writes(qemu, false, &err);
		break;
	case '4':
		if (!qemu_stop(qemu, &stopped, &err) && !qemu_check_stopped(qemu, &err))
			qemu_cont(qemu, &err);
		break;
	case '5':
		if (!qemu_open_devices(qemu, &err)) {
			int fd = qemu_device_state(qemu, &err);

			if (fd >= 0)
				close(fd);
		}
		qemu_close_devices(qemu);
		break;
	case '6':
		qemu_load(qemu, "file:/none", 2, &err);
		break;
	case '7':
		qemu_drain(qemu);
		break;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct qemu qemu = { .qmp.fd = -1 };
	int pair[2], bytes = 2 * MAX_SIZE;
	struct error err;

	if (!size || size > MAX_SIZE)
		return 0;
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) ||
	    setsockopt(pair[0], SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes)) ||
	    send(pair[0], data + 1, size - 1, MSG_DONTWAIT) != (ssize_t)size - 1 || shutdown(pair[0], SHUT_WR))
		abort();
	if (data[0] == '8') {
		qemu_adopt(&qemu, pair[1], &err);
	} else {
		qemu.qmp.fd = pair[1];
		ask(&qemu, data[0]);
	}
	qemu_detach(&qemu);
	close(pair[0]);
	return 0;
}
