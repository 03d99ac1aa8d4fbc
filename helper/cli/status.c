// SPDX-License-Identifier: GPL-2.0
/* kvmsnap status: the module's sessions and what happens to them, by netlink. */
#include "cli.h"
#include "../lib/kvmsnap.h"

#include <errno.h>
#include <getopt.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

static const char status_usage[] =
	"usage: kvmsnap status [--follow] [--json]\n"
	"List the open sessions of the kernel module and how far they are.\n"
	"  --follow   print what happens to them, as it happens, until interrupted\n"
	"  --json     for programs; with --follow an object a line\n";

static const char *const states[] = { "idle", "running", "failed", "dead" };

static const char *const phases[] = { "-", "live", "stopped", "resumed", "done", "failed" };

static const char *const events[] = {
	"?", "pass begins", "staged", "pass ends", "phase", "VM gone", "closed",
};

const char *state_name(uint32_t state)
{
	return state < sizeof(states) / sizeof(*states) ? states[state] : "?";
}

const char *phase_name(uint32_t phase)
{
	return phase < sizeof(phases) / sizeof(*phases) ? phases[phase] : "?";
}

static const char *event_name(uint32_t event)
{
	return events[event < sizeof(events) / sizeof(*events) ? event : 0];
}

static json_t *session_json(const struct kvmsnap_session_info *info)
{
	const struct kvmsnap_stats *s = &info->stats;

	return json_pack(
		"{s:I, s:I, s:I, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:I, s:s, s:f, s:I, s:I}",
		"id", (json_int_t)info->id, "owner_pid", (json_int_t)info->owner_pid,
		"vm_pid", (json_int_t)info->vm_pid, "state", state_name(s->state),
		"pass", (json_int_t)s->pass,
		"pages_total", (json_int_t)s->pages_total, "pages_done", (json_int_t)s->pages_done,
		"pages_zero", (json_int_t)s->pages_zero,
		"pages_untouched", (json_int_t)s->pages_untouched,
		"bytes_written", (json_int_t)s->bytes_written, "in_flight", (json_int_t)s->in_flight,
		"error", (json_int_t)s->error, "elapsed_seconds", (double)s->elapsed_ns / 1e9,
		"memory", (json_int_t)s->memory, "phase", phase_name(s->phase),
		"pause_seconds", (double)s->pause_ns / 1e9, "pages_dirty", (json_int_t)s->pages_dirty,
		"harvested", (json_int_t)s->harvested);
}

static int add_json(const struct kvmsnap_session_info *info, void *data)
{
	json_array_append_new(data, session_json(info));
	return 0;
}

/* An event, of which none may be missing without a word. */
struct follow_state {
	bool json;
	uint64_t seq;		/* of the last one; 0 for none */
};

static int print_event(const struct kvmsnap_session_info *info, void *data)
{
	struct follow_state *state = data;
	const struct kvmsnap_stats *s;
	uint64_t lost;
	json_t *json;

	if (!info)
		return 0;
	s = &info->stats;
	lost = state->seq ? info->seq - state->seq - 1 : 0;
	state->seq = info->seq;
	if (state->json) {
		json = session_json(info);
		json_object_set_new(json, "event", json_string(event_name(info->event)));
		json_object_set_new(json, "seq", json_integer((json_int_t)info->seq));
		json_object_set_new(json, "lost", json_integer((json_int_t)lost));
		json_dumpf(json, stdout, JSON_COMPACT);
		json_decref(json);
	} else {
		if (lost)
			printf("(%llu events lost)\n", (unsigned long long)lost);
		printf("%llu session %u, VM %d: ", (unsigned long long)info->seq, info->id,
		       (int)info->vm_pid);
		if (info->event == KVMSNAP_GENL_EVENT_PHASE)
			printf("%s, pause %.1f ms", phase_name(s->phase), (double)s->pause_ns / 1e6);
		else
			printf("%s", event_name(info->event));
		if (info->event <= KVMSNAP_GENL_EVENT_PASS_END)
			printf(" (%llu): %s written, %s dirty%s%s", (unsigned long long)s->pass,
			       human_bytes((double)s->bytes_written),
			       human_bytes((double)s->pages_dirty * KVMSNAP_PAGE_SIZE),
			       s->error ? ", " : "", s->error ? strerror(s->error) : "");
	}
	putchar('\n');
	return fflush(stdout) ? -errno : 0;
}

static int print(const struct kvmsnap_session_info *info, void *data)
{
	const struct kvmsnap_stats *s = &info->stats;
	double seconds = (double)s->elapsed_ns / 1e9;
	unsigned int *count = data;

	if (!(*count)++)
		printf("%4s %8s %8s %-8s %-8s %5s %5s %12s %14s %9s\n", "id", "owner", "VM", "state",
		       "save", "pass", "done", "written", "rate", "in flight");
	printf("%4u %8d %8d %-8s %-8s %5llu %4.0f%% %12s %12s/s %9u", info->id,
	       (int)info->owner_pid, (int)info->vm_pid, state_name(s->state),
	       phase_name(s->phase), (unsigned long long)s->pass,
	       s->pages_total ? (double)s->pages_done * 100 / (double)s->pages_total : 0,
	       human_bytes((double)s->bytes_written),
	       human_bytes(seconds > 0 ? (double)s->bytes_written / seconds : 0), s->in_flight);
	if (s->error)
		printf("  %s", strerror(s->error));
	putchar('\n');
	return 0;
}

int no_sessions(int ret)
{
	struct error err;

	error_set(&err, -ret, "asking the module: %s%s", strerror(-ret),
		  ret == -ENOENT ? "; load it: modprobe kvmsnap; it answers in the initial network namespace alone" :
		  ret == -EPERM ? "; run as root" : "");
	complain(&err);
	return 1;
}

int cmd_status(int argc, char **argv)
{
	static const struct option longs[] = {
		{ "follow", no_argument, NULL, 'f' },
		{ "json", no_argument, NULL, 'j' },
		{ "help", no_argument, NULL, 'h' },
		{ 0 }
	};
	struct follow_state state = { 0 };
	unsigned int count = 0;
	json_t *list = NULL;
	bool follow = false;
	int c, ret;

	while ((c = getopt_long(argc, argv, "h", longs, NULL)) != -1) {
		switch (c) {
		case 'f':
			follow = true;
			break;
		case 'j':
			state.json = true;
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

	if (follow) {
		ret = kvmsnap_follow_events(print_event, &state);
		return ret ? no_sessions(ret) : 0;
	}
	if (state.json)
		list = json_array();
	ret = list ? kvmsnap_list_sessions(add_json, list) : kvmsnap_list_sessions(print, &count);
	if (ret)
		return no_sessions(ret);
	if (list) {
		json_dumpf(list, stdout, JSON_INDENT(2));
		putchar('\n');
		json_decref(list);
	} else if (!count) {
		printf("no sessions\n");
	}
	return 0;
}
