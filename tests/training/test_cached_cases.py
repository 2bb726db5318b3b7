"""Cases on the model grid: the same with and without the cache, whoever makes them, and every one once an epoch."""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from dicom_files import write_series
from monai.data import DataLoader
from monai.engines import SupervisedTrainer
from monai.transforms import Compose, LoadImaged, MapTransform, RandGaussianNoised
from processes import SERVER, file_size_limit, run_all
from torch import Tensor, nn

from attunet3d.errors import AttUNet3dError, ConfigError, InputNotFoundError, OutputError, UnreadableInputError
from attunet3d.io import CTReader, LabelReader
from attunet3d.training import CachedCases, CaseSampler, RandPatchd, fill_cache, loader_workers, validation_share
from attunet3d.training import cases as cases_module
from attunet3d.transforms import SelectLabelsd, ToModelGridd

SPACING = (8.0, 8.0, 8.0)
READ: list[str] = []


class Noted(MapTransform):
    """Notes which files are read."""

    def __call__(self, data: Mapping[Any, Any]) -> dict[Any, Any]:
        READ.extend(str(data[key]) for key in self.keys)
        return dict(data)


class AddInPlaced(MapTransform):
    """What a transform should not do."""

    def __call__(self, data: Mapping[Any, Any]) -> dict[Any, Any]:
        for key in self.keys:
            data[key].add_(1)
        return dict(data)


def steps(spacing: Any = SPACING, labels: Any = (1,), then: Any = ()) -> Compose:
    return Compose(
        [
            Noted(["image", "label"]),
            LoadImaged("image", reader=CTReader, dtype=None, ensure_channel_first=True),
            LoadImaged("label", reader=LabelReader, dtype=None, ensure_channel_first=True),
            SelectLabelsd("label", labels),
            ToModelGridd(["image", "label"], spacing, mode=["linear", "label"]),
            *then,
        ]
    )


def at_random() -> list[Any]:
    return [
        RandPatchd(["image", "label"], "label", (6, 6, 6), SPACING, rotate=0.2, scale=0.2, flip_prob=0.5),
        RandGaussianNoised("image", prob=0.5, std=10.0),
    ]


@pytest.fixture
def data(write_phantom: Callable[..., Path], tmp_path: Path) -> list[dict[str, str]]:
    """Three cases, which a test may change."""
    cases = []
    for seed, orientation in enumerate(("RAS", "LPS", "oblique")):
        source = write_phantom(orientation, seed)
        label = source.with_name(source.name.replace(".nii.gz", "_label.nii.gz"))
        cases.append({"image": str(tmp_path / f"ct{seed}.nii.gz"), "label": str(tmp_path / f"label{seed}.nii.gz")})
        shutil.copy(source, cases[-1]["image"])
        shutil.copy(label, cases[-1]["label"])
    READ.clear()
    return cases


def same(one: Any, other: Any) -> bool:
    """Items: dicts of tensors, or lists of them."""
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return set(one) == set(other) and all(torch.equal(one[key], other[key]) for key in one)


# The cache.


def test_what_is_cached_is_what_the_transforms_give(data: list[dict[str, str]], tmp_path: Path) -> None:
    cases = CachedCases(data, steps(), tmp_path / "cache")
    assert len(cases) == 3
    for index, case in enumerate(data):
        expected, found = steps()(dict(case)), cases[index]
        image = expected["image"].as_tensor()
        assert found["image"].shape == image.shape
        assert (found["image"].dtype, found["label"].dtype) == (torch.int16, torch.uint8)
        assert float((found["image"] - image).abs().max()) <= 0.5
        assert torch.equal(found["label"], expected["label"].as_tensor())
        assert bool(found["label"].any())
        assert float(image.max() - image.min()) > 500


def test_a_case_is_read_once(data: list[dict[str, str]], tmp_path: Path) -> None:
    cases = CachedCases(data, steps(then=at_random()), tmp_path / "cache")
    assert not cases.is_ready(1)
    cases[1]
    assert list(data[1].values()) == READ
    assert cases.is_ready(1)
    assert not cases.is_ready(0)
    cases[1], cases[4]
    CachedCases(data, steps(), tmp_path / "cache", seed=5)[1]
    assert list(data[1].values()) == READ, "random transforms and seed make no other case"


@pytest.mark.parametrize("key", ["image", "label"])
@pytest.mark.parametrize("change", ["time", "size"])
def test_a_changed_file_is_read_again(data: list[dict[str, str]], tmp_path: Path, key: str, change: str) -> None:
    """By the next run; one that is under way keeps what it began with."""
    running = CachedCases(data, steps(), tmp_path / "cache")
    before = running[0]["label"].clone()
    cases = CachedCases(data, steps(), tmp_path / "cache")
    path = Path(data[0][key])
    if change == "time":
        state = path.stat()
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
        assert not cases.is_ready(0)
        assert torch.equal(cases[0]["label"], before)
    else:
        image = nib.load(path)
        values = np.asarray(image.dataobj, dtype=np.int16).clip(max=0)
        nib.save(nib.Nifti1Image(values, image.affine), path)
        assert not cases.is_ready(0)
        assert not (cases[0][key] > 0).any()
    assert torch.equal(running[0]["label"], before)
    assert list(data[0].values()) * 2 == READ


@pytest.mark.parametrize(
    "options", [{"spacing": (8.0, 8.0, 9.0)}, {"labels": (1, 2)}, {"labels": (2,)}, {"labels": ((1,), (2,))}], ids=str
)
def test_other_settings_make_another_case(data: list[dict[str, str]], tmp_path: Path, options: dict[str, Any]) -> None:
    first = CachedCases(data, steps(), tmp_path / "cache")
    first[0]
    other = CachedCases(data, steps(**options), tmp_path / "cache")
    assert not other.is_ready(0)
    other[0]
    assert len(READ) == 4
    assert first.is_ready(0)
    assert other.is_ready(0)
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 4


def test_another_version_of_the_package_makes_another_case(
    data: list[dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    CachedCases(data, steps(), tmp_path / "cache")[0]
    monkeypatch.setattr(cases_module, "__version__", "another")
    assert not CachedCases(data, steps(), tmp_path / "cache").is_ready(0)


def test_the_files_are_mapped_and_stay_as_they_are(data: list[dict[str, str]], tmp_path: Path) -> None:
    cases = CachedCases(data, steps(then=[AddInPlaced(["image", "label"])]), tmp_path / "cache")
    before = cases.load(0)
    files = sorted((tmp_path / "cache").glob("*.npy"))
    assert len(files) == 2
    mapped = Path("/proc/self/maps").read_text()
    assert all(str(path) in mapped for path in files), "not read into memory"
    hashes = [hashlib.sha256(path.read_bytes()).digest() for path in files]
    for _ in range(2):
        changed = cases[0]
        assert all(torch.equal(changed[key], before[key] + 1) for key in ("image", "label"))
    assert [hashlib.sha256(path.read_bytes()).digest() for path in files] == hashes
    assert same(cases.load(0), before)


def test_hu_beyond_16_bits_are_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = torch.tensor([-40000.0, -0.6, 0.4, 40000.0]).reshape(1, 4, 1, 1)
    cases = CachedCases([{"image": "", "label": ""}], steps(), tmp_path / "cache")
    monkeypatch.setattr(cases_module, "_file_state", lambda path: [path])
    monkeypatch.setattr(cases, "_to_grid", lambda case: {"image": image, "label": image > 0})
    assert cases.load(0)["image"].flatten().tolist() == [-32768, -1, 0, 32767]


def test_a_dicom_folder(data: list[dict[str, str]], tmp_path: Path) -> None:
    """A slice that is gone makes another case, as a changed file does."""
    hu = np.random.default_rng(0).integers(-100, 200, (20, 18, 9)).astype(np.int16)
    slices = write_series(tmp_path / "series", hu)
    image = CTReader().get_data(CTReader().read(tmp_path / "series"))
    affine = np.asarray(image[1]["affine"], dtype=np.float64)
    nib.save(nib.Nifti1Image((image[0] > 0).astype(np.uint8), affine), tmp_path / "label.nii.gz")
    case = {"image": str(tmp_path / "series"), "label": str(tmp_path / "label.nii.gz")}
    cases = CachedCases([case], steps(spacing=(2.0, 2.0, 2.5)), tmp_path / "cache")
    expected = steps(spacing=(2.0, 2.0, 2.5))(dict(case))
    assert float((cases[0]["image"] - expected["image"].as_tensor()).abs().max()) <= 0.5
    assert cases.is_ready(0)
    os.utime(slices[3], ns=(0, 0))
    assert not cases.is_ready(0)


# Errors.


def broken(path: str) -> None:
    content = Path(path).read_bytes()
    Path(path).write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    ("key", "damage", "kind"),
    [
        ("image", broken, UnreadableInputError),
        ("label", broken, UnreadableInputError),
        ("image", os.unlink, InputNotFoundError),
        ("label", os.unlink, InputNotFoundError),
    ],
)
def test_a_broken_case_is_named(
    data: list[dict[str, str]], tmp_path: Path, key: str, damage: Any, kind: type[AttUNet3dError]
) -> None:
    damage(data[1][key])
    cases = CachedCases(data, steps(), tmp_path / "cache")
    with pytest.raises(kind, match=Path(data[1][key]).name):
        cases[1]
    assert not list(tmp_path.glob("cache/*"))
    with pytest.raises(kind, match=Path(data[1][key]).name):
        fill_cache([cases])


def test_a_full_disk(data: list[dict[str, str]], tmp_path: Path) -> None:
    cases = CachedCases(data, steps(), tmp_path / "cache")
    with file_size_limit(256), pytest.raises(OutputError, match="cannot be written"):
        cases[0]
    assert not list((tmp_path / "cache").iterdir())
    assert cases[0]["label"].any(), "and once there is space it goes on"


def test_no_space_left_is_said(data: list[dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def save(path: Path, *args: Any, **kwargs: Any) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(np, "save", save)
    with pytest.raises(OutputError, match="free some space"):
        CachedCases(data, steps(), tmp_path / "cache")[0]
    assert not list((tmp_path / "cache").iterdir())


def test_a_folder_that_cannot_be_made(data: list[dict[str, str]], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot make the output folder"):
        CachedCases(data, steps(), tmp_path / "file" / "cache")[0]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_to(data: list[dict[str, str]], tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir(mode=0o500)
    with pytest.raises(OutputError, match="cannot be written"):
        CachedCases(data, steps(), tmp_path / "cache")[0]


@pytest.mark.parametrize("grids", [0, 2])
def test_preprocessing_without_a_model_grid(tmp_path: Path, grids: int) -> None:
    transform = Compose([ToModelGridd(["image", "label"], 8.0, ["linear", "label"])] * grids)
    with pytest.raises(ConfigError, match=f"one ToModelGridd, found {grids}"):
        CachedCases([], transform, tmp_path)


# Items.


@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes:UserWarning")  # on one core
def test_an_item_depends_on_seed_and_key_alone(data: list[dict[str, str]], tmp_path: Path) -> None:
    """In any order, in this process or in others, in a new object as in a used one."""
    keys = [7, 0, 4, 1, 3, 5]

    def cases(seed: int = 1) -> CachedCases:
        return CachedCases(data, steps(then=at_random()), tmp_path / "cache", seed)

    whole = cases()
    expected = {key: whole[key] for key in sorted(keys)}
    fresh = cases()
    assert all(same(fresh[key], expected[key]) for key in keys)
    assert all(same(fresh[key], expected[key]) for key in keys), "a second time too"
    loader = DataLoader(cases(), sampler=keys, batch_size=1, num_workers=2, multiprocessing_context=SERVER)
    for key, batch in zip(keys, loader, strict=True):
        assert all(torch.equal(batch[name][0], expected[key][0][name]) for name in ("image", "label"))
    images = [expected[key][0]["image"] for key in (1, 4, 7)]  # one case in three epochs
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(images, 2))
    assert not same(cases(seed=2)[4], expected[4])


# Before training.


def test_all_cases_are_prepared(data: list[dict[str, str]], tmp_path: Path) -> None:
    cases = CachedCases(data, steps(), tmp_path / "cache")
    others = CachedCases(data[:1], steps(spacing=(9.0, 9.0, 9.0)), tmp_path / "cache")
    cases[1]
    READ.clear()
    fill_cache([cases, others])
    assert len(READ) == 3 * 2
    assert all(cases.is_ready(index) for index in range(3))
    assert others.is_ready(0)
    READ.clear()
    fill_cache([cases, others])
    assert not READ


def zeroed(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:128] + bytes(len(content) - 128))


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [broken, zeroed, flipped, Path.unlink], ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("kept", ["image.npy", "label.npy", "sha256"])
def test_what_is_damaged_on_disk_is_made_anew(
    data: list[dict[str, str]], tmp_path: Path, damage: Any, kept: str, caplog: pytest.LogCaptureFixture
) -> None:
    cases = CachedCases(data[:2], steps(), tmp_path / "cache")
    fill_cache([cases])
    before = [cases.load(index)["image"].clone() for index in range(2)]
    states = [cases.state(index) for index in range(2)]
    (victim, *_) = sorted((tmp_path / "cache").glob(f"*{kept}"))
    damage(victim)
    READ.clear()
    caplog.clear()
    fill_cache([CachedCases(data[:2], steps(), tmp_path / "cache")])
    assert len(READ) == 2, "one case, and the other as it is"
    assert ("are damaged: preparing it again" in caplog.text) is (damage is not Path.unlink)
    fresh = CachedCases(data[:2], steps(), tmp_path / "cache")
    assert all(torch.equal(fresh.load(index)["image"], before[index]) for index in range(2))
    assert [fresh.state(index) for index in range(2)] == states


def test_a_case_many_times_is_prepared_once(data: list[dict[str, str]], tmp_path: Path) -> None:
    fill_cache([CachedCases([data[0]] * 3, steps(), tmp_path / "cache")])
    assert len(READ) == 2


def test_each_process_prepares_its_share(data: list[dict[str, str]], tmp_path: Path) -> None:
    cases = CachedCases(data, steps(), tmp_path / "cache")
    fill_cache([cases], rank=1, num_replicas=2)
    assert [cases.is_ready(index) for index in range(3)] == [False, True, False]
    fill_cache([cases], rank=0, num_replicas=2)
    assert all(cases.is_ready(index) for index in range(3))
    assert len(READ) == 6


def prepare_all(data: list[dict[str, str]], cache: Path) -> None:
    torch.set_num_threads(1)
    fill_cache([CachedCases(data, steps(), cache)])


def test_two_processes_may_prepare_the_same_case(data: list[dict[str, str]], tmp_path: Path) -> None:
    running = [SERVER.Process(target=prepare_all, args=(data, tmp_path / "cache")) for _ in range(2)]
    run_all(running)
    assert [process.exitcode for process in running] == [0, 0]
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 6
    cases, alone = (CachedCases(data, steps(), tmp_path / name) for name in ("cache", "alone"))
    READ.clear()
    found = [cases[index] for index in range(3)]
    assert not READ
    assert all(same(found[index], alone[index]) for index in range(3))


# The order.


def sampler(cases: int, batch_size: int = 1, processes: int = 1, rank: int = 0, epoch: int = 0, **more: Any) -> Any:
    made = CaseSampler(range(cases), batch_size, num_replicas=processes, rank=rank, **more)  # type: ignore[arg-type]
    made.set_epoch(epoch)
    return made


def batches(keys: list[int], size: int) -> list[list[int]]:
    return [keys[start : start + size] for start in range(0, len(keys), size)]


@pytest.mark.parametrize("cases", range(1, 10))
def test_processes_go_through_the_batches_of_one(cases: int) -> None:
    for size, processes, epoch in itertools.product((1, 2, 3), (1, 2, 3, 4), (0, 3)):
        whole = list(sampler(cases, size * processes, epoch=epoch))
        parts = [list(sampler(cases, size, processes, rank, epoch)) for rank in range(processes)]
        assert {len(part) for part in parts} == {len(sampler(cases, size, processes))}
        assert len(parts[0]) % size == 0, "full batches"
        steps_of_all = [batches(part, size) for part in parts]
        for step, expected in enumerate(batches(whole, size * processes)):
            together = [key for part in steps_of_all for key in part[step]]
            assert sorted(together) == sorted(expected)
        # Every case once, and no more to fill up than it takes.
        counts = np.bincount([key % cases for key in whole], minlength=cases)
        assert counts.min() >= 1
        assert len(whole) - cases < size * processes
        assert {key // cases for key in whole} == {epoch}


def test_epochs_have_orders_of_their_own() -> None:
    orders = [[key % 9 for key in sampler(9, epoch=epoch)] for epoch in range(6)]
    assert all(sorted(order) == list(range(9)) for order in orders)
    assert len({tuple(order) for order in orders}) == 6
    assert orders == [[key % 9 for key in sampler(9, epoch=epoch)] for epoch in range(6)], "the same each time"
    assert orders[0] != list(sampler(9, seed=1))
    assert list(sampler(4, 3, epoch=2, shuffle=False)) == [8, 9, 10, 11, 8, 9]


class Keys(torch.utils.data.Dataset[Any]):
    """Items that are their key."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, key: int) -> dict[str, Tensor]:
        return {"image": torch.tensor([float(key)]), "label": torch.tensor([0.0])}


def test_a_trainer_takes_the_epochs_one_after_another() -> None:
    seen: list[float] = []

    def loss(prediction: Tensor, label: Tensor) -> Tensor:
        return prediction.sum() * 0

    def keep(inputs: Tensor, network: nn.Module) -> Any:
        seen.extend(inputs.flatten().tolist())
        return network(inputs)

    network = nn.Linear(1, 1)
    loader = DataLoader(Keys(), batch_size=2, sampler=CaseSampler(Keys(), 2), num_workers=0)
    SupervisedTrainer(
        device="cpu", max_epochs=3, train_data_loader=loader, network=network, loss_function=loss,
        optimizer=torch.optim.SGD(network.parameters(), 0.1), inferer=keep,
    ).run()  # fmt: skip
    assert [int(key) for key in seen] == [key for epoch in (1, 2, 3) for key in sampler(5, 2, epoch=epoch)]


@pytest.mark.parametrize("processes", range(1, 6))
def test_shares_of_validation(processes: int) -> None:
    for cases in range(1, 10):
        shares = [validation_share(cases, rank, processes) for rank in range(processes)]
        if processes <= cases:
            assert sorted(case for share in shares for case in share) == list(range(cases))
            assert max(map(len, shares)) - min(map(len, shares)) <= 1
        else:
            assert shares == [list(range(cases))] * processes


@pytest.mark.parametrize(
    ("device", "cores", "processes", "expected"),
    [
        ("cpu", 16, 1, 0),
        ("cuda", 16, 1, 8),
        ("cuda", 4, 1, 3),
        ("cuda:1", 8, 2, 3),
        ("cuda", 8, 8, 1),
        ("mps", 1, 1, 1),
    ],
)
def test_processes_that_load(
    device: str, cores: int, processes: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    assert loader_workers(device, processes) == expected
    assert loader_workers(torch.device(device), processes) == expected


def test_processes_that_load_where_there_is_no_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    """On macOS and Windows."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert loader_workers("mps") == 5


@pytest.mark.parametrize(
    "forge",
    [
        lambda array: array.astype("f8"),
        lambda array: array[0],
        lambda array: array[..., None],
        lambda array: array[:, :3],
        lambda array: np.array([print], object),
        lambda array: array.astype(array.dtype.newbyteorder(">")) if array.dtype.itemsize > 1 else array.astype("U1"),
    ],
)
@pytest.mark.parametrize("key", ["image", "label"])
def test_what_is_forged_on_disk_is_refused(data: list[dict[str, str]], tmp_path: Path, forge: Any, key: str) -> None:
    """With checksums that are right."""
    cases = CachedCases(data[:1], steps(), tmp_path / "cache")
    cases.prepare(0)
    (path,) = (tmp_path / "cache").glob(f"*_{key}.npy")
    np.save(path, forge(np.load(path)), allow_pickle=True)
    sums, paths = cases._kept(0)
    sums.write_text(cases_module._sums(paths.values()))
    assert cases.is_sound(0)
    with pytest.raises(UnreadableInputError, match=r"\.npy: damaged file of a cached case; remove it"):
        cases.load(0)


def test_a_header_that_python_would_warn_of_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.zeros((1, 2, 2, 2), np.float16))
    path.write_bytes(path.read_bytes().replace(b"<f2", b"\\#2"))
    with pytest.raises(UnreadableInputError, match="damaged"):
        cases_module._map(path, np.float16)
