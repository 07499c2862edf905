# SPDX-License-Identifier: MIT
"""The sockmap backend: loads and attaches ``bpf/sockmap.c``, and runs ``user-echo-server``, which accepts.

docs/design.md, section 3, explains the paths.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import select
import socket
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

from kecho.backends.base import AllOrNothing, Context
from kecho.backends.server import EchoServer, probe_server
from kecho.kernel import features, syscall, sysctl
from kecho.kernel.bpf import Module, PathArray, log, possible_cpus
from kecho.kernel.btf import BtfError
from kecho.kernel.features import Feature
from kecho.kernel.fields import Fields, fields
from kecho.model.config import Config, family_of, parse_address
from kecho.model.errors import KechoError, Unavailable, one_line
from kecho.model.snapshot import Connections, PathStats

PATHS = ("egress", "ingress", "skb", "user")  # PATH_* of bpf/common.h
_LOCAL_PROBES: Mapping[str, Callable[[], str]] = {
    "egress": features.probe_egress,
    "ingress": features.probe_ingress,
}
# --path: the path of local clients and the path of remote ones
_ROUTES = {
    "auto": ("egress", "skb"),
    "egress": ("egress", "skb"),
    "ingress": ("ingress", "skb"),
    "skb": ("skb", "skb"),
    "user": ("user", "user"),
}
# What clients must not use on a path; docs/known-limits.md has the details.
_WITHOUT = {
    "egress": "without MSG_ZEROCOPY and SO_TIMESTAMPING",
    "ingress": "only send, recv and poll",
}
_TRY_OUT_S = 5
_END_MS = 200  # to wait for the end of our own client; other clients may be connected by then
_MIN_CONNECTIONS, _MAX_CONNECTIONS = 1024, 1 << 20


class SockmapBackend(AllOrNothing):
    """One service. All that it makes in the kernel ends with the process, even if that is killed."""

    def __init__(self) -> None:
        super().__init__()
        self._server = EchoServer()  # accepts, and carries path user
        self._array: PathArray | None = None
        self._local, self._remote = _ROUTES["auto"]
        self._why_no_latency: dict[str, str] = {}
        self._base: tuple[dict[str, PathStats], Connections] = {}, Connections()  # what our own client did
        self._why_not = ""  # why local clients take another path than chosen

    @staticmethod
    def features() -> tuple[Feature, ...]:
        return (
            *features.for_bpf(),
            Feature("BTF", features.probe_btf),
            Feature("cgroup v2", features.probe_cgroup2),
            Feature("netns cookie", features.probe_netns_cookie),
            Feature("sock_ops", features.probe_sock_ops),
            Feature("sockhash", features.probe_sockhash),
            Feature("user-echo-server", probe_server),
            *(Feature(f"path {path}", probe, required=False) for path, probe in _LOCAL_PROBES.items()),
        )

    async def _start(self, config: Config, context: Context) -> None:
        """Starts the programs first, then registration, then the listeners, so that no connection is missed."""
        local, remote = self._local, self._remote = self._route(config.path)
        features.raise_nofile()
        listeners = [self._bind(address, config.port) for address in config.binds]
        kernel = _kernel_fields()
        settings = {"KECHO_PORT": config.port, "KECHO_NETNS": features.netns_cookie(listeners[0])}
        module = Module("sockmap.c", {**self._defines(config, local, remote), **kernel.defines}, settings)
        self._undo.callback(module.close)
        if config.latency and local in _LOCAL_PROBES:  # a hook costs every send on this machine a look-up
            self._attach_send_hook(module, kernel, local)
        self._attach_verdicts(module, config.latency, local)
        for address in config.binds:
            syscall.map_update(module.map_fd("listeners"), _mapped(address), b"\x01")
        for listener in listeners:
            syscall.map_update(module.map_fd("accepted"), listener.fileno().to_bytes(4, sys.byteorder), bytes(4))
        self._undo.callback(lambda: _release_sockets(module))
        cgroup = os.open(features.cgroup2_mount(), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            prog = module.load("kecho_register", syscall.PROG_TYPE_SOCK_OPS)
            link = syscall.link_create(prog, cgroup, syscall.ATTACH_CGROUP_SOCK_OPS)
        finally:
            os.close(cgroup)
        self._undo.callback(lambda: os.close(link))
        self._array = PathArray(module.map_fd("paths"), PATHS[:-1])
        await self._serve(config, context, listeners, module)
        await self._try_out(config)

    async def _serve(self, config: Config, context: Context, listeners: list[socket.socket], module: Module) -> None:
        """Hands the listeners over to the server, which calls listen()."""
        fds = [listener.fileno() for listener in listeners]
        resets, reset_fd = os.pipe()
        self._undo.callback(os.close, reset_fd)
        try:
            options = ["--engine=sockmap", f"--reset-fd={resets}", *(f"--listener={fd}" for fd in fds)]
            self._undo.callback(self._server.stop)
            await self._server.start(config, context, options, (resets, *fds))
        finally:
            os.close(resets)
        for listener in listeners:
            listener.close()
        self._reset_broken(module, reset_fd)

    async def _try_out(self, config: Config) -> None:
        """Finds the path of local clients with a client of our own. Raises Unavailable if `--path` names another."""
        address = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(config.binds[0], config.binds[0])
        try:
            seen = await asyncio.wait_for(self._own_client(address, config.port), _TRY_OUT_S)
        except (TimeoutError, OSError) as e:
            log.warning("a client of our own at %s was not served: %s", address, one_line(e))
            return
        finally:
            self._base = (self._counted(), self.connections())
        if seen == self._local:
            return
        why = f"registration does not see this process's connections{features.outside_cgroup2()}"
        if config.path != "auto":
            raise Unavailable(f"path {self._local} takes no local client: {why}", "use --mode user")
        self._local = self._remote = seen
        self._why_not = why

    async def _own_client(self, address: str, port: int) -> str:
        """The path that carried most of three messages; the first may be sent before the connection is registered."""
        loop = asyncio.get_running_loop()
        with socket.socket(family_of(address)) as client:
            client.setblocking(False)
            await loop.sock_connect(client, (address, port))
            for _ in range(3):
                await loop.sock_sendall(client, b"kecho")
                await loop.sock_recv(client, 5)
            echoes = {path: stats.echoes for path, stats in self._counted().items()}
        for _ in range(_END_MS):  # path egress echoes before accept()
            done = self.connections()
            if done.total and not done.active:
                break
            await asyncio.sleep(0.001)
        return max(echoes, key=echoes.__getitem__)

    @staticmethod
    def _route(path: str) -> tuple[str, str]:
        """The paths of local and of remote clients. Raises Unavailable if this kernel lacks the path that was named."""
        local, remote = _ROUTES[path]
        if probe := _LOCAL_PROBES.get(local):
            try:
                probe()
            except Unavailable as e:
                if path != "auto":
                    raise
                log.warning("path %s is not used: %s", local, e)
                local = remote
        return local, remote

    def _reset_broken(self, module: Module, reset_fd: int) -> None:
        """Has the server reset the connections that the verdict reports as broken, by their cookies."""
        loop = asyncio.get_running_loop()
        resets = _Resets(reset_fd)
        self._undo.callback(resets.close)
        fd, consume = module.on_record("broken", resets.add)
        loop.add_reader(fd, consume)
        self._undo.callback(loop.remove_reader, fd)

    def _bind(self, address: str, port: int) -> socket.socket:
        sock = socket.socket(family_of(address), socket.SOCK_STREAM)
        self._undo.callback(sock.close)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((address, port))
        return sock

    def _attach_send_hook(self, module: Module, kernel: Fields, local: str) -> None:
        """Ends samples where a client's send returns. Linux has the tracepoint since 6.3."""
        try:
            module.attach_raw_tracepoint("sock_send_length", "kecho_local_sent")
        except KechoError:
            try:
                module.attach_fexit(kernel.sendmsg, "kecho_local_sent")
            except KechoError as e:
                self._why_no_latency[local] = f"no tracepoint sock_send_length, and no fexit: {e}"

    @staticmethod
    def _defines(config: Config, local: str, remote: str) -> dict[str, int]:
        nofile, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        connections = min(max(nofile, _MIN_CONNECTIONS), _MAX_CONNECTIONS)
        return {
            "KECHO_LIMIT": config.limit_bytes,
            "KECHO_MAX_CONNS": connections,
            "KECHO_CPUS": max(possible_cpus()) + 1,
            "KECHO_LATENCY": int(config.latency),
            "KECHO_PATH_LOCAL": PATHS.index(local),
            "KECHO_PATH_REMOTE": PATHS.index(remote),
            "KECHO_WMEM_MIN": int(sysctl.read("net.ipv4.tcp_wmem").split()[0]),
        }

    def _attach_verdicts(self, module: Module, latency: bool, local: str) -> None:
        def attach(function: str, prog_type: int, sockhash: str, attach_type: int) -> None:
            syscall.prog_attach(module.load(function, prog_type), module.map_fd(sockhash), attach_type)

        if local in _LOCAL_PROBES:
            attach(f"kecho_{local}_echo", syscall.PROG_TYPE_SK_MSG, "clients", syscall.ATTACH_SK_MSG_VERDICT)
        attach("kecho_skb_echo", syscall.PROG_TYPE_SK_SKB, "servers", syscall.ATTACH_SK_SKB_STREAM_VERDICT)
        if not latency:
            self._why_no_latency = dict.fromkeys(PATHS[:-1], "switched off with --no-latency")
            return
        attach("kecho_skb_sent", syscall.PROG_TYPE_SK_MSG, "servers", syscall.ATTACH_SK_MSG_VERDICT)

    def keeps(self) -> Collection[int]:
        return self._array.needs() if self._array else ()

    def paths(self) -> dict[str, PathStats]:
        base, _ = self._base
        return {path: stats - base[path] if path in base else stats for path, stats in self._counted().items()}

    def _counted(self) -> dict[str, PathStats]:
        """What each path did since the start, with our own client included."""
        if not self._array:
            return {}
        carried = self._array.read()
        stats = {path: carried[path] for path in PATHS[:-1] if path in (self._local, self._remote)}
        for path in stats.keys() & self._why_no_latency.keys():
            stats[path] = replace(stats[path], latency=None, why=self._why_no_latency[path])
        return {**stats, "user": self._server.carried()}

    def connections(self) -> Connections:
        _, base = self._base
        return self._server.connections() - base

    def describe(self) -> str:
        if self._why_not:
            return f"{self._local} for all clients: {self._why_not}"
        if self._local == self._remote:
            return f"{self._local} for all clients"
        return f"{self._local} for local clients ({_WITHOUT[self._local]}), {self._remote} for remote ones"


class _Resets:
    """Hands cookies to the server, in order. Those that the pipe has no room for wait here."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._waiting = bytearray()
        self._loop = asyncio.get_running_loop()

    def add(self, cookie: bytes) -> None:
        self._waiting += cookie
        self._write()

    def _write(self) -> None:
        self._loop.remove_writer(self._fd)
        try:
            while self._waiting:  # no cookie is split: a pipe takes so much as a whole, or nothing
                del self._waiting[: os.write(self._fd, self._waiting[: select.PIPE_BUF])]
        except BlockingIOError:
            self._loop.add_writer(self._fd, self._write)
        except BrokenPipeError:  # the server has ended
            self._waiting.clear()

    def close(self) -> None:
        self._loop.remove_writer(self._fd)


def _release_sockets(module: Module) -> None:
    """Empties the sockhashes. A socket in one holds its verdict, the verdict the map, and the map the socket's entry.

    Without this, a client that keeps its socket open would keep the programs loaded.
    """
    for sockhash in ("clients", "peers", "servers"):
        fd = module.map_fd(sockhash)
        for key in list(syscall.map_keys(fd, 8)):
            with contextlib.suppress(FileNotFoundError):  # the socket was closed meanwhile
                syscall.map_delete(fd, key)


def _kernel_fields() -> Fields:
    try:
        return fields()
    except (OSError, BtfError) as e:
        raise KechoError(f"the kernel's BTF: {one_line(e)}") from e


def _mapped(address: str) -> bytes:
    """An address as the 16 bytes of bpf/sockmap.c: IPv4 as IPv4-mapped IPv6."""
    packed = parse_address(address).packed
    return packed if len(packed) == 16 else bytes(10) + b"\xff\xff" + packed
