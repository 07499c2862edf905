# SPDX-License-Identifier: MIT
"""The services of `--compare`: brought up side by side, each with its own controller, and taken down again."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kecho.backends import base as backends
from kecho.bench.targets import Target, reachable
from kecho.kernel import features, sysctl
from kecho.model.config import DEFAULT_BINDS, Config, family_of
from kecho.model.errors import KechoError, Unavailable, UsageError
from kecho.service import rundir
from kecho.service.client import Client
from kecho.system import limits

_BUSY_US = 1000  # longer than a request takes: that server never sleeps between two of them
# Modes with options of `up`.
_OWN_VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "user:busy": {"mode": "user", "busy_poll_us": _BUSY_US},
    "user:epoll": {"mode": "user", "engine": "epoll"},
    "user:io_uring": {"mode": "user", "engine": "io_uring"},
    "sockmap:egress": {"mode": "sockmap", "path": "egress"},
    "sockmap:ingress": {"mode": "sockmap", "path": "ingress"},
    "sockmap:skb": {"mode": "sockmap", "path": "skb"},
    "sockmap:user": {"mode": "sockmap", "path": "user"},
    "module:workqueue": {"mode": "module", "inline": False},
}
# The values of `--compare`: every mode by its name, and these.
VARIANTS = dict(sorted({**{mode: {"mode": mode} for mode in backends.MODES}, **_OWN_VARIANTS}.items()))
_PORTS = range(10_000, 65_536)


@dataclass(frozen=True)
class Fleet:
    """The services that are up, and why the others are not."""

    targets: tuple[Target, ...]
    left_out: Mapping[str, str]


def parse(text: str) -> tuple[str, ...]:
    """The variants in a list such as ``user,sockmap:egress``. Raises UsageError."""
    names = tuple(text.split(","))
    for name in names:
        if name not in VARIANTS:
            raise UsageError(f"--compare {name!r}: must be of {', '.join(VARIANTS)}")
        if names.count(name) > 1:
            raise UsageError(f"--compare: {name} named twice")
    if sum(VARIANTS[name]["mode"] == "module" for name in names) > 1:
        raise UsageError("--compare: a kernel takes the module once; compare its variants in runs of their own")
    return names


@contextlib.contextmanager
def brought_up(names: Sequence[str], binds: Sequence[str] = (), cpus: str = "") -> Iterator[Fleet]:
    """Brings variants up on ports of their own, and takes them down in the end.

    They listen on `binds`, by default on loopback; those with a process run on `cpus`, by default on any. What this
    machine cannot run is left out. The services end with this process, even if it is killed.

    Raises Unavailable if nothing is left, or without root; KechoError if a service does not come up.
    """
    if not names:
        yield Fleet((), {})
        return
    rundir.check_privilege()
    targets: list[Target] = []
    left_out: dict[str, str] = {}
    stack = contextlib.ExitStack()
    try:
        for name in names:
            try:
                targets.append(stack.enter_context(_service(name, binds or _loopback(), cpus)))
            except Unavailable as e:
                left_out[name] = str(e)
        if not targets:
            raise Unavailable("; ".join(f"{name}: {why}" for name, why in left_out.items()))
        yield Fleet(tuple(targets), left_out)
    finally:
        with _deaf():
            stack.close()


@contextlib.contextmanager
def _service(variant: str, binds: Sequence[str], cpus: str) -> Iterator[Target]:
    from kecho.service.controller import run_background

    mode = VARIANTS[variant]["mode"]
    backend = backends.backend(mode)
    backends.check(backend.features())
    name = f"bench-{os.getpid()}-{variant.replace(':', '-')}"
    backlog = sysctl.somaxconn()
    options = dict(VARIANTS[variant])
    if cpus and mode in backends.modes_with("cpus"):
        options["cpus"] = cpus
    config = Config(name=name, port=free_port(binds), binds=tuple(binds), backlog=backlog, **options)
    try:
        run_background(config, backend(), dies_with_parent=True)
        client = Client(name)
        own = {"cpus": config.cpus, "pid": client.status()["pid"]}
        yield Target(variant, reachable(binds), config.port, mode, client.snapshot, **own)
    finally:
        if rundir.directory(name).is_dir():
            Client(name).down()


def _loopback() -> tuple[str, ...]:
    return tuple(bind for bind in DEFAULT_BINDS if features.can_bind(bind))


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """Ignores SIGINT meanwhile: a second Ctrl-C must not leave half the services up."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def free_port(binds: Sequence[str]) -> int:
    """A free port outside the range of local ports. Raises KechoError."""
    low, high = map(int, sysctl.read(limits.PORT_RANGE).split())
    candidates = [port for port in _PORTS if not low <= port <= high] or list(_PORTS)
    for port in random.sample(candidates, min(len(candidates), 1000)):
        if all(_is_free(bind, port) for bind in binds):
            return port
    raise KechoError("no free port for a service")


def _is_free(bind: str, port: int) -> bool:
    with socket.socket(family_of(bind)) as sock:
        try:
            sock.bind((bind, port))
        except OSError:
            return False
    return True
