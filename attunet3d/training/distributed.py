"""One network on several processes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel


def distributed_network(network: nn.Module, device: torch.device) -> DistributedDataParallel:
    """Wrap a network for training on several processes: gradients and BatchNorm are computed over all their batches.

    Names in ``state_dict`` of ``network`` do not change.
    """
    synchronize_batch_norm(network)
    return DistributedDataParallel(network, device_ids=[device] if device.type == "cuda" else None)


def synchronize_batch_norm(network: nn.Module) -> None:
    """Give every BatchNorm inside a network the statistics of all processes' batches, in place."""
    for module in network.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm3d | nn.BatchNorm2d):
                setattr(module, name, _converted(child))


def _converted(norm: nn.BatchNorm2d | nn.BatchNorm3d) -> nn.Module:
    if norm.weight.device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(norm)  # type: ignore[no-any-return]
    # torch's SyncBatchNorm is for GPUs only.
    norm.__class__ = SyncBatchNorm3dOnCPU if isinstance(norm, nn.BatchNorm3d) else SyncBatchNorm2dOnCPU
    return norm


class _Sum(torch.autograd.Function):
    """The sum over all processes; its gradient is the sum of their gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _summed(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _summed(gradients[0])


def _summed(x: Tensor) -> Tensor:
    total = x.clone(memory_format=torch.contiguous_format)
    distributed.all_reduce(total)
    return total


class _SyncOnCPU(nn.modules.batchnorm._BatchNorm):
    """BatchNorm over the batches of all processes, which must have the same number of voxels."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        axes = [0, *range(2, x.ndim)]
        shape = [1, -1] + [1] * (x.ndim - 2)
        processes = distributed.get_world_size()
        values = x.float()
        variance, mean = torch.var_mean(values, dim=axes, correction=0)
        total = _Sum.apply(mean) / processes
        spread = _Sum.apply(variance + (mean - total) ** 2) / processes
        if self.momentum is not None and self.running_mean is not None and self.running_var is not None:
            count = processes * x.numel() // x.shape[1]
            with torch.no_grad():
                self.running_mean.lerp_(total, self.momentum)
                self.running_var.lerp_(spread * (count / (count - 1)), self.momentum)
                if self.num_batches_tracked is not None:
                    self.num_batches_tracked += 1
        scale = self.weight * torch.rsqrt(spread + self.eps)
        return (values * scale.view(shape) + (self.bias - total * scale).view(shape)).to(x.dtype)


class SyncBatchNorm3dOnCPU(_SyncOnCPU, nn.BatchNorm3d):
    """``nn.BatchNorm3d`` over the batches of all processes."""


class SyncBatchNorm2dOnCPU(_SyncOnCPU, nn.BatchNorm2d):
    """``nn.BatchNorm2d`` over the batches of all processes."""
