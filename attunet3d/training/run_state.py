"""Validate the state of a run: invalid content would fail only epochs later, or change the run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from attunet3d.checkpoint import is_plain_tensor

_MOST_STEPS = 10**12
_MOMENTS = {"exp_avg", "exp_avg_sq", "momentum_buffer"}
_ADAM = ("step", "exp_avg", "exp_avg_sq")  # required by its step


def misfit(state: Any) -> str | None:
    """Return the name of an invalid part of a state, or None if all are valid.

    Whether its tensors fit the network and the optimizer is not checked here.
    """
    if not isinstance(state, dict) or set(state) != set(_PARTS):
        return "its parts"
    return next((name for name, is_sound in _PARTS.items() if not is_sound(state[name])), None)


def optimizer_fits(state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> bool:
    """Whether a valid state has the groups of an optimizer, and tensors of the shape of each parameter."""
    groups = optimizer.param_groups
    if [len(group["params"]) for group in state["param_groups"]] != [len(group["params"]) for group in groups]:
        return False
    places = [place for group in state["param_groups"] for place in group["params"]]
    shapes = dict(zip(places, [one.shape for group in groups for one in group["params"]], strict=True))
    adam = isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW)
    return set(state["state"]) <= set(shapes) and all(
        (not adam or all(values.get(name) is not None for name in _ADAM))
        and all(_has_shape(name, value, shapes[place]) for name, value in values.items())
        for place, values in state["state"].items()
    )


def _has_shape(name: str, value: Any, shape: torch.Size) -> bool:
    return not isinstance(value, Tensor) or value.shape == (() if value.ndim == 0 and name not in _MOMENTS else shape)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _MOST_STEPS


def _is_best(value: Any) -> bool:
    return value is None or (type(value) is float and not math.isnan(value))


def _is_cases(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(case, list) and len(case) == 2 and all(isinstance(text, str) for text in case) for case in value
    )


def _is_weights(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(k, str) and is_plain_tensor(v) for k, v in value.items())


def _is_optimizer(value: Any) -> bool:
    if not isinstance(value, dict) or set(value) != {"state", "param_groups"}:
        return False
    groups, moments = value["param_groups"], value["state"]
    return (
        isinstance(groups, list)
        and all(isinstance(group, dict) and _is_places(group.get("params")) for group in groups)
        and isinstance(moments, dict)
        and all(isinstance(of, dict) and all(map(_is_moment, of.items())) for of in moments.values())
    )


def _is_places(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_count, value))


def _is_moment(item: tuple[Any, Any]) -> bool:
    """Whether an item of a parameter's state is a tensor or a number of steps; SGD without momentum has None."""
    name, value = item
    if not isinstance(value, Tensor):
        return isinstance(name, str) and (value is None or _is_count(value))
    return (
        isinstance(name, str)
        and is_plain_tensor(value)
        and value.is_floating_point()
        and bool(torch.isfinite(value).all())
        and (name not in ("step", "exp_avg_sq") or bool((value >= 0).all()))
    )


def _is_schedule(value: Any) -> bool:
    return isinstance(value, dict) and _is_count(value.get("last_epoch"))


def _is_average(value: Any) -> bool:
    return isinstance(value, dict) and _is_count(value.get("steps")) and _is_weights(value.get("network"))


def _is_history(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(row, dict) and all(isinstance(k, str) and type(v) in (int, float) for k, v in row.items())
        for row in value
    )


_PARTS = {
    "epoch": _is_count,
    "best": _is_best,
    "seed": lambda value: type(value) is int,
    "cases": _is_cases,
    "network": _is_weights,
    "optimizer": _is_optimizer,
    "lr_scheduler": _is_schedule,
    "average": _is_average,
    "history": _is_history,
}
