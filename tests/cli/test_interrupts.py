"""Stopped by a signal: what is done stays whole, what is half done is cleared away, and the exit code says why."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import pytest
from conftest import TINY

from attunet3d.cli.interrupts import Interrupted, interruptible

Run = Callable[..., tuple[int, str, str]]
SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (getattr(signal, "SIGHUP", signal.SIGTERM), 129)]
needs_signals = pytest.mark.skipif(os.name == "nt", reason="Windows ends a process that is sent a signal")
pytestmark = needs_signals


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_segment_stops_between_whole_results(
    run: Run,
    tiny_checkpoint: Path,
    write_phantom: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    code: int,
) -> None:
    """The signal comes while the second mask is written, beside a former one, which stays as it was."""
    cts = [write_phantom("RAS"), write_phantom("LPS"), write_phantom("RAS", 1)]
    out = tmp_path / "out"
    out.mkdir()
    former = {"phantom_LPS_0_seg.nii.gz": b"former", "phantom_LPS_0_seg.json": b"{}"}
    for name, content in former.items():
        (out / name).write_bytes(content)
    save, saved = nib.save, []

    def save_half(image: nib.Nifti1Image, path: Path) -> None:
        saved.append(path.name)
        if len(saved) == 2:
            path.write_bytes(b"half")
            os.kill(os.getpid(), number)
        save(image, path)

    monkeypatch.setattr(nib, "save", save_half)
    before = [signal.getsignal(each) for each, _ in SIGNALS]
    arguments = [part for name, value in TINY.items() for part in ("--set", f"{name}={value}")]
    found, stdout, stderr = run("segment", *cts, "-o", out, "--checkpoint", tiny_checkpoint, *arguments)
    assert found == code
    assert stdout.splitlines() == [str(out / "phantom_RAS_0_seg.nii.gz")]
    assert stderr.splitlines() == ["interrupted, 1 of 3 done"]
    assert len(saved) == 2
    assert sorted(p.name for p in out.iterdir()) == sorted(
        [*former, "phantom_RAS_0_seg.json", "phantom_RAS_0_seg.nii.gz"]
    )
    assert {name: (out / name).read_bytes() for name in former} == former
    assert [signal.getsignal(each) for each, _ in SIGNALS] == before


def test_only_the_first_signal_counts() -> None:
    """Clearing away is not interrupted again, by the same or another."""
    cleared: list[bool] = []

    def work() -> None:
        with interruptible():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            finally:
                os.kill(os.getpid(), signal.SIGTERM)
                os.kill(os.getpid(), signal.SIGINT)
                cleared.append(True)

    with pytest.raises(Interrupted) as stopped:
        work()
    assert cleared == [True]
    assert stopped.value.code == 143
    assert isinstance(stopped.value, KeyboardInterrupt)


def test_what_is_ignored_stays_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after ``nohup``, or in the background of a shell script."""
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruptible():
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, former)


def test_ctrl_break_of_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the console is closed; there is no SIGHUP."""
    monkeypatch.delattr(signal, "SIGHUP")
    monkeypatch.setattr(signal, "SIGBREAK", signal.SIGUSR1, raising=False)
    with pytest.raises(Interrupted) as stopped, interruptible():
        signal.raise_signal(signal.SIGUSR1)
    assert stopped.value.code == 128 + signal.SIGUSR1


def test_another_thread_handles_no_signals() -> None:
    done: list[bool] = []

    def work() -> None:
        with interruptible():
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True]
