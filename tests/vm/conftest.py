# SPDX-License-Identifier: MIT
"""What all tests in the virtual machine share: no skips, no bug reports in the kernel's log, a service to talk to."""

import resource
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import fastecho
import pytest
from kernel_log import KernelLog, bug_reports
from modes import MODES, Service


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """After some tests no other can run."""
    items.sort(key=lambda item: item.get_closest_marker("last") is not None)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    """A test that cannot run here tests nothing: a skip is a failure."""
    report = (yield).get_result()
    if report.skipped:
        report.outcome = "failed"
        report.longrepr = f"skipped in the virtual machine: {report.longrepr}"


@pytest.fixture(scope="session", autouse=True)
def machine() -> None:
    """Room for thousands of connections."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (65536, 65536))
    Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("10000 65000")
    Path("/proc/sys/net/ipv4/ip_local_reserved_ports").write_text(f"{fastecho.PORT}-{fastecho.PORT + 10}")


@pytest.fixture(scope="session")
def session_log() -> KernelLog:
    log = KernelLog()
    log.new_lines()
    return log


@pytest.fixture(autouse=True)
def kernel_log(session_log: KernelLog) -> Iterator[KernelLog]:
    """The kernel's log; after the test, no line of it may report a bug."""
    seen: list[str] = []
    read = session_log.new_lines

    class Recorder(KernelLog):
        def __init__(self) -> None:
            pass

        def new_lines(self) -> list[str]:
            lines = read()
            seen.extend(lines)
            return lines

    recorder = Recorder()
    recorder.new_lines()
    yield recorder
    if fastecho.is_loaded():
        fastecho.unload()
    recorder.new_lines()
    assert not bug_reports(seen), "\n".join(seen)


@pytest.fixture(scope="session")
def keep() -> Iterator[Callable[[str], None]]:
    """Brings a mode up on its first use; it stays up, because sockmap takes long to compile."""
    kept: set[str] = set()
    with ExitStack() as stack:

        def once(mode: str) -> None:
            if mode not in kept:
                stack.enter_context(MODES[mode].kept())
                kept.add(mode)

        yield once


@pytest.fixture(scope="module", params=MODES)
def mode(request: pytest.FixtureRequest, keep: Callable[[str], None]) -> str:
    """Each way of echoing, one after the other."""
    keep(request.param)
    return request.param


@pytest.fixture
def service(mode: str, kernel_log: KernelLog) -> Iterator[Service]:
    """The service in each of its modes."""
    with MODES[mode].serving() as service:
        yield service
