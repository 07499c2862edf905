# SPDX-License-Identifier: MIT
# Builds, tests and installs kecho. `make help` lists the targets.

PREFIX        ?= /usr/local
BUILD         ?= build
CHECK_TIMEOUT ?= 3000
PYTEST_ARGS   ?=
TESTS         ?= tests/unit $(if $(AT_ROOT),$(wildcard tests/host tests/clients))
SUITE         ?= bookworm
HOURS         ?= 1
SOAK_ARGS     ?=

VENV := .venv/bin
AT_ROOT := $(filter 0,$(shell id -u))

# Builds all of the native programs, with every optional library.
NATIVE_DEFINES := -D_GNU_SOURCE -DHAVE_LIBURING -DHAVE_ZLIB

# The package of clang-tidy installs clang, under one of these names. The shell looks for it, since
# make expands all of a recipe before it runs the first line, which installs clang.
CLANG = $$(command -v clang || ls /usr/bin/clang-[0-9][0-9] | tail -n 1)

C_FILES     := $(wildcard bpf/*.[ch] kecho/native/*/*.[ch] kmod/*.[ch] tests/*/*.[ch] tests/*/*/*.[ch])
SHELL_FILES := $(shell grep -lsE '^\#!/bin/(ba)?sh' .ci/run scripts/* tests/vm/run tests/fresh/* tests/uml/*)

.DEFAULT_GOAL := build
.PHONY: build kmod setup setup-vm demo demo-module check check-here check-fresh mutants soak lint fmt plot install man sdist uninstall clean help

include kecho/native/native.mk
include tests/clients/clients.mk tests/vm/vm.mk tests/uml/uml.mk

build: native ## build the C programs, and the module where the running kernel's headers are
	@if scripts/kernels --build $$(uname -r) >/dev/null 2>&1; then \
		$(MAKE) --no-print-directory kmod $(if $(NO_KMOD),|| true); fi

# The kernel's makefiles do not build in a path with a space.
NO_KMOD := $(if $(filter-out 1,$(words $(CURDIR))),make kmod: '$(CURDIR)' has a space in it: the module is built elsewhere only)
kmod: ## build the module [KVER=]
	@$(if $(NO_KMOD),echo "$(NO_KMOD)" >&2; exit 1,$(MAKE) --no-print-directory -C kmod)

# $(call need,GROUPS): installs only what a target needs.
need = @scripts/setup $(1)

setup: ## install what is missing to build, test and lint; needs root only if something is
	$(call need,build test lint)

setup-vm: ## the same, and what the virtual machines need
	$(call need,build test lint vm newest)

demo: ## measure a user-space server against sockmap, mirror and the module; needs root
	$(call need,build)
	@scripts/keep-owner $(MAKE) -s build
	@scripts/keep-owner scripts/demo
	@$(MAKE) --no-print-directory demo-module

demo-module: ## the same in a virtual machine where this one does not load the module; needs root
	@.venv/bin/kecho-ctl doctor | grep -qx 'module: can run' || scripts/setup build vm
	@scripts/keep-owner scripts/demo --module

# A second make builds the programs, because it looks for libraries that `setup` may just have installed.
# As root, unless PYTEST_ARGS or VM=no is given, virtual machines run one after the other beside the tests on this kernel:
# neither keeps two CPUs busy.
CHECK_VM := $(if $(AT_ROOT),$(if $(PYTEST_ARGS)$(filter no,$(VM)),,yes))
check: ## run the tests; without root only those that need none [PYTEST_ARGS= VM=no]
	$(call need,build test $(if $(AT_ROOT),install $(if $(CHECK_VM),vm newest)))
	@scripts/keep-owner $(MAKE) -s build build/stream build/sweep clients $(if $(CHECK_VM),vm-build)
	$(if $(AT_ROOT),,@echo "make check: no root, so only tests/unit; all of it: sudo make check")
	$(if $(CHECK_VM),@echo "make check: tests in virtual machines go on meanwhile; each machine reports when it is done")
	@scripts/keep-owner $(MAKE) -s -k $(if $(CHECK_VM),-j2) check-here $(if $(CHECK_VM),$(VM_SHORT_JOBS))

check-here: ## only the tests on this kernel, with what is installed and built [PYTEST_ARGS= TESTS=]
	@env -u MAKEFLAGS -u MAKELEVEL timeout --foreground -k 10 $(CHECK_TIMEOUT) \
		$(VENV)/python -m pytest $(PYTEST_ARGS) $(TESTS)

check-fresh: ## run README's two commands on a machine that has nothing; needs root [SUITE=bookworm]
	$(call need,fresh)
	@scripts/fresh --suite $(SUITE) tests/fresh/readme

mutants: ## make small faults, and list those that no test notices [FILES=]
	$(call need,build test mutants)
	@scripts/keep-owner $(VENV)/python tests/mutants/run $(FILES)

soak: ## run the property test's engine for HOURS; needs root [HOURS=1 SOAK_ARGS=]
	$(call need,build test)
	@scripts/keep-owner $(MAKE) -s build
	@scripts/keep-owner $(VENV)/python tests/host/soak.py --hours=$(HOURS) $(SOAK_ARGS)

lint: ## check style and types, look for mistakes in C
	$(call need,build lint)
	$(VENV)/ruff check .
	$(VENV)/ruff format --check .
	$(VENV)/mypy
	clang-format --dry-run -Werror $(C_FILES)
	$(MAKE) -s -f kecho/native/native.mk BUILD=$(BUILD)/lint-native CFLAGS=-Werror
	$(MAKE) -s -f kecho/native/native.mk BUILD=$(BUILD)/lint-clang CFLAGS=-Werror CC="$(CLANG)"
	cppcheck --quiet --std=c11 --enable=style,performance,portability --suppress=missingIncludeSystem \
		--suppress=unusedStructMember --suppress=constParameterPointer:kecho/native/bench/drive.c --suppress=normalCheckLevelMaxBranches \
		--error-exitcode=1 -Ikecho/native -I. $(NATIVE_DEFINES) kecho/native
	printf '%s\n' kecho/native/*/*.c | xargs -P $$(nproc) -I{} clang-tidy --quiet {} -- -std=gnu11 -Ikecho/native -I. $(NATIVE_DEFINES) 2>/dev/null
	shellcheck -x $(SHELL_FILES)
	@$(MAKE) -s -C kmod lint

fmt: ## format Python and C
	$(call need,build lint)
	$(VENV)/ruff check --fix-only .
	$(VENV)/ruff format .
	clang-format -i $(C_FILES)

plot: ## draw the last result of kecho-ctl bench
	$(call need,build)
	@test -e results/last.json || { echo "make plot: no result yet; kecho-ctl bench writes one" >&2; exit 1; }
	@$(VENV)/kecho-ctl plot results/last.json -o results/last.png

install: ## install under PREFIX (/usr/local)
	$(call need,build install)
	@scripts/keep-owner scripts/install $(PREFIX)

man: ## make man page and completion, in build/
	$(call need,build install)
	@mkdir -p $(BUILD)
	@for shell in bash fish zsh; do $(VENV)/kecho-ctl --print-completion $$shell >$(BUILD)/kecho-ctl.$$shell || exit; done
	@$(VENV)/python -m kecho.cli.manpage >$(BUILD)/kecho-ctl.1

sdist: man ## make the source distribution, in dist/
	$(call need,build install test)
	@$(VENV)/python -c 'from setuptools import build_meta; print("dist/" + build_meta.build_sdist("dist"))' 2>&1 | tail -n 1

uninstall: ## remove what `make install` installed under PREFIX
	@scripts/install --remove $(PREFIX)

clean: ## remove what was built; .venv and results/ stay
	rm -rf $(BUILD) dist kecho.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / { \
		line = sprintf("  make %-22s", $$1); \
		n = split($$2, words, " "); \
		for (i = 1; i <= n; i++) { \
			if (length(line) + length(words[i]) > 78) { print line; line = sprintf("%29s", "") } \
			line = line " " words[i] \
		} \
		print line \
	}' $(MAKEFILE_LIST)
