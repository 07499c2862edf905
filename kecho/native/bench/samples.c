// SPDX-License-Identifier: MIT
// Keeps and writes raw latency samples.
#include "samples.h"

#include <endian.h>
#include <stdlib.h>

bool samples_grow(struct samples *s)
{
	size_t room = s->room ? 2 * s->room : 1 << 16;
	uint64_t *values = realloc(s->values, room * sizeof(*values));

	if (!values)
		return false;
	s->values = values;
	s->room = room;
	return true;
}

static int compare(const void *a, const void *b)
{
	const uint64_t *x = a, *y = b;

	return (*x > *y) - (*x < *y);
}

void samples_sort(struct samples *s)
{
	if (s->count)
		qsort(s->values, s->count, sizeof(*s->values), compare);
}

void samples_free(struct samples *s)
{
	free(s->values);
	*s = (struct samples){0};
}

bool samples_write(const struct samples *s, FILE *file)
{
	for (size_t i = 0; i < s->count; i++) {
		uint64_t value = htole64(s->values[i]);

		if (fwrite(&value, sizeof(value), 1, file) != 1)
			return false;
	}
	return true;
}
