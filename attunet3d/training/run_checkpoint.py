"""Checkpoints of a run: its best and final weights, and its state to resume from."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from attunet3d.checkpoint import fit_weights, read_tensors, saved
from attunet3d.errors import CheckpointError, ConfigError
from attunet3d.io.writer import atomic_path, make_folder
from attunet3d.training.averaging import AverageWeights
from attunet3d.training.cases import CachedCases
from attunet3d.training.history import TABLE, History
from attunet3d.training.run_state import misfit, optimizer_fits

logger = logging.getLogger(__name__)

BEST, FINAL, STATE, PREVIOUS = "model.pt", "model_final.pt", "last.pt", "previous.pt"


class RunCheckpoint:
    """Saves and resumes a run; a handler for the trainer, after validation.

    It attaches ``average`` and ``history`` too.

    ``model.pt`` has the averaged weights with the best key metric in validation, or the final ones without validation;
    ``model_final.pt`` those at the end. ``last.pt`` has the state of the run, saved every ``interval`` epochs; the
    previous one is kept as ``previous.pt``, in case ``last.pt`` is damaged. Writes are atomic, so a run may be killed
    at any time.

    No random state is saved: every epoch has its own seed.

    Args:
        save_dir: folder for the files.
        network, optimizer, lr_scheduler, average, history: the parts of the state.
        evaluator: its key metric chooses the best weights.
        interval: epochs between two states; 0 saves none.
        resume: resume from ``last.pt``, if there is one.
        seed: of the run.
        rank: this process; only the first one writes.
        cases: of training and validation; their names and contents on the model grid identify the run of a state.
        recipe: saved with the weights, see ``attunet3d.config.recipe``.

    Raises, in training:
        CheckpointError: ``last.pt`` does not fit the network, the optimizer, the seed and the cases.
        ConfigError: ``resume`` is not a bool.
        OutputError: one of the files cannot be written.
    """

    def __init__(
        self,
        save_dir: str | Path,
        network: nn.Module,
        optimizer: Optimizer,
        lr_scheduler: LambdaLR,
        average: AverageWeights,
        history: History,
        evaluator: Engine | None,
        interval: int = 5,
        resume: bool = False,
        seed: int = 0,
        rank: int = 0,
        cases: Sequence[CachedCases] = (),
        recipe: Mapping[str, Any] | None = None,
    ) -> None:
        if not isinstance(resume, bool):
            raise ConfigError(f"resume must be True or False, got {resume!r}")
        self.save_dir = Path(save_dir)
        self.network = network
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.average = average
        self.history = history
        self.evaluator = evaluator
        self.interval = interval
        self.resume = resume
        self.seed = seed
        self.rank = rank
        self.cases = cases
        self.recipe = recipe
        self.best: float | None = None
        self._validated: float | None = None
        self._damaged = False  # last.pt is damaged, and must not replace the intact previous.pt

    def attach(self, engine: Engine) -> None:
        """Attach the average, the history and this handler to a trainer."""
        self.average.attach(engine)
        self.history.attach(engine)
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.EPOCH_STARTED, self._seed_epoch)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._end_epoch)
        engine.add_event_handler(Events.COMPLETED, self._end)
        if self.evaluator is not None:
            self.evaluator.add_event_handler(Events.COMPLETED, self._take_metric)

    def _start(self, engine: Engine) -> None:
        if self.rank == 0:
            make_folder(self.save_dir)
            for name in (BEST, FINAL, STATE, TABLE):  # left by a run that was killed while writing
                for left in self.save_dir.glob(f".tmp-*-{name}"):
                    with suppress(OSError):
                        left.unlink()
        self._states = [cases.state(index) for cases in self.cases for index in range(len(cases))]
        if self.resume and any((self.save_dir / name).is_file() for name in (STATE, PREVIOUS)):
            self._load(engine)
        elif self.resume:
            logger.info("%s: no state to resume, so the run starts from the beginning", self.save_dir / STATE)
        epochs = {int(n) for n in idist.all_gather(engine.state.epoch)} if idist.get_world_size() > 1 else set()
        if len(epochs) > 1:
            raise CheckpointError(
                f"{self.save_dir}: processes resume from different epochs: put it where all of them can read it"
            )

    def _seed_epoch(self, engine: Engine) -> None:
        """Seed dropout and the like: as in a run that was not interrupted, different in each process."""
        torch.manual_seed((self.seed * 1_000_003 + engine.state.epoch) * 1009 + self.rank)

    def _take_metric(self, engine: Engine) -> None:
        # Weights whose metric is undefined are worse than any others.
        value = float(engine.state.metrics[engine.state.key_metric_name])
        self._validated = value if math.isfinite(value) else -math.inf

    def _end_epoch(self, engine: Engine) -> None:
        value, self._validated = self._validated, None
        if value is not None and (self.best is None or value > self.best):
            self.best = value
            self._save_weights(BEST)
        if self.interval and (engine.state.epoch % self.interval == 0 or engine.state.epoch == engine.state.max_epochs):
            self._save_state(engine)

    def _end(self, engine: Engine) -> None:
        self._save_weights(FINAL)
        if self.best is None:
            self._save_weights(BEST)

    def _save_weights(self, name: str) -> None:
        # Tensors saved from a GPU could not be loaded without one.
        weights = {key: value.cpu() for key, value in self.average.network.state_dict().items()}
        self._save(name, weights, self.recipe)

    def _save_state(self, engine: Engine) -> None:
        state = {
            "epoch": engine.state.epoch,
            "best": self.best,
            "seed": self.seed,
            "cases": self._states,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "lr_scheduler": self.lr_scheduler.state_dict(),
            "average": self.average.state_dict(),
            "history": self.history.rows,
        }
        self._save(STATE, state)

    def _save(self, name: str, content: Any, recipe: Mapping[str, Any] | None = None) -> None:
        if self.rank == 0:
            path = self.save_dir / name
            with atomic_path(path) as temporary:
                temporary.write_bytes(saved(content, recipe))
                if name == STATE and path.is_file() and not self._damaged:
                    os.replace(path, self.save_dir / PREVIOUS)
            self._damaged = self._damaged and name != STATE

    def _load_optimizer(self, optimizer: dict[str, Any], lr_scheduler: dict[str, Any]) -> None:
        """Load moments and epoch from the state; keep learning rate, weight decay, ... of this run."""
        settings = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        rates = self.lr_scheduler.base_lrs
        groups = [
            {**own, "params": group["params"]} for own, group in zip(settings, optimizer["param_groups"], strict=True)
        ]
        self.optimizer.load_state_dict({"state": optimizer["state"], "param_groups": groups})
        # load_state_dict would make an attribute of each of its items.
        self.lr_scheduler.last_epoch = lr_scheduler["last_epoch"]
        self.lr_scheduler.base_lrs = rates
        for group, values, rate, factor in zip(
            self.optimizer.param_groups, settings, rates, self.lr_scheduler.lr_lambdas, strict=True
        ):
            group.update(values, lr=rate * factor(self.lr_scheduler.last_epoch))

    def _load(self, engine: Engine) -> None:
        path, state = self._read_state()
        if state["seed"] != self.seed:
            raise CheckpointError(f"{path}: the run has seed {state['seed']}, not {self.seed}; resume it with that")
        self._check_cases(path, state["cases"])
        fit_weights(self.network, state["network"], path)
        fit_weights(self.average.network, state["average"]["network"], path)
        self.average.steps = state["average"]["steps"]
        if not optimizer_fits(state["optimizer"], self.optimizer):
            raise CheckpointError(f"{path}: the state of the optimizer does not fit; resume with the same presets")
        self._load_optimizer(state["optimizer"], state["lr_scheduler"])
        self.best = state["best"]
        self.history.rows = list(state["history"])
        engine.state.epoch = state["epoch"]
        engine.state.iteration = state["epoch"] * engine.state.epoch_length
        logger.info("resumed after epoch %d of %d", state["epoch"], engine.state.max_epochs)

    def _read_state(self) -> tuple[Path, dict[str, Any]]:
        """Return the last intact state, and its file."""
        path, previous = self.save_dir / STATE, self.save_dir / PREVIOUS
        try:
            return path, _read(path)
        except CheckpointError as error:
            if not previous.is_file():
                raise
            logger.warning("%s; resuming from %s", error, PREVIOUS)
            self._damaged = True
        return previous, _read(previous)

    def _check_cases(self, path: Path, before: Any) -> None:
        """Check that the cases are those that the run began with."""
        if [name for name, _ in before] != [name for name, _ in self._states]:
            raise CheckpointError(f"{path}: the run has other cases; resume it with its datalist and fold")
        names = [os.path.basename(case["image"]) for cases in self.cases for case in cases.data]
        changed = [name for name, old, new in zip(names, before, self._states, strict=True) if old != new]
        if changed:
            raise CheckpointError(
                f"{path}: {len(changed)} of {len(names)} cases, {changed[0]} for one, are not what the run began with: "
                "a CT or label has changed, or spacing, pancreas_labels or organs; put it back, or take another folder"
            )


def _read(path: Path) -> dict[str, Any]:
    hint = "start again, in another folder or without the file"
    if not path.is_file():
        raise CheckpointError(f"{path}: is missing; {hint}")
    try:
        state = read_tensors(path, hint)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: not the state of a run: {str(error).removeprefix(f'{path}: ')}") from error
    wrong = misfit(state)
    if wrong is not None:
        raise CheckpointError(f"{path}: not the state of a run, or of another version of attunet3d ({wrong}); {hint}")
    return dict(state)
