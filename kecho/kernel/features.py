# SPDX-License-Identifier: MIT
"""What the running kernel has: features, probed by trying them; headers to compile with; offsets of fields."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import importlib.util
import os
import platform
import re
import resource
import select
import socket
import struct
import subprocess
import termios
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from kecho.kernel import privileges, procfs, syscall
from kecho.kernel.btf import VMLINUX, BtfError
from kecho.kernel.fields import fields
from kecho.kernel.privileges import CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON, CAP_SYS_ADMIN
from kecho.model.errors import AS_ROOT, KechoError, Unavailable, one_line

SO_NETNS_COOKIE = 71  # include/uapi/asm-generic/socket.h, from 5.14
SO_MEMINFO = 55
_APT_S = 10


@dataclass(frozen=True)
class Feature:
    """One thing a mode needs. `attempt` returns what was found; what it raises says why there is nothing."""

    name: str
    attempt: Callable[[], str]
    required: bool = True

    def probe(self) -> str:
        """What was found. Raises Unavailable, whatever kept it from being looked for."""
        try:
            return self.attempt()
        except (KechoError, OSError, ValueError) as e:
            if isinstance(e, Unavailable):
                raise
            raise Unavailable(f"{self.name} cannot be looked for: {one_line(e)}", remedy(e)) from e


@dataclass(frozen=True)
class Headers:
    """A kernel header tree to compile BPF programs with."""

    version: str
    source: Path | None  # BCC_KERNEL_SOURCE; None if BCC finds the running kernel's headers by itself
    cflags: tuple[str, ...]
    configuration: Path  # a file that is written anew when the headers change; a kernel with headers in itself has none


def release() -> str:
    """``uname -r``."""
    return platform.release()


def netns_cookie(sock: socket.socket) -> int:
    """The cookie of the socket's network namespace. Raises Unavailable before Linux 5.14."""
    try:
        return int(struct.unpack("=Q", sock.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8))[0])
    except OSError as e:
        raise Unavailable("this kernel has no SO_NETNS_COOKIE", "boot Linux 5.14 or later") from e


def raise_nofile() -> int:
    """Raises the soft limit of descriptors to the hard limit, and returns that."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def can_bind(address: str) -> bool:
    """Does this machine have that address? A kernel without IPv6 has no ::1."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family) as sock:
            sock.bind((address, 0))
    except OSError:
        return False
    return True


# ---- headers ----


_CONFIGURATION = "generated/autoconf.h"


def cache() -> Path:
    """The folder in which scripts/ keep what they fetched and built (`cache` in scripts/common.sh)."""
    return Path(os.environ.get("KECHO_CACHE", "/var/lib/kecho"))


def headers() -> Headers:
    """The running kernel's headers if installed, else the newest of others. Raises Unavailable if there are none.

    Others may also be unpacked in `cache`, since installing a package of headers may bring a kernel along.
    """
    own = Path("/lib/modules", release(), "build/include")
    if own.is_dir() or Path("/sys/kernel/kheaders.tar.xz").exists():
        return Headers(release(), None, (), own / _CONFIGURATION)
    builds = [
        *Path("/lib/modules").glob("*/build"),
        *Path("/usr/src").glob("linux-headers-*"),
        *cache().glob("kernels/*/lib/modules/*/build"),
    ]
    found = {build.resolve() for build in builds if (build / "include/generated/uapi/linux/version.h").exists()}
    if not found:
        raise Unavailable("no kernel headers are installed", apt_remedy("linux-headers-amd64"))
    build = max(found, key=lambda path: _version_key(path.name))
    source = _source_tree(build)
    arch = {"x86_64": "x86", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    parts = (
        "include",
        "include/generated/uapi",
        f"arch/{arch}/include/generated",
        f"arch/{arch}/include/generated/uapi",
    )
    return Headers(
        build.name.removeprefix("linux-headers-"),
        source,
        tuple(f"-I{build / part}" for part in parts),
        build / "include" / _CONFIGURATION,
    )


def _version_key(name: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", name)]


def _source_tree(build: Path) -> Path:
    """The tree with the sources. Debian splits headers: the build tree's Makefile names the one that flavours share."""
    if (build / "include/uapi/linux/bpf.h").exists():
        return build
    match = re.search(r"^include (\S+)/Makefile$", procfs.text(build / "Makefile"), re.MULTILINE)
    return Path(match[1]) if match else build


def apt_remedy(package: str, *then: str) -> str:
    """The remedy for missing headers: install `package`, or boot a kernel that APT has headers for if it has none."""
    try:
        done = subprocess.run(["apt-cache", "show", package], capture_output=True, timeout=_APT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):  # not a Debian
        known = True
    else:
        known = bool(done.stdout)  # the status of a virtual package is 0, too
    if known:
        return ", ".join((f"apt-get install {package}", *then))
    return f"boot a kernel of the distribution's: APT has no {package}"


# ---- cgroup v2 ----


_CGROUP2_FOLDERS = (Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup"))


def cgroup2_mount() -> Path:
    """Where the cgroup v2 hierarchy is mounted. Raises Unavailable if nowhere."""
    for line in procfs.text("/proc/self/mounts").split("\n")[:-1]:
        _, where, kind, *_ = line.split(" ")
        if kind == "cgroup2":
            return Path(procfs.unescaped(where))
    folder = next((path for path in _CGROUP2_FOLDERS if path.is_dir()), _CGROUP2_FOLDERS[-1])
    raise Unavailable(
        "no cgroup v2 hierarchy is mounted",
        f"mount -t cgroup2 none {folder}; but within `ip netns exec NAME`, which brings a /sys of its own each time, "
        "use nsenter --net=/run/netns/NAME in its place",
    )


def outside_cgroup2() -> str:
    """A clause that says why programs at `cgroup2_mount` do not see this process's sockets; "" if unknown."""
    where = cgroup2_mount()
    for line in procfs.text("/proc/self/cgroup").split("\n")[:-1]:
        _, controllers, group = line.split(":", 2)
        if not controllers and group.startswith("/.."):
            return f": it is in a cgroup outside of {where}"
    for line in reversed(procfs.text("/proc/self/mountinfo").split("\n")[:-1]):
        _, _, _, root, point, *_ = line.split(" ")
        if procfs.unescaped(point) == str(where) and root != "/":
            return f": {where} is the cgroup {root} alone"
    return ""


# ---- probes ----


def remedy(error: BaseException) -> str:
    """The remedy for an error that kept a probe from being made and says nothing of the feature."""
    if isinstance(error, OSError) and error.errno in (errno.ENETUNREACH, errno.EADDRNOTAVAIL):
        return "ip link set lo up"
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return "let a process have more descriptors (ulimit -n)"
    if isinstance(error, PermissionError):
        return AS_ROOT
    return ""


def probe_privilege() -> str:
    """CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN, or CAP_SYS_ADMIN in place of the first two."""
    has = privileges.capabilities()
    if CAP_NET_ADMIN in has and (CAP_SYS_ADMIN in has or {CAP_BPF, CAP_PERFMON} <= has):
        return "yes"
    raise Unavailable("BPF is refused to an unprivileged user", AS_ROOT)


def probe_bcc() -> str:
    """BCC's Python bindings: Debian's package, not PyPI's `bcc`, which is something else."""
    if importlib.util.find_spec("bcc") is None:
        raise Unavailable(
            "BCC's Python bindings cannot be imported",
            "apt-get install python3-bpfcc, and run Debian's /usr/bin/python3",
        )
    return "importable"


def probe_symbols() -> str:
    """The kernel's symbols with their addresses. Without them BCC believes that the kernel lacks BPF helpers."""
    with open("/proc/kallsyms", encoding="ascii", errors="replace") as file:
        if any(int(line.split(maxsplit=1)[0], 16) for line in file):  # the first few are 0 for everybody
            return "yes"
    raise Unavailable("the addresses in /proc/kallsyms are hidden from this process", f"{AS_ROOT} (CAP_SYSLOG)")


def probe_headers() -> str:
    """Any kernel's headers."""
    found = headers()
    return found.version if found.version == release() else f"{found.version} (for another kernel, which will do)"


def probe_btf() -> str:
    """The kernel's BTF, with every field that bpf/sockmap.c reads."""
    try:
        fields()
    except (OSError, BtfError) as e:
        raise Unavailable(
            f"the kernel's BTF does not serve: {one_line(e)}", "boot a kernel with CONFIG_DEBUG_INFO_BTF=y"
        ) from e
    return str(VMLINUX)


def probe_cgroup2() -> str:
    """A mounted cgroup v2 hierarchy."""
    return str(cgroup2_mount())


def probe_netns_cookie() -> str:
    """SO_NETNS_COOKIE, which identifies the service's network namespace."""
    with socket.socket() as sock:
        netns_cookie(sock)
    return "yes"


def _try_bpf(what: str, config: str, attempt: Callable[[], int]) -> str:
    try:
        os.close(attempt())
    except OSError as e:
        if isinstance(e, PermissionError):
            raise Unavailable(f"BPF {what} is refused: {one_line(e)}", remedy(e)) from e
        raise Unavailable(f"this kernel has no BPF {what}", f"boot a kernel with {config}=y") from e
    return "yes"


def probe_sockhash() -> str:
    """Map type sockhash, which holds the sockets."""
    return _try_bpf(
        "sockhash",
        "CONFIG_BPF_STREAM_PARSER",
        lambda: syscall.map_create(syscall.Map(syscall.MAP_TYPE_SOCKHASH, 8, 8, 1)),
    )


def probe_sock_ops() -> str:
    """Program type sock_ops, which registers connections."""
    return _try_bpf(
        "sock_ops program",
        "CONFIG_CGROUP_BPF",
        lambda: syscall.prog_load(syscall.PROG_TYPE_SOCK_OPS, syscall.RETURN_ONE),
    )


@contextlib.contextmanager
def _redirected(path: str, flags: int) -> Iterator[socket.socket]:
    """A client over loopback that has sent b"kecho", which a program has redirected. Raises Unavailable."""
    with contextlib.ExitStack() as stack:
        try:
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            client = stack.enter_context(socket.create_connection(listener.getsockname()))
            server = stack.enter_context(listener.accept()[0])
            client.settimeout(1)

            def opened(fd: int) -> int:
                stack.callback(os.close, fd)
                return fd

            senders, targets = (
                opened(syscall.map_create(syscall.Map(syscall.MAP_TYPE_SOCKHASH, 4, 4, 1))) for _ in range(2)
            )
            program = opened(syscall.prog_load(syscall.PROG_TYPE_SK_MSG, syscall.msg_redirect(targets, flags)))
            syscall.prog_attach(program, senders, syscall.ATTACH_SK_MSG_VERDICT)
            target = client if flags & syscall.MSG_INGRESS else server
            for sockhash, sock in ((targets, target), (senders, client)):
                syscall.map_update(sockhash, bytes(4), struct.pack("=I", sock.fileno()))
            client.send(b"kecho")
            if not select.select([client], [], [], 1)[0]:
                raise TimeoutError(errno.ETIMEDOUT, "nothing comes back")
        except OSError as e:
            raise Unavailable(f"path {path} does not work here: {one_line(e)}", remedy(e) or "use --path skb") from e
        yield client


def _receive(path: str, client: socket.socket) -> None:
    try:
        echoed = client.recv(16)
    except OSError as e:
        raise Unavailable(f"path {path} does not work here: {one_line(e)}", "use --path skb") from e
    if echoed != b"kecho":
        raise Unavailable(f"path {path} returns {echoed!r} for b'kecho'", "use --path skb")


def probe_egress() -> str:
    """Path egress, tried out. Says which of the calls that not every kernel supports find the data."""
    with _redirected("egress", 0) as client:
        (readable,) = struct.unpack("=i", fcntl.ioctl(client, termios.FIONREAD, bytes(4)))
        _receive("egress", client)
    return "echoes" if readable == 5 else "echoes; FIONREAD counts nothing"


def probe_ingress() -> str:
    """Path ingress, tried out: a redirected payload comes back and is charged to the receiving socket.

    Without the charge (54f89b3178d5, Linux 6.13 and the stable trees of December 2024) nothing bounds path ingress.
    """
    with _redirected("ingress", syscall.MSG_INGRESS) as client:
        (charged,) = struct.unpack("=I", client.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 4))
        (readable,) = struct.unpack("=i", fcntl.ioctl(client, termios.FIONREAD, bytes(4)))
        _receive("ingress", client)
    if charged < 5:
        raise Unavailable(
            "this kernel does not charge redirected data to its socket, so path ingress has no bound",
            "use --path skb, or boot Linux 6.13 or a stable kernel of 2025",
        )
    return "echoes, and is charged" if readable == 5 else "echoes, and is charged; FIONREAD counts nothing"


def probe_modules() -> str:
    """Support for loadable modules."""
    if not Path("/proc/modules").exists():
        raise Unavailable(
            "this kernel cannot load modules", "boot a kernel with CONFIG_MODULES=y, or use --mode sockmap"
        )
    if Path("/proc/sys/kernel/modules_disabled").read_text().strip() != "0":
        raise Unavailable("loading modules is switched off until the next boot (kernel.modules_disabled)", "reboot")
    return "yes"


def for_bpf() -> tuple[Feature, ...]:
    """What a backend of BPF programs needs."""
    return (
        Feature("privilege", probe_privilege),
        Feature("bcc", probe_bcc),
        Feature("kernel symbols", probe_symbols),
        Feature("headers", probe_headers),
    )
