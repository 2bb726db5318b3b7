"""A run that is killed goes on as if it had not been, and leaves nothing half written."""

from __future__ import annotations

import csv
import json
import os
import resource
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import TINY
from processes import SERVER, run_all

from attunet3d import workflow
from attunet3d.datasets.phantom import write_phantoms
from attunet3d.errors import CheckpointError, ConfigError, OutputError
from attunet3d.io.locking import LOCK, locked

RUN = {
    "channels": TINY["channels"],
    "spacing": [8.0, 8.0, 8.0],
    "patch_size": [16, 16, 16],
    "roi_size": [32, 32, 32],
    "max_epochs": 6,
    "val_interval": 1,
    "state_interval": 1,
    "warmup_epochs": 1,
    "network_def::dropout": 0.1,
    "num_workers": 0,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    write_phantoms(folder, 5, seed=2, spacing=(8.0, 8.0, 8.0), validation_fraction=0.2)
    return folder


def train(data: Path, output: Path, resume: bool = False, **changes: Any) -> Path:
    torch.set_num_threads(1)
    return workflow.train(
        data, data / "datalist.json", output, resume=resume, cache_dir=str(data / "cache"), **{**RUN, **changes}
    )


def curve(run: Path) -> list[dict[str, str]]:
    """All that history.csv says, but for the time it took."""
    rows = csv.DictReader((run / "history.csv").read_text().splitlines())
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


@pytest.fixture(scope="module")
def whole_run(data: Path) -> Path:
    train(data, data / "whole")
    return data / "whole"


def train_to_death(data: Path, run: Path, moment: int, size: int) -> None:
    """Go on with a run until a file of it has been opened or renamed so many times, or would grow beyond a size.

    TensorBoard's file, which a thread of its own writes, does not count, nor does the lock.
    """

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal moment
        if event not in ("open", "os.rename"):
            return
        path = Path(str(arguments[0]))
        if path.parent == run and path.name != LOCK:
            moment -= 1
            if moment == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    sys.addaudithook(count)
    train(data, run, resume=True)


@pytest.mark.slow
def test_killed_at_any_step_of_writing_it_goes_on_as_if_it_had_not_been(
    data: Path, whole_run: Path, tmp_path: Path
) -> None:
    """With half of the weights and half of the state on the disk; before and after each step of writing any file."""
    weights, state = ((whole_run / name).stat().st_size for name in ("model.pt", "last.pt"))
    deaths = [(0, weights // 2), (0, (weights + state) // 2)]
    # Each of three files is opened, opened to be synchronized, and renamed; then the next state, for which the one that
    # was read gives up its name.
    deaths += [(moment, 2**30) for moment in (*range(1, 10), 10, 11)]
    for moment, size in deaths:
        process = SERVER.Process(target=train_to_death, args=(data, tmp_path, moment, size))
        run_all([process])
        assert process.exitcode == -(signal.SIGKILL if moment else signal.SIGXFSZ)
        for path in tmp_path.glob("[!.]*.pt"):
            torch.load(path, weights_only=True)
        if (tmp_path / "history.csv").exists():
            assert curve(tmp_path) == curve(whole_run)[: len(curve(tmp_path))]
    assert any((tmp_path / name).exists() for name in ("last.pt", "previous.pt"))
    assert len(curve(tmp_path)) < RUN["max_epochs"]
    train(data, tmp_path, resume=True)
    assert curve(tmp_path) == curve(whole_run)
    assert len(curve(tmp_path)) == RUN["max_epochs"]
    assert not list(tmp_path.glob(".tmp-*.pt")), "what a kill left behind is cleared away"
    for name in ("model.pt", "model_final.pt"):
        resumed, whole = (torch.load(folder / name, weights_only=True) for folder in (tmp_path, whole_run))
        for key, value in whole.items():
            torch.testing.assert_close(resumed[key], value, rtol=0, atol=0, msg=f"{name}: {key}")


def test_a_run_is_not_overwritten(data: Path, whole_run: Path) -> None:
    with pytest.raises(ConfigError, match="resume=True"):
        train(data, whole_run)


def test_a_finished_run_stays_as_it_is(data: Path, whole_run: Path) -> None:
    before = torch.load(whole_run / "model_final.pt", weights_only=True)
    rows = curve(whole_run)
    train(data, whole_run, resume=True)
    after = torch.load(whole_run / "model_final.pt", weights_only=True)
    assert curve(whole_run) == rows
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_more_epochs_go_on_from_the_end(data: Path, whole_run: Path, tmp_path: Path) -> None:
    (tmp_path / "last.pt").write_bytes((whole_run / "last.pt").read_bytes())
    train(data, tmp_path, resume=True, max_epochs=8)
    assert [row["epoch"] for row in curve(tmp_path)] == [str(n) for n in range(1, 9)]


def test_settings_given_anew_count_from_there_on(data: Path, whole_run: Path, tmp_path: Path) -> None:
    (tmp_path / "last.pt").write_bytes((whole_run / "last.pt").read_bytes())
    train(data, tmp_path, resume=True, max_epochs=12, learning_rate=0.0001, weight_decay=0.5)
    last = torch.load(tmp_path / "last.pt", weights_only=True)
    (group,) = last["optimizer"]["param_groups"]
    assert group["weight_decay"] == 0.5
    rate = float(curve(tmp_path)[6]["learning_rate"])  # of epoch 7, the sixth of 11 after the warm-up's one
    assert rate == pytest.approx(0.0001 * (1 - 5 / 11) ** 0.9)


def test_other_cases_are_not_gone_on_with(data: Path, whole_run: Path, tmp_path: Path) -> None:
    """As when the fold was forgotten: the run would learn the cases that it is judged by."""
    content = json.loads((data / "datalist.json").read_text())
    content["training"] = content["training"][1:]
    (tmp_path / "other.json").write_text(json.dumps(content))
    (tmp_path / "last.pt").write_bytes((whole_run / "last.pt").read_bytes())
    with pytest.raises(CheckpointError, match="datalist and fold"):
        workflow.train(data, tmp_path / "other.json", tmp_path, resume=True, **RUN)


def test_resume_is_yes_or_no(data: Path, tmp_path: Path) -> None:
    """``monai.bundle run --resume false`` gives a text."""
    with pytest.raises(ConfigError, match="'false'"):
        train(data, tmp_path, resume="false")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "found"),
    [({"channels": [4, 4, 8, 8, 16]}, "does not fit"), ({"seed": 1}, "seed 0")],
)
def test_another_run_is_not_resumed(
    data: Path, whole_run: Path, tmp_path: Path, changes: dict[str, Any], found: str
) -> None:
    (tmp_path / "last.pt").write_bytes((whole_run / "last.pt").read_bytes())
    with pytest.raises(CheckpointError, match=found):
        train(data, tmp_path, resume=True, **changes)


def test_a_broken_state_is_named(data: Path, tmp_path: Path) -> None:
    (tmp_path / "last.pt").write_bytes(b"not a state")
    with pytest.raises(CheckpointError, match=r"last\.pt: not the state of a run: .*start again, in another folder"):
        train(data, tmp_path, resume=True)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [_cut, _flip, Path.unlink], ids=["cut", "flipped", "gone"])
def test_a_damaged_state_has_one_before_it(
    data: Path, whole_run: Path, tmp_path: Path, damage: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Which gives the same end, and which the damaged one does not replace."""
    for name in ("last.pt", "previous.pt"):
        shutil.copy(whole_run / name, tmp_path)
    before = torch.load(tmp_path / "previous.pt", weights_only=True)["epoch"]
    damage(tmp_path / "last.pt")
    with pytest.raises(ConfigError, match="resume=True"):
        train(data, tmp_path)
    train(data, tmp_path, resume=True)
    assert curve(tmp_path) == curve(whole_run)
    assert before == RUN["max_epochs"] - 1
    assert "resuming from previous.pt" in caplog.text
    assert torch.load(tmp_path / "previous.pt", weights_only=True)["epoch"] == before
    for name in ("last.pt", "previous.pt"):
        _cut(tmp_path / name)
    with pytest.raises(CheckpointError, match=r"previous\.pt: not the state of a run: damaged"):
        train(data, tmp_path, resume=True)


@pytest.mark.parametrize(("section", "key"), [("training", "label"), ("training", "image"), ("validation", "label")])
def test_cases_that_have_changed_are_noticed(
    data: Path, whole_run: Path, tmp_path: Path, section: str, key: str
) -> None:
    """A file that was replaced under its name; files that only lie elsewhere are the same."""
    moved = tmp_path / "moved"
    shutil.copytree(data, moved, ignore=shutil.ignore_patterns("whole", "cache"))
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        shutil.copy(whole_run / "last.pt", tmp_path / name)
    train(moved, tmp_path / "one", resume=True)
    case = json.loads((moved / "datalist.json").read_text())[section][0]
    image = nib.load(moved / case[key])
    values = np.asarray(image.dataobj).copy()
    inside = np.argwhere(values > 0)[0]
    values[tuple(inside)] = 0
    values[tuple(slice(i, i + 2) for i in inside)] = 0
    nib.save(nib.Nifti1Image(values, image.affine), moved / case[key])
    name = Path(case["image"]).name
    with pytest.raises(
        CheckpointError, match=rf"last\.pt: 1 of 5 cases, {name} for one, are not what the run began with"
    ):
        train(moved, tmp_path / "other", resume=True)


def test_other_grids_and_labels_are_noticed(data: Path, whole_run: Path, tmp_path: Path) -> None:
    shutil.copy(whole_run / "last.pt", tmp_path)
    with pytest.raises(CheckpointError, match=r"5 of 5 cases, .* or spacing, pancreas_labels or organs"):
        train(data, tmp_path, resume=True, spacing=[9.0, 8.0, 8.0])


def test_two_runs_do_not_share_a_folder(data: Path, tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(OutputError, match=f"another run writes here \\(process {os.getpid()} on "):
        train(data, tmp_path, max_epochs=1)
    assert not list(tmp_path.glob("*.pt"))
    train(data, tmp_path, max_epochs=1)
    with locked(tmp_path):
        pass
