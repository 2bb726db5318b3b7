"""The bundle as MONAI uses it: properties, metadata, exports, and ``python -m monai.bundle run`` for each config."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import HANG, PLAIN, ROOT, TINY
from monai.bundle import ConfigParser, ConfigWorkflow
from processes import ranks, run_module

from attunet3d import Segmenter, bundle_root, workflow
from attunet3d.config.changes import inference_values
from attunet3d.config.files import defines
from attunet3d.config.recipe import make_recipe, read_recipe
from attunet3d.datasets.phantom import write_phantoms

SCHEMA = ROOT.parent / "shared" / "schema" / "meta_schema_20240725.json"
CONFIGS = bundle_root() / "configs"
SMALL = {**TINY, "patch_size": [32, 32, 32], "max_epochs": 2, "val_interval": 1, "batch_size": 1}


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle_phantoms")
    write_phantoms(folder, 5, seed=7, spacing=(5.0, 5.0, 6.0), validation_fraction=0.4)
    return folder


def monai_bundle(*arguments: object, cwd: Path) -> None:
    """``python -m monai.bundle`` in a folder that is not the bundle's, but for the time that imports take."""
    run_module("monai.bundle", arguments, cwd)


def torchrun_monai_bundle(*arguments: object, cwd: Path) -> None:
    """The same in two processes, by the command of the documentation, which imports everything anew."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*torchrun, "-m", "monai.bundle", *map(str, arguments)]
    subprocess.run(command, cwd=cwd, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, timeout=HANG)


def ids(values: dict[str, Any]) -> list[str]:
    return [part for name, value in values.items() for part in (f"--{name}", str(value))]


@pytest.mark.parametrize(
    ("files", "kind"),
    [(["train.yaml"], "train"), (["train.yaml", "evaluate.yaml"], "train"), (["inference.yaml"], "infer")],
)
def test_properties_are_where_monai_looks_for_them(phantoms: Path, tmp_path: Path, files: list[str], kind: str) -> None:
    bundle = ConfigWorkflow(
        config_file=[str(CONFIGS / name) for name in files],
        meta_file=str(CONFIGS / "metadata.json"),
        logging_file=False,
        workflow_type=kind,
        dataset_dir=str(phantoms / "imagesTr" if kind == "infer" else phantoms),
        datalist=str(phantoms / "datalist.json"),
        **({} if kind == "infer" else {"ckpt_dir": str(tmp_path)}),
    )
    bundle.initialize()
    assert bundle.check_properties() == []
    assert bundle.version == json.loads((CONFIGS / "metadata.json").read_text())["version"]
    # Optional in MONAI, expected of a good bundle.
    optional = ["network_def"]
    optional += (
        ["preprocessing", "postprocessing", "handlers", "dataset_data"]
        if kind == "infer"
        else [
            f"{part}_{name}"
            for part in ("train", "val")
            for name in (
                "dataset",
                "dataset_data",
                "handlers",
                "inferer",
                "key_metric",
                "postprocessing",
                "preprocessing",
            )
        ]
    )
    for name in optional:
        assert getattr(bundle, name) is not None, name


def test_inference_and_training_agree_on_what_the_network_sees() -> None:
    """A model is only as good as the equality of its grid, intensities and layers in both configs."""
    train, inference = (ConfigParser.load_config_file(CONFIGS / f"{name}.yaml") for name in ("train", "inference"))
    seen = ("spacing", "antialias", "hu_window", "channels", "num_classes", "network_def")
    for name in (*seen, "roi_size", "overlap", "skip_below"):
        assert train[name] == inference[name], name


def test_no_list_is_addressed_by_position() -> None:
    for path in [*CONFIGS.glob("*.yaml"), *(ROOT / "configs").glob("*.yaml")]:
        for key in ConfigParser.load_config_file(path):
            assert not any(part.isdigit() for part in key.replace("#", "::").split("::")), (path.name, key)


@pytest.mark.parametrize("preset", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_presets_override_existing_ids_and_build(preset: Path, phantoms: Path, tmp_path: Path) -> None:
    assert preset.read_text().startswith("# attunet3d "), "the first comment is the command that uses it"
    overrides = {"dataset_dir": str(phantoms), "datalist": str(phantoms / "datalist.json")}
    overrides["ckpt_dir"] = str(tmp_path)
    train = workflow.make_workflow("train", [preset.stem], overrides)
    train.initialize()
    assert train.check_properties() == []
    inference = workflow.make_workflow("inference", [preset.stem])
    for key, value in ConfigParser.load_config_file(preset).items():
        assert (train if defines("train", key) else inference).parser[key] == value
    assert type(train.parser.get_parsed_content("optimizer")).__name__ == (
        "Adam" if preset.stem == "paper" else "AdamW"
    )
    workflow.make_workflow("evaluate", [preset.stem])
    # What the network is, and sees, is the same where it is used.
    for name in ("spacing", "antialias", "hu_window", "network_def", "roi_size", "skip_below", "body_threshold"):
        assert inference.parser[name] == train.parser[name], name
    network = inference.parser.get_parsed_content("network_def")
    network.load_state_dict(train.parser.get_parsed_content("network_def").state_dict())


def test_the_presets_are_those_that_are_promised() -> None:
    names = {path.stem for path in (ROOT / "configs").glob("*.yaml")}
    assert names >= {
        "nih_pancreas_ct", "msd_pancreas", "paper", "low_memory", "smoke",
        "ablation_no_gates", "ablation_additive_gates", "ablation_no_deep_supervision",
    }  # fmt: skip


def test_the_papers_recipe_gives_its_input_zero_mean_and_unit_deviation(write_phantom: Callable[..., Path]) -> None:
    preset = ConfigParser.load_config_file(ROOT / "configs" / "paper.yaml")
    low, high = preset["hu_window"]
    hu = np.asarray(nib.load(write_phantom()).dataobj, dtype=np.float32)
    x = (np.clip(hu, low, high) - low) / (high - low)
    normal = (x - preset["network_def::input_mean"]) / preset["network_def::input_std"]
    assert abs(normal.mean()) < 0.7  # one field of view holds more air than another
    assert 0.7 < normal.std() < 1.4


@pytest.mark.skipif(not SCHEMA.is_file(), reason="MONAI's metadata schema is not beside this checkout")
def test_verify_metadata(tmp_path: Path) -> None:
    monai_bundle("verify_metadata", "--meta_file", CONFIGS / "metadata.json", "--filepath", SCHEMA, cwd=tmp_path)


def test_metadata_is_complete() -> None:
    meta = json.loads((CONFIGS / "metadata.json").read_text())
    assert meta["version"] in meta["changelog"]
    assert meta["network_data_format"]["outputs"]["pred"]["channel_def"] == {"0": "background", "1": "pancreas"}
    assert meta["network_data_format"]["inputs"]["image"]["format"] == "hounsfield"
    assert meta["name"] == bundle_root().name
    for name in ("LICENSE", "docs/README.md", "docs/data_license.txt", "configs/logging.conf", "models/model.pt"):
        assert (bundle_root() / name).is_file(), name
    assert (bundle_root() / "models" / "model.pt").stat().st_size <= 25e6


def test_verify_net_in_out_and_exports(tmp_path: Path) -> None:
    common = ["--config_file", CONFIGS / "inference.yaml", "--meta_file", CONFIGS / "metadata.json"]
    monai_bundle("verify_net_in_out", "network_def", *common, "--device", "cpu", cwd=tmp_path)

    model = bundle_root() / "models" / "model.pt"
    export = [*common, "--ckpt_file", model]
    monai_bundle("ckpt_export", "network_def", *export, "--filepath", tmp_path / "model.ts", cwd=tmp_path)
    shape = ["--input_shape", "[1, 1, 48, 48, 48]"]
    monai_bundle("onnx_export", "network_def", *export, "--filepath", tmp_path / "model.onnx", *shape, cwd=tmp_path)

    import onnxruntime

    from attunet3d import load_network

    x = torch.randn(1, 1, 48, 48, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = load_network(device="cpu", precision="fp32")(x)
        scripted = torch.jit.load(tmp_path / "model.ts")(x)
    torch.testing.assert_close(scripted, expected, rtol=1e-4, atol=1e-4)
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    (onnx,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(onnx, expected.numpy(), rtol=1e-3, atol=1e-3)


def test_run_trains_evaluates_and_segments(phantoms: Path, tmp_path: Path) -> None:
    """The three runs of a study, from a folder that is neither the bundle nor the checkout."""
    data = {"dataset_dir": phantoms, "datalist": phantoms / "datalist.json"}
    runs = tmp_path / "runs"
    monai_bundle(
        "run", "--config_file", CONFIGS / "train.yaml", *ids({**SMALL, **data, "ckpt_dir": runs}), cwd=tmp_path
    )
    assert {"model.pt", "model_final.pt", "last.pt", "history.csv", "tensorboard"} <= {p.name for p in runs.iterdir()}

    recipes = [read_recipe(runs / name) for name in ("model.pt", "model_final.pt")]
    assert recipes == [make_recipe(inference_values((), TINY))] * 2

    files = f"['{CONFIGS / 'train.yaml'}','{CONFIGS / 'evaluate.yaml'}']"
    result = {**TINY, **data, "checkpoint": runs / "model.pt", "output_dir": tmp_path / "eval", "precision": "fp32"}
    monai_bundle("run", "--config_file", files, *ids(result), cwd=tmp_path)
    table = (tmp_path / "eval" / "metrics.csv").read_text()
    assert (tmp_path / "eval" / "report.html").is_file()
    validation = json.loads((phantoms / "datalist.json").read_text())["validation"]
    for case in validation:
        assert case["image"].removesuffix(".nii.gz") in table

    images = tmp_path / "cts"
    images.mkdir()
    source = phantoms / validation[0]["image"]
    (images / "linked.nii.gz").symlink_to(source)
    options = {**TINY, "dataset_dir": images, "output_dir": tmp_path / "masks", "checkpoint": runs / "model.pt"}
    monai_bundle(
        "run", "--config_file", CONFIGS / "inference.yaml", *ids({**options, "precision": "fp32"}), cwd=tmp_path
    )  # fmt: skip
    mask, ct = nib.load(tmp_path / "masks" / "linked_seg.nii.gz"), nib.load(source)
    assert mask.shape == ct.shape
    np.testing.assert_array_equal(mask.affine, ct.affine)
    assert mask.get_data_dtype() == np.uint8
    evaluated = tmp_path / "eval" / validation[0]["image"].replace(".nii.gz", "_seg.nii.gz")
    # One engine: `segment` and evaluation give the same voxels.
    ours = Segmenter(runs / "model.pt", device="cpu", precision="fp32", **TINY).segment(source)
    np.testing.assert_array_equal(np.asarray(mask.dataobj), ours.mask)
    np.testing.assert_array_equal(np.asarray(nib.load(evaluated).dataobj), ours.mask)


def files(*names: str) -> str:
    return "[" + ",".join(f"'{CONFIGS / name}'" for name in names) + "]"


def test_two_processes_train_as_one_with_twice_the_batch(phantoms: Path, tmp_path: Path) -> None:
    """Loss, gradients and BatchNorm are those of the whole batch: what is left is rounding, which training amplifies.

    Three cases, so that neither the cases nor the batches come out even; two to validate; twelve steps.
    """
    common = {**SMALL, "dataset_dir": phantoms, "datalist": phantoms / "datalist.json", "precision": "fp32"}
    common |= {"max_epochs": 6, "val_interval": 3, "cache_dir": tmp_path / "cache"}
    config = files("train.yaml", "multi_gpu_train.yaml")
    two = ids({**common, "batch_size": 1, "ckpt_dir": tmp_path / "two"})
    torchrun_monai_bundle("run", "--config_file", config, *two, cwd=tmp_path)
    one = ids({**common, "batch_size": 2, "ckpt_dir": tmp_path / "one"})
    monai_bundle("run", "--config_file", CONFIGS / "train.yaml", *one, cwd=tmp_path)

    curves = [list(csv.DictReader((tmp_path / n / "history.csv").read_text().splitlines())) for n in ("one", "two")]
    losses = np.array([[float(row["loss"]) for row in rows] for rows in curves])
    assert losses.shape == (2, 6)
    assert losses[0, 0] - losses[0, -1] > 0.02, "something was learned"
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3)
    np.testing.assert_allclose(losses[1, 0], losses[0, 0], rtol=1e-4)
    assert [row["val_dice"] for row in curves[0][:2]] == ["", ""]
    assert all(float(row["val_dice"]) >= 0 for rows in curves for row in (rows[2], rows[5]))


def test_two_processes_evaluate(phantoms: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """With an even and an odd number of cases, and with fewer cases than processes: each case is there once."""
    content = json.loads((phantoms / "datalist.json").read_text())
    cases = content["training"] + content["validation"]
    tables = {}
    for count in (1, 3):
        datalist = tmp_path / f"{count}.json"
        datalist.write_text(json.dumps({"validation": cases[:count]}))
        config = files("train.yaml", "evaluate.yaml", "multi_gpu_evaluate.yaml")
        options = {**TINY, **PLAIN, "dataset_dir": phantoms, "datalist": datalist, "checkpoint": tiny_checkpoint}
        options |= {"output_dir": tmp_path / f"two{count}", "precision": "fp32"}
        with ranks(2) as environments:
            run_module("monai.bundle", ["run", "--config_file", config, *ids(options)], tmp_path, environments)
        tables[count] = (tmp_path / f"two{count}" / "metrics.csv").read_text()
        assert len(tables[count].splitlines()) == 1 + count
        assert (tmp_path / f"two{count}" / "report.html").is_file()
    workflow.evaluate(
        phantoms, tmp_path / "3.json", tiny_checkpoint, tmp_path / "one", **TINY, **PLAIN, precision="fp32"
    )
    assert (tmp_path / "one" / "metrics.csv").read_text() == tables[3]


def test_train_and_evaluate_from_python(phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In folders, and with files, whose names MONAI would run or look up where it reads them in a config."""
    monkeypatch.chdir(tmp_path)
    data, marks = Path("$data#1"), iter("$@%#" * 4)
    data.mkdir()
    cases = json.loads((phantoms / "datalist.json").read_text())
    for case in (*cases["training"], *cases["validation"]):
        for kind, name in list(case.items()):
            case[kind] = f"{next(marks)}@#%#{kind}_{Path(name).name}"
            (data / case[kind]).symlink_to(phantoms / name)
    Path("@list.json").write_text(json.dumps(cases))

    best = workflow.train(str(data), "@list.json", "%runs::1", **{**SMALL, "max_epochs": 1}, cache_dir=Path("$cache"))
    assert best == Path("%runs::1/model.pt")
    assert best.is_file()
    assert any(Path("$cache").iterdir())
    values = workflow.evaluate(str(data), "@list.json", best, "%eval@#'", **TINY, **PLAIN)
    assert 0.0 <= values["val_dice"] <= 1.0
    assert len(list(Path("%eval@#'").glob("*_seg.nii.gz"))) == len(cases["validation"])
    tuned = workflow.make_workflow("train", ["fine_tune"], {"initial_checkpoint": best, **TINY})
    tuned.parser.parse()
    assert tuned.parser.get_parsed_content("initial_checkpoint") == str(best)
    assert {path.name for path in tmp_path.iterdir()} == {data.name, "@list.json", "%runs::1", "$cache", "%eval@#'"}
