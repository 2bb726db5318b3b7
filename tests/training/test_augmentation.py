"""Contrast phases: what each HU becomes, by hand."""

import pytest
import torch

from attunet3d.errors import ConfigError
from attunet3d.training import RandContrastPhased

HU = torch.arange(-1100.0, 3100.0).reshape(1, 60, 70, 1)


def changed(gain: float, hu: torch.Tensor = HU) -> torch.Tensor:
    return RandContrastPhased("image", prob=1.0, gain=(gain, gain))({"image": hu})["image"]


def test_by_hand() -> None:
    hu = torch.tensor([-1000.0, 0.0, 40.0, 140.0, 300.0, 1000.0])
    assert changed(0.5, hu).tolist() == [-1000, 0, 40, 90, 170, 870]
    assert changed(1.5, hu).tolist() == [-1000, 0, 40, 190, 430, 1130]
    assert changed(0.0, hu).tolist() == [-1000, 0, 40, 40, 40, 740]


def test_a_gain_of_one_changes_nothing() -> None:
    assert torch.equal(changed(1.0), HU)


@pytest.mark.parametrize("gain", [0.0, 0.3, 0.9, 1.1, 1.4, 5.0])
def test_laws(gain: float) -> None:
    out = changed(gain)
    assert bool((out.flatten().diff() >= -1e-3).all()), "order is kept"
    assert torch.equal(out[HU <= 40], HU[HU <= 40])
    beyond = (out - HU)[HU >= 300]
    torch.testing.assert_close(beyond, torch.full_like(beyond, (gain - 1) * 260))
    assert out.dtype == torch.float32
    assert out.shape == HU.shape


def test_whole_numbers_become_float() -> None:
    assert changed(0.5, torch.tensor([40, 141], dtype=torch.int16)).tolist() == [40.0, 90.5]


def test_the_input_and_other_keys_stay_as_they_are() -> None:
    image, label = HU.clone(), torch.full((1, 2, 2, 2), 200)
    out = RandContrastPhased("image", prob=1.0, gain=(0.5, 0.5))({"image": image, "label": label})
    assert torch.equal(image, HU)
    assert out["label"] is label
    assert not torch.equal(out["image"], HU)


def test_share_and_range() -> None:
    hu = torch.tensor([140.0])  # it becomes 40 + 100 x gain
    transform = RandContrastPhased("image", prob=0.3, gain=(0.4, 1.4)).set_random_state(seed=0)
    found = torch.cat([transform({"image": hu})["image"] for _ in range(2000)])
    moved = found[found != 140]
    assert len(moved) / 2000 == pytest.approx(0.3, abs=0.04)  # 4 standard deviations
    assert 80 <= float(moved.min()) < 85
    assert 175 < float(moved.max()) <= 180
    assert float(moved.mean()) == pytest.approx(130, abs=5)


@pytest.mark.parametrize(("prob", "happens"), [(0.0, False), (1.0, True)])
def test_never_and_always(prob: float, happens: bool) -> None:
    transform = RandContrastPhased("image", prob=prob, gain=(0.5, 0.5))
    assert all(torch.equal(transform({"image": HU})["image"], HU) != happens for _ in range(20))


def test_seeds() -> None:
    def draw(seed: int) -> list[float]:
        transform = RandContrastPhased("image", prob=0.5).set_random_state(seed=seed)
        return [float(transform({"image": torch.tensor([140.0])})["image"]) for _ in range(10)]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_all_keys_get_the_same_gain() -> None:
    transform = RandContrastPhased(["a", "b"], prob=1.0, gain=(0.0, 1.0)).set_random_state(seed=3)
    out = transform({"a": HU, "b": HU})
    assert torch.equal(out["a"], out["b"])


@pytest.mark.parametrize("gain", [(1.4, 0.4), (-0.1, 1.0), (1.0,), (0.5, 1.0, 1.5), (float("nan"), 1.0)])
def test_a_gain_that_is_none(gain: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="gain must be two numbers"):
        RandContrastPhased("image", gain=gain)
