# The tests with clients of every kind; the top-level Makefile includes this.

build/sweep: $(wildcard tests/clients/sweep*.c) tests/clients/sweep.h
	@mkdir -p $(@D)
	$(CC) -std=gnu11 -O2 -Wall -Wextra -Werror -D_GNU_SOURCE -pthread -o $@ $(filter %.c,$^)
