# SPDX-License-Identifier: MIT
"""The user backend: ``user-echo-server`` as the baseline."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import replace

from kecho.backends.base import AllOrNothing, Context
from kecho.backends.server import EchoServer, probe_server
from kecho.kernel.features import Feature
from kecho.model.config import Config
from kecho.model.errors import AS_ROOT, Unavailable
from kecho.model.snapshot import Connections, PathStats

_WHY_NO_LATENCY = "user-echo-server is the baseline: it spends no time on clock reads"


def probe_root() -> str:
    """Root, whose folder ``/run/kecho`` is; the server alone would need it for ports below 1024 only."""
    if os.geteuid() != 0:
        raise Unavailable("services are root's to bring up and down", AS_ROOT)
    return "yes"


class UserBackend(AllOrNothing):
    """One user-echo-server, which binds as root."""

    def __init__(self) -> None:
        super().__init__()
        self._server = EchoServer()
        self._engine = ""

    @staticmethod
    def features() -> tuple[Feature, ...]:
        return (Feature("privilege", probe_root), Feature("user-echo-server", probe_server))

    async def _start(self, config: Config, context: Context) -> None:
        self._engine = config.engine
        binds = (f"--bind={address}" for address in config.binds)
        self._undo.callback(self._server.stop)
        options = [f"--port={config.port}", f"--engine={config.engine}", f"--busy-poll={config.busy_poll_us}", *binds]
        await self._server.start(config, context, options)

    def keeps(self) -> Collection[int]:
        return ()

    def paths(self) -> dict[str, PathStats]:
        return {"user": replace(self._server.carried(), latency=None, why=_WHY_NO_LATENCY)}

    def connections(self) -> Connections:
        return self._server.connections()

    def describe(self) -> str:
        return f"user, {self._engine}"
