/* SPDX-License-Identifier: MIT */
/* bench's messages: their bytes depend on connection and number, and are verified by memcmp(). */
#ifndef KECHO_NATIVE_PAYLOAD_H
#define KECHO_NATIVE_PAYLOAD_H

#include <stdint.h>
#include <string.h>

/*
 * A message is a part of one random template, at an offset that depends on connection and number. A
 * stamp replaces its first eight bytes: connection and number, scrambled by the seed. The stamp is
 * unique. The offset makes the other bytes differ as well, so that a piece of another message is
 * noticed anywhere. A message of less than eight bytes is the beginning of its stamp, which differs
 * between neighbouring messages and connections.
 *
 * Opening a message writes its stamp into the template, closing it restores the template. One
 * message can be open at a time.
 */
#define PAYLOAD_WINDOW	       4096u /* number of offsets, a power of two */
#define PAYLOAD_TEMPLATE(size) ((size) + PAYLOAD_WINDOW + sizeof(uint64_t))

/* Each thread has one. */
struct payload {
	unsigned char *template; /* PAYLOAD_TEMPLATE(message size) bytes, owned by the caller */
	uint64_t key;
	unsigned char *open; /* the open message */
	uint64_t covered;    /* the bytes of the template under the stamp */
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
