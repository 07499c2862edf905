# SPDX-License-Identifier: MIT
"""A result of bench as text: the headline, caveats, tables, and notes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from kecho.bench import summary
from kecho.bench.interval import CONFIDENCE, MIN_ROUNDS, Ratio
from kecho.bench.result import Result
from kecho.bench.run import Load, Run
from kecho.bench.summary import Comparison, Summary
from kecho.model.histogram import PERCENTILES
from kecho.model.snapshot import PathStats
from kecho.model.units import duration, plural, ratio, three_digits
from kecho.show.terminal import PERCENTILE_TITLES, finish, flow, prose, table

# The modes of the load generator, in words.
_WORKLOADS = {
    "closed": "closed loop",
    "open": "open loop at {rates}/s",
    "crr": "connect-request-response",
    "pipeline": "pipelined, {depth} deep",
}
_SHARED = {
    "CPU": ", as the client",
    "core": ", on the client's core",
    "cache": ", with a cache of the client's",
    "nothing": ", across from the client",
}
_EMULATED = "QEMU TCG"  # QEMU's name for an emulated processor
_LATE = 0.25  # of p50 by which requests may be late, on average, before it is noted
_OTHERS = 0.25  # CPUs kept busy by other work, from which on it is noted
_STEAL = 0.05  # of the busy time that the host took, from which on it is noted
_DISAGREEMENT = 2.0  # from this factor between the ratios of p50 and of requests a second on, there is a note


# The columns that give way in a narrow terminal, in this order; --wide has all.
_OUTSIDE_GIVES_WAY = ("p90", "mode", "p99.9", "max", "path", "MB/s", "CPU/request", "burst", "offered/s", "ratio")
_COMPARISON_GIVES_WAY = ("rounds", "of CPU/request", "of requests/s", "CPU/request", "requests/s", "of p50")
_INSIDE_GIVES_WAY = ("fallbacks", "bytes", "echoes", "outside p99", "inside p99")


@dataclass(frozen=True)
class Form:
    """How a result is shown. Sentences have lines of `width`; and so have tables, unless they are `wide`.

    `percentiles` are those of the table of the client's figures, by title, in place of the usual ones.
    """

    width: int = 80
    wide: bool = True
    markdown: bool = False
    percentiles: Mapping[str, float] = field(default_factory=dict)
    utf8: bool | None = None  # None: as standard output's encoding says

    def table(
        self, titles: Sequence[str], rows: Sequence[Sequence[str]], left: int, gives_way: Sequence[str]
    ) -> list[str]:
        if self.markdown:
            rule = ["---" if i < left else "---:" for i in range(len(titles))]
            return [f"| {' | '.join(cell.strip() for cell in row)} |" for row in (titles, rule, *rows)]
        return table(titles, rows, left, None if self.wide else self.width, gives_way)

    def prose(self, sentence: str) -> list[str]:
        """Lines of a sentence that introduces a table."""
        return [sentence, ""] if self.markdown else prose(sentence, self.width)

    def notes(self, sentences: Sequence[str]) -> list[str]:
        if self.markdown:
            return [f"- {sentence}" for sentence in sentences]
        return [line for sentence in sentences for line in prose(f"note: {sentence}", self.width)]


_FORM = Form()


def bench_table(result: Result, form: Form = _FORM) -> str:
    """What bench measured, as text or in Markdown."""
    swept = len(result.loads()) > 1
    parts = (*headline(result), *result.host.summary())
    lines = ["; ".join(parts)] if form.markdown else [*flow(parts, form.width)]
    lines.append("")
    if first := caveats(result):
        lines += form.notes(first)
        lines.append("")
    lines += _outside_lines(result, swept, form)
    lines += _comparison_lines(result, swept, form)
    lines += _inside_lines(result, swept, form)
    if more := notes(result):
        lines.append("")
        lines += form.notes(more)
    return finish(lines, max(form.width, *map(len, lines)), form.utf8)


# ---- words ----


def headline(result: Result) -> list[str]:
    """What was measured, in parts to be put side by side."""
    if not result.runs:
        return ["nothing was measured"]
    options = result.runs[0].options
    loads = result.loads()
    parts = [
        f"{workload(result)}: {_several([load.connections for load in loads], 'connection')}",
        _several([run.options["threads"] for run in result.runs], "thread"),
        f"{', '.join(f'{size:,}' for size in dict.fromkeys(load.size_bytes for load in loads))} B",
    ]
    if "bursts" in options:
        parts.append(plural(options["bursts"], "burst"))
    if cpus := options.get("cpus"):
        parts.append(f"client on CPU {cpus}")
    if busy_us := options.get("busy_poll_us"):
        parts.append(f"client polls for {busy_us} µs")
    pinned = (run.options for run in result.runs if "server_cpus" in run.options)
    for servers, shared in dict.fromkeys((one["server_cpus"], one.get("shared", "")) for one in pinned):
        parts.append(f"services on CPU {servers}{_SHARED.get(shared, '')}")
    if options.get("topology") == "veth":
        delay_ms = options["delay_ms"]
        parts.append("client behind veth" + (f", {delay_ms:g} ms each way" if delay_ms else ""))
    repeats = 1 + max(run.repeat for run in result.runs)
    if repeats > 1:
        parts.append(f"{repeats} interleaved runs each")
    return parts


def workload(result: Result) -> str:
    """What the load generator did: ``closed loop``, ``open loop at 5,000/s``. The result must have a run."""
    options = result.runs[0].options
    rates = ", ".join(dict.fromkeys(_rate(load.rate_per_s) for load in result.loads()))
    return _WORKLOADS.get(options["mode"], str(options["mode"])).format(**options, rates=rates)


def _several(numbers: Sequence[int], noun: str) -> str:
    """``1 connection``, ``1, 10, 100 connections``."""
    different = list(dict.fromkeys(numbers))
    if len(different) == 1:
        return plural(different[0], noun)
    return f"{', '.join(f'{n:,}' for n in different)} {noun}s"


def caveats(result: Result) -> list[str]:
    """What a reader must know before the figures, a sentence each."""
    said = [f"{name} failed, and was measured no further: {why}" for name, why in result.failed.items()]
    said += [text for text in (other_work(result), stolen(result)) if text]
    for target in result.targets:
        where = _where(target, result)
        if silent := len(target.runs) - len(target.answered):
            said.append(
                f"{where}: no request was answered in {silent} of {plural(len(target.runs), 'round')}: its latency "
                "counts as longer than in all others, and there is no ratio of p50 (--duration)"
            )
        if groups := summary.modes(target):
            low, high = (f"{len(group)} at {duration(_middle(group))}" for group in groups)
            said.append(f"{where}: the p50 of its rounds fall into two groups, {low} and {high}: a median hides that")
        elif summary.scatters(target):
            least, most = duration(min(target.p50s)), duration(max(target.p50s))
            said.append(f"{where}: the p50 of its rounds scatter from {least} to {most}")
        comparison = result.compare(target)
        if comparison and target.name != result.baseline and _disagree(target, comparison):
            said.append(
                f"{where}: p50 says {ratio(comparison.p50.value)}, requests a second say "
                f"{ratio(comparison.requests_per_s.value if comparison.requests_per_s else None)}: with more than one "
                "request in flight a short latency is no throughput, nor the other way round (docs/metrics.md)"
            )
    if any("bursts" in run.options and "burst_ns" not in run.options for run in result.runs):
        said.append("an older kecho measured this burst: latency counts from each request's send, not from the release")
    return said


def _middle(group: Sequence[float]) -> float:
    return group[len(group) // 2]


def _where(target: Summary, result: Result) -> str:
    """The name of a target, in a sweep with its load."""
    if len(result.loads()) == 1:
        return target.name
    load = target.load
    due = f", {_rate(load.rate_per_s)}/s" if load.rate_per_s else ""
    return f"{target.name}, {plural(load.connections, 'connection')}, {load.size_bytes:,} B{due}"


def _rate(per_s: float) -> str:
    return f"{per_s:,.10g}" if per_s else "-"


def _disagree(target: Summary, comparison: Comparison) -> bool:
    """Do the two ratios disagree? An open loop is left out, since its rate does not depend on the server."""
    apart = comparison.disagreement
    return target.runs[0].options["mode"] != "open" and not 1 / _DISAGREEMENT <= apart <= _DISAGREEMENT


def notes(result: Result) -> list[str]:
    """What a reader must know about the figures, a sentence each."""
    said = []
    if result.interrupted:
        said.append("interrupted: this is what was measured until then")
    if _EMULATED in result.host.cpu:
        said.append(
            f"measured in a virtual machine whose processor is emulated, Linux {result.host.kernel}: "
            "compare these rows with each other only"
        )
    if any(comparison.p50.interval is None for _, comparison in _compared(result)):
        said.append(f"a ratio of fewer than {MIN_ROUNDS} rounds has no interval: --repeat {MIN_ROUNDS} or more")
    said += (f"{name} is left out: {why}" for name, why in result.left_out.items())
    for target in result.targets:
        said += (f"{_where(target, result)}: {text}" for text in (overload(target), lateness(target)) if text)
    for run in result.runs:
        dropped = run.listened.note() if run.listened else ""
        said += (f"{run.target}: {text}" for text in (run.why, mismatch(run), dropped) if text)
    return list(dict.fromkeys(said))


def other_work(result: Result) -> str:
    """That other work kept the machine busy before the runs; "" if it was quiet."""
    spans = [run.cpu_before for run in result.runs if run.cpu_before]
    elapsed_ns = sum(span.elapsed_ns for span in spans)
    busy = sum(span.busy_ns for span in spans) / elapsed_ns if elapsed_ns else 0.0
    if busy < _OTHERS:
        return ""
    return (
        f"other work kept {busy:.1f} of {plural(spans[0].cpus, 'CPU')} busy before the runs: CPU time a request "
        "includes such work, and all figures suffer from it"
    )


def stolen(result: Result) -> str:
    """That the host of this virtual machine gave much of its time to others; "" if it did not."""
    spans = [run.cpu for run in result.runs if run.cpu]
    steal_ns, busy_ns = sum(span.steal_ns for span in spans), sum(span.busy_ns for span in spans)
    if not busy_ns or steal_ns / busy_ns < _STEAL:
        return ""
    return f"the host of this virtual machine took {steal_ns / busy_ns:.0%} of its busy CPU time for others (steal)"


def mismatch(run: Run) -> str:
    """How the service's count contradicts the client's; "" if it does not."""
    surplus = run.surplus_bytes()
    if surplus < 0:
        return f"the service counted {-surplus:,} bytes less than the client received"
    if surplus > 0:
        return f"the service counted {surplus:,} bytes more than the client received: had it other clients?"
    return ""


def overload(target: Summary) -> str:
    """How many requests of an open loop were due and never sent; "" if none."""
    unsent = [run.latency.unsent for run in target.runs if run.latency.unsent]
    if not unsent:
        return ""
    return (
        f"{plural(sum(unsent), 'request')} never sent, in {len(unsent)} of {plural(len(target.runs), 'round')}: "
        "the rate is too high (a percentile that falls among them is -)"
    )


def lateness(target: Summary) -> str:
    """That an open loop's requests were late before the server could be; empty if p50 says little of that."""
    late_ns = summary.median(run.options.get("late_ns", {}).get("mean") for run in target.runs if run.latency.count)
    p50_ns = target.percentiles["p50"]
    if late_ns is None or (p50_ns is not None and late_ns < _LATE * p50_ns):
        return ""
    return (
        f"requests were sent {duration(late_ns)} after they were due, on average, and p50 is {duration(p50_ns)}: they "
        "waited for an idle connection or for the client (--connections, --threads, or a lower --rate)"
    )


# ---- tables ----

_LOAD_TITLES = ("conns", "size", "offered/s")  # of what a sweep varies; the last only in an open loop


def _target_table(
    titles: Sequence[str],
    rows: Sequence[tuple[Summary, Sequence[str]]],
    left: int,
    swept: bool,
    form: Form,
    gives_way: Sequence[str],
) -> list[str]:
    """A table of targets; of a sweep, with the load in front."""
    if not swept:
        return form.table(titles, [row for _, row in rows], left, gives_way)
    loads = [_load_cells(target.load) for target, _ in rows]
    heads = _LOAD_TITLES[: len(loads[0])]
    widths = [max(map(len, column)) for column in zip(heads, *loads, strict=True)]
    aligned = [
        (*(cell.rjust(w) for cell, w in zip(load, widths, strict=True)), *row)
        for load, (_, row) in zip(loads, rows, strict=True)
    ]
    return form.table((*heads, *titles), aligned, left + len(heads), gives_way)


def _load_cells(load: Load) -> tuple[str, ...]:
    rate = (_rate(load.rate_per_s),) if load.rate_per_s else ()
    return f"{load.connections:,}", f"{load.size_bytes:,}", *rate


def _outside_lines(result: Result, swept: bool, form: Form) -> list[str]:
    """A row a target and load: each figure the median of the rounds, but for max; ratios beside both of them.

    Megabytes a second have the ratio of requests a second: under one load all requests are of one size.
    """
    burst = any(target.burst_ns is not None for target in result.targets)
    offered = not swept and any(target.load.rate_per_s for target in result.targets)
    percentiles = form.percentiles or {PERCENTILE_TITLES[name]: q for name, q in PERCENTILES.items()}
    titles = ["target", "mode", "path", *percentiles, "max", "p50 ratio"]
    titles += [*(["offered/s"] if offered else []), "requests/s", "MB/s", "ratio"]
    cpu = any(target.cpu_ns is not None for target in result.targets)
    titles += [*(["CPU/request"] if cpu else []), *(["burst"] if burst else [])]
    rows = []
    for target in result.targets:
        comparison = result.compare(target)
        rate = comparison.requests_per_s if comparison else None
        cells = [
            target.name,
            target.mode or "-",
            target.path or "-",
            *(duration(target.percentile(q), gap="") for q in percentiles.values()),
            duration(target.max if target.requests else None, gap=""),
            ratio(comparison.p50.value if comparison else None),
            *([_rate(target.load.rate_per_s)] if offered else []),
            f"{target.requests_per_s:,.0f}" if target.requests_per_s is not None else "-",
            three_digits(target.bytes_per_s / 1e6) if target.bytes_per_s is not None else "-",
            ratio(rate.value if rate else None),
        ]
        cells += [duration(target.cpu_ns, gap="")] if cpu else []
        cells += [duration(target.burst_ns, gap="")] if burst else []
        rows.append((target, cells))
    gives_way = [title for title in _OUTSIDE_GIVES_WAY if title not in form.percentiles]
    return _target_table(titles, rows, 3, swept, form, gives_way)


def _compared(result: Result) -> list[tuple[Summary, Comparison]]:
    return [(t, c) for t in result.targets if t.name != result.baseline and (c := result.compare(t))]


def _comparison_lines(result: Result, swept: bool, form: Form) -> Iterator[str]:
    """The ratios with their intervals and the verdicts."""
    found = _compared(result)
    if not any(comparison.p50.interval for _, comparison in found):
        return
    cpu = any(comparison.cpu for _, comparison in found)
    yield ""
    yield from form.prose(
        f"against {result.baseline}, round by round, with {CONFIDENCE:.0%} intervals: how many times shorter; more"
        + ("; less" if cpu else "")
    )
    figures = ["p50", "requests/s", *(["CPU/request"] if cpu else [])]
    titles = ("target", *(f"{of}{figure}" for figure in figures for of in ("", "of ")), "rounds", "p50 is")
    rows = [(target, (target.name, *_comparison_cells(comparison, cpu))) for target, comparison in found]
    yield from _target_table(titles, rows, 1, swept, form, _COMPARISON_GIVES_WAY)


def _comparison_cells(comparison: Comparison, cpu: bool) -> tuple[str, ...]:
    return (
        *_ratio_cells(comparison.p50),
        *_ratio_cells(comparison.requests_per_s),
        *(_ratio_cells(comparison.cpu) if cpu else ()),
        str(comparison.rounds),
        comparison.verdict or "too few rounds",
    )


def _ratio_cells(found: Ratio | None) -> tuple[str, str]:
    if found is None:
        return "-", "-"
    interval = found.interval
    return (
        f"{three_digits(found.value)}×",
        f"{three_digits(interval.low)} – {three_digits(interval.high)}" if interval else "-",
    )


def _inside_lines(result: Result, swept: bool, form: Form) -> Iterator[str]:
    """What the services counted in these runs, by path, beside the client's figures."""
    inside = [target for target in result.targets if target.kernel is not None]
    if not inside:
        return
    warm = not all(run.counts_exactly for run in result.runs)
    yield ""
    warmup = ", with the warm-up" if warm else ""
    yield from form.prose(f"inside: counted by the services during these runs{warmup}; outside: measured by the client")
    rows = [
        (target, (target.name, path, *_inside_cells(target, path, stats)))
        for target in inside
        for path, stats in (target.kernel or {}).items()
        if stats.echoes
    ]
    figures = [f"{where} {key}" for key in ("p50", "p99") for where in ("inside", "outside")]
    titles = ("target", "path", *figures, "echoes", "bytes", "fallbacks")
    yield from _target_table(titles, rows, 2, swept, form, _INSIDE_GIVES_WAY)


def _inside_cells(target: Summary, path: str, stats: PathStats) -> Iterator[str]:
    inside = target.inside_percentiles(path) if stats.latency is not None else dict.fromkeys(PERCENTILES)
    for key in ("p50", "p99"):
        yield duration(inside[key], gap="")
        yield duration(target.percentiles[key], gap="")
    yield from (f"{stats.echoes:,}", f"{stats.bytes:,}", f"{stats.fallbacks:,}")
