# SPDX-License-Identifier: MIT
"""``python -m kecho.cli.manpage``: the man page, from the parser that also prints --help."""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
import time
from collections.abc import Iterator

from kecho.cli.commands import build_parser

_SEE_ALSO = "bpftool(8), epoll(7), io_uring(7), ip-netns(8), ss(8), taskset(1), tc(8), tcp(7)"
_DOCS = "README.md and docs/ are installed in share/doc/kecho, beside the share/man of this page."
_WIDTH = 72
_FILLED = 60  # escapes make lines longer


def page(date: str) -> str:
    """The page in the macros of man(7)."""
    parser = build_parser()
    commands = next(one for one in parser._actions if isinstance(one, argparse._SubParsersAction))
    lines = [f'.TH KECHO-CTL 1 "{date}" kecho "kecho manual"', ".nh", ".ad l", ".SH NAME"]
    lines.append(_text("kecho-ctl - runs and measures a TCP echo service that never leaves the kernel"))
    lines += [".SH SYNOPSIS", *_usage(parser), ".SH DESCRIPTION", *_filled(parser.description or "")]
    lines += [".SH OPTIONS", *_options(parser), ".SH COMMANDS"]
    for name, command in commands.choices.items():
        lines += [f".SS kecho\\-ctl {name}", *_usage(command), ".PP", *_filled(command.description or "")]
        lines += _options(command)
        for title, body in _sections(command.epilog or ""):
            lines += [".PP", *([f".B {_text(title)}"] if title else []), *body]
    for title, body in _sections(parser.epilog or ""):
        lines += [f".SH {_text(title.rstrip(':').upper())}", *body]
    lines += [".SH SEE ALSO", *_filled(_SEE_ALSO), ".PP", *_filled(_DOCS)]
    return "".join(f"{line}\n" for line in lines)


def _text(text: str) -> str:
    """Escaped for roff, in ASCII."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("`", "\\(ga")
    escaped = "".join(sign if sign.isascii() else f"\\[u{ord(sign):04X}]" for sign in escaped)
    return f"\\&{escaped}" if escaped.startswith(".") else escaped


def _filled(text: str) -> Iterator[str]:
    for line in textwrap.wrap(text, _FILLED, break_on_hyphens=False):
        yield _text(line)


def _usage(parser: argparse.ArgumentParser) -> Iterator[str]:
    formatter = argparse.HelpFormatter(parser.prog, width=_WIDTH)
    formatter.add_usage(parser.usage, parser._actions, parser._mutually_exclusive_groups, prefix="")
    yield ".nf"
    for line in formatter.format_help().rstrip().splitlines():
        yield _text(line)
    yield ".fi"


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    """The options and arguments, group by group."""
    formatter = argparse.HelpFormatter(parser.prog)
    for group in parser._action_groups:
        shown = [
            action
            for action in group._group_actions
            if action.help is not argparse.SUPPRESS
            and not isinstance(action, argparse._HelpAction | argparse._SubParsersAction)
        ]
        if shown and group.title not in ("options", "positional arguments"):
            yield from (".PP", f".I {_text(group.title or '')}")
        for action in shown:
            formatter.add_argument(action)
            yield from (".TP", f".B {_text(formatter._format_action_invocation(action))}")
            yield from _filled(formatter._expand_help(action) if action.help else "")


def _sections(epilog: str) -> Iterator[tuple[str, list[str]]]:
    """The parts of an epilog: a title, empty for what has none, and lines. Indented lines are entries of a list."""
    for part in filter(None, re.split(r"\n\s*\n", epilog.strip())):
        head, *rest = part.splitlines()
        title = head if head.endswith(":") and rest else ""
        entries = rest if title else [head, *rest]
        if all(line.startswith(" ") for line in entries):
            yield title, [line for entry in _joined(entries) for line in _entry(entry)]
        else:
            yield title, list(_filled(" ".join(entries)))


def _joined(entries: list[str]) -> Iterator[str]:
    """Entries whose first word is further in go on with the one before."""
    whole = ""
    for entry in entries:
        if whole and entry.startswith("   "):
            whole = f"{whole} {entry.strip()}"
            continue
        if whole:
            yield whole
        whole = entry
    yield whole


def _entry(entry: str) -> Iterator[str]:
    """A command or a file and what it means; exit codes, several on a line."""
    if re.match(r" +[0-9]+ ", entry):
        pairs = [code.strip().partition(" ") for code in entry.rstrip(" ;").split(";")]
    else:
        pairs = [entry.strip().partition("  ")]
    for what, _, means in pairs:
        yield from (".TP", f".B {_text(what)}")
        yield from _filled(means.strip())


if __name__ == "__main__":
    sys.stdout.write(page(time.strftime("%Y-%m-%d")))
