"""Time of a training step beside MONAI's stock trainer with its `AttentionUnet`: in one process, in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedTrainer
from monai.losses import DiceCELoss as StockLoss
from monai.networks.nets import AttentionUnet
from torch import Tensor, nn

from attunet3d.config import read_config
from attunet3d.datasets.phantom import make_phantom
from attunet3d.errors import ConfigError
from attunet3d.networks import AttentionUNet
from attunet3d.runtime import choose_device, prepare
from attunet3d.training.averaging import AverageWeights
from attunet3d.training.handlers import CheckStep
from attunet3d.training.loss import DiceCELoss
from attunet3d.training.patches import RandPatchd

Batch = dict[str, Tensor]


@dataclass
class _Contender:
    """A trainer, and the seconds its steps took."""

    trainer: SupervisedTrainer
    seconds: list[float] = field(default_factory=list)


def benchmark_training(
    patch_size: Sequence[int] = (96, 96, 96),
    batch_size: int = 2,
    steps: int = 5,
    device: str = "auto",
    precision: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Seconds per training step: forward, loss, backward, optimizer.

    Both trainers are MONAI's ``SupervisedTrainer`` with AdamW, both networks as wide (16 to 256), both take the same
    patches of a phantom, which are ready in memory. Ours has all that train.yaml gives it: checked and clipped
    gradients, averaged weights. MONAI's has DiceCELoss in its settings for a batch, in fp32 on a CPU and with ``amp``
    on a GPU. After one step that is not counted they take turns, so that a busy machine slows both.

    Args:
        patch_size: voxels.
        batch_size: patches per step.
        steps: that are counted, of each.
        device: "auto", "cpu", "cuda", ...
        precision: of ours.
        progress: called with (steps done, steps).

    Returns:
        "attunet3d" and "monai" with the median of their steps' "seconds" and all of them, "times": how many times as
        fast ours is, the median over pairs of neighbouring steps, "patch_seconds": what one of our patches takes to
        cut and augment besides, and the settings.

    Raises:
        ConfigError: a setting cannot be had.
    """
    if len(patch_size) != 3 or min(patch_size) < 16 or batch_size < 1 or steps < 1:
        raise ConfigError(
            f"patch_size must be three numbers from 16 on, batch_size and steps at least 1: got {list(patch_size)}, "
            f"{batch_size} and {steps}"
        )
    where = choose_device(device)
    torch.manual_seed(0)
    batch, patch_seconds = _batch(tuple(patch_size), batch_size)
    contenders = {"attunet3d": _ours(where, precision, batch), "monai": _stock(where, batch)}
    for done in range(steps + 1):
        for contender in contenders.values():
            contender.trainer.state.max_epochs = done + 1
            contender.trainer.run()
        if progress is not None:
            progress(done + 1, steps + 1)
    seconds = {name: contender.seconds[1:] for name, contender in contenders.items()}
    times = [stock / ours for ours, stock in zip(seconds["attunet3d"], seconds["monai"], strict=True)]
    return {
        **{name: {"median_seconds": statistics.median(s), "seconds": s} for name, s in seconds.items()},
        "times": statistics.median(times),
        "patch_seconds": patch_seconds,
        "patch_size": list(patch_size),
        "batch_size": batch_size,
        "device": torch.cuda.get_device_name(where) if where.type == "cuda" else where.type,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def table(result: dict[str, Any]) -> str:
    """`benchmark_training`'s result for people."""
    size = " x ".join(map(str, result["patch_size"]))
    lines = [f"patches of {size}, {result['batch_size']} a step; {result['device']}, threads: {result['threads']}"]
    for name in ("attunet3d", "monai"):
        median, steps = result[name]["median_seconds"], result[name]["seconds"]
        lines.append(f"{name:<10} {median:7.3f} s a step ({min(steps):.3f} to {max(steps):.3f})")
    lines.append(f"attunet3d is {result['times']:.2f} times as fast")
    lines.append(f"besides, a patch takes {result['patch_seconds']:.3f} s to cut and to bend")
    return "\n".join(lines)


def _batch(patch_size: tuple[int, ...], batch_size: int) -> tuple[Batch, float]:
    """Patches of a phantom, in [0, 1], and the seconds that one of them took."""
    phantom = make_phantom(0, spacing=(2.0, 2.0, 2.0), orientation="RAS")
    case: dict[Hashable, Tensor] = {
        "image": torch.from_numpy(phantom.image.copy())[None],
        "label": torch.from_numpy(phantom.mask.copy())[None],
    }
    recipe = {name: read_config("train")[name] for name in ("rotate", "scale", "elastic", "elastic_prob")}
    cut = RandPatchd(["image", "label"], "label", patch_size, (2.0, 2.0, 2.0), num_samples=batch_size, **recipe)
    cut.set_random_state(seed=0)
    start = time.perf_counter()
    patches = cut(case)
    seconds = (time.perf_counter() - start) / batch_size
    low, high = read_config("train")["hu_window"]
    image = torch.stack([patch["image"] for patch in patches])
    label = torch.stack([patch["label"] for patch in patches])
    return {"image": ((image - low) / (high - low)).clamp(0, 1), "label": label}, seconds


class _OneBatch:
    """A data loader that gives the same batch once an epoch."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Batch]:
        return iter([dict(self.batch)])


def _ours(device: torch.device, precision: str, batch: Batch) -> _Contender:
    config = read_config("train")
    definition = AttentionUNet(channels=config["channels"])
    network = prepare(definition, device, precision, training=True)
    average = AverageWeights(definition, config["ema_decay"])
    handlers = [CheckStep(network, config["max_gradient_norm"]), average]
    return _contender(device, network, DiceCELoss(), batch, handlers, amp=False)


def _stock(device: torch.device, batch: Batch) -> _Contender:
    widths = read_config("train")["channels"]
    network = AttentionUnet(3, 1, 2, widths, [2] * (len(widths) - 1)).to(device)
    loss = StockLoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)
    return _contender(device, network, loss, batch, [], amp=device.type == "cuda")


def _contender(
    device: torch.device, network: nn.Module, loss: nn.Module, batch: Batch, handlers: list[Any], amp: bool
) -> _Contender:
    trainer = SupervisedTrainer(
        device=device,
        max_epochs=1,
        train_data_loader=_OneBatch(batch),
        network=network,
        optimizer=torch.optim.AdamW(network.parameters(), lr=1e-4),
        loss_function=loss,
        train_handlers=handlers,
        amp=amp,
        decollate=False,
        optim_set_to_none=True,
    )
    contender = _Contender(trainer)
    started = [0.0]

    def start(engine: Engine) -> None:
        _wait(device)
        started[0] = time.perf_counter()

    def stop(engine: Engine) -> None:
        _wait(device)
        contender.seconds.append(time.perf_counter() - started[0])

    # The first and the last to be asked: before the step of MONAI's trainer, after the handlers of ours.
    trainer.add_event_handler(Events.ITERATION_STARTED, start)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, stop)
    return contender


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
