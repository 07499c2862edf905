# The tests in a virtual machine; the top-level Makefile includes this. KVER= chooses the kernel.

VM_KVER = $(or $(KVER),$(shell scripts/vm --print-kver))
VM_TOOLS := build/pingpong build/floors build/stream
VM_TIMEOUT ?= 900

.PHONY: check-vm check-vm-behaviour check-vm-instructions bench-instructions vm-build

check-vm: check-vm-behaviour check-vm-instructions ## run tests/vm on a stock kernel in a virtual machine [KVER=]

# With slab_nomerge each cache has its own objects: a leak shows at the cache's end.
check-vm-behaviour: vm-build
	scripts/vm --kver $(VM_KVER) --append slab_nomerge --timeout $(VM_TIMEOUT) 'tests/vm/run -m "not instructions"'

check-vm-instructions: vm-build ## instructions a round trip of the module, in the virtual machine [KVER=]
	scripts/vm --kver $(VM_KVER) --icount --timeout $(VM_TIMEOUT) 'tests/vm/run -m instructions -s'

bench-instructions: vm-build native ## print instructions a round trip, every backend and path [KVER=]
	@scripts/vm --kver $(VM_KVER) --icount --timeout 3600 '.venv/bin/python tests/vm/instructions.py'

vm-build: $(VM_TOOLS)
	$(MAKE) -C kmod KVER=$(VM_KVER)

$(VM_TOOLS): build/%: tests/vm/%.c
	@mkdir -p $(@D)
	$(CC) -O2 -Wall -Wextra -Werror -o $@ $<
