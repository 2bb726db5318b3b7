"""Dice and cross-entropy: sums by hand, MONAI's loss where both are the same, and several processes as one."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from monai import losses
from processes import together
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from attunet3d.training import DiceCELoss

SURE = 200.0  # a logit that leaves no doubt: e^-200 is 0 in float32


def logits_of(label: Tensor, classes: int = 2) -> Tensor:
    """Logits of a prediction that is sure of ``label`` (B, 1, X, Y, Z)."""
    return SURE * nn.functional.one_hot(label[:, 0].long(), classes).movedim(-1, 1).float()


def line(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.uint8).reshape(1, 1, -1, 1, 1)


def test_a_perfect_prediction_costs_nothing() -> None:
    label = line(0, 1, 1, 0)
    assert float(DiceCELoss()(logits_of(label), label)) == 0
    assert float(DiceCELoss(include_background=True)(logits_of(label), label)) == 0


def test_an_empty_label_predicted_empty_costs_nothing() -> None:
    empty = line(0, 0, 0, 0)
    assert float(DiceCELoss()(logits_of(empty), empty)) == 0


def test_half_of_it_found() -> None:
    """2 voxels, 1 of them found: Dice (2 x 1 + 1) / (1 + 2 + 1); cross-entropy 200 in 1 voxel of 4."""
    label, found = line(0, 1, 1, 0), line(0, 1, 0, 0)
    assert float(DiceCELoss(ce_weight=0)(logits_of(found), label)) == pytest.approx(1 - 3 / 4)
    assert float(DiceCELoss(ce_weight=0, smooth=0)(logits_of(found), label)) == pytest.approx(1 - 2 / 3)
    assert float(DiceCELoss(dice_weight=0)(logits_of(found), label)) == pytest.approx(SURE / 4)
    assert float(DiceCELoss(dice_weight=2, ce_weight=0.5)(logits_of(found), label)) == pytest.approx(0.5 + SURE / 8)


def test_nothing_of_it_found() -> None:
    label, found = line(0, 1, 1, 0), line(1, 0, 0, 0)
    assert float(DiceCELoss(ce_weight=0)(logits_of(found), label)) == pytest.approx(1 - 1 / 4)


def test_no_idea() -> None:
    """Everywhere 1/2: Dice (2 x 1 + 1) / (2 + 2 + 1), background's the same; cross-entropy log 2."""
    label = line(0, 1, 1, 0)
    for background in (False, True):
        loss = DiceCELoss(include_background=background)(torch.zeros(1, 2, 4, 1, 1), label)
        assert float(loss) == pytest.approx(1 - 3 / 5 + math.log(2))


def test_dice_is_that_of_the_whole_batch() -> None:
    """A patch without pancreas, and one where 1 voxel of 2 is found: 3/4 as before, not a mean with anything."""
    label = torch.cat([line(0, 1, 1, 0), line(0, 0, 0, 0)])
    found = torch.cat([line(0, 1, 0, 0), line(0, 0, 0, 0)])
    assert float(DiceCELoss(ce_weight=0)(logits_of(found), label)) == pytest.approx(1 - 3 / 4)


def test_several_classes_count_alike() -> None:
    """Class 1: 2 of 2 voxels found; class 2: 1 voxel, taken for background."""
    label, found = line(0, 1, 1, 2), line(0, 1, 1, 0)
    loss = DiceCELoss(ce_weight=0)(logits_of(found, 3), label)
    assert float(loss) == pytest.approx(1 - (1 + 1 / 2) / 2)
    with_background = DiceCELoss(include_background=True, ce_weight=0)(logits_of(found, 3), label)
    assert float(with_background) == pytest.approx(1 - (3 / 4 + 1 + 1 / 2) / 3)


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("background", [False, True])
def test_it_is_monais(classes: int, background: bool) -> None:
    torch.manual_seed(classes)
    label = torch.randint(0, classes, (3, 1, 4, 5, 3))
    ours = torch.randn(3, classes, 4, 5, 3, dtype=torch.float64, requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    monais = losses.DiceCELoss(
        include_background=background, to_onehot_y=True, softmax=True, batch=True, smooth_nr=0.7, smooth_dr=0.7,
        lambda_dice=1.5, lambda_ce=0.25,
    )  # fmt: skip
    mine = DiceCELoss(include_background=background, dice_weight=1.5, ce_weight=0.25, smooth=0.7)(ours, label)
    other = monais(theirs, label)
    torch.testing.assert_close(mine, other, rtol=1e-10, atol=0)
    mine.backward()
    other.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-12)


def test_gradcheck() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    label = torch.randint(0, 3, (2, 1, 2, 2, 2))
    assert torch.autograd.gradcheck(lambda x: DiceCELoss(include_background=True)(x, label), (logits,))


def test_logits_of_any_size_give_finite_gradients() -> None:
    label = line(0, 1, 1, 0)
    logits = (1e4 * torch.randn(1, 2, 4, 1, 1)).requires_grad_()
    DiceCELoss()(logits, label).backward()
    assert bool(logits.grad.isfinite().all())


def cases_of_all(processes: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A network, images and labels, one a process; the second label is empty."""
    torch.manual_seed(0)
    images = torch.randn(processes, 1, 4, 4, 4, dtype=torch.float64)
    label = (images > 0.5).to(torch.uint8)
    label[1] = 0
    return nn.Conv3d(1, 2, 3, padding=1).double(), images, label


def one_of_several(rank: int, processes: int) -> dict[str, Any]:
    network, images, label = cases_of_all(processes)
    mine = slice(rank, rank + 1)
    parallel = DistributedDataParallel(network)
    loss = DiceCELoss()(parallel(images[mine]), label[mine])
    loss.backward()
    return {"loss": loss.detach(), "gradients": [p.grad for p in network.parameters()]}


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_have_the_loss_and_gradient_of_one(processes: int, tmp_path: Path) -> None:
    found = together(one_of_several, tmp_path, processes, processes=processes)
    network, images, label = cases_of_all(processes)
    loss = DiceCELoss()(network(images), label)
    loss.backward()
    mean = torch.stack([one["loss"] for one in found]).mean()
    torch.testing.assert_close(mean, loss.detach(), rtol=1e-10, atol=0)
    for one in found:
        for ours, expected in zip(one["gradients"], network.parameters(), strict=True):
            torch.testing.assert_close(ours, expected.grad, rtol=1e-9, atol=1e-12)


def test_other_organs_have_a_loss_of_their_own() -> None:
    """Five channels: two of the target, three of all classes; class 2 is background to the target."""
    label = line(0, 1, 2, 0)
    target, organs = logits_of(line(0, 1, 0, 0)), logits_of(label, 3)
    loss = DiceCELoss(num_classes=2, auxiliary_weight=0.5)
    assert float(loss(torch.cat((target, organs), dim=1), label)) == 0
    wrong = torch.cat((target, logits_of(line(0, 1, 0, 0), 3)), dim=1)
    alone = DiceCELoss()(logits_of(line(0, 1, 0, 0), 3), label)
    assert float(loss(wrong, label)) == pytest.approx(0.5 * float(alone))
    missed = torch.cat((logits_of(line(0, 0, 0, 0)), organs), dim=1)
    assert float(loss(missed, label)) == pytest.approx(float(DiceCELoss()(missed[:, :2], line(0, 1, 0, 0))))
