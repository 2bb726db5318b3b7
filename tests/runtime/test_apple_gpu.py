"""Apple's GPUs ("mps"), pretended on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from apple_gpu import MPS, OnGPU, pretended
from conftest import PLAIN, TINY
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from attunet3d import AttentionUNet, Segmenter
from attunet3d.errors import ConfigError
from attunet3d.runtime.device import choose_device, choose_precision
from attunet3d.runtime.fast_network import prepare
from attunet3d.training import AverageWeights, DiceCELoss


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with pretended(monkeypatch):
        yield


def test_the_pretended_gpu_refuses_float64_and_strangers(gpu: None) -> None:
    there = torch.arange(3.0, device=MPS)
    assert isinstance(there, OnGPU)
    assert (there * 2).cpu().tolist() == [0, 2, 4]
    assert not isinstance(there.cpu(), OnGPU)
    for wrong in (lambda: there.double(), lambda: torch.zeros(2, dtype=torch.float64, device=MPS)):
        with pytest.raises(TypeError, match="doesn't support float64"):
            wrong()
    with pytest.raises(RuntimeError, match="same device"):
        there + torch.ones(3)


@pytest.mark.parametrize(
    ("orientation", "settings"),
    [("LPS", {"scales": [0.7, 1.3], "threshold": 0.4, "keep_components": 0.05, "overlap": 0.5}), ("oblique", PLAIN)],
)
def test_a_ct_is_segmented_there_as_on_the_cpu(
    tiny_checkpoint: Path,
    write_phantom: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    orientation: str,
    settings: dict[str, Any],
) -> None:
    ct = write_phantom(orientation)
    ids = {"checkpoint": tiny_checkpoint, "precision": "fp32", **TINY, **settings}
    expected = Segmenter(device="cpu", backend="torch", **ids).segment(ct, attention=True)
    with pretended(monkeypatch):
        session = Segmenter(**ids)
        found = session.segment(ct, attention=True)
        assert session.device == MPS
    assert expected.mask.any()
    assert np.mean(found.mask != expected.mask) < 1e-4, "other forms of the network round differently"
    assert (found.record["device"], found.record["precision"]) == ("mps", "float32")
    assert found.attention is not None
    for level, alphas in found.attention.items():
        assert np.abs(alphas.astype(int) - expected.attention[level]).max() <= 1


def test_a_step_of_training_needs_no_float64() -> None:
    """What is computed on the GPU, here on the CPU: network, loss, gradients, optimizer and average."""

    class NoFloat64(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            for value in tree_flatten(out)[0]:
                assert not isinstance(value, torch.Tensor) or value.dtype != torch.float64, func
            return out

    torch.manual_seed(0)
    inner = AttentionUNet(channels=TINY["channels"])
    network = prepare(inner, "cpu", "fp32", training=True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    average, loss = AverageWeights(inner, 0.9), DiceCELoss()
    image, label = torch.rand(1, 1, 32, 32, 32), torch.zeros(1, 1, 32, 32, 32, dtype=torch.uint8)
    label[..., 8:20, 8:20, 8:20] = 1
    before = average.network.final.weight.clone()
    with NoFloat64():
        loss(network(image), label).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        average.update()
    assert not torch.equal(average.network.final.weight, before)


def test_what_torch_does_wrong_there_is_noticed(
    tiny_checkpoint: Path, gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As once convolutions of channels-last volumes were."""
    conv = torch.nn.Conv3d.forward

    def wrong(self: torch.nn.Conv3d, x: torch.Tensor) -> torch.Tensor:
        return conv(self, x) * (1.5 if isinstance(x, OnGPU) else 1.0)

    monkeypatch.setattr(torch.nn.Conv3d, "forward", wrong)
    with pytest.raises(ConfigError, match='this torch computes the network wrongly there; use device "cpu"'):
        Segmenter(tiny_checkpoint, **TINY)


def test_device_and_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")
    with pytest.raises(ConfigError, match='device "mps" is not available: torch finds no Apple GPU; use "cpu"'):
        choose_device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("auto") == choose_device("mps") == MPS
    assert choose_precision("auto", MPS) == choose_precision("auto", MPS, training=True) == torch.float32
    assert choose_precision("fp16", MPS) == torch.float16
    with pytest.raises(ConfigError, match="for inference"):
        choose_precision("fp16", MPS, training=True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == torch.device("cuda")
