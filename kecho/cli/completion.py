# SPDX-License-Identifier: MIT
"""``kecho-ctl --print-completion``: the completion script of a shell."""

from __future__ import annotations

import argparse

from kecho.model.errors import Unavailable


def print_completion(parser: argparse.ArgumentParser, shell: str) -> int:
    """Prints it; returns the exit code. Raises Unavailable without shtab, which makes it."""
    try:
        import shtab
    except ImportError as e:
        raise Unavailable("the completion script is made by shtab, which is not installed", "pip install shtab") from e
    print(shtab.complete(parser, shell))
    return 0
