"""Attention maps: whose weights they are, where they lie in the patient, and that they come whole or not at all."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import TINY
from scipy.ndimage import map_coordinates
from torch.nn import functional as F

from attunet3d import AttentionUNet, Segmenter
from attunet3d.checkpoint import file_sha256, save_weights
from attunet3d.config.changes import inference_values
from attunet3d.config.recipe import make_recipe
from attunet3d.errors import CancelledError, CheckpointError, ConfigError, MemoryLimitError, OutputError
from attunet3d.inferers.windows import WindowPlan
from attunet3d.networks.attention_maps import AttentionMaps
from attunet3d.segmenter.attention import MapsOnCT, load_attention_maps
from attunet3d.segmenter.memory_plan import plan_memory
from attunet3d.transforms.grid import Grid, model_grid
from attunet3d.transforms.intensity import scale_hu_
from attunet3d.transforms.resample import AIR_HU, bytes_from_shares, resample_image

LEVELS = ["level2", "level3", "level4"]
CPU = torch.device("cpu")
WritePhantom = Callable[..., Path]
ONE_SIZE = {**TINY, "scales": [1.0]}  # maps are made at the image's own size, whatever the mask is


@pytest.fixture(scope="module")
def session(tiny_checkpoint: Path) -> Segmenter:
    return Segmenter(tiny_checkpoint, device="cpu", precision="fp32", **ONE_SIZE)


def tiny(seed: int = 3, **arguments: Any) -> AttentionUNet:
    torch.manual_seed(seed)
    return AttentionUNet(channels=TINY["channels"], **arguments).eval()


def gates_of(network: AttentionUNet) -> list[torch.nn.Module]:
    return [gate for level in network.decoder if level.gate is not None for gate in level.gate.gates]


def session_of(network: AttentionUNet, folder: Path, **changes: Any) -> Segmenter:
    """A session with the weights of ``network``; ``changes`` say what else it is than ONE_SIZE."""
    torch.save(network.state_dict(), folder / "model.pt")
    return Segmenter(folder / "model.pt", "cpu", "fp32", **{**ONE_SIZE, **changes})


def definition(**changes: Any) -> dict[str, Any]:
    return {"_target_": "attunet3d.networks.AttentionUNet", "channels": TINY["channels"], **changes}


# --- the network


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({}, LEVELS),
        ({"gate": "additive"}, LEVELS),
        ({"gate_first_skip": True}, ["level1", *LEVELS]),
        ({"gates_per_skip": 2}, [f"{level}_gate{gate}" for level in LEVELS for gate in (1, 2)]),
    ],
    ids=["grid", "additive", "first skip", "multi"],
)
def test_maps_are_the_networks_own_at_the_size_of_the_image(arguments: dict[str, Any], names: list[str]) -> None:
    network = tiny(**arguments)
    maps = AttentionMaps(network).eval()
    image = torch.rand(2, 1, 36, 32, 33)
    with torch.inference_mode():
        found, alphas = maps(image), network.attention_maps(image)[1]
    assert maps.names == names
    assert found.shape == (2, len(names), 36, 32, 33)
    expected = [F.interpolate(a, (36, 32, 33), mode="trilinear", align_corners=False) for a in alphas]
    torch.testing.assert_close(found, torch.cat(expected, dim=1))
    assert 0 <= float(found.min()) < float(found.max()) <= 1


def test_each_name_is_that_of_its_gate(write_phantom: WritePhantom, tmp_path: Path) -> None:
    """Gate n of the network, coarsest first, is made to give sigmoid(n): each map's one value names its gate."""
    network = tiny(gates_per_skip=2)
    for number, gate in enumerate(gates_of(network)):
        torch.nn.init.zeros_(gate.psi.weight)
        torch.nn.init.constant_(gate.psi.bias, number)
    session = session_of(network, tmp_path, network_def=definition(gates_per_skip=2))
    result = session.segment(write_phantom(), tmp_path, attention=True)
    gates = [f"level{level}_gate{gate}" for level in (4, 3, 2) for gate in (1, 2)]
    assert result.attention is not None
    for number, name in enumerate(gates):
        assert set(np.unique(result.attention[name])) <= {0, round(255 / (1 + math.exp(-number)))}
    assert sorted(result.record["attention"]) == sorted(gates)
    assert all((tmp_path / file).is_file() for file in result.record["attention"].values())


def test_a_network_without_gates_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no attention gates"):
        AttentionMaps(torch.nn.Conv3d(1, 1, 3))
    session = session_of(tiny(gate=None), tmp_path, network_def=definition(gate=None))
    missing = tmp_path / "none.nii.gz"
    with pytest.raises(ConfigError, match="no attention gates, so there are no maps"):
        session.segment(missing, tmp_path / "out", attention=True)
    with pytest.raises(ConfigError, match="no attention gates"):
        next(session.segment_all([missing], tmp_path / "out", attention=True))
    assert not (tmp_path / "out").exists()


def test_weights_that_changed_since_the_session_began_are_refused(
    write_phantom: WritePhantom, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = session_of(tiny(), tmp_path)
    torch.save(tiny(seed=4).state_dict(), tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="has changed since this session began"):
        session.segment(write_phantom(), attention=True)
    (tmp_path / "model.pt").unlink()
    with pytest.raises(CheckpointError, match="has changed since this session began"):
        session.segment(write_phantom(), attention=True)
    assert session.segment(write_phantom()).attention is None  # the session itself goes on


def test_weights_are_read_once_and_only_when_maps_are_asked_for(
    tiny_checkpoint: Path, write_phantom: WritePhantom, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "model.pt"
    shutil.copy(tiny_checkpoint, checkpoint)
    session = Segmenter(checkpoint, "cpu", "fp32", **ONE_SIZE)
    with torch.inference_mode():  # as callers may have it
        first = session.segment(write_phantom(), attention=True).attention
    checkpoint.unlink()
    again = session.segment(write_phantom(), attention=True).attention
    assert first is not None
    assert again is not None
    np.testing.assert_array_equal(first["level2"], again["level2"])


def test_maps_in_bf16_are_those_of_fp32_but_for_rounding(tmp_path: Path) -> None:
    network = tiny()
    torch.save(network.state_dict(), tmp_path / "model.pt")
    maps = load_attention_maps(
        definition(), tmp_path / "model.pt", file_sha256(tmp_path / "model.pt"), CPU, torch.bfloat16
    )
    image = torch.rand(1, 1, 32, 32, 32)
    with torch.inference_mode():
        found, exact = maps(image), AttentionMaps(network)(image)
    assert found.dtype == torch.float32
    assert 0 < float((found - exact).abs().max()) < 0.05


# --- on the CT's grid


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "oblique"])
def test_maps_lie_where_the_network_found_them(tmp_path: Path, write_phantom: WritePhantom, orientation: str) -> None:
    """One window over the whole model grid: the network's own alpha, sampled on the CT's grid by scipy."""
    network = tiny()
    session = session_of(network, tmp_path, body_threshold=None, skip_below=None)
    ct = write_phantom(orientation)
    result = session.segment(ct, attention=True)
    windows = result.record["windows"]
    assert windows["run"] == 1

    source = nib.load(ct)
    grid = Grid(source.shape, source.affine)
    model = model_grid(grid, TINY["spacing"][0])
    hu = torch.from_numpy(np.asarray(source.dataobj).astype(np.int16))
    image = scale_hu_(resample_image(hu, grid, model, fill=AIR_HU), (-160.0, 240.0))
    beyond = [side for n, r in zip(model.shape[::-1], windows["size"][::-1], strict=True) for side in (0, r - n)]
    with torch.inference_mode():
        maps = AttentionMaps(network)(F.pad(image, beyond)[None, None])[0]
    index = np.indices(source.shape).reshape(3, -1)
    position = np.linalg.inv(model.affine) @ source.affine @ np.vstack([index, np.ones(index.shape[1])])
    assert result.attention is not None
    assert list(result.attention) == LEVELS
    for values, name in zip(maps.numpy(), LEVELS, strict=True):
        inner = values[tuple(slice(n) for n in model.shape)]
        expected = map_coordinates(inner, position[:3], order=1, mode="nearest").reshape(source.shape)
        found = result.attention[name]
        assert found.dtype == np.uint8
        assert np.ptp(expected) > 0.05  # so that a flip would show
        assert np.abs(found / 255 - expected).max() < 0.5 / 255 + 1e-3


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "oblique"])
def test_files_are_on_the_cts_own_grid_and_read_as_shares(
    session: Segmenter, write_phantom: WritePhantom, tmp_path: Path, orientation: str
) -> None:
    ct = write_phantom(orientation)
    name = f"phantom_{orientation}_0"
    result = session.segment(ct, tmp_path, attention=True)
    files = {level: f"{name}_attention_{level}.nii.gz" for level in LEVELS}
    written = {f"{name}_seg.nii.gz", f"{name}_seg.json", *files.values()}
    assert {path.name for path in tmp_path.iterdir()} == written
    record = json.loads((tmp_path / f"{name}_seg.json").read_text())
    assert record == result.record
    assert record["attention"] == files
    assert "averaged over overlapping windows" in record["attention_meaning"]
    assert record["seconds"]["attention"] >= 0
    source = nib.load(ct)
    for level, file in files.items():
        image = nib.load(tmp_path / file)
        assert image.shape == source.shape
        assert image.get_data_dtype() == np.uint8
        assert image.header.get_xyzt_units()[0] == "mm"
        np.testing.assert_array_equal(image.affine, source.affine)
        np.testing.assert_array_equal(image.get_sform(), source.get_sform())
        assert image.header["qform_code"] == source.header["qform_code"]
        assert image.dataobj.slope == pytest.approx(1 / 255)
        assert image.dataobj.inter == 0
        np.testing.assert_array_equal(image.dataobj.get_unscaled(), result.attention[level])
        shares = image.get_fdata()
        assert shares.min() >= 0
        assert 0 < shares.max() <= 1 + 1e-6


def test_the_mask_is_the_same_with_maps_and_without(tiny_checkpoint: Path, write_phantom: WritePhantom) -> None:
    session = Segmenter(tiny_checkpoint, device="cpu", precision="fp32", **TINY)
    for ct in (write_phantom("LPS"), write_phantom("oblique", 2)):
        plain, with_maps = session.segment(ct), session.segment(ct, attention=True)
        assert plain.attention is None
        assert "attention" not in plain.record
        assert plain.mask.any()
        np.testing.assert_array_equal(plain.mask, with_maps.mask)


@pytest.mark.parametrize(
    ("bias", "value"), [pytest.param(200.0, 255, id="all passes"), pytest.param(-200.0, 0, id="nothing passes")]
)
@pytest.mark.parametrize("windows", [{}, {"max_window_voxels": None, "overlap": 0.5}], ids=["one", "many"])
def test_gates_that_are_open_or_shut_everywhere(
    write_phantom: WritePhantom, tmp_path: Path, bias: float, value: int, windows: dict[str, Any]
) -> None:
    network = tiny()
    for gate in gates_of(network):
        torch.nn.init.constant_(gate.psi.bias, bias)
    result = session_of(network, tmp_path, body_threshold=None, skip_below=None, **windows).segment(
        write_phantom(), attention=True
    )
    assert (result.record["windows"]["run"] > 1) == bool(windows)
    assert result.attention is not None
    for found in result.attention.values():
        assert set(np.unique(found)) == {value}


@pytest.mark.parametrize("channels", [[4, 4], [4, 4, 8], [4, 4, 8, 8]], ids=["none at all", "one map", "two maps"])
def test_outside_the_windows_weights_are_0(tmp_path: Path, channels: list[int]) -> None:
    """Half of the CT is air. Of two maps none is taken for the difference of two classes, of one none for a logit."""
    network = AttentionUNet(channels=channels, gate_first_skip=len(channels) == 2).eval()
    for gate in gates_of(network):
        torch.nn.init.constant_(gate.psi.bias, 200.0)
    hu = np.full((40, 24, 24), -1000, np.int16)
    hu[20:] = 50
    nib.save(nib.Nifti1Image(hu, np.eye(4)), tmp_path / "ct.nii.gz")
    changes = {"channels": channels, "spacing": 1.0, "roi_size": [8, 8, 8], "max_window_voxels": None}
    changes["network_def"] = {**definition(channels=channels), "gate_first_skip": len(channels) == 2}
    boxed = session_of(network, tmp_path, **changes).segment(tmp_path / "ct.nii.gz", attention=True)
    skipped = session_of(network, tmp_path, **changes, body_threshold=None, overlap=0.0).segment(
        tmp_path / "ct.nii.gz", attention=True
    )
    assert boxed.record["windows"]["skipped"] == 0
    assert skipped.record["windows"]["skipped"] > 0
    for result, first in ((boxed, 20), (skipped, 16)):  # windows of 8 begin at 16
        assert result.attention is not None
        assert len(result.attention) == max(len(channels) - 2, 1)
        for found in result.attention.values():
            assert set(np.unique(found[first:])) == {255}
            assert not found[:first].any()


def test_a_ct_of_air_has_maps_of_0(session: Segmenter, tmp_path: Path) -> None:
    hu = np.full((40, 40, 40), -1000, np.int16)
    hu[22, 22, 22] = 50  # lies between the voxels of the model grid, which are 6 mm apart
    nib.save(nib.Nifti1Image(hu, np.eye(4)), tmp_path / "air.nii.gz")
    result = session.segment(tmp_path / "air.nii.gz", attention=True)
    assert result.record["windows"]["run"] == 0
    assert result.attention is not None
    assert [found.any() for found in result.attention.values()] == [False] * 3


def test_shares_become_the_nearest_of_256_values() -> None:
    grid = Grid((5, 1, 1), np.eye(4))
    shares = torch.tensor([0.0, 0.4 / 255, 0.6 / 255, 0.5, 1.001]).view(5, 1, 1)
    wider = Grid((9, 1, 1), np.array([[1.0, 0, 0, -2], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]))
    assert bytes_from_shares(shares, grid, wider).flatten().tolist() == [0, 0, 0, 0, 1, 128, 255, 0, 0]
    maps = MapsOnCT(["a"], shares[None], grid, wider)
    assert list(maps) == ["a"]
    assert maps["a"].shape == wider.shape
    with pytest.raises(KeyError, match="level9"):
        maps["level9"]


# --- a case


@pytest.mark.parametrize("stop", ["mask", "map"])
def test_writing_that_fails_leaves_nothing(
    session: Segmenter, write_phantom: WritePhantom, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: str
) -> None:
    ct, write = write_phantom(), nib.save

    def full(image: nib.Nifti1Image, path: Path) -> None:
        if ("level4" in path.name) == (stop == "map"):
            raise OSError(28, "No space left on device")
        write(image, path)

    monkeypatch.setattr(nib, "save", full)
    with pytest.raises(OutputError, match="No space left"):
        session.segment(ct, tmp_path / "out", qc=True, attention=True)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_case_can_be_cancelled_before_each_window_of_its_maps(
    tiny_checkpoint: Path, write_phantom: WritePhantom, tmp_path: Path
) -> None:
    session = Segmenter(tiny_checkpoint, "cpu", "fp32", **{**ONE_SIZE, "max_window_voxels": None})
    steps: list[tuple[str, int, int]] = []
    windows = session.segment(write_phantom(), attention=True, progress=lambda *s: steps.append(s)).record["windows"]
    assert windows["run"] > 1
    assert [step[1:] for step in steps if step[0] == "attention"] == [(0, 1)] + [
        (done, windows["run"]) for done in range(1, windows["run"] + 1)
    ]
    assert [stage for stage, done, _ in steps if done == 0] == [
        "read",
        "preprocess",
        "network",
        "attention",
        "postprocess",
    ]
    for last in (0, windows["run"] - 1):
        seen: list[tuple[str, int, int]] = []
        with pytest.raises(CancelledError):
            session.segment(
                write_phantom(),
                tmp_path / "out",
                attention=True,
                progress=lambda *step, seen=seen: seen.append(step),
                cancel=lambda last=last, seen=seen: ("attention", last) in [step[:2] for step in seen],
            )
        assert seen[-1][:2] == ("attention", last)
    assert not (tmp_path / "out").exists()


def test_maps_take_smaller_windows_where_memory_runs_out(
    session: Segmenter, write_phantom: WritePhantom, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole = session.segment(write_phantom(), attention=True)
    size = math.prod(whole.record["windows"]["size"])
    average = session._window.average
    run: list[int] = []

    def narrow(image: torch.Tensor, network: torch.nn.Module, plan: WindowPlan, **kwargs: Any) -> torch.Tensor:
        if plan.voxels >= size:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
        run.append(len(plan.jobs))
        return average(image, network, plan, **kwargs)

    monkeypatch.setattr(session._window, "average", narrow)
    with pytest.raises(MemoryLimitError, match="allow_smaller_windows=True"):
        session.segment(write_phantom(), attention=True)
    monkeypatch.setattr(session, "_allow_smaller_windows", True)
    found = session.segment(write_phantom(), attention=True)
    assert found.record["warnings"][0].startswith("attention maps: memory was short: windows of ")
    assert whole.record["windows"]["run"] == 1
    assert run[0] > 1
    assert "smaller ones are tried" in caplog.text
    assert found.record["windows"] == whole.record["windows"]  # those of the mask
    np.testing.assert_array_equal(found.mask, whole.mask)
    assert found.attention is not None
    assert found.attention["level2"].any()


def test_many_cts_give_the_maps_that_each_gives_alone(session: Segmenter, write_phantom: WritePhantom) -> None:
    cts = [write_phantom("RAS"), write_phantom("LPS", 1)]
    for ct, case in zip(cts, session.segment_all(cts, attention=True), strict=True):
        assert case.segmentation is not None
        alone = session.segment(ct, attention=True)
        for level in LEVELS:
            np.testing.assert_array_equal(case.segmentation.attention[level], alone.attention[level])


def test_the_plan_counts_maps_on_the_model_grid() -> None:
    shape, model = (512, 512, 300), (200, 200, 150)
    arguments: dict[str, Any] = {"base_bytes": 0, "limit_bytes": 8_000_000_000}
    peaks = [plan_memory(shape, model, 3_000_000, 200, CPU, maps=maps, **arguments).peak_bytes for maps in (0, 1, 3)]
    image = 4 * math.prod(model)
    assert [peak - peaks[0] for peak in peaks] == [0, image, 3 * image]


# --- the command line


@pytest.fixture
def run(run: Callable[..., tuple[int, str, str]]) -> Callable[..., tuple[int, str, str]]:
    changes = [word for name, value in ONE_SIZE.items() for word in ("--set", f"{name}={value}")]
    return lambda *arguments: run("segment", *arguments, "--precision", "fp32", *changes)


def test_paths_of_the_mask_and_then_its_maps_are_printed(
    run: Callable[..., tuple[int, str, str]], tiny_checkpoint: Path, write_phantom: WritePhantom, tmp_path: Path
) -> None:
    cts = [write_phantom("RAS"), write_phantom("LPS")]
    code, stdout, stderr = run(*cts, "-o", tmp_path / "out", "--attention", "--checkpoint", tiny_checkpoint)
    assert (code, stderr) == (0, "")
    assert stdout.splitlines() == [
        str(tmp_path / "out" / f"phantom_{orientation}_0_{kind}.nii.gz")
        for orientation in ("RAS", "LPS")
        for kind in ("seg", *(f"attention_{level}" for level in LEVELS))
    ]
    assert all(Path(line).is_file() for line in stdout.splitlines())


def test_maps_of_a_network_without_gates_are_a_usage_error(
    run: Callable[..., tuple[int, str, str]], write_phantom: WritePhantom, tmp_path: Path
) -> None:
    network = tiny(gate=None)
    recipe = make_recipe(inference_values((), ONE_SIZE) | {"network_def": network})
    save_weights(network.state_dict(), tmp_path / "model.pt", recipe=recipe)
    ungated = ("--checkpoint", tmp_path / "model.pt")
    code, stdout, stderr = run(write_phantom(), "-o", tmp_path / "out", "--attention", *ungated)
    assert (code, stdout) == (2, "")
    assert stderr.startswith("error: the network has no attention gates")
    assert stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
