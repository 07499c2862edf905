// SPDX-License-Identifier: MIT
// The buffers of the io_uring engine: the shared ring, and copies of data that could not be sent.
#include "uring.h"

#include <stdlib.h>
#include <string.h>

void uring_buffer_put(struct uring_engine *engine, uint16_t id)
{
	io_uring_buf_ring_add(engine->buffer_ring, engine->buffers + (size_t)id * BUFFER_BYTES,
			      BUFFER_BYTES, id, io_uring_buf_ring_mask(BUFFERS),
			      (int)engine->returned++);
	engine->free_buffers++;
}

void uring_queue_push(struct uring_engine *engine, struct conn *conn, uint16_t id)
{
	engine->next_buffer[id] = NO_BUFFER;
	if (conn->first == NO_BUFFER)
		conn->first = id;
	else
		engine->next_buffer[conn->last] = id;
	conn->last = id;
}

/* Returns the first buffer of the queue to the ring. */
void uring_queue_drop(struct uring_engine *engine, struct conn *conn)
{
	uint16_t id = conn->first;

	conn->first = engine->next_buffer[id];
	uring_buffer_put(engine, id);
}

/* Returns all buffers but the one that is being sent. */
void uring_queue_clear(struct uring_engine *engine, struct conn *conn)
{
	uint16_t keep = conn->sending ? conn->first : NO_BUFFER;

	if (keep != NO_BUFFER)
		conn->first = engine->next_buffer[keep];
	while (conn->first != NO_BUFFER)
		uring_queue_drop(engine, conn);
	if (keep != NO_BUFFER)
		uring_queue_push(engine, conn, keep);
}

/* False without memory. */
static bool chunk_put(struct conn *conn, const unsigned char *data, uint32_t bytes)
{
	struct chunk *chunk = malloc(sizeof(*chunk) + bytes);

	if (!chunk)
		return false;
	*chunk = (struct chunk){.bytes = bytes};
	memcpy(chunk->data, data, bytes);
	*conn->last_chunk = chunk;
	conn->last_chunk = &chunk->next;
	return true;
}

void uring_chunk_drop(struct conn *conn)
{
	struct chunk *chunk = conn->chunks;

	conn->chunks = chunk->next;
	if (!conn->chunks)
		conn->last_chunk = &conn->chunks;
	free(chunk);
}

/* Copies what is queued, but for the first `sent` bytes, and returns the buffers. */
bool uring_queue_to_chunks(struct uring_engine *engine, struct conn *conn, uint32_t sent)
{
	for (; conn->first != NO_BUFFER; sent = 0) {
		uint16_t id = conn->first;

		if (!chunk_put(conn, engine->buffers + (size_t)id * BUFFER_BYTES + sent,
			       engine->buffer_bytes[id] - sent))
			return false;
		uring_queue_drop(engine, conn);
	}
	return true;
}
