"""HU of other patients: each organ's own range, edges and noise kept in part, all else by its own rule."""

import pytest
import torch
from torch import Tensor

from attunet3d.errors import ConfigError
from attunet3d.training import RandOrganHUd
from attunet3d.training.organ_hu import ORGAN_HU

ORGANS = ("pancreas", "liver", "stomach", "vertebrae")
SHAPE = (1, 24, 24, 24)


def case(seed: int = 0) -> dict[str, Tensor]:
    """Fat (-100 HU); slabs of pancreas (100), liver (110), stomach (40, gas in a corner), bone (600); noise of 5 HU."""
    label = torch.zeros(SHAPE, dtype=torch.uint8)
    for number in range(1, 5):
        label[:, 5 * number : 5 * number + 4] = number
    hu = torch.tensor([-100.0, 100.0, 110.0, 40.0, 600.0])[label.long()]
    hu += 5 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))
    hu[:, 15:19, 20:] = -900
    return {"image": hu, "label": label}


def change(seed: int, **options: object) -> Tensor:
    transform = RandOrganHUd("image", "label", ORGANS, **{"prob": 1.0, "any_hu_prob": 0.0, **options})  # type: ignore[arg-type]
    return transform.set_random_state(seed=seed)(case())["image"]


def test_none_of_them() -> None:
    assert torch.equal(change(0, prob=0.0), case()["image"])


def test_means_lie_in_the_ranges_of_one_phase() -> None:
    label, phases = case()["label"], set()
    for seed in range(40):
        image = change(seed)
        means = [float(image[label == number].mean()) for number in (1, 2)]
        fits = [
            phase
            for phase in range(3)
            if all(
                low - 4 <= mean <= high + 4  # noise that is laid over it is not 0 on average
                for mean, (low, high) in zip(means, (ORGAN_HU[n][phase] for n in ORGANS[:2]), strict=True)
            )
        ]
        assert fits, f"pancreas and liver of {means} HU are of no phase"
        phases.update(fits if len(fits) == 1 else [])
    assert {0, 1} <= phases, "all phases are drawn"


def test_any_hu_reaches_beyond_the_phases() -> None:
    label = case()["label"]
    means = [float(change(seed, any_hu_prob=1.0)[label == 1].mean()) for seed in range(40)]
    assert -25 < min(means) < -15
    assert 135 < max(means) < 205


def test_bone_and_air_stay_apart_from_soft_tissue() -> None:
    label = case()["label"]
    for seed in range(20):
        image = change(seed)
        assert float(image[label == 4].mean()) > 300
        assert -130 < float(image[(label == 0)].mean()) < -70, "fat stays fat"


def test_gas_stays_gas_or_becomes_fluid() -> None:
    seen = set()
    for seed in range(40):
        gas = change(seed)[:, 15:19, 20:]
        mean = float(gas.mean())
        assert float(gas.std()) < 15
        assert mean < -850 or -5 < mean < 65
        seen.add(mean < -300)
    assert seen == {True, False}


def test_what_no_label_names_is_left_alone_by_classes() -> None:
    """A label without any organ: the order of HU of what is there remains."""
    ramp = torch.linspace(-180, 400, 24).reshape(1, 24, 1, 1).expand(SHAPE).clone()
    transform = RandOrganHUd("image", "label", (), prob=1.0)
    for seed in range(10):
        out = transform.set_random_state(seed=seed)({"image": ramp, "label": torch.zeros(SHAPE, dtype=torch.uint8)})
        means = out["image"][0].mean(dim=(1, 2))
        assert bool((means.diff() > -4).all())


def test_the_image_given_stays_as_it_is() -> None:
    data = case()
    before = data["image"].clone()
    RandOrganHUd("image", "label", ORGANS, prob=1.0).set_random_state(seed=1)(data)
    assert torch.equal(data["image"], before)


@pytest.mark.parametrize("organs", ["liver", [5], [["liver"]]])
def test_names_are_asked_for(organs: object) -> None:
    with pytest.raises(ConfigError, match="names of the classes"):
        RandOrganHUd("image", "label", organs)  # type: ignore[arg-type]
