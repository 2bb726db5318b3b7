"""What is installed from the wheel: everything that is needed to segment, and nothing else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

from conftest import ROOT, TINY

import attunet3d


def test_documents_are_complete() -> None:
    """Links between our own files lead somewhere, and no figure is left to be filled in."""
    for page in (ROOT / "README.md", *ROOT.glob("bundles/*/docs/*.md")):
        text = page.read_text()
        assert not re.search(r"@[A-Z]+@|TODO", text), page
        for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", text):
            assert (page.parent / target).exists(), (page, target)


def test_public_names_exist() -> None:
    for name in attunet3d.__all__:
        assert getattr(attunet3d, name) is not None
        assert name in dir(attunet3d)


def test_import_is_light() -> None:
    code = "import sys, attunet3d; assert not {'torch', 'monai', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_wheel_alone_is_enough_to_segment(
    tmp_path: Path, tiny_checkpoint: Path, write_phantom: Callable[..., Path]
) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    names = {p.name for p in installed.iterdir()}
    assert names == {"attunet3d", f"attunet3d-{attunet3d.__version__}.dist-info"}
    code = (
        "import sys, attunet3d; from pathlib import Path; from attunet3d import cli;"
        f"assert attunet3d.__file__.startswith({str(installed)!r}), attunet3d.__file__;"
        f"assert str(attunet3d.bundle_root()).startswith({str(installed)!r}), attunet3d.bundle_root();"
        "assert (attunet3d.bundle_root() / 'models' / 'model.pt').is_file(); cli.main()"
    )
    options = [part for name, value in TINY.items() for part in ("--set", f"{name}={value}")]
    done = subprocess.run(
        [sys.executable, "-c", code, "segment", write_phantom(), "-o", tmp_path / "out", "-c", "phantom",
         "--checkpoint", tiny_checkpoint, *options],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "out" / "phantom_RAS_0_seg.nii.gz")
