"""Memory of this process, where /proc tells it and where psutil or ``resource`` has to."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from attunet3d.runtime import free_memory, process_memory

Says = Callable[..., None]


@pytest.fixture
def psutil_says(monkeypatch: pytest.MonkeyPatch) -> Says:
    """psutil_says(rss=5): what psutil knows of this process, or an error that it raises."""

    def say(error: Exception | None = None, **known: int) -> None:
        class Process:
            def memory_info(self) -> SimpleNamespace:
                if error is not None:
                    raise error
                return SimpleNamespace(**known)

        monkeypatch.setattr(process_memory.psutil, "Process", Process)

    return say


@pytest.fixture
def without_proc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(process_memory, "Path", lambda name: tmp_path / name.lstrip("/"))


def test_what_is_held_now(psutil_says: Says) -> None:
    psutil_says(rss=300 * 4096)
    assert process_memory.resident_bytes() == 300 * 4096
    psutil_says(psutil.AccessDenied())
    assert process_memory.resident_bytes() is None


def test_the_peak_on_linux_is_this_process_own(
    psutil_says: Says, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "status").write_text("Name:\tpython\nVmPeak:\t 900 kB\nVmHWM:\t 700 kB\n")
    monkeypatch.setattr(process_memory, "Path", lambda name: tmp_path / Path(name).name)
    psutil_says(peak_wset=1)
    assert process_memory.peak_bytes() == 700 * 1024


@pytest.mark.parametrize(("platform", "unit"), [("darwin", 1), ("freebsd14", 1024)])
def test_the_peak_without_proc_is_that_of_rusage(
    without_proc: None, monkeypatch: pytest.MonkeyPatch, platform: str, unit: int
) -> None:
    usage = SimpleNamespace(RUSAGE_SELF=0, getrusage=lambda who: SimpleNamespace(ru_maxrss=5000))
    monkeypatch.setitem(sys.modules, "resource", usage)
    monkeypatch.setattr(process_memory.sys, "platform", platform)
    assert process_memory.peak_bytes() == 5000 * unit


def test_the_peak_on_windows_is_psutils(without_proc: None, psutil_says: Says, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resource", None)
    psutil_says(rss=5, peak_wset=9000)
    assert process_memory.peak_bytes() == 9000
    psutil_says(rss=5)
    assert process_memory.peak_bytes() is None
    psutil_says(psutil.AccessDenied())
    assert process_memory.peak_bytes() is None


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_elsewhere_than_on_linux_psutil_says_what_is_free(monkeypatch: pytest.MonkeyPatch, platform: str) -> None:
    def nothing() -> None:
        raise OSError("nothing is known")

    monkeypatch.setattr(free_memory.sys, "platform", platform)
    monkeypatch.setitem(sys.modules, "resource", None)
    monkeypatch.setattr(free_memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=7000, total=9000))
    assert free_memory.available_bytes() == 7000
    monkeypatch.setattr(free_memory.psutil, "virtual_memory", nothing)
    assert free_memory.available_bytes() is None
