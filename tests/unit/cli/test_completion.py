# SPDX-License-Identifier: MIT
"""Completion, by driving each shell: commands, options, and the words that an option takes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

_BASH = """
source "$1"; shift
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_LINE="$*" COMP_POINT=1000 COMPREPLY=()
function=$(complete -p kecho-ctl | sed 's/.*-F \\([^ ]*\\).*/\\1/')
"$function" kecho-ctl "${@: -1}" "${@: -2:1}"
printf '%s\\n' "${COMPREPLY[@]}"
"""
# A terminal of its own, in which the line is typed and a tab after it; what zsh makes of it is printed.
_ZSH = """
zmodload zsh/zpty
zpty z zsh -f -i
zpty -w z "PS1='> '; fpath=($1 \\$fpath); autoload -U compinit; compinit -u -D"
zpty -w z "unsetopt zle_bracketed_paste; print re''ady"
zpty -r -m z out '*ready*'
zpty -w -n z "$2"$'\\t\\t'
zpty -r -m z out "*$3*" && print -r -- "$out"
zpty -d z
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The completion script of a shell, in a file with the name that the shell expects."""

    def make(shell: str) -> Path:
        path = tmp_path_factory.mktemp(shell) / "_kecho-ctl"
        done = subprocess.run(
            [sys.executable, "-m", "kecho.cli.main", "--print-completion", shell],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        path.write_text(done.stdout)
        return path

    return make


def run(shell: str, *args: object) -> list[str]:
    if not shutil.which(shell):
        pytest.skip(f"no {shell} here")
    done = subprocess.run([shell, *map(str, args)], capture_output=True, text=True, check=True, timeout=60)
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("kecho-ctl st", {"status", "stats"}),
        ("kecho-ctl up --mode ", {"auto", "module", "sockmap", "user"}),
        ("kecho-ctl up --mode s", {"sockmap"}),
        ("kecho-ctl up --engine ", {"epoll", "io_uring"}),
        ("kecho-ctl up --fore", {"--foreground"}),
    ],
)
@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_words(script: Callable[[str], Path], shell: str, line: str, words: set[str]) -> None:
    if shell == "bash":
        found = run("bash", "-c", _BASH, "bash", script("bash"), *line.split(" "))
    else:
        found = run("fish", "--no-config", "-c", f"source {script('fish')}; complete -C '{line}' | cut -f1")
    assert words <= set(found) and not {"down", "--version"} & set(found)


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("kecho-ctl doc", "kecho-ctl doctor"),
        ("kecho-ctl up --mode s", "--mode sockmap"),
        ("kecho-ctl up --fore", "--foreground"),
    ],
)
def test_zsh(script: Callable[[str], Path], typed: str, completed: str) -> None:
    assert completed.split()[-1] in " ".join(
        run("zsh", "-f", "-c", _ZSH, "zsh", script("zsh").parent, typed, completed)
    )
