"""Parameters of requests, without a server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from attunet3d.errors import ConfigError
from attunet3d.label import parameters


@pytest.fixture
def models(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    for name in ("models/model.pt", "other.pt", "models/model.txt"):
        (tmp_path / name).touch()
    return tmp_path / "models"


GOOD: dict[str, list[Any]] = {
    "device": ["cpu", "cuda", "cuda:1", "mps", "NVIDIA H100:0"],
    "max_epochs": [1, 100_000],
    "val_split": [0, 0.0, 0.2, 0.99],
    "pretrained": [True, False],
    "multi_gpu": [True],
    "gpus": ["all", "0", "0,1"],
    "model_filename": ["model.pt", ["model.pt"]],
    "client_id": [None, "", "jane"],
    "save_label": [True],
    "label_tag": ["final"],
    "label_info": [[], [{"name": "pancreas", "idx": 1, "color": [255, 0, 0]}]],
    "result_extension": [".nii.gz", ".nrrd"],
    "result_dtype": ["uint8"],
    "result_compress": [False],
    "restore_label_idx": [False],
    "logging": ["WARNING"],
    "max_workers": [0, 4],
    "max_batch_size": [0],
    "max_samples": [0, 9],
    "simulation_size": [2, 5],
    "labels": [[], ["pancreas"]],
}
BAD: dict[str, list[Any]] = {
    "device": ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "cpu\n", "@device", ["cpu"], 0],
    "max_epochs": [0, -1, 100_001, 1.0, "1", True, float("nan"), [1], {"_target_": "os.getcwd"}],
    "val_split": [-0.1, 1, 1.5, "0.2", True, float("nan"), float("inf"), []],
    "pretrained": ["true", 1, 0, None],
    "multi_gpu": ["yes", 1],
    "gpus": ["", "0,", "-1", "0;1", "all,0", 0, "0\n", "0 --x"],
    "model_filename": [
        "",
        "../other.pt",
        "/etc/x.pt",
        "none.pt",
        "model.txt",
        [],
        [["model.pt"]],
        ["../other.pt"],
        None,
    ],
    "client_id": ["../x", "$x", " @x", "a\nb", 5],
    "save_label": ["false", 1],
    "label_tag": ["", "..", "../x", "a/b", None, 1],
    "label_info": [{}, ["x"], [{"name": "$x"}], [{"_target_": "x"}], [{"x": {"y": ["%z"]}}], "x", None],
    "result_extension": ["", "nii", "/../../x", ".nii.gz/../x", ".html"],
    "result_dtype": ["object", "O", "$x"],
    "result_compress": ["x"],
    "restore_label_idx": [1],
    "logging": ["debug2", 10],
    "max_workers": [-1, 65, 1.5],
    "max_batch_size": [-1, "1"],
    "max_samples": [-1],
    "simulation_size": [1, 101],
    "labels": ["pancreas", ["a/b"], [1]],
}


def test_each_parameter_has_its_type_and_range(models: Path) -> None:
    devices = ["NVIDIA H100:0"]
    tables = [
        parameters.training(devices, models),
        parameters.inference(devices, models),
        parameters.batch(devices, models),
    ]
    tables += [parameters.scoring(devices), parameters.choosing(), parameters.saving()]
    assert set().union(*tables) == set(GOOD) == set(BAD)
    for table in tables:
        for name in table:
            for value in GOOD[name]:
                parameters.check_parameters("params", {name: value}, table)
            # What executes in a MONAI config fits nowhere, however it is wrapped.
            wrapped = ["$x", ["$x"], {"_target_": "x"}, {"a": "$x"}, "@x", "%x"]
            for value in [*BAD[name], *wrapped]:
                with pytest.raises(ConfigError, match=f"^{name}: .*; expected"):
                    parameters.check_parameters("params", {name: value}, table)


def test_an_unknown_parameter_is_refused_with_what_is_allowed(models: Path) -> None:
    table = parameters.training((), models)
    for name in ("train#trainer", "run_id", "tracking_uri", "_target_", "bundle_path", "model", "", "$x", "x\n"):
        with pytest.raises(ConfigError, match=r"params: there is no .*; allowed are device, .*max_epochs"):
            parameters.check_parameters("params", {name: "x"}, table)
    for given in ([], "x", 1, None, True):
        with pytest.raises(ConfigError, match="expected a JSON object"):
            parameters.check_parameters("params", given, table)


def test_parameters_below_the_name_of_the_model_are_checked_too(models: Path) -> None:
    table = parameters.training((), models)
    parameters.check_parameters("params", {"bundle": {"max_epochs": 1}, "client_id": "jane"}, table, "bundle")
    for given in ({"bundle": {"max_epochs": "$x"}}, {"bundle": {"bundle": {}}}, {"bundle": []}, {"other": {}}):
        with pytest.raises(ConfigError):
            parameters.check_parameters("params", given, table, "bundle")


def test_a_form_holds_json() -> None:
    assert parameters.parsed("params", "") == {}
    for text in ("{", "x", "[" * 100_000, "[" * 200 + "]" * 200, '{"device": "cpu", "device": "cuda"}'):
        with pytest.raises(ConfigError, match="params: expected JSON"):
            parameters.parsed("params", text)


def test_notes_hold_neither_what_executes_nor_what_the_server_writes() -> None:
    parameters.check_information("info", {"comment": "a, 100 %\nb", "level": 2, "meta": {"status": ["ok", None, 0.5]}})
    deep: dict[str, Any] = {}
    for _ in range(20):
        deep = {"a": deep}
    bad = [
        [],
        "x",
        {"a": "$x"},
        {"a": ["@x"]},
        {"a": {"_target_": "x"}},
        {"a": float("nan")},
        {"a": "\0"},
        {"$a": 1},
        deep,
    ]
    for given in bad:
        with pytest.raises(ConfigError, match="info: expected"):
            parameters.check_information("info", given)
    for name in ("path", "name", "strategy", "epistemic_entropy"):
        with pytest.raises(ConfigError, match=f"info: {name}: only the server itself"):
            parameters.check_information("info", {name: "x"})
