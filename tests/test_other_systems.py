"""The command line on a system that lacks what Windows lacks, pretended: modules and functions are taken away."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import PLAIN, TINY

Run = Callable[..., tuple[int, str, str]]

MODULES = ("fcntl", "grp", "pwd", "resource", "termios")
MISSING = {
    os: (
        "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK", "fork", "geteuid", "getloadavg", "getuid", "killpg", "mkfifo",
        "sched_getaffinity", "sched_setaffinity", "setsid", "statvfs", "sysconf", "uname", "wait4",
    ),
    signal: ("SIGALRM", "SIGCHLD", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGUSR1"),
    socket: ("AF_UNIX",),
}  # fmt: skip


@pytest.fixture
def lacking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USERNAME", "somebody")  # Windows sets it
    for name in MODULES:
        monkeypatch.setitem(sys.modules, name, None)
    for module, names in MISSING.items():
        for name in names:
            monkeypatch.delattr(module, name, raising=False)


def test_segment_and_score(
    lacking: None, run: Run, tiny_checkpoint: Path, write_phantom: Callable[..., Path], tmp_path: Path
) -> None:
    ct, out = write_phantom(), tmp_path / "out"
    settings = [part for name, value in {**TINY, **PLAIN}.items() for part in ("--set", f"{name}={value}")]
    code, stdout, stderr = run("segment", ct, "-o", out, "--checkpoint", tiny_checkpoint, "--qc", *settings)
    assert (code, stdout) == (0, f"{out / 'phantom_RAS_0_seg.nii.gz'}\n"), stderr
    assert sorted(path.suffix for path in out.iterdir()) == [".gz", ".json", ".png"]
    code, _, stderr = run("score", out / "phantom_RAS_0_seg.nii.gz", out / "phantom_RAS_0_seg.nii.gz")
    assert code == 0, stderr
    assert run("inspect", ct)[0] == 0
