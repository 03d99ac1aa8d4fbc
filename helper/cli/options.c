// SPDX-License-Identifier: GPL-2.0
#include "options.h"
#include "cli.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static volatile sig_atomic_t interrupted;

static void on_signal(int sig)
{
	interrupted = sig;
}

const volatile sig_atomic_t *catch_signals(void)
{
	struct sigaction action = { .sa_handler = on_signal }, old;

	/* No SA_RESTART: waits end, and look at the flag. */
	sigaction(SIGINT, &action, NULL);
	sigaction(SIGTERM, &action, NULL);
	/* nohup stays nohup. */
	sigaction(SIGHUP, &action, &old);
	if (old.sa_handler == SIG_IGN)
		signal(SIGHUP, SIG_IGN);
	signal(SIGPIPE, SIG_IGN);
	/* EFBIG says the same. */
	signal(SIGXFSZ, SIG_IGN);
	/* Not to be suspended while the guest waits for us. */
	signal(SIGTSTP, SIG_IGN);
	signal(SIGTTIN, SIG_IGN);
	signal(SIGTTOU, SIG_IGN);
	return &interrupted;
}

int take_signal(void)
{
	int sig = interrupted;

	interrupted = 0;
	return sig;
}

int poll_signals(struct pollfd *fds, nfds_t n, int ms)
{
	struct timespec limit = { .tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L };
	sigset_t ours, before;
	int ret = -1;

	sigemptyset(&ours);
	sigaddset(&ours, SIGINT);
	sigaddset(&ours, SIGTERM);
	sigaddset(&ours, SIGHUP);
	sigprocmask(SIG_BLOCK, &ours, &before);
	if (interrupted)
		errno = EINTR;
	else
		ret = ppoll(fds, n, ms < 0 ? NULL : &limit, &before);
	sigprocmask(SIG_SETMASK, &before, NULL);
	return ret;
}

double parse_time(const char *text)
{
	char *end;
	double value = strtod(text, &end);

	if (end == text || !(value >= 0) || value > 1e6)
		return -1;
	if (!strcmp(end, "us"))
		return value / 1e6;
	if (!strcmp(end, "ms"))
		return value / 1e3;
	return !*end || !strcmp(end, "s") ? value : -1;
}

/* "500000", "64K", "256M", "1.5G": bytes; 0 when it is none. */
static uint64_t parse_size(const char *text)
{
	static const char units[] = "KMGT";
	char *end;
	const char *unit;
	double value = strtod(text, &end);

	if (end == text || !(value >= 1))
		return 0;
	if (*end) {
		unit = strchr(units, *end);
		if (!unit || end[1])
			return 0;
		value *= (double)(1ULL << 10 * (unit - units + 1));
	}
	return value < 1e18 ? (uint64_t)value : 0;
}

int parse_sync(const char *text, enum sync *sync)
{
	static const char *const names[] = { "none", "data", "full" };
	size_t i;

	for (i = 0; i < sizeof(names) / sizeof(*names); i++) {
		if (!strcmp(text, names[i])) {
			*sync = (enum sync)i;
			return 0;
		}
	}
	return -EINVAL;
}

bool parse_number(const char *text, uint64_t *value)
{
	char *end;

	*value = strtoull(text, &end, 10);
	return !*end && *value && *text != '-';
}

int options_take(struct save_options *opt, int c, const char *usage)
{
	char *end;

	switch (c) {
	case OPT_QMP:
		opt->qmp = optarg;
		break;
	case OPT_LIVE:
		opt->live = true;
		break;
	case OPT_MAX_DOWNTIME:
		opt->max_downtime = parse_time(optarg);
		if (opt->max_downtime <= 0)
			return usage_error(usage, "--max-downtime %s: not a time such as 300ms or 1.5s", optarg);
		break;
	case OPT_ALLOW_DOWNTIME:
		opt->allow_downtime = parse_time(optarg);
		if (opt->allow_downtime <= 0)
			return usage_error(usage, "--allow-downtime %s: not a time such as 300ms or 1.5s", optarg);
		break;
	case OPT_MAX_PASSES:
		opt->max_passes = strtol(optarg, &end, 10);
		if (*end || opt->max_passes <= 0)
			return usage_error(usage, "--max-passes %s: not a number of 1 or more", optarg);
		break;
	case OPT_BANDWIDTH:
		opt->bandwidth = parse_size(optarg);
		if (!opt->bandwidth)
			return usage_error(usage, "--bandwidth %s: not a rate such as 200M (bytes a second)", optarg);
		break;
	case OPT_THROTTLE:
		opt->throttle = parse_size(optarg);
		if (!opt->throttle)
			return usage_error(usage, "--throttle %s: not a rate such as 50M (bytes a second)", optarg);
		break;
	case OPT_STAGE:
		opt->stage = parse_size(optarg);
		if (!opt->stage)
			return usage_error(usage, "--stage %s: not a size such as 64M or 1G", optarg);
		break;
	case OPT_CHECKSUM:
		opt->checksum = true;
		break;
	case OPT_SYNC:
		if (parse_sync(optarg, &opt->sync))
			return usage_error(usage, "--sync %s: none, data or full", optarg);
		break;
	case OPT_PID:
		opt->pid = (pid_t)strtol(optarg, &end, 10);
		if (*end || opt->pid <= 0)
			return usage_error(usage, "--pid %s: not a process number", optarg);
		break;
	case OPT_DEVICE:
		opt->device = optarg;
		break;
	case OPT_JSON:
		opt->json = true;
		break;
	case OPT_QUIET:
		opt->quiet = true;
		break;
	case 'h':
		fputs(usage, stdout);
		return 0;
	default:
		fputs(usage, stderr);
		return EXIT_USAGE;
	}
	return -1;
}

int options_check(struct save_options *opt, const char *usage)
{
	if (!opt->qmp)
		return usage_error(usage, "--qmp SOCKET is missing");
	if (!opt->live && (opt->max_downtime || opt->allow_downtime || opt->max_passes || opt->bandwidth ||
			   opt->throttle))
		return usage_error(usage, "--max-downtime, --allow-downtime, --max-passes, --bandwidth and --throttle go with --live");
	if (!opt->live && !opt->incremental && opt->stage)
		return usage_error(usage, "--stage goes with --live");
	if (!opt->max_downtime)
		opt->max_downtime = opt->allow_downtime && opt->allow_downtime < 0.3 ? opt->allow_downtime : 0.3;
	if (!opt->allow_downtime)
		opt->allow_downtime = opt->max_downtime;
	if (!opt->max_passes)
		opt->max_passes = 10;
	return -1;
}
