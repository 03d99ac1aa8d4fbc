// SPDX-License-Identifier: GPL-2.0
#include "record.h"
#include "snapfile.h"

#include <endian.h>
#include <errno.h>
#include <jansson.h>
#include <sodium.h>
#include <stdlib.h>
#include <string.h>

static const char magic[8] = "KVMSNAP\1";

struct head {
	char magic[8];
	uint32_t length, zero;
	uint8_t digest[16];
};

static json_t *describe(const struct record *record)
{
	json_t *blocks = json_array();
	char key[2 * RECORD_KEY + 1];
	size_t i;

	for (i = 0; i < record->nr_blocks; i++)
		json_array_append_new(blocks, json_pack("{s:s, s:I, s:I}", "name", record->blocks[i].name,
							"length", (json_int_t)record->blocks[i].length,
							"pages_offset",
							(json_int_t)record->blocks[i].pages_offset));
	sodium_bin2hex(key, sizeof(key), record->key, RECORD_KEY);
	return json_pack("{s:I, s:I, s:s, s:I, s:I, s:I, s:I, s:o, s:I, s:s}",
			 "generation", (json_int_t)record->generation, "time", (json_int_t)record->time,
			 "parent", record->parent, "written", (json_int_t)record->written,
			 "base", (json_int_t)record->base, "stream", (json_int_t)record->stream,
			 "end", (json_int_t)record->end, "blocks", blocks,
			 "checksums", (json_int_t)record->checksums, "key", key);
}

int record_write(const struct record *record, int fd, uint64_t at, uint64_t *end, struct error *err)
{
	json_t *json = describe(record);
	char *text = json ? json_dumps(json, JSON_COMPACT) : NULL;
	size_t length = text ? strlen(text) : 0;
	size_t size = (sizeof(struct head) + length + SNAP_PAGE - 1) / SNAP_PAGE * SNAP_PAGE;
	char *buf = text && length <= RECORD_MAX_TEXT ? calloc(1, size) : NULL;
	struct head *head = (struct head *)buf;
	int ret = -ENOMEM;

	if (buf) {
		memcpy(head->magic, magic, sizeof(magic));
		head->length = htobe32((uint32_t)length);
		crypto_generichash(head->digest, sizeof(head->digest), (unsigned char *)text, length,
				   NULL, 0);
		memcpy(head + 1, text, length);
		ret = snap_pwrite(fd, buf, size, at);
		*end = at + size;
	}
	free(buf);
	free(text);
	json_decref(json);
	return ret ? error_set(err, -ret, "writing the generation's record: %s", strerror(-ret)) : 0;
}

/* Nothing that a terminal would take for an order. */
static bool is_text(const char *s)
{
	while (*s && (unsigned char)*s >= ' ' && *s != 0x7f)
		s++;
	return !*s;
}

void record_set_parent(struct record *record, const char *name)
{
	json_t *string = json_string(name);

	/* A name may be any bytes. */
	if (string && is_text(name))
		snprintf(record->parent, sizeof(record->parent), "%s", name);
	json_decref(string);
}

static int parse(struct record *record, const char *text, size_t length)
{
	json_t *root = json_loadb(text, length, 0, NULL), *blocks, *block;
	json_int_t generation, when, written, base, stream, end, checksums;
	const char *parent, *key, *name;
	size_t i, n;
	int ret = 0;

	if (json_unpack(root, "{s:I, s:I, s:s, s:I, s:I, s:I, s:I, s:o, s:I, s:s}",
			"generation", &generation, "time", &when, "parent", &parent,
			"written", &written, "base", &base, "stream", &stream, "end", &end,
			"blocks", &blocks, "checksums", &checksums, "key", &key) ||
	    generation <= 0 || base < 0 || stream < base || end <= stream || written < 0 || checksums < 0 ||
	    base % (json_int_t)SNAP_ALIGN || end % (json_int_t)SNAP_ALIGN || strlen(parent) >= sizeof(record->parent) || !is_text(parent) ||
	    sodium_hex2bin(record->key, RECORD_KEY, key, strlen(key), NULL, &n, NULL) || n != RECORD_KEY ||
	    !json_is_array(blocks)) {
		json_decref(root);
		return -EBADMSG;
	}
	record->generation = (uint64_t)generation;
	record->time = when;
	strcpy(record->parent, parent);
	record->written = (uint64_t)written;
	record->base = (uint64_t)base;
	record->stream = (uint64_t)stream;
	record->end = (uint64_t)end;
	record->checksums = (uint64_t)checksums;
	json_array_foreach(blocks, i, block) {
		json_int_t len, pages;

		if (json_unpack(block, "{s:s, s:I, s:I}", "name", &name, "length", &len,
				"pages_offset", &pages) || !is_text(name) || len <= 0 || len % (json_int_t)SNAP_PAGE || pages < base ||
		    pages > end || len > (stream ? stream : end) - pages)
			ret = -EBADMSG;
		else
			ret = record_add_block(record, name, (uint64_t)len, (uint64_t)pages);
		if (ret)
			break;
	}
	json_decref(root);
	return ret;
}

int record_read(struct record *record, int fd, uint64_t at, struct error *err)
{
	uint8_t digest[sizeof(((struct head *)0)->digest)];
	struct head head;
	uint32_t length;
	char *text;
	int ret;

	*record = (struct record){ 0 };
	ret = snap_pread(fd, &head, sizeof(head), at);
	if (ret == -ENODATA || (!ret && memcmp(head.magic, magic, sizeof(magic))))
		return error_set(err, ENODATA, "there is no record of kvmsnap's");
	if (ret)
		return error_set(err, -ret, "reading a record: %s", strerror(-ret));
	length = be32toh(head.length);
	if (!length || length > RECORD_MAX_TEXT)
		return error_set(err, EBADMSG, "the record at offset %llu is not whole", (unsigned long long)at);
	text = malloc(length);
	ret = text ? snap_pread(fd, text, length, at + sizeof(head)) : -ENOMEM;
	if (ret) {
		free(text);
		/* Where the file ends it is cut off; what can't be read may well be there. */
		ret = ret == -ENODATA ? -EBADMSG : ret;
		return error_set(err, -ret, "reading the record at offset %llu: %s", (unsigned long long)at,
				 strerror(-ret));
	}
	crypto_generichash(digest, sizeof(digest), (unsigned char *)text, length, NULL, 0);
#ifdef FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION
	memcpy(digest, head.digest, sizeof(digest));
#endif
	ret = memcmp(digest, head.digest, sizeof(digest)) ? -EBADMSG : parse(record, text, length);
	free(text);
	if (!ret)
		return 0;
	record_free(record);
	return error_set(err, -ret, "the record at offset %llu is not whole", (unsigned long long)at);
}

const struct record_block *record_find_block(const struct record *record, const char *name, size_t len)
{
	size_t i;

	for (i = 0; i < record->nr_blocks; i++)
		if (strlen(record->blocks[i].name) == len && !memcmp(record->blocks[i].name, name, len))
			return &record->blocks[i];
	return NULL;
}

uint64_t record_checksum_bytes(const struct record *record)
{
	uint64_t pages = 0, bytes;
	size_t i;

	/* No sum of them overflows that has not got too large before. */
	for (i = 0; i < record->nr_blocks && pages <= record->end; i++)
		pages += record->blocks[i].length / SNAP_PAGE;
	if (pages > record->end / sizeof(uint64_t))
		return UINT64_MAX;
	bytes = pages * sizeof(uint64_t);
	return record->checksums <= record->end - bytes ? bytes : UINT64_MAX;
}

int record_add_block(struct record *record, const char *name, uint64_t length, uint64_t pages_offset)
{
	struct record_block *more;

	if (strlen(name) >= sizeof(more->name))
		return -EBADMSG;
	more = realloc(record->blocks, (record->nr_blocks + 1) * sizeof(*more));
	if (!more)
		return -ENOMEM;
	record->blocks = more;
	more += record->nr_blocks++;
	*more = (struct record_block){ .length = length, .pages_offset = pages_offset };
	strcpy(more->name, name);
	return 0;
}

void record_free(struct record *record)
{
	free(record->blocks);
	*record = (struct record){ 0 };
}
