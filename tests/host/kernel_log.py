# SPDX-License-Identifier: MIT
"""Reads the kernel's log, and finds the reports of bugs in it. log_fixtures.py has each test do so."""

import os
import re
import time
from pathlib import Path

KMSG = Path("/dev/kmsg")
BUG_REPORT = re.compile(
    r"BUG[: ]|WARNING:|Oops|general protection|UBSAN|KASAN|new suspected memory leak|possible .*(lock|deadlock|depend)"
    r"|suspicious RCU|rcu.*(stall|self-detected)|INFO: task .* blocked|soft lockup|hogged CPU|Objects remaining"
)
_HEAD_LINES = 8  # of a report, in which it names its work queue
# The facilities of syslog(3): what a program writes to /dev/kmsg is never the kernel's.
KERNEL, USER = 0, 1


class KernelLog:
    """A reader of /dev/kmsg that remembers how far it has read. It begins at the end. Raises OSError."""

    def __init__(self, facility: int = KERNEL) -> None:
        self._facility = facility
        self._fd = os.open(KMSG, os.O_RDONLY | os.O_NONBLOCK)
        self._unchecked: list[str] = []
        if os.fstat(self._fd).st_rdev != os.makedev(1, 11):  # Documentation/admin-guide/devices.txt
            os.close(self._fd)
            raise OSError(f"{KMSG} is another device")  # as in some containers
        os.lseek(self._fd, 0, os.SEEK_END)

    def new_lines(self) -> list[str]:
        """The messages since the last call, without time stamps."""
        lines = []
        while True:
            try:
                record = os.read(self._fd, 8192).decode(errors="replace")
            except BlockingIOError:
                break
            except BrokenPipeError:
                lines.append("WARNING: the kernel log overran its buffer before it was read")
                continue
            prefix, _, message = record.partition(";")
            if int(prefix.partition(",")[0]) >> 3 == self._facility:
                lines.append(message.splitlines()[0])
        self._unchecked += lines
        return lines

    def check(self) -> None:
        """Fails if a line since the last check reports a bug, also one that new_lines() has returned."""
        self.new_lines()
        if bug_reports(self._unchecked):
            time.sleep(0.5)  # the rest of the report follows
            self.new_lines()
        lines, self._unchecked = self._unchecked, []
        assert not bug_reports(lines), "the kernel has reported a bug:\n" + "\n".join(lines)

    def close(self) -> None:
        os.close(self._fd)


def bug_reports(lines: list[str]) -> list[str]:
    """The lines that report a bug of the kernel, but for the one that docs/known-limits.md describes."""
    return [line for at, line in enumerate(lines) if BUG_REPORT.search(line) and not _is_known(line, lines[at:])]


def _is_known(line: str, report: list[str]) -> bool:
    """The kernel counts the memory of sockets in a sockhash without their lock, and notices when they end."""
    return " inet_sock_destruct+" in line and any(
        "Workqueue: " in other and "sk_psock_destroy" in other for other in report[:_HEAD_LINES]
    )
