/* SPDX-License-Identifier: MIT */
/* What bench sends: bytes unique to connection and message, compared at memcmp's speed. */
#ifndef KECHO_NATIVE_PAYLOAD_H
#define KECHO_NATIVE_PAYLOAD_H

#include <stdint.h>
#include <string.h>

/*
 * A message is a stretch of one random template, at an offset that depends on the connection and
 * the message, with a stamp in place of its first eight bytes: connection and number, scrambled by
 * the seed. The stamp is unique; the offset makes the rest differ too, so that a piece of another
 * message is found wherever it turns up. Below eight bytes the first bytes of the stamp are the
 * message: they differ between neighbouring messages and connections.
 *
 * The stamp is written into the template and taken out again: open, use, close, nothing else in
 * between.
 */
#define PAYLOAD_WINDOW	       4096u /* offsets there are; a power of two */
#define PAYLOAD_TEMPLATE(size) ((size) + PAYLOAD_WINDOW + sizeof(uint64_t))

/* One a thread. */
struct payload {
	unsigned char *template; /* PAYLOAD_TEMPLATE(message size) bytes, owned by who made it */
	uint64_t key;
	unsigned char *open; /* the message that is open */
	uint64_t covered;    /* what the stamp covers */
};

static inline uint64_t payload_random(uint64_t *state)
{
	uint64_t x = *state; /* xorshift64; not 0 */

	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	return *state = x;
}

static inline void payload_init(struct payload *p, unsigned char *template, size_t size,
				uint64_t seed)
{
	uint64_t state = (seed + 1) * 0x9e3779b97f4a7c15ull | 1;

	p->template = template;
	p->key = payload_random(&state);
	for (size_t i = 0; i < PAYLOAD_TEMPLATE(size); i++)
		template[i] = (unsigned char)(payload_random(&state) >> 32);
}

/* conn < 2^24, message < 2^40. */
static inline const unsigned char *payload_open(struct payload *p, uint32_t conn, uint64_t message)
{
	uint64_t id = (uint64_t)conn << 40 | ((message + conn) & 0xffffffffffull);
	uint64_t offset = (id * 0x9e3779b97f4a7c15ull) >> 52;

	id ^= p->key;
	p->open = p->template + offset;
	memcpy(&p->covered, p->open, sizeof(p->covered));
	memcpy(p->open, &id, sizeof(id));
	return p->open;
}

static inline void payload_close(struct payload *p)
{
	memcpy(p->open, &p->covered, sizeof(p->covered));
}

#endif
