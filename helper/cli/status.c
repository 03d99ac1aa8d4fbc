// SPDX-License-Identifier: GPL-2.0
/* kvmsnap status: the module's sessions, by netlink. */
#include "cli.h"
#include "../lib/kvmsnap.h"

#include <errno.h>
#include <getopt.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

static const char status_usage[] =
	"usage: kvmsnap status [--json]\n"
	"List the open sessions of the kernel module and how far they are.\n";

static const char *const states[] = { "idle", "running", "failed", "dead" };

static const char *state_name(uint32_t state)
{
	return state < sizeof(states) / sizeof(*states) ? states[state] : "?";
}

static int add_json(const struct kvmsnap_session_info *info, void *data)
{
	const struct kvmsnap_stats *s = &info->stats;

	json_array_append_new(data, json_pack(
		"{s:I, s:I, s:I, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:I}",
		"id", (json_int_t)info->id, "owner_pid", (json_int_t)info->owner_pid,
		"vm_pid", (json_int_t)info->vm_pid, "state", state_name(s->state),
		"pass", (json_int_t)s->pass,
		"pages_total", (json_int_t)s->pages_total, "pages_done", (json_int_t)s->pages_done,
		"pages_zero", (json_int_t)s->pages_zero,
		"pages_untouched", (json_int_t)s->pages_untouched,
		"bytes_written", (json_int_t)s->bytes_written, "in_flight", (json_int_t)s->in_flight,
		"error", (json_int_t)s->error, "elapsed_seconds", (double)s->elapsed_ns / 1e9,
		"memory", (json_int_t)s->memory));
	return 0;
}

static int print(const struct kvmsnap_session_info *info, void *data)
{
	const struct kvmsnap_stats *s = &info->stats;
	double seconds = (double)s->elapsed_ns / 1e9;
	unsigned int *count = data;

	if (!(*count)++)
		printf("%4s %8s %8s %-8s %5s %5s %12s %14s %9s\n", "id", "owner", "VM", "state", "pass",
		       "done", "written", "rate", "in flight");
	printf("%4u %8d %8d %-8s %5llu %4.0f%% %12s %12s/s %9u", info->id, (int)info->owner_pid,
	       (int)info->vm_pid, state_name(s->state), (unsigned long long)s->pass,
	       s->pages_total ? (double)s->pages_done * 100 / (double)s->pages_total : 0,
	       human_bytes((double)s->bytes_written),
	       human_bytes(seconds > 0 ? (double)s->bytes_written / seconds : 0), s->in_flight);
	if (s->error)
		printf("  %s", strerror(s->error));
	putchar('\n');
	return 0;
}

int cmd_status(int argc, char **argv)
{
	static const struct option longs[] = {
		{ "json", no_argument, NULL, 'j' },
		{ "help", no_argument, NULL, 'h' },
		{ 0 }
	};
	unsigned int count = 0;
	json_t *list = NULL;
	struct error err;
	int c, ret;

	while ((c = getopt_long(argc, argv, "h", longs, NULL)) != -1) {
		switch (c) {
		case 'j':
			list = json_array();
			break;
		case 'h':
			fputs(status_usage, stdout);
			return 0;
		default:
			fputs(status_usage, stderr);
			return EXIT_USAGE;
		}
	}
	if (optind < argc)
		return usage_error(status_usage, "%s: not expected", argv[optind]);

	ret = list ? kvmsnap_list_sessions(add_json, list) : kvmsnap_list_sessions(print, &count);
	if (ret) {
		error_set(&err, -ret, "asking the module: %s%s", strerror(-ret),
			  ret == -ENOENT ? "; load it: modprobe kvmsnap" :
			  ret == -EPERM ? "; run as root" : "");
		complain(&err);
		return 1;
	}
	if (list) {
		json_dumpf(list, stdout, JSON_INDENT(2));
		putchar('\n');
		json_decref(list);
	} else if (!count) {
		printf("no sessions\n");
	}
	return 0;
}
