# SPDX-License-Identifier: MIT
"""The mirror backend: attaches ``bpf/mirror.c`` to the devices with the service's addresses, and follows their changes.

docs/mirror.md explains how a segment becomes its own echo.
"""

from __future__ import annotations

import os
import socket
import stat
import struct
import sys
from collections.abc import Collection, Mapping

from kecho.backends.base import AllOrNothing, Context
from kecho.kernel import devices, features, ingress, privileges, syscall
from kecho.kernel.bpf import Module, PathArray, log, possible_cpus
from kecho.kernel.devices import Address, Device
from kecho.kernel.features import Feature
from kecho.kernel.privileges import CAP_BPF, CAP_SYS_ADMIN
from kecho.model.config import Config, family_of, parse_address
from kecho.model.errors import KechoError, one_line
from kecho.model.snapshot import Connections, PathStats

PATHS = ("mirror",)
_KINDS = ("lo", "ether", "ip")  # the kinds of devices of bpf/mirror-packet.h, in its order
_VERSIONS = ("v4", "v6")
# The kinds of addresses in the maps own4 and own6 of bpf/mirror.c.
_OWN, _SERVED_LO, _SERVED = 1, 2, 4
_CONN_KEY_BYTES, _MOST_CONNS = 36, 131072  # the map conns
_TOTALS = struct.Struct("=QQ")  # opened, aborted
_SECRET_BYTES = 16


def filter_name(service: str) -> str:
    """The name of the service's filters, on kernels without tcx links."""
    return f"kecho-mirror:{service}"


class MirrorBackend(AllOrNothing):
    """One service: programs at tc ingress, and a socket that holds the port."""

    def __init__(self) -> None:
        super().__init__()
        self._binds: tuple[Address, ...] = ()
        self._module: Module | None = None
        self._array: PathArray | None = None
        self._ingress: ingress.Ingress | None = None
        self._attached: dict[int, Device] = {}
        self._known: dict[Address, int] = {}  # what own4 and own6 hold
        self._why_no_latency = ""

    @staticmethod
    def features() -> tuple[Feature, ...]:
        return (
            *features.for_bpf(),
            Feature("tc ingress", ingress.probe),
        )

    async def _start(self, config: Config, _: Context) -> None:
        """Takes the port first and the devices last, so that nothing is answered before all is ready."""
        self._binds = tuple(map(parse_address, config.binds))
        secret = read_secret(config.keep_secret) if config.keep_secret else os.urandom(_SECRET_BYTES)
        for address in config.binds:
            self._hold(address, config.port)
        kinds = _KINDS[:1] if all(address.is_loopback for address in self._binds) else _KINDS
        key0, key1 = struct.unpack("<QQ", secret)
        settings = {"KECHO_PORT_BE": socket.htons(config.port), "KECHO_KEY0": key0, "KECHO_KEY1": key1}
        self._module = Module("mirror.c", self._defines(config, len(kinds)), settings)
        self._undo.callback(self._module.close)
        programs = {kind: self._load(self._module, kind) for kind in kinds}
        if not config.latency:
            self._why_no_latency = "switched off with --no-latency"
        self._array = PathArray(self._module.map_fd("paths"), PATHS)
        if ingress.has_links():
            self._ingress = ingress.Links(programs)
        else:
            self.clear_away(config.name, ())
            self._ingress = ingress.Filters(programs, filter_name(config.name))
        self._undo.callback(self._ingress.close)
        watch = devices.Watch(self._follow)
        self._undo.callback(watch.close)
        for device in await self._update():
            self._attach(device)

    def _hold(self, address: str, port: int) -> None:
        """Takes the port, without listening: packets that the mirror leaves alone find it closed."""
        sock = socket.socket(family_of(address), socket.SOCK_STREAM)
        self._undo.callback(sock.close)
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        # Sockets in TIME-WAIT of an earlier server do not matter.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
        # Another server that sets the option could bind to the port as well; now it cannot listen.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)

    @staticmethod
    def _defines(config: Config, kinds: int) -> Mapping[str, int]:
        return {
            "KECHO_LATENCY": int(config.latency),
            "KECHO_ANY_V4": int("0.0.0.0" in config.binds),
            "KECHO_ANY_V6": int("::" in config.binds),
            "KECHO_LOOPBACK_V4": int("127.0.0.1" in config.binds),
            "KECHO_LOOPBACK_V6": int("::1" in config.binds),
            "KECHO_KINDS": kinds,
            "KECHO_MAX_CONNS": _MOST_CONNS,
        }

    @staticmethod
    def _load(module: Module, kind: str) -> int:
        """Loads the program of a kind of devices, with those that it tail-calls."""
        for version, suffix in enumerate(_VERSIONS):
            turn = module.load(f"kecho_{kind}_{suffix}", syscall.PROG_TYPE_SCHED_CLS)
            index = _KINDS.index(kind) * len(_VERSIONS) + version
            syscall.map_update(module.map_fd("turns"), _u32(index), _u32(turn))
        return module.load(f"kecho_{kind}", syscall.PROG_TYPE_SCHED_CLS)

    # ---- devices and addresses ----

    async def _follow(self) -> None:
        """Called after a change. A device that cannot be attached to is skipped; the others go on."""
        try:
            wanted = {device.index: device for device in await self._update()}
        except OSError as e:  # tried again at the next change
            log.warning("cannot list the devices: %s", one_line(e))
            return
        for index in self._attached.keys() - wanted.keys():
            self._detach(index)
        for index in wanted.keys() - self._attached.keys():
            try:
                self._attach(wanted[index])
            except (OSError, KechoError) as e:
                log.warning("cannot attach to %s: %s", wanted[index].name, one_line(e))

    async def _update(self) -> list[Device]:
        """Brings the maps of addresses up to date. Returns the devices to attach to."""
        assert self._module is not None
        found = await devices.devices()
        known: dict[Address, int] = {}
        for device in found:
            for address in device.broadcasts:
                known[address] = _OWN
        for device in found:
            for address in device.addresses:
                known[address] = _OWN | (self._serves(address) and _SERVED_LO | (not address.is_loopback) * _SERVED)
        for address in self._binds:  # all of 127.0.0.0/8 exist without being set
            if address.is_loopback:
                known[address] = _OWN | _SERVED_LO
        for address in self._known.keys() - known.keys():
            syscall.map_delete(self._map_of(address), address.packed)
        for address, what in known.items() - self._known.items():
            syscall.map_update(self._map_of(address), address.packed, bytes([what]))
        self._known = known
        return [device for device in found if self._leads_here(device)]

    def _serves(self, address: Address) -> bool:
        return any(bind == address or (bind.is_unspecified and bind.version == address.version) for bind in self._binds)

    def _leads_here(self, device: Device) -> bool:
        """Do clients of the service come in by that device? On lo local clients do, for any address."""
        if device.kind == "lo":
            return True
        return bool(device.kind) and any(map(self._serves, device.addresses))

    def _map_of(self, address: Address) -> int:
        assert self._module is not None
        return self._module.map_fd(f"own{address.version}")

    def _attach(self, device: Device) -> None:
        assert self._ingress is not None
        self._ingress.attach(device.index, device.kind)
        self._attached[device.index] = device

    def _detach(self, index: int) -> None:
        assert self._ingress is not None
        del self._attached[index]
        try:
            self._ingress.detach(index)
        except (OSError, KechoError) as e:  # the device has gone
            log.warning("cannot detach: %s", one_line(e))

    # ---- counters and status ----

    def keeps(self) -> Collection[int]:
        if not self._array:
            return ()
        return privileges.needed((CAP_BPF, CAP_SYS_ADMIN), lambda: (self.paths(), self.connections()))

    def paths(self) -> dict[str, PathStats]:
        if not self._array:
            return {}
        stats = self._array.read()
        if why := self._why_no_latency:
            stats = {name: PathStats(s.echoes, s.bytes, s.fallbacks, None, why) for name, s in stats.items()}
        return stats

    def connections(self) -> Connections:
        """The counts. `active` are connections that were seen to open and not to close, at most `_MOST_CONNS`."""
        if not self._module:
            return Connections()
        cpus = len(possible_cpus())
        values = syscall.map_lookup(self._module.map_fd("totals"), _u32(0), cpus * _TOTALS.size)
        opened, aborted = (sum(column) for column in zip(*_TOTALS.iter_unpack(values), strict=True))
        active = syscall.map_count(self._module.map_fd("conns"), _CONN_KEY_BYTES, 1, _MOST_CONNS)
        return Connections(active=active, total=opened, aborted=aborted)

    def describe(self) -> str:
        where = ", ".join(sorted(device.name for device in self._attached.values()))
        text = f"mirror at tc ingress of {where}"
        if any(device.kind != "lo" for device in self._attached.values()):
            text += "; what comes in there by another device than lo passes no firewall (INPUT) and no conntrack"
        return text

    @staticmethod
    def clear_away(name: str, alive: Collection[str]) -> None:
        """Removes the filters, if the process that set them was killed as well."""
        ingress.clear_away(filter_name(name))

    def stop(self) -> None:
        super().stop()
        self._module = self._array = self._ingress = None
        self._attached, self._known = {}, {}


def read_secret(path: str) -> bytes:
    """The secret in a file that only root may read. Makes the file if there is none. Raises KechoError."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    except OSError as e:
        raise KechoError(f"--keep-secret {path}: {e.strerror}") from e
    with os.fdopen(fd, "r+b", buffering=0) as file:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise KechoError(f"--keep-secret {path}: must be a file that its owner, root, alone can read")
        secret = file.read(_SECRET_BYTES + 1)
        if not secret:
            secret = os.urandom(_SECRET_BYTES)
            file.write(secret)
            os.fsync(fd)
    if len(secret) != _SECRET_BYTES:
        raise KechoError(f"--keep-secret {path}: not {_SECRET_BYTES} bytes")
    return secret


def _u32(number: int) -> bytes:
    return number.to_bytes(4, sys.byteorder)
