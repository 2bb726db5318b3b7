"""Values of a CT: valid ones of all kinds, and values that only look like HU by their extremes."""

from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from conftest import SHARED_DATA as DATA
from conftest import needs_data
from dicom_files import write_series
from scipy import ndimage

from attunet3d.datasets.phantom import make_phantom
from attunet3d.errors import UnsupportedImageError
from attunet3d.io import CTReader, read_volume
from attunet3d.io.slabs import StoredImage, to_hu

Change = Callable[[np.ndarray], np.ndarray]


@pytest.fixture(scope="module")
def ct() -> np.ndarray:
    """HU of a phantom with noise, float64 (X, Y, Z): air around, lungs, fat, organs with contrast medium, bone."""
    return make_phantom(3, shape=(60, 56, 44)).image.astype(np.float64)


def doubts(array: np.ndarray) -> list[str]:
    """The warnings on reading an array as a CT."""
    slabs = (array[:, :, k] for k in range(array.shape[2]))
    image = StoredImage(Path("ct.nii"), array.shape, np.eye(4), {"warnings": []}, slabs)
    to_hu(image)
    return image.metadata["warnings"]


def padded(array: np.ndarray, value: float) -> np.ndarray:
    """With a constant outside the circle of reconstruction."""
    x, y = np.ogrid[-1 : 1 : array.shape[0] * 1j, -1 : 1 : array.shape[1] * 1j]
    return np.where((x * x + y * y > 1)[..., None], value, array)


def stored(hu: np.ndarray) -> np.ndarray:
    """Pixels before the rescale by -1024."""
    return np.maximum(hu, -1024) + 1024


def scaled(hu: np.ndarray, low: float, high: float, top: float) -> np.ndarray:
    """Scale a window from ``low`` to ``high`` to 0 to ``top``."""
    return np.clip((hu - low) / (high - low), 0, 1) * top


def noisy(hu: np.ndarray, sigma: float) -> np.ndarray:
    return hu + np.random.default_rng(0).normal(0, sigma, hu.shape)


def z_scores(hu: np.ndarray) -> np.ndarray:
    return (hu - hu.mean()) / hu.std()


def spline(array: np.ndarray) -> np.ndarray:
    return ndimage.zoom(array.astype(np.float32), 0.8, order=3)


def with_metal(hu: np.ndarray) -> np.ndarray:
    hu = hu.copy()
    hu[30:33, 28:31, 20:23] = 30000
    hu[33:35, 28:31, 20:23] = -1500
    return hu


def body_alone(hu: np.ndarray, outside: float) -> np.ndarray:
    """With the table and the air around cut away."""
    body = ndimage.binary_opening(ndimage.gaussian_filter(hu, 2) > -300, iterations=2)
    return np.where(body, hu, outside)


GOOD: dict[str, Change] = {
    "as it is": lambda hu: hu,
    "air at -1000 at least": lambda hu: np.maximum(hu, -1000),
    "spline": spline,
    "metal": with_metal,
    "noise of 60 HU": lambda hu: noisy(hu, 60),
    "noise of 100 HU": lambda hu: noisy(hu, 100),
    "body alone in -1024": lambda hu: body_alone(hu, -1024),
    "body alone in 0": lambda hu: body_alone(hu, 0),
    "crop of the pancreas": lambda hu: hu[20:40, 20:40, 14:30],
    "small crop": lambda hu: hu[26:34, 24:32, 18:26],
    "corner": lambda hu: hu[:20, :28],
    "wide field": lambda hu: np.pad(hu, ((150, 150), (150, 150), (0, 0)), constant_values=-1000),
    "steps of 2": lambda hu: 2 * np.rint(hu / 2),
    "native": lambda hu: np.where(hu > 60, 60 + (hu - 60) / 4, hu),
    "much fat": lambda hu: np.where((hu > -60) & (hu < 80), noisy(hu * 0 - 100, 15), hu),
    "no fat": lambda hu: np.where((hu > -150) & (hu < -50), noisy(hu * 0 + 40, 15), hu),
    "water in air": lambda hu: np.where(hu > -500, 0, -1000),
    "noisy water in air": lambda hu: noisy(np.where(hu > -500, 0, -1000), 10),
}
GOOD |= {f"padding of {p}": lambda hu, p=p: padded(hu, p) for p in (-1024, -2000, -2048, -3024, -32768, 0)}  # type: ignore[misc]


@pytest.mark.parametrize("change", GOOD)
def test_valid_cts_are_read_without_warnings(ct: np.ndarray, change: str) -> None:
    assert doubts(GOOD[change](ct)) == []


@pytest.mark.parametrize(
    "window", [(-125, 275), (-160, 240), (-175, 250), (-150, 250), (-200, 300), (-100, 240), (-500, 500), (-1000, 400)]
)
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_clipped_hu_are_a_fact(ct: np.ndarray, window: tuple[int, int], dtype: type) -> None:
    assert doubts(np.clip(ct, *window).astype(dtype)) == [f"HU are clipped to [{window[0]}, {window[1]}]"]


def test_hu_clipped_at_one_end(ct: np.ndarray) -> None:
    assert doubts(np.maximum(ct, -200)) == ["HU are clipped to at least -200"]
    assert doubts(np.minimum(noisy(ct, 30), 300)) == ["HU are clipped to at most 300"]
    assert doubts(np.clip(np.where(ct > 300, 3 * ct, ct), -1024, 1024)) == ["HU are clipped to [-1024, 1024]"]
    assert doubts(spline(np.clip(ct, -125, 275))) == ["HU are clipped to at least -125"], "it rings beyond"


PLUS = r"looks like HU \+ 1024 \(or 1000\), without the rescale: subtract 1024"
MINUS = r"looks like HU - 1024 \(or 1000\), as rescaled twice: add 1024"
NORMALISED = "looks like a normalised image"
INVERTED = "looks like an inverted CT"

BAD: dict[str, tuple[Change, str]] = {
    "stored": (stored, PLUS),
    "+ 1000": (lambda hu: hu + 1000, PLUS),
    "+ 1024 with undershoot": (lambda hu: spline(stored(hu)), PLUS),
    "+ 1024 with noise": (lambda hu: noisy(hu + 1024, 25), PLUS),
    "+ 1024, clipped": (lambda hu: stored(np.clip(hu, -125, 275)), PLUS),
    "+ 1024 without air": (lambda hu: stored(hu)[20:40, 20:40, 14:30], PLUS),
    "+ 8192": (lambda hu: hu + 8192, r"HU \+ 8192, .*subtract 8192"),
    "+ 8192 in -2000": (lambda hu: padded(hu + 8192, -2000), r"HU \+ 8192"),
    "+ 8192 in -1000": (lambda hu: padded(hu + 8192, -1000), r"HU \+ 8192"),
    "+ 32768": (lambda hu: hu + 32768, r"HU \+ 32768"),
    "- 1000": (lambda hu: hu - 1000, MINUS),
    "rescaled twice": (lambda hu: np.maximum(hu, -1024) - 1024, MINUS),
    "rescaled twice in -3024": (lambda hu: padded(hu - 1024, -3024), MINUS),
    "rescaled twice in 0": (lambda hu: padded(hu - 1024, 0), MINUS),
    "rescaled twice, with metal": (lambda hu: with_metal(hu) - 1024, MINUS),
    "[0, 1]": (lambda hu: scaled(hu, -1000, 1000, 1), NORMALISED),
    "[0, 1] in -1000": (lambda hu: padded(scaled(hu, -1000, 1000, 1), -1000), NORMALISED),
    "[0, 1] in -2000": (lambda hu: padded(scaled(hu, -160, 240, 1), -2000), NORMALISED),
    "[-1, 1]": (lambda hu: 2 * scaled(hu, -160, 240, 1) - 1, NORMALISED),
    "z-scores": (z_scores, NORMALISED),
    "z-scores in -1024": (lambda hu: padded(z_scores(hu), -1024), NORMALISED),
    "0 to 255": (lambda hu: np.rint(scaled(hu, -160, 240, 255)), "8-bit picture"),
    "0 to 255 in -1000": (lambda hu: padded(np.rint(scaled(hu, -160, 240, 255)), -1000), "8-bit picture"),
    "percent": (lambda hu: scaled(hu, -1000, 1000, 100), "no value is as low as fat or air"),
    "0 to 4095": (lambda hu: scaled(hu, hu.min(), hu.max(), 4095), "no value is as low as fat or air"),
    "HU / 10": (lambda hu: hu / 10, "looks like HU / 1"),
    "whole HU / 10": (lambda hu: np.rint(hu / 10), "looks like HU / 1"),
    "HU / 4": (lambda hu: hu / 4, "looks like HU / 4, with air at -2[45]"),
    "HU / 2": (lambda hu: hu / 2, "looks like HU / 2"),
    "HU * 2": (lambda hu: hu * 2, "54% lie below -1250, below air"),
    "HU * 10": (lambda hu: hu * 10, "lie below -1250"),
    "1/cm": (lambda hu: 0.19 * (1 + hu / 1000), NORMALISED),
    "1/m": (lambda hu: 19.5 * (1 + hu / 1000), "no value is as low as fat or air"),
    "-HU": (lambda hu: -hu, INVERTED),
    "-HU of a window": (lambda hu: -np.clip(hu, -125, 275), INVERTED),
    "inverted between its ends": (lambda hu: hu.max() + hu.min() - hu, INVERTED),
    "255 - x": (lambda hu: 255 - np.rint(scaled(hu, -160, 240, 255)), "no value is as low as fat or air"),
    "MR": (lambda hu: np.abs(noisy(hu / 4 + 260, 20)), "MR and PET are not supported"),
    "PET": (lambda hu: np.maximum(noisy(hu * 0, 0.3), 0), "this looks like"),
    "air alone": (lambda hu: noisy(hu * 0 - 1000, 20), "no value is as high as soft tissue"),
}
BAD |= {f"stored in {p}": (lambda hu, p=p: padded(stored(hu), p), PLUS) for p in (-1000, -1024, -2000, -32768, 0)}  # type: ignore[misc]


@pytest.mark.parametrize("change", BAD)
def test_what_is_not_in_hu_is_refused_with_what_it_looks_like(ct: np.ndarray, change: str) -> None:
    build, match = BAD[change]
    with pytest.raises(UnsupportedImageError, match=match) as refused:
        doubts(build(ct))
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400


DOUBTFUL: dict[str, tuple[Change, str]] = {
    "padding that rings": (lambda hu: spline(padded(hu, -2000)), "lie below -1250"),
    "organs alone": (lambda hu: np.where((hu > 40) & (hu < 140), hu, -1024), "no value is as low as fat or air"),
}


@pytest.mark.parametrize("change", DOUBTFUL)
def test_what_may_be_hu_is_read_with_a_warning(ct: np.ndarray, change: str) -> None:
    build, said = DOUBTFUL[change]
    assert said in doubts(build(ct))[0]


def _written(folder: Path, kind: str, array: np.ndarray) -> Path:
    path = folder / f"ct.{kind}"
    if kind == "dicom":
        write_series(path, array, intercept=0)
    elif kind.startswith("nii"):
        nib.save(nib.Nifti1Image(array, np.diag([5.0, 5, 5, 1])), path)
    else:
        image = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
        image.SetSpacing((5, 5, 5))
        sitk.WriteImage(image, str(path))
    return path


@pytest.mark.parametrize("kind", ["nii", "nrrd", "mha", "dicom"])
def test_all_formats_alike(tmp_path: Path, ct: np.ndarray, kind: str) -> None:
    good = np.clip(ct, -160, 240)[:, :, 20:26].astype(np.int16)
    assert "HU are clipped to [-160, 240]" in read_volume(_written(tmp_path, kind, good)).metadata["warnings"]
    bad = padded(stored(ct), -2000)[:, :, 20:26].astype(np.int16)
    with pytest.raises(UnsupportedImageError, match=PLUS):
        read_volume(_written(tmp_path / kind, kind, bad) if kind == "dicom" else _written(tmp_path, kind, bad))


def test_the_monai_reader_logs_warnings_once(tmp_path: Path, ct: np.ndarray, caplog: pytest.LogCaptureFixture) -> None:
    path = _written(tmp_path, "nii", np.clip(ct, -160, 240).astype(np.int16))
    reader = CTReader()
    for _ in range(3):
        reader.get_data(reader.read(path))
    assert [r.getMessage() for r in caplog.records] == [f"{path}: HU are clipped to [-160, 240]"]


def _real_cts() -> Iterator[Path]:
    yield from (DATA / "lidc0001" / "dicom", DATA / "ts_example_3mm" / "ct.nii.gz")
    yield from sorted((DATA / "patients").glob("unlabelled_*"))
    yield from sorted((DATA / "patients").glob("*_ct.nii.gz"))[:3]
    yield DATA / "dicom_edge" / "ge_gantry_tilt_uneven"


@needs_data
@pytest.mark.parametrize("path", list(_real_cts()), ids=lambda path: path.name)
def test_real_cts_are_read_and_refused_with_a_wrong_offset(path: Path) -> None:
    hu = read_volume(path, allow_uneven=True).array[::2, ::2, ::2].astype(np.float64)
    assert [text for text in doubts(hu) if not text.startswith("HU are clipped")] == []
    for wrong in (stored(hu), padded(stored(hu), -2000), hu - 1024, hu + 8192, z_scores(hu), -hu):
        with pytest.raises(UnsupportedImageError, match="not a CT in HU"):
            doubts(wrong)
