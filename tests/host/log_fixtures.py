# SPDX-License-Identifier: MIT
"""Fixtures for conftest.py and guest.py: a test during which the kernel has reported a bug fails."""

from collections.abc import Iterator

import pytest
from kernel_log import KernelLog


@pytest.fixture(scope="session")
def session_log() -> Iterator[KernelLog | None]:
    """The kernel's log, or None where it cannot be read. What comes late fails the last test."""
    try:
        log = KernelLog()
    except OSError:
        yield None
        return
    yield log
    log.check()
    log.close()


@pytest.fixture(autouse=True)
def kernel_log(session_log: KernelLog | None) -> Iterator[KernelLog | None]:
    """The same. The test fails if the kernel has reported a bug since the test before ended."""
    yield session_log
    if session_log:
        session_log.check()
