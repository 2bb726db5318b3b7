"""Names that would drive the terminal or forge a line, given to every verb: nothing of them arrives raw."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import PLAIN, TINY, Run
from dicom_files import phantom, write_series

FORGED = "\nerror: forged"
# Line breaks of all kinds, escapes, C1 controls, DEL, marks of direction, no width, markup; and bytes that are no text.
TEXT = f"ct{FORGED}\x1b[31m\r\x9b2J\x7f\x85error: forged\x1c\u2028\u2029\u202e\u2066\u200b\ufeff\u00ad[red]:pill:"
EVIL = f"{TEXT}\udcff\udc9b"

SMALL = [part for key, value in {**TINY, **PLAIN}.items() for part in ("--set", f"{key}={value}")]


@pytest.fixture
def printed(run: Run) -> Run:
    """As ``run``, where all that arrives must be lines of characters that only stand there, and none of them forged."""

    def call(*arguments: object) -> tuple[int, str, str]:
        code, stdout, stderr = run(*arguments)
        for text in (stdout, stderr):
            for line in text.split("\n"):
                assert line.isprintable(), repr(line)
                assert not line.startswith("error: forged")
        assert "Traceback" not in stderr
        return code, stdout, stderr

    return call


def test_names_of_files_and_folders(printed: Run, tiny_checkpoint: Path, tmp_path: Path) -> None:
    file, folder, gone = tmp_path / f"{EVIL}.nii.gz", tmp_path / EVIL, tmp_path / f"gone{EVIL}"
    file.write_bytes(b"no image")
    folder.mkdir()
    (folder / "ct.nii.gz").write_bytes(b"no image")
    out = tmp_path / "out"
    for ct in (file, folder, gone):
        code, _, stderr = printed("segment", ct, "-o", out)
        assert (code, stderr.count("\n")) == (2, 1)
        assert "rename" in stderr
    assert not out.exists()
    code, stdout, _ = printed("segment", folder / "ct.nii.gz", "-o", out, "--checkpoint", tiny_checkpoint, *SMALL)
    assert (code, stdout) == (1, "")
    assert printed("segment", tmp_path / "ct.nii.gz", "-o", folder)[0] == 2
    for path in (file, folder, gone):
        assert printed("inspect", path)[0] == 2
        assert printed("inspect", "--json", path)[0] == 2
        assert printed("score", path, file)[0] == 2
        assert printed("score", folder, folder, "-o", path)[0] == 2
    assert printed("prepare", "msd-pancreas", folder, "-o", tmp_path / "d.json")[0] == 2
    assert printed("prepare", "pairs", folder, "-o", folder, "--images", TEXT)[0] == 2
    assert printed("prepare", "nih-pancreas-ct", folder, "-o", tmp_path / "d.json", "--labels", folder)[0] == 2
    for data_set in ("btcv", "amos", "join"):
        assert printed("prepare", data_set, folder, "-o", tmp_path / "d.json")[0] == 2
    assert printed("phantom", folder, "-n", 1)[0] == 2
    assert printed("benchmark", folder, "-o", out)[0] == 2
    assert printed("label", folder, "--app", folder)[0] == 2
    assert printed("segment-many", folder, "-o", folder)[0] == 2
    assert printed("train", "--dataset-dir", folder, "--datalist", folder, "-o", out)[0] == 2
    assert printed("evaluate", "--dataset-dir", folder, "--datalist", folder, "--checkpoint", folder, "-o", out)[0] == 2


def test_options_and_arguments(printed: Run, tmp_path: Path) -> None:
    ct = tmp_path / "ct.nii.gz"
    for option in ("--checkpoint", "-c", "--set", "--device", "--precision", "--format", "--memory"):
        assert printed("segment", ct, "-o", tmp_path / "out", option, EVIL)[0] == 2
    assert printed("segment", ct, "-o", tmp_path / "out", "--set", f"overlap={EVIL}")[0] == 2
    assert printed("segment", ct, "-o", tmp_path / "out", f"--{EVIL}")[0] == 2
    assert printed("score", ct, ct, "--prediction-label", EVIL)[0] == 2
    assert printed("benchmark", ct, "-o", tmp_path / "out", "--only", EVIL)[0] == 2
    assert printed(EVIL)[0] == 2
    assert printed("prepare", EVIL)[0] == 2


def test_manifests_and_datalists(printed: Run, tmp_path: Path) -> None:
    manifest, datalist = tmp_path / "m.jsonl", tmp_path / "d.json"
    rows = [{"path": EVIL, "id": EVIL}, {"path": "a", "id": "x", EVIL: "y"}, {"path": EVIL, EVIL: 1, f"{EVIL} ": 2}]
    for row in [*rows, {"path": f"{EVIL}.nii.gz"}]:
        manifest.write_text(json.dumps(row))
        assert printed("segment-many", manifest, "-o", tmp_path / "out")[0] == 2
    manifest.write_text(f'{{"path": "{EVIL}"', encoding="utf-8", errors="surrogateescape")
    assert printed("segment-many", manifest, "-o", tmp_path / "out")[0] == 2
    table = tmp_path / "m.csv"
    for text in (
        f'path,id\n"{EVIL}",{EVIL}\n',
        f"path,{EVIL}\n",
        f'path,id\na,"{EVIL}"\nb,"{EVIL}"\n',
        f'path\n"{EVIL}',
    ):
        table.write_text(text, encoding="utf-8", errors="surrogateescape")
        assert printed("segment-many", table, "-o", tmp_path / "out")[0] == 2
    where = ["--dataset-dir", tmp_path, "--datalist", datalist]
    for content in (
        {"training": [{"image": EVIL, "label": EVIL}]},
        {"validation": [{"image": EVIL, "label": EVIL, f"{EVIL} fold": 1}]},
        {EVIL: [{"image": "a", "label": "b"}]},
        {"training": [{"image": "a", "label": "b", "fold": EVIL}]},
        {"pancreas_labels": EVIL, "training": [{}]},
        {"training": [EVIL]},
    ):
        datalist.write_text(json.dumps(content))
        assert printed("train", *where, "-o", tmp_path / "run")[0] == 2


def test_folders_of_dicom(printed: Run, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """What is left out, what fails and what is listed, in a folder and files of such names."""
    study = tmp_path / EVIL / "study"
    scout = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}
    write_series(study / EVIL, phantom(), uid="1.2.3.1", **scout)
    write_series(study / f"gap{EVIL}", phantom(), uid="1.2.3.2")[3].unlink()
    code, stdout, stderr = printed(
        "segment", study, "-o", tmp_path / "out", "--all-series", "--checkpoint", tiny_checkpoint, *SMALL
    )
    assert (code, stdout) == (1, "")
    assert [line.split(": ")[0] for line in stderr.splitlines()] == ["left out", "error"]
    code, stdout, _ = printed("inspect", study)
    assert code == 0
    code, stdout, _ = printed("inspect", study, "--json")
    assert (code, json.loads(stdout)["path"]) == (0, str(study))


def test_a_mask_in_such_a_folder_and_its_product(
    run: Run, tiny_checkpoint: Path, write_phantom: Callable[..., Path], tmp_path: Path
) -> None:
    """The CT's folder is not in the name of the mask; letters of all scripts and spaces of all widths are no harm."""
    folder = tmp_path / EVIL
    folder.mkdir()
    ct = folder / "Größe 山田 9\u202fAM.nii.gz"
    ct.symlink_to(write_phantom())
    out = tmp_path / "out"
    code, stdout, stderr = run("segment", ct, "-o", out, "--checkpoint", tiny_checkpoint, *SMALL)
    assert (code, stderr) == (0, "")
    assert Path(stdout.removesuffix("\n")).read_bytes()[:2] == b"\x1f\x8b"


def test_scores_of_such_names(printed: Run, write_phantom: Callable[..., Path], tmp_path: Path) -> None:
    """In JSON and in the table on disk they are exact."""
    label = write_phantom().with_name("phantom_RAS_0_label.nii.gz")
    for folder in ("masks", "references"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{EVIL}.nii.gz").symlink_to(label)
    (tmp_path / "references" / f"no mask {EVIL}.nii.gz").symlink_to(label)
    (tmp_path / "masks" / f"b{EVIL}.nii.gz").write_bytes(b"no image")
    (tmp_path / "references" / f"b{EVIL}.nii.gz").symlink_to(label)
    code, stdout, stderr = printed("score", tmp_path / "masks", tmp_path / "references")
    assert code == 1
    assert json.loads(stdout)["worst"] == [EVIL]
    assert [line.split(":")[0] for line in stderr.splitlines()] == ["error", "warning", "warning"]
    code, stdout, stderr = printed("score", tmp_path / "masks", tmp_path / "references", "-o", tmp_path / "s.csv")
    assert stdout == f"{tmp_path}/s.csv\n"
    assert os.fsencode(EVIL) in (tmp_path / "s.csv").read_bytes()


def test_what_python_says_of_an_error_of_its_own(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A traceback is set in, so that its lines are not taken for ours; the last line says what went wrong."""

    def broken(path: Path) -> None:
        raise KeyError(EVIL) from ValueError(EVIL)

    monkeypatch.setattr("attunet3d.io.inspect.inspect_path", broken)
    code, stdout, stderr = run("inspect", tmp_path)
    assert (code, stdout) == (1, "")
    *traceback, last = stderr.splitlines()
    assert all(line.isprintable() and (not line or line.startswith("  ")) for line in traceback)
    assert "  Traceback (most recent call last):" in traceback
    assert last.startswith("error: unexpected KeyError: ")


def test_the_log_in_a_process_of_its_own(tmp_path: Path) -> None:
    """With --verbose, in a locale of ASCII; under pytest the log goes elsewhere."""
    write_series(tmp_path / EVIL, phantom(), uid="1.2.3.1")
    code = (
        "import logging, sys, warnings; from attunet3d.cli import main; from attunet3d.io import inspect\n"
        "def say(path):\n"
        "    warnings.warn(str(path)); logging.warning(path); print(path); sys.stderr.writelines([str(path), '\\n'])\n"
        "    return []\n"
        "inspect.inspect_path = say; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "inspect", tmp_path / EVIL, "--verbose"],
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        check=True,
    )
    assert not (done.stdout + done.stderr).translate(None, bytes(range(32, 127)) + b"\n")
    lines = done.stderr.decode().splitlines()
    assert len([line for line in lines if "error: forged" in line]) == 4
    assert [line for line in lines if line.startswith("  ")] == [line for line in lines if "WARNING" not in line]
