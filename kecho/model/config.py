# SPDX-License-Identifier: MIT
"""What a service is asked to be: the options of `up`, checked."""

from __future__ import annotations

import ipaddress
import re
import socket
from dataclasses import asdict, dataclass
from typing import Any

from kecho.model.errors import UsageError

DEFAULT_NAME = "kecho"
DEFAULT_PORT = 12345
DEFAULT_BINDS = ("127.0.0.1", "::1")
DEFAULT_LIMIT_BYTES = 4 << 20
MIN_LIMIT_BYTES = 4 << 10
MAX_LIMIT_BYTES = 1 << 30
MAX_BUSY_POLL_US = 1_000_000
PATH_CHOICES = ("auto", "egress", "ingress", "skb", "user")  # of mode sockmap
ENGINES = ("epoll", "io_uring")  # of kecho/native/server/main.c; the first is the default

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")


@dataclass(frozen=True, kw_only=True)
class Config:
    """One service. Raises UsageError, with one line that names the option, if a value makes no sense."""

    mode: str
    name: str = DEFAULT_NAME
    port: int = DEFAULT_PORT
    binds: tuple[str, ...] = DEFAULT_BINDS
    backlog: int
    path: str = "auto"
    limit_bytes: int = DEFAULT_LIMIT_BYTES
    latency: bool = True
    bench: int = 0
    inline: bool = True
    engine: str = ENGINES[0]
    keep_secret: str = ""
    busy_poll_us: int = 0
    cpus: str = ""  # a list, as in 0,2-3; empty: any

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise UsageError(f"--name {self.name!r}: letters, digits, '_', '.' and '-', at most 63, no leading sign")
        if not 1 <= self.port <= 65535:
            raise UsageError(f"--port {self.port}: must be from 1 to 65535")
        if not 1 <= self.backlog <= 2**31 - 1:
            raise UsageError(f"--backlog {self.backlog}: must be at least 1")
        if self.path not in PATH_CHOICES:
            raise UsageError(f"--path {self.path}: must be one of {', '.join(PATH_CHOICES)}")
        if not MIN_LIMIT_BYTES <= self.limit_bytes <= MAX_LIMIT_BYTES:
            raise UsageError(f"--limit {self.limit_bytes}: must be from {MIN_LIMIT_BYTES} to {MAX_LIMIT_BYTES} bytes")
        if self.bench not in (0, 1):
            raise UsageError(f"--bench {self.bench}: must be 0 or 1")
        if self.engine not in ENGINES:
            raise UsageError(f"--engine {self.engine}: must be one of {', '.join(ENGINES)}")
        if not 0 <= self.busy_poll_us <= MAX_BUSY_POLL_US:
            raise UsageError(f"--busy-poll {self.busy_poll_us}: must be from 0 to {MAX_BUSY_POLL_US} µs")
        if self.busy_poll_us and self.engine != ENGINES[0]:
            raise UsageError(f"--busy-poll is for --engine {ENGINES[0]}")
        if not self.binds:
            raise UsageError("--bind: at least one address is needed")
        for bind in self.binds:
            parse_address(bind)
        if len({parse_address(bind) for bind in self.binds}) != len(self.binds):
            raise UsageError("--bind: the same address twice")

    def to_json(self) -> dict[str, Any]:
        """The configuration as it stands in state.json."""
        return {**asdict(self), "binds": list(self.binds)}


def parse_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """A numeric address without a zone. Raises UsageError."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise UsageError(f"--bind {text}: not an IPv4 or IPv6 address") from None
    if isinstance(address, ipaddress.IPv6Address) and (address.scope_id or address.ipv4_mapped):
        raise UsageError(f"--bind {text}: zones and IPv4-mapped addresses are not supported")
    return address


def family_of(bind: str) -> socket.AddressFamily:
    """AF_INET or AF_INET6."""
    return socket.AF_INET if parse_address(bind).version == 4 else socket.AF_INET6


def endpoint(host: str, port: int) -> str:
    """``127.0.0.1:80``, ``[::1]:80``."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
