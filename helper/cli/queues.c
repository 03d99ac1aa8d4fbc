// SPDX-License-Identifier: GPL-2.0
#include "queues.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* In the names of sections; other devices' state has clocks in it, which go on. */
static const char *const kinds[] = { "virtio", "xhci", "ehci", "uhci", "ohci", "vmxnet3", "pvscsi" };

static bool has_queues(const char *name)
{
	size_t i;

	for (i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++)
		if (strstr(name, kinds[i]))
			return true;
	return false;
}

int queues_read(struct queues *queues, int devices, struct error *err)
{
	struct snapfile *sections = &queues->sections;
	struct error inner;
	size_t i;
	int ret;

	*queues = (struct queues){ .offset = (uint64_t)lseek(devices, 0, SEEK_CUR) };
	ret = snap_parse_devices(sections, devices, queues->offset, &inner);
	/* A guest can have its devices' state look like anything; what it loses by that is its own. */
	if (ret)
		return ret == -EBADMSG ? 0 : error_set(err, -ret, "%s", inner.text);
	queues->length = sections->size - queues->offset;
	queues->data = malloc((size_t)queues->length);
	ret = queues->data ? snap_pread(devices, queues->data, (size_t)queues->length, queues->offset) : -ENOMEM;
	for (i = 0; i < sections->nr_devices && !ret; i++)
		queues->nr += has_queues(sections->devices[i].name);
	if (ret)
		queues_free(queues);
	return ret ? error_set(err, -ret, "reading device state: %s", strerror(-ret)) : 0;
}

static bool same(const struct queues *before, const struct queues *after, size_t i)
{
	const struct snap_device *a = &before->sections.devices[i], *b = &after->sections.devices[i];

	return a->length == b->length && !strcmp(a->name, b->name) &&
	       !memcmp(before->data + (a->offset - before->offset), after->data + (b->offset - after->offset),
		       (size_t)a->length);
}

const char *queues_used(const struct queues *before, const struct queues *after)
{
	const struct snapfile *sections = &before->sections;
	size_t i;

	for (i = 0; i < sections->nr_devices; i++)
		if (has_queues(sections->devices[i].name) &&
		    (i >= after->sections.nr_devices || !same(before, after, i)))
			return sections->devices[i].name;
	return NULL;
}

int queues_put_back(const struct queues *queues, int devices, struct error *err)
{
	int ret = snap_pwrite(devices, queues->data, (size_t)queues->length, queues->offset);

	if (!ret && ftruncate(devices, (off_t)(queues->offset + queues->length)) < 0)
		ret = -errno;
	return ret ? error_set(err, -ret, "device state: %s", strerror(-ret)) : 0;
}

void queues_free(struct queues *queues)
{
	snap_free(&queues->sections);
	free(queues->data);
	*queues = (struct queues){ 0 };
}
