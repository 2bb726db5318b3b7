"""A run of training with one weight, whose every number can be worked out by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine
from ignite.metrics import Metric
from monai.data import DataLoader
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import LrScheduleHandler, ValidationHandler
from torch import Tensor, nn

from attunet3d.training import AverageWeights, CheckStep, History, RunCheckpoint, warmup_polynomial

RATE = 0.02


class Scripted(Metric):
    """A metric with the next of some values, whatever was predicted."""

    def __init__(self, values: Sequence[float]) -> None:
        self.values = list(values)
        super().__init__()

    def reset(self) -> None:
        pass

    def update(self, output: Any) -> None:
        pass

    def compute(self) -> float:
        return self.values.pop(0)


def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    return (prediction - target).square().mean()


class At:
    """A handler that calls a function when an event comes."""

    def __init__(self, event: Any, function: Callable[[Engine], Any]) -> None:
        self.event = event
        self.function = function

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(self.event, self.function)


@dataclass
class ToyRun:
    """y = w x is fitted to pairs (x, target), one a step, by the handlers of the bundle, in their order."""

    folder: Path
    pairs: Sequence[tuple[float, float]] = ((1.0, 2.0), (2.0, 4.0), (3.0, 6.0))
    max_epochs: int = 3
    metrics: Sequence[float] | None = None
    interval: int = 1
    validate_every: int = 1
    resume: bool = False
    rank: int = 0
    decay: float = 0.5
    max_norm: float = 1e9
    seed: int = 0
    warmup: int = 0
    loss: Callable[[Tensor, Tensor], Tensor] = squared_error
    optimizer_of: Callable[..., torch.optim.Optimizer] = torch.optim.SGD
    more: Sequence[Callable[[ToyRun], Any]] = ()  # handlers made for this run, after the others
    network: nn.Module = field(init=False)

    def __post_init__(self) -> None:
        self.network = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.network.weight)
        self.optimizer = self.optimizer_of(self.network.parameters(), RATE)
        schedule = warmup_polynomial(self.optimizer, self.warmup, self.max_epochs, power=1.0)
        self.average = AverageWeights(self.network, self.decay)
        data = [{"image": torch.tensor([x]), "label": torch.tensor([y])} for x, y in self.pairs]
        self.evaluator = None
        handlers: list[Any] = [LrScheduleHandler(schedule, print_lr=False), CheckStep(self.network, self.max_norm)]
        if self.metrics is not None:
            self.evaluator = SupervisedEvaluator(
                "cpu", DataLoader(data[:1]), self.average.network, key_val_metric={"val_dice": Scripted(self.metrics)}
            )
            handlers.append(ValidationHandler(self.validate_every, self.evaluator))
        self.history = History(self.folder, self.optimizer, self.evaluator, write=self.rank == 0)
        self.checkpoint = RunCheckpoint(
            self.folder, self.network, self.optimizer, schedule, self.average, self.history, self.evaluator,
            self.interval, self.resume, self.seed, self.rank,
        )  # fmt: skip
        handlers += [self.checkpoint, *(make(self) for make in self.more)]
        self.trainer = SupervisedTrainer(
            "cpu", self.max_epochs, DataLoader(data), self.network, self.optimizer, self.loss, train_handlers=handlers
        )

    def run(self) -> ToyRun:
        self.trainer.run()
        return self

    @property
    def weight(self) -> float:
        return float(self.network.weight.detach())


def by_hand(
    epochs: int, pairs: Sequence[tuple[float, float]] = ToyRun.pairs, rates: Sequence[float] | None = None
) -> tuple[list[float], list[float]]:
    """The mean loss of each epoch, and the weight after it: gradient descent with pencil and paper."""
    w, losses, weights = 0.0, [], []
    for epoch in range(epochs):
        rate = RATE * (1 - epoch / epochs) if rates is None else rates[epoch]
        total = 0.0
        for x, y in pairs:
            total += (w * x - y) ** 2
            w -= rate * 2 * x * (w * x - y)
        losses.append(total / len(pairs))
        weights.append(w)
    return losses, weights
