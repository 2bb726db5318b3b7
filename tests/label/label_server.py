"""What the tests of the MONAI Label server share: the client of examples/label_loop.py, and a small network."""

from __future__ import annotations

import importlib.util
import sys

import pytest
from conftest import ROOT, TINY

MISSING = "MONAI Label is not installed here: run `make label` and .venv-label/bin/python -m pytest -m label"
if importlib.util.find_spec("monailabel") is None:
    pytest.skip(MISSING, allow_module_level=True)

sys.path.insert(0, str(ROOT / "examples"))

from label_loop import MODEL, Client, attunet3d, differing_voxels, free_port, server  # noqa: E402

__all__ = ["MODEL", "TINY_ARGUMENTS", "TRAINING", "Client", "attunet3d", "differing_voxels", "free_port", "server"]

TINY_ARGUMENTS = [word for name, value in TINY.items() for word in ("--set", f"{name}={value}")]
TINY_ARGUMENTS += ["--set", "threshold=0.5"]
TRAINING = ["--set", "patch_size=[32, 32, 32]", "--set", "val_interval=1"]
