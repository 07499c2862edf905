# SPDX-License-Identifier: MIT
"""Snapshots and services as text for people, at most as wide as the terminal."""

from __future__ import annotations

import itertools
import sys
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from kecho.model import histogram
from kecho.model.histogram import SUB, Histogram
from kecho.model.snapshot import PathStats, Snapshot
from kecho.model.units import ascii_only, duration, plural, uptime

MAX_ROWS = 24
PERCENTILE_TITLES = {"p50": "p50", "p90": "p90", "p99": "p99", "p999": "p99.9"}
# The samples between these ranks get fine rows, the others coarse ones.
_BULK = (0.005, 0.995)
_BLOCKS = " ▏▎▍▌▋▊▉█"


def _speaks_utf8() -> bool:
    return (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"


def finish(lines: Iterable[str], width: int | None, utf8: bool | None) -> str:
    """Joins the lines, in ASCII for a terminal without UTF-8, and cuts them at `width` if one is given."""
    plain = not (_speaks_utf8() if utf8 is None else utf8)
    return "".join(f"{(ascii_only(line) if plain else line).rstrip()[:width].rstrip()}\n" for line in lines)


def flow(parts: Iterable[str], width: int, indent: str = "") -> Iterator[str]:
    """Puts `parts` side by side, two spaces apart, on as many lines as they need. Further lines are indented."""
    line = ""
    for part in parts:
        if line and len(line) + 2 + len(part) > width:
            yield line
            line = f"{indent}  {part}"
        else:
            line = f"{line}  {part}" if line else f"{indent}{part}"
    if line:
        yield line


def prose(text: str, width: int, indent: str = "") -> list[str]:
    return textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=f"{indent}  ")


# --- stats ----------------------------------------------------------------------------------------------------------


def stats_text(
    snapshot: Snapshot,
    *,
    per_cpu: bool = False,
    width: int = 80,
    interval: bool = False,
    utf8: bool | None = None,
) -> str:
    """The counts, percentiles and histogram of each path. Ends with a newline; no line is wider than `width`.

    With `interval` the snapshot is a difference, and its `uptime_s` the time in between. `utf8` says whether the
    terminal is; None finds out.
    """
    plain = not (_speaks_utf8() if utf8 is None else utf8)
    return finish(_stats_lines(snapshot, per_cpu, width, interval, plain), width, utf8)


def _stats_lines(snapshot: Snapshot, per_cpu: bool, width: int, interval: bool, plain: bool) -> Iterator[str]:
    time = f"{'in' if interval else 'up'} {uptime(snapshot.uptime_s)}"
    yield from flow((snapshot.name, snapshot.mode, f"port {snapshot.port}", f"kernel {snapshot.kernel}", time), width)
    seen = snapshot.connections
    counted = (f"{n:,} {what}" for what, n in vars(seen).items())
    yield from flow(("connections:", *counted), width)
    for name, stats in snapshot.paths.items():
        yield ""
        yield from _path_lines(name, stats, per_cpu, width, plain)


def _path_lines(name: str, stats: PathStats, per_cpu: bool, width: int, plain: bool) -> Iterator[str]:
    if not stats.echoes:
        idle = [f"path {name}:", "no echo yet"]
        if stats.fallbacks:
            idle.append(plural(stats.fallbacks, "fallback"))
        yield from flow(idle, width)
        return
    yield from flow(
        (
            f"path {name}:",
            plural(stats.echoes, "echo"),
            plural(stats.bytes, "byte"),
            plural(stats.fallbacks, "fallback"),
        ),
        width,
    )
    if stats.latency is None:
        yield from prose(f"latency not observed: {stats.why or 'no reason given'}", width, "  ")
        return
    if not stats.latency.count:
        yield "  latency: no sample"
        return
    yield from _latency_lines(stats, stats.latency, width, plain)
    if per_cpu:
        yield from _cpu_lines(stats.latency)


def _latency_lines(stats: PathStats, latency: Histogram, width: int, plain: bool) -> Iterator[str]:
    figures = [
        f"{title} {duration(latency.percentile(histogram.PERCENTILES[key]))}"
        for key, title in PERCENTILE_TITLES.items()
    ]
    yield from flow((*figures, f"max {duration(latency.max)}"), width, "  ")
    if latency.count != stats.echoes:
        yield from prose(f"latency of {latency.count:,} of {plural(stats.echoes, 'echo')}", width, "  ")
    yield ""
    rows = histogram_rows(latency.merged())
    most = max(n for _, _, n in rows)
    digits = len(f"{most:,}")
    room = max(1, width - len(f"  {'':7} – {'':7}  {'':{digits}}  "))
    for low, high, n in rows:
        yield f"  {duration(low):>7} – {duration(high):>7}  {n:>{digits},}  {_bar(n / most, room, plain)}"


def histogram_rows(counts: Mapping[int, int], limit: int = MAX_ROWS) -> list[tuple[int, int, int]]:
    """At most `limit` rows [low, high) with their counts, from counts by slot; none outside what was counted.

    The bulk of the samples gets rows as fine as there is room for, up to eight an octave; the tails, which hold at
    most a hundredth of them, get a row for one, two or four octaves, so that an outlier does not flatten the picture.
    """
    used = sorted(index for index, n in counts.items() if n)
    if not used:
        return []
    first, last = used[0], used[-1]
    total = sum(counts.values())
    bulk_first, bulk_last = (_slot_of_rank(counts, max(1, round(q * total))) for q in _BULK)
    # Coarser tails lose the least.
    for fine, octaves in itertools.product((1, 2, 4, 8, 16, 32, 64), (1, 2, 4)):
        coarse = max(SUB, fine) * octaves
        bulk = range(bulk_first // fine * fine, bulk_last + 1, fine)
        bulk_end = bulk[-1] + fine
        edges = {first, last + 1, bulk_end, *bulk}
        edges.update(range(first // coarse * coarse, bulk.start, coarse))
        edges.update(range(-(-bulk_end // coarse) * coarse, last + 1, coarse))
        marks = sorted(edge for edge in edges if first <= edge <= last + 1)
        if len(marks) - 1 <= limit:
            break
    return [
        (histogram.bounds(a)[0], histogram.bounds(b - 1)[1], sum(counts.get(index, 0) for index in range(a, b)))
        for a, b in itertools.pairwise(marks)
    ]


def _slot_of_rank(counts: Mapping[int, int], rank: int) -> int:
    for index in sorted(counts):
        rank -= counts[index]
        if rank <= 0:
            return index
    raise AssertionError("rank beyond the last sample")


def _bar(share: float, room: int, plain: bool) -> str:
    """A bar of `share` of `room` columns, to an eighth of a column. It is never empty for a share above 0."""
    if plain:
        return "@" * max(round(share * room), 1 if share > 0 else 0)
    eighths = max(round(share * room * 8), 1 if share > 0 else 0)
    return "█" * (eighths // 8) + _BLOCKS[eighths % 8].strip()


def _cpu_lines(latency: Histogram) -> Iterator[str]:
    rows = []
    for cpu, counts in sorted(latency.cpus.items()):
        alone = Histogram({cpu: counts})
        p50, p99 = (duration(alone.percentile(histogram.PERCENTILES[key])) for key in ("p50", "p99"))
        rows.append((f"cpu {cpu}", f"{alone.count:,}", p50, p99))
    yield ""
    yield from (f"  {line}" for line in table(("", "count", "p50", "p99"), rows, left=1))


# --- tables ---------------------------------------------------------------------------------------------------------


_SHORTEST = 8  # columns of a name that gives way


def table(
    titles: Sequence[str],
    rows: Sequence[Sequence[str]],
    left: int,
    width: int | None = None,
    gives_way: Sequence[str] = (),
) -> list[str]:
    """Lines of a table, two spaces between columns; the first `left` columns are flush left, the others right.

    Above `width`, columns give way, in the order of `gives_way`, which has their titles; then the longest names do.
    """
    columns = list(zip(titles, *rows, strict=True))
    lefts = [i < left for i in range(len(columns))]
    widths = [max(map(len, column)) for column in columns]
    for title in gives_way:
        if width is None or _total(widths) <= width:
            break
        at = next((i for i, column in enumerate(columns) if column[0] == title), None)
        if at is not None:
            del columns[at], lefts[at], widths[at]
    while width is not None and _total(widths) > width:
        longest = max((i for i, is_left in enumerate(lefts) if is_left), key=lambda i: widths[i])
        if widths[longest] <= _SHORTEST:
            break
        widths[longest] = max(_SHORTEST, widths[longest] - (_total(widths) - width))
    lines = []
    for row in zip(*columns, strict=True):
        cells = (
            _shortened(cell, room).ljust(room) if is_left else cell.rjust(room)
            for cell, room, is_left in zip(row, widths, lefts, strict=True)
        )
        lines.append("  ".join(cells).rstrip())
    return lines


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + 2 * (len(widths) - 1)


def _shortened(cell: str, room: int) -> str:
    return cell if len(cell) <= room else f"{cell[: room - 1]}…"


def status_text(services: Sequence[Mapping[str, Any]], utf8: bool | None = None, width: int | None = None) -> str:
    """The services, a line each, from their status objects; ``-`` is what one does not tell."""
    if not services:
        return "nothing is up\n"
    rows = []
    for service in services:
        connections = service.get("connections") or {}
        up = service.get("uptime_s")
        rows.append(
            (
                service["name"],
                service["mode"],
                ",".join(service.get("paths") or ()) or "-",
                str(service.get("state", "-")),
                ",".join(service.get("binds") or ()) or "-",
                *(str(_or_dash(service.get(key))) for key in ("port", "pid")),
                uptime(up) if up is not None else "-",
                *(f"{n:,}" if (n := connections.get(key)) is not None else "-" for key in ("active", "total")),
            )
        )
    titles = ("name", "mode", "paths", "state", "addresses", "port", "pid", "uptime", "active", "total")
    return finish(table(titles, rows, 5, width, ("pid", "total", "uptime", "paths", "addresses", "mode")), width, utf8)


def _or_dash(value: object) -> object:
    return "-" if value is None else value


def listen_text(services: Sequence[Mapping[str, Any]], width: int = 80) -> str:
    """A line for each service that is in trouble, and for connections that found no room; "" if none."""
    lines = []
    for service in services:
        if service.get("trouble"):
            lines += ["", *prose(f"{service['name']}: {service['trouble']}", width)]
    lines += _no_room(services, width)
    return "".join(line + "\n" for line in lines)


def _no_room(services: Sequence[Mapping[str, Any]], width: int) -> Iterator[str]:
    """What listeners had no room for, a line for each network namespace: nobody counts it by listener."""
    counts: dict[int, Counter[str]] = {}
    for service in services:
        seen = counts.setdefault(service.get("netns", 0), Counter())
        seen |= Counter(service.get("listen") or {})  # of whom has been up longest
        counts[service.get("netns", 0)] = seen
    for seen in counts.values():
        if told := ", ".join(f"{count:,} {name}" for name, count in seen.items() if count):
            where = "this network namespace" if len(counts) == 1 else "one of these network namespaces"
            yield ""
            yield from prose(f"no room to listen, in {where}: {told} (all its listeners together)", width)


def sockets_text(services: Sequence[Mapping[str, Any]], most: int | None, width: int | None = None) -> str:
    """The connections of services with TCP state and queues in bytes, at most `most` for each; "" if there are none."""
    lines: list[str] = []
    for service in services:
        sockets = service.get("sockets")
        if sockets is None:
            if service.get("state") == "up":
                lines += ["", f"{service['name']}: connections not shown: {service['why']['sockets']}"]
            continue
        shown = sockets[:most]
        if shown:
            rows = [(s["local"], s["remote"], s["state"], str(s["recv_queue"]), str(s["send_queue"])) for s in shown]
            titles = ("local", "remote", "state", "recv-queue", "send-queue")
            lines += ["", *table(titles, rows, 3, width, ("recv-queue", "send-queue"))]
        if len(sockets) > len(shown):
            lines.append(f"and {len(sockets) - len(shown)} more: kecho-ctl status {service['name']}")
    return "".join(line + "\n" for line in lines)
