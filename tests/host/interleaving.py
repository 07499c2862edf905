# SPDX-License-Identifier: MIT
"""Random interleavings of a client's operations on a connection, with every byte of the echo compared.

A script is a list of steps that `make_script` draws from a random.Random: that of hypothesis in test_property.py, one
with a seed in soak.py. `run_round` runs several at a time, each on its own connection and in its own thread.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import network
import support

# A connection without progress for this time is stuck. TCP itself may wait for seconds on a busy machine.
STUCK_S = support.TIMEOUT_S * 2 / 3
_PERIOD = 1048573  # of the payload: a prime, so that losing or repeating a power of two is noticed
_MOST_THREADS = 4
_SMALL = 200_000
_MOST_BYTES = {False: 6 << 20, True: 400_000}  # that a script sends; with small buffers
_FAMILIES = (socket.AF_INET, socket.AF_INET6)

Step = tuple[Any, ...]


class Stuck(AssertionError):
    """A connection makes no progress."""


@dataclass(frozen=True)
class Script:
    """One connection: the options of its socket, its steps, and its end."""

    seed: int  # of the payload
    family: int
    sndbuf: int  # 0: the kernel's own
    rcvbuf: int
    mss: int  # 0: the device's own
    nodelay: bool
    steps: tuple[Step, ...]
    end: str

    @property
    def small_buffers(self) -> bool:
        """Is a buffer of the client smaller than a segment of the loopback device, now or later?"""
        sizes = [self.sndbuf, self.rcvbuf, *(step[1] for step in self.steps if step[0] in ("sndbuf", "rcvbuf"))]
        return any(0 < size < _SMALL for size in sizes)


def make_script(rng: random.Random, steps: int = 12, stream_bytes: int = 1 << 20) -> Script:
    """Draws a script of at most `steps` steps, with streams of at most `stream_bytes`. Depends only on rng."""
    script = Script(
        seed=rng.randrange(1 << 32),
        family=rng.choice((0, 1)),
        sndbuf=rng.choice((0, 0, 0, 4096, 20_000, 1 << 20)),
        rcvbuf=rng.choice((0, 0, 0, 4096, 20_000, 1 << 20)),
        mss=rng.choice((0, 0, 1448, 536)),
        nodelay=rng.choice((True, True, False)),
        steps=tuple(_make_step(rng, stream_bytes) for _ in range(rng.randrange(1, steps + 1))),
        end=rng.choice(("half", "half", "half", "half at once", "close", "reset", "reset at once")),
    )
    # A window below a segment advances only with TCP's timers: correct, but it would take hours.
    return replace(script, mss=script.mss or 1448) if script.small_buffers else script


def _make_step(rng: random.Random, stream_bytes: int) -> Step:
    kind = rng.choice(list(_STEPS))
    if kind == "stream":
        return kind, rng.randrange(1, stream_bytes), _chunk(rng)
    return kind, *(draw(rng) for draw in _STEPS[kind])


def _size(rng: random.Random) -> int:
    low, high = rng.choice(((1, 10), (1, 100), (60, 70), (1, 5000), (4090, 4102), (1, 70_000), (65_530, 300_000)))
    return rng.randrange(low, high)


def _chunk(rng: random.Random) -> int:
    return rng.choice((1 << 18, 1 << 16, 4096, 1000, 100))


def _count(rng: random.Random) -> int:
    return rng.randrange(1, 60)


def _small(rng: random.Random) -> int:
    return rng.randrange(1, 300)


def _pause(rng: random.Random) -> float:
    return rng.choice((0.0, 0.0, 0.001, 0.003, 0.01, 0.03))


def _threads(rng: random.Random) -> int:
    return rng.randrange(2, _MOST_THREADS + 1)


def _buffer(rng: random.Random) -> int:
    return rng.choice((4096, 10_000, 100_000, 1 << 20))


def _flag(rng: random.Random) -> bool:
    return rng.choice((True, False))


# The steps by name, with the ranges of the arguments of Run.do_NAME.
_STEPS: dict[str, tuple[Callable[[random.Random], Any], ...]] = {
    "send": (_size,),
    "offer": (_size,),
    "burst": (_count, _small),
    "scatter": (_count, _small),
    "fill": (_size,),
    "stream": (),  # drawn by _make_step
    "ping": (_count, _small),
    "read": (_size, _chunk),
    "peek": (_size,),
    "drain": (_chunk,),
    "pause": (_pause,),
    "race": (_threads, _count, _small),
    "nodelay": (_flag,),
    "cork": (_flag,),
    "sndbuf": (_buffer,),
    "rcvbuf": (_buffer,),
}


class Run:
    """A script on a connection. Keeps what was sent and what came back; `sent` and `got` count bytes."""

    def __init__(self, script: Script, sock: socket.socket) -> None:
        self._script, self._sock = script, sock
        block = random.Random(script.seed).randbytes(_PERIOD)
        self._source = memoryview(block + block)
        self._buffer = bytearray(1 << 18)
        self._base = 0  # bytes that `race` compared by itself, in both directions
        self._most = _MOST_BYTES[script.small_buffers]
        self.sent = self.got = 0
        self.step: object = "connect"
        self.raced = any(step[0] == "race" for step in script.steps)

    def main(self) -> None:
        """Runs all steps, and then reads everything."""
        self._sock.setblocking(False)
        self.do_nodelay(self._script.nodelay)
        for step in self._script.steps:
            self.step = step
            getattr(self, f"do_{step[0]}")(*step[1:])
        if not self._script.end.endswith("at once"):
            self.step = "drain"
            self.do_drain(1 << 18)

    def more(self, size: int) -> None:
        """Allows it to send `size` more bytes."""
        self._most = self.sent + size

    def end(self) -> None:
        """Ends the connection, and reads what has not been read yet."""
        self.step = end = self._script.end
        if end.startswith("half"):
            self._sock.shutdown(socket.SHUT_WR)
            self._read_to_end()
        elif end.startswith("reset"):
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._sock.close()

    # ---- sending ----

    def _next(self, size: int) -> memoryview:
        at = (self.sent - self._base) % _PERIOD
        return self._source[at : at + size]

    def _try_send(self, size: int) -> int:
        try:
            step = self._sock.send(self._next(size))
        except BlockingIOError:
            return 0
        self.sent += step
        return step

    def do_send(self, size: int) -> None:
        """Sends all of it, and reads only when it cannot send."""
        size = min(size, self._most - self.sent)
        while size > 0:
            step = self._try_send(size)
            size -= step
            if not step:
                events = self._wait(select.POLLOUT | select.POLLIN)
                if not events & select.POLLOUT and not self._poll(select.POLLOUT, 0.02):
                    self._read_some(5000)

    def do_offer(self, size: int) -> None:
        """Sends what the kernel takes at once."""
        size = min(size, self._most - self.sent)
        while size > 0 and (step := self._try_send(size)):
            size -= step

    def do_burst(self, count: int, size: int) -> None:
        for _ in range(count):
            self.do_send(size)

    def do_scatter(self, count: int, size: int) -> None:
        """Sends many buffers by one sendmsg()."""
        whole = self._next(count * size)
        parts = [whole[at : at + size] for at in range(0, len(whole), size)]
        with contextlib.suppress(BlockingIOError):
            self.sent += self._sock.sendmsg(parts)

    def do_fill(self, size: int) -> None:
        """Sends without reading until it blocks for a moment; at most some MB."""
        for _ in range(2000):
            if self.sent >= self._most or not self._poll(select.POLLOUT, 0.03):
                break
            self._try_send(size)

    def do_stream(self, size: int, chunk: int) -> None:
        """Sends and reads at the same time, as fast as possible."""
        self._uncork()
        size = min(size, _SMALL) if self._script.small_buffers else size
        chunk = max(chunk, 4096)
        left = size
        while left or self._outstanding():
            events = self._wait(select.POLLIN | (select.POLLOUT if left else 0))
            if events & select.POLLOUT and left:
                left -= self._try_send(min(left, 1 << 18))
            if events & select.POLLIN:
                self._read_some(chunk)
        self._most += size

    def do_ping(self, count: int, size: int) -> None:
        for _ in range(count):
            self.do_send(size)
            self.do_drain(1 << 16)

    def do_race(self, threads: int, count: int, size: int) -> None:
        """Threads send on this socket at once, each from its own alphabet; the bytes of each come back in order."""
        self.do_drain(1 << 16)
        rng = random.Random(self._script.seed)
        tables = [bytes(byte & 63 | number << 6 for byte in range(256)) for number in range(threads)]
        shares = [rng.randbytes(count * size).translate(table) for table in tables]
        errors: list[BaseException] = []

        def work(share: bytes) -> None:
            try:
                view = memoryview(share)
                while view:
                    try:
                        view = view[self._sock.send(view[:size]) :]
                    except BlockingIOError:
                        self._wait(select.POLLOUT)
            except BaseException as e:
                errors.append(e)

        workers = [threading.Thread(target=work, args=(share,), daemon=True) for share in shares]
        for worker in workers:
            worker.start()
        total, data = sum(map(len, shares)), bytearray()
        while len(data) < total:
            self._wait(select.POLLIN)
            with contextlib.suppress(BlockingIOError):
                chunk = self._sock.recv(min(1 << 16, total - len(data)))
                assert chunk, f"the stream ended after {len(data)} of {total} bytes of a race"
                data += chunk
        for worker in workers:
            worker.join(STUCK_S)
        assert not errors, f"a sender of a race: {errors[0]!r}"
        assert not any(worker.is_alive() for worker in workers), "a sender of a race hangs"
        for number, (share, table) in enumerate(zip(shares, tables, strict=True)):
            others = bytes(byte for byte in range(256) if byte >> 6 != number)
            assert set(table) <= set(range(256)) - set(others)
            support.assert_same(bytes(data.translate(None, others)), share)
        self._base += total
        self.sent += total
        self.got += total

    # ---- reading ----

    def _outstanding(self) -> int:
        return self.sent - self.got

    def _compare(self, data: bytes | memoryview, at: int) -> None:
        start = (at - self._base) % _PERIOD
        wanted = self._source[start : start + len(data)]
        support.assert_same(bytes(data), bytes(wanted))

    def _read_some(self, most: int) -> int:
        """Reads and compares what is there; 0 if there is nothing. More than was sent is a failure."""
        view = memoryview(self._buffer)[: min(most, len(self._buffer))]
        try:
            size = self._sock.recv_into(view)
        except BlockingIOError:
            return 0
        assert size, f"the stream ended after {self.got} of {self.sent} bytes"
        assert size <= self._outstanding(), f"{size - self._outstanding()} bytes more than were sent"
        self._compare(view[:size], self.got)
        self.got += size
        return size

    def do_read(self, size: int, chunk: int) -> None:
        size = min(size, self._outstanding())
        while size:
            self._wait(select.POLLIN)
            size -= self._read_some(min(size, chunk))

    def do_drain(self, chunk: int) -> None:
        self._uncork()
        if self._outstanding() > 100_000:
            chunk = max(chunk, 4096)  # smaller ones would take minutes
        self.do_read(self._outstanding(), chunk)

    def do_peek(self, size: int) -> None:
        if self._outstanding() and self._poll(select.POLLIN, 0.001):
            with contextlib.suppress(BlockingIOError):
                data = self._sock.recv(min(size, self._outstanding()), socket.MSG_PEEK)
                self._compare(data, self.got)

    def _read_to_end(self) -> None:
        while True:
            self._wait(select.POLLIN)
            try:
                data = self._sock.recv(1 << 18)
            except BlockingIOError:
                continue
            if not data:
                break
            assert len(data) <= self._outstanding(), "more bytes than were sent"
            self._compare(data, self.got)
            self.got += len(data)
        assert self.got == self.sent, f"the stream ended after {self.got} of {self.sent} bytes"

    # ---- the rest ----

    def do_pause(self, seconds: float) -> None:
        time.sleep(seconds)

    def do_nodelay(self, on: bool) -> None:
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, int(on))

    def do_cork(self, on: bool) -> None:
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, int(on))

    def _uncork(self) -> None:
        self.do_cork(False)

    def do_sndbuf(self, size: int) -> None:
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)

    def do_rcvbuf(self, size: int) -> None:
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)

    def _poll(self, events: int, seconds: float) -> int:
        poll = select.poll()
        poll.register(self._sock, events)
        found = poll.poll(seconds * 1000)
        return found[0][1] if found else 0

    def _wait(self, events: int) -> int:
        """Waits for one of the events. Raises Stuck."""
        poll = select.poll()
        poll.register(self._sock, events)
        found = poll.poll(STUCK_S * 1000)
        if not found:
            what = "write" if events == select.POLLOUT else "read"
            raise Stuck(
                f"nothing to {what} for {STUCK_S:.0f} s; {self.sent} bytes sent, {self.got} came back, at {self.step}"
            )
        return found[0][1]


# ---- lanes: a service with clients on one of its paths ----


class Lane(Protocol):
    """A service whose clients take one path."""

    name: str
    kernel_path: str  # the path in `stats` of an idle client's echo; "" if it is not checked

    def connect(self, script: Script) -> socket.socket: ...
    def counts(self) -> dict[str, int]: ...
    def active(self) -> int: ...
    def diagnose(self) -> str: ...
    def close(self) -> None: ...


class _Clients:
    """Makes clients in this namespace, or in the one behind a veth pair."""

    def __init__(self, pair: network.Veth | None) -> None:
        self.pair = pair

    def connect(self, script: Script, address: str, port: int) -> socket.socket:
        family = _FAMILIES[script.family]
        sock = support.socket_in(self.pair.namespace, family) if self.pair else socket.socket(family)
        try:
            if script.sndbuf:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, script.sndbuf)
            if script.mss:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, script.mss)
            if script.rcvbuf:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, script.rcvbuf)
        except BaseException:
            sock.close()
            raise
        return support.connect(address, port, sock)

    def address(self, family: int) -> str:
        if self.pair:
            return (self.pair.here, self.pair.here6)[family]
        return ("127.0.0.1", "::1")[family]

    def sockets(self, port: int) -> str:
        """The output of `ss` at both ends."""
        query = ["ss", "-tinmo", f"( sport = :{port} or dport = :{port} )"]
        found = f"$ {' '.join(query)}\n{_output(query)}"
        if self.pair:
            found += f"\nin {self.pair.namespace}\n" + _output(["ip", "netns", "exec", self.pair.namespace, *query])
        return found

    def close(self) -> None:
        if self.pair:
            self.pair.close()


class ServiceLane:
    """A service of kecho-ctl."""

    def __init__(self, name: str, kernel_path: str, pair: network.Veth | None = None, **options: Any) -> None:
        self.name, self.kernel_path = name, kernel_path
        self._clients = _Clients(pair)
        if pair:
            options["bind"] = [pair.here, pair.here6]
        self.service = support.up(**options)

    def connect(self, script: Script) -> socket.socket:
        return self._clients.connect(script, self._clients.address(script.family), self.service.port)

    def counts(self) -> dict[str, int]:
        """Echoes by path."""
        from kecho.service.client import Client

        return {path: stats.echoes for path, stats in Client(self.service.name).snapshot().paths.items()}

    def active(self) -> int:
        from kecho.service.client import Client

        return Client(self.service.name).snapshot().connections.active

    def diagnose(self) -> str:
        """The state of everything, while it hangs."""
        parts = [self._clients.sockets(self.service.port)]
        for pid in support.session(self.service.pid):
            parts.append(_process(pid))
        if self.service.mode == "sockmap":
            for name in support.MAPS:
                with contextlib.suppress(Exception):
                    dump = support.bpftool("map", "dump", "id", support.map_id(self.service.pid, name))
                    parts.append(f"map {name}: {dump}")
        with contextlib.suppress(Exception):
            parts.append(str(self.service.stats()))
        return "\n".join(parts)

    def close(self) -> None:
        try:
            self.service.down()
        finally:
            self._clients.close()


class ServerLane:
    """A user-echo-server by itself, with an engine that `up` has no option for."""

    kernel_path = ""

    def __init__(self, name: str, engine: str) -> None:
        self.name, self._port, self._clients = name, support.free_port(), _Clients(None)
        ready, told = os.pipe()
        try:
            self._process = subprocess.Popen(
                [
                    support.ROOT / "build/user-echo-server",
                    f"--engine={engine}",
                    f"--port={self._port}",
                    f"--ready-fd={told}",
                    f"--die-with-parent={os.getpid()}",
                ],
                pass_fds=(told,),
                stderr=subprocess.PIPE,
                text=True,
            )
            os.close(told)
            if os.read(ready, 64) != b"ready\n":
                raise NotHere(self._process.communicate()[1].strip())
        finally:
            os.close(ready)

    def connect(self, script: Script) -> socket.socket:
        return self._clients.connect(script, self._clients.address(script.family), self._port)

    def counts(self) -> dict[str, int]:
        return {}

    def active(self) -> int:
        """Its ends of connections: descriptors that are sockets and do not listen."""
        ports = _output(["ss", "-Htn", "state", "connected", "exclude", "time-wait", f"sport = :{self._port}"])
        return len(ports.splitlines())

    def diagnose(self) -> str:
        return self._clients.sockets(self._port) + "\n" + _process(self._process.pid)

    def close(self) -> None:
        self._process.terminate()
        self._process.communicate(timeout=10)
        assert self._process.returncode == 0, f"user-echo-server ended with {self._process.returncode}"


class NotHere(Exception):
    """This machine cannot have that lane."""


def _output(command: Sequence[str | Path]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return done.stdout + done.stderr


def _process(pid: int) -> str:
    parts = [f"process {pid}"]
    for name in ("status", "wchan", "stack", "syscall"):
        with contextlib.suppress(OSError):
            parts.append(f"{name}: {Path(f'/proc/{pid}/{name}').read_text()}")
    with contextlib.suppress(OSError):
        parts.append(_output(["timeout", "-s", "INT", "1", "strace", "-f", "-tt", "-p", str(pid)])[-4000:])
    return "\n".join(parts)


LIMITS = {"small": 16 << 10, "default": 128 << 10}


@contextlib.contextmanager
def lane(name: str, limit: int = LIMITS["small"]) -> Iterator[Lane]:
    """The lane of that name, one of LANES, with a service of its own. Raises NotHere."""
    with contextlib.ExitStack() as stack:
        nets = {"remote": network.NET, "mirror-remote": network.NET + 256}
        pair = stack.enter_context(network.veth(nets[name])) if name in nets else None
        found: Lane
        if name in support.KERNEL_PATHS:
            # Who once left path ingress with unread data stays off it.
            found = ServiceLane(name, "" if name == "ingress" else name, path=name, limit=limit)
        elif name == "remote":
            found = ServiceLane(name, "skb", pair, limit=limit)
        elif name == "passed":
            found = ServiceLane(name, "user", mode="sockmap", path="user", limit=limit)
        elif name == "mirror":
            found = ServiceLane(name, "mirror", path="mirror")
        elif name == "mirror-remote":
            found = ServiceLane(name, "mirror", pair, path="mirror")
        elif name == "epoll":
            found = ServiceLane(name, "user", path="user")
        else:
            found = ServerLane(name, name)
        stack.callback(found.close)
        yield found


# sockmap: paths egress, ingress; path skb with a local and with a remote client; path user.
# Mode user: both engines.
LANES = ("egress", "ingress", "skb", "remote", "passed", "mirror", "mirror-remote", "epoll", "io_uring")


# ---- a round ----


@dataclass
class Totals:
    """What rounds have moved."""

    connections: int = 0
    bytes: int = 0
    ends: dict[str, int] = field(default_factory=dict)


def run_round(found: Lane, scripts: Sequence[Script], totals: Totals | None = None) -> None:
    """All scripts at once. Raises what the first to fail raised, with the state of everything if it hung.

    In between, if all have read everything, the path in the kernel must have them all again.
    """
    errors: list[tuple[BaseException, str]] = []
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(found.connect(script)) for script in scripts]
        runs = [Run(script, sock) for script, sock in zip(scripts, socks, strict=True)]
        _in_threads([run.main for run in runs], found, errors)
        if not errors and found.kernel_path and not any(run.sent - run.got for run in runs):
            _assert_back(found, runs, errors)
        if not errors:
            _in_threads([run.end for run in runs], found, errors)
        if errors:
            error, state = errors[0]
            raise AssertionError(f"lane {found.name}: {error!r}\n{state}") from error
    if totals:
        totals.connections += len(runs)
        totals.bytes += sum(run.got for run in runs)
        for script in scripts:
            totals.ends[script.end] = totals.ends.get(script.end, 0) + 1


def _in_threads(works: Sequence[Callable[[], None]], found: Lane, errors: list[tuple[BaseException, str]]) -> None:
    lock = threading.Lock()

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as e:
            with lock:  # the first alone looks round, before anything is closed
                errors.append((e, found.diagnose() if not errors else ""))

    threads = [threading.Thread(target=guarded, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20 * STUCK_S)
    if any(thread.is_alive() for thread in threads):
        errors.append((Stuck("a thread of the test hangs"), found.diagnose()))


def _assert_back(found: Lane, runs: Sequence[Run], errors: list[tuple[BaseException, str]]) -> None:
    """A client that has read everything is carried by the kernel again."""
    pings = 3
    if found.kernel_path == "egress":  # docs/known-limits.md: threads that do not block may have left it for good
        runs = [run for run in runs if not run.raced]
    if not runs:
        return
    try:
        for run in runs:
            run.step = "back"
            run.do_nodelay(True)
            run.more(1 << 20)
            # After a send that did not block and was cut short, the kernel keeps its verdict for the next one.
            run.do_ping(1, 64)
        before = found.counts()
        for run in runs:
            run.do_ping(pings, 64)
    except BaseException as e:
        errors.append((e, found.diagnose()))
        return
    after = found.counts()
    grown = {path: after[path] - before[path] for path in after}
    carried = grown.pop(found.kernel_path)
    if any(grown.values()) or not carried:  # TCP may cut a message: more echoes are fine
        error = AssertionError(f"{pings} echoes on each of {len(runs)} idle connections: before {before}, then {after}")
        errors.append((error, found.diagnose()))
