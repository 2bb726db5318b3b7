"""What is settled without a cluster: what is refused before one starts, what its errors say, and signals."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Run

from attunet3d.errors import ConfigError
from attunet3d.many import segment_many
from attunet3d.many.actors import reason_of


def test_without_ray(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'attunet3d\[ray\]'"):
        segment_many(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"path;id\na.nii.gz;1\nb.nii.gz,2\n", "line 3: 1 values for 2 columns"),
        (b"path,id\nb.nii.gz,1\n\xff\xfe,2\n", "line 3: cannot be read as a manifest (not UTF-8)"),
        (None, "does not exist"),
    ],
)
def test_a_manifest_is_refused_before_ray_starts(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: bytes | None, message: str
) -> None:
    def started(address: str) -> None:
        raise AssertionError("Ray is asked for")

    monkeypatch.setattr("attunet3d.many.cluster.connected", started)
    if text is not None:
        (tmp_path / "m.csv").write_bytes(text)
    code, stdout, stderr = run("segment-many", tmp_path / "m.csv", "-o", tmp_path / "out")
    assert (code, stdout) == (2, "")
    assert message in stderr
    assert len(stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (
            "The actor died unexpectedly before finishing this task.\n\tclass_name: Worker\n\tpid: 7\nThe actor is "
            "dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: end of file. "
            "If the process was killed by the kernel OOM killer (verifiable by dmesg), consider this.",
            "its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: end of file.",
        ),
        ("The actor died because its node has died.", "its node has died."),
        ("Task was killed\nas the node ran low on memory.", "Task was killed as the node ran low on memory."),
    ],
)  # fmt: skip
def test_the_reason_that_ray_gives(said: str, reason: str) -> None:
    assert reason_of(said) == reason
    assert len(reason_of("x" * 1000)) == 300
