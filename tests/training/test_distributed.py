"""BatchNorm over two processes' batches is BatchNorm over the whole batch."""

import copy
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import together
from torch import Tensor, nn

from attunet3d import AttentionUNet
from attunet3d.networks.folding import fold
from attunet3d.runtime.fast_network import prepare
from attunet3d.training import distributed_network
from attunet3d.training.distributed import SyncBatchNorm2dOnCPU, SyncBatchNorm3dOnCPU, synchronize_batch_norm

CONV: dict[int, Any] = {2: nn.Conv2d, 3: nn.Conv3d}
NORM: dict[int, Any] = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
CPU = torch.device("cpu")
NEAR = {"rtol": 1e-5, "atol": 1e-5}


def network(dims: int) -> nn.Module:
    torch.manual_seed(0)
    norm = NORM[dims](3)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, 1.0, 2.0]))
        norm.bias.copy_(torch.tensor([0.1, -0.2, 0.3]))
    conv, head = CONV[dims](1, 3, 3, padding=1), CONV[dims](3, 1, 1)
    return nn.Sequential(OrderedDict(conv=conv, norm=norm, relu=nn.ReLU(), head=head))


def batch(dims: int) -> Tensor:
    """Four cases whose means and deviations differ, so that statistics of two of them are wrong for all."""
    torch.manual_seed(1)
    each = [-1] + [1] * (dims + 1)
    x = torch.randn(4, 1, *[5] * dims)
    return x * torch.tensor([1.0, 3.0, 0.5, 2.0]).view(each) + torch.tensor([0.0, 1.0, 2.0, 3.0]).view(each)


def three_steps(net: nn.Module, inner: nn.Module, x: Tensor) -> dict[str, Any]:
    """All that BatchNorm takes part in; the weights stay, the running statistics do not."""
    x = x.clone().requires_grad_()
    for _ in range(3):
        net.zero_grad()
        x.grad = None
        out = net(x)
        out.pow(3).mean().backward()
    gradients = {name: p.grad for name, p in inner.named_parameters()}
    return {"out": out.detach(), "input": x.grad, "state": dict(inner.state_dict()), "gradients": gradients}


def half_of_the_steps(rank: int, dims: int) -> dict[str, Any]:
    inner = network(dims)
    return three_steps(distributed_network(inner, CPU), inner, batch(dims)[2 * rank : 2 * rank + 2])


@pytest.mark.parametrize("dims", [2, 3])
def test_two_processes_are_one(dims: int, tmp_path: Path) -> None:
    found = together(half_of_the_steps, tmp_path, dims)
    net = network(dims)
    whole = three_steps(net, net, batch(dims))
    torch.testing.assert_close(torch.cat([one["out"] for one in found]), whole["out"], **NEAR)
    # The whole batch's loss is the mean of theirs: what reaches a case is half of what it is in its own process.
    torch.testing.assert_close(torch.cat([one["input"] for one in found]) / 2, whole["input"], **NEAR)
    for one in found:
        assert list(one["state"]) == list(whole["state"]), "names in the state dict stay as they are"
        assert int(one["state"]["norm.num_batches_tracked"]) == 3
        for part in ("state", "gradients"):
            for name, value in whole[part].items():
                torch.testing.assert_close(one[part][name], value, **NEAR, msg=lambda m, name=name: f"{name}: {m}")


def test_the_statistics_of_one_process_would_be_wrong() -> None:
    """What the test above can tell apart."""
    with torch.no_grad():
        whole = network(3)(batch(3))
        alone = torch.cat([network(3)(batch(3)[:2]), network(3)(batch(3)[2:])])
    assert float((whole - alone).abs().max()) > 1000 * NEAR["atol"]


def attention_unet() -> AttentionUNet:
    torch.manual_seed(0)
    return AttentionUNet(channels=(4, 8, 8))


def images() -> Tensor:
    torch.manual_seed(3)
    return torch.rand(2, 1, 12, 12, 12)


def train(net: nn.Module, inner: nn.Module, x: Tensor) -> dict[str, Any]:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = (net(x)[:, 1:] - x).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return {"losses": torch.stack(losses), "state": dict(inner.state_dict())}


def train_with_one_case(rank: int) -> dict[str, Any]:
    inner = attention_unet()
    net = distributed_network(prepare(inner, CPU, "fp32", training=True), CPU)
    return train(net, inner, images()[rank : rank + 1])


def test_the_network_trains_as_in_one_process(tmp_path: Path) -> None:
    found = together(train_with_one_case, tmp_path)
    inner = attention_unet()
    whole = train(prepare(inner, CPU, "fp32", training=True), inner, images())
    assert float(whole["losses"][0] - whole["losses"][-1]) > 0.01
    losses = torch.stack([one["losses"] for one in found]).mean(dim=0)
    torch.testing.assert_close(losses, whole["losses"], rtol=1e-4, atol=0)
    for one in found:
        for name, value in whole["state"].items():
            torch.testing.assert_close(
                one["state"][name], value, rtol=1e-3, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}"
            )


@pytest.mark.parametrize("dims", [2, 3])
def test_in_eval_mode_it_is_batch_norm(dims: int) -> None:
    """Which needs no other process, and gives the same bits."""
    plain = network(dims)
    plain(batch(dims))
    synchronized = copy.deepcopy(plain)
    synchronize_batch_norm(synchronized)
    assert isinstance(synchronized.norm, SyncBatchNorm2dOnCPU | SyncBatchNorm3dOnCPU)
    assert torch.equal(synchronized.eval()(batch(dims)), plain.eval()(batch(dims)))


def test_it_is_still_folded() -> None:
    """The averaged network is validated in its folded form."""
    net = network(3)
    net(batch(3))
    synchronize_batch_norm(net)
    folded = fold(net)
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in folded.modules())
    torch.testing.assert_close(folded(batch(3)), net.eval()(batch(3)), rtol=1e-5, atol=1e-5)


def normalize_bf16(rank: int) -> list[bool]:
    norm = nn.Sequential(nn.BatchNorm3d(4))
    synchronize_batch_norm(norm)
    x = torch.randn(2, 4, 3, 4, 5, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last_3d)
    out = norm(x)
    return [out.dtype == torch.bfloat16, out.is_contiguous(memory_format=torch.channels_last_3d)]


def test_layout_and_precision_are_kept(tmp_path: Path) -> None:
    assert together(normalize_bf16, tmp_path) == [[True, True], [True, True]]
