# The tests on the debug kernel, User-mode Linux. The top-level Makefile includes this.

# Evaluated at use, after uml-kernel.
UML_KVER     = $(shell cat $(UML_KDIR)/include/config/kernel.release)
UML_KDIR     = $(shell scripts/uml --print-kdir)
UML_TIMEOUT ?= 1800
UML_TESTS   := run fail-init fail-conn fail-echo

.PHONY: check-debug uml-kernel uml-module uml-detectors $(UML_TESTS:%=uml-%)

# The kernel has one CPU, so two tests run at a time.
check-debug: uml-module native $(VM_TOOLS) ## run the tests under KASAN, lockdep and kmemleak, and with memory failing
	@$(MAKE) --no-print-directory -j2 -O -k $(UML_TESTS:%=uml-%) uml-detectors

uml-kernel:
	@scripts/uml --build-only

uml-module: uml-kernel
	@$(MAKE) --no-print-directory -C kmod ARCH=um KVER=$(UML_KVER) KDIR=$(UML_KDIR)

$(UML_TESTS:%=uml-%): uml-%:
	@echo tests/uml/$* && scripts/uml --timeout $(UML_TIMEOUT) tests/uml/$*

uml-detectors:
	@echo tests/uml/detectors && tests/uml/detectors
