"""The inference config as plain values: as MONAI reads it, with presets and overrides, or refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT
from monai.bundle import ConfigParser

from attunet3d.config.changes import INFERENCE_IDS, config_changes, inference_values
from attunet3d.config.files import bundle_root, installed_bundle, preset_path, read_config
from attunet3d.errors import ConfigError
from attunet3d.runtime.device import choose_device

CONFIG = installed_bundle() / "configs" / "inference.yaml"


def preset(folder: Path, content: Any, name: str = "mine.yaml") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


# --- the values


def test_values_are_those_that_monai_reads() -> None:
    """``segment`` reads the config by itself: what it takes must be what ``python -m monai.bundle run`` takes."""
    parser = ConfigParser()
    parser.read_config(str(CONFIG))
    parser.parse()
    found = inference_values()
    assert tuple(found) == INFERENCE_IDS
    for name in INFERENCE_IDS:
        if name == "network_def":
            expected = parser.get_parsed_content(name, instantiate=False).get_config()
            expected = {key: parser.get_parsed_content(f"{name}::{key}") for key in expected}
        else:
            expected = parser.get_parsed_content(name)
        if name == "device":
            assert choose_device(found[name]) == expected
        elif name == "checkpoint":
            assert Path(found[name]).samefile(expected)
        else:
            assert found[name] == expected, name


def test_every_id_is_a_value_or_wiring() -> None:
    """A value that only MONAI's run knew would be one that ``segment`` ignores."""
    wiring = {"imports", "bundle_root", "dataset_dir", "output_dir", "network", "preprocessing", "dataset"}
    wiring |= {"dataloader", "inferer", "postprocessing", "handlers", "evaluator", "recipe", "run"}
    assert set(read_config("inference")) == wiring | set(INFERENCE_IDS)
    assert len(set(INFERENCE_IDS)) == len(INFERENCE_IDS)


def test_values_can_be_changed_by_preset_and_override(tmp_path: Path) -> None:
    assert inference_values()["spacing"] == [3.0, 3.0, 3.0]
    phantom = inference_values(["phantom"])
    assert phantom["spacing"] == [3.0, 3.0, 3.0]
    assert phantom["hu_window"] == inference_values()["hu_window"]
    mine = preset(tmp_path, {"spacing": [4.0, 4.0, 4.0], "overlap": 0.5})
    both = inference_values(["phantom", mine])
    assert (both["spacing"], both["overlap"], both["roi_size"]) == ([4.0, 4.0, 4.0], 0.5, phantom["roi_size"])
    assert inference_values([mine, "phantom"])["spacing"] == [3.0, 3.0, 3.0]  # the last one counts
    over = inference_values(["phantom", mine], {"spacing": 5.0, "skip_below": None})
    assert (over["spacing"], over["skip_below"], over["overlap"]) == (5.0, None, 0.5)


@pytest.mark.parametrize("key", ["network_def::gate", "network_def#gate"])
def test_ids_inside_others_can_be_changed(tmp_path: Path, key: str) -> None:
    """With either of MONAI's separators, from the command line or a preset."""
    expected = {**inference_values()["network_def"], "gate": "additive"}
    assert inference_values([], {key: "additive"})["network_def"] == expected
    assert inference_values([preset(tmp_path, {key: "additive"})])["network_def"] == expected
    assert inference_values([preset(tmp_path, {f"+{key}": "additive"})])["network_def"] == expected


def test_lists_are_changed_as_a_whole() -> None:
    with pytest.raises(ConfigError, match="spacing::0"):
        inference_values([], {"spacing::0": 3.0})


def test_references_lead_to_what_was_changed(tmp_path: Path) -> None:
    values = inference_values([preset(tmp_path, {"channels": [4, 8]})], {"num_classes": 3})
    assert values["network_def"]["channels"] == [4, 8]
    assert values["network_def"]["out_channels"] == 3
    assert values["network_def"]["in_channels"] == 1
    # One by way of another.
    values = inference_values([], {"num_classes": "@sw_batch_size", "sw_batch_size": "@overlap", "overlap": 0.75})
    assert values["network_def"]["out_channels"] == values["num_classes"] == 0.75


def test_a_read_leaves_no_trace_in_the_next() -> None:
    first = inference_values([], {"network_def::gate": None})
    first["spacing"][0] = 99.0
    first["network_def"]["gate"] = "none of them"
    second = inference_values()
    assert second["network_def"]["gate"] == "grid"
    assert second["spacing"] == [3.0, 3.0, 3.0]


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_presets_of_the_training_serve_inference_too(path: Path) -> None:
    """What only training knows is left out, the rest counts: so one preset goes with the weights made with it."""
    content = yaml.safe_load(path.read_text())
    values, known_ids = inference_values([path.stem]), read_config("evaluate")
    for key, value in content.items():
        first, *rest = key.split("::")
        assert first in known_ids, key
        if first in INFERENCE_IDS:
            found = values[first]
            for part in rest:
                found = found[part]
            assert found == value, key
    for mode in ("inference", "train"):
        known = {key: value for key, value in content.items() if key.split("::")[0] in read_config(mode)}
        assert config_changes(mode, [path.stem], {}) == known


# --- what is refused


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"overlapp": 0.5}, r"id 'overlapp' is not in the bundle's inference config: see .*configs"),
        ({"network_def::gates": 2}, "id 'network_def::gates' is not in"),
        ({"spacing::3": 2.0}, "id 'spacing::3' is not in"),
        ({"max_epochs": 3}, "id 'max_epochs' is not in the bundle's inference config"),
        ({"inferer::overlap": 0.5}, "id 'inferer::overlap' is a component"),
        # References without end, or to nothing.
        ({"overlap": "@overlap"}, "config id 'overlap': reference '@overlap' cannot be resolved"),
        ({"spacing": "@hu_window", "hu_window": "@spacing"}, "reference '@(spacing|hu_window)' cannot be resolved"),
        ({"network_def::channels": "@network_def::channels"}, "reference '@network_def::channels' cannot be resolved"),
        ({"overlap": "@overlaps"}, "config id 'overlap': reference '@overlaps' cannot be resolved"),
        (
            {"network_def": 5, "network_def::gate": "grid"},
            "another change has replaced 'network_def'",
        ),
    ],
)
def test_overrides_that_cannot_be_are_refused_by_name(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        inference_values([], overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        # Wiring, which only MONAI runs.
        (
            {"postprocessing": {"_target_": "Compose"}},
            "id 'postprocessing' is a component of the pipeline, not a value",
        ),
        ({"run": ["$print(1)"]}, "id 'run' is a component"),
        ({"imports": ["$import os"]}, "id 'imports' is a component"),
        # Code.
        ({"overlap": "$1 / 4"}, r"config id 'overlap': expressions \(\$1 / 4\) are only run by `python -m monai"),
        ({"channels": [4, "$2 * 4"]}, "config id 'channels': expressions"),
        ({"network_def::dropout": "$0.5"}, "config id 'network_def': expressions"),
        ({"network_def::channels": "@network_def"}, "config id 'network_def': reference '@.*' cannot be resolved"),
        ({"overlap": "@bundle_root"}, "config id 'overlap': expressions"),
    ],
)
def test_what_only_monai_runs_is_refused_even_where_code_is_allowed(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        inference_values([], overrides, allow_code=True)
    with pytest.raises(ConfigError, match="is code or a component, not a plain value"):
        inference_values([], overrides)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"overlapp": 0.5}, r"mine\.yaml: id 'overlapp' is not in the bundle's configs: see "),
        ({"network_def::gates": 2}, "id 'network_def::gates' is not in"),
        ({"inferer::overlap": 0.5}, "id 'inferer::overlap' is a component"),
        ([1, 2], r"mine\.yaml: a preset is a mapping of ids to values, got list"),
        ("", "a preset is a mapping of ids to values, got NoneType"),
        ("a: [1", r"mine\.yaml: the preset cannot be read"),
        ("a: !!python/object/apply:os.getcwd []", r"mine\.yaml: the preset cannot be read"),
    ],
)
def test_presets_that_cannot_be_are_refused_by_name(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        inference_values([preset(tmp_path, content)])


def test_a_preset_is_a_file_or_the_name_of_one_that_is_shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = preset(tmp_path, {"overlap": 0.5})
    assert preset_path(mine) == mine
    assert preset_path("phantom").samefile(ROOT / "configs" / "phantom.yaml")
    preset(tmp_path, {}, "phantom")  # without its suffix no file takes the place of one that is shipped
    monkeypatch.chdir(tmp_path)
    assert preset_path("phantom").samefile(ROOT / "configs" / "phantom.yaml")
    for name in ("nih", "configs/phantom", "../phantom", tmp_path / "none.yaml"):
        with pytest.raises(ConfigError, match=r"no preset .*: give a YAML file, or one of .*phantom"):
            preset_path(name)


# --- the folder


def test_the_bundle_is_the_working_directory_where_that_is_a_copy_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert bundle_root() == installed_bundle()
    configs = tmp_path / "configs"
    configs.mkdir()
    (configs / "inference.yaml").write_text("")
    for metadata, expected in (
        ("{}", installed_bundle()),
        ("no JSON", installed_bundle()),
        ("[]", installed_bundle()),
        ('{"name": "another"}', installed_bundle()),
        ((installed_bundle() / "configs" / "metadata.json").read_text(), tmp_path),
    ):
        (configs / "metadata.json").write_text(metadata)
        assert bundle_root().samefile(expected)
    # What `segment` reads is what came with the package, wherever it is run.
    assert inference_values()["overlap"] == 0.25
