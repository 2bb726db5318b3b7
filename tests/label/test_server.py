"""A MONAI Label server on a folder of NIfTI files, asked as viewers ask it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from label_server import (
    CASES,
    MODEL,
    TINY_ARGUMENTS,
    TRAINING,
    Client,
    attunet3d,
    differing_voxels,
    server,
    write_cases,
)

from attunet3d.checkpoint import file_sha256
from attunet3d.config import installed_bundle

pytestmark = pytest.mark.label


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cases(tmp_path_factory)


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("label") / "app"


@pytest.fixture(scope="module")
def client(phantoms: Path, app: Path, tiny_checkpoint: Path) -> Iterator[Client]:
    start = ["--checkpoint", str(tiny_checkpoint), *TINY_ARGUMENTS, *TRAINING]
    with server(phantoms / "imagesTr", app, *start, "--epistemic") as started:
        yield started


def _log_lines(app: Path, text: str) -> int:
    return sum(text in line for line in app.with_suffix(".log").read_text().splitlines())


def test_the_server_offers_the_bundle(client: Client) -> None:
    info = client.info()
    assert list(info["models"]) == list(info["trainers"]) == list(info["scoring"]) == [MODEL]
    assert info["models"][MODEL]["labels"] == {"pancreas": 1}
    assert info["models"][MODEL]["config"]["model_filename"] == ["model.pt"]
    assert set(info["strategies"]) == {"random", "first", "epistemic"}
    assert info["datastore"]["total"] == len(CASES)


def test_masks_are_those_of_the_command_line(
    client: Client, app: Path, phantoms: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    cases = CASES[:2]
    images = [phantoms / "imagesTr" / f"{case}.nii.gz" for case in cases]
    attunet3d("segment", *images, "-o", tmp_path, "--checkpoint", tiny_checkpoint, *TINY_ARGUMENTS)
    for case in cases:
        mask = client.infer(case, tmp_path / f"{case}_server.nii.gz")
        assert differing_voxels(mask, tmp_path / f"{case}_seg.nii.gz") == 0
    # The two cases were two requests, and the network was made ready for the first one only.
    assert _log_lines(app, "network runs as") == 1


def test_cases_are_scored_and_chosen(client: Client) -> None:
    client.score()
    scores = {}
    for case in CASES:
        info = client.ask("GET", "/datastore/image/info", params={"image": case}).json()
        scores[case] = info["epistemic_entropy"]
    # The same network with dropout is unsure of each case, and not equally.
    assert min(scores.values()) > 0
    assert len(set(scores.values())) == len(CASES)
    assert client.next_sample("epistemic")["id"] == max(scores, key=lambda case: scores[case])
    assert client.next_sample("random")["id"] in CASES


def test_a_batch_is_segmented_and_kept_as_original_labels(client: Client, phantoms: Path, tmp_path: Path) -> None:
    found = client.ask("POST", f"/batch/infer/{MODEL}", params={"images": "unlabeled", "run_sync": True}).json()
    assert sorted(found) == CASES
    kept = phantoms / "imagesTr" / "labels" / "original" / f"{CASES[0]}.nii.gz"
    assert differing_voxels(client.infer(CASES[0], tmp_path / "mask.nii.gz"), kept) == 0


def test_training_without_a_label_is_refused(client: Client) -> None:
    task = client.train(max_epochs=1)
    assert task["status"] == "ERROR"
    assert "no case has a saved label" in "".join(task["details"])


@pytest.mark.parametrize(("labels", "val_split", "pretrained"), [(1, 0.2, True), (1, 0, False), (4, 0.25, True)])
def test_new_weights_are_used_by_the_next_inference(
    client: Client, app: Path, phantoms: Path, tmp_path: Path, labels: int, val_split: float, pretrained: bool
) -> None:
    models = app / "model" / MODEL / "models"
    installed = file_sha256(installed_bundle() / "models" / "model.pt")
    for case in CASES[:labels]:
        client.save_label(case, phantoms / "labelsTr" / f"{case}.nii.gz")
    assert client.info()["datastore"]["completed"] == labels
    before = client.infer(CASES[-1], tmp_path / "before.nii.gz")
    reloads = _log_lines(app, "Reload model from cache")
    old = file_sha256(models / "model.pt")
    (models / "model_final.pt").unlink(missing_ok=True)

    task = client.train(max_epochs=2, val_split=val_split, pretrained=pretrained)
    assert task["status"] == "DONE", "\n".join(task["details"])
    assert file_sha256(models / "model.pt") != old
    assert (models / "model_final.pt").is_file()
    header, *rows = (models / "history.csv").read_text().splitlines()
    assert len(rows) == 2
    assert ("val_dice" in header) == (labels == 4)
    assert not (models / "last.pt").exists()  # which the server would take for weights

    after = client.infer(CASES[-1], tmp_path / "after.nii.gz")
    image = phantoms / "imagesTr" / f"{CASES[-1]}.nii.gz"
    attunet3d("segment", image, "-o", tmp_path, "--checkpoint", models / "model.pt", *TINY_ARGUMENTS)
    assert differing_voxels(after, tmp_path / f"{CASES[-1]}_seg.nii.gz") == 0
    assert _log_lines(app, "Reload model from cache") == reloads + 1
    if pretrained and labels == 1:  # later ones come from weights that were fresh, and find nothing
        assert differing_voxels(after, before) > 0
    assert file_sha256(installed_bundle() / "models" / "model.pt") == installed
