# The tests in virtual machines. The top-level Makefile includes this. KVER= chooses the kernel, like scripts/vm --kver.

KVER       ?= own
VM_KVER     = $(shell scripts/kernels --version $(KVER))
VM_TIMEOUT ?= 3600
VM_TOOLS   := build/pingpong build/floors build/stream
vpath %.c tests/vm tests/host
VM_ARGS    ?=

# slab_nomerge gives each cache its own objects, so that destroying a cache reports a leak.
VM_BOOT = scripts/vm --kver $(VM_KVER) --append slab_nomerge --timeout $(VM_TIMEOUT)

# The longest first, because two jobs run at a time; the tests on this kernel may be one of them.
VM_SHORT_JOBS = vm-short-own vm-short-newest vm-short-mode

.PHONY: check-vm check-vm-behaviour check-vm-instructions bench-instructions vm-build $(VM_SHORT_JOBS)

check-vm: check-vm-behaviour check-vm-instructions ## run tests/vm on a stock kernel in a virtual machine [KVER=]

check-vm-behaviour: vm-build
	$(VM_BOOT) 'tests/vm/run -m "not instructions" $(VM_ARGS)'

check-vm-instructions: vm-build ## only what is measured by counting instructions [KVER=]
	$(VM_BOOT) --icount 'KECHO_VM_ICOUNT=1 tests/vm/run -m "instructions or unload" -s $(VM_ARGS)'

bench-instructions: vm-build ## print instructions a round trip, every backend and path [KVER=]
	@scripts/vm --kver $(VM_KVER) --icount --timeout 3600 \
		'PYTHONPATH=tests/host .venv/bin/python tests/vm/instructions.py'

# What make check runs, with fewer rounds of load: the tests of behaviour on the distribution's own kernel and its newest
# one, the paths divided between the two; on its own kernel also the tests of mode module. What counts instructions,
# the property test and hostility are left to check-vm.
VM_PATHS_own    = softirq workqueue egress
VM_PATHS_newest = workqueue-percpu ingress skb
VM_SHORT = KECHO_VM_LOAD_ROUNDS=10 KECHO_TEST_SHRINK=16 KECHO_TEST_STREAM_MB=16 tests/vm/run -m "not instructions" -k

# $(call report,COMMAND): prints the output in one piece at the end, because other jobs run at the same time. The tests on
# this kernel wait more than they compute, so they go first.
report = out=$$(nice $(1) 2>&1); status=$$?; printf '\nmake %s:\n%s\n' $@ "$$out"; exit $$status

vm-short-own vm-short-newest: vm-short-%:
	@$(call report,scripts/vm --kver $* --append slab_nomerge --timeout $(VM_TIMEOUT) \
		'KECHO_TEST_PATHS="$(VM_PATHS_$*)" $(VM_SHORT) "not test_module_mode and not test_hostile and not test_sweep and not test_program and not test_property and not of_the_mirror"')

vm-short-mode:
	@$(call report,scripts/vm --append slab_nomerge --timeout $(VM_TIMEOUT) \
		'$(VM_SHORT) "test_module_mode or of_the_mirror"')

# Builds the module for every kernel: one test needs a module that is built for another one.
vm-build: $(VM_TOOLS) build/sweep clients native
	@for kver in $$(scripts/kernels); do $(MAKE) --no-print-directory -C kmod KVER=$$kver && \
		$(MAKE) --no-print-directory build/nomem-$$kver/nomem.ko || exit; done

# Kbuild puts objects beside the sources.
build/nomem-%/nomem.ko: tests/vm/nomem/nomem.c tests/vm/nomem/Kbuild
	@mkdir -p $(@D) && ln -sf $(^:%=$(CURDIR)/%) $(@D)
	@$(MAKE) --no-print-directory -C $$(scripts/kernels --build $*) M=$(CURDIR)/$(@D) modules

build/pingpong build/floors: tests/vm/times.h
$(VM_TOOLS): build/%: %.c
	@mkdir -p $(@D)
	$(CC) -O2 -Wall -Wextra -Werror -o $@ $<
