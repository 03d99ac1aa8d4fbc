/* SPDX-License-Identifier: GPL-2.0 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM kvmsnap

#if !defined(KVMSNAP_TRACE_H) || defined(TRACE_HEADER_MULTI_READ)
#define KVMSNAP_TRACE_H

#include <linux/tracepoint.h>

/* A pass begins: @pages is what it is over, @compare whether it leaves out what is the same. */
TRACE_EVENT(kvmsnap_pass_begin,
	TP_PROTO(u32 session, u64 pass, u32 kind, bool compare, u64 pages),
	TP_ARGS(session, pass, kind, compare, pages),
	TP_STRUCT__entry(
		__field(u32, session)
		__field(u32, kind)
		__field(bool, compare)
		__field(u64, pass)
		__field(u64, pages)
	),
	TP_fast_assign(
		__entry->session = session;
		__entry->pass = pass;
		__entry->kind = kind;
		__entry->compare = compare;
		__entry->pages = pages;
	),
	TP_printk("session=%u pass=%llu kind=%u compare=%d pages=%llu",
		  __entry->session, __entry->pass, __entry->kind, __entry->compare,
		  __entry->pages)
);

/* How far the save is, as its owner tells: enum kvmsnap_phase. */
TRACE_EVENT(kvmsnap_phase,
	TP_PROTO(u32 session, u32 phase, u64 pause_ns),
	TP_ARGS(session, phase, pause_ns),
	TP_STRUCT__entry(
		__field(u32, session)
		__field(u32, phase)
		__field(u64, pause_ns)
	),
	TP_fast_assign(
		__entry->session = session;
		__entry->phase = phase;
		__entry->pause_ns = pause_ns;
	),
	TP_printk("session=%u phase=%s pause_ns=%llu", __entry->session,
		  __print_symbolic(__entry->phase, { 1, "live" }, { 2, "stopped" },
				   { 3, "resumed" }, { 4, "done" }, { 5, "failed" }),
		  __entry->pause_ns)
);

/* A pass is over, with nothing in flight. */
TRACE_EVENT(kvmsnap_pass_end,
	TP_PROTO(u32 session, u64 pass, int error, u64 bytes, u64 ns),
	TP_ARGS(session, pass, error, bytes, ns),
	TP_STRUCT__entry(
		__field(u32, session)
		__field(int, error)
		__field(u64, pass)
		__field(u64, bytes)
		__field(u64, ns)
	),
	TP_fast_assign(
		__entry->session = session;
		__entry->pass = pass;
		__entry->error = error;
		__entry->bytes = bytes;
		__entry->ns = ns;
	),
	TP_printk("session=%u pass=%llu error=%d bytes=%llu ns=%llu",
		  __entry->session, __entry->pass, __entry->error, __entry->bytes, __entry->ns)
);

/* A write is handed to the target. @segments counts physically contiguous pieces. */
TRACE_EVENT(kvmsnap_write_submit,
	TP_PROTO(u32 session, u64 offset, u32 bytes, u32 segments),
	TP_ARGS(session, offset, bytes, segments),
	TP_STRUCT__entry(
		__field(u32, session)
		__field(u32, bytes)
		__field(u64, offset)
		__field(u32, segments)
	),
	TP_fast_assign(
		__entry->session = session;
		__entry->offset = offset;
		__entry->bytes = bytes;
		__entry->segments = segments;
	),
	TP_printk("session=%u offset=%llu bytes=%u segments=%u",
		  __entry->session, __entry->offset, __entry->bytes, __entry->segments)
);

/* A write is complete: @result is bytes or a negative errno, @ns since its submission. */
TRACE_EVENT(kvmsnap_write_complete,
	TP_PROTO(u32 session, u64 offset, u32 bytes, long result, u64 ns),
	TP_ARGS(session, offset, bytes, result, ns),
	TP_STRUCT__entry(
		__field(u32, session)
		__field(u32, bytes)
		__field(u64, offset)
		__field(long, result)
		__field(u64, ns)
	),
	TP_fast_assign(
		__entry->session = session;
		__entry->offset = offset;
		__entry->bytes = bytes;
		__entry->result = result;
		__entry->ns = ns;
	),
	TP_printk("session=%u offset=%llu bytes=%u result=%ld ns=%llu",
		  __entry->session, __entry->offset, __entry->bytes, __entry->result, __entry->ns)
);

/*
 * Dirty rings were emptied: @entries taken; @all: memslots changed, all pages are dirty;
 * @broken: somebody else harvested; @dirty: pages in the set.
 */
TRACE_EVENT(kvmsnap_harvest,
	TP_PROTO(u32 session, u32 entries, bool all, bool broken, u64 dirty),
	TP_ARGS(session, entries, all, broken, dirty),
	TP_STRUCT__entry(
		__field(u32, session)
		__field(u32, entries)
		__field(u64, dirty)
		__field(bool, all)
		__field(bool, broken)
	),
	TP_fast_assign(
		__entry->session = session;
		__entry->entries = entries;
		__entry->dirty = dirty;
		__entry->all = all;
		__entry->broken = broken;
	),
	TP_printk("session=%u entries=%u all=%d broken=%d dirty=%llu",
		  __entry->session, __entry->entries, __entry->all, __entry->broken,
		  __entry->dirty)
);

/* A pass has all it is to write in kernel memory: @pages, of them on the stage; @ns since its start. */
TRACE_EVENT(kvmsnap_staged,
	TP_PROTO(u32 session, u64 pass, u64 pages, u64 ns),
	TP_ARGS(session, pass, pages, ns),
	TP_STRUCT__entry(
		__field(u32, session)
		__field(u64, pass)
		__field(u64, pages)
		__field(u64, ns)
	),
	TP_fast_assign(
		__entry->session = session;
		__entry->pass = pass;
		__entry->pages = pages;
		__entry->ns = ns;
	),
	TP_printk("session=%u pass=%llu pages=%llu ns=%llu",
		  __entry->session, __entry->pass, __entry->pages, __entry->ns)
);

#endif

#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH .
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE trace
#include <trace/define_trace.h>
