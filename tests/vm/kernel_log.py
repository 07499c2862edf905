# SPDX-License-Identifier: MIT
"""Reads the kernel's log, and finds the lines that report a bug."""

import os
import re

BUG_REPORT = re.compile(
    r"BUG[: ]|WARNING:|Oops|general protection|UBSAN|KASAN|new suspected memory leak|possible .*(lock|deadlock|depend)"
    r"|suspicious RCU|rcu.*(stall|self-detected)|INFO: task .* blocked|soft lockup|hogged CPU|Objects remaining"
)


class KernelLog:
    """A reader of /dev/kmsg that remembers how far it has read."""

    def __init__(self) -> None:
        self._fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)

    def new_lines(self) -> list[str]:
        """The messages since the last call, without time stamps."""
        lines = []
        while True:
            try:
                record = os.read(self._fd, 8192).decode(errors="replace")
            except BlockingIOError:
                return lines
            except BrokenPipeError:
                lines.append("WARNING: the kernel log overran its buffer before it was read")
                continue
            lines.append(record.partition(";")[2].splitlines()[0])


def bug_reports(lines: list[str]) -> list[str]:
    """The lines that report a bug of the kernel."""
    return [line for line in lines if BUG_REPORT.search(line)]
