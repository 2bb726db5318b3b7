"""What watches over a run, and what a run leaves behind."""

import io
import logging
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from processes import file_size_limit
from rich.console import Console
from rich.progress import Progress as Bar
from rich.progress import TextColumn
from torch import Tensor, nn
from toy_run import RATE, At, ToyRun, by_hand, squared_error

from attunet3d import AttentionUNet
from attunet3d.errors import CheckpointError, OutputError, TrainingError
from attunet3d.training import GateWatch, History, Progress, handlers

NAN = math.nan


# Steps that must not be taken.


def test_a_run_by_hand(tmp_path: Path) -> None:
    run = ToyRun(tmp_path, max_epochs=4).run()
    assert run.weight == pytest.approx(by_hand(4)[1][-1], rel=1e-5)


def test_a_loss_that_is_not_a_number(tmp_path: Path) -> None:
    """In the second step of the second epoch: the weights are those of the step before."""
    steps = []

    def loss(prediction: Tensor, target: Tensor) -> Tensor:
        steps.append(run.weight)
        return squared_error(prediction, target) * (NAN if len(steps) == 5 else 1)

    run = ToyRun(tmp_path, loss=loss)
    with pytest.raises(TrainingError, match=r"epoch 2, step 5: the loss is nan.*learning_rate.*resume=True"):
        run.run()
    assert len(steps) == 5
    assert run.weight == steps[-1] != 0
    assert len((tmp_path / "history.csv").read_text().splitlines()) == 2, "the epoch that was whole is kept"
    assert all(torch.isfinite(value).all() for value in torch.load(tmp_path / "last.pt")["network"].values())


def test_a_gradient_that_is_not_a_number(tmp_path: Path) -> None:
    """The loss is 0, and its root has no derivative there."""
    run = ToyRun(tmp_path, pairs=[(1.0, 0.0)], loss=lambda p, y: (p - y).abs().sqrt().sum())
    with pytest.raises(TrainingError, match=r"epoch 1, step 1: the loss is 0\.0, the norm of the gradient nan"):
        run.run()
    assert run.weight == 0


def test_gradients_are_clipped(tmp_path: Path) -> None:
    """d (w - 10)^2 / dw is -20 at w = 0, cut to -0.5; near the target nothing is cut."""
    run = ToyRun(tmp_path / "cut", pairs=[(1.0, 10.0)], max_epochs=1, max_norm=0.5).run()
    assert run.weight == pytest.approx(RATE * 0.5)
    run = ToyRun(tmp_path / "whole", pairs=[(1.0, 0.2)], max_epochs=1, max_norm=0.5).run()
    assert run.weight == pytest.approx(RATE * 0.4)


# Gates.


def network(level2: float = 0.0, level3: float = 0.0) -> AttentionUNet:
    """Gates that let the same share of everything through: sigmoid of what is given."""
    made = AttentionUNet(channels=(2, 4, 4, 4))
    for level, bias in ((made.decoder[1], level2), (made.decoder[0], level3)):
        psi = level.gate.gates[0].psi  # type: ignore[union-attr]
        nn.init.zeros_(psi.weight)
        nn.init.constant_(psi.bias, bias)
    return made


def case(
    shape: tuple[int, int, int] = (20, 18, 16), organ: tuple[int, int, int] | None = (5, 5, 5)
) -> dict[str, Tensor]:
    image, label = torch.zeros(1, *shape), torch.zeros(1, *shape, dtype=torch.uint8)
    if organ is not None:
        label[(0, *organ)] = 1
        image[(0, *organ)] = 1
    return {"image": image, "label": label}


def watched(net: nn.Module, of: dict[str, Tensor], folder: Path) -> dict[str, float]:
    """What is noted after a validation."""
    history = History(folder, torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1), None)
    evaluator = Engine(lambda engine, batch: None)
    GateWatch(evaluator, net, [of], history).attach(Engine(lambda engine, batch: None))
    evaluator.run([0])
    return history._found


def test_the_mean_of_each_gate(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = watched(network(level2=math.log(3), level3=-math.log(9)), case(), tmp_path)
    assert found == pytest.approx({"alpha_level2": 0.75, "alpha_level3": 0.1})
    assert not caplog.records


def test_a_closed_gate(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = watched(network(level3=-50.0), case(), tmp_path)
    assert found["alpha_level2"] == pytest.approx(0.5)
    assert found["alpha_level3"] < 1e-20
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "gate of level 3 is closed" in record.getMessage()
    assert "lower the learning rate" in record.getMessage()


@pytest.mark.parametrize(
    ("shape", "organ", "place"),
    [
        ((100, 80, 70), (50, 40, 35), (32, 32, 32)),  # around the organ,
        ((100, 80, 70), (95, 3, 69), (59, 3, 63)),  # as far as the volume goes;
        ((20, 80, 5), (10, 70, 2), (10, 54, 2)),  # what is smaller is there whole,
        ((100, 80, 70), None, None),  # and an empty label will do.
    ],
)
def test_gates_are_looked_at_around_the_organ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: Any, organ: Any, place: Any
) -> None:
    seen = []
    maps = AttentionUNet.attention_maps

    def look(self: AttentionUNet, x: Tensor) -> Any:
        seen.append(x)
        return maps(self, x)

    monkeypatch.setattr(AttentionUNet, "attention_maps", look)
    of = case(shape, organ)
    of["image"] = MetaTensor(of["image"])
    assert set(watched(network(), of, tmp_path)) == {"alpha_level2", "alpha_level3"}
    (patch,) = seen
    assert type(patch) is Tensor
    assert all(side <= 64 for side in patch.shape[2:])
    if place is not None:
        assert torch.argwhere(patch[0, 0]).tolist() == [list(place)]


def test_another_network_has_no_gates_to_watch(tmp_path: Path) -> None:
    assert watched(nn.Conv3d(1, 2, 1), case(), tmp_path) == {}
    assert watched(AttentionUNet(channels=(2, 4, 4), gate=None), case(), tmp_path) == {}


# Progress.


def progress(run: ToyRun) -> Progress:
    return Progress(run.history)


def test_a_line_of_the_log_an_epoch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An epoch takes 70 s here: after the first of three 140 s are left."""
    now = [0.0]
    monkeypatch.setattr(handlers.time, "perf_counter", lambda: now[0])

    def wait(run: ToyRun) -> At:
        return At(Events.EPOCH_STARTED, lambda engine: now.__setitem__(0, now[0] + 70))

    with caplog.at_level(logging.INFO, "attunet3d.training.handlers"):
        ToyRun(tmp_path, metrics=[0.5, 0.75, 0.25], more=[wait, progress]).run()
    lines = [r.getMessage() for r in caplog.records if r.name == "attunet3d.training.handlers"]
    losses = by_hand(3)[0]
    assert [line.split(":")[0] for line in lines] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    for line, loss, dice, left in zip(
        lines, losses, (0.5, 0.75, 0.25), ("2 min 20 s", "1 min 10 s", "0 min 00 s"), strict=True
    ):
        assert f"loss {loss:.4g}" in line
        assert f"val_dice {dice}" in line
        assert line.endswith(f"{left} left")


def test_a_resumed_run_knows_its_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only epochs of this run count: 4 of 6 are left after the first that was done, the second, in 100 s."""
    ToyRun(tmp_path, max_epochs=1).run()
    now = [0.0]
    monkeypatch.setattr(handlers.time, "perf_counter", lambda: now[0])

    def wait(run: ToyRun) -> At:
        return At(Events.EPOCH_STARTED, lambda engine: now.__setitem__(0, now[0] + 100))

    with caplog.at_level(logging.INFO, "attunet3d.training.handlers"):
        ToyRun(tmp_path, max_epochs=6, resume=True, more=[wait, progress]).run()
    lines = [r.getMessage() for r in caplog.records if r.name == "attunet3d.training.handlers"]
    assert lines[0].startswith("epoch 2/6")
    assert lines[0].endswith("6 min 40 s left")
    assert len(lines) == 5


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """A terminal for the bar."""
    text = io.StringIO()

    def make_bar() -> tuple[Bar, Console]:
        console = Console(file=text, force_terminal=True, width=200)
        return Bar(TextColumn("{task.description}"), console=console, auto_refresh=False), console

    monkeypatch.setattr(handlers, "make_bar", make_bar)
    return text


def test_a_bar_on_a_terminal(tmp_path: Path, terminal: io.StringIO, caplog: pytest.LogCaptureFixture) -> None:
    run = ToyRun(tmp_path, more=[progress]).run()
    shown = terminal.getvalue()
    assert [f"epoch {n}/3: loss {row['loss']:.4g}" in shown for n, row in enumerate(run.history.rows, 1)] == [True] * 3
    assert "left" in shown
    assert not [r for r in caplog.records if r.name == "attunet3d.training.handlers"]


def test_the_bar_goes_when_the_run_fails(tmp_path: Path, terminal: io.StringIO) -> None:
    made = []

    def kept(run: ToyRun) -> Progress:
        made.append(progress(run))
        return made[0]

    with pytest.raises(TrainingError, match="epoch 1, step 1"):
        ToyRun(tmp_path, loss=lambda p, y: (p - y).sum() * NAN, more=[kept]).run()
    assert made[0]._bar is None
    assert terminal.getvalue().endswith("\x1b[?25h"), "the cursor is shown again"


def test_one_process_shows_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "attunet3d.training.handlers"):
        ToyRun(tmp_path, more=[lambda run: Progress(run.history, show=False)]).run()
    assert not [r for r in caplog.records if r.name == "attunet3d.training.handlers"]


# What a run leaves behind.


def weight_in(path: Path) -> float:
    return float(torch.load(path, weights_only=True)["weight"])


def averages(made: list[float]) -> Callable[[ToyRun], At]:
    """Notes the averaged weight after each epoch."""
    return lambda run: At(Events.EPOCH_COMPLETED, lambda engine: made.append(float(run.average.network.weight)))


@pytest.mark.parametrize(
    ("metrics", "best"),
    [
        ([0.3, 0.8, 0.5], 2),
        ([0.3, 0.3, 0.3], 1),  # the first of equals
        ([0.0, 0.0, 0.1], 3),
        ([NAN, 0.1, NAN], 2),
        ([0.2, NAN, 0.1], 1),
        ([NAN, NAN, 0.0], 3),
        ([NAN, math.inf, 0.4], 3),  # which no Dice can be
    ],
)
def test_the_best_weights(tmp_path: Path, metrics: list[float], best: int) -> None:
    made: list[float] = []
    ToyRun(tmp_path, metrics=metrics, more=[averages(made)]).run()
    assert weight_in(tmp_path / "model.pt") == made[best - 1]
    assert weight_in(tmp_path / "model_final.pt") == made[2]
    assert len(set(made)) == 3


def test_weights_that_are_never_any_good_are_there_too(tmp_path: Path) -> None:
    ToyRun(tmp_path, metrics=[NAN, NAN, NAN]).run()
    assert math.isfinite(weight_in(tmp_path / "model.pt"))


def test_without_validation_the_final_weights_are_the_best(tmp_path: Path) -> None:
    made: list[float] = []
    ToyRun(tmp_path, more=[averages(made)]).run()
    assert weight_in(tmp_path / "model.pt") == weight_in(tmp_path / "model_final.pt") == made[-1]


def test_a_best_epoch_stays_the_best_when_resumed(tmp_path: Path) -> None:
    made: list[float] = []
    ToyRun(tmp_path, max_epochs=2, metrics=[0.9, 0.1], more=[averages(made)]).run()
    ToyRun(tmp_path, max_epochs=4, metrics=[0.8, 0.7], resume=True).run()
    assert weight_in(tmp_path / "model.pt") == made[0]


def test_a_resumed_run_is_a_whole_run(tmp_path: Path) -> None:
    def stop(engine: Engine) -> None:
        raise KeyboardInterrupt

    whole = ToyRun(tmp_path / "whole", max_epochs=5, warmup=2).run()
    cut = At(Events.EPOCH_STARTED(once=4), stop)
    with pytest.raises(KeyboardInterrupt):
        ToyRun(tmp_path / "cut", max_epochs=5, warmup=2, interval=2, more=[lambda run: cut]).run()
    resumed = ToyRun(tmp_path / "cut", max_epochs=5, warmup=2, interval=2, resume=True).run()
    assert resumed.weight == whole.weight
    assert weight_in(tmp_path / "cut" / "model.pt") == weight_in(tmp_path / "whole" / "model.pt")
    for one, other in zip(resumed.history.rows, whole.history.rows, strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}


def test_no_state_is_saved_where_none_is_wanted(tmp_path: Path) -> None:
    ToyRun(tmp_path, max_epochs=2, interval=0).run()
    assert sorted(path.name for path in tmp_path.glob("*.pt")) == ["model.pt", "model_final.pt"]


def test_states_come_at_intervals_and_at_the_end(tmp_path: Path) -> None:
    found = []

    def look(engine: Engine) -> None:
        state = tmp_path / "last.pt"
        found.append(torch.load(state, weights_only=True)["epoch"] if state.is_file() else None)

    ToyRun(tmp_path, max_epochs=7, interval=3, more=[lambda run: At(Events.EPOCH_COMPLETED, look)]).run()
    assert found == [None, None, 3, 3, 3, 6, 7]


def test_what_a_kill_left_behind_is_removed(tmp_path: Path) -> None:
    left = [tmp_path / f".tmp-12345678-{name}" for name in ("model.pt", "model_final.pt", "last.pt", "history.csv")]
    other = tmp_path / ".tmp-of-somebody"
    for path in (*left, other):
        path.write_bytes(b"half")
    ToyRun(tmp_path).run()
    assert not any(path.exists() for path in left)
    assert other.exists()


def test_only_the_first_process_writes(tmp_path: Path) -> None:
    run = ToyRun(tmp_path / "run", rank=1, metrics=[0.1, 0.2, 0.3]).run()
    assert not (tmp_path / "run").exists()
    assert len(run.history.rows) == 3
    assert run.checkpoint.best == 0.3, "which all of them know"


def test_each_epoch_and_process_has_random_numbers_of_its_own(tmp_path: Path) -> None:
    def numbers(name: str, **options: Any) -> list[float]:
        found: list[float] = []
        draw = At(Events.EPOCH_STARTED, lambda engine: found.append(float(torch.rand(1))))
        ToyRun(tmp_path / name, more=[lambda run: draw], **options).run()
        return found

    first = numbers("first")
    assert len(set(first)) == 3
    assert numbers("again") == first
    assert not set(numbers("process", rank=1)) & set(first)
    assert not set(numbers("seed", seed=1)) & set(first)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_full_disk_leaves_the_former_files_whole(tmp_path: Path) -> None:
    ToyRun(tmp_path, max_epochs=1).run()
    before = contents(tmp_path)
    assert {"model.pt", "model_final.pt", "last.pt"} < set(before)
    run = ToyRun(tmp_path, max_epochs=2, resume=True)
    with file_size_limit(1500), pytest.raises(OutputError, match=r"last\.pt: cannot be written"):
        run.run()
    after = contents(tmp_path)
    assert set(after) == set(before), "nothing half written"
    assert all(after[name] == before[name] for name in ("model.pt", "model_final.pt", "last.pt"))


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot make the output folder"):
        ToyRun(tmp_path / "file" / "run").run()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(mode=0o500)
    with pytest.raises(OutputError, match="cannot be written"):
        ToyRun(tmp_path / "run").run()


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"seed": 1}, "seed 1, not 0"),
        ({"network": {"weight": torch.zeros(1, 2)}}, "does not fit this network"),
        ({"optimizer": {"state": {}, "param_groups": []}}, "the state of the optimizer does not fit"),
        ({"more": 0}, "not the state of a run"),
    ],
)
def test_a_state_that_does_not_fit(tmp_path: Path, change: dict[str, Any], found: str) -> None:
    ToyRun(tmp_path, max_epochs=1).run()
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    torch.save({**state, **change}, tmp_path / "last.pt")
    with pytest.raises(CheckpointError, match=found):
        ToyRun(tmp_path, resume=True).run()


def test_nothing_to_resume_is_a_run_from_the_beginning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "attunet3d.training"):
        run = ToyRun(tmp_path, resume=True).run()
    assert len(run.history.rows) == 3
    assert any("no state to resume" in record.getMessage() for record in caplog.records)
