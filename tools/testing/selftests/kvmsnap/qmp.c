// SPDX-License-Identifier: GPL-2.0
/*
 * qmp SOCKET COMMAND...: tell QEMU, and print what it says, events too, until each is answered.
 * qmp -h SOCKET LINE...: the human monitor, and what it says as text.
 *
 * Status 1 if there is none, or it goes or says nothing for 60 s.
 */
#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>

static int monitor;
static FILE *answers;

/* Messages, up to the one that has KEY or an error. */
static json_t *message(const char *key, bool print)
{
	static char *line;
	static size_t size;
	json_t *said;

	while (getline(&line, &size, answers) > 0) {
		if (print)
			fputs(line, stdout);
		said = json_loads(line, 0, NULL);
		if (json_object_get(said, key) || json_object_get(said, "error"))
			return said;
		json_decref(said);
	}
	return NULL;
}

static json_t *command(const char *text, bool print)
{
	return dprintf(monitor, "%s\n", text) < 0 ? NULL : message("return", print);
}

static json_t *human(const char *line)
{
	json_t *text = json_pack("{s:s, s:{s:s}}", "execute", "human-monitor-command",
				 "arguments", "command-line", line), *said;
	char *json = json_dumps(text, 0);

	said = command(json, false);
	puts(json_string_value(json_object_get(said, "return")) ?: "");
	free(json);
	json_decref(text);
	return said;
}

int main(int argc, char **argv)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	const char *slow = getenv("KVMSNAP_SLOW");
	struct timeval limit = { .tv_sec = 60 * (slow ? atoi(slow) : 1) };
	bool hmp = argc > 1 && !strcmp(argv[1], "-h");
	int at = 1 + hmp;
	json_t *said;

	if (argc < at + 2 || strlen(argv[at]) >= sizeof(address.sun_path)) {
		fprintf(stderr, "usage: qmp [-h] SOCKET COMMAND...\n");
		return 2;
	}
	strcpy(address.sun_path, argv[at]);
	monitor = socket(AF_UNIX, SOCK_STREAM, 0);
	setsockopt(monitor, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	if (connect(monitor, (struct sockaddr *)&address, sizeof(address)) < 0) {
		perror(argv[at]);
		return 1;
	}
	answers = fdopen(monitor, "r");
	said = answers ? message("QMP", false) : NULL;
	if (said) {
		json_decref(said);
		said = command("{\"execute\":\"qmp_capabilities\"}", false);
	}
	while (said && ++at < argc) {
		json_decref(said);
		said = hmp ? human(argv[at]) : command(argv[at], true);
	}
	if (!said) {
		fprintf(stderr, "qmp: no answer\n");
		return 1;
	}
	json_decref(said);
	return 0;
}
