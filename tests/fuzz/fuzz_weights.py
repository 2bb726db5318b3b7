"""Damaged and forged weights, and the state of a training run that is to go on."""

from __future__ import annotations

import copy
import io
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from fuzz_mutations import Rng, any_of, damaged_bytes
from fuzz_target import Fault
from fuzz_values import COMMAND, MARKER, deep_value, nasty
from torch import Tensor, nn
from toy_run import ToyRun

from attunet3d.checkpoint import load_weights, mean_weights
from attunet3d.training.run_checkpoint import PREVIOUS, STATE


class Forged:
    """What a pickle that is run would do."""

    def __init__(self, how: int) -> None:
        self._how = how

    def __reduce__(self) -> Any:
        return [
            (os.system, (COMMAND,)),
            (open, (MARKER, "w")),
            (exec, (f"open({MARKER!r}, 'w')",)),
            (eval, (f"open({MARKER!r}, 'w')",)),
            (torch.load, (MARKER,)),
            (torch.hub.load, (".", "model")),
        ][self._how]


class Weights:
    """Weights for ``load_weights``, as torch writes them now, as it did once, and forged."""

    kinds = ("weights zip", "weights members", "weights old format", "weights tensors", "weights forged")

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._state = OrderedDict((key, value.detach().clone()) for key, value in network.state_dict().items())

    def damage(self, kind: str, rng: Rng, folder: Path) -> None:
        """See ``Target``."""
        path = folder / "model.pt"
        if kind == "weights forged":
            path.write_bytes(forged(rng, self._state))
            return
        content: Any = {"model": self._state, "epoch": 3} if rng.random() < 0.3 else self._state
        if kind == "weights tensors":
            content = _with_odd_tensors(rng, content)
        data = saved(content, kind != "weights old format")
        if kind == "weights members":
            data = damaged_members(rng, data)
        elif kind != "weights tensors":
            data = damaged_bytes(rng, bytearray(data))
        path.write_bytes(data)

    def run(self, kind: str, folder: Path) -> str:
        """See ``Target``."""
        network = copy.deepcopy(self._network)
        load_weights(network, folder / "model.pt")
        for key, value in network.state_dict().items():
            if value.shape != self._state[key].shape or value.dtype != self._state[key].dtype:
                raise Fault(f"{key} is {value.dtype} {tuple(value.shape)}")
            if not bool(torch.isfinite(value).all()):
                raise Fault(f"{key} is not finite")
        mean_weights([folder / "model.pt"] * 2)
        return ""


class States:
    """A run's state, with which a toy run goes on for an epoch; now and then there is a sound one before it."""

    kinds = ("states values", "states members", "states zip", "states forged", "states previous")

    def __init__(self, scratch: Path) -> None:
        scratch.mkdir(parents=True)
        _toy_run(scratch, 2).run()
        self._whole = (scratch / STATE).read_bytes()
        self._state = torch.load(scratch / STATE, weights_only=True)

    def damage(self, kind: str, rng: Rng, folder: Path) -> None:
        """See ``Target``."""
        if kind in ("states values", "states previous"):
            data = saved(_with_odd_values(rng, self._state))
        elif kind == "states forged":
            data = forged(rng, self._state)
        else:
            data = (
                damaged_members(rng, self._whole) if "members" in kind else damaged_bytes(rng, bytearray(self._whole))
            )
        (folder / STATE).write_bytes(data)
        if kind == "states previous":
            (folder / PREVIOUS).write_bytes(self._whole)

    def run(self, kind: str, folder: Path) -> str:
        """See ``Target``."""
        from attunet3d.errors import only_own_error

        with only_own_error():
            run = _toy_run(folder, 3, resume=True).run()
        if run.trainer.state.epoch < 3:
            raise Fault(f"the run ended in epoch {run.trainer.state.epoch}")
        return ""


def _toy_run(folder: Path, epochs: int, resume: bool = False) -> ToyRun:
    return ToyRun(folder, max_epochs=epochs, resume=resume, optimizer_of=torch.optim.AdamW)


def saved(content: Any, zipped: bool = True) -> bytes:
    """What ``torch.save`` writes; not zipped as it did before torch 1.6."""
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def forged(rng: Rng, content: Any) -> bytes:
    """A file that would run something if its pickle were: a bare pickle, one in torch's zip or in its old format."""
    evil = Forged(int(rng.integers(6)))
    value: Any = any_of(rng, [evil, {**content, "extra": evil}, dict.fromkeys(content, evil), [evil]])
    how = int(rng.integers(4))
    if how == 0:
        return pickle.dumps(value, protocol=int(rng.integers(2, 5)))
    if how == 3:  # a sound file whose pickle is put in place of another
        return _zipped({**_members(saved(content)), "archive/data.pkl": pickle.dumps(value, 2)})
    return saved(value, how == 1)


def damaged_members(rng: Rng, data: bytes | bytearray) -> bytes:
    """torch's zip with one member changed and its checksum right: so it is not the checksum that tells."""
    members = _members(data)
    names = list(members)
    name = any_of(rng, names)
    how = int(rng.integers(10))
    if how < 4:
        name = name if how == 0 else next(n for n in names if n.endswith("data.pkl"))
        members[name] = damaged_bytes(rng, bytearray(members[name]))
    elif how == 4:
        del members[name]
    elif how == 5:
        members[name] = any_of(rng, [b"", members[name][:7], members[name] * 3, rng.bytes(64), b"\x80\x02}q\x00."])
    elif how == 6:
        new = any_of(
            rng, ["../evil", "/tmp/evil", name + "/", name.upper(), "archive/\u202e", "archive/data/99", "x" * 300]
        )
        members[new] = members.pop(name)
    elif how == 7:
        members[any_of(rng, ["archive/byteorder", "archive/.data/serialization_id", "archive/version"])] = any_of(
            rng, [b"big", b"middle", b"", b"\xff" * 9, b"99999999999999999999"]
        )
    elif how == 8:
        members["archive/constants.pkl"] = pickle.dumps(Forged(0))
        members["archive/code/__torch__.py"] = f"import os\nos.system({COMMAND!r})\n".encode()
    packed = zipfile.ZIP_DEFLATED if how == 9 else zipfile.ZIP_STORED
    return _zipped(members, packed)


def _members(data: bytes | bytearray) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def _zipped(members: dict[str, bytes], packed: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", packed) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content, packed)
    return buffer.getvalue()


def _savable(value: Any) -> Any:
    """A value that torch.save can write: none so deep, nor a number with more digits than Python's texts may have."""
    return deep_value(value, 100)


def _with_odd_tensors(rng: Rng, content: Any) -> Any:
    content = copy.deepcopy(content)
    state = content.get("model", content)
    name = any_of(rng, list(state))
    there = state[name]
    odd: list[Any] = [
        *(
            float("nan") * there,
            there.to(torch.complex64),
            there.to(torch.int32),
            there.bool(),
            there.double(),
            there.half(),
        ),
        *(there.bfloat16(), there.to(torch.float8_e4m3fn), there.to("meta"), there.to_sparse(), there.flatten()),
        *(
            there.expand(2, *there.shape),
            torch.zeros(1).expand(10**9),
            torch.zeros(0),
            torch.tensor(1e39, dtype=torch.float64),
        ),
        *(
            torch.full(there.shape, 1e300, dtype=torch.float64),
            torch.full(there.shape, 3e38),
            nn.Parameter(there, requires_grad=False),
            there.transpose(0, -1).contiguous().transpose(0, -1),
        ),
        torch.quantize_per_tensor(there.float(), 0.1, 0, torch.qint8),
        torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)], layout=torch.jagged),
        *(there.tolist(), there.numpy().tobytes(), None, _savable(nasty(rng))),
    ]
    how = int(rng.integers(6))
    if how == 0:
        del state[name]
    elif how == 1:
        state[
            any_of(rng, [7, None, ("a", 1), "auxiliary.weight", "x" * 3000, "a\x1b[2J", name + ".bias", b"bytes"])
        ] = there
    elif how == 2:
        odd_one = _savable(nasty(rng))
        return any_of(rng, [odd_one, {"model": odd_one}, [content], {}, {"model": {}}, {"state_dict": state}, there])
    else:
        state[name] = any_of(rng, odd)
    return content


def _with_odd_values(rng: Rng, state: dict[str, Any]) -> Any:
    """A run's state with one place changed, at whatever depth; tensors are places too."""
    state = copy.deepcopy(state)
    parent, key = any_of(rng, _places(state))
    here = parent[key]
    odd: list[Any] = [
        None,
        True,
        -1,
        10**20,
        1e300,
        float("nan"),
        "",
        [],
        {},
        torch.zeros(2),
        torch.zeros(0),
        "two\nlines",
    ]
    if isinstance(here, Tensor):
        odd += [
            here * float("nan"),
            here.expand(3, *here.shape).clone(),
            here.double(),
            here.to_sparse(),
            here.to("meta"),
            here.bool(),
        ]
    elif isinstance(here, int | float):
        odd += [here + 1, -here, str(here), [here], torch.tensor(here), here * 10**6]
    elif isinstance(here, list):
        odd += [here * 2, here[::-1], here[:-1], dict(enumerate(here)), [here]]
    elif isinstance(here, dict):
        odd += [list(here.items()), {str(k) + "x": v for k, v in here.items()}, {**here, "more": 1}, {**here, 7: here}]
    how = int(rng.integers(6))
    if how == 0:
        del parent[key]
    elif how == 1:
        parent[key] = _savable(nasty(rng))
    else:
        parent[key] = any_of(rng, odd)
    return state


def _places(value: Any) -> list[tuple[Any, Any]]:
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [place for key in keys for place in ((value, key), *_places(value[key]))]
