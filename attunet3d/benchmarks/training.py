"""Compare the time of a training step with MONAI's stock trainer and its ``AttentionUnet``, in alternating turns."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedTrainer
from monai.losses import DiceCELoss as StockLoss
from monai.networks.nets import AttentionUnet
from torch import Tensor, nn

from attunet3d.config.files import read_config
from attunet3d.datasets.phantom import make_phantom
from attunet3d.errors import AttUNet3dError, ConfigError
from attunet3d.networks import AttentionUNet
from attunet3d.runtime.device import choose_device, choose_precision, wait_for
from attunet3d.runtime.fast_network import prepare
from attunet3d.runtime.process_memory import peak_bytes
from attunet3d.training.averaging import AverageWeights
from attunet3d.training.handlers import CheckStep, ReuseMemory
from attunet3d.training.loss import DiceCELoss
from attunet3d.training.patches import RandPatchd

Batch = dict[str, Tensor]
CONTENDERS = ("attunet3d", "monai")
_STEPS = 3  # per turn


def benchmark_training(
    patch_size: Sequence[int] = (96, 96, 96),
    batch_size: int = 2,
    steps: int = 6,
    device: str = "auto",
    precision: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Measure the time of a training step: forward, loss, backward, optimizer.

    Both trainers are MONAI's ``SupervisedTrainer`` with AdamW, both networks have the same widths (16 to 256), and both
    train on the same patches of a phantom, preloaded in memory. Ours checks and clips gradients and averages weights,
    as in train.yaml. MONAI's has its DiceCELoss and its defaults: fp32 on a CPU, ``amp`` on a GPU. Neither computes
    metrics. Each runs in its own process, with its own memory settings, and they take turns of three steps, so that
    other load slows both down; the first step of a turn is not counted.

    Args:
        patch_size: voxels.
        batch_size: patches per step.
        steps: counted steps of each; an odd number is rounded up.
        device: "auto", "cpu", "cuda", ...
        precision: of our trainer.
        progress: called with (turns done, turns).

    Returns:
        "attunet3d" and "monai", each with "median_seconds", "seconds" and "peak_memory_mb" of its process; "times": our
        speed-up, the median over pairs of steps; "patch_seconds": the time to crop and deform one of our patches, which
        is not included; and the settings.

    Raises:
        ConfigError: a setting is invalid or not supported.
        AttUNet3dError: a process failed.
    """
    if len(patch_size) != 3 or min(patch_size) < 16 or batch_size < 1 or steps < 1:
        raise ConfigError(
            f"patch_size must be three numbers >= 16, batch_size and steps at least 1: got {list(patch_size)}, "
            f"{batch_size} and {steps}"
        )
    where = choose_device(device)
    choose_precision(precision, where, training=True)
    turns = -(-steps // (_STEPS - 1))
    with ExitStack() as processes:
        settings = {"patch_size": list(patch_size), "batch_size": batch_size, "device": str(where)}
        contenders = {
            name: processes.enter_context(_Contender({**settings, "name": name, "precision": precision}))
            for name in CONTENDERS
        }
        answers = {name: contender.answer() for name, contender in contenders.items()}
        seconds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
        for turn in range(turns):
            for name, contender in contenders.items():
                answer = contender.turn()
                seconds[name] += answer["seconds"][1:]
                answers[name] |= answer
            if progress is not None:
                progress(turn + 1, turns)
    times = [stock / ours for ours, stock in zip(seconds["attunet3d"], seconds["monai"], strict=True)]
    return {
        **{
            name: {
                "median_seconds": statistics.median(seconds[name]),
                "seconds": seconds[name],
                "peak_memory_mb": answers[name]["peak_memory_mb"],
            }
            for name in CONTENDERS
        },
        "times": statistics.median(times),
        **{key: answers["attunet3d"][key] for key in ("patch_seconds", "device", "threads", "torch")},
        "patch_size": list(patch_size),
        "batch_size": batch_size,
    }


def table(result: dict[str, Any]) -> str:
    """Format the result of ``benchmark_training`` as a table."""
    size = " x ".join(map(str, result["patch_size"]))
    lines = [f"patches of {size}, {result['batch_size']} per step; {result['device']}, threads: {result['threads']}"]
    for name in CONTENDERS:
        median, steps = result[name]["median_seconds"], result[name]["seconds"]
        memory = result[name]["peak_memory_mb"]
        shown = "" if memory is None else f", {memory:.0f} MB of peak memory"
        lines.append(f"{name:<10} {median:7.3f} s per step ({min(steps):.3f} to {max(steps):.3f}){shown}")
    lines.append(f"attunet3d is {result['times']:.2f} times as fast")
    lines.append(f"not included: {result['patch_seconds']:.3f} s to crop and deform a patch")
    return "\n".join(lines)


def _batch(patch_size: tuple[int, ...], batch_size: int) -> tuple[Batch, float]:
    """Make patches of a phantom, in [0, 1]; return the time per patch, s, too."""
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
    """A data loader that repeats one batch for each step of a turn."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return _STEPS

    def __iter__(self) -> Iterator[Batch]:
        return iter([dict(self.batch) for _ in range(_STEPS)])


class _Contender:
    """A process with a trainer that waits for its turns."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        environment = os.environ | {"PYTHONSAFEPATH": "1"}  # no modules from the working directory
        if settings["name"] == "monai":
            environment["THP_MEM_ALLOC_ENABLE"] = "0"  # torch's default, which importing this package changes
        command = [sys.executable, "-W", "ignore", "-m", "attunet3d.benchmarks.training", json.dumps(settings)]
        pipes = {
            "stdin": subprocess.PIPE,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "encoding": "utf-8",
            "errors": "replace",
        }
        self.process = subprocess.Popen(command, env=environment, **pipes)  # type: ignore[call-overload]

    def __enter__(self) -> _Contender:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.communicate()

    def turn(self) -> dict[str, Any]:
        """Run a turn; return the seconds of its steps."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """Wait for the next line of the process's output, and parse it."""
        line = self.process.stdout.readline()
        if not line:
            last = self.process.stderr.read().strip().splitlines()[-1:]
            raise AttUNet3dError(f"a measured process failed: {' '.join(last) or 'it was killed'}")
        return json.loads(line)  # type: ignore[no-any-return]


class _Clock:
    """Measure the seconds of each step, by the first handler at its start and the last one at its end."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: list[float] = []
        self._started = 0.0

    def start(self, engine: Engine) -> None:
        self._wait()
        self._started = time.perf_counter()

    def stop(self, engine: Engine) -> None:
        self._wait()
        self.seconds.append(time.perf_counter() - self._started)

    def _wait(self) -> None:
        wait_for(self.device)


def _ours(device: torch.device, precision: str) -> tuple[nn.Module, nn.Module, list[Any]]:
    config = read_config("train")
    definition = AttentionUNet(channels=config["channels"])
    network = prepare(definition, device, precision, training=True)
    checks = CheckStep(network, config["max_gradient_norm"])
    return network, DiceCELoss(), [ReuseMemory(), checks, AverageWeights(definition, config["ema_decay"])]


def _stock(device: torch.device) -> tuple[nn.Module, nn.Module, list[Any]]:
    widths = read_config("train")["channels"]
    network = AttentionUnet(3, 1, 2, widths, [2] * (len(widths) - 1)).to(device)
    return network, StockLoss(include_background=False, to_onehot_y=True, softmax=True, batch=True), []


def _run(settings: Mapping[str, Any]) -> None:
    """Run the process of a contender: one turn for each line of stdin."""
    answers, sys.stdout = sys.stdout, sys.stderr  # MONAI's loggers print there
    device = torch.device(settings["device"])
    torch.manual_seed(0)
    batch, patch_seconds = _batch(tuple(settings["patch_size"]), settings["batch_size"])
    ours = settings["name"] == "attunet3d"
    network, loss, handlers = _ours(device, settings["precision"]) if ours else _stock(device)
    trainer = SupervisedTrainer(
        device=device,
        max_epochs=1,
        train_data_loader=_OneBatch(batch),
        network=network,
        optimizer=torch.optim.AdamW(network.parameters(), lr=1e-4),
        loss_function=loss,
        train_handlers=handlers,
        amp=device.type == "cuda" and not ours,
        decollate=False,
        optim_set_to_none=ours,
    )
    clock = _Clock(device)
    trainer.add_event_handler(Events.ITERATION_STARTED, clock.start)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, clock.stop)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    setup = {"patch_seconds": patch_seconds, "device": name, "threads": torch.get_num_threads()}
    print(json.dumps({**setup, "torch": torch.__version__}), file=answers, flush=True)
    for turn, _ in enumerate(sys.stdin, start=1):
        trainer.state.max_epochs = turn
        trainer.run()
        peak = peak_bytes()
        answer = {"seconds": clock.seconds, "peak_memory_mb": None if peak is None else peak / 1e6}
        print(json.dumps(answer), file=answers, flush=True)
        clock.seconds = []


if __name__ == "__main__":
    _run(json.loads(sys.argv[1]))
