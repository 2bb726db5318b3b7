"""Shared fixtures: phantoms on several grids, and a small network with random weights."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

sys.path[:0] = [str(Path(__file__).parent / folder) for folder in ("io", "io/dicom")]

ROOT = Path(__file__).resolve().parents[1]
SHARED_DATA = ROOT.parent / "shared" / "data"
needs_data = pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="the real CTs are not beside this checkout")

# Small enough for seconds on one core; every level and gate of the real network is there.
TINY = {
    "channels": [4, 4, 8, 8, 8],
    "spacing": [6.0, 6.0, 6.0],
    "roi_size": [32, 32, 32],
}
# Inference as of weights from many cases, and of `tiny_checkpoint`; the bundle's own weights are from few.
PLAIN = {"scales": [1.0], "threshold": 0.5, "keep_components": 1.0}
# Seconds after which a test gives up on another process or thread: for one that hangs, never for one that is slow.
HANG = 1800.0
# The same examples in every run, and none that is too slow.
settings.register_profile(
    "attunet3d", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("attunet3d")


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _ample_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What other programs leave of the machine's memory decides over windows and refusals, but over no test."""
    monkeypatch.setattr("attunet3d.segmenter.memory_plan.available_bytes", lambda: None)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The program in this process: ``run("segment", ...)`` gives exit code, stdout and stderr."""
    from attunet3d import cli

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["attunet3d", *map(str, arguments)])
        # Rich would fold long lines at the width of a terminal that is not there.
        monkeypatch.setenv("COLUMNS", "200")
        code: object = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code
        captured = capsys.readouterr()
        return int(code or 0), captured.out, captured.err  # type: ignore[call-overload]

    return call


@pytest.fixture
def run_for_lines(run: Run) -> Callable[..., tuple[int, str, list[str]]]:
    """As ``run``, with stderr as lines: what a command says of many cases."""

    def call(*arguments: object) -> tuple[int, str, list[str]]:
        code, stdout, stderr = run(*arguments)
        return code, stdout, stderr.splitlines()

    return call


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of the TINY network with a recipe; it marks some tissue as pancreas, all that geometry needs."""
    from attunet3d import AttentionUNet
    from attunet3d.checkpoint import saved
    from attunet3d.config.changes import inference_values
    from attunet3d.config.recipe import make_recipe

    torch.manual_seed(3)
    net = AttentionUNet(channels=TINY["channels"])
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    path.write_bytes(saved(net.state_dict(), make_recipe(inference_values((), TINY | PLAIN))))
    return path


@pytest.fixture(scope="session")
def bare_checkpoint(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights as torch writes them, without a recipe."""
    path = tmp_path_factory.mktemp("bare") / "bare.pt"
    torch.save(torch.load(tiny_checkpoint, weights_only=True), path)
    return path


@pytest.fixture(scope="session")
def write_phantom(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """write_phantom(orientation="LPS", seed=0) -> path of a small phantom CT as NIfTI; its mask lies beside it."""
    from attunet3d.datasets.phantom import make_phantom

    folder = tmp_path_factory.mktemp("phantoms")

    def write(orientation: str = "RAS", seed: int = 0) -> Path:
        path = folder / f"phantom_{orientation}_{seed}.nii.gz"
        if not path.exists():
            phantom = make_phantom(seed, shape=(60, 56, 44), orientation=orientation)
            _save(phantom.mask, phantom.affine, folder / f"phantom_{orientation}_{seed}_label.nii.gz")
            _save(phantom.image, phantom.affine, path)
        return path

    return write


def _save(array: np.ndarray, affine: np.ndarray, path: Path) -> None:
    nib.save(nib.Nifti1Image(array, affine), path)
