# SPDX-License-Identifier: MIT
"""The tests in this folder run kecho on the real kernel, as root; traffic stays on loopback and in own namespaces."""

from __future__ import annotations

import os
import resource
import signal
import socket
from collections.abc import Callable, Iterator

import network
import pytest
import support
from log_fixtures import kernel_log, session_log

__all__ = ["kernel_log", "session_log"]  # fixtures


def pytest_configure(config: pytest.Config) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it, and kecho would inherit that
    # A shell's limit, which sudo sets anew, is often 1024: too few for the tests with the most clients.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 65536), most))
    if os.geteuid() == 0:
        support.let_everybody_enter(support.ROOT)
    config.addinivalue_line("markers", "paths(*names): only for these of the paths that there are")


def is_for_its_path(item: pytest.Item) -> bool:
    """Does the marker `paths` allow the test's path? That comes by the parameter `path` or `kept`."""
    marker = item.get_closest_marker("paths")
    if not marker:
        return True
    params = item.callspec.params
    (path,) = (params[name] for name in ("path", "kept") if name in params)
    return path in marker.args


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    others = [item for item in items if not is_for_its_path(item)]
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if item not in others]
    if os.geteuid() == 0:
        return
    skip = pytest.mark.skip(reason="needs root")
    for item in items:
        if support.HERE in item.path.parents:
            item.add_marker(skip)


@pytest.fixture(scope="session", autouse=True)
def nothing_stays_up() -> Iterator[None]:
    """Takes down what tests have left up, because they were interrupted or failed during `up`."""
    yield
    left = sorted(sock.parent.name for sock in support.RUN.glob(f"pytest-{os.getpid()}-*/control.sock"))
    for name in left:
        support.run_kecho("down", name)
    assert not left, f"tests left services up: {left}"


@pytest.fixture
def kecho() -> Callable[..., object]:
    """Runs kecho-ctl with some arguments; gives the CompletedProcess, with its output as text."""
    return support.run_kecho


@pytest.fixture
def service() -> Iterator[Callable[..., support.Service]]:
    """Brings services up, as support.up does. They are taken down in the end, and nothing of them may be left."""
    services: list[support.Service] = []

    def up(**options: object) -> support.Service:
        services.append(support.up(**options))
        return services[-1]

    yield up
    errors = []
    for one in reversed(services):
        try:
            one.down()
        except Exception as e:  # the others have to be taken down too
            errors.append(e)
    if errors:
        raise errors[0]


@pytest.fixture
def served(kept: support.Kept) -> support.Server:
    """The service of a path. All tests of a module share it, so one test finds what another has left behind.

    The module's fixture `kept` chooses the paths and the options.
    """
    return kept.idle()


@pytest.fixture(params=support.PATHS)
def path(request: pytest.FixtureRequest) -> str:
    """Each way to echo; give it to service(path=…)."""
    return str(request.param)


@pytest.fixture(params=[socket.AF_INET, socket.AF_INET6], ids=["v4", "v6"])
def family(request: pytest.FixtureRequest) -> int:
    """Each IP version."""
    return int(request.param)


@pytest.fixture
def namespace() -> Iterator[str]:
    """An empty network namespace with its loopback up."""
    with network.namespace() as name:
        yield name
