"""The history of a run: one row per epoch, as CSV and for TensorBoard."""

from __future__ import annotations

import csv
import io
import math
import time
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.handlers import from_engine
from torch.optim import Optimizer

from attunet3d.errors import OutputError
from attunet3d.io.writer import make_folder, write_text_atomic

Row = dict[str, float]
TABLE = "history.csv"


class History:
    """Records loss, learning rate, metrics and time of each epoch; a handler for the trainer, after validation.

    ``history.csv`` is written atomically after each epoch, and TensorBoard logs too. A resumed run continues both.

    Args:
        save_dir: folder for ``history.csv`` and ``tensorboard/``.
        optimizer: its learning rate is recorded.
        evaluator: its metrics are recorded in the epochs in which it runs.
        write: False in all processes but one.

    Attributes:
        rows: one per epoch, with "epoch", "loss" (mean over the epoch and all processes), "learning_rate", "seconds"
            and metrics.

    Raises, in training:
        OutputError: a file cannot be written.
    """

    def __init__(
        self, save_dir: str | Path, optimizer: Optimizer, evaluator: Engine | None, write: bool = True
    ) -> None:
        self.save_dir = Path(save_dir)
        self.optimizer = optimizer
        self.evaluator = evaluator
        self.write = write
        self.rows: list[Row] = []
        self._losses: list[torch.Tensor] = []
        self._rate = 0.0
        self._started = 0.0
        self._found: dict[str, float] = {}
        self._board: Any = None

    def attach(self, engine: Engine) -> None:
        """Follow a trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._start_epoch)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._take_loss)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._end_epoch)
        engine.add_event_handler(Events.COMPLETED, self._close)
        if self.evaluator is not None:
            self.evaluator.add_event_handler(Events.COMPLETED, self._take_metrics)

    def note(self, name: str, value: float) -> None:
        """Add a value to the row of the current epoch."""
        self._found[name] = value

    def _start_epoch(self, engine: Engine) -> None:
        self._losses, self._found, self._started = [], {}, time.perf_counter()
        self._rate = float(self.optimizer.param_groups[0]["lr"])  # at the end of the epoch it is the next one

    def _take_loss(self, engine: Engine) -> None:
        loss = from_engine("loss", first=True)(engine.state.output)
        self._losses.append(torch.as_tensor(loss).detach())

    def _take_metrics(self, engine: Engine) -> None:
        for name, value in engine.state.metrics.items():
            self.note(name, float(value))

    def _end_epoch(self, engine: Engine) -> None:
        mean = torch.stack(self._losses).cpu().double().mean().item()
        if idist.get_world_size() > 1:
            mean = float(idist.all_reduce(mean)) / idist.get_world_size()
        row = {"epoch": engine.state.epoch, "loss": mean, "learning_rate": self._rate}
        found = {name: float(value) for name, value in engine.state.metrics.items()} | self._found
        self.rows.append({**row, **found, "seconds": round(time.perf_counter() - self._started, 3)})
        if self.write:
            make_folder(self.save_dir)
            write_text_atomic(self.save_dir / TABLE, as_csv(self.rows))
            self._show(self.rows[-1])

    def _show(self, row: Row) -> None:
        folder = self.save_dir / "tensorboard"
        try:
            if self._board is None:
                from torch.utils.tensorboard import SummaryWriter

                # Hides what an interrupted run wrote after its last saved state.
                self._board = SummaryWriter(str(folder), purge_step=int(row["epoch"]))
            for name, value in row.items():
                if name != "epoch" and math.isfinite(value):
                    self._board.add_scalar(name, value, int(row["epoch"]))
            self._board.flush()  # otherwise a killed run would lose the rows of the last minutes
        except OSError as error:
            hint = "free some space or choose another folder"
            raise OutputError(f"{folder}: cannot be written ({error.strerror}); {hint}") from error

    def _close(self, engine: Engine) -> None:
        if self._board is not None:
            self._board.close()
            self._board = None


def as_csv(rows: list[Row]) -> str:
    """Format all rows as CSV, with empty cells for missing values and floats in full precision."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    table = csv.DictWriter(text, columns, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue()
