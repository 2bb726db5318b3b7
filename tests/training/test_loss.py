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


def line(*values: int, dtype: torch.dtype = torch.uint8) -> Tensor:
    return torch.tensor(values, dtype=dtype).reshape(1, 1, -1, 1, 1)


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
    assert float(DiceCELoss(lambda_ce=0)(logits_of(found), label)) == pytest.approx(1 - 3 / 4)
    assert float(DiceCELoss(lambda_ce=0, smooth=0)(logits_of(found), label)) == pytest.approx(1 - 2 / 3)
    assert float(DiceCELoss(lambda_dice=0)(logits_of(found), label)) == pytest.approx(SURE / 4)
    assert float(DiceCELoss(lambda_dice=2, lambda_ce=0.5)(logits_of(found), label)) == pytest.approx(0.5 + SURE / 8)


def test_nothing_of_it_found() -> None:
    label, found = line(0, 1, 1, 0), line(1, 0, 0, 0)
    assert float(DiceCELoss(lambda_ce=0)(logits_of(found), label)) == pytest.approx(1 - 1 / 4)


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
    assert float(DiceCELoss(lambda_ce=0)(logits_of(found), label)) == pytest.approx(1 - 3 / 4)


def test_several_classes_count_alike() -> None:
    """Class 1: 2 of 2 voxels found; class 2: 1 voxel, taken for background."""
    label, found = line(0, 1, 1, 2), line(0, 1, 1, 0)
    loss = DiceCELoss(lambda_ce=0)(logits_of(found, 3), label)
    assert float(loss) == pytest.approx(1 - (1 + 1 / 2) / 2)
    with_background = DiceCELoss(include_background=True, lambda_ce=0)(logits_of(found, 3), label)
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
    mine = DiceCELoss(include_background=background, lambda_dice=1.5, lambda_ce=0.25, smooth=0.7)(ours, label)
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


def gradient(loss: DiceCELoss, logits: Tensor, label: Tensor) -> Tensor:
    logits = logits.clone().requires_grad_()
    loss(logits, label).backward()
    assert logits.grad is not None
    return logits.grad


def moved(logits: Tensor, gradient: Tensor, first: int, second: int) -> Tensor:
    """How the loss changes when probability goes from one class to another, per voxel."""
    p = logits.softmax(dim=1)
    # d logits that moves p from `first` to `second` and leaves all other classes as they are: +-1/p of the two.
    return gradient[:, second] / p[:, second] - gradient[:, first] / p[:, first]


MAYBE_2 = -(2**2)  # background, or class 2, which nobody drew


@pytest.mark.parametrize("background", [False, True])
def test_a_class_that_was_not_drawn_has_no_say(background: bool) -> None:
    """It costs nothing, and gains nothing, to call background the organ that nobody drew."""
    torch.manual_seed(0)
    logits, label = torch.randn(1, 4, 6, 1, 1), line(0, 0, 1, 3, 0, 0).int()
    partial = torch.where(label == 0, MAYBE_2, label)
    loss = DiceCELoss(include_background=background, lambda_dice=0.0)
    slope = moved(logits, gradient(loss, logits, partial), 0, 2)[0, :, 0, 0]
    undrawn = partial.flatten() < 0
    assert slope[undrawn].abs().max() < 1e-6
    assert moved(logits, gradient(loss, logits, label), 0, 2)[0, :, 0, 0][undrawn].abs().min() > 1e-2


def test_where_the_target_was_not_drawn_its_head_learns_nothing() -> None:
    """Logits of background and pancreas, then of all classes."""
    torch.manual_seed(0)
    label = line(-2, -2, -2, -2, dtype=torch.int32)
    slope = gradient(DiceCELoss(num_classes=2, auxiliary_weight=0.0), torch.randn(1, 5, 4, 1, 1), label)
    assert slope.abs().max() < 1e-6
    drawn = gradient(DiceCELoss(num_classes=2, auxiliary_weight=0.0), torch.randn(1, 5, 4, 1, 1), line(0, 0, 0, 0))
    assert drawn[:, :2].abs().min() > 0


def test_dice_leaves_out_what_may_be_either() -> None:
    """Class 2 is predicted where it may be, which does not count, and where it is not: 1 / (1 + 1)."""
    label, found = line(MAYBE_2, MAYBE_2, 1, 1, dtype=torch.int32), line(2, 0, 1, 2)
    dice_2, dice_1 = 1 / 2, (2 + 1) / (1 + 2 + 1)
    loss = DiceCELoss(lambda_ce=0)(logits_of(found, 3), label)
    assert float(loss) == pytest.approx(1 - (dice_1 + dice_2) / 2)
    only_1 = DiceCELoss(lambda_dice=0)(logits_of(found, 3), label)
    assert float(only_1) == pytest.approx(SURE / 4)  # the last voxel; nothing of the first


def test_labels_in_full_and_in_part_in_one_batch() -> None:
    torch.manual_seed(1)
    logits = torch.randn(2, 3, 5, 1, 1)
    label = torch.cat([line(0, 1, 2, 0, 0), line(0, 1, 0, 0, 1)]).int()
    in_full = DiceCELoss()(logits, label)
    in_part = torch.cat([label[:1], torch.where(label[1:] == 0, MAYBE_2, label[1:])])
    p = logits.softmax(dim=1)
    nll = torch.cat([p.log()[0].gather(0, label[0].long())[0], p[1].log()[1:2, [1, 4]].flatten()[:, None, None]])
    merged = (p[1, 0] + p[1, 2]).log()[[0, 2, 3]]
    expected = -(nll.sum() + merged.sum()) / 10
    assert float(DiceCELoss(lambda_dice=0)(logits, in_part)) == pytest.approx(float(expected), rel=1e-5)
    assert float(DiceCELoss()(logits, in_part)) != pytest.approx(float(in_full))
