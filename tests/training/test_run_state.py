"""A run's state that holds anything but what a run writes is refused before it is gone on with."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_run import ToyRun

from attunet3d.errors import CheckpointError

toy_run = partial(ToyRun, optimizer_of=torch.optim.AdamW)


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("state")
    toy_run(folder, max_epochs=1).run()
    return dict(torch.load(folder / "last.pt", weights_only=True))


def _moments(state: dict[str, Any]) -> dict[str, Any]:
    return dict(state["optimizer"]["state"][0])


def _with(part: str, value: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda state: {**state, part: value}


def _with_moment(name: str, change: Callable[[Any], Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def changed(state: dict[str, Any]) -> dict[str, Any]:
        moments = _moments(state)
        return {**state, "optimizer": {**state["optimizer"], "state": {0: {**moments, name: change(moments[name])}}}}

    return changed


@pytest.mark.parametrize(
    ("forge", "found"),
    [
        (_with("epoch", "1"), "epoch"),
        (_with("epoch", -1), "epoch"),
        (_with("epoch", True), "epoch"),
        (_with("best", float("nan")), "best"),
        (_with("best", "0.9"), "best"),
        (_with("seed", None), "seed"),
        (_with("cases", [7]), "cases"),
        (_with("network", {"weight": [1.0]}), "network"),
        (_with("network", 3), "network"),
        (_with("average", {"steps": "1", "network": {}}), "average"),
        (_with("average", {"steps": 1, "network": {}}), "does not fit"),
        (_with("lr_scheduler", {"last_epoch": "x"}), "lr_scheduler"),
        (_with("history", [{"epoch": "=1+1"}]), "history"),
        (_with("history", "epoch"), "history"),
        (_with("optimizer", {"state": {}, "param_groups": [{"params": [[0]]}]}), "optimizer"),
        (_with("optimizer", {"state": {}, "param_groups": []}), "the state of the optimizer does not fit"),
        (_with_moment("exp_avg", lambda value: value[0, 0]), "the state of the optimizer does not fit"),
        (_with_moment("exp_avg", lambda value: value * float("nan")), "optimizer"),
        (_with_moment("exp_avg_sq", lambda value: -value - 1), "optimizer"),
        (_with_moment("step", lambda value: None), "the state of the optimizer does not fit"),
        (_with_moment("step", lambda value: value - 100), "optimizer"),
        (lambda state: {**state, "more": 1}, "its parts"),
    ],
)
def test_what_a_run_does_not_write_is_refused(
    state: dict[str, Any], tmp_path: Path, forge: Callable[[dict[str, Any]], dict[str, Any]], found: str
) -> None:
    torch.save(forge(state), tmp_path / "last.pt")
    with pytest.raises(CheckpointError, match=found):
        toy_run(tmp_path, max_epochs=2, resume=True).run()


def test_settings_of_the_optimizer_are_not_taken_from_the_file(state: dict[str, Any], tmp_path: Path) -> None:
    groups = [{**group, "fused": torch.zeros(0), "betas": "x"} for group in state["optimizer"]["param_groups"]]
    torch.save({**state, "optimizer": {**state["optimizer"], "param_groups": groups}}, tmp_path / "last.pt")
    run = toy_run(tmp_path, max_epochs=2, resume=True).run()
    assert run.optimizer.param_groups[0]["betas"] == (0.9, 0.999)


def test_the_schedule_takes_its_epoch_alone(state: dict[str, Any], tmp_path: Path) -> None:
    """Anything else would become an attribute of it."""
    torch.save(
        {**state, "lr_scheduler": {**state["lr_scheduler"], "step": None, "base_lrs": [9.0]}}, tmp_path / "last.pt"
    )
    run = toy_run(tmp_path, max_epochs=2, resume=True).run()
    assert [row["epoch"] for row in run.history.rows] == [1, 2]
    whole = toy_run(tmp_path / "whole", max_epochs=2).run()
    assert run.history.rows[1]["loss"] != 0
    assert run.history.rows[1]["learning_rate"] == whole.history.rows[1]["learning_rate"]
