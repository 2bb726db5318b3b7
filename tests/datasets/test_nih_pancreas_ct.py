"""NIH Pancreas-CT in its own layout: DICOM with labels in reverse order, whose headers do not match."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import SHARED_DATA, needs_data
from dicom_files import write_series

from attunet3d import cli
from attunet3d.datasets.nih_pancreas_ct import MIN_AGREEMENT, MIN_LEAD, edge_agreement, find_cases, place_label
from attunet3d.datasets.phantom import Phantom, make_phantom
from attunet3d.datasets.prepare import prepare
from attunet3d.errors import ConfigError, GeometryError, InputNotFoundError
from attunet3d.io import Volume, read_ct, read_label

# As in the collection: voxel sizes, no place in the patient.
HEADER = np.diag([0.8, 0.8, 1.0, 1.0])


@pytest.fixture(scope="module")
def phantoms() -> dict[int, Phantom]:
    return {seed: make_phantom(seed, shape=(60, 56, 44), orientation="LPS") for seed in (1, 2, 3, 4, 5, 8, 25)}


def write_ct(folder: Path, phantom: Phantom) -> None:
    spacing = [float(mm) for mm in np.abs(np.diag(phantom.affine)[:3])]
    x, y, z = (float(mm) for mm in phantom.affine[:3, 3])
    write_series(
        folder / "1.3.6.1.4.1" / "pancreas-63502",
        phantom.image,
        origin=(-x, -y, z),
        step=(0.0, 0.0, spacing[2]),
        PixelSpacing=[f"{spacing[1]:.6f}", f"{spacing[0]:.6f}"],
    )


def write_label(path: Path, label: np.ndarray, affine: np.ndarray = HEADER) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(label, affine), path)


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {str(p): (p.read_bytes(), p.stat().st_mtime_ns) for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def raw(phantoms: dict[int, Phantom], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cases 1, 2, 3 and 5 are valid: y reversed, y and z reversed, placed by their header, y reversed."""
    root = tmp_path_factory.mktemp("nih")
    for number in (1, 2, 3, 4, 5, 6, 8, 25):
        write_ct(root / "manifest" / "Pancreas-CT" / f"PANCREAS_{number:04d}", phantoms.get(number, phantoms[1]))
    labels = root / "TCIA_pancreas_labels-02-05-2017"
    for number, axes in ((1, (1,)), (2, (1, 2)), (5, (1,)), (25, (1,))):
        write_label(labels / f"label{number:04d}.nii.gz", np.flip(phantoms[number].mask, axes))
    to_ras = nib.as_closest_canonical(nib.Nifti1Image(phantoms[3].mask, phantoms[3].affine))
    write_label(labels / "label0003.nii.gz", np.asarray(to_ras.dataobj), to_ras.affine)
    write_label(labels / "label0004.nii.gz", phantoms[4].mask[:, :, 1:])
    in_air = np.zeros_like(phantoms[8].mask)
    in_air[1:5, 1:5, 5:20] = 1
    write_label(labels / "label0008.nii.gz", in_air)
    write_label(labels / "label0070.nii.gz", phantoms[1].mask)
    write_label(labels / "label0071.nii.gz", phantoms[1].mask)
    (labels / "._label0001.nii.gz").write_bytes(b"AppleDouble")
    return root


@pytest.fixture(scope="module")
def prepared(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[str, str]]]:
    """The datalist, and what was reported."""
    output, said = tmp_path_factory.mktemp("out") / "nih.json", []
    before = snapshot(raw)
    done = prepare(find_cases(raw, output), output, folds=2, report=lambda kind, text: said.append((kind, text)))
    assert (done.accepted, done.refused, done.left_out) == (4, 4, 2)
    assert snapshot(raw) == before, "the raw data have changed"
    return output, said


def test_labels_match_the_pancreas(
    raw: Path, phantoms: dict[int, Phantom], prepared: tuple[Path, list[tuple[str, str]]]
) -> None:
    output, _ = prepared
    cases = json.loads(output.read_text())["training"]
    assert [Path(case["image"]).name for case in cases] == [f"PANCREAS_{k:04d}" for k in (1, 2, 3, 5)]
    for number, case in zip((1, 2, 3, 5), cases, strict=True):
        assert case["image"] == f"manifest/Pancreas-CT/PANCREAS_{number:04d}"
        ct, ct_affine = read_ct(raw / case["image"])
        label, affine = read_label(raw / case["label"])
        truth = phantoms[number]
        np.testing.assert_array_equal(ct, truth.image)
        if number == 3:  # its own header is right: it is used as it is, on axes of its own
            assert case["label"] == "TCIA_pancreas_labels-02-05-2017/label0003.nii.gz"
        else:
            assert case["label"] == str(output.parent / "nih_labels" / f"label{number:04d}.nii.gz")
            np.testing.assert_array_equal(label, truth.mask)
            np.testing.assert_allclose(affine, ct_affine, atol=1e-4)
        # In the patient: every voxel of the label is one of the phantom's mask, whatever the axes.
        points = np.argwhere(label) @ affine[:3, :3].T + affine[:3, 3]
        index = np.rint((points - truth.affine[:3, 3]) @ np.linalg.inv(truth.affine[:3, :3]).T).astype(int)
        assert truth.mask[tuple(index.T)].all()
        assert len(points) == truth.mask.sum()
    assert sorted(p.name for p in (output.parent / "nih_labels").iterdir()) == [
        f"label{k:04d}.nii.gz" for k in (1, 2, 5)
    ]
    assert sorted(p.name for p in output.parent.iterdir()) == ["nih.json", "nih_labels"]


def test_each_unused_case_has_a_reason(prepared: tuple[Path, list[tuple[str, str]]]) -> None:
    _, said = prepared
    reasons = {text.partition(": ")[0]: (kind, text) for kind, text in said}
    assert sorted(reasons) == [f"PANCREAS_{k:04d}" for k in (4, 6, 8, 25, 70, 71)]
    for number, kind, found in (
        (4, "refused", "60 x 56 x 44 voxels"),
        (6, "refused", "has no label"),
        (8, "refused", "label0008.nii.gz: in no orientation"),
        (25, "left out", "same scan as case 2"),
        (70, "left out", "same scan as case 2"),
        (71, "refused", "label0071.nii.gz: has no matching CT"),
    ):
        assert reasons[f"PANCREAS_{number:04d}"][0] == kind
        assert found in reasons[f"PANCREAS_{number:04d}"][1]


def test_preparing_twice_gives_the_same_bytes(
    raw: Path, prepared: tuple[Path, list[tuple[str, str]]], tmp_path: Path
) -> None:
    output, _ = prepared
    before = snapshot(output.parent)
    prepare(find_cases(raw, output), output, folds=2)
    assert {name: data for name, (data, _) in snapshot(output.parent).items()} == {
        name: data for name, (data, _) in before.items()
    }


def test_corrected_labels_in_the_raw_folder_are_not_raw_data(phantoms: dict[int, Phantom], tmp_path: Path) -> None:
    for number in (1, 2):
        write_ct(tmp_path / f"PANCREAS_{number:04d}", phantoms[number])
        write_label(tmp_path / f"label{number:04d}.nii.gz", np.flip(phantoms[number].mask, 1))
    output = tmp_path / "datalist.json"
    for _ in range(2):
        assert prepare(find_cases(tmp_path, output), output, folds=2).refused == 0
        labels = [case["label"] for case in json.loads(output.read_text())["training"]]
        assert labels == ["datalist_labels/label0001.nii.gz", "datalist_labels/label0002.nii.gz"]
    # For another datalist they would be.
    refused = find_cases(tmp_path, tmp_path / "other.json").refused
    assert [name for name, _ in refused] == ["PANCREAS_0001", "PANCREAS_0002"]
    assert "datalist_labels/label0001.nii.gz; move one away" in refused[0][1]
    assert not find_cases(tmp_path, tmp_path / "other.json", tmp_path / "datalist_labels").refused


def test_labels_elsewhere_through_the_command_line(
    phantoms: dict[int, Phantom], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raw, labels, output = tmp_path / "raw", tmp_path / "labels", tmp_path / "out" / "nih.json"
    for number in (1, 2, 25):
        write_ct(raw / f"PANCREAS_{number:04d}", phantoms[number])
        write_label(labels / f"label{number:04d}.nii.gz", np.flip(phantoms[number].mask, 1))
    arguments = ("prepare", "nih-pancreas-ct", raw, "--labels", labels, "-o", output, "--folds", 2)
    monkeypatch.setattr(sys, "argv", ["attunet3d", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code, "a case that is always left out is no failure"
    captured = capsys.readouterr()
    assert captured.out == f"{output}\n"
    assert captured.err.splitlines() == [
        "left out: PANCREAS_0025: the same scan as case 2, cropped slightly differently",
        "2 cases accepted, 0 refused, 1 left out, 2 folds of 1",
    ]


def test_a_folder_that_is_another_data_set(raw: Path, tmp_path: Path) -> None:
    for root, labels, found in ((tmp_path, None, "PANCREAS_0001"), (raw, tmp_path, "label0001")):
        with pytest.raises(InputNotFoundError, match=found):
            find_cases(root, tmp_path / "out.json", labels)


def test_a_header_that_contradicts_the_ct(phantoms: dict[int, Phantom]) -> None:
    truth = phantoms[2]
    ct = Volume(truth.image, truth.affine, {})
    label, placed = place_label(ct, truth.mask, truth.affine, "label0002.nii.gz")
    assert placed
    np.testing.assert_array_equal(label, truth.mask)
    label, placed = place_label(ct, np.flip(truth.mask, 1), truth.affine, "label0002.nii.gz")
    assert not placed
    np.testing.assert_array_equal(label, truth.mask)
    # No edges at all: nothing contradicts the header, and without one nothing helps.
    flat = Volume(np.full_like(truth.image, 40), truth.affine, {})
    assert place_label(flat, truth.mask, truth.affine, "label0002.nii.gz")[1]
    with pytest.raises(GeometryError, match=r"y reversed 0\.00, as stored 0\.00"):
        place_label(flat, truth.mask, HEADER, "label0002.nii.gz")


def test_edge_agreement_of_a_bright_cube() -> None:
    hu = np.full((20, 20, 20), -100, np.int16)
    hu[6:14, 6:14, 6:14] = 100
    mask = hu > 0
    assert edge_agreement(hu, mask) == 1.0
    assert edge_agreement(-hu, mask) == -1.0
    assert edge_agreement(np.zeros_like(hu), mask) == 0.0
    noise = np.random.default_rng(0).normal(0, 50, hu.shape).astype(np.int16)
    assert abs(edge_agreement(noise, mask)) < 0.1
    # Everything round the cube, out to where it ends in fat: its inner surface is the wrong way, its outer one does
    # not show.
    shell = np.zeros_like(mask)
    shell[2:18, 2:18, 2:18] = True
    assert edge_agreement(hu, shell & ~mask) == -1.0
    # Bone and air outside count no more than vessels and fat would.
    assert edge_agreement(np.where(hu < 0, -1000, hu).astype(np.int16), mask) == 1.0


def test_labels_are_only_written_with_a_datalist(raw: Path, tmp_path: Path) -> None:
    output = tmp_path / "nih.json"
    with pytest.raises(ConfigError, match="5 folds of 4 cases"):
        prepare(find_cases(raw, output), output, folds=5)

    def interrupt(done: int, total: int, name: str) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(find_cases(raw, output), output, folds=2, progress=interrupt)
    assert not list(tmp_path.iterdir())


@needs_data
@pytest.mark.parametrize(
    ("ct", "label", "value"),
    [
        ("lidc0001/dicom", "lidc0001/totalsegmentator_organs.nii.gz", 7),
        ("ts_example_3mm/ct.nii.gz", "ts_example_3mm/pancreas.nii.gz", 1),
    ],
)
def test_edges_of_real_cts_tell_the_orientations_apart(ct: str, label: str, value: int) -> None:
    from attunet3d.metrics.masks import place_on

    hu, affine = read_ct(SHARED_DATA / ct)
    organs, label_affine = read_label(SHARED_DATA / label)
    mask = place_on(organs, label_affine, hu.shape, affine, "both") == value
    right = edge_agreement(hu, mask)
    wrong = max(edge_agreement(hu, np.flip(mask, axes)) for axes in ((1,), (2,), (1, 2)))
    assert right > 2 * MIN_AGREEMENT
    assert right > wrong + 3 * MIN_LEAD
