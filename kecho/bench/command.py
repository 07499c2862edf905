# SPDX-License-Identifier: MIT
"""``kecho-ctl bench`` and ``kecho-ctl plot``: their options, what they print, and their exit codes."""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import shlex
import shutil
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from kecho import __version__, report
from kecho.bench import compare, progress, targets
from kecho.bench.result import Host, Result, Run, load
from kecho.bench.runner import Options, Progress
from kecho.errors import KechoError, UsageError

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

INTERRUPTED = 130
DEFAULT_REPEATS = 3
DEFAULT_DURATION_S = 2.0
DEFAULT_WARMUP_S = 0.2
STDOUT = "-"

_BENCH_EXAMPLES = """\
With a single connection the client runs on one CPU, the last it may use (--cpus none: anywhere).
The ratio is the p50 of the baseline over that of the target; the baseline is the first service
in mode user, else the first target. Put --json last, or write --json=FILE.

examples:
  kecho-ctl bench                                  all services that are up, 64 B ping-pong
  kecho-ctl bench kecho 127.0.0.1:7 [::1]:7        a service of ours and anybody's echo server
  kecho-ctl bench --connections 100 --threads 2 --size 1K --duration 5
  kecho-ctl bench --burst 1000 --rounds 10         1,000 connections that send at once, ten times
  kecho-ctl bench --count 100000 --plot out.png --json=out.json
  kecho-ctl bench --json | jq .targets
"""
_PLOT_EXAMPLES = """\
examples:
  kecho-ctl bench --json=result.json && kecho-ctl plot result.json -o result.png
  kecho-ctl plot results/last.json -o out.svg      the last run in this checkout
"""


def add_parser(subparsers: Subparsers) -> None:
    """Adds ``bench``; the parsed arguments have `run`, a function of them that returns the exit code."""
    parser = subparsers.add_parser(
        "bench",
        help="measure the response time of services and of any echo server",
        description="Measure the response time of echo servers from the client's side, in turn, verifying every byte.",
        epilog=_BENCH_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("targets", nargs="*", metavar="TARGET", help="a service's name, or HOST:PORT (default: all that are up)")
    add("--connections", type=_whole, default=1, metavar="N", help="made first and released at once (default 1)")
    add("--threads", type=_whole, default=1, metavar="M", help="of the client (default 1)")
    add("--size", type=_size, default=64, metavar="B", help="of a message in bytes, 1 to 1M (default 64)")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--count", type=_whole, metavar="K", help="requests in each run")
    length.add_argument(
        "--duration", type=_seconds, metavar="S", help=f"seconds of each run (default {DEFAULT_DURATION_S:g})"
    )
    add("--warmup", type=_seconds, metavar="S", help=f"seconds before each (default {DEFAULT_WARMUP_S:g})")
    add("--burst", type=_whole, metavar="N", help="N connections, released at once, one message each, closed")
    add("--rounds", type=_whole, metavar="R", help="of a burst (default 10)")
    add("--cpus", metavar="LIST", help="CPUs of the client's threads, as in 0,2-3; none: wherever they land")
    add(
        "--repeat",
        type=_whole,
        default=DEFAULT_REPEATS,
        metavar="R",
        help=f"runs of each target, in turn (default {DEFAULT_REPEATS})",
    )
    add("--seed", type=_whole, metavar="N", help="of the payloads (default 1)")
    add("--json", nargs="?", const=STDOUT, metavar="FILE", help="the result as JSON, to stdout or to FILE")
    add("--plot", metavar="FILE", help="draw the result: .png, .svg or .pdf")
    parser.set_defaults(run=run)


def add_plot_parser(subparsers: Subparsers) -> None:
    """Adds ``plot``, in the same way."""
    parser = subparsers.add_parser(
        "plot",
        help="draw a saved result of bench",
        description="Draw a result that `kecho-ctl bench --json=FILE` wrote.",
        epilog=_PLOT_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("result", metavar="RESULT", help="the file that bench wrote")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="the picture: .png, .svg or .pdf")
    parser.set_defaults(run=run_plot)


def _whole(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _size(text: str) -> int:
    factor = {"K": 1 << 10, "M": 1 << 20}.get(text[-1:].upper(), 1)
    return _whole(text[:-1] if factor > 1 else text) * factor


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0 to 86400")
    return value


def options_of(args: argparse.Namespace) -> Options:
    """What bench is asked, from the command line. Raises UsageError for options that exclude each other."""
    burst = args.burst is not None
    if burst:
        for option in ("count", "duration", "warmup"):
            if getattr(args, option) is not None:
                raise UsageError(f"--burst has --rounds, and no --{option}")
    elif args.rounds is not None:
        raise UsageError("--rounds is for --burst")
    timed = not burst and args.count is None
    return compare.pin(
        Options(
            connections=args.connections,
            threads=args.threads,
            size_bytes=args.size,
            count=args.count,
            duration_s=(DEFAULT_DURATION_S if args.duration is None else args.duration) if timed else None,
            warmup_s=None if burst else DEFAULT_WARMUP_S if args.warmup is None else args.warmup,
            burst=args.burst,
            rounds=args.rounds,
            cpus=args.cpus,
            seed=args.seed,
        )
    )


def run(args: argparse.Namespace) -> int:
    """``kecho-ctl bench``. Raises KechoError; what was measured before a failure is lost, before a Ctrl-C kept."""
    options = options_of(args)
    chosen = targets.choose(args.targets)
    date = datetime.now(UTC).isoformat(timespec="seconds")
    runs = _measure_all(chosen, args.repeat, options)
    if not runs:
        return INTERRUPTED
    result = Result(Host.this(), date, __version__, shlex.join(sys.argv), chosen[0].name, tuple(runs))
    _put_out(result, args)
    return INTERRUPTED if result.interrupted else 0


def _measure_all(chosen: Sequence[targets.Where], repeats: int, options: Options) -> list[Run]:
    """Every run, or those until Ctrl-C."""
    runs: list[Run] = []
    with progress.bar() as show, contextlib.suppress(KeyboardInterrupt):
        for step in compare.steps(chosen, repeats):
            done = compare.run(step, options, functools.partial(_tell, show, step, options))
            if done.latency.count or not done.interrupted:
                runs.append(done)
            if done.interrupted:
                break
    return runs


def _tell(show: progress.Show, step: compare.Step, options: Options, now: Progress) -> None:
    show(step, now, options)


def _put_out(result: Result, args: argparse.Namespace) -> None:
    if args.json == STDOUT:
        print(json.dumps(result.to_json()))
    else:
        width = shutil.get_terminal_size().columns
        print(report.bench_table(result, width), end="")
    _save_last(result)
    if args.json not in (None, STDOUT):
        result.save(Path(args.json))
    if args.plot:
        from kecho import plot

        plot.plot_bench(result, args.plot)


def _save_last(result: Result) -> None:
    """Leaves the result where `make plot` looks for it, in a checkout or where somebody keeps results."""
    folder = Path("results")
    if folder.is_dir() or (Path("Makefile").is_file() and Path("kecho").is_dir()):
        with contextlib.suppress(OSError, KechoError):
            folder.mkdir(exist_ok=True)
            result.save(folder / "last.json")


def run_plot(args: argparse.Namespace) -> int:
    """``kecho-ctl plot``."""
    result = load(args.result)
    from kecho import plot

    plot.plot_bench(result, args.output)
    return 0
