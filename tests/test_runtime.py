"""Device, precision and weights."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from attunet3d import AttentionUNet, load_network
from attunet3d.errors import CheckpointError, ConfigError
from attunet3d.runtime import choose_device, choose_precision, load_weights, prepare, read_weights, save_weights

CPU = torch.device("cpu")


def small() -> AttentionUNet:
    torch.manual_seed(0)
    return AttentionUNet(channels=(4, 8, 8, 8, 8)).eval()


def test_device_and_precision() -> None:
    assert choose_device("cpu") == CPU
    assert choose_precision("bf16", CPU) == torch.bfloat16
    assert choose_precision("auto", CPU) in (torch.float32, torch.bfloat16)
    assert choose_precision("auto", CPU, training=True) != torch.float16
    with pytest.raises(ConfigError, match="int8"):
        choose_precision("int8", CPU)
    with pytest.raises(ConfigError, match="GPU"):
        choose_precision("fp16", CPU)
    with pytest.raises(ConfigError, match="inference"):
        choose_precision("fp16", torch.device("cuda"), training=True)
    with pytest.raises(ConfigError, match="cuda:99"):
        choose_device("cuda:99")


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 0.05)])
def test_prepared_network_computes_the_same(precision: str, tolerance: float) -> None:
    net = small()
    x = torch.rand(1, 1, 33, 20, 16)
    with torch.no_grad():
        expected = net(x)
        logits = prepare(net, "cpu", precision)(x)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, expected, rtol=0, atol=tolerance * float(expected.abs().max()))


@pytest.mark.parametrize("depth", [16, 32, 47, 64])
def test_bf16_gradients_are_those_of_fp32(depth: int) -> None:
    """At every depth: on CPUs some bf16 gradients would be uninitialized memory (see MixedPrecision)."""
    x = torch.rand(2, 1, depth, 32, 32)
    gradients = []
    for precision in ("fp32", "bf16"):
        net = small().train()
        logits = prepare(net, "cpu", precision, training=True)(x)
        logits[:, 0, : depth // 2].square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None]))
    exact, low = gradients
    assert torch.isfinite(low).all()
    assert torch.nn.functional.cosine_similarity(exact, low, dim=0) > 0.9


def test_weights_loaded_later_take_effect(tmp_path: Path) -> None:
    """The bundle loads weights into network_def after `prepare` has wrapped it."""
    net, other = small(), AttentionUNet(channels=(4, 8, 8, 8, 8)).eval()
    torch.save(other.state_dict(), tmp_path / "other.pt")
    prepared = prepare(net, "cpu", "fp32")
    load_weights(net, tmp_path / "other.pt")
    x = torch.rand(1, 1, 16, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(prepared(x), other(x))


def test_half_precision_weights_round_trip(tmp_path: Path) -> None:
    net, copy = small(), AttentionUNet(channels=(4, 8, 8, 8, 8)).eval()
    save_weights(net.state_dict(), tmp_path / "half.pt")
    torch.save(net.state_dict(), tmp_path / "full.pt")
    assert (tmp_path / "half.pt").stat().st_size < 0.75 * (tmp_path / "full.pt").stat().st_size
    load_weights(copy, tmp_path / "half.pt")
    for key, value in net.state_dict().items():
        torch.testing.assert_close(copy.state_dict()[key], value, rtol=1e-3, atol=1e-6)
        assert copy.state_dict()[key].dtype == value.dtype


def test_no_pickle_is_run(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "harm",)  # type: ignore[return-value]

    torch.save({"model": Harm()}, tmp_path / "harm.pt")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Harm()))
    for name in ("harm.pt", "raw.pt"):
        with pytest.raises(CheckpointError, match="not loaded"):
            read_weights(tmp_path / name)
    assert not (tmp_path / "harm").exists()


def test_unfit_weights_say_why(tmp_path: Path) -> None:
    weights = small().state_dict()
    cases = {
        "wide.pt": (AttentionUNet(channels=(8, 8, 8, 8, 8)).state_dict(), "not"),
        "gateless.pt": (AttentionUNet(channels=(4, 8, 8, 8, 8), gate=None).state_dict(), "missing"),
        "nan.pt": ({**weights, "final.bias": torch.full((2,), float("nan"))}, "not finite"),
        "list.pt": ([1, 2], "no state dict"),
    }
    for name, (content, why) in cases.items():
        torch.save(content, tmp_path / name)
        with pytest.raises(CheckpointError, match=why):
            load_weights(small(), tmp_path / name)


def test_load_network_is_ready() -> None:
    network = load_network(device="cpu", precision="fp32")
    assert not network.training
    with torch.no_grad():
        assert network(torch.zeros(1, 1, 16, 16, 16)).shape == (1, 2, 16, 16, 16)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_gpu_agrees_with_cpu(precision: str) -> None:
    net = small()
    x = torch.rand(1, 1, 32, 32, 32)
    with torch.no_grad():
        expected = net(x)
        logits = prepare(net, "cuda", precision)(x.cuda()).cpu()
    torch.testing.assert_close(logits, expected, rtol=0, atol=0.05 * float(expected.abs().max()))
