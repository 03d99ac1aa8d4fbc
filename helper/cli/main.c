// SPDX-License-Identifier: GPL-2.0
/* kvmsnap(8): a table of subcommands, and what they share. */
#include "cli.h"

#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const struct {
	const char *name;
	int (*run)(int argc, char **argv);
	const char *help;
} commands[] = {
	{ "save", cmd_save, "save a QEMU VM to a file or block device" },
	{ "checkpoint", cmd_checkpoint, "save a QEMU VM again and again, what has changed each time" },
	{ "restore", cmd_restore, "run QEMU with what a snapshot file has" },
	{ "receive", cmd_receive, "called by QEMU: write its migration stream as a snapshot file" },
	{ "list", cmd_list, "show the generations in a folder or file, and how to load them" },
	{ "compact", cmd_compact, "drop old generations from a file that others were appended to" },
	{ "info", cmd_info, "show what is in a snapshot file" },
	{ "verify", cmd_verify, "check that a snapshot file is whole and readable" },
	{ "export", cmd_export, "write a VM's memory as an ELF core or as a raw image" },
	{ "status", cmd_status, "list the sessions of the kernel module, or follow what happens to them" },
	{ "top", cmd_top, "watch running saves" },
};

static void usage(FILE *to)
{
	size_t i;

	fprintf(to, "usage: kvmsnap COMMAND [OPTION]...\n\n");
	for (i = 0; i < sizeof(commands) / sizeof(*commands); i++)
		fprintf(to, "  %-10s %s\n", commands[i].name, commands[i].help);
	fprintf(to, "\nkvmsnap COMMAND --help tells the options; kvmsnap(8) all of it.\n");
}

int main(int argc, char **argv)
{
	size_t i;
	int fd;

	/* What is opened next is not to be taken for an input or output that is closed. */
	do
		fd = open("/dev/null", O_RDWR);
	while (fd >= 0 && fd <= STDERR_FILENO);
	if (fd >= 0)
		close(fd);
	if (argc > 1 && (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h"))) {
		usage(stdout);
		return 0;
	}
	for (i = 0; argc > 1 && i < sizeof(commands) / sizeof(*commands); i++)
		if (!strcmp(argv[1], commands[i].name))
			return commands[i].run(argc - 1, argv + 1);
	if (argc > 1)
		fprintf(stderr, "kvmsnap: %s: no such command\n", argv[1]);
	usage(stderr);
	return EXIT_USAGE;
}

void complain(const struct error *err)
{
	progress_clear();
	fprintf(stderr, "kvmsnap: %s\n", err->text);
}

int usage_error(const char *usage_text, const char *fmt, ...)
{
	va_list ap;

	fputs("kvmsnap: ", stderr);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fprintf(stderr, "\n%s", usage_text);
	return EXIT_USAGE;
}

json_t *json_text(const char *text)
{
	json_t *json = text ? json_string(text) : NULL;
	char *escaped, *to;

	if (json || !text)
		return json;
	escaped = to = malloc(4 * strlen(text) + 1);
	if (!escaped)
		return NULL;
	*to = 0;
	for (; *text; text++)
		to += sprintf(to, (unsigned char)*text < 0x80 ? "%c" : "\\x%02x", (unsigned char)*text);
	json = json_string(escaped);
	free(escaped);
	return json;
}

const char *human_bytes(double bytes)
{
	static const char *const unit[] = { "B", "KiB", "MiB", "GiB", "TiB" };
	static char buf[8][32];
	static unsigned int next;
	char *out = buf[next++ % 8];
	int i = 0;

	while (bytes >= 1024 && i < 4) {
		bytes /= 1024;
		i++;
	}
	snprintf(out, sizeof(buf[0]), i ? "%.1f %s" : "%.0f %s", bytes, unit[i]);
	return out;
}

double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static bool shown;

/* A terminal that somebody has stopped must not stop us, and the guest with us. */
static bool takes_output(int fd)
{
	struct pollfd pfd = { .fd = fd, .events = POLLOUT };

	return poll(&pfd, 1, 0) == 1 && pfd.revents & POLLOUT;
}

void progress_show(const char *what, uint64_t done, uint64_t total, uint64_t bytes, double began)
{
	double elapsed = now() - began, part = total ? (double)done / (double)total : 0;

	if (!isatty(STDERR_FILENO) || !takes_output(STDERR_FILENO))
		return;
	fprintf(stderr, "\r\033[K%s %3.0f%%  %s, %s/s", what, part * 100, human_bytes((double)bytes),
		human_bytes(elapsed > 0 ? (double)bytes / elapsed : 0));
	if (part > 0.01)
		fprintf(stderr, ", %.0f s left", elapsed / part - elapsed);
	fflush(stderr);
	shown = true;
}

void progress_clear(void)
{
	if (shown && takes_output(STDERR_FILENO))
		fputs("\r\033[K", stderr);
	shown = false;
}
