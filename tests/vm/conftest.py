# SPDX-License-Identifier: MIT
"""What all tests in the virtual machine share: no skips, no bug reports in the kernel's log, a service to talk to."""

import resource
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import fastecho
import pytest
from kernel_log import KernelLog, bug_reports

BUILD = fastecho.TOP / "build"

# How each way of echoing is started. A backend that serves the same traffic tests adds its ways here.
MODES = {
    "softirq": lambda: fastecho.load("backlog=1024"),
    "workqueue": lambda: fastecho.load("inline=0", "backlog=1024"),
    "workqueue-percpu": lambda: fastecho.load("inline=0", "bench=1", "backlog=1024"),
}


@dataclass(frozen=True)
class Service:
    """A running echo service."""

    mode: str
    address: str = "127.0.0.1"
    port: int = fastecho.PORT

    @property
    def endpoint(self) -> tuple[str, int]:
        return self.address, self.port

    def stream(self, connections: int, size_bytes: int, timeout_s: float = 120, prefix: tuple[str, ...] = ()) -> None:
        """Sends and compares size_bytes on each connection, by tests/vm/stream.c."""
        command = [*prefix, str(BUILD / "stream"), self.address, str(self.port), str(connections), str(size_bytes), "1"]
        subprocess.run(command, check=True, timeout=timeout_s)


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


@pytest.fixture(params=MODES)
def service(request: pytest.FixtureRequest, kernel_log: KernelLog) -> Iterator[Service]:
    """The service in each of its modes; once the test is over it has to stop within two seconds."""
    MODES[request.param]()
    yield Service(request.param)
    assert fastecho.unload() < fastecho.UNLOAD_LIMIT_S
