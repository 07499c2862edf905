# SPDX-License-Identifier: MIT
"""Filters at tc ingress, which kernels before tcx links need: as this kernel has them, too."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import network
import pytest
import support
from pyroute2.iproute.linux import IPRoute

from kecho.kernel import ingress, syscall

_INGRESS = 0xFFFFFFF2  # parent of filters at the ingress of a clsact qdisc
OTHERS = ["first", "second"]
NAME = f"kecho-mirror:pytest-{os.getpid()}"

# Sets a filter, and stays: the arguments are its name and the device.
USER = """
import signal, sys
from kecho.kernel import ingress, syscall
program = syscall.prog_load(syscall.PROG_TYPE_SCHED_CLS, syscall.RETURN_UNSPEC)
filters = ingress.Filters({"lo": program}, sys.argv[1])
filters.attach(int(sys.argv[2]), "lo")
print("there", flush=True)
signal.pause()
"""


class Device:
    """A device, and what is at its ingress."""

    def __init__(self, name: str) -> None:
        self.route = IPRoute()
        self.index = self.route.link_lookup(ifname=name)[0]

    def filters(self) -> list[str]:
        """What they are called, in order."""
        options = [one.get_attr("TCA_OPTIONS") for one in self.route.get_filters(self.index, parent=_INGRESS)]
        return [found.get_attr("TCA_BPF_NAME") for found in options if found and found.get_attr("TCA_BPF_NAME")]

    def qdiscs(self) -> list[str]:
        return [one.get_attr("TCA_KIND") for one in self.route.get_qdiscs(index=self.index)]


@pytest.fixture
def device() -> Iterator[Device]:
    with network.veth() as pair:
        found = Device(pair.device)
        with found.route:
            yield found


@pytest.fixture
def user(device: Device) -> Iterator[subprocess.Popen[str]]:
    """A process that has set a filter of NAME, and leads a session with the one that sees to it."""
    others = device.filters()
    command = [sys.executable, "-c", USER, NAME, str(device.index)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as found:
        try:
            assert found.stdout and found.stdout.readline() == "there\n"
            assert device.filters() == [*others, NAME]
            yield found
        finally:
            for pid in support.session(found.pid):
                os.kill(pid, signal.SIGKILL)
    ingress.clear_away(NAME)


@pytest.fixture
def neighbour(device: Device) -> None:
    """Somebody's filters; to be asked for before `user`."""
    device.route.tc("add", "clsact", device.index)
    program = syscall.prog_load(syscall.PROG_TYPE_SCHED_CLS, syscall.RETURN_UNSPEC)
    for name, prio in zip(OTHERS, (100, 200), strict=True):
        kind = {"fd": program, "name": name, "direct_action": True, "classid": 1}
        device.route.tc("add-filter", "bpf", device.index, parent=_INGRESS, prio=prio, **kind)
    os.close(program)
    assert device.filters() == OTHERS


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_they_go_with_their_user(device: Device, user: subprocess.Popen[str], number: int) -> None:
    """The filters and their qdisc are removed when their user ends."""
    user.send_signal(number)
    support.wait_for(lambda: device.filters() == [], "the end of the filter")
    support.wait_for(lambda: "clsact" not in device.qdiscs(), "the end of the qdisc")


def test_those_of_others_stay(device: Device, neighbour: None, user: subprocess.Popen[str]) -> None:
    user.kill()
    support.wait_for(lambda: NAME not in device.filters(), "the end of the filter")
    assert device.filters() == OTHERS and "clsact" in device.qdiscs()


def test_what_is_left_is_cleared_away(device: Device, neighbour: None, user: subprocess.Popen[str]) -> None:
    """If the process that sees to it is killed as well, the filter stays, until somebody asks."""
    seeing = support.session(user.pid) - {user.pid}
    assert len(seeing) == 1
    for pid in (*seeing, user.pid):
        os.kill(pid, signal.SIGKILL)
    user.wait()
    assert device.filters() == [*OTHERS, NAME]
    ingress.clear_away(f"{NAME}-of-another")
    assert NAME in device.filters()
    ingress.clear_away(NAME)
    assert device.filters() == OTHERS
