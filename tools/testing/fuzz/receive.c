// SPDX-License-Identifier: GPL-2.0
/* libFuzzer: any bytes as a migration stream that kvmsnap receive gets. */
#include <sys/mman.h>

#include "cli/receive.c"

static const volatile sig_atomic_t never;

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct receive r = { .target.fd = -1, .fd = -1 };
	int in = memfd_create("fuzz", 0);
	struct error err;
	char path[64];

	if (in < 0 || snap_pwrite(in, data, size, 0))
		abort();
	snprintf(path, sizeof(path), "/dev/shm/kvmsnap-fuzz-%d", (int)getpid());
	r.err = &err;
	if (!reader_open_pipe(&r.in, in, &never, &err))
		receive(&r, path, true, SYNC_NONE);
	receive_close(&r);
	close(in);
	unlink(path);
	return 0;
}
