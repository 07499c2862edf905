# SPDX-License-Identifier: MIT
"""``kecho-ctl doctor``: says what this machine can run. Each feature of each mode is probed."""

from __future__ import annotations

import argparse
import json
import textwrap
from typing import Any

from kecho.cli.options import Parser, columns
from kecho.model.errors import Unavailable


def add(parser: Parser) -> None:
    parser.add_argument("--json", action="store_true", help="print an object (docs/metrics.md)")


def run(args: argparse.Namespace) -> int:
    found = examine()
    print(json.dumps(found) if args.json else text(found, columns()))
    return 0


def examine() -> dict[str, Any]:
    """The object of ``doctor --json``: every mode, and the one that `auto` takes."""
    from kecho.backends.base import AUTO, MODES
    from kecho.kernel import features
    from kecho.model.snapshot import SCHEMA

    modes = {mode: _examine_mode(mode) for mode in MODES}
    auto = next((mode for mode in AUTO if modes[mode]["usable"]), None)
    return {"schema": SCHEMA, "kernel": features.release(), "auto": auto, "modes": modes}


def _examine_mode(mode: str) -> dict[str, Any]:
    from kecho.backends.base import backend

    features = []
    usable = True
    for feature in backend(mode).features():
        found: dict[str, Any] = {"name": feature.name, "required": feature.required, "ok": True}
        try:
            found["detail"] = feature.probe()
        except Unavailable as e:
            found.update(ok=False, detail=e.reason, remedy=e.remedy)
            usable = usable and not feature.required
        features.append(found)
    return {"usable": usable, "features": features}


def _wrapped(head: str, said: str, width: int) -> list[str]:
    """Under each other, so that a path or command stays whole where it fits."""
    return textwrap.wrap(
        said, width, initial_indent=head, subsequent_indent=" " * 30, break_long_words=False, break_on_hyphens=False
    )


def text(found: dict[str, Any], width: int = 80) -> str:
    """The result of `examine` as text."""
    lines = [f"kernel {found['kernel']}; --mode auto takes: {found['auto'] or 'nothing'}"]
    for mode, state in found["modes"].items():
        lines.append(f"\n{mode}: {'can run' if state['usable'] else 'cannot run'}")
        for feature in state["features"]:
            mark = "ok" if feature["ok"] else "missing" if feature["required"] else "without"
            lines += _wrapped(f"  {mark:8}{feature['name']:18}", feature["detail"], width)
            if feature.get("remedy"):
                lines += _wrapped(" " * 28, f"→ {feature['remedy']}", width)
    return "\n".join(lines)
