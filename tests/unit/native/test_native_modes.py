# SPDX-License-Identifier: MIT
"""bench's other modes and its files: open loop, connect-request-response, pipelining, logs, raw samples."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from native_support import TIMEOUT_S, ScriptedServer, Server, bench_json, build, echo, program, run, server

MODES = {
    "closed": (),
    "closed, epoll": ("--connections", 3),
    "open": ("--rate", 20000, "--connections", 3),
    "crr": ("--crr", "--connections", 3),
    "pipeline": ("--depth", 7, "--connections", 3),
}


@pytest.fixture(scope="module")
def target() -> Iterator[Server]:
    with server() as running:
        yield running


@pytest.mark.parametrize(
    ("mode", "threads"), [(mode, threads) for mode in MODES for threads in (1, 3) if (mode, threads) != ("closed", 3)]
)
def test_counts_are_exact(target: Server, mode: str, threads: int) -> None:
    count = 1009 if mode == "crr" else 10_007
    before = target.stats()
    result = bench_json(target.port, *MODES[mode], "--threads", threads, "--count", count)
    assert result["mode"] == mode.split(",")[0]
    assert result["requests"] == result["latency_ns"]["count"] == count
    assert sum(n for _, _, n in result["latency_ns"]["buckets"]) == count
    after = target.stats()
    assert after["bytes"] - before["bytes"] == count * 64
    connections = count if mode == "crr" else 1 if mode == "closed" else 3
    assert after["total"] - before["total"] == connections


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", ["1", "9", "70000", "1M"])
def test_sizes(target: Server, mode: str, size: str) -> None:
    assert bench_json(target.port, *MODES[mode], "--size", size, "--count", 40)["requests"] == 40


def settled(target: Server) -> dict[str, int]:
    """The server's counts, once it has counted all that it has sent."""
    before, now = None, target.stats()
    while before != now:
        time.sleep(0.02)
        before, now = now, target.stats()
    return now


@pytest.mark.parametrize("mode", MODES)
def test_warmup_and_duration(target: Server, mode: str) -> None:
    """What the server echoed beyond the measured requests is exactly the warm-up."""
    before = settled(target)
    result = bench_json(target.port, *MODES[mode], "--warmup", 0.5, "--duration", 0.5)
    assert result["requests"] > 0
    assert result["warmup_requests"] > 0
    answered = result["requests"] + result["warmup_requests"]
    assert settled(target)["bytes"] - before["bytes"] == answered * result["size_bytes"]
    assert bench_json(target.port, *MODES[mode], "--count", 10)["warmup_requests"] == 0


def test_no_more_requests_than_asked_for(target: Server) -> None:
    """Also where all of them begin before the first reply."""
    before = settled(target)
    assert bench_json(target.port, "--depth", 64, "--count", 10)["warmup_requests"] == 0
    assert settled(target)["bytes"] - before["bytes"] == 10 * 64


# ---- the open loop ----


def held(target: Server, *args: object) -> subprocess.Popen[str]:
    """A bench that waits at the end of its warm-up."""
    process = subprocess.Popen(
        [program("bench", "asan"), *map(str, ("--port", target.port, "--json", "--hold", *args))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert json.loads(process.stderr.readline())["progress"]["phase"] == "hold"
    return process


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "closed"])
def test_hold_parts_the_warmup_from_what_is_measured(target: Server, mode: str, threads: int) -> None:
    """What a server counts after the hold is what was measured, but for warm-up in flight."""
    process = held(target, *MODES[mode], "--threads", threads, "--warmup", 0.1, "--count", 1009)
    before = settled(target)
    out, err = process.communicate("\n", timeout=TIMEOUT_S)
    assert (process.returncode, err) == (0, "")
    result = json.loads(out)
    assert result["requests"] == 1009 and result["held"] is True
    in_flight = 3 * (7 if mode == "pipeline" else 1)
    assert 1009 * 64 <= target.stats()["bytes"] - before["bytes"] <= (1009 + in_flight) * 64


@pytest.mark.parametrize("warmup", [0, 0.1])
def test_hold_is_exact_on_one_connection(target: Server, warmup: float) -> None:
    process = held(target, "--warmup", warmup, "--count", 1009)
    before = settled(target)
    assert process.stdin is not None
    process.stdin.close()  # an end does as well as a line
    process.wait(TIMEOUT_S)
    assert settled(target)["echoes"] - before["echoes"] == 1009


@pytest.mark.parametrize("mode", MODES)
def test_time_held_is_no_latency(target: Server, mode: str) -> None:
    """No request took longer than the whole run without the two seconds in which it was held, and most much less."""
    begun_ns = time.monotonic_ns()
    process = held(target, *MODES[mode], "--warmup", 0.05, "--count", 100)
    time.sleep(2)
    out, _ = process.communicate("\n", timeout=TIMEOUT_S)
    result = json.loads(out)
    assert result["requests"] == 100
    # In the open loop a request may have been due before the hold; it waited then, too.
    assert result["latency_ns"]["max"] <= time.monotonic_ns() - begun_ns - 2e9
    assert result["latency_ns"]["p50"] < 1e9


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "closed"])
def test_cpu_time_is_that_of_the_measured_part(target: Server, mode: str, threads: int) -> None:
    """It is what /proc/stat says, without warm-up and hold, and of the time in which requests were measured."""
    server_ns = server_cpu_ns(target)
    served = ("--service", f"{target.process.pid},999999999")  # and one that has gone
    process = held(
        target, *MODES[mode], "--threads", threads, "--warmup", 0.3, "--duration", 0.2, "--look", 0.1, *served
    )
    time.sleep(0.3)
    before, begun_ns = cpu_idle(), time.monotonic_ns()
    out, _ = process.communicate("\n", timeout=TIMEOUT_S)
    around_ns, idle = time.monotonic_ns() - begun_ns, [now - then for now, then in zip(cpu_idle(), before, strict=True)]
    result = json.loads(out)
    cpu, look = result["cpu"], result["cpu_before"]
    assert cpu["cpus"] == look["cpus"] == os.sysconf("SC_NPROCESSORS_ONLN")
    assert cpu["tick_ns"] == 10**9 // os.sysconf("SC_CLK_TCK")
    # Each request was sent and answered within it; in the open loop one may have been due before.
    late_ns = result["late_ns"]["max"] if "late_ns" in result else 0
    assert result["latency_ns"]["max"] - late_ns <= cpu["elapsed_ns"] <= around_ns
    assert look["elapsed_ns"] >= 10**8
    # Idle time outside the measured part is at most all there is outside.
    outside_ns, error_ns = cpu["cpus"] * (around_ns - cpu["elapsed_ns"]), 2 * cpu["tick_ns"]
    assert cpu["idle_ns"] - error_ns <= idle[0] * cpu["tick_ns"] <= cpu["idle_ns"] + outside_ns + error_ns
    assert cpu["steal_ns"] <= (idle[1] + 1) * cpu["tick_ns"]
    assert 0 < cpu["client_ns"] <= threads * cpu["elapsed_ns"]
    assert 0 < cpu["service_ns"] <= server_cpu_ns(target) - server_ns


def server_cpu_ns(target: Server) -> int:
    """MAKE_PROCESS_CPUCLOCK(pid, CPUCLOCK_SCHED) of include/linux/posix-timers.h: what clock_getcpuclockid gives."""
    return time.clock_gettime_ns(~target.process.pid << 3 | 2)


def cpu_idle() -> tuple[int, int]:
    """Idle and iowait together, and steal, of all CPUs, in ticks."""
    words = list(map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:]))
    return words[3] + words[4], words[7]


def test_bursts_are_too_short_for_cpu_time(target: Server) -> None:
    result = bench_json(target.port, "--burst", 3, "--threads", 2)
    assert "cpu" not in result and "cpu_before" not in result


def test_interrupted_while_held(target: Server) -> None:
    process = held(target, "--connections", 3, "--threads", 2, "--warmup", 0.05, "--duration", 600)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=TIMEOUT_S)
    assert (process.returncode, err) == (130, "")
    assert json.loads(out)["interrupted"] is True


def test_open_loop_sends_what_is_due_and_no_more(target: Server) -> None:
    result = bench_json(target.port, "--rate", 1000, "--duration", 0.5, "--connections", 4, "--threads", 2)
    assert result["requests"] + result["unsent"] == 500
    assert result["rate_per_s"] == 1000


def test_requests_of_several_threads_are_due_in_turn(target: Server) -> None:
    """Three requests are due within 2.5 ms: at 0, 1 and 2 ms. If the threads were in phase, there would be four."""
    threads = ("--threads", 2, "--connections", 2)
    result = bench_json(target.port, "--rate", 1000, "--duration", 0.0025, *threads)
    assert result["requests"] + result["unsent"] == 3


@pytest.mark.parametrize("rate", ["1234567", "0.125", "99999999"])
def test_the_rate_is_told_as_it_was_given(target: Server, rate: str) -> None:
    assert bench_json(target.port, "--rate", rate, "--count", 1)["rate_per_s"] == float(rate)


def stalling(stall_s: float, after: int) -> ScriptedServer:
    """An echo server that stalls on all connections for stall_s after `after` answers."""
    lock = threading.Lock()
    left = after

    def serve(sock: socket.socket) -> None:
        nonlocal left
        while data := sock.recv(4096):
            with lock:
                left -= 1
                if left == 0:
                    time.sleep(stall_s)
            sock.sendall(data)

    return ScriptedServer(serve)


def test_a_stall_shows_in_the_open_loop_and_not_in_the_closed_one() -> None:
    """The server stalls for a tenth of the time: a tenth of the requests are due then, and one is in flight."""
    stall_ns = 200e6
    with stalling(stall_ns / 1e9, 500) as stalls:
        result = bench_json(stalls.port, "--rate", 500, "--duration", 2)
    latency = result["latency_ns"]
    assert result["requests"] == 1000
    late = sum(n for lo, _, n in latency["buckets"] if lo >= stall_ns / 10)
    assert late >= 80, "90 requests were due in the first nine tenths of the stall"
    assert latency["p99"] > stall_ns / 2
    assert latency["max"] >= stall_ns

    with stalling(stall_ns / 1e9, 500) as stalls:
        latency = bench_json(stalls.port, "--count", 1000)["latency_ns"]
    assert latency["max"] >= stall_ns
    assert sum(n for lo, _, n in latency["buckets"] if lo >= stall_ns / 2) <= 3, "one, if the machine is quiet"


def slow(sock: socket.socket) -> None:
    """A server that takes a fiftieth of a second for each request."""
    while data := sock.recv(4096):
        time.sleep(0.02)
        sock.sendall(data)


def test_what_cannot_be_sent_is_told() -> None:
    with ScriptedServer(slow) as crawls:
        result = bench_json(crawls.port, "--rate", 10_000, "--duration", 0.1, "--io-timeout", 0.2)
    assert 1 <= result["requests"] < 30
    assert result["requests"] + result["unsent"] == 1000
    # Percentiles are of all that were due: the median was never sent.
    assert {result["latency_ns"][name] for name in ("p50", "p90", "p99", "p999")} == {None}


def test_an_overloaded_run_makes_up_for_little() -> None:
    """Late requests of the warm-up are not made up for in the measured phase, nor all late ones after the end."""

    with ScriptedServer(slow) as crawls:
        result = bench_json(crawls.port, "--rate", 10_000, "--warmup", 0.2, "--duration", 0.2)
    assert 1 <= result["warmup_requests"] <= 12, "a fiftieth of a second each"
    assert 1 <= result["requests"] <= 18, "and a tenth of a second after the end"
    assert result["requests"] + result["unsent"] == 2000


def test_percentiles_of_an_overloaded_run_are_of_all_that_was_due() -> None:
    """The server becomes slow after half of the requests: p50 of all is known, the slowest tenth was never sent."""
    lock = threading.Lock()
    answered = 0

    def tires(sock: socket.socket) -> None:
        nonlocal answered
        while data := sock.recv(4096):
            with lock:
                answered += 1
                slow = answered > 300
            time.sleep(0.05 if slow else 0)
            sock.sendall(data)

    with ScriptedServer(tires) as server:
        result = bench_json(server.port, "--rate", 1000, "--duration", 0.5, "--io-timeout", 1)
    assert result["requests"] > 250 and result["unsent"] > 50, result
    assert result["latency_ns"]["p50"] is not None
    assert result["latency_ns"]["p90"] is result["latency_ns"]["p999"] is None


def test_a_known_delay_is_measured() -> None:
    delay_ns = 20_000_000

    def delayed(sock: socket.socket) -> None:
        while data := sock.recv(4096):
            time.sleep(delay_ns / 1e9)
            sock.sendall(data)

    for mode in ((), ("--connections", 2), ("--rate", 20), ("--crr",), ("--depth", 1)):
        with ScriptedServer(delayed) as slow:
            latency = bench_json(slow.port, "--count", 10, *mode)["latency_ns"]
        assert delay_ns <= latency["min"] < 1.5 * delay_ns, "what exceeds the delay is scheduling"


# ---- servers that misbehave, in these modes ----


SPOILS: dict[str, Callable[[bytes], bytes]] = {
    r"mismatch at byte 70 of reply \d+: expected 0x.., found 0x..": lambda d: d[:70] + bytes([d[70] ^ 1]) + d[71:],
    r"surplus byte 0x41 after reply \d+|mismatch at byte 0 of reply \d+: .* found 0x41": lambda d: d + b"A",
    r"timed out after 0.4 s with 99 of 100 bytes of reply \d+": lambda d: d[:-1],
}


@pytest.mark.parametrize("says", SPOILS)
@pytest.mark.parametrize("mode", MODES)
def test_misbehaviour_is_told(mode: str, says: str) -> None:
    """The fifth reply of the server is wrong."""
    lock = threading.Lock()
    count = 0

    def serve(sock: socket.socket) -> None:
        nonlocal count
        while data := sock.recv(100, socket.MSG_WAITALL):
            with lock:
                count += 1
                spoilt = count == 5
            if spoilt:
                sock.sendall(SPOILS[says](data))
                while sock.recv(4096):  # and then nothing
                    pass
                return
            sock.sendall(data)

    with ScriptedServer(serve) as bad:
        done = run("bench", "--port", bad.port, "--size", 100, "--count", 99, "--io-timeout", 0.4, *MODES[mode])
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(rf"bench: connection \d: ({says})\n", done.stderr), done.stderr


@pytest.mark.parametrize("mode", MODES)
def test_a_server_that_closes(mode: str) -> None:
    def half(sock: socket.socket) -> None:
        sock.sendall(sock.recv(100, socket.MSG_WAITALL)[:50])

    with ScriptedServer(half) as bad:
        done = run("bench", "--port", bad.port, "--size", 100, "--count", 99, *MODES[mode])
    assert done.returncode == 1
    says = r"(closed|reset) by the server after \d+ of 100 bytes of re(ply|quest) \d+( were sent)?"
    assert re.fullmatch(rf"bench: connection \d: {says}\n", done.stderr), done.stderr


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--rate", "0"], "--rate"),
        (["--rate", "x"], "--rate"),
        (["--depth", "0"], "--depth"),
        (["--depth", "1025"], "--depth"),
        (["--crr", "--depth", "2"], "--crr and --depth do not go together"),
        (["--burst", "2", "--rate", "2"], "--burst and --rate do not go together"),
    ],
)
def test_bad_arguments(args: list[str], says: str) -> None:
    done = run("bench", *args)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"bench: [^\n]+\n", done.stderr)
    assert says in done.stderr


# ---- files ----


@pytest.mark.parametrize("mode", MODES)
def test_raw_samples_agree_with_numpy_and_hdrhistogram(target: Server, mode: str, tmp_path: Path) -> None:
    hdrh_log = pytest.importorskip("hdrh.log")
    hdrh_histogram = pytest.importorskip("hdrh.histogram")
    raw, log = tmp_path / "raw", tmp_path / "log"
    count = 1009 if mode == "crr" else 10_007
    result = bench_json(target.port, *MODES[mode], "--count", count, "--raw", raw, "--hdr", log)
    latency = result["latency_ns"]
    samples = np.fromfile(raw, dtype="<u8")
    assert len(samples) == count
    assert (samples.min(), samples.max()) == (latency["min"], latency["max"])
    assert samples.mean() == pytest.approx(latency["mean"], rel=1e-6)
    assert samples.std() == pytest.approx(latency["stdev"], rel=1e-9, abs=1e-3), "of the samples, not of their slots"

    reader = hdrh_log.HistogramLogReader(str(log), hdrh_histogram.HdrHistogram(1, 3_600_000_000_000, 3))
    histogram = reader.get_next_interval_histogram()
    assert reader.get_next_interval_histogram() is None
    assert histogram.get_total_count() == count
    theirs = hdrh_histogram.HdrHistogram(1, 3_600_000_000_000, 3)
    for sample in samples:
        theirs.record_value(int(sample))
    ordered = np.sort(samples)
    for name, permille in (("p50", 500), ("p90", 900), ("p99", 990), ("p999", 999)):
        value = latency[name]
        rank = -(-permille * count // 1000)
        assert value == min(histogram.get_value_at_percentile(100 * rank / count), latency["max"])
        assert value == min(theirs.get_value_at_percentile(100 * rank / count), latency["max"])
        assert value == pytest.approx(int(ordered[rank - 1]), rel=1e-3)
    for lo, hi, n in latency["buckets"]:
        assert histogram.get_count_at_value(lo) == n == int(((samples >= lo) & (samples < hi)).sum())


def test_an_empty_histogram_is_a_log_too(tmp_path: Path) -> None:
    hdrh_log = pytest.importorskip("hdrh.log")
    hdrh_histogram = pytest.importorskip("hdrh.histogram")
    log = tmp_path / "log"
    with ScriptedServer(echo) as running:
        done = run("bench", "--port", running.port, "--rate", 0.1, "--count", 1, "--warmup", 0.05, "--duration", 0.05,
                   "--hdr", log)  # fmt: skip
    assert done.returncode == 0, done
    reader = hdrh_log.HistogramLogReader(str(log), hdrh_histogram.HdrHistogram(1, 3_600_000_000_000, 3))
    assert reader.get_next_interval_histogram().get_total_count() == 0


def test_files_that_cannot_be_written(tmp_path: Path) -> None:
    for option in ("--raw", "--hdr"):
        done = run("bench", "--port", 1, option, tmp_path / "no" / "file")
        assert done.returncode == 1
        assert done.stderr == f"bench: cannot write {tmp_path}/no/file: No such file or directory\n"


# ---- what the client itself costs ----


# Instructions of a whole 64 B round trip, kernel included, on the fastest path there is (kernel-notes: sk_msg).
FASTEST_ROUND_TRIP = 5572


def count_instructions(tmp_path: Path, *command: object) -> int:
    """User-space instructions of a program's whole run."""
    done = subprocess.run(
        ["valgrind", "--tool=callgrind", f"--callgrind-out-file={tmp_path}/callgrind", *map(str, command)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done
    match = re.search(r"Collected : (\d+)", done.stderr)
    assert match
    return int(match[1])


@pytest.mark.skipif(not shutil.which("valgrind"), reason="needs valgrind")
def test_the_client_costs_at_most_five_percent(target: Server, tmp_path: Path) -> None:
    """Takes the slope over the number of round trips, so that start-up and nearly all of the report cancel out."""
    source = Path(__file__).parent / "bare-loop.c"
    subprocess.run(["cc", "-O2", "-o", tmp_path / "bare", source], check=True, timeout=TIMEOUT_S)

    def slope(*command: object) -> float:
        few, many = (count_instructions(tmp_path, *command, n) for n in (100, 10_100))
        return (many - few) / 10_000

    bare = slope(tmp_path / "bare", target.port)
    ours = slope(build("plain") / "bench", "--port", target.port, "--count")
    print(f"user-space instructions a round trip: bare {bare:.0f}, bench {ours:.0f}")
    assert ours - bare <= 0.05 * FASTEST_ROUND_TRIP


@pytest.mark.parametrize("mode", [[], ["--connections", 2], ["--depth", 2], ["--rate", 200]], ids=str)
def test_a_busy_client_does_not_sleep(mode: list[object]) -> None:
    """The server takes 2 ms for each reply. With --busy-poll the client gives up its CPU for none of them."""

    def slow(sock: socket.socket) -> None:
        while data := sock.recv(64):
            time.sleep(0.002)
            sock.sendall(data)

    program("bench")  # which may build it

    def sleeps(busy_us: int) -> int:
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_nvcsw
        result = bench_json(slow_server.port, "--count", 100, "--busy-poll", busy_us, *mode)
        assert (result["requests"], result.get("busy_poll_us", 0)) == (100, busy_us)
        return resource.getrusage(resource.RUSAGE_CHILDREN).ru_nvcsw - before

    with ScriptedServer(slow) as slow_server:
        assert sleeps(1_000_000) < 40 < sleeps(0)
