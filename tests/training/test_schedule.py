"""The learning rate of each epoch, by hand."""

import pytest
import torch
from torch import nn
from torch.optim import SGD

from attunet3d.training import warmup_polynomial


def rates(warmup: int, epochs: int, power: float = 0.9, steps: int | None = None) -> list[float]:
    optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=8.0)
    schedule = warmup_polynomial(optimizer, warmup, epochs, power)
    found = []
    for _ in range(epochs if steps is None else steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_known_values() -> None:
    # 3 epochs of warm-up are quarters of the rate; then 1, 3/4, 2/4, 1/4 of it.
    assert rates(3, 7, power=1.0) == pytest.approx([2, 4, 6, 8, 6, 4, 2])
    assert rates(0, 4, power=2.0) == pytest.approx([8, 8 * 9 / 16, 2, 0.5])
    assert rates(0, 2) == pytest.approx([8, 8 * 0.5**0.9])


@pytest.mark.parametrize(("warmup", "epochs"), [(0, 1), (1, 1), (5, 3), (5, 5), (5, 300), (0, 10)])
def test_never_negative_nor_zero_while_it_trains(warmup: int, epochs: int) -> None:
    found = rates(warmup, epochs, steps=epochs + 20)
    assert all(type(rate) is float for rate in found), "1 - a share greater than 1, to the 0.9, is a complex number"
    assert all(0 < rate <= 8 for rate in found[:epochs])
    assert all(rate == 0 for rate in found[max(epochs, warmup + 1) :])


def test_it_rises_and_then_falls() -> None:
    found = rates(4, 20)
    assert found[:5] == sorted(found[:5])
    assert found[4:] == sorted(found[4:], reverse=True)
    assert max(found) == found[4] == 8


def test_it_goes_on_after_a_round_trip() -> None:
    def make() -> tuple[SGD, torch.optim.lr_scheduler.LambdaLR]:
        optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=8.0)
        return optimizer, warmup_polynomial(optimizer, 2, 6, 1.0)

    optimizer, schedule = make()
    for _ in range(3):
        optimizer.step()
        schedule.step()
    resumed, follows = make()
    resumed.load_state_dict(optimizer.state_dict())
    follows.load_state_dict(schedule.state_dict())
    found = []
    for _ in range(3):
        found.append(resumed.param_groups[0]["lr"])
        resumed.step()
        follows.step()
    assert found == pytest.approx(rates(2, 6, 1.0)[3:])
