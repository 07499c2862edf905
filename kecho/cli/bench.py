# SPDX-License-Identifier: MIT
"""``kecho-ctl bench`` and ``kecho-ctl plot``: their options, what they print, and their exit codes."""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import json
import math
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from kecho import __version__
from kecho.bench import compare, progress, services, surroundings, targets
from kecho.bench.host import Host
from kecho.bench.result import MIN_ROUNDS, Result, Run, load
from kecho.bench.runner import Options
from kecho.cli.options import Subparsers
from kecho.model.errors import KechoError, UsageError
from kecho.show import terminal
from kecho.system import topology

T = TypeVar("T")

INTERRUPTED = 130
DEFAULT_REPEATS = 3
DEFAULT_DURATION_S = 2.0
COMPARE_REPEATS = 10  # an interval needs rounds more than it needs requests
COMPARE_DURATION_S = 1.0
DEFAULT_WARMUP_S = 0.2
STDOUT = "-"
PICTURES = (".png", ".svg", ".pdf")

_BENCH_EXAMPLES = f"""\
With a single connection the client runs on one CPU, the last it may use (--cpus none: anywhere).
The ratio is the p50 of the baseline over that of the target; the baseline is the first service
in mode user, else the first target. From {MIN_ROUNDS} rounds on it comes with a 95 % interval, and only
what that supports is called a difference. Put --json last, or write --json=FILE.

--compare takes {", ".join(itertools.islice(services.VARIANTS, 4))},
{", ".join(itertools.islice(services.VARIANTS, 4, None))}; for root.

examples:
  kecho-ctl bench                                  all services that are up, 64 B ping-pong
  kecho-ctl bench kecho 127.0.0.1:7 [::1]:7        a service of ours and anybody's echo server
  sudo kecho-ctl bench --compare user,user:io_uring,sockmap:msg,sockmap:skb,module
  kecho-ctl bench --connections 1,10,100,1000 --size 64,1K,16K --csv out.csv --plot out.png
  kecho-ctl bench --connections 100 --threads 2 --size 1K --duration 5
  kecho-ctl bench --burst 1000 --rounds 10         1,000 connections that send at once, ten times
  kecho-ctl bench --rate 5000 --connections 10     a stall of the server shows: no coordinated omission
  kecho-ctl bench --count 100000 --plot out.png --json=out.json
  kecho-ctl bench --json | jq .targets
  sudo kecho-ctl bench --compare user,sockmap --topology veth
  sudo kecho-ctl bench --tune --connections 15000 --threads 2
"""
_PLOT_EXAMPLES = """\
examples:
  kecho-ctl bench --json=result.json && kecho-ctl plot result.json -o result.png
  kecho-ctl plot results/last.json -o out.svg      the last run in this checkout
  kecho-ctl plot monday.json friday.json -o out.png
"""


def _add(
    subparsers: Subparsers, name: str, run: Callable[..., int], text: str, description: str, epilog: str
) -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = subparsers.add_parser(name, help=text, description=description, epilog=epilog, formatter_class=raw)
    parser.set_defaults(run=run)
    return parser


def add_parser(subparsers: Subparsers) -> None:
    """Adds ``bench``; the parsed arguments have `run`, a function of them that returns the exit code."""
    parser = _add(
        subparsers,
        "bench",
        run,
        "measure the response time of services and of any echo server",
        "Measure the response time of echo servers from the client's side, in turn, verifying every byte.",
        _BENCH_EXAMPLES,
    )
    add = parser.add_argument
    add("targets", nargs="*", metavar="TARGET", help="a service's name, or HOST:PORT (default: all that are up)")
    add("--compare", type=_variants, metavar="MODE,…", help="bring these up, measure them in turn, take them down")
    add(
        "--connections",
        type=_list_of(_whole),
        metavar="N,…",
        help="made first and released at once (default 1); several: a sweep",
    )
    add(
        "--threads",
        type=_whole,
        default=1,
        metavar="M",
        help="of the client (default 1); in a sweep at most as many as connections",
    )
    add(
        "--size",
        type=_list_of(_size),
        default=(64,),
        metavar="B,…",
        help="of a message in bytes, 1 to 1M (default 64); several: a sweep",
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--count", type=_whole, metavar="K", help="requests in each run")
    length.add_argument(
        "--duration",
        type=_seconds,
        metavar="S",
        help=f"seconds of each run (default {DEFAULT_DURATION_S:g}; with --compare {COMPARE_DURATION_S:g})",
    )
    add("--warmup", type=_seconds, metavar="S", help=f"seconds before each (default {DEFAULT_WARMUP_S:g})")
    workload = parser.add_argument_group("instead of the closed loop").add_mutually_exclusive_group()
    workload.add_argument(
        "--rate", type=_rate, metavar="R", help="open loop: R requests a second, latency from when each was due"
    )
    workload.add_argument("--burst", type=_whole, metavar="N", help="N connections, one message each, all at once")
    workload.add_argument("--crr", action="store_true", help="a connection a request, latency from connect on")
    workload.add_argument("--depth", type=_whole, metavar="D", help="D requests under way on each connection")
    add("--rounds", type=_whole, metavar="R", help="of a burst (default 10)")
    add("--connect-timeout", type=_seconds, metavar="S", help="a connection may take (default 10)")
    add("--io-timeout", type=_seconds, metavar="S", help="a reply may take (default 10)")
    add("--cpus", metavar="LIST", help="CPUs of the client's threads, as in 0,2-3; none: wherever they land")
    add(
        "--repeat",
        type=_whole,
        metavar="R",
        help=f"runs of each target, in turn (default {DEFAULT_REPEATS}; with --compare {COMPARE_REPEATS})",
    )
    add("--tune", action="store_true", help="raise limits of the system for the time of the runs; for root")
    add(
        "--topology",
        choices=topology.CHOICES,
        default="loopback",
        help="veth: the client in a network namespace behind a veth pair; for root",
    )
    add("--delay", type=_milliseconds, default=0.0, metavar="MS", help="with --topology veth: on each way, by netem")
    add("--seed", type=_whole, metavar="N", help="of the payloads and of the resampling (default 1)")
    add("--json", nargs="?", type=_file, const=STDOUT, metavar="FILE", help="the result as JSON, to stdout or to FILE")
    add("--csv", type=_file, metavar="FILE", help="a row a run, the columns of kecho.bench.table")
    add("--plot", type=_picture, metavar="FILE", help="draw the result: .png, .svg or .pdf")


def add_plot_parser(subparsers: Subparsers) -> None:
    """Adds ``plot``, in the same way."""
    parser = _add(
        subparsers,
        "plot",
        run_plot,
        "draw saved results of bench",
        "Draw what `kecho-ctl bench --json=FILE` wrote: percentiles, or of a sweep latency against load.",
        _PLOT_EXAMPLES,
    )
    parser.add_argument("results", nargs="+", metavar="RESULT", help="a file that bench wrote")
    parser.add_argument(
        "-o", "--output", type=_picture, required=True, metavar="FILE", help="the picture: .png, .svg or .pdf"
    )


def _list_of(one: Callable[[str], T]) -> Callable[[str], tuple[T, ...]]:
    def parse(text: str) -> tuple[T, ...]:
        found = tuple(one(part) for part in text.split(","))
        if len(set(found)) < len(found):
            raise argparse.ArgumentTypeError(f"{text!r} names a value twice")
        return found

    return parse


def _variants(text: str) -> tuple[str, ...]:
    try:
        return services.parse(text)
    except UsageError as e:
        raise argparse.ArgumentTypeError(str(e)) from e


def _file(text: str) -> str:
    """Nobody wants to hear after the runs that there is no such folder."""
    if text != STDOUT and (not text or os.path.isdir(text) or not os.path.isdir(os.path.dirname(text) or ".")):
        raise argparse.ArgumentTypeError(f"cannot write to {text!r}")
    return text


def _picture(text: str) -> str:
    if Path(text).suffix not in PICTURES:
        raise argparse.ArgumentTypeError(f"{text!r} must end in one of {', '.join(PICTURES)}")
    return _file(text)


def _whole(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _size(text: str) -> int:
    factor = {"K": 1 << 10, "M": 1 << 20}.get(text[-1:].upper(), 1)
    return _whole(text[:-1] if factor > 1 else text) * factor


def _number(text: str, fits: Callable[[float], bool], what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan  # which fits nowhere
    if not fits(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of {what}")
    return value


def _rate(text: str) -> float:
    return _number(text, lambda value: 0 < value <= 1e9, "requests a second")


def _seconds(text: str) -> float:
    return _number(text, lambda value: 0 <= value <= 86400, "seconds from 0 to 86400")


def _milliseconds(text: str) -> float:
    most = topology.MOST_DELAY_MS
    return _number(text, lambda value: 0 < value <= most, f"ms above 0, up to {most:g}")


def sweep_of(args: argparse.Namespace) -> tuple[Options, ...]:
    """What bench is asked, load by load, from the command line. Raises UsageError for options that exclude others."""
    burst = args.burst is not None
    if burst:
        for option in ("count", "duration", "warmup"):
            if getattr(args, option) is not None:
                raise UsageError(f"--burst has --rounds, and no --{option}")
        if args.connections:
            raise UsageError("--burst has its own number of connections, no --connections")
    elif args.rounds is not None:
        raise UsageError("--rounds is for --burst")
    timed = not burst and args.count is None
    sweep_over = args.connections or (1,)
    default_s = COMPARE_DURATION_S if args.compare else DEFAULT_DURATION_S
    sweep = [
        Options(
            connections=connections,
            threads=min(args.threads, connections) if len(sweep_over) > 1 else args.threads,
            size_bytes=size,
            count=args.count,
            duration_s=(default_s if args.duration is None else args.duration) if timed else None,
            warmup_s=None if burst else DEFAULT_WARMUP_S if args.warmup is None else args.warmup,
            burst=args.burst,
            rounds=args.rounds,
            rate_per_s=args.rate,
            crr=args.crr,
            depth=args.depth,
            connect_timeout_s=args.connect_timeout,
            io_timeout_s=args.io_timeout,
            cpus=args.cpus,
            seed=args.seed,
        )
        for size in args.size
        for connections in sweep_over
    ]
    # The same for all loads of a sweep, or they would not be comparable.
    alone = all(options.is_alone for options in sweep)
    return tuple(compare.pin(options, alone) for options in sweep)


def run(args: argparse.Namespace) -> int:
    """``kecho-ctl bench``. Raises KechoError; what was measured before a failure is lost, before a Ctrl-C kept."""
    sweep = sweep_of(args)
    repeats = args.repeat or (COMPARE_REPEATS if args.compare else DEFAULT_REPEATS)
    veth = args.topology == "veth"
    if args.delay and not veth:
        raise UsageError("--delay is for --topology veth")
    # What surrounds all runs is entered here, and undone in reverse whatever happens.
    with contextlib.ExitStack() as around:
        chosen = targets.choose(args.targets) if args.targets or not args.compare else []
        needs = surroundings.needs_of(sweep, repeats)
        client = around.enter_context(surroundings.entered(needs, args.tune, veth, args.delay, _say))
        left_out = {}
        if args.compare:
            connections = max(options.burst or options.connections for options in sweep)
            binds = client.addresses if client else ()
            fleet = around.enter_context(services.brought_up(args.compare, connections, binds))
            chosen = targets.baseline_first([*chosen, *fleet.targets])
            left_out = dict(fleet.left_out)
            for name, why in left_out.items():
                _say(f"{name} is left out: {why}")
        chosen = surroundings.placed(chosen, client)
        for warning in surroundings.warnings(chosen, needs, client):
            _say(warning)
        host = Host.this()
        date = datetime.now(UTC).isoformat(timespec="seconds")
        runs, interrupted = _measure_all(compare.steps(chosen, sweep, repeats))
    if not runs:
        return INTERRUPTED
    command = shlex.join(sys.argv)
    result = Result(host, date, __version__, command, chosen[0].name, tuple(runs), interrupted, left_out)
    _put_out(result, args)
    return INTERRUPTED if result.interrupted else 0


def _say(line: str) -> None:
    """At once: one may not want to wait for the runs then."""
    print(f"kecho-ctl: {line}", file=sys.stderr, flush=True)


def _measure_all(steps: Iterable[compare.Step]) -> tuple[list[Run], bool]:
    """Every run, or those until Ctrl-C, the last one perhaps in part; and whether it was pressed."""
    runs: list[Run] = []
    try:
        with progress.bar() as show:
            for step in steps:
                done = compare.run(step, functools.partial(show, step))
                if done.latency.count:
                    runs.append(done)
                if done.interrupted:
                    return runs, True
    except KeyboardInterrupt:
        return runs, True
    return runs, False


def _put_out(result: Result, args: argparse.Namespace) -> None:
    if args.json == STDOUT:
        print(json.dumps(result.to_json()))
    else:
        width = shutil.get_terminal_size().columns
        print(terminal.bench_table(result, width), end="")
    _save_last(result)
    if args.json not in (None, STDOUT):
        result.save(Path(args.json))
    if args.csv:
        from kecho.bench import table

        table.save_csv(result, Path(args.csv))
    if args.plot:
        from kecho.show import bench_plot

        bench_plot.plot_bench({"": result}, args.plot)


def _save_last(result: Result) -> None:
    """Leaves the result where `make plot` looks for it, in a checkout or where somebody keeps results."""
    folder = Path("results")
    if folder.is_dir() or (Path("Makefile").is_file() and Path("kecho").is_dir()):
        with contextlib.suppress(OSError, KechoError):
            folder.mkdir(exist_ok=True)
            result.save(folder / "last.json")


def run_plot(args: argparse.Namespace) -> int:
    """``kecho-ctl plot``."""
    from kecho.show import bench_plot

    bench_plot.plot_bench({path: load(path) for path in args.results}, args.output)
    return 0
