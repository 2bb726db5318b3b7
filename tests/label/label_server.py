"""What the tests of the MONAI Label server share: the client of examples/label_loop.py, and a small network."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
from conftest import ROOT, TINY

from attunet3d.datasets.phantom import write_phantoms

MISSING = "MONAI Label is not installed here: run `make label` and .venv-label/bin/python -m pytest -m label"
if importlib.util.find_spec("monailabel") is None:
    pytest.skip(MISSING, allow_module_level=True)

sys.path.insert(0, str(ROOT / "examples"))

from label_loop import MODEL, Client, attunet3d, differing_voxels, free_port, server  # noqa: E402

__all__ = [
    "CASES",
    "MODEL",
    "TINY_ARGUMENTS",
    "TRAINING",
    "Client",
    "attunet3d",
    "differing_voxels",
    "free_port",
    "server",
    "write_cases",
]

CASES = [f"phantom_{number:04d}" for number in range(6)]
ONE_SIZE = {**TINY, "scales": [1.0]}
TINY_ARGUMENTS = [word for name, value in ONE_SIZE.items() for word in ("--set", f"{name}={value}")]
TINY_ARGUMENTS += ["--set", "threshold=0.5"]
TRAINING = ["--set", "patch_size=[32, 32, 32]", "--set", "val_interval=1"]


def write_cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of CASES, as a server may change them: images and labels."""
    folder = tmp_path_factory.mktemp("phantoms")
    write_phantoms(folder, len(CASES), seed=1, spacing=(6.0, 6.0, 6.0))
    return folder
