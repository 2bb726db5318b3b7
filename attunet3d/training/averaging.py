"""Weights averaged over the steps of training."""

from __future__ import annotations

import copy

import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn


# Not ignite's EMAHandler: it rounds twice where `lerp` does once, shares the network's counters, and has no state.
class AverageWeights:
    """An exponential moving average of a network's weights, a handler for the trainer.

    After n steps, min(``decay``, (1 + n) / (10 + n)) of the average is kept, so that it follows the network closely at
    first. The average is what is validated and saved. With ``decay`` 0 it is the network itself.

    Args:
        network: the network in training; its weights at the start of the run are the first average.
        decay: share of the average that a step keeps, in [0, 1).

    Attributes:
        network: the average, a separate network.
        steps: number of averaged steps.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"the decay of the averaged weights must be in [0, 1), got {decay}")
        self.source = network
        self.decay = decay
        self.network = network if decay == 0.0 else copy.deepcopy(network).requires_grad_(False)
        self.steps = 0

    def attach(self, engine: Engine) -> None:
        """Average over a trainer's run, from its start on."""
        if self.decay > 0.0:
            engine.add_event_handler(Events.STARTED, self.start)
            engine.add_event_handler(Events.ITERATION_COMPLETED, self.update)

    def start(self, engine: Engine | None = None) -> None:
        """Reset the average to the current weights of the network."""
        self.steps = 0
        self.network.load_state_dict(self.source.state_dict())

    @torch.no_grad()
    def update(self, engine: Engine | None = None) -> None:
        """Average in the network's weights and the statistics of BatchNorm; copy counters."""
        keep = min(self.decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        new, average = self.source.state_dict(), self.network.state_dict()
        floats = [key for key, value in average.items() if value.is_floating_point()]
        torch._foreach_lerp_([average[key] for key in floats], [new[key].to(average[key]) for key in floats], 1 - keep)
        for key, value in average.items():
            if not value.is_floating_point():
                value.copy_(new[key])

    def state_dict(self) -> dict[str, Tensor | int | dict[str, Tensor]]:
        """Return the average and its number of steps."""
        return {"steps": self.steps, "network": self.network.state_dict()}
