#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""Asks kmemleak for leaks, and lockdep whether it is still on. Prints reports; status 1 if there are any."""

import re
import sys
import time
from pathlib import Path

KMEMLEAK = Path("/sys/kernel/debug/kmemleak")
LOCKDEP = Path("/proc/lockdep_stats")
# The code that allocated it: the module, whose addresses have no name once it is unloaded, or the kernel's sockmap.
OURS = re.compile(r"\] 0x[0-9a-f]+$|\[fastecho\]|psock|sock_hash|sock_map|tcp_bpf", re.MULTILINE)


def last_words() -> list[str]:
    """The leaks of our code that kmemleak reports, and a line if lockdep has switched itself off."""
    KMEMLEAK.write_text("scan")
    time.sleep(6)  # kmemleak does not report younger objects
    KMEMLEAK.write_text("scan")
    objects = KMEMLEAK.read_text().split("unreferenced object")[1:]
    reports = ["unreferenced object" + report for report in objects if OURS.search(report)]
    if not re.search(r"debug_locks: +1\b", LOCKDEP.read_text()):
        reports.append("lockdep has stopped watching: it does at the first report, whoever that is about")
    return reports


if __name__ == "__main__":
    found = last_words()
    print("\n".join(found))
    sys.exit(bool(found))
