# SPDX-License-Identifier: MIT
# Builds the native programs from the top-level directory, included by its Makefile or by `make -f` alone.
#
#   make -f kecho/native/native.mk                           build/user-echo-server build/bench
#   make -f kecho/native/native.mk BUILD=build/asan SAN=1    the same with address and UB sanitizers

BUILD      ?= build
CC         ?= cc
PKG_CONFIG ?= pkg-config
NATIVE_DIR := kecho/native
NATIVE_OBJ := $(BUILD)/native

NATIVE_PROGRAMS := $(BUILD)/user-echo-server $(BUILD)/bench

NATIVE_CFLAGS  := -std=gnu11 -O2 -g -Wall -Wextra -Wconversion -Wshadow -D_GNU_SOURCE -pthread \
	-I$(NATIVE_DIR) -I.
NATIVE_LDFLAGS := -pthread
ifeq ($(SAN),1)
NATIVE_CFLAGS  += -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer
NATIVE_LDFLAGS += -fsanitize=address,undefined
endif

# A program is made of all sources in its folder and in common/.
native_objects = $(patsubst $(NATIVE_DIR)/%.c,$(NATIVE_OBJ)/%.o,$(wildcard $(NATIVE_DIR)/$(1)/*.c $(NATIVE_DIR)/common/*.c))
NATIVE_SERVER_OBJECTS = $(filter-out $(NATIVE_WITHOUT),$(call native_objects,server))
NATIVE_BENCH_OBJECTS  = $(call native_objects,bench)

# Without liburing, `user-echo-server --engine io_uring` says so.
ifeq ($(shell $(PKG_CONFIG) --exists liburing 2>/dev/null && echo yes),yes)
NATIVE_CFLAGS      += -DHAVE_LIBURING $(shell $(PKG_CONFIG) --cflags liburing)
NATIVE_SERVER_LIBS := $(shell $(PKG_CONFIG) --libs liburing)
else
NATIVE_WITHOUT := $(NATIVE_OBJ)/server/uring-conn.o $(NATIVE_OBJ)/server/uring-buffer.o
endif

# Without zlib, `bench --hdr` says so.
ifeq ($(shell $(PKG_CONFIG) --exists zlib 2>/dev/null && echo yes),yes)
NATIVE_CFLAGS     += -DHAVE_ZLIB $(shell $(PKG_CONFIG) --cflags zlib)
NATIVE_BENCH_LIBS := $(shell $(PKG_CONFIG) --libs zlib)
endif

.PHONY: native native-clean native-flags
native: $(NATIVE_PROGRAMS)

# Touched when compiler or flags change, as they do when liburing is installed.
$(NATIVE_OBJ)/flags: native-flags
	@mkdir -p $(@D)
	@echo '$(CC) $(CFLAGS) $(NATIVE_CFLAGS)' | cmp -s - $@ || echo '$(CC) $(CFLAGS) $(NATIVE_CFLAGS)' >$@

$(BUILD)/user-echo-server: $(NATIVE_SERVER_OBJECTS)
	$(CC) $(NATIVE_LDFLAGS) $(LDFLAGS) -o $@ $^ $(NATIVE_SERVER_LIBS)

$(BUILD)/bench: $(NATIVE_BENCH_OBJECTS)
	$(CC) $(NATIVE_LDFLAGS) $(LDFLAGS) -o $@ $^ -lm $(NATIVE_BENCH_LIBS)

$(NATIVE_OBJ)/%.o: $(NATIVE_DIR)/%.c $(NATIVE_OBJ)/flags
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(NATIVE_CFLAGS) -MMD -MP -c -o $@ $<

native-clean:
	rm -rf $(NATIVE_PROGRAMS) $(NATIVE_OBJ)

-include $(wildcard $(NATIVE_OBJ)/*/*.d)
