# The debug kernel, User-mode Linux; the top-level Makefile includes this.

# Evaluated where it is used, after the kernel has been built.
UML_KVER     = $(shell cat $(UML_KDIR)/include/config/kernel.release)
UML_KDIR     = $(shell scripts/uml --print-kdir)
UML_TIMEOUT ?= 1800

.PHONY: check-debug

# Builds the kernel first, once: 5 to 15 minutes.
check-debug: native $(VM_TOOLS) ## run the tests under KASAN, lockdep and kmemleak, and with memory failing
	@scripts/uml --build-only
	$(MAKE) --no-print-directory -C kmod ARCH=um KVER=$(UML_KVER) KDIR=$(UML_KDIR)
	tests/uml/detectors
	scripts/uml --timeout $(UML_TIMEOUT) tests/uml/run
	scripts/uml --timeout $(UML_TIMEOUT) tests/uml/fail-init
	scripts/uml --timeout $(UML_TIMEOUT) tests/uml/fail-conn
