"""Servers of their own: what they begin with, what they do unasked, and how they end."""

from __future__ import annotations

import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import HANG
from label_server import CASES, MODEL, TINY_ARGUMENTS, TRAINING, server, write_cases

from attunet3d.checkpoint import file_sha256
from attunet3d.label.access import TOKEN_VARIABLE

pytestmark = pytest.mark.label


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cases(tmp_path_factory)


def test_training_starts_from_the_weights_that_are_there(phantoms: Path, tmp_path: Path, tiny_checkpoint: Path) -> None:
    """With a learning rate of almost nothing they come out as they went in, and a restart keeps them."""
    import torch

    from attunet3d.checkpoint import read_weights

    app = tmp_path / "app"
    still = ["--set", "learning_rate=1e-12", "--set", "ema_decay=0"]
    options = [*TINY_ARGUMENTS, *TRAINING]
    with server(phantoms / "imagesTr", app, "--checkpoint", str(tiny_checkpoint), *options, *still) as client:
        client.save_label(CASES[0], phantoms / "labelsTr" / f"{CASES[0]}.nii.gz")
        assert client.train(max_epochs=1)["status"] == "DONE"
    trained = app / "model" / MODEL / "models" / "model.pt"
    weights, started = read_weights(trained), read_weights(tiny_checkpoint)
    parameters = [name for name in started if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))]
    assert all(torch.allclose(weights[name], started[name], atol=1e-6) for name in parameters)
    hashed = file_sha256(trained)
    with server(phantoms / "imagesTr", app, *options) as client:
        assert list(client.info()["models"]) == [MODEL]
        assert file_sha256(trained) == hashed


def test_cases_are_scored_when_asked_for(phantoms: Path, tmp_path: Path, tiny_checkpoint: Path) -> None:
    """Without --epistemic nothing runs in the background; the strategy is there all the same."""
    studies = tmp_path / "studies"
    studies.mkdir()
    for case in CASES[:2]:
        shutil.copy(phantoms / "imagesTr" / f"{case}.nii.gz", studies)
    with server(studies, tmp_path / "app", "--checkpoint", str(tiny_checkpoint), *TINY_ARGUMENTS) as client:
        assert client.next_sample("epistemic")["epistemic_entropy"]["score"] == 0
        client.score()
        assert client.next_sample("epistemic")["epistemic_entropy"] > 0


def _is_at_work(process: Any) -> bool:
    """Not if it has ended and only nobody has asked how."""
    import psutil

    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _trainings(server: int) -> list[Any]:
    """Processes of the server with that ID whose program is that of a training by now."""
    import psutil

    children = psutil.Process(server).children(recursive=True)
    return [child for child in children if "MASTER_PORT" in child.environ()]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_server_that_is_told_to_stop_stops_its_training(
    phantoms: Path, tmp_path: Path, tiny_checkpoint: Path, how: signal.Signals
) -> None:

    start = ["--checkpoint", str(tiny_checkpoint), *TINY_ARGUMENTS, *TRAINING]
    with server(phantoms / "imagesTr", tmp_path / "app", *start) as client:
        client.save_label(CASES[0], phantoms / "labelsTr" / f"{CASES[0]}.nii.gz")
        client.ask("POST", f"/train/{MODEL}", json={"max_epochs": 100_000})
        give_up = time.monotonic() + HANG
        while not (children := _trainings(client.process.pid)):
            assert time.monotonic() < give_up
            time.sleep(0.1)
        # It runs `python -m`: where the user stands, modules of the studies' folder could take the place of others.
        place, environment = Path(children[0].cwd()), children[0].environ()
        assert place != Path.cwd()
        assert (place.stat().st_mode & 0o777, environment["TMPDIR"]) == (0o700, str(place))
        assert TOKEN_VARIABLE not in environment
        client.process.send_signal(how)
        client.process.wait(HANG)
        assert not any(map(_is_at_work, children))
        assert not place.exists()
