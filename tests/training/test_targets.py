"""The target's classes, of logits and of labels."""

import torch

from attunet3d.training import TargetClassesd


def test_first_channels_of_logits_and_first_classes_of_labels() -> None:
    logits = torch.arange(5 * 8.0).reshape(5, 2, 2, 2)
    label = torch.tensor([0, 1, 2, 3, 4, 1, 0, 7], dtype=torch.uint8).reshape(1, 2, 2, 2)
    out = TargetClassesd(["pred", "label"], num_classes=3)({"pred": logits, "label": label})
    assert torch.equal(out["pred"], logits[:3])
    assert out["label"].flatten().tolist() == [0, 1, 2, 0, 0, 1, 0, 0]
    assert out["label"].dtype == torch.uint8


def test_nothing_beside_the_target_changes_nothing() -> None:
    logits, label = torch.rand(2, 3, 3, 3), torch.ones(1, 3, 3, 3, dtype=torch.uint8)
    out = TargetClassesd(["pred", "label"], num_classes=2)({"pred": logits, "label": label})
    assert torch.equal(out["pred"], logits)
    assert torch.equal(out["label"], label)
