"""Device and precision, and the variants of a network for inference: tested before they are used."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from attunet3d import AttentionUNet, load_network
from attunet3d.checkpoint import load_weights
from attunet3d.config.changes import inference_values
from attunet3d.errors import ConfigError, MemoryLimitError
from attunet3d.networks.folding import fold
from attunet3d.runtime import fast_network, openvino, torch_variants
from attunet3d.runtime.device import choose_device, choose_precision
from attunet3d.runtime.fast_network import FastNetwork, MixedPrecision, prepare
from attunet3d.runtime.loading import build_network
from attunet3d.runtime.variants import TOLERANCE, Run, Variant, VariantBuilder

CPU = torch.device("cpu")
# float32 sums in another order, over some 500 terms a layer in some 20 layers.
FP32_TOLERANCE = 1e-5
# bf16 rounds to 8 bits (4e-3 of a value) after each of some 20 layers.
BF16_TOLERANCE = 0.05


def small(**kwargs: Any) -> AttentionUNet:
    """A network whose BatchNorm is not that of a new one, so that what is done to it matters."""
    torch.manual_seed(0)
    net = AttentionUNet(channels=(4, 8, 8, 8, 8), **kwargs)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm3d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return net.eval()


def image(*size: int) -> Tensor:
    return torch.rand(1, 1, *(size or (33, 20, 16)), generator=torch.Generator().manual_seed(1))


def assert_same(logits: Tensor, expected: Tensor, tolerance: float) -> None:
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, expected, rtol=0, atol=tolerance * float(expected.abs().max()))


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


# --- in training


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", FP32_TOLERANCE), ("bf16", BF16_TOLERANCE)])
@torch.no_grad()
def test_network_prepared_for_training_computes_the_same(precision: str, tolerance: float) -> None:
    net = small()
    prepared = prepare(net, "cpu", precision, training=True)
    assert not isinstance(prepared, FastNetwork)
    assert_same(prepared(image()), net(image()), tolerance)


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


@torch.no_grad()
def test_in_train_mode_dropout_is_active() -> None:
    """As for dropout at inference, which estimates uncertainty; in eval mode the same network is certain."""
    network = prepare(small(dropout=0.5), "cpu", "fp32", backend="torch")
    x = image()
    network.train()
    assert not torch.allclose(network(x), network(x), atol=1e-2)
    network.eval()
    assert torch.equal(network(x), network(x))


# --- variants for inference


@pytest.mark.parametrize("classes", [1, 2, 3])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", FP32_TOLERANCE), ("bf16", BF16_TOLERANCE)])
@torch.no_grad()
def test_fast_network_computes_the_same(precision: str, tolerance: float, classes: int) -> None:
    net = small(out_channels=classes)
    network = prepare(net, "cpu", precision, backend="torch").eval()
    for size in ((33, 20, 16), (16, 16, 16), (17, 48, 31)):
        assert_same(network(image(*size)), net(image(*size)), tolerance)
    assert isinstance(network, FastNetwork)
    assert str(network.variant) == {"fp32": "torch float32", "bf16": "torch bfloat16"}[precision]


@pytest.mark.parametrize("training", [True, False])
@torch.no_grad()
def test_single_logit_is_the_difference_of_the_two_classes_in_either_mode(training: bool) -> None:
    net = small().train(training)
    network = prepare(net, "cpu", "fp32", backend="torch", single_logit=True).train(training)
    logits = net(image())
    assert_same(network(image()), logits[:, 1:] - logits[:, :1], FP32_TOLERANCE)


@torch.no_grad()
def test_single_logit_of_a_third_party_network() -> None:
    net = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.BatchNorm3d(4), nn.ReLU(), nn.Conv3d(4, 2, 1)).eval()
    network = prepare(net, "cpu", "fp32", backend="torch", single_logit=True).eval()
    logits = net(image())
    assert_same(network(image()), logits[:, 1:] - logits[:, :1], FP32_TOLERANCE)


@pytest.mark.parametrize("already_run", [True, False])
@torch.no_grad()
def test_weights_loaded_later_take_effect(tmp_path: Path, already_run: bool) -> None:
    """The bundle loads weights into network_def after ``prepare`` has wrapped it; a study may load others in turn."""
    net, other = small(), AttentionUNet(channels=(4, 8, 8, 8, 8)).eval()
    torch.save(other.state_dict(), tmp_path / "other.pt")
    network = prepare(net, "cpu", "fp32", backend="torch").eval()
    x = image()
    if already_run:
        assert not torch.allclose(network(x), other(x), atol=1e-2)
    load_weights(net, tmp_path / "other.pt")
    assert_same(network(x), other(x), FP32_TOLERANCE)
    # BatchNorm's statistics are buffers, not parameters.
    nn.init.constant_(net.encoder[0].first.norm.running_mean, 3.0)
    assert not torch.allclose(network(x), other(x), atol=1e-2)
    assert_same(network(x), net(x), FP32_TOLERANCE)


@torch.no_grad()
def test_the_variant_is_built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    original = FastNetwork._fastest

    def counted(self: FastNetwork, x: Tensor) -> Any:
        made.append(1)
        return original(self, x)

    monkeypatch.setattr(FastNetwork, "_fastest", counted)
    network = prepare(small(), "cpu", "fp32", backend="torch").eval()
    for size in ((16, 16, 16), (20, 16, 16), (16, 16, 16)):
        network(image(*size))
    assert len(made) == 1


def test_names_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"backend 'no such' is not known: use auto, .*torch, openvino"):
        prepare(small(), "cpu", "fp32", backend="no such")
    with pytest.raises(ConfigError, match=r"network_def cannot be built.*NoSuchNet"):
        build_network({"_target_": "attunet3d.networks.NoSuchNet"})
    with pytest.raises(ConfigError, match=r"network_def cannot be built.*dropout"):
        build_network({"_target_": "attunet3d.networks.AttentionUNet", "dropout": 2.0})
    with pytest.raises(ConfigError, match=r"network_def cannot be built.*NoSuchNet"):
        build_network({"_target_": "attunet3d.networks.NoSuchNet"}, allow_code=True)
    with pytest.raises(ConfigError, match="is not a torch module"):
        build_network({"_target_": "fractions.Fraction"}, allow_code=True)
    with pytest.raises(ConfigError, match="network_def: expected a mapping of arguments, got int"):
        build_network(5)  # type: ignore[arg-type]


@torch.no_grad()
def test_a_backend_that_is_not_installed_is_replaced(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(openvino, "is_installed", lambda: False)
    net = small()
    for backend, warned in (("openvino", True), ("auto", False), ("torch", False)):
        caplog.clear()
        network = FastNetwork(net, CPU, torch.float32, backend).eval()
        assert_same(network(image()), net(image()), FP32_TOLERANCE)
        assert str(network.variant) == "torch float32"
        assert ("OpenVINO is not installed" in caplog.text) == warned


class Backend:
    """Stands for OpenVINO, which need not be installed."""

    made: ClassVar[list[Backend]] = []

    def __init__(self, network: nn.Module, example: Tensor, dtype: torch.dtype) -> None:
        self.network = network
        self.dtype = dtype
        self.released = 0
        self.made.append(self)

    def __call__(self, x: Tensor) -> Tensor:
        result: Tensor = self.network(x)
        return result

    def release_memory(self) -> None:
        self.released += 1


@pytest.fixture
def backends(monkeypatch: pytest.MonkeyPatch) -> list[Backend]:
    """The backends that are made."""
    monkeypatch.setattr(openvino, "is_installed", lambda: True)
    monkeypatch.setattr(openvino, "OpenVINONetwork", Backend)
    monkeypatch.setattr(Backend, "made", [])
    return Backend.made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", ["auto", "openvino"])
@torch.no_grad()
def test_openvino_runs_where_it_is_installed(backends: list[Backend], backend: str, dtype: torch.dtype) -> None:
    """And is not passed over for a mistake of ours, which the self-test would take for one of its own."""
    net = small()
    network = FastNetwork(net, CPU, dtype, backend).eval()
    assert_same(network(image()), net(image()), FP32_TOLERANCE)
    assert str(network.variant) == f"openvino {str(dtype).removeprefix('torch.')}"
    assert [made.dtype for made in backends] == [dtype]


@torch.no_grad()
def test_openvino_does_not_run_where_torch_is_asked_for(backends: list[Backend]) -> None:
    network = FastNetwork(small(), CPU, torch.float32, "torch").eval()
    network(image())
    network.release_memory()  # there is nothing to give back
    assert str(network.variant) == "torch float32"
    assert backends == []


def test_torch_is_split_on_cpus_alone_and_falls_back_to_float32() -> None:
    def listed(device: str, dtype: torch.dtype) -> list[tuple[str, bool, float]]:
        found = torch_variants.builders(device, dtype)
        return [(str(one.variant), one.variant.split, one.tolerance) for one in found]

    exact = [("torch float32", True, 5e-3), ("torch float32, joined", False, 5e-3)]
    assert listed("cpu", torch.float32) == exact
    assert listed("cpu", torch.bfloat16) == [
        ("torch bfloat16", True, 0.05),
        ("torch bfloat16, joined", False, 0.05),
        *exact,
    ]
    assert listed("cuda", torch.float16) == [("torch float16", False, 0.01), ("torch float32", False, 5e-3)]


@torch.no_grad()
def test_another_backend_takes_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    net, released = small(), []

    class Int8:
        def __call__(self, x: Tensor) -> Tensor:
            result: Tensor = net(x)
            return result

        def release_memory(self) -> None:
            released.append(True)

    monkeypatch.setitem(fast_network._BACKENDS, "int8", lambda device_type, dtype: [builder("int8", Int8)])
    network = FastNetwork(net, CPU, torch.float32, "int8").eval()
    assert_same(network(image()), net(image()), FP32_TOLERANCE)
    assert network.variant.backend == "int8"
    network.release_memory()
    assert released == [True]
    with pytest.raises(ConfigError, match=r"use auto, int8, .*torch, openvino"):
        FastNetwork(net, CPU, torch.float32, "int4")


@torch.no_grad()
def test_what_openvino_keeps_is_given_back(backends: list[Backend]) -> None:
    network = FastNetwork(small(), CPU, torch.float32).eval()
    network.release_memory()  # before the first image there is nothing
    network(image())
    network.release_memory()
    assert [made.released for made in backends] == [1]


@torch.no_grad()
def test_without_its_weights_the_variant_goes_on() -> None:
    """A session needs the float32 weights no more, at any size of the image; before that they stay."""
    net = small()
    network = FastNetwork(net, CPU, torch.float32, "torch").eval()
    network.keep_variant_only()  # there is none yet
    assert network.network is net
    network(image())
    network.keep_variant_only()
    assert list(network.parameters()) == []
    for size in ((33, 20, 16), (16, 17, 18)):
        assert_same(network(image(*size)), net(image(*size)), FP32_TOLERANCE)
    assert str(network.variant) == "torch float32"


@torch.no_grad()
def test_where_only_the_plain_network_works_its_weights_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FastNetwork, "_builders", lambda self: [])
    net = small()
    network = FastNetwork(net, CPU, torch.float32).eval()
    network(image())
    network.keep_variant_only()
    assert_same(network(image(16, 17, 18)), net(image(16, 17, 18)), FP32_TOLERANCE)
    assert str(network.variant) == "torch float32, plain"


# --- the self-test


class WrongVariants:
    """Replaces ``FastNetwork._builders``: variants that are wrong, in ways a compiler or a driver may have."""

    def __init__(self, net: nn.Module, *, right: bool) -> None:
        self.net = net
        self.right = right
        self.run: list[str] = []

    def __call__(self, _: FastNetwork) -> list[VariantBuilder]:
        found = [
            builder("swapped", lambda: self.counted("swapped", lambda x: self.net(x).flip(1))),
            builder("nan", lambda: self.counted("nan", lambda x: self.net(x) * float("nan"))),
            builder("zero", lambda: self.counted("zero", lambda x: self.net(x) * 0.0), torch.bfloat16),
            builder("slightly off", lambda: lambda x: self.net(x) * 1.02, torch.float16),
            builder("not built", self.not_built),
            builder("not run", lambda: self.not_run),
        ]
        if self.right:
            right = builder("right", lambda: self.counted("right", self.net))
            found += [right, builder("never tried", self.not_built)]
        return found

    def counted(self, name: str, run: Run) -> Run:
        def counting(x: Tensor) -> Tensor:
            self.run.append(name)
            return run(x)

        return counting

    def not_built(self) -> Run:
        raise ValueError("no such instruction")

    def not_run(self, x: Tensor) -> Tensor:
        raise RuntimeError("driver has gone")


def builder(name: str, build: Callable[[], Run], dtype: torch.dtype = torch.float32) -> VariantBuilder:
    return VariantBuilder(Variant(name, dtype), TOLERANCE[dtype], lambda network, example, single_logit: build())


WRONG_VARIANTS = {
    "swapped float32": "fails its self-test",
    "nan float32": "fails its self-test (error inf)",
    "zero bfloat16": "fails its self-test (error 1.0e+00)",
    "slightly off float16": "fails its self-test (error 2.0e-02)",
    "not built float32": "does not run (no such instruction)",
    "not run float32": "does not run (driver has gone)",
}


@pytest.mark.parametrize("right", [True, False])
@torch.no_grad()
def test_wrong_variants_are_skipped_and_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, right: bool
) -> None:
    """In a process with a broken compiler the result is slower, not wrong; if none works it is plain torch."""
    net = small()
    variants = WrongVariants(net, right=right)
    monkeypatch.setattr(FastNetwork, "_builders", lambda self: variants(self))
    network = FastNetwork(net, CPU, torch.float32).eval()
    with caplog.at_level(logging.INFO, "attunet3d.runtime"):
        found = network(image())
        assert_same(found, net(image()), FP32_TOLERANCE)
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warned) == len(WRONG_VARIANTS)
    for message, (name, why) in zip(warned, WRONG_VARIANTS.items(), strict=True):
        assert message.startswith(f"{name} {why}"), message
    assert str(network.variant) == ("right float32" if right else "torch float32, plain")
    # Each was tried on the example; after that only the right one runs.
    assert variants.run == ["swapped", "nan", "zero"] + ["right"] * (2 * right)


@torch.no_grad()
def test_the_self_test_is_not_the_callers_image() -> None:
    """An image of air would pass any variant; and where several windows follow, the test is made once."""
    net = small()
    seen: list[tuple[int, ...]] = []

    class Watched(FastNetwork):
        def _builders(self) -> list[VariantBuilder]:
            def run(x: Tensor) -> Tensor:
                seen.append((*x.shape, int(x.std() > 0.1)))
                result: Tensor = net(x)
                return result

            return [builder("watched", lambda: run)]

    network = Watched(net, CPU, torch.float32).eval()
    network(torch.zeros(2, 1, 16, 17, 18))
    assert seen == [(1, 1, 32, 32, 32, 1), (2, 1, 16, 17, 18, 0)]


class Multiplications(TorchFunctionMode):
    """Counts those of convolutions."""

    count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is nn.functional.conv3d:
            self.count += out.numel() * args[1][0].numel()
        return out


@torch.no_grad()
def test_the_self_test_is_less_work_than_one_small_window() -> None:
    """Some 4 billion multiplications with the bundle's network, where a window of 64^3 voxels takes 11 billion."""
    network = build_network(inference_values()["network_def"]).eval()
    prepared = FastNetwork(network, CPU, torch.float32, "torch").eval()
    with Multiplications() as work:
        variant, _ = prepared._fastest(image(32, 32, 32))
    assert variant == Variant("torch", torch.float32, split=True)
    assert 2e9 < work.count < 5e9


def test_load_network_is_ready() -> None:
    network = load_network(device="cpu", precision="fp32")
    assert isinstance(network, MixedPrecision)
    assert not network.training
    with torch.no_grad():
        assert network(torch.zeros(1, 1, 16, 16, 16)).shape == (1, 2, 16, 16, 16)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("fast", [True, False])
@torch.no_grad()
def test_gpu_agrees_with_cpu(precision: str, fast: bool) -> None:
    net = small()
    x = image(32, 32, 32)
    expected = net(x)
    network = prepare(net, "cuda", precision, training=not fast and precision != "fp16").eval()
    assert_same(network(x.cuda()).cpu(), expected, BF16_TOLERANCE)
    if isinstance(network, FastNetwork):
        assert (
            str(network.variant)
            == {"fp32": "torch float32", "bf16": "torch bfloat16", "fp16": "torch float16"}[precision]
        )


def test_checkpoints_fit_a_network_whether_it_is_prepared_or_not() -> None:
    network = small()
    for training in (False, True):
        prepared = prepare(small(), "cpu", "fp32", training=training)
        assert list(prepared.state_dict()) == list(network.state_dict())
        prepared.load_state_dict({name: torch.zeros_like(value) for name, value in network.state_dict().items()})
        assert not any(value.any() for value in prepared.network.state_dict().values())


def test_memory_that_runs_out_in_the_self_test_does_not_choose_the_variant(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another variant has other voxels: which one runs must not depend on what else the machine is doing."""

    def full(network: object, *args: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("attunet3d.runtime.torch_variants.fold", full)
    network = FastNetwork(small(), CPU, torch.float32, "torch").eval()
    with pytest.raises(MemoryLimitError, match="out of memory on cpu while the network is prepared: close"):
        network(image())


@torch.no_grad()
def test_a_variant_says_where_features_are_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take more memory, which the prediction has to know."""

    def only_joined(network: torch.nn.Module, single_logit: bool = False, split: bool = False) -> torch.nn.Module:
        if split:
            raise RuntimeError("no such operator")
        return fold(network, single_logit)

    monkeypatch.setattr("attunet3d.runtime.torch_variants.fold", only_joined)
    network = FastNetwork(small(), CPU, torch.float32, "torch").eval()
    network(image())
    assert network.variant == Variant("torch", torch.float32, split=False, note="joined")
    assert str(network.variant) == "torch float32, joined"
