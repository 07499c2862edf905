# SPDX-License-Identifier: MIT
"""A report of a bug in the kernel's log fails the test during which it came."""

from __future__ import annotations

import pytest
from kernel_log import KMSG, USER, KernelLog, bug_reports


def log_or_skip(facility: int) -> KernelLog:
    try:
        return KernelLog(facility)
    except OSError as e:
        pytest.skip(f"what the kernel reports during these tests is not seen: {e}")


@pytest.mark.parametrize(
    "line", ["WARNING: CPU: 0 PID: 1 at kecho", "BUG: kecho", "possible circular locking dependency"]
)
def test_a_report_fails_one_check(line: str, request: pytest.FixtureRequest) -> None:
    """What the test writes is of another facility, so it fails nobody else's run."""
    log, kernels = log_or_skip(USER), request.getfixturevalue("kernel_log")
    for text in ("kecho: nothing wrong", line):
        KMSG.write_text(f"{text}\n")
    assert line in log.new_lines()
    with pytest.raises(AssertionError, match=f"(?s)reported a bug.*nothing wrong.*{line}"):
        log.check()
    log.check()
    assert line not in kernels.new_lines()
    log.close()


KNOWN = """------------[ cut here ]------------
WARNING: CPU: 1 PID: 41 at net/ipv4/af_inet.c:157 inet_sock_destruct+0x174/0x1a0
CPU: 1 UID: 0 PID: 41 Comm: kworker/1:1 Not tainted 6.18.44 #1 PREEMPT(none)
Workqueue: events sk_psock_destroy
RIP: 0010:inet_sock_destruct+0x174/0x1a0""".splitlines()


def test_the_report_that_is_known() -> None:
    """Of a socket without a psock it is another one, and others beside it count."""
    assert not bug_reports(KNOWN)
    assert bug_reports([*KNOWN, "BUG: kecho"]) == ["BUG: kecho"]
    assert bug_reports([line for line in KNOWN if "Workqueue" not in line]) == [KNOWN[1]]


def test_every_test_is_watched(request: pytest.FixtureRequest) -> None:
    assert "kernel_log" in request.fixturenames
