# SPDX-License-Identifier: MIT
"""``kecho-ctl bench``: measures the response time of services, and of any echo server."""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import shlex
import sys
from dataclasses import replace
from datetime import UTC, datetime

from kecho import __version__
from kecho.bench import outputs, progress, rounds, runner, services, surroundings, targets
from kecho.bench.host import Host
from kecho.bench.interval import MIN_ROUNDS
from kecho.bench.plan import STDOUT, Plan
from kecho.bench.result import Result
from kecho.bench.runner import DEFAULT_BURSTS, DEFAULT_CONNECTIONS, DEFAULT_SEED, DEFAULT_TIMEOUT_S, RunOptions
from kecho.cli import values
from kecho.cli.options import Parser, add_wide, columns, say, table_width
from kecho.model.errors import KechoError, UsageError
from kecho.system import topology

INTERRUPTED = 130
DEFAULT_REPEATS = 3
DEFAULT_DURATION_S = 2.0
COMPARE_REPEATS = 10  # more rounds narrow an interval more than more requests do
COMPARE_DURATION_S = 1.0
DEFAULT_WARMUP_S = 0.2
LOOK_S = 0.1  # before each run, at what others do with the CPUs

_EXAMPLES = f"""\
With a single connection the client runs on one CPU, the last it may use (--cpus none: anywhere).
The baseline is the first service in mode user, else the first target. A ratio says how many times
shorter than the baseline's a target's p50 is, how many times more requests it answers a second, and
how many times less CPU time of the whole machine each takes, other work included.
Every figure is the median of the rounds. From {MIN_ROUNDS} rounds on a ratio has a 95 % interval, and only what
that supports is called a difference.

--compare takes {", ".join(itertools.islice(services.VARIANTS, 4))},
{", ".join(itertools.islice(services.VARIANTS, 4, None))}; for root.

examples:
  kecho-ctl bench                                  all services that are up, 64 B ping-pong
  kecho-ctl bench kecho 127.0.0.1:7 [::1]:7        a service of ours and anybody's echo server
  sudo kecho-ctl bench --compare user,user:io_uring,sockmap:egress,sockmap:skb,module
  kecho-ctl bench --connections 1,10,100,1000 --size 64,1K,16K --csv out.csv --plot out.png
  kecho-ctl bench --connections 100 --threads 2 --size 1K --duration 5
  kecho-ctl bench --burst 1000 --bursts 10         1,000 connections that send at once, ten times
  kecho-ctl bench --rate 5000 --connections 10     a stall of the server shows: no coordinated omission
  kecho-ctl bench --rate 10k,20k,50k,100k --connections 10 --plot out.png
  kecho-ctl bench --percentiles 50,99,99.99 --markdown
  kecho-ctl bench --count 100000 --plot out.png --json=out.json
  kecho-ctl bench --json | jq .targets
  sudo kecho-ctl bench --compare user,sockmap --topology veth
  sudo kecho-ctl bench --compare user,sockmap --cpus 1 --server-cpus 1
  sudo kecho-ctl bench --tune --connections 15000 --threads 2

exit status:
  0 done; 1 a target failed (what was measured is kept); 2 wrong usage; 3 this machine cannot;
  130 interrupted, after printing what was measured until then
"""


def add(parser: Parser) -> None:
    parser.epilog = _EXAMPLES
    parser.add_argument(
        "targets",
        nargs="*",
        metavar="TARGET",
        help="the name of a service, or HOST:PORT of any echo server (default: all services that are up)",
    )
    parser.add_argument(
        "--compare",
        type=values.variants,
        metavar="MODE,…",
        help="bring these services up, measure them in turn, and take them down",
    )
    _add_load(parser.add_argument_group("load"))
    _add_workload(parser.add_argument_group("instead of the closed loop"))
    _add_runs(parser.add_argument_group("runs"))
    _add_surroundings(parser.add_argument_group("surroundings"))
    _add_outputs(parser.add_argument_group("output"))
    parser.alone = {"--json": STDOUT}


def _add_load(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--connections",
        type=values.list_of(values.whole),
        metavar="N,…",
        help=f"how many connections the client keeps busy (default {DEFAULT_CONNECTIONS}); several numbers are a sweep",
    )
    group.add_argument(
        "--threads",
        type=values.whole,
        default=RunOptions.threads,
        metavar="M",
        help="how many threads the client has (default %(default)s); in a sweep at most one a connection",
    )
    group.add_argument(
        "--size",
        type=values.list_of(values.size),
        default=(RunOptions.size_bytes,),
        metavar="B,…",
        help=f"how many bytes a message has, 1 to 1M (default {RunOptions.size_bytes}); several sizes are a sweep",
    )
    group.add_argument(
        "--seed",
        type=values.whole,
        default=DEFAULT_SEED,
        metavar="N",
        help="draw payloads, and the order in a round, from N (default %(default)s)",
    )
    timeout = f"(default {DEFAULT_TIMEOUT_S})"
    group.add_argument(
        "--connect-timeout", type=values.seconds, metavar="S", help=f"give a connection S seconds {timeout}"
    )
    group.add_argument("--io-timeout", type=values.seconds, metavar="S", help=f"give a reply S seconds {timeout}")


def _add_workload(group: argparse._ArgumentGroup) -> None:
    one_of = group.add_mutually_exclusive_group()
    one_of.add_argument(
        "--rate",
        type=values.list_of(values.rate),
        metavar="R,…",
        help="open loop: R requests a second are due (10k, 1M), and latency counts from when each was; several rates "
        "are a sweep",
    )
    one_of.add_argument(
        "--burst",
        type=values.whole,
        metavar="N",
        help="N connections send one message each, all at once; latency counts from that moment",
    )
    one_of.add_argument(
        "--crr", action="store_true", help="make a connection for each request; latency counts from connect() on"
    )
    one_of.add_argument("--depth", type=values.whole, metavar="D", help="keep D requests in flight on each connection")
    group.add_argument(
        "--bursts", type=values.whole, metavar="R", help=f"make R bursts in each run (default {DEFAULT_BURSTS})"
    )


def _add_runs(group: argparse._ArgumentGroup) -> None:
    length = group.add_mutually_exclusive_group()
    length.add_argument("--count", type=values.whole, metavar="K", help="measure K requests in each run")
    length.add_argument(
        "--duration",
        type=values.seconds,
        metavar="S",
        help=f"measure S seconds in each run (default {DEFAULT_DURATION_S:g}; with --compare {COMPARE_DURATION_S:g})",
    )
    group.add_argument(
        "--warmup",
        type=values.seconds,
        metavar="S",
        help=f"warm up for S seconds before each run (default {DEFAULT_WARMUP_S:g})",
    )
    group.add_argument(
        "--repeat",
        type=values.whole,
        metavar="R",
        help=f"make R rounds, each target once in each (default {DEFAULT_REPEATS}; with --compare {COMPARE_REPEATS})",
    )


def _add_surroundings(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--cpus", metavar="LIST", help="run the client's threads on these CPUs, as in 0,2-3, or on any: none"
    )
    group.add_argument(
        "--busy-poll",
        type=values.whole,
        metavar="US",
        help="look for a reply for US µs before sleeping",
    )
    group.add_argument(
        "--server-cpus", type=values.cpu_list, metavar="LIST", help="run the services of --compare on these CPUs"
    )
    group.add_argument(
        "--tune", action="store_true", help="raise limits of the system for the time of the runs; for root"
    )
    group.add_argument(
        "--topology",
        choices=topology.CHOICES,
        default="loopback",
        help="put the client on loopback, or in a network namespace behind a veth pair (for root)",
    )
    group.add_argument(
        "--delay",
        type=values.number(
            lambda value: 0 < value <= topology.MOST_DELAY_MS, f"ms above 0, up to {topology.MOST_DELAY_MS:g}"
        ),
        default=0.0,
        metavar="MS",
        help="with --topology veth, delay each way by MS milliseconds (netem)",
    )


def _add_outputs(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--json",
        nargs="?",
        type=values.file,
        const=STDOUT,
        metavar="FILE",
        help="print the result as JSON; with --json=FILE save it, after each round",
    )
    group.add_argument(
        "--csv", type=values.file, metavar="FILE", help="save a table with a row for each run (docs/metrics.md)"
    )
    group.add_argument("--plot", type=values.picture, metavar="FILE", help="draw the result: .png, .svg or .pdf")
    group.add_argument(
        "--hdr", type=values.folder, metavar="FOLDER", help="save the histogram of each run as a HdrHistogram log"
    )
    group.add_argument(
        "--raw",
        type=values.folder,
        metavar="FOLDER",
        help="save every latency of each run, as little-endian 64-bit nanoseconds",
    )
    group.add_argument(
        "--percentiles", type=values.list_of(values.percentile), metavar="P,…", help="the percentiles of the table"
    )
    group.add_argument("--markdown", action="store_true", help="print tables in Markdown, with all columns")
    add_wide(group)


def plan_of(args: argparse.Namespace) -> Plan:
    """The plan that the options ask for. Raises UsageError for options that exclude each other."""
    veth = args.topology == "veth"
    if args.delay and not veth:
        raise UsageError("--delay is for --topology veth")
    if args.server_cpus and not args.compare:
        raise UsageError("--server-cpus is for --compare (a service takes its CPUs from `up --cpus`)")
    sweep = sweep_of(args)
    for options in sweep:
        runner.check(options)
    return Plan(
        sweep=sweep,
        repeats=args.repeat or (COMPARE_REPEATS if args.compare else DEFAULT_REPEATS),
        targets=tuple(args.targets),
        variants=args.compare or (),
        server_cpus=args.server_cpus or "",
        seed=args.seed,
        tuned=args.tune,
        veth=veth,
        delay_ms=args.delay,
        json=args.json,
        csv=args.csv,
        plot=args.plot,
        wide=args.wide,
        markdown=args.markdown,
        percentiles=args.percentiles or (),
        hdr=args.hdr,
        raw=args.raw,
    )


def sweep_of(args: argparse.Namespace) -> tuple[RunOptions, ...]:
    """The options of the load generator for each load."""
    duration_s, warmup_s = args.duration, args.warmup
    if args.burst is None:
        if duration_s is None and args.count is None:
            duration_s = COMPARE_DURATION_S if args.compare else DEFAULT_DURATION_S
        if warmup_s is None:
            warmup_s = DEFAULT_WARMUP_S
    sweep_over = args.connections or (None,)
    sweep = [
        RunOptions(
            connections=connections,
            threads=min(args.threads, connections) if connections and len(sweep_over) > 1 else args.threads,
            size_bytes=size,
            count=args.count,
            duration_s=duration_s,
            warmup_s=warmup_s,
            look_s=LOOK_S,
            burst=args.burst,
            bursts=args.bursts,
            rate_per_s=rate,
            crr=args.crr,
            depth=args.depth,
            connect_timeout_s=args.connect_timeout,
            io_timeout_s=args.io_timeout,
            busy_poll_us=args.busy_poll,
            cpus=args.cpus,
            seed=args.seed,
        )
        for size in args.size
        for connections in sweep_over
        for rate in args.rate or (None,)
    ]
    # All loads of a sweep have the same pinning, so that they are comparable.
    alone = all(options.is_alone for options in sweep)
    return tuple(_pinned(options, alone) for options in sweep)


def _pinned(options: RunOptions, alone: bool) -> RunOptions:
    """Pins a client that is `alone` to the last CPU that this process may use, unless `cpus` is given."""
    if options.cpus == "none":
        return replace(options, cpus=None)
    if options.cpus is None and alone:
        return replace(options, cpus=str(max(os.sched_getaffinity(0))))
    return options


def run(args: argparse.Namespace) -> int:
    """Measures and shows what the options ask for. Returns the exit code. Raises KechoError."""
    result = measure(plan := plan_of(args))
    if not result.runs:
        return INTERRUPTED
    show(plan, result)
    for why in result.failed.values():
        say(why)
    return INTERRUPTED if result.interrupted else 1 if result.failed else 0


def measure(plan: Plan) -> Result:
    """Sets up the surroundings, makes all runs of the plan, and restores the surroundings in any case."""
    far: dict[str, str] = {}
    named = targets.choose(plan.targets, far) if plan.targets or not plan.variants else []
    with (
        surroundings.entered(plan, say) as client,
        services.brought_up(plan.variants, client.addresses if client else (), plan.server_cpus) as fleet,
    ):
        chosen = surroundings.placed(targets.baseline_first([*named, *fleet.targets]), client)
        left_out = {**far, **fleet.left_out}
        for name, why in left_out.items():
            say(f"{name} is left out: {why}")
        for warning in surroundings.warnings(chosen, plan.needs, client):
            say(warning)
        empty = Result(
            host=Host.this(),
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            version=__version__,
            command=shlex.join(sys.argv),
            baseline=chosen[0].name,
            runs=(),
            left_out=left_out,
            order=tuple(target.name for target in chosen),
        )
        with progress.bar() as show_progress:
            return rounds.make_all(plan, chosen, empty, show_progress, functools.partial(_save_round, plan))


def _save_round(plan: Plan, result: Result) -> None:
    """Saves what there is. Where that fails the runs go on: the table needs no file, and the end tries again."""
    try:
        outputs.save_all(plan, result)
    except KechoError as e:
        say(f"{e}; the runs go on")


def show(plan: Plan, result: Result) -> None:
    """Prints the result, and writes the files of the plan."""
    if plan.json == STDOUT:
        print(json.dumps(result.to_json()))
    else:
        from kecho.show import bench_text

        form = bench_text.Form(
            columns(),
            wide=table_width(plan.wide) is None,
            markdown=plan.markdown,
            percentiles={f"p{percent:.15g}": percent / 100 for percent in plan.percentiles},
        )
        print(bench_text.bench_table(result, form), end="")
    outputs.save_all(plan, result)
    if plan.plot:
        from kecho.show import bench_plot

        bench_plot.plot_bench({"": result}, plan.plot)
