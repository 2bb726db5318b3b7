"""Output formats: what an entry of the registry decides, and that one entry is all that a format needs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import PLAIN, TINY, Run

from attunet3d import Segmenter
from attunet3d.errors import ConfigError, UnsupportedImageError
from attunet3d.io.output_formats import FORMATS, OutputFormat, Save, find_formats
from attunet3d.io.slabs import StoredImage
from attunet3d.segmenter import Outputs


def refuse(image: StoredImage) -> None:
    raise UnsupportedImageError("no images to refer to")


def prepare_raw(*_: object) -> Save:
    return lambda path, mask: path.write_bytes(mask.tobytes())


@pytest.fixture
def raw(monkeypatch: pytest.MonkeyPatch) -> OutputFormat:
    entry = OutputFormat("raw", "_mask.raw", prepare_raw, mask_copies=7, library_bytes=1000)
    monkeypatch.setitem(FORMATS, "raw", entry)
    return entry


@pytest.fixture(scope="module")
def session(tiny_checkpoint: Path) -> Segmenter:
    return Segmenter(tiny_checkpoint, device="cpu", precision="fp32", **TINY, **PLAIN)


def test_an_entry_is_all_that_a_format_needs(
    raw: OutputFormat, session: Segmenter, write_phantom: Callable[..., Path], tmp_path: Path
) -> None:
    result = session.segment(write_phantom(), tmp_path, name="case", output_format="raw")
    assert {path.name for path in tmp_path.iterdir()} == {"case_mask.raw", "case_seg.json"}
    assert (tmp_path / "case_mask.raw").read_bytes() == result.mask.tobytes()
    record = json.loads((tmp_path / "case_seg.json").read_text())
    assert (record["output"], record["output_format"]) == ("case_mask.raw", "raw")
    # The next result of another format replaces it.
    session.segment(write_phantom(), tmp_path, name="case")
    assert {path.name for path in tmp_path.iterdir()} == {"case_seg.nii.gz", "case_seg.json"}


def test_several_formats_are_written_and_replaced_as_one(
    raw: OutputFormat, session: Segmenter, write_phantom: Callable[..., Path], tmp_path: Path
) -> None:
    ct = write_phantom()
    both = Outputs(tmp_path, ["nifti", "raw"], qc=True)
    session.segment_read(session.reader(both).read(ct), ct, "case", both)
    files = {"case_seg.nii.gz", "case_mask.raw", "case_seg.json", "case_seg.png"}
    assert {path.name for path in tmp_path.iterdir()} == files
    session.segment(ct, tmp_path, name="case")
    assert {path.name for path in tmp_path.iterdir()} == {"case_seg.nii.gz", "case_seg.json"}


def test_the_header_of_a_ct_is_checked_before_its_voxels_are_read(
    session: Segmenter, write_phantom: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FORMATS, "strict", OutputFormat("strict", ".x", prepare_raw, check_header=refuse))
    monkeypatch.setattr("attunet3d.segmenter.reading.to_hu", None)
    for formats in ("strict", ("nifti", "strict")):
        with pytest.raises(UnsupportedImageError, match="no images to refer to"):
            session.reader(Outputs(output_format=formats)).read(write_phantom())


def test_memory_is_that_of_the_format_that_takes_most(raw: OutputFormat) -> None:
    assert Outputs().writing_bytes(10) == 10
    assert Outputs(output_format="raw").writing_bytes(10) == 7 * 10 + 1000
    assert Outputs(output_format=("nifti", "raw")).writing_bytes(10) == 7 * 10 + 1000
    assert Outputs(output_format="raw", qc=True).writing_bytes(10) > 80 * 2**20  # a figure takes more


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("tiff", rf"^output format 'tiff': unknown; there are {', '.join(FORMATS)}$"),
        (("nifti", "stl"), "'stl': unknown"),
        ((), "none given"),
        (None, "None: unknown"),
        (["nifti", 3], "3: unknown"),
        (("nifti", "nifti"), "files of one name"),
        (("dicom-seg", "dicom-seg-labelmap"), "files of one name"),
    ],
)
def test_formats_that_cannot_be_are_refused(names: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_formats(names)
    with pytest.raises(ConfigError, match=message):
        Outputs(output_format=names)


def test_a_library_that_is_not_installed_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = OutputFormat("fancy", ".x", prepare_raw, library="no_such_library", extra="fancy")
    monkeypatch.setitem(FORMATS, "fancy", entry)
    with pytest.raises(ConfigError, match=r"fancy needs no_such_library.*pip install 'attunet3d\[fancy\]'"):
        find_formats("fancy")


def test_the_registry_keys_are_names_and_the_help_lists_them(run: Run) -> None:
    assert all(name == entry.name for name, entry in FORMATS.items())
    _, out, _ = run("segment", "--help")
    assert all(name in out for name in FORMATS)
