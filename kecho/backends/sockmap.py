# SPDX-License-Identifier: MIT
"""The sockmap backend: sets up ``bpf/sockmap.c`` and owns the listeners and accepted sockets.

docs/design.md, section 3, explains the paths.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
import sys
from collections.abc import Collection

from kecho.backends.acceptor import Acceptor
from kecho.backends.base import AllOrNothing, OnFailure
from kecho.kernel import features, syscall
from kecho.kernel.bpf import Module, PathArray, log, possible_cpus
from kecho.kernel.btf import Btf, BtfError
from kecho.kernel.features import Feature
from kecho.model.config import Config, family_of, parse_address
from kecho.model.errors import KechoError, Unavailable, one_line
from kecho.model.snapshot import Connections, PathStats

PATHS = ("msg", "skb", "user")  # PATH_* of bpf/sockmap.c
_KERNEL_PATHS = PATHS[:2]
# --path: where local clients go, where the others go
_ROUTES = {"auto": ("msg", "skb"), "msg": ("msg", "user"), "skb": ("skb", "skb")}
_ROUTE_TEXT = {
    "auto": "msg for local clients, skb for remote ones",
    "msg": "msg for local clients, user for remote ones",
    "skb": "skb for all clients",
}
# What tells that a client's send returned: SEND_HOOK_* of bpf/sockmap.c. The tracepoint is there from Linux 6.3.
_NO_HOOK, _TRACEPOINT, _FEXIT = range(3)
_MIN_CONNECTIONS, _MAX_CONNECTIONS = 1024, 1 << 20


class SockmapBackend(AllOrNothing):
    """One service. Everything it makes ends with the process, whatever ends that."""

    def __init__(self) -> None:
        super().__init__()
        self._acceptor: Acceptor | None = None
        self._array: PathArray | None = None
        self._path = "auto"
        self._why_no_latency: dict[str, str] = {}

    @staticmethod
    def features() -> tuple[Feature, ...]:
        return (
            Feature("privilege", features.probe_privilege),
            Feature("bcc", features.probe_bcc),
            Feature("kernel symbols", features.probe_symbols),
            Feature("headers", features.probe_headers),
            Feature("BTF", features.probe_btf),
            Feature("cgroup v2", features.probe_cgroup2),
            Feature("netns cookie", features.probe_netns_cookie),
            Feature("sock_ops", features.probe_sock_ops),
            Feature("sockhash", features.probe_sockhash),
            Feature("path msg", features.probe_msg, required=False),
        )

    async def _start(self, config: Config, on_failure: OnFailure) -> None:
        """Programs first, then registration, and only then the listeners: no connection slips through."""
        self._path = config.path
        local, remote = _ROUTES[config.path]
        if local == "msg":
            try:
                features.probe_msg()
            except Unavailable as e:
                if config.path == "msg":
                    raise
                log(f"path msg is not used: {e}")
                self._path, local = "skb", "skb"
        features.raise_nofile()
        listeners = [self._bind(address, config.port) for address in config.binds]
        btf = _read_btf()
        module = self._compile(self._defines(config, btf, listeners[0], local, remote), btf, local)
        self._undo.callback(module.close)
        self._attach_verdicts(module, config.latency)
        for address in config.binds:
            syscall.map_update(module.map_fd("listeners"), _mapped(address), b"\x01")
        self._undo.callback(lambda: _release_sockets(module))
        cgroup = os.open(features.cgroup2_mount(), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            prog = module.load("kecho_register", syscall.PROG_TYPE_SOCK_OPS)
            link = syscall.link_create(prog, cgroup, syscall.ATTACH_CGROUP_SOCK_OPS)
        finally:
            os.close(cgroup)
        self._undo.callback(lambda: os.close(link))
        self._array = PathArray(module.map_fd("paths"), _KERNEL_PATHS)
        self._acceptor = Acceptor(listeners)
        self._undo.callback(self._acceptor.stop)
        self._reset_broken(module, self._acceptor)
        self._acceptor.start(config.backlog)

    def _reset_broken(self, module: Module, acceptor: Acceptor) -> None:
        """Sees to the streams that the verdict has given up."""
        loop = asyncio.get_running_loop()
        fd, consume = module.on_record("broken", lambda cookie: acceptor.reset(int.from_bytes(cookie, sys.byteorder)))
        loop.add_reader(fd, consume)
        self._undo.callback(lambda: loop.remove_reader(fd))

    def _bind(self, address: str, port: int) -> socket.socket:
        sock = socket.socket(family_of(address), socket.SOCK_STREAM)
        self._undo.callback(sock.close)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((address, port))
        return sock

    def _compile(self, defines: dict[str, int | str], btf: Btf, local: str) -> Module:
        """With the best hook there is; each costs every send on this machine a look-up, so only where it is needed."""
        hook = _NO_HOOK
        if defines["KECHO_LATENCY"] and local == "msg":
            hook = _TRACEPOINT if btf.has("btf_trace_sock_send_length") else _FEXIT
        try:
            module = Module("sockmap.c", {**defines, "KECHO_SEND_HOOK": hook})
        except KechoError as e:
            if hook != _FEXIT:
                raise
            self._why_no_latency["msg"] = f"no tracepoint sock_send_length, and no fexit: {e}"
            return Module("sockmap.c", {**defines, "KECHO_SEND_HOOK": _NO_HOOK})
        if hook == _TRACEPOINT:
            module.attach_raw_tracepoint("sock_send_length", "kecho_msg_sent")
        return module

    def _defines(
        self, config: Config, btf: Btf, listener: socket.socket, local: str, remote: str
    ) -> dict[str, int | str]:
        nofile, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return {
            "KECHO_PORT": config.port,
            "KECHO_NETNS": f"{features.netns_cookie(listener)}ULL",
            "KECHO_LIMIT": config.limit_bytes,
            "KECHO_MAX_CONNS": min(max(nofile, _MIN_CONNECTIONS), _MAX_CONNECTIONS),
            "KECHO_CPUS": max(possible_cpus()) + 1,
            "KECHO_LATENCY": int(config.latency),
            "KECHO_PATH_LOCAL": PATHS.index(local),
            "KECHO_PATH_REMOTE": PATHS.index(remote),
            **{f"KECHO_OFF_{name}": offset for name, offset in features.sockmap_offsets(btf).items()},
        }

    def _attach_verdicts(self, module: Module, latency: bool) -> None:
        def attach(function: str, prog_type: int, sockhash: str, attach_type: int) -> None:
            syscall.prog_attach(module.load(function, prog_type), module.map_fd(sockhash), attach_type)

        attach("kecho_msg_echo", syscall.PROG_TYPE_SK_MSG, "clients", syscall.ATTACH_SK_MSG_VERDICT)
        attach("kecho_skb_echo", syscall.PROG_TYPE_SK_SKB, "servers", syscall.ATTACH_SK_SKB_STREAM_VERDICT)
        if not latency:
            self._why_no_latency = dict.fromkeys(_KERNEL_PATHS, "switched off with --no-latency")
            return
        attach("kecho_skb_sent", syscall.PROG_TYPE_SK_MSG, "servers", syscall.ATTACH_SK_MSG_VERDICT)

    def keeps(self) -> Collection[int]:
        return self._array.needs() if self._array else ()

    def paths(self) -> dict[str, PathStats]:
        if not self._array or not self._acceptor:
            return {}
        stats = {**self._array.read(), "user": self._acceptor.stats()}
        for path, why in self._why_no_latency.items():
            stats[path] = PathStats(stats[path].echoes, stats[path].bytes, stats[path].fallbacks, None, why)
        return stats

    def connections(self) -> Connections:
        return self._acceptor.connections() if self._acceptor else Connections()

    def describe(self) -> str:
        return _ROUTE_TEXT[self._path]


def _release_sockets(module: Module) -> None:
    """A socket in a sockhash holds the verdict, which holds the map, which holds the socket's entry: cut that circle.

    Otherwise a client that keeps its socket open would keep the programs loaded.
    """
    for sockhash in ("clients", "servers"):
        fd = module.map_fd(sockhash)
        for key in list(syscall.map_keys(fd, 8)):
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                syscall.map_delete(fd, key)


def _read_btf() -> Btf:
    try:
        return Btf.vmlinux()
    except (OSError, BtfError) as e:
        raise KechoError(f"the kernel's BTF: {one_line(e)}") from e


def _mapped(address: str) -> bytes:
    """The 16 bytes that bpf/sockmap.c knows an address by: IPv4 as IPv4-mapped IPv6."""
    packed = parse_address(address).packed
    return packed if len(packed) == 16 else bytes(10) + b"\xff\xff" + packed
