"""Weights bring along what they were trained with: used by default, said where it is contradicted, and only data."""

from __future__ import annotations

import io
import json
import logging
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from conftest import PLAIN, TINY
from monai.bundle import ConfigParser

from attunet3d import AttentionUNet, Segmenter, workflow
from attunet3d.checkpoint import common_recipe, file_sha256, read_weights, save_weights, saved
from attunet3d.config.changes import INFERENCE_IDS, changes_with_recipe, inference_values
from attunet3d.config.files import bundled_weights, installed_bundle
from attunet3d.config.recipe import RECIPE_IDS, make_recipe, read_recipe
from attunet3d.errors import CheckpointError, ConfigError
from attunet3d.io.locking import LOCK
from attunet3d.io.safetensors_file import safetensors_bytes
from attunet3d.many.manifest import ManyCase
from attunet3d.many.worker import Job, Worker
from attunet3d.runtime.loading import build_network, load_network
from attunet3d.training import load_initial_weights

Run = Callable[..., tuple[int, str, str]]
CPU_FP32: dict[str, Any] = {"device": "cpu", "precision": "fp32"}
# Unlike the bundle in all that decides a voxel.
ODD = {
    "spacing": [7.0, 8.0, 9.0],
    "antialias": True,
    "hu_window": [-1000.0, 1000.0],
    "roi_size": [32, 16, 16],
    "max_window_voxels": 20_000,
    "overlap": 0.3,
    "skip_below": 0.42,
    "body_threshold": 0.42,
    "channels": [4, 4, 8, 8, 8],
    "network_def::gate": "additive",
    "network_def::input_mean": 0.25,
    "network_def::input_std": 0.24,
    **PLAIN,
}


@pytest.fixture(scope="module")
def preset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("preset") / "odd.yaml"
    path.write_text(yaml.safe_dump(ODD))
    return path


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    network = AttentionUNet(channels=ODD["channels"], gate="additive", input_mean=0.25, input_std=0.24)
    path = tmp_path_factory.mktemp("odd") / "odd.pt"
    path.write_bytes(saved(network.state_dict(), make_recipe(inference_values((), ODD))))
    return path


def with_text(weights: Path, text: bytes, path: Path) -> Path:
    """Weights with a text in the place of a recipe."""
    if path.suffix == ".safetensors":
        path.write_bytes(safetensors_bytes(read_weights(weights), {"recipe": text.decode("utf-8", "replace")}))
        return path
    path.write_bytes(saved(read_weights(weights)))
    with zipfile.ZipFile(path, "a") as records:
        records.writestr("archive/recipe.json", text)
    return path


def with_values(weights: Path, path: Path, **values: Any) -> Path:
    recipe = {"format": 1, **(read_recipe(weights) or {}), **values}
    return with_text(weights, json.dumps({k: v for k, v in recipe.items() if v != "left out"}).encode(), path)


def test_what_decides_a_voxel_is_in_it() -> None:
    never = {"checkpoint", "device", "precision", "backend", "sw_batch_size"}  # what runs, and where
    of_the_ct = {"allow_uneven", "allow_smaller_windows"}  # what a user lets pass for once, which the record says
    assert set(RECIPE_IDS) == set(INFERENCE_IDS) - never - of_the_ct


def test_torch_reads_the_weights_as_if_it_were_not_there(odd: Path) -> None:
    bare = torch.load(io.BytesIO(saved(torch.load(odd, weights_only=True))), weights_only=True)
    for how in ({}, {"mmap": True}, {"weights_only": False}):
        found = torch.load(odd, **({"weights_only": True} | how))
        assert found.keys() == bare.keys()
        assert all(torch.equal(found[key], bare[key]) for key in bare)


def test_the_bundles_weights_have_theirs() -> None:
    assert read_recipe(bundled_weights()) == make_recipe(inference_values())
    said: list[str] = []
    patients = inference_values((), {"checkpoint": bundled_weights().with_name("patients.pt")}, warn=said.append)
    for key, value in inference_values(["patients"]).items():
        if key in RECIPE_IDS and key != "network_def":
            assert patients[key] == value, key
    assert said == []


def test_without_the_preset_the_mask_is_that_with_it(
    odd: Path, preset: Path, write_phantom: Callable[..., Path]
) -> None:
    ct = write_phantom()
    without, named = Segmenter(odd, **CPU_FP32), Segmenter(odd, presets=[preset], **CPU_FP32)
    mask = without.segment(ct)
    assert 0 < mask.mask.mean() < 1
    assert np.array_equal(mask.mask, named.segment(ct).mask)
    assert without.warnings == named.warnings == ()
    assert mask.record["checkpoint"]["recipe"] is True
    assert {key: mask.record["config"][key] for key in ("spacing", "hu_window")} == {
        "spacing": ODD["spacing"],
        "hu_window": ODD["hu_window"],
    }
    assert without.made_with(named.segment(ct).record), "a run with the one goes on with the other"


def test_training_saves_it_and_evaluation_uses_it(
    preset: Path, write_phantom: Callable[..., Path], tmp_path: Path
) -> None:
    case = {"image": write_phantom().name, "label": write_phantom().name.replace(".nii.gz", "_label.nii.gz")}
    data, datalist = write_phantom().parent, tmp_path / "d.json"
    datalist.write_text(json.dumps({"training": [case], "validation": [case]}))
    once = {"max_epochs": 1, "val_interval": 1, "batch_size": 1, "patches_per_case": 2, "precision": "fp32"}
    once["patch_size"] = [32, 32, 32]
    run = tmp_path / "run"
    best = workflow.train(data, datalist, run, [preset], validate_on_training=True, num_workers=0, **once)
    wanted = make_recipe(inference_values([preset]))
    assert [read_recipe(path) for path in (best, run / "model_final.pt")] == [wanted, wanted]
    assert read_recipe(run / "last.pt") is None

    tables = []
    for name, presets in (("with", [preset]), ("without", [])):
        how = {"validate_on_training": True, "precision": "fp32"}
        workflow.evaluate(data, datalist, best, tmp_path / name, presets, **how)
        tables.append((tmp_path / name / "metrics.csv").read_text())
        assert json.loads((tmp_path / name / "summary.json").read_text())["settings"]["warnings"] == []
    assert tables[0] == tables[1]
    mask = np.asarray(nib.load(tmp_path / "without" / "phantom_RAS_0_seg.nii.gz").dataobj)
    assert np.array_equal(mask, Segmenter(best, **CPU_FP32).segment(write_phantom()).mask)


@pytest.mark.parametrize("mode", ["train", "evaluate"])
def test_the_configs_have_the_same_defaults(mode: Any) -> None:
    """So that a training without a preset says nothing else than what it always was segmented with."""
    parser, values = workflow.make_workflow(mode).parser, inference_values()
    for key in set(RECIPE_IDS) - {"network_def"}:
        assert parser[key] == values[key], key
    parser = workflow.make_workflow(mode, ["phantom"]).parser
    assert {key: parser[key] for key in PLAIN} == PLAIN


def test_a_contradiction_is_said_and_what_is_given_wins(
    run: Run, odd: Path, write_phantom: Callable[..., Path], tmp_path: Path
) -> None:
    ct = write_phantom()
    given = ["--set", "spacing=[6,6,6]", "--set", "threshold=0.4", "--precision", "fp32"]
    code, _, stderr = run("segment", ct, "--checkpoint", odd, "-o", tmp_path, *given)
    said = "odd.pt: used with other values than it was trained with: "
    said += "spacing [6, 6, 6] (recipe: [7.0, 8.0, 9.0]), threshold 0.4 (recipe: 0.5)"
    assert code == 0
    assert [line for line in stderr.splitlines() if "recipe" in line] == [f"warning: {said}"]
    record = json.loads((tmp_path / f"{ct.name.partition('.')[0]}_seg.json").read_text())
    assert said in record["warnings"]
    assert record["config"]["spacing"] == [6, 6, 6]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"spacing": 7.0}, "spacing [7.0, 7.0, 7.0] (recipe: [7.0, 8.0, 9.0])"),
        ({"skip_below": None}, "skip_below None (recipe: 0.42)"),
        ({"network_def::input_mean": 0.0}, "network_def::input_mean 0.0 (recipe: 0.25)"),
        ({"network_def::gate": None}, "network_def::gate None (recipe: additive)"),
        ({"channels": [8, 8, 8, 8, 8]}, "channels [8, 8, 8, 8, 8] (recipe: [4, 4, 8, 8, 8])"),
        ({"num_classes": 3}, "num_classes 3 (recipe: 2)"),
        ({"network_def::auxiliary_channels": 9}, ""),
        ({"spacing": [7, 8, 9]}, ""),
        ({"sw_batch_size": 2, "backend": "torch", "precision": "fp32"}, ""),
    ],
)
def test_contradictions_by_id(odd: Path, given: dict[str, Any], words: str) -> None:
    said: list[str] = []
    values = inference_values((), {"checkpoint": odd, **given}, warn=said.append)
    assert said == ([f"odd.pt: used with other values than it was trained with: {words}"] if words else [])
    assert values["network_def"]["channels"] == values["channels"], "the network follows the id"


def test_weights_without_a_recipe_are_taken_with_a_word(
    run: Run, bare_checkpoint: Path, write_phantom: Callable[..., Path], tmp_path: Path
) -> None:
    ct = write_phantom()
    given = [f"--set={key}={value}" for key, value in TINY.items()]
    code, _, stderr = run("segment", ct, "--checkpoint", bare_checkpoint, "-o", tmp_path, *given)
    assert code == 0
    line = next(line for line in stderr.splitlines() if "recipe" in line)
    assert line.startswith("warning: bare.pt: no recipe with these weights: the bundle's values are assumed (antialias")
    assert "hu_window [-160.0, 240.0]" in line
    assert "spacing" not in line, "was given"
    assert line.endswith("give the preset they were trained with")
    record = json.loads((tmp_path / f"{ct.name.partition('.')[0]}_seg.json").read_text())
    assert record["checkpoint"]["recipe"] is False
    assert any("no recipe" in warning for warning in record["warnings"])


def test_a_preset_is_taken_for_that_of_the_training(bare_checkpoint: Path, preset: Path) -> None:
    said: list[str] = []
    values = inference_values([preset], {"checkpoint": bare_checkpoint}, warn=said.append)
    assert (said, values["spacing"]) == ([], ODD["spacing"])
    inference_values([], {"checkpoint": bare_checkpoint.with_name("none.pt")}, warn=said.append)
    assert said == [], "who loads it says that it is not there"


HOSTILE: dict[str, dict[str, Any]] = {
    "another network": {"network_def": {"_target_": "os.system", "command": "true"}},
    "code": {"spacing": "$print(1)"},
    "a reference": {"hu_window": "@scales"},
    "a path": {"checkpoint": "/etc/passwd"},
    "an argument": {"network_def": {"_target_": "attunet3d.AttentionUNet", "pickle": "x"}},
    "a text": {"spacing": ["3", "3", "3"]},
    "infinite": {"hu_window": [-1e400, 1.0]},
    "the wrong way round": {"hu_window": [240.0, -160.0]},
    "huge channels": {"channels": [10**9, 10**9]},
    "many levels": {"channels": [1] * 1000},
    "no spacing": {"spacing": [0.0, 1.0, 1.0]},
    "a huge number": {"max_window_voxels": 10**60},
    "a number without end": {"spacing": [10**400, 1.0, 1.0]},
    "a bool": {"threshold": True},
    "missing": {"threshold": "left out"},
    "newer": {"format": 2},
    "format of another type": {"format": True},
}


FILES = ["w.pt", "w.safetensors"]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_recipe_is_refused(odd: Path, tmp_path: Path, name: str, file: str) -> None:
    path = with_values(odd, tmp_path / file, **HOSTILE[name])
    with pytest.raises(CheckpointError, match=rf"{file}: the recipe in it ") as refused:
        Segmenter(path)
    assert len(str(refused.value)) < 400
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"no json",
        b"\xff\xfe\x00",
        b"[" * 50_000,
        b'{"format": 1, "spacing": ' + b"[" * 90 + b"]" * 90 + b"}",
        b"[1]",
        b'{"format": 1, "format": 1}',
        b" " * 3_000_000,
    ],
    ids=["empty", "words", "bytes", "deep", "nested", "list", "twice", "long"],
)
def test_a_damaged_recipe_is_refused(odd: Path, tmp_path: Path, text: bytes, file: str) -> None:
    with pytest.raises(CheckpointError, match=rf"{file}: the recipe in it "):
        read_recipe(with_text(odd, text, tmp_path / file))


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("inside", [True, False])
def test_a_network_larger_than_the_file_is_not_built(odd: Path, tmp_path: Path, inside: bool, file: str) -> None:
    """It could take all memory before its weights are compared."""
    recipe: dict[str, Any] = read_recipe(odd) or {}
    wide = {"channels": [2048] * 5}
    values = {"network_def": recipe["network_def"] | wide} if inside else wide
    with pytest.raises(CheckpointError, match=rf"{file}: the recipe in it does not fit \(the file is too small for"):
        read_recipe(with_values(odd, tmp_path / file, **values))


def test_every_bit_of_it_counts(odd: Path, tmp_path: Path) -> None:
    content = odd.read_bytes()
    place = content.index(b'"hu_window"') + 16
    (tmp_path / "w.pt").write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    with pytest.raises(CheckpointError, match=r"w\.pt: damaged \(.*; copy it again"):
        read_recipe(tmp_path / "w.pt")


def test_every_bit_of_it_counts_in_safetensors(odd: Path, tmp_path: Path) -> None:
    """The format has no checksum of its own."""
    path = save_weights(read_weights(odd), tmp_path / "w.safetensors", recipe=read_recipe(odd))
    content = path.read_bytes()
    place = content.index(b"7.0")
    path.write_bytes(content[:place] + b"6" + content[place + 1 :])
    assert (read_recipe(path) or {})["spacing"] == [6.0, 8.0, 9.0]
    with pytest.raises(
        CheckpointError, match=r"w\.safetensors: damaged \(its checksum does not match\); copy it again"
    ):
        Segmenter(path)


def test_safetensors_are_used_as_the_same_weights_of_torch(
    run: Run, odd: Path, bare_checkpoint: Path, write_phantom: Callable[..., Path], tmp_path: Path
) -> None:
    ct, path = write_phantom(), tmp_path / "odd.safetensors"
    assert run("export", odd, "-o", path) == (0, f"{path}\n", "")
    assert read_recipe(path) == read_recipe(odd)
    session = Segmenter(path, **CPU_FP32)
    found = session.segment(ct)
    assert np.array_equal(found.mask, Segmenter(odd, **CPU_FP32).segment(ct).mask)
    assert session.warnings == ()
    checkpoint = found.record["checkpoint"]
    assert (checkpoint["recipe"], checkpoint["sha256"]) == (True, file_sha256(path))

    for mode, key in (("evaluate", "checkpoint"), ("train", "initial_checkpoint")):
        changes = [changes_with_recipe(mode, [], {key: weights}) for weights in (path, odd)]  # type: ignore[arg-type]
        assert {**changes[0], key: odd} == {**changes[1], key: odd}
        assert changes[0]["spacing"] == ODD["spacing"]
    network = build_network(inference_values((), {"checkpoint": path})["network_def"])
    load_initial_weights(network, path, "", read_recipe(odd) or {})
    assert torch.equal(network.state_dict()["final.bias"], read_weights(odd)["final.bias"])

    bare = save_weights(read_weights(bare_checkpoint), tmp_path / "bare.safetensors", torch.float32)
    said: list[str] = []
    inference_values((), {"checkpoint": bare, **TINY}, False, said.append)
    assert said[0].startswith("bare.safetensors: no recipe with these weights")


def test_two_are_none(odd: Path, tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(odd.read_bytes())
    with zipfile.ZipFile(tmp_path / "w.pt", "a") as records, pytest.warns(UserWarning, match="Duplicate"):
        records.writestr("archive/recipe.json", "{}")
    with pytest.raises(CheckpointError, match="2 times"):
        read_recipe(tmp_path / "w.pt")


def test_what_no_recipe_may_have_is_refused_before_training() -> None:
    with pytest.raises(ConfigError, match="threshold"):
        make_recipe(inference_values((), {"threshold": "low"}))


def test_a_network_of_another_package_is_left_out(odd: Path, tmp_path: Path) -> None:
    """It is no value; the other values are, and the preset that names it is asked for."""

    class Mine(AttentionUNet):
        pass

    values = inference_values((), ODD)
    recipe = make_recipe(values | {"network_def": Mine(channels=ODD["channels"])})
    assert set(recipe) == set(RECIPE_IDS) - {"network_def"}
    assert make_recipe(values | {"network_def": torch.nn.Identity()}) == recipe
    path = save_weights(read_weights(odd), tmp_path / "mine.pt", recipe=recipe)
    assert inference_values((), {"checkpoint": path})["spacing"] == ODD["spacing"]
    with pytest.raises(CheckpointError, match="give the preset it was trained with"):
        Segmenter(path)


def test_means_of_weights_keep_what_they_have_in_common(odd: Path, bare_checkpoint: Path, tmp_path: Path) -> None:
    recipe = common_recipe([odd, odd])
    assert recipe == read_recipe(odd)
    assert read_recipe(save_weights(read_weights(odd), tmp_path / "mean.pt", recipe=recipe)) == recipe
    other = with_values(odd, tmp_path / "other.pt", spacing=[3.0, 3.0, 3.0])
    assert common_recipe([odd, other]) is common_recipe([odd, bare_checkpoint]) is None
    assert read_recipe(save_weights(read_weights(odd), tmp_path / "mean.pt", recipe=None)) is None


def test_what_monai_runs_says_where_it_differs(odd: Path) -> None:
    """It takes the values of the config, whatever the weights."""
    parser = ConfigParser()
    parser.read_config(str(installed_bundle() / "configs" / "inference.yaml"))
    parser["checkpoint"], parser["overlap"] = str(odd), 0.3
    (said,) = parser.get_parsed_content("run::0")
    assert "spacing [3.0, 3.0, 3.0] (recipe: [7.0, 8.0, 9.0])" in said
    assert "network_def::input_std 1.0 (recipe: 0.24)" in said
    assert "overlap" not in said


def test_fine_tuning_starts_from_it(odd: Path, bare_checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    parser = workflow.make_workflow("train", ["fine_tune"], {"initial_checkpoint": odd, "spacing": [6.0] * 3}).parser
    assert (parser["hu_window"], parser["spacing"]) == (ODD["hu_window"], [6.0] * 3)
    assert parser["scales"] == [1.0]
    parser.parse()
    network = parser.get_parsed_content("network_def")
    recipe = parser.get_parsed_content("recipe")
    assert network.arguments["input_mean"] == 0.25
    with caplog.at_level(logging.WARNING):
        load_initial_weights(network, odd, "", recipe)
    assert caplog.messages == [
        "odd.pt: used with other values than it was trained with: spacing [6.0, 6.0, 6.0] (recipe: [7.0, 8.0, 9.0])"
    ]
    caplog.clear()
    load_initial_weights(AttentionUNet(channels=TINY["channels"]), bare_checkpoint, "", recipe)
    assert "no recipe with these weights" in caplog.text


def test_a_worker_segments_by_it(odd: Path, write_phantom: Callable[..., Path], tmp_path: Path) -> None:
    """Of ``segment-many``, which is told no values."""
    (tmp_path / LOCK).touch()
    worker = Worker(Job(str(tmp_path), {"checkpoint": str(odd), **CPU_FP32}, memory_gb=8))
    worker.load()
    worker.segment(ManyCase("a", str(write_phantom())))
    mask = np.asarray(nib.load(tmp_path / "a_seg.nii.gz").dataobj)
    assert np.array_equal(mask, Segmenter(odd, **CPU_FP32).segment(write_phantom()).mask)


def test_a_network_is_built_by_it(odd: Path) -> None:
    assert load_network(odd, "cpu", "fp32").network.input_mean == 0.25
