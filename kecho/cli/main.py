# SPDX-License-Identifier: MIT
"""The command line: ``kecho-ctl``. `main` turns errors into one line and an exit code; everything else is elsewhere."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any, NoReturn

from kecho import __version__
from kecho.backends.base import MODES
from kecho.model import config
from kecho.model.errors import KechoError, Unavailable, UsageError, one_line

_DESCRIPTION = "Run a TCP echo service that never leaves the kernel, and measure it."
_EPILOG = """\
examples:
  sudo kecho-ctl up --mode sockmap       bring a service up; returns when it answers
  kecho-ctl status                       what is up
  kecho-ctl stats                        latency histograms, from inside the kernel
  kecho-ctl stats 1 10 --json            every second, ten times, one object a line
  kecho-ctl bench                        measure what is up
  sudo kecho-ctl down                    and take it down
  kecho-ctl doctor                       what this machine can run

exit status:
  0 done; 1 failed while running; 2 wrong usage; 3 this machine cannot (the message says what is missing)
"""


class _Parser(argparse.ArgumentParser):
    """An argument error is one line that names the argument."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def build_parser() -> argparse.ArgumentParser:
    """The whole command line; also what completion and the man page are made from."""
    from kecho.cli import bench

    parser = _Parser(
        prog="kecho-ctl",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"kecho {__version__}")
    parser.add_argument(
        "--print-completion",
        choices=("bash", "zsh"),
        metavar="SHELL",
        help="print the completion script for bash or zsh",
    )
    commands: Any = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", parser_class=_Parser)
    _add_up(commands)
    _add_down(commands)
    _add_status(commands)
    _add_stats(commands)
    _add_reset(commands)
    bench.add_parser(commands)
    bench.add_plot_parser(commands)
    _add_tune(commands)
    _add_doctor(commands)
    return parser


def _add(commands: Any, name: str, run: Any, text: str, epilog: str = "") -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def _add_name(parser: argparse.ArgumentParser, nargs: str = "?") -> None:
    parser.add_argument("name", nargs=nargs, metavar="NAME", help=f"of the service (default {config.DEFAULT_NAME})")


# ---- up, down ----


def _add_up(commands: Any) -> None:
    parser = _add(
        commands,
        "up",
        _up,
        "bring a service up",
        """\
examples:
  sudo kecho-ctl up                                      the best mode this machine can run
  sudo kecho-ctl up --mode sockmap --bind 0.0.0.0        for remote clients too
  sudo kecho-ctl up --mode user --name base --port 7007  a second service beside it
""",
    )
    parser.add_argument("--mode", default="auto", metavar="MODE", help=f"auto (default), {', '.join(MODES)}")
    parser.add_argument("--name", default=config.DEFAULT_NAME, help="of the service (default %(default)s)")
    parser.add_argument("--port", type=_integer, default=config.DEFAULT_PORT, help="default %(default)s")
    parser.add_argument(
        "--bind",
        action="append",
        metavar="ADDR",
        help=f"address to listen on; repeatable (default {' and '.join(config.DEFAULT_BINDS)})",
    )
    parser.add_argument(
        "--backlog",
        type=_integer,
        default=config.DEFAULT_BACKLOG,
        metavar="N",
        help="connections that may wait to be accepted (default %(default)s)",
    )
    parser.add_argument(
        "--path",
        default="auto",
        help="sockmap: auto (default) serves local clients by msg and remote ones by skb; or msg, or skb",
    )
    parser.add_argument(
        "--limit",
        type=_integer,
        default=config.DEFAULT_LIMIT_BYTES,
        metavar="BYTES",
        help="sockmap: what a connection may have on its way in the kernel (default %(default)s)",
    )
    parser.add_argument(
        "--bench",
        type=_integer,
        default=0,
        metavar="0|1",
        help="module: 0 (default) an unbound workqueue, 1 a per-CPU one",
    )
    parser.add_argument(
        "--engine",
        default=config.ENGINES[0],
        metavar="NAME",
        help=f"user: what the server waits with, {' or '.join(config.ENGINES)} (default %(default)s)",
    )
    parser.add_argument("--no-inline", action="store_true", help="module: echo on the workqueue, not in softirq")
    parser.add_argument("--no-latency", action="store_true", help="sockmap: take no time stamps, only count")
    parser.add_argument("--foreground", action="store_true", help="stay, and end on Ctrl-C")


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def _up(args: argparse.Namespace) -> int:
    from kecho.backends import base as backends
    from kecho.kernel import features
    from kecho.service.controller import run_background, run_foreground

    mode, why = args.mode, ""
    if mode != "auto":
        backends.backend(mode)
    binds = tuple(args.bind) if args.bind else tuple(b for b in config.DEFAULT_BINDS if features.can_bind(b))
    wanted = config.Config(
        mode,
        args.name,
        args.port,
        binds,
        args.backlog,
        args.path,
        args.limit,
        not args.no_latency,
        args.bench,
        not args.no_inline,
        args.engine,
    )
    if mode == "auto":
        mode, why = backends.choose()
        wanted = config.Config(**{**vars(wanted), "mode": mode})

    def ready(line: str) -> None:
        print(line + (f" (auto chose {mode}: {why})" if why else ""), flush=True)

    if args.foreground:
        run_foreground(wanted, ready)
    else:
        ready(run_background(wanted))
    return 0


def _add_down(commands: Any) -> None:
    parser = _add(commands, "down", _down, "take services down, and clear away what dead ones left")
    _add_name(parser, "*")
    parser.add_argument("--all", action="store_true", help="every service")


def _down(args: argparse.Namespace) -> int:
    from kecho.service import rundir
    from kecho.service.client import Client

    for name in rundir.names() if args.all else args.name or [config.DEFAULT_NAME]:
        Client(name).down()
        print(f"{name} is down")
    return 0


# ---- status, stats, reset ----


def _add_status(commands: Any) -> None:
    parser = _add(commands, "status", _status, "list services and their connections")
    parser.add_argument("name", nargs="*", metavar="NAME", help="only these services, with every connection")
    parser.add_argument("--json", action="store_true", help="print an object (docs/metrics.md)")


def _status(args: argparse.Namespace) -> int:
    from kecho.service import client, rundir
    from kecho.show import terminal

    found = client.status_json()
    if args.name:
        known = {service["name"] for service in found["services"]}
        if missing := [name for name in args.name if name not in known]:
            raise KechoError(f"no service {missing[0]} is up")
        found["services"] = [service for service in found["services"] if service["name"] in args.name]
    for service in found["services"]:
        _add_sockets(service)
    for line in filter(None, map(rundir.damage, rundir.entries())):
        print(f"kecho-ctl: {line}", file=sys.stderr)
    if args.json:
        print(json.dumps(found))
    else:
        print(terminal.status_text(found["services"]), end="")
        print(terminal.listen_text(found["services"]), end="")
        print(terminal.sockets_text(found["services"], None if args.name else 10), end="")
    return 0


def _add_sockets(service: dict[str, Any]) -> None:
    from kecho.kernel import features, sockets

    service["sockets"] = None
    if service["state"] != "up":
        service["why"] = {"sockets": "the service is not up"}
    elif service["netns"] != features.netns_inode():
        service["why"] = {"sockets": "the service is in another network namespace"}
    else:
        service["sockets"] = sockets.connections(service["port"])


def _add_stats(commands: Any) -> None:
    parser = _add(
        commands,
        "stats",
        _stats,
        "show echoes, bytes and latency histograms, path by path",
        """\
examples:
  kecho-ctl stats                    since the service came up
  kecho-ctl stats 1                  what each second brought, until Ctrl-C
  kecho-ctl stats 1 10 --json        ten of them, one object a line
  kecho-ctl stats --plot latency.png
""",
    )
    parser.add_argument("interval", nargs="?", metavar="INTERVAL", help="seconds; show what each one brought")
    parser.add_argument("count", nargs="?", metavar="COUNT", help="end after that many")
    parser.add_argument("--name", default=config.DEFAULT_NAME, help="of the service (default %(default)s)")
    parser.add_argument("--per-cpu", action="store_true", help="each CPU by itself too")
    parser.add_argument("--json", action="store_true", help="print an object a line (docs/metrics.md)")
    parser.add_argument("--plot", metavar="FILE", help="draw the histograms into FILE (.png, .svg, .pdf)")


def _stats(args: argparse.Namespace) -> int:
    from kecho.service.client import Client
    from kecho.show import terminal

    # `stats NAME` is what one types after `down NAME`.
    if args.interval is not None and not args.interval[:1].isdigit() and args.count is None:
        args.name, args.interval = args.interval, None
    interval = _positive(args.interval, "INTERVAL", float)
    count = _positive(args.count, "COUNT", int)
    service = Client(args.name)
    last = service.snapshot()
    if interval is None:
        _show(last, args)
        return 0
    due = time.monotonic()
    while count is None or count > 0:
        due += interval
        time.sleep(max(0.0, due - time.monotonic()))
        now = service.snapshot()
        try:
            since = now - last
        except ValueError:  # reset meanwhile
            since = now
        if args.json:
            print(json.dumps(since.to_json()), flush=True)
        else:
            print(terminal.stats_text(since, per_cpu=args.per_cpu, width=_width(), interval=True), flush=True)
        last = now
        count = None if count is None else count - 1
    if args.plot:
        _show(last, args)
    return 0


def _show(snapshot: Any, args: argparse.Namespace) -> None:
    from kecho.show import terminal

    if args.plot:
        from kecho.show.stats_plot import plot_stats

        plot_stats(snapshot, args.plot)
    if args.interval is not None:
        return
    if args.json:
        print(json.dumps(snapshot.to_json()))
    else:
        print(terminal.stats_text(snapshot, per_cpu=args.per_cpu, width=_width()), end="")


def _positive(text: str | None, what: str, kind: Any) -> Any:
    if text is None:
        return None
    try:
        value = kind(text)
    except ValueError:
        value = 0
    if not 0 < value < 1e9:
        raise UsageError(f"{what} {text}: must be a number above 0")
    return value


def _add_reset(commands: Any) -> None:
    parser = _add(commands, "reset", _reset, "count from here on")
    _add_name(parser)


def _reset(args: argparse.Namespace) -> int:
    from kecho.service.client import Client

    Client(args.name or config.DEFAULT_NAME).reset()
    return 0


# ---- tune ----


def _add_tune(commands: Any) -> None:
    parser = _add(
        commands,
        "tune",
        _tune,
        "show which limits of the system a run would hit, and put back what a killed run left raised",
        """\
`bench --tune` raises these limits for the time of the run.

examples:
  kecho-ctl tune --connections 15000      what so many connections at once need
  sudo kecho-ctl tune --restore           after a run that was killed; the next bench as root does it too
""",
    )
    parser.add_argument(
        "--connections", type=_integer, default=10000, metavar="N", help="at once (default %(default)s)"
    )
    parser.add_argument("--restore", action="store_true", help="put back what a killed run left raised")
    parser.add_argument("--json", action="store_true", help="print an object (docs/metrics.md)")


def _tune(args: argparse.Namespace) -> int:
    from kecho.system import limits, tune

    if args.restore:
        said: list[str] = []
        said += map(tune.still_needed, tune.restore(said.append))
        print("\n".join(said or ["nothing was left raised"]))
        return 0
    connections = _positive(str(args.connections), "--connections", int)
    found = limits.examine(limits.Needs.of_run(connections, connections, paced=False), tune.current())
    print(json.dumps(found) if args.json else limits.text(found))
    return 0


# ---- doctor ----


def _add_doctor(commands: Any) -> None:
    parser = _add(commands, "doctor", _doctor, "say what this machine can run, what is missing and what mends it")
    parser.add_argument("--json", action="store_true", help="print an object (docs/metrics.md)")


def _doctor(args: argparse.Namespace) -> int:
    from kecho.cli import doctor

    found = doctor.examine()
    print(json.dumps(found) if args.json else doctor.text(found))
    return 0


def _width() -> int:
    return min(shutil.get_terminal_size().columns, 100) if sys.stdout.isatty() else 80


def _print_completion(parser: argparse.ArgumentParser, shell: str) -> int:
    try:
        import shtab
    except ImportError as e:
        raise Unavailable("the completion script is made by shtab, which is not installed", "pip install shtab") from e
    print(shtab.complete(parser, shell))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        parser = build_parser()
        args = parser.parse_args(argv)
        if args.print_completion:
            return _print_completion(parser, args.print_completion)
        if args.command is None:
            parser.print_help()
            return 2
        return int(args.run(args))
    except KechoError as e:
        print(f"kecho-ctl: {one_line(e)}", file=sys.stderr)
        return e.exit_code
    except OSError as e:
        print(f"kecho-ctl: {one_line(e)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):
            os.write(2, b"\n")
        return 130


if __name__ == "__main__":
    sys.exit(main())
