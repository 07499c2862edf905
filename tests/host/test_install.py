# SPDX-License-Identifier: MIT
"""`make install`, DKMS with what it installs, and `make uninstall`; the machine itself is left as it is."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import support

import kecho
from kecho.kernel import features

KERNELS = subprocess.run(
    [support.ROOT / "scripts/kernels"], stdout=subprocess.PIPE, text=True, check=True
).stdout.split()
_FOLDERS = ("/usr/src", "/lib/modules", "/var/lib/dkms", "/var/cache", str(features.cache()))
WRITTEN = [folder for folder in _FOLDERS if Path(folder).exists()]
# Writes to these folders go to a file system that ends with this shell, which ends with its input.
_OVERLAYS = f"""
mount -t tmpfs tmpfs "$1"
for dir in {" ".join(WRITTEN)}; do
    upper="$1/upper$dir" work="$1/work$dir"
    mkdir -p "$upper" "$work"
    mount -t overlay -o "lowerdir=$dir,upperdir=$upper,workdir=$work" overlay "$dir"
done
echo ready
read -r _ || true
"""

Run = Callable[..., str]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """Runs commands in a mount namespace: only they see what they write to those folders and to tmp_path."""
    command = ["unshare", "--mount", "--propagation=private", "sh", "-ec", _OVERLAYS, "sh", str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdin and holder.stdout
        assert holder.stdout.readline() == "ready\n"

        def run(*command: object) -> str:
            inside = ["nsenter", f"--mount=/proc/{holder.pid}/ns/mnt", f"--wd={support.ROOT}", *map(str, command)]
            done = subprocess.run(inside, capture_output=True, text=True, check=False, timeout=300)
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout

        try:
            yield run
        finally:
            holder.stdin.close()


@pytest.mark.timeout(600)
@pytest.mark.skipif(not shutil.which("dkms"), reason="dkms is not installed")
@pytest.mark.skipif(not KERNELS, reason="no kernel's headers are installed")
def test_install_dkms_uninstall(run: Run, tmp_path: Path) -> None:
    prefix, version, kver = tmp_path / "prefix", kecho.__version__, KERNELS[0]
    source = f"/usr/src/fastecho-{version}"
    before = set(Path("/usr/src").iterdir())

    said = run("make", "-s", "install", f"PREFIX={prefix}")
    assert f"installed {prefix}/bin/kecho-ctl\n" in said
    assert f"installed {source}; for the module: dkms install fastecho/{version}\n" in said
    assert run("env", "-C", "/", prefix / "bin/kecho-ctl", "--version") == f"kecho {version}\n"
    run("grep", "-q", "complete .*kecho-ctl", prefix / "share/bash-completion/completions/kecho-ctl")
    run("grep", "-q", "#compdef kecho-ctl", prefix / "share/zsh/site-functions/_kecho-ctl")
    run("grep", "-q", "complete -c kecho-ctl", prefix / "share/fish/vendor_completions.d/kecho-ctl.fish")
    run("grep", "-q", "^.TH KECHO", prefix / "share/man/man1/kecho-ctl.1")

    if not Path("/lib/modules", kver).exists():  # a kernel that is unpacked only
        build = Path(run(support.ROOT / "scripts/kernels", "--build", kver).strip())
        run("ln", "-s", build.parent, f"/lib/modules/{kver}")
    run("dkms", "install", f"fastecho/{version}", "-k", kver)
    module = run("modinfo", "-k", kver, "-n", "fastecho").strip()
    assert re.fullmatch(rf"/lib/modules/{re.escape(kver)}/updates/dkms/fastecho\.ko(\.(xz|zst|gz))?", module)
    assert run("modinfo", "-k", kver, "-F", "version", "fastecho").strip() == version
    assert run("modinfo", "-k", kver, "-F", "vermagic", "fastecho").split()[0] == kver

    run("mkdir", "-p", "/var/cache/kecho")
    run("make", "-s", "uninstall", f"PREFIX={prefix}")
    run("test", "!", "-e", "/var/cache/kecho")
    assert run("dkms", "status", "fastecho") == ""
    assert run("find", prefix, "-not", "-type", "d") == ""
    machines = features.cache() / "fresh"  # may have a checkout in them
    assert run("find", *WRITTEN, "-path", machines, "-prune", "-o", "-name", "fastecho*", "-print") == ""
    assert set(Path("/usr/src").iterdir()) == before
