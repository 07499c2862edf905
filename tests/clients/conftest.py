# SPDX-License-Identifier: MIT
"""Clients of every kind against services on the real kernel, as root. The fixtures are those of tests/host."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "host"))

from log_fixtures import kernel_log, session_log

__all__ = ["kernel_log", "session_log"]  # fixtures
