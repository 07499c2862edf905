# SPDX-License-Identifier: MIT
"""Accepts connections, and echoes what no kernel path took: path `user` of the sockmap backend. Runs in asyncio's loop.

On a socket in a sockhash, recv() returns only what the verdict passed, and the end of the stream.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import resource
import socket
import struct
import sys
import termios
import time
from collections import Counter
from collections.abc import Callable

from kecho.kernel import libc
from kecho.model.errors import KechoError
from kecho.model.histogram import Histogram, slot
from kecho.model.snapshot import Connections, PathStats
from kecho.model.units import plural

_CHUNK_BYTES = 256 << 10
_ACCEPTS_A_TURN = 64
# Descriptors that connections may not use: for the control socket and whatever else needs one.
_RESERVED_FDS = 160
_PAUSE_S = 0.1  # after accept() failed for want of memory or a descriptor
_CLOSE_POLL_S = (0.001, 0.25)  # first and longest wait for data in flight to leave

_SO_COOKIE = 57  # include/uapi/asm-generic/socket.h
_TCP_CLOSE = 7  # include/net/tcp_states.h
_BYTES_ACKED = struct.Struct("=QQ")  # tcp_info: tcpi_bytes_acked, tcpi_bytes_received
_BYTES_ACKED_OFFSET = 120


class Acceptor:
    """The listening sockets and the connections that they accept. `stop` closes all of them."""

    def __init__(self, listeners: list[socket.socket]) -> None:
        self._loop = asyncio.get_running_loop()
        self._listeners = listeners
        self._connections: set[_Connection] = set()
        self._buffer = memoryview(bytearray(_CHUNK_BYTES))
        self._spare: int | None = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most = limit - len(os.listdir("/proc/self/fd")) - min(_RESERVED_FDS, limit // 4)
        if self._most < 1:
            self.stop()
            raise KechoError(
                f"{plural(limit, 'descriptor')} leave none for a client: {_RESERVED_FDS + limit - self._most} will do "
                "(ulimit -n)"
            )
        self.total = self.rejected = self.aborted = 0
        self.echoes = self.bytes = 0
        self._latency: dict[int, Counter[int]] = {}

    def start(self, backlog: int) -> None:
        """Listens on all sockets."""
        for listener in self._listeners:
            listener.setblocking(False)
            # Accepted sockets inherit both. Keepalive ends connections whose client has vanished; an urgent byte is
            # echoed like any other.
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
            listener.listen(backlog)
            self._loop.add_reader(listener, self._accept, listener)

    def stop(self) -> None:
        """Closes the listeners and every connection. Idempotent."""
        for listener in self._listeners:
            self._loop.remove_reader(listener)
            listener.close()
        self._listeners = []
        for connection in list(self._connections):
            connection.close()
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None

    def connections(self) -> Connections:
        """The counts since the start."""
        return Connections(len(self._connections), self.total, self.rejected, self.aborted)

    def stats(self) -> PathStats:
        """What path `user` carried. An echo is one payload, received and sent back as a whole."""
        return PathStats(self.echoes, self.bytes, 0, Histogram({c: dict(n) for c, n in self._latency.items()}))

    def count_echo(self, size: int, since_ns: int) -> None:
        self.echoes += 1
        self.bytes += size
        self._latency.setdefault(libc.call("sched_getcpu"), Counter())[slot(time.monotonic_ns() - since_ns)] += 1

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(_ACCEPTS_A_TURN):
            try:
                sock, _ = listener.accept()
            except BlockingIOError:
                return
            except OSError as e:
                if e.errno in (errno.EMFILE, errno.ENFILE):
                    if self._reject(listener):
                        continue
                elif e.errno not in (errno.ENOBUFS, errno.ENOMEM):
                    continue  # this connection has ended already (accept(2)); others may wait
                self._loop.remove_reader(listener)
                self._rest(listener)
                return
            if len(self._connections) >= self._most:
                self._refuse(sock)
                continue
            try:
                connection = _Connection(self, self._loop, sock, self._buffer)
            except OSError:  # epoll watches no more, for want of memory or by its limit
                self._refuse(sock)
                continue
            self.total += 1
            self._connections.add(connection)

    def _refuse(self, sock: socket.socket) -> None:
        _reset_at_close(sock)
        sock.close()
        self.rejected += 1

    def reset(self, cookie: int) -> None:
        """Resets the connection with that SO_COOKIE, if there is one. Searches all connections."""
        for connection in list(self._connections):
            if connection.cookie() == cookie:
                connection.reset()

    def _rest(self, listener: socket.socket) -> None:
        self._loop.call_later(_PAUSE_S, self._resume, listener)

    def _resume(self, listener: socket.socket) -> None:
        if listener not in self._listeners:
            return
        try:
            self._loop.add_reader(listener, self._accept, listener)
        except OSError:
            self._rest(listener)

    def _reject(self, listener: socket.socket) -> bool:
        """Resets the connection at the head of the queue, with the spare descriptor; False if there is none."""
        if self._spare is None:
            return False
        os.close(self._spare)
        self._spare = None
        try:
            self._refuse(listener.accept()[0])
        except OSError:
            return False
        finally:
            try:
                self._spare = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                self._spare = None
        return True

    def forget(self, connection: _Connection, aborted: bool) -> None:
        self._connections.discard(connection)
        self.aborted += aborted


class _Connection:
    """One accepted socket: receives, sends back, and closes once everything has been sent."""

    __slots__ = ("_acceptor", "_buffer", "_fd", "_loop", "_pending", "_poll_s", "_since_ns", "_size", "_sock", "_timer")

    def __init__(
        self, acceptor: Acceptor, loop: asyncio.AbstractEventLoop, sock: socket.socket, buffer: memoryview
    ) -> None:
        self._acceptor, self._loop, self._sock, self._buffer = acceptor, loop, sock, buffer
        self._fd = sock.fileno()
        self._pending: memoryview | None = None
        self._since_ns = self._size = 0
        self._poll_s = _CLOSE_POLL_S[0]
        self._timer: asyncio.TimerHandle | None = None
        sock.setblocking(False)
        # The verdict does not run before accept(). Setting SO_RCVLOWAT calls sk_data_ready (tcp_set_rcvlowat), which
        # runs the verdict on early data, so that no byte reaches recv() without it.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
        loop.add_reader(self._fd, self._readable)

    def _readable(self) -> None:
        self._since_ns = time.monotonic_ns()
        try:
            size = self._sock.recv_into(self._buffer)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.close(aborted=True)
            return
        if size == 0:
            self._loop.remove_reader(self._fd)
            self._finish()
            return
        self._size = size
        sent = self._send(self._buffer[:size])
        if sent is None:
            return
        if sent < size:
            self._pending = memoryview(bytes(self._buffer[sent:size]))
            self._loop.remove_reader(self._fd)
            self._watch(self._loop.add_writer, self._writable)
        else:
            self._acceptor.count_echo(size, self._since_ns)

    def _send(self, data: memoryview) -> int | None:
        """The bytes that the kernel took; None if the connection broke and is now closed."""
        try:
            return self._sock.send(data)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError:
            self.close(aborted=True)
            return None

    def _writable(self) -> None:
        assert self._pending is not None
        sent = self._send(self._pending)
        if sent is None:
            return
        if sent < len(self._pending):
            self._pending = self._pending[sent:]
            return
        self._pending = None
        self._acceptor.count_echo(self._size, self._since_ns)
        self._loop.remove_writer(self._fd)
        self._watch(self._loop.add_reader, self._readable)

    def _watch(self, add: Callable[[int, Callable[[], None]], None], then: Callable[[], None]) -> None:
        try:
            add(self._fd, then)
        except OSError:  # nobody would ever look at it again
            self.reset()

    # The client has shut down its side. On path skb, some of what it sent may still be in flight in the kernel.

    def _finish(self) -> None:
        try:
            if self._closed():  # reset after the end of the stream: what is queued is never sent
                self.close(aborted=True)
                return
            if not self._drained():
                # What the verdict passed may become readable after the end of the stream.
                self._again(self._readable_late)
                return
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.close(aborted=True)
            return
        self._poll_s = _CLOSE_POLL_S[0]
        self._linger()

    def _readable_late(self) -> None:
        self._watch(self._loop.add_reader, self._readable)

    def _closed(self) -> bool:
        return self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _TCP_CLOSE

    def _drained(self) -> bool:
        """Has every byte received gone into the send path? It is never true too early: what is read second only grows.

        Path egress sends more out of this socket than it has received.
        """
        acked, received = _BYTES_ACKED.unpack_from(
            self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 136), _BYTES_ACKED_OFFSET
        )
        fin = 1  # the kernel counts it as a byte received
        return bool(received - fin <= acked + self._unacknowledged())

    def _unacknowledged(self) -> int:
        (queued,) = struct.unpack("i", fcntl.ioctl(self._fd, termios.TIOCOUTQ, bytes(4)))
        return int(queued)

    def _linger(self) -> None:
        """Keeps the socket until the client has acknowledged everything; the kernel may drop data of an orphan."""
        try:
            closed = self._closed()
            error = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if not closed and self._unacknowledged():
                self._again(self._linger)
                return
        except OSError:
            error = errno.EPIPE
        self.close(aborted=bool(error))

    def _again(self, step: object) -> None:
        self._timer = self._loop.call_later(self._poll_s, step)  # type: ignore[arg-type]
        self._poll_s = min(2 * self._poll_s, _CLOSE_POLL_S[1])

    def cookie(self) -> int:
        return int.from_bytes(self._sock.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8), sys.byteorder)

    def reset(self) -> None:
        """Ends the connection with a reset, so that the client learns of it."""
        _reset_at_close(self._sock)
        self.close(aborted=True)

    def close(self, aborted: bool = False) -> None:
        """Ends the connection now."""
        self._loop.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)
        if self._timer:
            self._timer.cancel()
        self._sock.close()
        self._acceptor.forget(self, aborted)


def _reset_at_close(sock: socket.socket) -> None:
    """close() then sends a reset and frees the socket at once."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
