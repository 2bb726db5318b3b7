"""BatchNorm over two processes' batches is BatchNorm over the whole batch."""

from __future__ import annotations

import copy
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import together
from torch import Tensor, nn

from attunet3d import AttentionUNet
from attunet3d.folding import fold
from attunet3d.runtime import prepare
from attunet3d.training import distributed_network
from attunet3d.training.distributed import SyncBatchNorm2dOnCPU, SyncBatchNorm3dOnCPU, synchronize_batch_norm

CONV: dict[int, Any] = {2: nn.Conv2d, 3: nn.Conv3d}
NORM: dict[int, Any] = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def network(dims: int) -> nn.Module:
    torch.manual_seed(0)
    parts: OrderedDict[str, nn.Module] = OrderedDict(
        conv=CONV[dims](1, 3, 3, padding=1), norm=NORM[dims](3), relu=nn.ReLU(), head=CONV[dims](3, 1, 1)
    )
    with torch.no_grad():
        parts["norm"].weight.copy_(torch.tensor([0.5, 1.0, 2.0]))
        parts["norm"].bias.copy_(torch.tensor([0.1, -0.2, 0.3]))
    return nn.Sequential(parts)


def batch(dims: int) -> Tensor:
    """Cases whose means and deviations differ, so that statistics of one of them are wrong for both."""
    torch.manual_seed(1)
    x = torch.randn(4, 1, *[5] * dims)
    return x * torch.tensor([1.0, 3.0, 0.5, 2.0]).view(-1, *[1] * (dims + 1)) + torch.arange(4.0).view(
        -1, *[1] * (dims + 1)
    )


@pytest.mark.parametrize("dims", [2, 3])
def test_two_processes_are_one(dims: int, tmp_path: Path) -> None:
    """Outputs, gradients of weights and of the input, and running statistics, over three steps."""
    torch.manual_seed(2)
    target = torch.randn_like(batch(dims))

    def steps(net: nn.Module, x: Tensor, y: Tensor, names: list[str]) -> dict[str, Any]:
        x.requires_grad_()
        inner = net.module if isinstance(net, nn.parallel.DistributedDataParallel) else net
        for _ in range(3):
            net.zero_grad()
            x.grad = None
            out = net(x)
            (out - y).pow(3).mean().backward()
        state = {name: value.clone() for name, value in inner.state_dict().items()}
        grads = {name: p.grad for name, p in inner.named_parameters()}
        assert list(state) == names, "names in the state dict stay as they are"
        return {"out": out.detach(), "input": x.grad, "state": state, "grads": grads}

    names = list(network(dims).state_dict())

    def work(rank: int) -> dict[str, Any]:
        part = slice(2 * rank, 2 * rank + 2)
        net = distributed_network(network(dims), torch.device("cpu"))
        assert any(isinstance(m, SyncBatchNorm2dOnCPU | SyncBatchNorm3dOnCPU) for m in net.modules())
        return steps(net, batch(dims)[part].clone(), target[part], names)

    found = together(work, tmp_path)
    whole = steps(network(dims), batch(dims), target, names)
    near = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(torch.cat([one["out"] for one in found]), whole["out"], **near)
    # The whole batch's loss is the mean of theirs, so what reaches an input is half of what it is there.
    torch.testing.assert_close(torch.cat([one["input"] for one in found]) / 2, whole["input"], **near)
    for one in found:
        for part in ("state", "grads"):
            for name, value in whole[part].items():
                torch.testing.assert_close(one[part][name], value, **near, msg=lambda m, n=name: f"{n}: {m}")
    assert int(found[0]["state"]["norm.num_batches_tracked"]) == 3


def test_one_processes_statistics_would_be_wrong() -> None:
    """What the test above can tell apart."""
    whole = network(3)(batch(3))
    alone = torch.cat([network(3)(batch(3)[:2]), network(3)(batch(3)[2:])])
    assert float((whole - alone).abs().max()) > 0.1


def test_the_network_of_the_bundle(tmp_path: Path) -> None:
    """Two processes with a case each beside one with both: losses of three steps of training, and the weights."""

    def build() -> AttentionUNet:
        torch.manual_seed(0)
        return AttentionUNet(channels=(4, 8, 8))

    torch.manual_seed(3)
    images = torch.rand(2, 1, 12, 12, 12)

    def train(net: nn.Module, inner: nn.Module, x: Tensor) -> dict[str, Any]:
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
        loss_values = []
        for _ in range(3):
            optimizer.zero_grad()
            loss = (net(x)[:, 1:] - x).square().mean()
            loss.backward()
            optimizer.step()
            loss_values.append(loss.detach())
        return {"losses": torch.stack(loss_values), "state": dict(inner.state_dict())}

    def work(rank: int) -> dict[str, Any]:
        inner = build()
        net = distributed_network(prepare(inner, "cpu", "fp32", training=True), torch.device("cpu"))
        return train(net, inner, images[rank : rank + 1])

    found = together(work, tmp_path)
    inner = build()
    whole = train(prepare(inner, "cpu", "fp32", training=True), inner, images)
    losses = torch.stack([one["losses"] for one in found]).mean(dim=0)
    torch.testing.assert_close(losses, whole["losses"], rtol=1e-4, atol=0)
    for one in found:
        for name, value in whole["state"].items():
            torch.testing.assert_close(one["state"][name], value, rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n} {m}")


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


def test_layout_and_precision_are_kept(tmp_path: Path) -> None:
    def work(rank: int) -> list[Any]:
        norm = nn.Sequential(nn.BatchNorm3d(4))
        synchronize_batch_norm(norm)
        x = torch.randn(2, 4, 3, 4, 5, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last_3d)
        out = norm(x)
        return [out.dtype == torch.bfloat16, out.is_contiguous(memory_format=torch.channels_last_3d)]

    assert together(work, tmp_path) == [[True, True], [True, True]]
