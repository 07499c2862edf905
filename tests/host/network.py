# SPDX-License-Identifier: MIT
"""Network namespaces of the tests: a remote client is one at the other end of a veth pair."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import random
import stat
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

from pyroute2 import NetNS, config, netns
from pyroute2.iproute.linux import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

# pyroute2 gives the process that makes a namespace 2 s, which is too little in a machine that is emulated.
config.default_communicate_timeout = 60

# One of its own for each process: runs of several checkouts on one machine must not meet.
NET = 1 + os.getpid() % 250


@contextlib.contextmanager
def namespace() -> Iterator[str]:
    """An empty network namespace with its loopback up."""
    name = f"kecho-{os.getpid()}-{random.randrange(1 << 32):x}"
    netns.create(name)
    try:
        with NetNS(name) as there:
            there.link("set", index=there.link_lookup(ifname="lo")[0], state="up")
        yield name
    finally:
        with contextlib.suppress(FileNotFoundError):
            netns.remove(name)


class Veth:
    """A pair of devices: ours with the addresses .1, the other's in a namespace with .2."""

    def __init__(self, namespace: str, net: int) -> None:
        self.namespace, self.device = namespace, f"kv{random.randrange(1 << 32):x}"
        block, net = divmod(net, 256)
        self.here, self.there = f"10.{83 + block}.{net}.1", f"10.{83 + block}.{net}.2"
        self.here6, self.there6 = f"fd{83 + block}:{net}::1", f"fd{83 + block}:{net}::2"
        with IPRoute() as here, NetNS(namespace) as there:
            here.link("add", ifname=self.device, kind="veth", peer={"ifname": "peer", "net_ns_fd": namespace})
            try:
                _address(here, self.device, self.here, self.here6)
                _address(there, "peer", self.there, self.there6)
            except BaseException:
                self.close()
                raise

    @property
    def prefix(self) -> tuple[str, ...]:
        """The words that run a command in the namespace."""
        return ("ip", "netns", "exec", self.namespace)

    def impair(self, netem: list[str]) -> None:
        """Sets netem in both directions, in place of what was set before; no arguments: a network without faults."""
        for prefix, device in (((), self.device), (self.prefix, "peer")):
            subprocess.run([*prefix, "tc", "qdisc", "replace", "dev", device, "root", "netem", *netem], check=True)

    def down(self) -> None:
        """Our end of the pair carries nothing any more."""
        with IPRoute() as here:
            here.link("set", index=here.link_lookup(ifname=self.device)[0], state="down")

    def move_here_to(self, namespace: str) -> None:
        """Our end of the pair, with its addresses, is in another namespace from now on."""
        with IPRoute() as here, NetNS(namespace) as there:
            here.link("set", index=here.link_lookup(ifname=self.device)[0], net_ns_fd=namespace)
            _address(there, self.device, self.here, self.here6)

    def close(self) -> None:
        """Takes the pair away, if its namespace has not done so. Idempotent."""
        with IPRoute() as here:
            for index in here.link_lookup(ifname=self.device):
                try:
                    here.link("del", index=index)
                except NetlinkError as error:
                    if error.code != errno.ENODEV:  # its namespace has just done so
                        raise


def _address(stack: IPRoute, device: str, v4: str, v6: str) -> None:
    """Brings the device up with these addresses."""
    index = stack.link_lookup(ifname=device)[0]
    stack.link("set", index=index, state="up")
    stack.addr("add", index=index, address=v4, prefixlen=24)
    stack.addr("add", index=index, address=v6, prefixlen=64, flags=0x02)  # IFA_F_NODAD


@contextlib.contextmanager
def veth(net: int = NET) -> Iterator[Veth]:
    """A namespace at the other end of a veth pair, in the network 10.83.`net`.0/24 and fd83:`net`::/64.

    `net` + 256 is another one, of this process too.
    """
    with namespace() as name:
        pair = Veth(name, net)
        try:
            yield pair
        finally:
            pair.close()


def tcp_counter(name: str, netns: str = "") -> int:
    """TCP's counter of that name, as TCPTimeouts or InCsumErrors, in a namespace or in this one."""
    prefix = ["ip", "netns", "exec", netns] if netns else []
    command = [*prefix, "cat", "/proc/net/snmp", "/proc/net/netstat"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in text.splitlines() if line.startswith(("Tcp:", "TcpExt:"))]
    counts: dict[str, str] = {}
    for names, values in zip(rows[::2], rows[1::2], strict=True):
        counts.update(zip(names, values, strict=True))
    return int(counts[name])


# include/uapi/linux/if_tun.h
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI, _IFF_VNET_HDR = 0x400454CA, 1, 0x1000, 0x4000


def _tun_node(folder: Path) -> Path:
    """The device that TUN is opened by; made in the folder where there is no udev."""
    node = Path("/dev/net/tun")
    if not node.exists():
        subprocess.run(["modprobe", "-q", "tun"], check=False)  # may be built in
    if not node.exists():
        node = folder / "tun"
        os.mknod(node, 0o600 | stat.S_IFCHR, os.makedev(10, 200))  # Documentation/admin-guide/devices.txt
    return node


@contextlib.contextmanager
def tun(folder: Path, *addresses: tuple[str, int], namespace: str = "") -> Iterator[int]:
    """A device of IP packets with these addresses and prefix lengths; the descriptor is the rest of the network.

    It is here, or in that namespace. Each packet has a struct virtio_net_hdr in front.
    """
    name = f"kt{random.randrange(1 << 32):x}"
    fd = os.open(_tun_node(folder), os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI | _IFF_VNET_HDR))
        if namespace:
            with IPRoute() as here:
                here.link("set", index=here.link_lookup(ifname=name)[0], net_ns_fd=namespace)
        with NetNS(namespace) if namespace else IPRoute() as stack:
            index = stack.link_lookup(ifname=name)[0]
            for address, prefix in addresses:
                stack.addr("add", index=index, address=address, prefixlen=prefix, flags=0x02)  # IFA_F_NODAD
            stack.link("set", index=index, state="up")
        yield fd
    finally:
        os.close(fd)
