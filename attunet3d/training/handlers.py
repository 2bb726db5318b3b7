"""Handlers that monitor a run: invalid steps, closed gates, and progress."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.engines.utils import IterationEvents
from monai.handlers import from_engine
from torch import Tensor, nn
from torch.nn import functional as F

from attunet3d.console import make_bar, say_above
from attunet3d.errors import TrainingError
from attunet3d.networks import AttentionUNet
from attunet3d.runtime.process_memory import keep_freed_memory
from attunet3d.training.history import History

logger = logging.getLogger(__name__)

# Mean of alpha below which a gate is closed.
_CLOSED = 0.01
# Side of the patch in which alpha is averaged, voxels.
_SIDE = 64


class CheckStep:
    """Clip gradients to ``max_norm`` before each optimizer step, and check that they and the loss are finite.

    Raises, in training:
        TrainingError: they are not finite. The parameters are those before the step.
    """

    def __init__(self, network: nn.Module, max_norm: float) -> None:
        self.network = network
        self.max_norm = max_norm

    def attach(self, engine: Engine) -> None:
        """Follow a trainer."""
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self._check)

    def _check(self, engine: Engine) -> None:
        norm = float(nn.utils.clip_grad_norm_(self.network.parameters(), self.max_norm))
        loss = float(engine.state.output["loss"].detach())
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise TrainingError(
                f"epoch {engine.state.epoch}, step {engine.state.iteration}: the loss is {loss}, the norm of the "
                f'gradient {norm}; set a lower learning_rate or precision="fp32", and continue with resume=True',
                arguments=("learning_rate", "precision", "resume"),
            )


class ReuseMemory:
    """Reuse the memory of freed tensors during a run, see ``keep_freed_memory``."""

    def __init__(self) -> None:
        self._kept = ExitStack()

    def attach(self, engine: Engine) -> None:
        """Follow a trainer."""
        engine.add_event_handler(Events.STARTED, self._keep)
        engine.add_event_handler(Events.COMPLETED | Events.EXCEPTION_RAISED, self._give_back)

    def _keep(self, engine: Engine) -> None:
        self._kept.enter_context(keep_freed_memory(always=True))

    def _give_back(self, engine: Engine, *error: BaseException) -> None:
        self._kept.close()
        if error:
            raise error[0]


class GateWatch:
    """Record the mean alpha of each gated level around a pancreas in ``History`` after each validation.

    Gates have no normalization inside: a learning rate that is too high can close them for good. The loss does not show
    this, as the network still learns its training cases.

    Args:
        evaluator: alpha is recorded after each of its runs.
        network: the validated network; nothing is recorded unless it is an ``AttentionUNet``.
        cases: images (1, X, Y, Z) and labels, as the network takes them; the first one is used.
        history: records the means, as "alpha_level2", ...
    """

    def __init__(
        self, evaluator: Engine, network: nn.Module, cases: Sequence[Mapping[str, Tensor]], history: History
    ) -> None:
        self.evaluator = evaluator
        self.network = network
        self.cases = cases
        self.history = history

    def attach(self, engine: Engine) -> None:
        """Follow the evaluator, whichever engine it is attached to."""
        self.evaluator.add_event_handler(Events.COMPLETED, self._look)

    @torch.no_grad()
    def _look(self, engine: Engine) -> None:
        if not isinstance(self.network, AttentionUNet):
            return
        case = self.cases[0]
        image = case["image"].as_tensor() if isinstance(case["image"], MetaTensor) else case["image"]
        organ = torch.nonzero(case["label"][0]).float().mean(dim=0).nan_to_num(0.0).int().tolist()
        starts = [max(min(o - _SIDE // 2, n - _SIDE), 0) for o, n in zip(organ, image.shape[1:], strict=True)]
        patch = image[(slice(None),) + tuple(slice(start, start + _SIDE) for start in starts)]
        missing = [max(self.network.min_size - n, 0) for n in reversed(patch.shape[1:])]
        patch = F.pad(patch, [side for n in missing for side in (0, n)])
        device = next(self.network.parameters()).device
        _, alphas = self.network.eval().attention_maps(patch[None].float().to(device))
        last = len(self.network.channels) - 1  # from 1, the finest, as in the paper; the bottleneck has no gate
        for level, alpha in zip(range(last - len(alphas) + 1, last + 1), alphas, strict=True):
            mean = float(alpha.mean())
            self.history.note(f"alpha_level{level}", mean)
            if mean < _CLOSED:
                logger.warning("the gate of level %d is closed (mean alpha %.1e): lower the learning rate", level, mean)


class Progress:
    """Show a progress bar with the remaining time on a terminal; elsewhere log one line per epoch.

    Args:
        history: the values to show.
        show: False in all processes but one.
    """

    def __init__(self, history: History, show: bool = True) -> None:
        self.history = history
        self.show = show
        self._bar: Any = None
        self._task: Any = None
        self._is_terminal = False
        self._begun = 0.0
        self._first = 0

    def attach(self, engine: Engine) -> None:
        """Follow a trainer; after ``History``."""
        if self.show:
            engine.add_event_handler(Events.STARTED, self._start)
            engine.add_event_handler(Events.ITERATION_COMPLETED, self._step)
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch)
            engine.add_event_handler(Events.COMPLETED | Events.EXCEPTION_RAISED, self._stop)

    def _start(self, engine: Engine) -> None:
        self._begun, self._first = time.perf_counter(), engine.state.epoch
        self._bar, console = make_bar()
        self._bar.start()
        self._is_terminal = console.is_terminal
        total = engine.state.max_epochs * engine.state.epoch_length
        self._task = self._bar.add_task("train", total=total, completed=engine.state.iteration)

    def _step(self, engine: Engine) -> None:
        if self._is_terminal:  # elsewhere the loss need not be fetched from the device
            loss = float(torch.as_tensor(from_engine("loss", first=True)(engine.state.output)).detach())
            text = f"epoch {engine.state.epoch}/{engine.state.max_epochs}, loss {loss:.3f}"
            self._bar.update(self._task, completed=engine.state.iteration, description=text)

    def _epoch(self, engine: Engine) -> None:
        row = self.history.rows[-1]
        done, last = engine.state.epoch, engine.state.max_epochs
        left = (time.perf_counter() - self._begun) / (done - self._first) * (last - done)
        values = ", ".join(f"{k} {v:.4g}" for k, v in row.items() if k not in ("epoch", "seconds"))
        text = f"epoch {done}/{last}: {values}, {row['seconds']:.1f} s, {_duration(left)} left"
        if self._is_terminal:
            say_above(self._bar.console, text)
        else:
            logger.info(text)

    def _stop(self, engine: Engine, *error: BaseException) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        if error:
            raise error[0]


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"
