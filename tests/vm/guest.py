# SPDX-License-Identifier: MIT
"""Checks around each test in the virtual machine: no skip, no bug report in the kernel's log, no module left loaded."""

import resource
from collections.abc import Iterator
from pathlib import Path

import fastecho
import pytest
from kernel_log import KernelLog
from log_fixtures import kernel_log, session_log

__all__ = ["kernel_log", "session_log"]  # fixtures


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the tests marked `last` at the end: no other test can run after them."""
    items.sort(key=lambda item: item.get_closest_marker("last") is not None)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    """Turns a skip into a failure: the guest has everything that the tests need.

    What pytest.ini expects to fail, a test for none of the paths chosen, stays out.
    """
    report = (yield).get_result()
    if report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped in the virtual machine: {report.longrepr}"


@pytest.fixture(scope="session", autouse=True)
def machine() -> None:
    """Makes room for thousands of connections."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (65536, 65536))
    Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("10000 65000")
    Path("/proc/sys/net/ipv4/ip_local_reserved_ports").write_text(f"{fastecho.PORT}-{fastecho.PORT + 10}")


@pytest.fixture(autouse=True)
def no_module_stays(kernel_log: KernelLog | None) -> Iterator[None]:
    """Unloads the module after the test, and before the kernel's log is searched for bugs."""
    assert kernel_log, "root of this machine can read the kernel's log"
    yield
    if fastecho.is_loaded():
        fastecho.unload()
