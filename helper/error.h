/* SPDX-License-Identifier: GPL-2.0 */
/* Errors of the helper: a negative errno for the program, a line for the person. */
#ifndef ERROR_H
#define ERROR_H

struct error {
	char text[1024];	/* what failed: why; what to do next */
};

/* Write the line and return -code, which is negative. */
int error_set(struct error *err, int code, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

#endif
