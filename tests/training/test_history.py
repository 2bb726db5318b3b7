"""history.csv and TensorBoard: one row an epoch, whatever happens in between."""

import csv
import math
from pathlib import Path

import pytest
import torch
from ignite.engine import Engine, Events
from processes import together
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from toy_run import RATE, At, ToyRun, by_hand

from attunet3d.errors import OutputError
from attunet3d.training import History
from attunet3d.training.history import as_csv


def table(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "history.csv").read_text().splitlines()))


def board(folder: Path) -> dict[str, dict[int, float]]:
    """What TensorBoard shows: the values of each tag by step; each step is there once."""
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    shown = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
    for tag, points in shown.items():
        assert len({point.step for point in points}) == len(points), tag
    return {tag: {point.step: point.value for point in points} for tag, points in shown.items()}


def test_a_row_an_epoch(tmp_path: Path) -> None:
    ToyRun(tmp_path, max_epochs=4, metrics=[0.25, 0.5], validate_every=2).run()
    rows = table(tmp_path)
    assert list(rows[0]) == ["epoch", "loss", "learning_rate", "seconds", "val_dice"]
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    losses, _ = by_hand(4)
    assert [float(row["loss"]) for row in rows] == pytest.approx(losses, rel=1e-5)
    assert [float(row["learning_rate"]) for row in rows] == pytest.approx(
        [RATE * share for share in (1, 0.75, 0.5, 0.25)]
    )
    assert [row["val_dice"] for row in rows] == ["", "0.25", "", "0.5"]
    assert all(float(row["seconds"]) >= 0 for row in rows)


def test_the_table_is_there_after_each_epoch(tmp_path: Path) -> None:
    counts = []

    def count(engine: Engine) -> None:
        counts.append((len(table(tmp_path)), max(board(tmp_path)["loss"])))

    ToyRun(tmp_path, max_epochs=3, more=[lambda run: At(Events.EPOCH_COMPLETED, count)]).run()
    assert counts == [(1, 1), (2, 2), (3, 3)], "and so is what TensorBoard shows: a run that is killed loses nothing"


def test_values_that_are_noted(tmp_path: Path) -> None:
    def note(run: ToyRun) -> At:
        return At(Events.EPOCH_STARTED(once=2), lambda engine: run.history.note("alpha_level2", 0.2))

    ToyRun(tmp_path, max_epochs=3, more=[note]).run()
    assert [row["alpha_level2"] for row in table(tmp_path)] == ["", "0.2", ""]
    assert board(tmp_path)["alpha_level2"] == {2: pytest.approx(0.2)}


def test_tensorboard_has_the_same(tmp_path: Path) -> None:
    run = ToyRun(tmp_path, metrics=[0.5, math.nan, 0.75]).run()
    shown = board(tmp_path)
    assert set(shown) == {"loss", "learning_rate", "val_dice", "seconds"}
    assert shown["val_dice"] == {1: 0.5, 3: 0.75}
    assert list(shown["loss"].values()) == pytest.approx([row["loss"] for row in run.history.rows])


def test_a_resumed_run_goes_on_with_both(tmp_path: Path) -> None:
    """Stopped in epoch 4, with the state of epoch 2: epoch 3 is there once, from the second time."""

    def stop(engine: Engine) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ToyRun(tmp_path, max_epochs=5, interval=2, more=[lambda run: At(Events.EPOCH_STARTED(once=4), stop)]).run()
    assert len(table(tmp_path)) == 3
    ToyRun(tmp_path, max_epochs=5, interval=2, resume=True).run()
    losses, _ = by_hand(5)
    assert [float(row["loss"]) for row in table(tmp_path)] == pytest.approx(losses, rel=1e-5)
    assert [row["epoch"] for row in table(tmp_path)] == ["1", "2", "3", "4", "5"]
    shown = board(tmp_path)["loss"]
    assert sorted(shown) == [1, 2, 3, 4, 5]
    assert [shown[step] for step in range(1, 6)] == pytest.approx(losses, rel=1e-5)


def test_all_digits_of_a_loss_are_kept() -> None:
    loss = 0.1 + 0.2
    text = as_csv([{"epoch": 1, "loss": loss}, {"epoch": 2, "loss": loss, "val_dice": 0.5}])
    assert text == "epoch,loss,val_dice\n1,0.30000000000000004,\n2,0.30000000000000004,0.5\n"


@pytest.mark.parametrize("name", ["history.csv", "tensorboard"])
def test_what_cannot_be_written_is_named(tmp_path: Path, name: str) -> None:
    if name == "tensorboard":
        (tmp_path / name).write_text("a file, not a folder")
    else:
        (tmp_path / name).mkdir()
    with pytest.raises(OutputError, match=name):
        ToyRun(tmp_path).run()


def test_a_full_disk_under_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.utils.tensorboard import SummaryWriter

    def flush(board: SummaryWriter) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SummaryWriter, "flush", flush)
    with pytest.raises(OutputError, match=r"tensorboard: .*No space left"):
        ToyRun(tmp_path).run()


def one_of_two(rank: int, folder: str) -> list[dict[str, float]]:
    """Losses 1, 2, 3 in the first process and 11, 12, 13 in the second."""
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), 0.5)
    history = History(folder, optimizer, None, write=rank == 0)
    engine = Engine(lambda engine, batch: [{"loss": torch.tensor(batch + 10.0 * rank)}])
    history.attach(engine)
    engine.run([1.0, 2.0, 3.0], max_epochs=2)
    return history.rows


def test_the_loss_is_that_of_all_processes(tmp_path: Path) -> None:
    found = together(one_of_two, tmp_path, str(tmp_path / "run"))
    for rows in found:
        assert [row["loss"] for row in rows] == [7.0, 7.0]
    assert [row["loss"] for row in table(tmp_path / "run")] == ["7.0", "7.0"]
    assert len(list((tmp_path / "run" / "tensorboard").iterdir())) == 1, "only the first process writes"
