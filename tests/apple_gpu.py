"""A device "mps" on a machine that has none: its tensors are computed on the CPU, and refuse what Apple's GPUs refuse.

That is float64, and operands of which some are on the CPU. What it cannot show is whether torch's kernels for these
GPUs are there, and right.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

MPS = torch.device("mps")
_aten = torch.ops.aten
# Operators that may take a tensor on the CPU beside one that is not.
_ACROSS = (_aten.copy_.default, _aten._to_copy.default, _aten.index.Tensor, Tensor.copy_, Tensor.__getitem__)


class OnGPU(Tensor):
    """A tensor on the pretended device; ``there`` holds its values."""

    there: Tensor

    @staticmethod
    def __new__(cls, there: Tensor) -> OnGPU:
        if there.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
        made = Tensor._make_wrapper_subclass(
            cls,
            there.shape,
            strides=there.stride(),
            storage_offset=there.storage_offset(),
            dtype=there.dtype,
            device=MPS,
            requires_grad=there.requires_grad,
        )
        made.there = there
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    if func is _aten._has_compatible_shallow_copy_type.default:
        return False  # so that modules make new parameters of what they are moved to
    inputs, _ = tree_flatten((args, kwargs))
    wrappers = [x for x in inputs if isinstance(x, OnGPU)]
    device = kwargs.get("device")
    on_gpu = bool(wrappers) if device is None else torch.device(device).type == "mps"
    stray = [x for x in inputs if isinstance(x, Tensor) and not isinstance(x, OnGPU) and x.ndim > 0]
    if wrappers and stray and func not in _ACROSS:
        raise RuntimeError(f"{func}: expected all tensors to be on the same device, found cpu and mps")
    if isinstance(args[0] if args else None, Tensor) and func in (_aten.copy_.default, Tensor.copy_):
        on_gpu = isinstance(args[0], OnGPU)
    if device is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    args, kwargs = tree_map(lambda x: x.there if isinstance(x, OnGPU) else x, (args, kwargs))
    out = func(*args, **kwargs)
    if not on_gpu:
        return out
    known = {id(x.there): x for x in wrappers}  # what is changed in place is the tensor that it was
    return tree_map(lambda x: (known[id(x)] if id(x) in known else OnGPU(x)) if isinstance(x, Tensor) else x, out)


class _Operators(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Moves(TorchFunctionMode):
    """What asks a device for its driver before any operator is called."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.to:
            x, *rest = args
            memory_format = kwargs.pop("memory_format", None)
            others = [a for a in rest if isinstance(a, Tensor)]
            dtypes = [a for a in (*rest, kwargs.get("dtype")) if isinstance(a, torch.dtype)] + [t.dtype for t in others]
            devices = [torch.device(a) for a in (*rest, kwargs.get("device")) if isinstance(a, str | torch.device)]
            devices += [t.device for t in others]
            device, dtype = (devices or [x.device])[0], (dtypes or [x.dtype])[0]
            same = (device.type, dtype) == (x.device.type, x.dtype)
            if same and (memory_format is None or x.is_contiguous(memory_format=memory_format)):
                return x
            return _aten._to_copy.default(x, dtype=dtype, device=device, memory_format=memory_format)
        try:
            return func(*args, **kwargs)
        except RuntimeError as error:
            if "PyTorch is not linked with support for mps devices" not in str(error):
                raise
        if func is Tensor.copy_:
            torch.autograd.graph.increment_version(args[0])
        return _run(func, args, kwargs)


@contextmanager
def pretended(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if there were one of Apple's GPUs, and no other."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "synchronize", lambda: None)
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # values of another kind fit no old parameter
    try:
        with _Operators(), _Moves():
            yield
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)
