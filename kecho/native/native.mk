# SPDX-License-Identifier: MIT
# Builds the native programs from the top-level directory, included by its Makefile or by `make -f` alone.
#
#   make -f kecho/native/native.mk                           build/user-echo-server build/bench
#   make -f kecho/native/native.mk BUILD=build/asan SAN=1    the same with address and UB sanitizers

BUILD      ?= build
CC         ?= cc
NATIVE_DIR := kecho/native

NATIVE_PROGRAMS := $(BUILD)/user-echo-server $(BUILD)/bench

NATIVE_CFLAGS  := -std=gnu11 -O2 -g -Wall -Wextra -Wconversion -Wshadow -Werror -D_GNU_SOURCE -pthread
NATIVE_LDFLAGS := -pthread
ifeq ($(SAN),1)
NATIVE_CFLAGS  += -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer
NATIVE_LDFLAGS += -fsanitize=address,undefined
endif

NATIVE_SERVER_OBJECTS := user-echo-server.o server-socket.o engine-epoll.o engine-uring.o args.o
NATIVE_BENCH_OBJECTS  := bench.o bench-run.o bench-conn.o bench-drive.o bench-closed.o bench-burst.o \
	bench-open.o bench-crr.o bench-pipeline.o bench-report.o histogram.o samples.o hdr-log.o args.o

# Without liburing, `user-echo-server --engine io_uring` says so.
ifeq ($(shell pkg-config --exists liburing 2>/dev/null && echo yes),yes)
NATIVE_CFLAGS      += -DHAVE_LIBURING $(shell pkg-config --cflags liburing)
NATIVE_SERVER_LIBS := $(shell pkg-config --libs liburing)
endif

# Without zlib, `bench --hdr` says so.
ifeq ($(shell pkg-config --exists zlib 2>/dev/null && echo yes),yes)
NATIVE_CFLAGS     += -DHAVE_ZLIB $(shell pkg-config --cflags zlib)
NATIVE_BENCH_LIBS := $(shell pkg-config --libs zlib)
endif

NATIVE_OBJ := $(BUILD)/native

.PHONY: native native-clean
native: $(NATIVE_PROGRAMS)

$(BUILD)/user-echo-server: $(addprefix $(NATIVE_OBJ)/,$(NATIVE_SERVER_OBJECTS))
	$(CC) $(NATIVE_LDFLAGS) $(LDFLAGS) -o $@ $^ $(NATIVE_SERVER_LIBS)

$(BUILD)/bench: $(addprefix $(NATIVE_OBJ)/,$(NATIVE_BENCH_OBJECTS))
	$(CC) $(NATIVE_LDFLAGS) $(LDFLAGS) -o $@ $^ -lm $(NATIVE_BENCH_LIBS)

# This makefile is a prerequisite so that a change of flags rebuilds.
$(NATIVE_OBJ)/%.o: $(NATIVE_DIR)/%.c $(NATIVE_DIR)/native.mk
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(NATIVE_CFLAGS) -MMD -MP -c -o $@ $<

native-clean:
	rm -rf $(NATIVE_PROGRAMS) $(NATIVE_OBJ)

-include $(wildcard $(NATIVE_OBJ)/*.d)
