# SPDX-License-Identifier: MIT
"""The wheel, the Makefile and the scripts."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import result_samples as samples

import kecho

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 100
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")


def run(*command: object, **kwargs: object) -> subprocess.CompletedProcess[str]:
    kwargs = {"timeout": TIMEOUT_S, **kwargs}
    return subprocess.run([str(word) for word in command], cwd=ROOT, capture_output=True, text=True, **kwargs)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy to build from, so that the checkout stays as it is."""
    pytest.importorskip("setuptools")
    source = tmp_path_factory.mktemp("source")
    files = ("setup.cfg", "pyproject.toml", "MANIFEST.in", "README.md", "CONTRIBUTING.md", "LICENSE", "Makefile")
    for name in (*files, ".clang-format", ".clang-tidy"):
        shutil.copy(ROOT / name, source)
    for name in ("kecho", "bpf", "kmod", "docs", "scripts", "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    return source


@pytest.fixture(scope="module")
def wheel_file(source: Path) -> Path:
    """Built by the setuptools at hand: no network."""
    done = run(
        *(sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"),
        *("--no-build-isolation", "--wheel-dir", source / "dist", source),
    )
    assert done.returncode == 0, done.stderr
    (file,) = (source / "dist").glob("kecho-*.whl")
    return file


@pytest.fixture(scope="module")
def wheel(wheel_file: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(wheel_file)


def test_sdist_has_what_a_packager_needs(source: Path) -> None:
    (source / "build").mkdir(exist_ok=True)
    (source / "build/kecho-ctl.1").write_text("as `make sdist` puts it there\n")
    build = "from setuptools import build_meta; print(build_meta.build_sdist('dist'))"
    done = subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stderr
    with tarfile.open(source / "dist" / done.stdout.split()[-1]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    wanted = [*ROOT.glob("bpf/*.[ch]"), *ROOT.glob("kmod/*.[ch]"), *ROOT.glob("kecho/native/**/*.[ch]")]
    wanted += [
        *ROOT.glob("kecho/**/*.py"),
        *ROOT.glob("scripts/*"),
        *ROOT.glob("tests/**/*.mk"),
        *ROOT.glob("**/native.mk"),
    ]
    wanted += [ROOT / name for name in ("Makefile", "kmod/Makefile", "kmod/Kbuild", "kmod/dkms.conf", "LICENSE")]
    assert len(wanted) > 60
    assert {str(path.relative_to(ROOT)) for path in wanted} | {"build/kecho-ctl.1"} <= names
    assert not [name for name in names if name.endswith((".ko", ".o", ".pyc"))]


def test_what_pip_installed_works_and_says_what_it_lacks(wheel_file: Path, tmp_path: Path) -> None:
    """Outside the checkout: commands without native programs work, the others name the missing one; with exit codes."""
    site = tmp_path / "site"
    done = run(
        *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-index"),
        *("--root-user-action=ignore", "--target", site, wheel_file),
    )
    assert done.returncode == 0, done.stderr
    main = (
        "import sys, kecho; from kecho.cli.main import main\nassert sys.argv.pop(1) in kecho.__file__; sys.exit(main())"
    )

    def kecho_ctl(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", main, str(site), *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(site)},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )

    assert kecho_ctl("--version").stdout == f"kecho {kecho.__version__}\n"
    assert kecho_ctl("status").returncode in (0, 1)
    assert "user-echo-server is not installed, which pip does not build" in " ".join(kecho_ctl("doctor").stdout.split())
    (tmp_path / "result.json").write_text(json.dumps(samples.three_targets().to_json()))
    done = kecho_ctl("plot", "result.json", "-o", "result.svg")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "result.svg").stat().st_size > 1000
    with socket.create_server(("127.0.0.1", 0)) as server:
        done = kecho_ctl("bench", f"127.0.0.1:{server.getsockname()[1]}", "--count", "1")
    assert (done.returncode, done.stdout) == (3, "")
    assert re.fullmatch(r"kecho-ctl: bench is not installed, which pip does not build: make install, .*\n", done.stderr)


def test_wheel_has_every_module_and_the_bpf_sources(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    for source in ROOT.glob("bpf/*.[ch]"):
        assert f"kecho/_bpf/{source.name}" in names
    for module in ROOT.glob("kecho/**/*.py"):
        assert str(module.relative_to(ROOT)) in names


def test_wheel_has_the_command(wheel: zipfile.ZipFile) -> None:
    (entry_points,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert "kecho-ctl = kecho.cli.main:main" in wheel.read(entry_points).decode()


def test_a_checkout_has_no_copy_of_the_bpf_sources() -> None:
    """kecho/kernel/compiler.py would read the copy, and changes in bpf/ would do nothing."""
    assert not (ROOT / "kecho" / "_bpf").exists()


def test_make_help_lists_the_targets() -> None:
    makefile = (ROOT / "Makefile").read_text()
    (phony,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    shown = run("make", "help").stdout
    assert max(map(len, shown.splitlines())) < 80
    listed = re.findall(r"^  make (\S+) +\S", shown, re.MULTILINE)
    assert set(phony.split()) <= set(listed)
    assert {"build", "setup", "demo", "check", "lint", "fmt", "plot", "install", "clean", "help"} <= set(listed)


def test_the_module_has_the_version_of_the_package() -> None:
    assert f"\nPACKAGE_VERSION={kecho.__version__}\n" in (ROOT / "kmod/dkms.conf").read_text()


def test_the_default_target_builds() -> None:
    assert ".DEFAULT_GOAL := build" in (ROOT / "Makefile").read_text()


def test_make_plot_without_a_result_says_so(tmp_path: Path) -> None:
    recipe = run("make", "-n", "plot").stdout
    test = next(line for line in recipe.splitlines() if "results/last.json" in line)
    done = subprocess.run(["sh", "-c", test], cwd=tmp_path, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 1
    assert done.stderr == "make plot: no result yet; kecho-ctl bench writes one\n"


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """An environment in which apt and dpkg see no installed package."""
    if not shutil.which("apt-get") or not any(Path("/var/lib/apt/lists").glob("*_Packages*")):
        pytest.skip("no apt with package lists")
    (tmp_path / "status").touch()
    (tmp_path / "apt.conf").write_text(f'Dir::State::status "{tmp_path}/status";\n')
    return {**os.environ, "APT_CONFIG": str(tmp_path / "apt.conf"), "DPKG_ADMINDIR": str(tmp_path)}


@pytest.mark.timeout(600)
def test_setup_leaves_alone_what_the_machine_boots(bare: dict[str, str]) -> None:
    """No group installs a kernel or a package that makes an initrd, not even as a dependency."""
    groups = re.search(r"--simulate\] GROUP\.\.\., of (.*)\"", (ROOT / "scripts/setup").read_text())
    assert groups
    done = run("scripts/setup", "--simulate", *groups[1].split(), env=bare, timeout=550)
    assert done.returncode == 0, done.stderr
    installed = set(re.findall(r"^Inst (\S+)", done.stdout, re.MULTILINE))
    assert {"gcc", "make", "python3-bpfcc", "qemu-system-x86", "dkms", "clang-tidy", "libc6"} <= installed
    boots = re.compile(r"linux-(image|binary|signed|modules)|initramfs-tools|dracut|grub|systemd-boot|shim-signed")
    assert not [package for package in installed if boots.match(package)]


def shell_scripts() -> list[Path]:
    files = [ROOT / ".ci/run", *(ROOT / "scripts").iterdir(), *ROOT.glob("tests/*/run")]
    return [file for file in files if re.match(rb"#!/bin/(ba)?sh\b", file.read_bytes())]


def test_what_the_demo_says_fits_into_a_terminal() -> None:
    said = re.findall(r"^\tcat <<-EOF\n(.*?)^\tEOF$", (ROOT / "scripts/demo").read_text(), re.MULTILINE | re.DOTALL)
    assert said and max(len(line.strip()) for text in said for line in text.splitlines()) <= 80


def test_shell_scripts_can_be_run() -> None:
    scripts = shell_scripts()
    assert len(scripts) >= 5
    assert all(os.access(script, os.X_OK) for script in scripts)


def test_setup_is_quiet_when_nothing_is_missing() -> None:
    if not (ROOT / ".venv/kecho-setup").exists():
        pytest.skip("this checkout has not been set up by scripts/setup")
    if run("scripts/setup", "build", "test").returncode == 3:
        pytest.skip("something is missing, and only root may install it")
    done = run("scripts/setup", "build", "test")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.fixture
def theirs(tmp_path: Path) -> Iterator[Path]:
    """A copy of scripts/, of another user, without .venv and without what it is made from."""
    if os.geteuid() != 0:
        pytest.skip("becomes another user")
    tmp_path.chmod(0o755)
    above = Path("/tmp") if not _others_can_reach(tmp_path) else tmp_path
    copy = Path(shutil.copytree(ROOT / "scripts", above / f"kecho-setup-{os.getpid()}" / "scripts")).parent
    try:
        for name in ("setup.cfg", "pyproject.toml"):
            shutil.copy(ROOT / name, copy)
        copy.chmod(0o755)
        for path in (copy, *copy.rglob("*")):
            os.chown(path, 65534, 65534)
        yield copy
    finally:
        shutil.rmtree(copy)


def test_setup_without_root_names_the_command(theirs: Path) -> None:
    """For packages, which all are missing where dpkg lists none."""
    (theirs / "dpkg-query").write_text("#!/bin/sh\n")
    (theirs / "dpkg-query").chmod(0o755)
    done = run(*NOBODY, theirs / "scripts/setup", "build", env={**os.environ, "PATH": f"{theirs}:{os.environ['PATH']}"})
    assert (done.returncode, done.stdout) == (3, "")
    assert re.fullmatch(r"scripts/setup: missing: .*; run: sudo scripts/setup build\n", done.stderr)


def test_what_setup_makes_as_root_is_the_owners(theirs: Path) -> None:
    """Even where it fails, as here: else the owner could not go on. Making .venv alone needs no root."""
    for who in ((), NOBODY):
        done = run(*who, theirs / "scripts/setup", "build")
        assert (done.returncode, done.stdout) == (1, "setup: making .venv\n"), done
        made = [theirs / "build/setup.log", theirs / ".venv/bin/python"]
        assert [path.lstat().st_uid for path in made] == [65534] * 2


def _others_can_reach(path: Path) -> bool:
    return all(parent.stat().st_mode & 0o001 for parent in (path, *path.parents))


def test_every_test_that_security_md_names_exists() -> None:
    text = (ROOT / "docs/security.md").read_text()
    named = 0
    for brackets in re.findall(r"\[((?:host|unit)/[^\]]*)\]", text):
        for part in brackets.split(";"):
            file, *functions = part.split()
            source = (ROOT / "tests" / file).read_text()
            missing = [name for name in functions if f"def {name}(" not in source]
            assert functions and not missing, f"{file} has no {missing}"
            named += len(functions)
    assert named >= 40 and named >= len(re.findall(r"\btest_\w+(?!\w*\.py)\b", text)) - text.count(".py")


def test_a_path_with_a_space_costs_only_the_module(tmp_path: Path) -> None:
    spaced = tmp_path / "a path"
    spaced.mkdir()
    shutil.copy(ROOT / "Makefile", spaced)
    for name in ("kecho", "kmod", "scripts", "tests"):
        (spaced / name).symlink_to(ROOT / name)
    done = run("make", "-C", spaced, "kmod")
    assert done.returncode == 2
    said = [line for line in done.stderr.splitlines() if "***" not in line]
    assert said == [f"make kmod: '{spaced}' has a space in it: the module is built elsewhere only"]
    done = run("make", "-C", spaced, "--dry-run", "build/bench")
    assert done.returncode == 0 and "bench/main.c" in done.stdout


def test_every_link_of_the_documentation_leads_somewhere() -> None:
    links = 0
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"
                links += 1
    assert links > 40


@pytest.mark.parametrize(
    ("kernel", "served"),
    [
        *(
            (kernel, True)
            for kernel in ("6.1.0-56-amd64", "6.12.117+deb13-amd64", "6.19.3-arch1-1", "7.3.4+deb13-rt-amd64")
        ),
        *(
            (kernel, False)
            for kernel in ("5.10.0-30-amd64", "6.0.12", "7.4.1+deb14-amd64", "7.30.0", "8.0.0", "17.3.1")
        ),
    ],
)
def test_dkms_builds_for_kernels_that_were_tried_alone(kernel: str, served: bool) -> None:
    """DKMS matches the expression as bash does."""
    script = ". kmod/dkms.conf && [[ $1 =~ $BUILD_EXCLUSIVE_KERNEL ]]"
    done = subprocess.run(["bash", "-c", script, "bash", kernel], cwd=ROOT, check=False)
    assert (done.returncode == 0) == served


def test_no_two_files_of_tests_have_one_name() -> None:
    """tests/unit and tests/host are collected together, each file as a module of its bare name."""
    names = [path.name for room in ("unit", "host") for path in (ROOT / "tests" / room).rglob("*.py")]
    names = [name for name in names if name != "conftest.py"]
    assert len(names) > 50 and len(set(names)) == len(names)
