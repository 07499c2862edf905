# SPDX-License-Identifier: MIT
"""The module backend: its place. fastecho.ko comes with the next release; until then it says that it is not there."""

from __future__ import annotations

from kecho import kernel
from kecho.backends import OnFailure
from kecho.config import Config
from kecho.errors import Unavailable
from kecho.kernel import Feature
from kecho.snapshot import Connections, PathStats


def probe_fastecho() -> str:
    """The module itself."""
    raise Unavailable("this release has no fastecho module yet", "use --mode sockmap")


class ModuleBackend:
    """Cannot be started yet."""

    @staticmethod
    def features() -> tuple[Feature, ...]:
        return (Feature("loadable modules", kernel.probe_modules), Feature("fastecho", probe_fastecho))

    async def start(self, config: Config, on_failure: OnFailure) -> None:
        probe_fastecho()

    def stop(self) -> None:
        pass

    def paths(self) -> dict[str, PathStats]:
        return {}

    def connections(self) -> Connections:
        return Connections()

    def describe(self) -> str:
        return "softirq and workqueue"
