"""CTs for label maps that have none: the CT of another patient, bent to the labelled organs.

    python examples/label_maps.py OUT --donors DATA/datalist.json --labels LABEL...

The donors are the "training" cases of the datalist; both sides use the same label values. For each label map the donor
is taken whose organs lie most alike: centroids are matched by a scale per axis and a shift, and the donor's CT is
resampled onto the label map. Where its organs then stick out, the nearest other tissue is filled in; each organ of the
label map is filled with its own tissue of the donor. Shape, size and arrangement of the organs are real, and so is
nearly all texture; boundaries are smoothed. Written are <name>_ct.nii.gz (int16 HU) and <name>_label.nii.gz, for the
"training" section of a datalist: use no donor, and no label map, of a patient that validates.

Related: SynthSeg (Billot et al., Medical Image Analysis 86, 2023) draws such images from label maps alone; CarveMix
(Zhang et al., MICCAI 2021) pastes labelled regions of one patient into another.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from attunet3d.datasets.sections import load_cases
from attunet3d.io import case_name, read_ct, read_label, write_mask
from attunet3d.io.writer import atomic_path, make_folder
from attunet3d.transforms.resample import AIR_HU

FEWEST_ORGANS = 5  # in common, for a match of their arrangement
SCALES = (0.75, 1.33)  # most that a donor is shrunk or stretched along an axis
NOISE_HU, NOISE_VOXELS = 18.0, 0.7  # on tissue that is filled in, so that it is not streaked
EDGE_VOXELS = 0.6  # standard deviation of the smoothing across new boundaries
SOLID_VOXELS = 2000  # of organs above this size, tissue is taken from inside their surface

Donor = tuple[dict[str, str], dict[int, np.ndarray]]  # a case, and the centroids of its organs


def centroids(label: np.ndarray, affine: np.ndarray) -> dict[int, np.ndarray]:
    """Return the centroid of each labelled organ, RAS+ mm."""
    return {
        int(value): nib.affines.apply_affine(affine, np.array(ndimage.center_of_mass(label == value)))
        for value in np.unique(label)
        if value
    }


def match(organs: dict[int, np.ndarray], donor: dict[int, np.ndarray]) -> tuple[float, np.ndarray] | None:
    """Map points of a patient to a donor by the centroids of their organs.

    Returns:
        Root mean square distance of the centroids after the match, mm, and the affine (4, 4), mm to mm; None if they
        have too few organs in common.
    """
    common = sorted(organs.keys() & donor.keys())
    if len(common) < FEWEST_ORGANS:
        return None
    here, there = (np.array([points[value] for value in common]) for points in (organs, donor))
    from_mean, to_mean = here - here.mean(axis=0), there - there.mean(axis=0)
    scale = np.clip((from_mean * to_mean).sum(axis=0) / (from_mean**2).sum(axis=0), *SCALES)
    error = float(np.sqrt(((from_mean * scale - to_mean) ** 2).sum(axis=1).mean()))
    affine = np.diag([*scale, 1.0])
    affine[:3, 3] = there.mean(axis=0) - scale * here.mean(axis=0)
    return error, affine


def nearest(mask: np.ndarray, values: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Return for each voxel the value at the nearest voxel of a mask."""
    where = ndimage.distance_transform_edt(~mask, sampling=spacing, return_distances=False, return_indices=True)
    found: np.ndarray = values[tuple(where)]
    return found


def fill(ct: np.ndarray, donor: np.ndarray, label: np.ndarray, spacing: np.ndarray, seed: int) -> np.ndarray:
    """Give each organ of a label map the tissue of a donor, and what was the donor's organ alone other tissue.

    Args:
        ct: donor's CT, HU, float32 (X, Y, Z), on the voxels of ``label``.
        donor: its label map there.
        label: the label map.
        spacing: mm.
        seed: of the noise.

    Returns:
        float32 HU (X, Y, Z).
    """
    noise = np.random.default_rng(seed).standard_normal(label.shape, dtype=np.float32)
    noise = ndimage.gaussian_filter(noise, NOISE_VOXELS) * NOISE_HU
    around = ndimage.binary_dilation(donor > 0)
    exposed = around & (label == 0)
    new = np.where(exposed, nearest(~around, ct, spacing) + noise, ct)
    for value in np.unique(label[label > 0]):
        organ, tissue = label == value, donor == value
        if tissue.sum() > SOLID_VOXELS:
            tissue = ndimage.binary_erosion(tissue)
        if tissue.any():
            moved = organ & ~tissue
            new[organ] = ct[organ]
            new[moved] = (nearest(tissue, ct, spacing) + noise)[moved]
        else:
            new[organ] = 60 + noise[organ]  # soft tissue in the portal-venous phase
    changed = exposed | (label != donor)
    edge = ndimage.binary_dilation(changed) & ~ndimage.binary_erosion(changed)
    new[edge] = ndimage.gaussian_filter(new, EDGE_VOXELS)[edge]
    return np.asarray(new, np.float32)


def synthesize(path: Path, donors: list[Donor], output: Path, seed: int) -> str:
    """Write a CT for one label map; describe it in a line."""
    label, affine = read_label(path)
    organs = centroids(label, affine)
    found = []
    for case, donor_organs in donors:
        matched = match(organs, donor_organs)
        if matched is not None:
            found.append((matched[0], case, matched[1]))
    if not found:
        return f"{path.name}: no donor has {FEWEST_ORGANS} of its organs; left out"
    error, case, to_donor = min(found, key=lambda entry: entry[0])
    (ct, ct_affine), (donor, _) = read_ct(case["image"]), read_label(case["label"])
    matrix = np.linalg.inv(ct_affine) @ to_donor @ affine
    grid = {"matrix": matrix[:3, :3], "offset": matrix[:3, 3], "output_shape": label.shape}
    there = ndimage.affine_transform(ct.astype(np.float32), order=1, cval=AIR_HU, **grid)
    donor = ndimage.affine_transform(donor, order=0, **grid)
    inside = ndimage.affine_transform(np.ones(ct.shape, np.uint8), order=0, **grid) > 0
    new = fill(there, donor, label, nib.affines.voxel_sizes(affine), seed)
    # Only the slices that the donor's CT has.
    slices = np.flatnonzero(inside.any(axis=(0, 1)))
    part = slice(int(slices[0]), int(slices[-1]) + 1)
    shifted = affine.copy()
    shifted[:3, 3] = nib.affines.apply_affine(affine, [0, 0, part.start])
    name = case_name(path)
    with atomic_path(output / f"{name}_ct.nii.gz") as temporary:
        nib.save(nib.Nifti1Image(np.rint(new[:, :, part]).astype(np.int16), shifted), temporary)
    write_mask(output / f"{name}_label.nii.gz", np.ascontiguousarray(label[:, :, part]), shifted)
    return f"{path.name}: from {Path(case['image']).name}, organs {error:.0f} mm apart on average"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--donors", type=Path, required=True, metavar="DATALIST")
    parser.add_argument("--labels", type=Path, nargs="+", required=True, metavar="LABEL")
    arguments = parser.parse_args()
    output = make_folder(arguments.output)
    donors = load_cases(arguments.donors, arguments.donors.parent, "training")
    unique = {case["image"]: case for case in donors}.values()
    matchable = [(case, centroids(*read_label(case["label"]))) for case in unique]
    for seed, path in enumerate(arguments.labels):
        print(synthesize(path, matchable, output, seed), flush=True)


if __name__ == "__main__":
    main()
