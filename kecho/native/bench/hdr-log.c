// SPDX-License-Identifier: MIT
// The HdrHistogram log format, version 1.3, around the V2 compressed encoding.
#include "hdr-log.h"

#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#ifdef HAVE_ZLIB
#include <zlib.h>

/* Encoding V2, from HdrHistogram's AbstractHistogram.java. 0x10: independent of the word size. */
#define COOKIE_V2	     (0x1c849303 | 0x10)
#define COOKIE_V2_COMPRESSED (0x1c849304 | 0x10)
#define VARINT_MAX_BYTES     9

/* All big-endian. */
struct payload_header {
	uint32_t cookie;
	uint32_t payload_bytes;
	uint32_t normalizing_offset;
	uint32_t digits;
	uint64_t lowest;
	uint64_t highest;
	uint64_t conversion_ratio; /* the bits of the double 1.0 */
};

struct compressed_header {
	uint32_t cookie;
	uint32_t bytes;
};

static uint64_t zigzag(int64_t value)
{
	return (uint64_t)value << 1 ^ (value < 0 ? UINT64_MAX : 0);
}

/* LEB128, except that the ninth byte holds eight bits. */
static size_t varint_put(unsigned char *at, uint64_t value)
{
	size_t n = 0;

	for (; value >= 0x80 && n < VARINT_MAX_BYTES - 1; value >>= 7)
		at[n++] = (unsigned char)(value | 0x80);
	at[n++] = (unsigned char)value;
	return n;
}

/* Writes the counts up to the last non-zero one; a run of n zeros is written as -n. */
static size_t counts_put(unsigned char *at, const struct histogram *h)
{
	unsigned int slots = h->total ? histogram_slot(h->max) + 1 : 0;
	size_t n = 0;

	for (unsigned int slot = 0; slot < slots;) {
		unsigned int zeros = 0;

		while (slot + zeros < slots && !h->counts[slot + zeros])
			zeros++;
		if (zeros)
			n += varint_put(at + n, zigzag(-(int64_t)zeros));
		else
			n += varint_put(at + n, zigzag((int64_t)h->counts[slot]));
		slot += zeros ? zeros : 1;
	}
	return n;
}

static size_t payload_put(unsigned char *at, const struct histogram *h)
{
	size_t bytes = counts_put(at + sizeof(struct payload_header), h);
	struct payload_header header = {
		.cookie = htobe32(COOKIE_V2),
		.payload_bytes = htobe32((uint32_t)bytes),
		.digits = htobe32(HISTOGRAM_DIGITS),
		.lowest = htobe64(1),
		.highest = htobe64(HISTOGRAM_HIGHEST),
		.conversion_ratio = htobe64(0x3ff0000000000000ull),
	};

	memcpy(at, &header, sizeof(header));
	return sizeof(header) + bytes;
}

static void base64_print(const unsigned char *data, size_t n, FILE *file)
{
	static const char digits[] =
		"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

	for (size_t i = 0; i < n; i += 3) {
		uint32_t bits = (uint32_t)data[i] << 16;

		if (i + 1 < n)
			bits |= (uint32_t)data[i + 1] << 8;
		if (i + 2 < n)
			bits |= data[i + 2];
		fputc(digits[bits >> 18], file);
		fputc(digits[bits >> 12 & 63], file);
		fputc(i + 1 < n ? digits[bits >> 6 & 63] : '=', file);
		fputc(i + 2 < n ? digits[bits & 63] : '=', file);
	}
}

const char *hdr_log_unavailable(void)
{
	return NULL;
}

bool hdr_log_write(const struct histogram *h, double start_s, double length_s, FILE *file)
{
	size_t most = sizeof(struct payload_header) + HISTOGRAM_SLOTS * VARINT_MAX_BYTES;
	uLongf compressed_bytes = compressBound(most);
	struct compressed_header header = {.cookie = htobe32(COOKIE_V2_COMPRESSED)};
	unsigned char *payload = malloc(most);
	unsigned char *compressed = malloc(sizeof(header) + compressed_bytes);

	if (!payload || !compressed ||
	    compress(compressed + sizeof(header), &compressed_bytes, payload,
		     payload_put(payload, h)) != Z_OK) {
		free(payload);
		free(compressed);
		errno = ENOMEM;
		return false;
	}
	header.bytes = htobe32((uint32_t)compressed_bytes);
	memcpy(compressed, &header, sizeof(header));

	fprintf(file, "#[Logged with kecho bench; values in nanoseconds, Interval_Max in ms]\n"
		      "#[Histogram log format version 1.3]\n");
	fprintf(file, "#[StartTime: %.3f (seconds since epoch)]\n", start_s);
	fprintf(file, "\"StartTimestamp\",\"Interval_Length\",\"Interval_Max\","
		      "\"Interval_Compressed_Histogram\"\n");
	fprintf(file, "0.000,%.3f,%.3f,", length_s, (double)h->max / 1e6);
	base64_print(compressed, sizeof(header) + compressed_bytes, file);
	fputc('\n', file);
	free(payload);
	free(compressed);
	return !ferror(file);
}

#else

const char *hdr_log_unavailable(void)
{
	return "built without zlib";
}

bool hdr_log_write(const struct histogram *h, double start_s, double length_s, FILE *file)
{
	(void)h, (void)start_s, (void)length_s, (void)file;
	errno = ENOSYS;
	return false;
}

#endif
