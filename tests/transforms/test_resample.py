"""Resampling against fields with known values, SimpleITK, and masks whose analytic form is known."""

from itertools import permutations, product

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attunet3d.datasets.phantom import ORIENTATIONS as PHANTOM_ORIENTATIONS
from attunet3d.datasets.phantom import make_phantom
from attunet3d.errors import ConfigError
from attunet3d.transforms import Grid, mask_from_logits, model_grid, resample_image, resample_label
from attunet3d.transforms.grid import aligned_axes, crop
from attunet3d.transforms.resample import _covered, _sample_general, _sample_separable, resample_slabs

FILL = -1024.0
Array = np.ndarray


def rotation(*degrees: float) -> Array:
    """About x, then y, then z."""
    total = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        turn = np.eye(3)
        a, b = [(1, 2), (2, 0), (0, 1)][axis]
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        total = turn @ total
    return total


def affine(linear: Array, offset: tuple[float, ...] = (0.0, 0.0, 0.0)) -> Array:
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = linear, offset
    return matrix


def axes_affine(order: tuple[int, ...], signs: tuple[int, ...], spacing: tuple[float, ...]) -> Array:
    """Array axis i runs along patient axis order[i], forwards or backwards."""
    linear = np.zeros((3, 3))
    for axis, (patient, sign, step) in enumerate(zip(order, signs, spacing, strict=True)):
        linear[patient, axis] = sign * step
    return affine(linear, (13.0, -7.5, 101.25))


def positions(grid: Grid) -> Array:
    """World mm of every voxel centre (*shape, 3)."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij"), axis=-1)
    return index @ grid.affine[:3, :3].T + grid.affine[:3, 3]


def index_in(grid: Grid, world: Array) -> Array:
    return np.linalg.solve(grid.affine[:3, :3], (world - grid.affine[:3, 3]).reshape(-1, 3).T).T.reshape(world.shape)


def within(grid: Grid, world: Array, margin: float) -> Array:
    """Where world lies inside the voxel centres of grid, widened by margin (voxels)."""
    index = index_in(grid, world)
    return ((index >= -margin) & (index <= np.array(grid.shape) - 1 + margin)).all(axis=-1)


def field(world: Array) -> Array:
    return world @ np.array([1.5, -2.25, 0.75]) + 40.0


def assert_field_is_reproduced(source: Grid, target: Grid) -> None:
    """The linear field inside the source's voxel centres, and the fill value outside its voxel edges."""
    found = resample_image(torch.from_numpy(field(positions(source))).float(), source, target, fill=FILL).numpy()
    world = positions(target)
    inside, outside = within(source, world, -1e-4), ~within(source, world, 0.5 + 1e-4)
    assert inside.sum() > 20
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[inside], field(world)[inside], rtol=0, atol=2e-3)
    assert (found[outside] == FILL).all()


ORIENTATIONS = [(order, signs) for order in permutations(range(3)) for signs in product((1, -1), repeat=3)]


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
def test_linear_field_in_all_48_orientations(order: tuple[int, ...], signs: tuple[int, ...]) -> None:
    source = Grid((7, 12, 9), axes_affine(order, signs, (1.0, 0.7, 2.5)))
    target = model_grid(source, (1.3, 1.1, 0.9))
    to_source = np.linalg.inv(source.affine) @ target.affine
    assert aligned_axes(to_source, target.shape) is not None
    assert_field_is_reproduced(source, target)


@settings(max_examples=40)
@given(
    orientation=st.sampled_from(ORIENTATIONS),
    spacing=st.tuples(*[st.floats(0.4, 5.0)] * 3),
    shape=st.tuples(*[st.integers(4, 11)] * 3),
    step=st.tuples(*[st.floats(0.5, 2.0)] * 3),
    shift=st.tuples(*[st.floats(-6.0, 6.0)] * 3),
    angles=st.sampled_from([(0.0, 0.0, 0.0), (0.0, 0.0, 12.0), (31.0, -14.0, 77.0)]),
)
def test_linear_field_on_any_pair_of_grids(
    orientation: tuple[tuple[int, ...], tuple[int, ...]],
    spacing: tuple[float, ...],
    shape: tuple[int, int, int],
    step: tuple[float, float, float],
    shift: tuple[float, ...],
    angles: tuple[float, ...],
) -> None:
    source = Grid(shape, affine(rotation(*angles)) @ axes_affine(*orientation, spacing))
    volume = torch.from_numpy(field(positions(source))).float()
    whole = model_grid(source, np.array(step) * np.prod(spacing) ** (1 / 3))
    moved = whole.affine.copy()
    moved[:3, 3] += shift
    target = Grid(whole.shape, moved)
    found = resample_image(volume, source, target, fill=FILL).numpy()
    world = positions(target)
    inside, outside = within(source, world, -1e-4), ~within(source, world, 0.5 + 1e-4)
    np.testing.assert_allclose(found[inside], field(world)[inside], rtol=0, atol=5e-3)
    assert (found[outside] == FILL).all()


@pytest.mark.parametrize(
    "linear",
    [
        rotation(10, -20, 30) @ np.diag([0.8, 0.8, 3.0]),
        rotation(0, 0, 45) @ np.diag([1.0, -1.2, 2.0]),
        np.array([[0.9, 0.0, 0.0], [0.0, 0.9, 0.6], [0.0, 0.0, 2.4]]),  # a tilted gantry: sheared
        rotation(5, 80, -3) @ np.array([[1.0, 0.2, -0.3], [0.0, 1.4, 0.5], [0.1, 0.0, 1.1]]),
    ],
)
def test_linear_field_on_oblique_and_sheared_grids(linear: Array) -> None:
    source = Grid((10, 9, 8), affine(linear, (-30.0, 12.0, 900.0)))
    target = model_grid(source, 1.1)
    assert aligned_axes(np.linalg.inv(source.affine) @ target.affine, target.shape) is None
    assert_field_is_reproduced(source, target)
    assert_field_is_reproduced(target, source)


def test_almost_aligned_grid_is_treated_as_aligned_where_that_moves_nothing() -> None:
    """Affines come with rounding: 1e-6 rad over 60 voxels is less than a thousandth of a voxel."""
    source = Grid((60, 60, 60), affine(rotation(1e-4, 0, 0)))
    target = model_grid(Grid(source.shape, np.eye(4)), 2.0)
    assert aligned_axes(np.linalg.inv(source.affine) @ target.affine, target.shape) == (0, 1, 2)
    assert_field_is_reproduced(source, target)
    turned = Grid(source.shape, affine(rotation(0.01, 0, 0)))  # a hundredth of a voxel: no longer
    assert aligned_axes(np.linalg.inv(turned.affine) @ target.affine, target.shape) is None
    assert_field_is_reproduced(turned, target)


def random_ct(shape: tuple[int, ...], seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(-1024, 2000, shape).astype(np.int16)


@pytest.mark.parametrize(
    ("order", "signs"), [((0, 1, 2), (1, 1, 1)), ((2, 0, 1), (-1, 1, -1)), ((1, 0, 2), (1, -1, 1))]
)
@pytest.mark.parametrize("channels", [(), (2,)])
def test_both_paths_agree(order: tuple[int, ...], signs: tuple[int, ...], channels: tuple[int, ...]) -> None:
    source = Grid((9, 6, 11), axes_affine(order, signs, (0.9, 1.7, 1.2)))
    target = Grid((14, 13, 10), affine(np.diag([1.31, 0.77, 1.5]), tuple(model_grid(source, 1).affine[:3, 3] - 1.7)))
    to_source = np.linalg.inv(source.affine) @ target.affine
    axes = aligned_axes(to_source, target.shape)
    assert axes is not None
    volume = torch.from_numpy(random_ct((*channels, *source.shape)))
    planes = slice(1, 9)
    separable = _sample_separable(volume, to_source, axes, target.shape, planes, FILL)
    general = _sample_general(volume, to_source, target.shape, planes, FILL)
    assert separable.shape == (*channels, 14, 13, 8)
    assert separable.dtype == general.dtype == torch.float32
    torch.testing.assert_close(separable, general, rtol=0, atol=1e-3)
    filled = (general == FILL).float().mean()
    assert 0.05 < filled < 0.95


def as_sitk(volume: Array, grid: Grid) -> sitk.Image:
    image = sitk.GetImageFromArray(volume.transpose(2, 1, 0))
    place_sitk(image, grid)
    return image


def place_sitk(image: sitk.Image, grid: Grid) -> None:
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ grid.affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())


@pytest.mark.parametrize(
    "source_affine",
    [
        axes_affine((0, 1, 2), (1, 1, 1), (0.9, 0.9, 2.5)),
        axes_affine((0, 1, 2), (-1, -1, 1), (0.9, 0.9, 2.5)),
        axes_affine((1, 2, 0), (-1, 1, -1), (1.1, 0.8, 3.0)),
        affine(rotation(12, -7, 25) @ np.diag([0.9, 1.1, 2.5]), (-80.0, 33.0, 7.0)),
        affine(rotation(95, 40, 170) @ np.diag([1.0, 0.6, 1.4]), (10.0, -33.0, 7.0)),
    ],
)
def test_simpleitk_agrees_to_a_thousandth_of_a_hu(source_affine: Array) -> None:
    source = Grid((15, 13, 10), source_affine)
    target = model_grid(source, 1.23)
    volume = random_ct(source.shape)
    reference = sitk.Image([*target.shape], sitk.sitkFloat64)
    place_sitk(reference, target)
    theirs = sitk.Resample(
        sitk.Cast(as_sitk(volume, source), sitk.sitkFloat64), reference, sitk.Transform(), sitk.sitkLinear, FILL
    )
    expected = sitk.GetArrayFromImage(theirs).transpose(2, 1, 0)
    found = resample_image(torch.from_numpy(volume), source, target, fill=FILL).numpy()
    # ITK, too, holds values constant for half a voxel beyond the outermost centres.
    sure = within(source, positions(target), 0.5 - 1e-4) | ~within(source, positions(target), 0.5 + 1e-4)
    assert sure.mean() > 0.9
    np.testing.assert_allclose(found[sure], expected[sure], rtol=0, atol=2e-3)


def test_half_a_voxel_beyond_the_centres_is_constant_then_fill() -> None:
    source = Grid((2, 1, 1), np.eye(4))
    volume = torch.tensor([10.0, 20.0]).view(2, 1, 1)
    target = Grid((8, 1, 1), affine(np.diag([0.4, 1.0, 1.0]), (-0.8, 0.0, 0.0)))  # x = -0.8, -0.4, 0, 0.4 ... 2.0
    found = resample_image(volume, source, target, fill=FILL).flatten()
    expected = torch.tensor([FILL, 10.0, 10.0, 14.0, 18.0, 20.0, FILL, FILL])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    for shift, value in ((0.49, 10.0), (0.51, FILL)):  # across an axis of one voxel
        beside = Grid((1, 1, 1), affine(np.eye(3), (0.0, shift, 0.0)))
        assert resample_image(volume, source, beside, fill=FILL).item() == value


@pytest.mark.parametrize("dtype", [torch.int16, torch.uint8, torch.int32, torch.float32, torch.float64, torch.bool])
def test_same_grid_returns_the_same_values(dtype: torch.dtype) -> None:
    grid = Grid((5, 6, 7), axes_affine((2, 0, 1), (-1, 1, 1), (0.7, 0.7, 5.0)))
    volume = torch.from_numpy(random_ct((2, *grid.shape))).abs().remainder(200).to(dtype)
    kept = volume.clone()
    found = resample_image(volume, grid, grid, fill=FILL)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, volume.to(torch.float32), rtol=0, atol=1e-4)
    assert torch.equal(volume, kept)


@pytest.mark.parametrize("angles", [(0, 0, 0), (3, 0, 0)])
def test_slab_size_does_not_matter(angles: tuple[float, ...]) -> None:
    source = Grid((8, 9, 10), affine(rotation(*angles) @ np.diag([1.0, -1.0, 2.0])))
    target = model_grid(source, 0.9)
    volume = torch.from_numpy(random_ct((2, *source.shape)))
    whole = resample_image(volume, source, target, fill=FILL)
    for slab in (1, 5, 7, 100):
        slabs = list(resample_slabs(volume, source, target, fill=FILL, slab=slab))
        assert [planes.start for planes, _ in slabs] == list(range(0, target.shape[2], slab))
        torch.testing.assert_close(torch.cat([values for _, values in slabs], dim=-1), whole, rtol=0, atol=0)


# --- the model grid


@pytest.mark.parametrize(
    ("shape", "source_affine", "spacing", "expected_shape", "expected_affine"),
    [
        # RAS, 1 x 1 x 4 mm: edges -0.5..9.5, -0.5..19.5, -2..18
        ((10, 20, 5), affine(np.diag([1.0, 1, 4])), 2.0, (5, 10, 10), affine(np.diag([2.0, 2, 2]), (0.5, 0.5, -1))),
        # LPS: edges -9.5..0.5, -19.5..0.5, -2..18
        (
            (10, 20, 5),
            affine(np.diag([-1.0, -1, 4])),
            2.0,
            (5, 10, 10),
            affine(np.diag([2.0, 2, 2]), (-8.5, -18.5, -1.0)),
        ),
        # No exact fit: 10, 20, 20 mm in steps of 3, 3, 4; what sticks out does so on both sides alike
        (
            (10, 20, 5),
            affine(np.diag([1.0, 1, 4])),
            (3.0, 3.0, 4.0),
            (4, 7, 5),
            affine(np.diag([3.0, 3, 4]), (0.0, 0.5, 0.0)),
        ),
        # Axes (A, S, R): the 5 planes of 4 mm run along R, the 10 along A, the 20 along S
        (
            (10, 20, 5),
            affine(np.array([[0.0, 0, 4], [1, 0, 0], [0, 1, 0]]), (100.0, 0.0, 0.0)),
            2.0,
            (10, 5, 10),
            affine(np.diag([2.0, 2, 2]), (99.0, 0.5, 0.5)),
        ),
        # 45 degrees about S: 10 x 10 becomes a diagonal of 14.14 mm along R and A
        (
            (10, 10, 4),
            affine(rotation(0, 0, 45)),
            2.0,
            (8, 8, 2),
            affine(np.diag([2.0, 2, 2]), (-7.0, 4.5 * 2**0.5 - 7.0, 0.5)),
        ),
        ((1, 1, 1), np.eye(4), 5.0, (1, 1, 1), affine(np.diag([5.0, 5, 5]))),
    ],
)
def test_model_grid_by_hand(
    shape: tuple[int, int, int],
    source_affine: Array,
    spacing: float | tuple[float, float, float],
    expected_shape: tuple[int, int, int],
    expected_affine: Array,
) -> None:
    grid = model_grid(Grid(shape, source_affine), spacing)
    assert grid.shape == expected_shape
    np.testing.assert_allclose(grid.affine, expected_affine, atol=1e-9)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_rounding_in_the_affine_adds_no_voxel(dtype: type) -> None:
    """NIfTI holds affines in float32: 500 voxels of 0.8 mm are 200 of 2 mm there as well."""
    source = Grid((500, 512, 201), affine(np.diag([0.8, 0.7, 1 / 3]), (0.1, 0.2, -1000.3)).astype(dtype))
    assert model_grid(source, (2.0, 0.7, 1 / 3)).shape == (200, 512, 201)


@settings(max_examples=60)
@given(
    angles=st.tuples(*[st.floats(-180, 180)] * 3),
    spacing=st.tuples(*[st.floats(0.4, 6.0)] * 3),
    shape=st.tuples(*[st.integers(1, 400)] * 3),
    step=st.tuples(*[st.floats(0.5, 4.0)] * 3),
    offset=st.tuples(*[st.floats(-1000, 1000)] * 3),
)
def test_model_grid_covers_the_volume_and_is_centred_on_it(
    angles: tuple[float, ...],
    spacing: tuple[float, ...],
    shape: tuple[int, int, int],
    step: tuple[float, float, float],
    offset: tuple[float, ...],
) -> None:
    source = Grid(shape, affine(rotation(*angles) @ np.diag(spacing), offset))
    grid = model_grid(source, step)
    np.testing.assert_array_equal(grid.affine[:3, :3], np.diag(step))
    corners = np.array(list(product(*((-0.5, n - 0.5) for n in shape)))) @ source.affine[:3, :3].T + offset
    low = grid.affine[:3, 3] - np.array(step) / 2
    high = low + np.array(grid.shape) * step
    slack = 1e-3 * np.array(step)
    assert (low <= corners.min(axis=0) + slack).all()
    assert (high >= corners.max(axis=0) - slack).all()
    assert (high - low < np.ptp(corners, axis=0) + step).all()  # not a voxel more than it takes
    np.testing.assert_allclose(low + high, corners.min(axis=0) + corners.max(axis=0), atol=1e-6)


@pytest.mark.parametrize(
    "spacing", [0.0, -2.0, (2.0, 0.0, 2.0), (1.0, 1.0, -1.0), float("nan"), float("inf"), 5e-324, (1.0, 1e-3, 1.0), 1e9]
)
def test_spacing_must_be_a_length(spacing: float | tuple[float, float, float]) -> None:
    with pytest.raises(ConfigError, match=r"spacing must be 0\.01 to 1000 mm, got "):
        model_grid(Grid((4, 4, 4), np.eye(4)), spacing)


# --- labels


def box_label(shape: tuple[int, int, int], low: int, high: int, value: int = 1) -> torch.Tensor:
    label = torch.zeros(shape, dtype=torch.uint8)
    label[low:high, low:high, low:high] = value
    return label


def test_label_of_one_class_has_the_half_way_surface() -> None:
    """1 mm to 0.5 mm: a voxel beside a face keeps 3/4, beside an edge 9/16, in a corner 27/64 of the class."""
    source = Grid((8, 8, 8), np.eye(4))
    target = model_grid(source, 0.5)
    found = resample_label(box_label((8, 8, 8), 2, 6, value=3), source, target)
    expected = box_label((16, 16, 16), 4, 12, value=3)
    for corner in product((4, 11), repeat=3):
        expected[corner] = 0
    assert found.dtype == torch.uint8
    assert torch.equal(found, expected)


def test_label_ties_are_shared_so_that_the_volume_stays() -> None:
    """Half a voxel off, both outer planes of a slab lie on its surface: half of their voxels belong to it."""
    source, target = Grid((8, 8, 8), np.eye(4)), Grid((8, 8, 7), affine(np.eye(3), (0.0, 0.0, 0.5)))
    for other in (0, 2):  # a slab beside the background, then beside the background and another class
        label = torch.zeros(8, 8, 8, dtype=torch.uint8)
        label[:, :, 2:6] = 1
        label[:, :, 7] = other
        found = resample_label(label, source, target) == 1
        assert found.sum(dim=(0, 1)).tolist() == [0, 32, 64, 64, 64, 32, 0]
        assert found[:, :, 1].sum(dim=0).tolist() == [4] * 8


def test_label_just_short_of_half_is_background() -> None:
    source = Grid((2, 1, 1), np.eye(4))
    label = torch.tensor([7, 0], dtype=torch.uint8).view(2, 1, 1)
    for x, value in ((0.499, 7), (0.501, 0)):
        assert resample_label(label, source, Grid((1, 1, 1), affine(np.eye(3), (x, 0.0, 0.0)))).item() == value


def test_label_of_many_classes_takes_the_largest_share() -> None:
    source = Grid((2, 2, 1), np.eye(4))
    label = torch.tensor([[4, 2], [4, 3]], dtype=torch.uint8)[..., None]

    def at(x: float, y: float) -> int:
        return int(resample_label(label, source, Grid((1, 1, 1), affine(np.eye(3), (x, y, 0.0)))))

    assert at(0.5, 0.55) == 4  # shares 0.45, 0.275, 0.275: the largest, though below a half
    assert at(0.4, 0.8) == 2  # 0.2, 0.48, 0.32
    assert at(0.6, 0.8) == 3
    assert at(0.5, -0.6) == 0  # outside
    with_background = torch.tensor([[0, 2], [0, 3]], dtype=torch.uint8)[..., None]
    point = Grid((1, 1, 1), affine(np.eye(3), (0.5, 0.55, 0.0)))
    assert resample_label(with_background, source, point).item() == 0  # background counts as a class


@pytest.mark.parametrize("values", [[0, 1], [0, 5], [0, 1, 2, 9]])
def test_label_on_its_own_grid_stays_as_it_is(values: list[int]) -> None:
    grid = Grid((6, 7, 8), axes_affine((2, 0, 1), (-1, 1, 1), (0.7, 0.7, 5.0)))
    label = torch.from_numpy(np.random.default_rng(0).choice(values, grid.shape).astype(np.uint8))
    assert torch.equal(resample_label(label, grid, grid), label)


def ellipsoid(world: Array, centre: Array, radii: Array, turn: Array) -> Array:
    """Positive inside; near the surface about the distance to it in units of the mean radius."""
    return 1 - np.linalg.norm((world - centre) @ turn / radii, axis=-1)


CENTRE, RADII, TURN = np.array([3.3, -2.1, 5.7]), np.array([34.0, 18.0, 14.0]), rotation(10, 20, 35)
CT_GRIDS = {
    "axial 3 mm": axes_affine((0, 1, 2), (-1, -1, 1), (0.8, 0.8, 3.0)),
    "oblique 3 mm": affine(rotation(8, -5, 12) @ np.diag([0.8, 0.8, 3.0])),
    "sheared 2.5 mm": affine(np.array([[-1.0, 0, 0], [0, 1.0, 0.7], [0, 0, 2.5]])),
    "axial 1 mm": axes_affine((0, 1, 2), (1, 1, 1), (1.0, 1.0, 1.0)),
    "coronal 1 mm": axes_affine((0, 2, 1), (1, -1, 1), (0.9, 0.9, 1.0)),
}
ct_grids = pytest.mark.parametrize("source_affine", CT_GRIDS.values(), ids=CT_GRIDS.keys())


def ct_grid(source_affine: Array) -> Grid:
    """A grid of 80 x 60 x 60 mm or more around the ellipsoid."""
    spacing = np.linalg.norm(source_affine[:3, :3], axis=0)
    shape = np.ceil(88 / spacing).astype(int)
    placed = source_affine.copy()
    placed[:3, 3] = CENTRE + 0.3 - source_affine[:3, :3] @ ((shape - 1) / 2)
    return Grid((int(shape[0]), int(shape[1]), int(shape[2])), placed)


def measure(mask: Array, grid: Grid) -> tuple[Array, float]:
    """Centroid (mm) and volume (mm3)."""
    world = positions(grid)[mask > 0]
    return world.mean(axis=0), len(world) * abs(np.linalg.det(grid.affine[:3, :3]))


@ct_grids
def test_mask_of_a_smooth_logit_field_lies_where_the_field_does(source_affine: Array) -> None:
    ct = ct_grid(source_affine)
    model = model_grid(ct, 2.0)
    logits = torch.from_numpy(20 * ellipsoid(positions(model), CENTRE, RADII, TURN)).float()[None]
    mask = mask_from_logits(logits, model, ct).numpy()
    truth = ellipsoid(positions(ct), CENTRE, RADII, TURN) > 0
    centroid, volume = measure(mask, ct)
    true_centroid, true_volume = measure(truth, ct)
    assert true_volume == pytest.approx(4 / 3 * np.pi * RADII.prod(), rel=0.01)
    assert np.linalg.norm(centroid - true_centroid) < 0.05
    assert volume == pytest.approx(true_volume, rel=0.01)


@ct_grids
def test_mask_survives_the_way_to_the_model_grid_and_back(source_affine: Array) -> None:
    ct = ct_grid(source_affine)
    model = model_grid(ct, 2.0)
    truth = torch.from_numpy(ellipsoid(positions(ct), CENTRE, RADII, TURN) > 0)
    soft = resample_image(truth, ct, model, fill=0.0)
    mask = mask_from_logits(soft[None] - 0.5, model, ct).numpy()
    centroid, volume = measure(mask, ct)
    true_centroid, true_volume = measure(truth.numpy(), ct)
    # A mask has steps where a field of logits has none: it returns a little smoother.
    assert np.linalg.norm(centroid - true_centroid) < 0.1
    assert volume == pytest.approx(true_volume, rel=0.02)


@pytest.mark.parametrize("shift", [(0.0, 0.0, 0.0), (0.31, -0.87, 0.53), (-1.2, 0.44, -0.71)])
@ct_grids
def test_label_keeps_its_volume_and_place_on_the_model_grid(source_affine: Array, shift: tuple[float, ...]) -> None:
    ct = ct_grid(source_affine)
    model = model_grid(ct, 2.0)
    truth = ellipsoid(positions(ct), CENTRE + shift, RADII, TURN) > 0
    found = resample_label(torch.from_numpy(truth.astype(np.uint8)), ct, model).numpy()
    centroid, volume = measure(found, model)
    true_centroid, true_volume = measure(truth, ct)
    assert np.linalg.norm(centroid - true_centroid) < 0.2  # a tenth of a voxel
    assert volume == pytest.approx(true_volume, rel=0.01)


# --- logits to masks


def test_mask_from_logits_of_one_two_and_three_channels() -> None:
    grid = Grid((4, 1, 1), np.eye(4))
    one = torch.tensor([-1.0, 0.0, 1e-3, 2.0]).view(1, 4, 1, 1)
    assert mask_from_logits(one, grid, grid).flatten().tolist() == [0, 0, 1, 1]  # a tie is background
    two = torch.tensor([[1.0, 5.0, -3.0, 2.0], [0.0, 5.0, -2.0, 2.5]]).view(2, 4, 1, 1)
    assert mask_from_logits(two, grid, grid).flatten().tolist() == [0, 0, 1, 1]
    three = torch.tensor([[1.0, 0, 0, 7], [0, 1, 0, 7], [0, 0, 1, 7]]).view(3, 4, 1, 1)
    found = mask_from_logits(three, grid, grid)
    assert found.flatten().tolist() == [0, 1, 2, 0]
    assert found.dtype == torch.uint8


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_outside_the_model_grid_is_background(channels: int) -> None:
    logits = torch.full((channels, 4, 4, 4), -5.0)
    logits[-1] = 5.0
    wider = Grid((8, 4, 4), affine(np.eye(3), (-2.0, 0.0, 0.0)))
    found = mask_from_logits(logits, Grid((4, 4, 4), np.eye(4)), wider)
    top = max(channels - 1, 1)
    assert found[:, 0, 0].tolist() == [0, 0, top, top, top, top, 0, 0]


def test_logits_are_interpolated_before_they_are_compared() -> None:
    """The surface lies where the difference crosses 0, a quarter of the way here, not half way between voxels."""
    logits = torch.tensor([[0.0, 0.0], [-1.0, 3.0]]).view(2, 2, 1, 1)
    fine = Grid((10, 1, 1), affine(np.diag([0.1, 1, 1]), (0.02, 0.0, 0.0)))  # x = 0.02, 0.12, 0.22, 0.32 ...
    found = mask_from_logits(logits, Grid((2, 1, 1), np.eye(4)), fine)
    assert found.flatten().tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 1, 1]


def test_three_channels_agree_with_resampling_each_and_argmax() -> None:
    source = Grid((6, 7, 8), affine(rotation(9, 4, -30) @ np.diag([2.0, 2.0, 2.0])))
    target = Grid((11, 9, 20), affine(np.diag([1.0, 1.2, 0.7]), (1.0, 0.0, 2.0)))
    logits = torch.from_numpy(np.random.default_rng(3).normal(size=(3, *source.shape)))
    expected = torch.stack([resample_image(one, source, target, fill=0.0) for one in logits]).argmax(dim=0)
    found = mask_from_logits(logits, source, target)
    assert torch.equal(found, expected.to(torch.uint8))
    assert set(found.unique().tolist()) == {0, 1, 2}


def test_masks_of_grids_that_do_not_meet_are_empty() -> None:
    model, ct = Grid((4, 4, 4), np.eye(4)), Grid((5, 6, 7), affine(np.eye(3), (0.0, 40.0, 0.0)))
    found = mask_from_logits(torch.full((1, 4, 4, 4), 5.0), model, ct)
    assert found.shape == (5, 6, 7)
    assert not found.any()


def test_masks_are_in_the_order_of_files() -> None:
    """The first axis runs fastest, as in NIfTI: writing then needs no copy of the mask."""
    model = Grid((4, 5, 6), np.diag([2.0, 2.0, 2.0, 1.0]))
    found = mask_from_logits(torch.rand(2, 4, 5, 6), model, Grid((8, 9, 10), np.eye(4)))
    assert found.numpy().flags.f_contiguous


@pytest.mark.parametrize("orientation", PHANTOM_ORIENTATIONS)
def test_mask_of_a_pancreas_survives_the_way_to_the_model_grid_and_back(orientation: str) -> None:
    """Thinner and more bent than an ellipsoid; a CT with voxels no smaller than the model grid's loses nothing."""
    phantom = make_phantom(1, spacing=(2.5, 2.5, 3.0), orientation=orientation)
    index = np.argwhere(phantom.mask)  # with some background around it: the rest of the body only takes time
    box = [slice(int(n) - 4, int(m) + 5) for n, m in zip(index.min(axis=0), index.max(axis=0), strict=True)]
    ct, truth = crop(Grid(phantom.mask.shape, phantom.affine), box), np.ascontiguousarray(phantom.mask[tuple(box)])
    model = model_grid(ct, 2.0)
    soft = resample_image(torch.from_numpy(truth), ct, model, fill=0.0)
    found = mask_from_logits(soft[None] - 0.5, model, ct).numpy()
    centroid, volume = measure(found, ct)
    true_centroid, true_volume = measure(truth, ct)
    assert np.linalg.norm(centroid - true_centroid) < 0.05
    assert volume == pytest.approx(true_volume, rel=0.01)


# --- boxes of grids


@st.composite
def grids(draw: st.DrawFn, largest: int = 12) -> Grid:
    """Of any orientation and spacing, a third of them oblique, within some centimetres of each other."""
    orientation = draw(st.sampled_from(ORIENTATIONS))
    angles = draw(st.sampled_from([(0.0, 0.0, 0.0), (0.0, 0.0, 0.0), (31.0, -14.0, 77.0)]))
    spacing = draw(st.tuples(*[st.floats(0.5, 5.0)] * 3))
    shape = draw(st.tuples(*[st.integers(1, largest)] * 3))
    placed = affine(rotation(*angles)) @ axes_affine(*orientation, spacing)
    centre = placed[:3, :3] @ ((np.array(shape) - 1) / 2)
    placed[:3, 3] = draw(st.tuples(*[st.floats(-25.0, 25.0)] * 3)) - centre
    return Grid(shape, placed)


@st.composite
def boxes(draw: st.DrawFn, shape: tuple[int, int, int]) -> tuple[slice, slice, slice]:
    starts = [draw(st.integers(0, n - 1)) for n in shape]
    x, y, z = (slice(start, draw(st.integers(start + 1, n))) for start, n in zip(starts, shape, strict=True))
    return x, y, z


@given(data=st.data(), grid=grids())
@settings(max_examples=60)
def test_voxels_of_a_crop_stay_where_they_were(data: st.DataObject, grid: Grid) -> None:
    box = data.draw(boxes(grid.shape))
    kept = grid.affine.copy()
    part = crop(grid, box)
    np.testing.assert_allclose(positions(part), positions(grid)[box], rtol=0, atol=1e-9)
    np.testing.assert_array_equal(grid.affine, kept)


@given(source=grids(), target=grids())
@settings(max_examples=150)
def test_no_voxel_in_the_source_is_outside_the_box_that_is_looked_at(source: Grid, target: Grid) -> None:
    box = _covered(source, target)
    inside = within(source, positions(target), 0.5)
    around = inside.copy()
    around[box] = False
    assert not around.any()
    # Nor is much more than that looked at. Where axes run along each other, two voxels on each side.
    aligned = aligned_axes(np.linalg.inv(source.affine) @ target.affine, target.shape) is not None
    if aligned and inside.any():
        for axis, side in enumerate(box):
            hit = np.nonzero(inside.any(axis=tuple(a for a in range(3) if a != axis)))[0]
            assert side.start >= hit[0] - 3
            assert side.stop <= hit[-1] + 1 + 3


@pytest.mark.parametrize("channels", [1, 2, 3])
@given(data=st.data(), model=grids(), ct=grids(largest=16))
@settings(max_examples=60)
def test_logits_of_a_box_give_the_mask_that_all_logits_give(
    channels: int, data: st.DataObject, model: Grid, ct: Grid
) -> None:
    """Where the rest is background, and the box holds one voxel of it on each side."""
    box = data.draw(boxes(model.shape))
    logits = torch.zeros(channels, *model.shape)
    logits[0] = -1.0 if channels == 1 else 1.0
    generator = torch.Generator().manual_seed(0)
    logits[(slice(None), *box)] = torch.randn(
        (channels, *(s.stop - s.start for s in box)), generator=generator
    ) + torch.tensor([0.0, 0.5, 0.5][:channels]).view(-1, 1, 1, 1)
    region = tuple(slice(max(s.start - 1, 0), min(s.stop + 1, n)) for s, n in zip(box, model.shape, strict=True))
    whole = mask_from_logits(logits, model, ct)
    part = mask_from_logits(logits[(slice(None), *region)], crop(model, region), ct)
    assert torch.equal(part, whole)
