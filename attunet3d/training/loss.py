"""Soft Dice and cross-entropy over the batch of all processes."""

from __future__ import annotations

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F


class DiceCELoss(nn.Module):
    """``lambda_dice`` x (1 - soft Dice) + ``lambda_ce`` x cross-entropy.

    The Dice of a class is computed over the whole batch of all processes: a patch without pancreas has no meaningful
    Dice, and n processes have the loss and the gradient of one process with n times the batch.

    Args:
        include_background: whether to include the Dice of background, as in the paper; it is near 1 from the start.
        lambda_dice, lambda_ce: weights of the two terms.
        smooth: added to numerator and denominator, voxels: an empty class that is predicted empty has a Dice of 1.
        num_classes: number of target classes, background included, to which the first logits belong; None: all. Further
            logits belong to the auxiliary task: all classes of the label (target, other organs, background).
        auxiliary_weight: weight of the loss of the auxiliary task.

    If a label is negative (see ``UnlabelledClassesd``), the voxel is background or one of the classes that are not
    annotated in this case. Then the cross-entropy takes the sum of their probabilities as that of background, and the
    Dice of these classes ignores the voxel.

    Source: Milletari et al., V-Net, arXiv 1606.04797 (Dice, here with plain sums in the denominator). Partial labels:
    Fang and Yan, IEEE TMI 39, 2020; Shi et al., Medical Image Analysis 70, 2021 (marginal loss).
    """

    def __init__(
        self,
        include_background: bool = False,
        lambda_dice: float = 1.0,
        lambda_ce: float = 1.0,
        smooth: float = 1.0,
        num_classes: int | None = None,
        auxiliary_weight: float = 0.5,
    ) -> None:
        super().__init__()
        self.first = 0 if include_background else 1
        self.lambda_dice = lambda_dice
        self.lambda_ce = lambda_ce
        self.smooth = smooth
        self.num_classes = num_classes
        self.auxiliary_weight = auxiliary_weight

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """Logits (B, C, X, Y, Z) and label (B, 1, X, Y, Z), see ``split_label`` -> scalar."""
        known, maybe = split_label(label[:, 0].long())
        count = self.num_classes
        if count is None or logits.shape[1] == count:
            return self._loss(logits, known, maybe)
        of_target = None if maybe is None else maybe & (1 << count) - 1
        target = self._loss(logits[:, :count], known * (known < count), of_target)
        return target + self.auxiliary_weight * self._loss(logits[:, count:], known, maybe)

    def _loss(self, logits: Tensor, label: Tensor, maybe: Tensor | None) -> Tensor:
        log_p = F.log_softmax(logits, dim=1)
        p = log_p.exp()
        classes = range(self.first, logits.shape[1])
        inside = torch.stack([(p[:, c] * (label == c)).sum() for c in classes])
        predicted = torch.stack([(p[:, c] if maybe is None else p[:, c] * ~_has(maybe, c)).sum() for c in classes])
        labelled = torch.stack([(label == c).sum() for c in classes]).to(p.dtype)
        inside, predicted, labelled = _over_processes(torch.stack([inside, predicted, labelled]))
        dice = (2 * inside + self.smooth) / (predicted + labelled + self.smooth)
        if maybe is not None:
            log_p = torch.cat([_log_background(log_p, maybe), log_p[:, 1:]], dim=1)
        cross_entropy = F.nll_loss(log_p, label)
        return self.lambda_dice * (1 - dice.mean()) + self.lambda_ce * cross_entropy


def split_label(label: Tensor) -> tuple[Tensor, Tensor | None]:
    """Split labels that may be negative into class numbers and, for voxels of unknown class, bits of possible classes.

    Bit c is set if the voxel may be of class c. The second is None if the class of every voxel is known.
    """
    maybe = (-label).clamp(min=0)
    return label.clamp(min=0), maybe if bool(maybe.any()) else None


def _has(maybe: Tensor, number: int) -> Tensor:
    return (maybe >> number & 1).bool()


def _log_background(log_p: Tensor, maybe: Tensor) -> Tensor:
    """Return the log probability (B, 1, X, Y, Z) of background or any other possible class of the voxel."""
    classes = torch.arange(1, log_p.shape[1], device=log_p.device).reshape(-1, 1, 1, 1)
    other = log_p[:, 1:].masked_fill(~_has(maybe[:, None], classes), -torch.inf)
    return torch.cat([log_p[:, :1], other], dim=1).logsumexp(dim=1, keepdim=True)


def _over_processes(sums: Tensor) -> Tensor:
    """Sum over all processes; gradients, once averaged over processes, are those of one process with all batches."""
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return sums
    total = sums.detach().clone()
    distributed.all_reduce(total)
    # DistributedDataParallel divides by the number of processes, but here each has the gradient of the whole batch.
    return total + distributed.get_world_size() * (sums - sums.detach())
