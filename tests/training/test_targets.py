"""The target's classes, of logits and of labels."""

import pytest
import torch

from attunet3d.errors import ConfigError
from attunet3d.training import TargetClassesd, UnlabelledClassesd
from attunet3d.training.targets import unlabelled_bits


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


def test_background_of_a_case_that_names_its_organs() -> None:
    """Of liver (2) and spleen (3), and two classes of the pancreas, only the liver was drawn."""
    classes = ["pancreas", "liver", "spleen"]
    label = torch.tensor([0, 2, 0, 2], dtype=torch.uint8).reshape(1, 2, 2, 1)
    to_partial = UnlabelledClassesd("label", classes)
    out = to_partial({"label": label, "labelled": ["liver"]})
    assert out["label"].flatten().tolist() == [-(2**1 + 2**3), 2, -(2**1 + 2**3), 2]
    assert "labelled" not in out
    for all_drawn in ({"label": label}, {"label": label, "labelled": classes}):
        assert to_partial(all_drawn)["label"].flatten().tolist() == [0, 2, 0, 2]
    assert unlabelled_bits(["liver"], ["pancreas", "pancreas", "liver"]) == 2**1 + 2**2
    with pytest.raises(ConfigError, match="names kidney; the classes are pancreas, liver, spleen"):
        to_partial({"label": label, "labelled": ["kidney"]})


def test_a_case_may_have_more_organs_than_are_trained() -> None:
    """As long as the classes are called as in prepared datalists: "Liver" might be a case's "liver"."""
    drawn = ["pancreas", "liver", "duodenum"]
    assert unlabelled_bits(drawn, ["pancreas"]) == 0
    assert unlabelled_bits(drawn, ["pancreas", "spleen", "liver"]) == 2**2
    for classes, found in ((["pancreas", "Liver"], "duodenum, liver"), (["pancreas", "kidneys"], "duodenum, liver")):
        with pytest.raises(ConfigError, match=f"names {found}; the classes are"):
            unlabelled_bits(drawn, classes)


def test_what_may_be_an_organ_is_no_target() -> None:
    label = torch.tensor([-2, -4, 1, 2], dtype=torch.int32).reshape(1, 2, 2, 1)
    assert TargetClassesd("label", num_classes=2)({"label": label})["label"].flatten().tolist() == [0, 0, 1, 0]
