/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/*
 * The tracepoint fastecho:fastecho_echo, the module's only statistics interface.
 *
 * path is one of enum fastecho_path.
 *
 * One event is one echo: a pass over a connection's receive queue that moved at least one byte to
 * the send queue. A message that arrives in one piece on an idle connection is one pass, so N round
 * trips are N events. In a stream the bytes of all events add up to the bytes sent.
 *
 * ns is the time from data_ready, the first notice of the data, to the return of
 * tcp_sendmsg_locked(). Data that a pass leaves (its budget spent, the send buffer full) counts
 * from the last data_ready before that pass. Data that came before the tracepoint was enabled, or
 * before accept(), counts from the start of the pass. The clock is ktime_get_ns(), CLOCK_MONOTONIC,
 * as for bpf_ktime_get_ns(). It is read only while the tracepoint is enabled.
 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM fastecho

#if !defined(FASTECHO_TRACE_H) || defined(TRACE_HEADER_MULTI_READ)
#define FASTECHO_TRACE_H

#include <linux/tracepoint.h>
#include "echo.h"

#define FASTECHO_PATH_DEFINE(id, name) TRACE_DEFINE_ENUM(FASTECHO_PATH_##id);
/* Releases of clang-format disagree about the braces of such macros. */
/* clang-format off */
#define FASTECHO_PATH_LAST_PAIR(id, name)                                                          \
	{                                                                                          \
		FASTECHO_PATH_##id, name                                                           \
	}
/* clang-format on */
#define FASTECHO_PATH_PAIR(id, name) FASTECHO_PATH_LAST_PAIR(id, name),

FASTECHO_PATHS(FASTECHO_PATH_DEFINE, FASTECHO_PATH_DEFINE)

/* clang-format off: TRACE_EVENT() has its own layout. */
TRACE_EVENT(fastecho_echo, TP_PROTO(u32 path, u32 bytes, u64 ns), TP_ARGS(path, bytes, ns),
	    TP_STRUCT__entry(__field(u32, path) __field(u32, bytes) __field(u64, ns)),
	    TP_fast_assign(__entry->path = path; __entry->bytes = bytes; __entry->ns = ns;),
	    TP_printk("path=%s bytes=%u ns=%llu",
		      __print_symbolic(__entry->path,
				       FASTECHO_PATHS(FASTECHO_PATH_PAIR, FASTECHO_PATH_LAST_PAIR)),
		      __entry->bytes, __entry->ns));
/* clang-format on */

#endif

#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH .
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE trace
#include <trace/define_trace.h>
