# The tests with client programs. The top-level Makefile includes this.

build/sweep: $(wildcard tests/clients/sweep*.c) tests/clients/sweep.h
	@mkdir -p $(@D)
	$(CC) -std=gnu11 -O2 -Wall -Wextra -Werror -D_GNU_SOURCE -pthread -o $@ $(filter %.c,$^)

# The client programs to build: those that this machine has a compiler for.
CLIENTS := build/clients/epoll build/clients/uring $(if $(shell command -v go),build/clients/copy) \
	$(if $(shell command -v javac),build/clients/Sockets.class)

.PHONY: clients check-clients
clients: $(CLIENTS)

build/clients/uring: LDLIBS += -luring
build/clients/epoll build/clients/uring: build/clients/%: tests/clients/programs/%.c tests/clients/programs/file.h
	@mkdir -p $(@D)
	$(CC) -std=gnu11 -O2 -Wall -Wextra -Werror -D_GNU_SOURCE -o $@ $< $(LDLIBS)

build/clients/copy: tests/clients/programs/copy.go
	@mkdir -p $(@D)
	GOCACHE=$(abspath $(@D))/go go build -o $@ $<

build/clients/Sockets.class: tests/clients/programs/Sockets.java
	@mkdir -p $(@D)
	javac -d $(@D) $<

# The module's part runs in a virtual machine. With VM=no the table has no column for it.
check-clients: ## run client programs on every path, and write their table in docs/testing.md; needs root [VM=no]
	$(call need,build test clients $(if $(filter no,$(VM)),,vm))
	@scripts/keep-owner $(MAKE) -s build clients $(if $(filter no,$(VM)),,vm-build)
	@scripts/keep-owner $(VENV)/python tests/clients/table $(if $(filter no,$(VM)),,--module)
