"""Cases on the model grid, cached on disk, and the sampler of training."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import warnings
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from monai.transforms import Compose
from torch import Tensor
from torch.utils.data import Dataset
from torch.utils.data.distributed import DistributedSampler

from attunet3d.checkpoint import file_sha256
from attunet3d.console import make_bar
from attunet3d.errors import ConfigError, InputNotFoundError, UnreadableInputError, only_own_error
from attunet3d.io.identity import input_files
from attunet3d.io.writer import atomic_path, make_folder, write_text_atomic
from attunet3d.transforms.monai_transforms import ToModelGridd
from attunet3d.version import __version__

logger = logging.getLogger(__name__)

Case = dict[Hashable, Any]
# Types in the cache: float32 images are rounded to whole HU, far below the noise of a CT.
_STORED = {"linear": np.int16, "label": np.uint8}


class CachedCases(Dataset[Any]):
    """Cases for training: the output of ``ToModelGridd`` is cached on disk, later transforms run for each item.

    The files are memory-mapped, and a patch reads only its part of an image, so memory does not grow with the number of
    cases. A case is prepared again if its files, the transforms up to ``ToModelGridd`` or the version of this package
    have changed when a run starts, or if ``fill_cache`` finds that the cached files do not match their checksums (a
    file in the format of ``sha256sum``).

    An item depends only on the seed and its key, not on the process or the time: with a ``CaseSampler`` a resumed run
    sees the same items as an uninterrupted one.

    Args:
        data: cases as {"image": path, "label": path}; other keys are passed to the transforms up to ``ToModelGridd``,
            "labelled" to all.
        transform: a ``Compose`` with one ``ToModelGridd``, whose keys are cached: images as int16 HU, labels as uint8.
        cache_dir: folder for the files; created if it does not exist.
        seed: of the random transforms.

    Raises:
        ConfigError: ``transform`` has no ``ToModelGridd``.
    """

    def __init__(
        self, data: Sequence[Mapping[str, Any]], transform: Compose, cache_dir: str | Path, seed: int = 0
    ) -> None:
        steps = list(transform.transforms)
        grids = [index for index, step in enumerate(steps) if isinstance(step, ToModelGridd)]
        if len(grids) != 1:
            raise ConfigError(f"the preprocessing of cached cases needs one ToModelGridd, found {len(grids)}")
        self.data = data
        self.transform = transform  # MONAI expects this name
        self.cache_dir = Path(cache_dir)
        self.seed = seed
        self._to_grid = Compose(steps[: grids[0] + 1])
        self._then = Compose(steps[grids[0] + 1 :])
        grid = steps[grids[0]]
        self._stored = {str(key): _STORED[mode] for key, mode in zip(grid.keys, grid.mode, strict=True)}
        self._ready: dict[int, dict[str, Path]] = {}  # checked once: raw data may be on a slow disk
        self._recipe = json.dumps([__version__, [_described(step) for step in steps[: grids[0] + 1]]])

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, key: int) -> Any:
        """Return the item for a key of ``CaseSampler``; keys below the number of cases belong to epoch 0."""
        index = key % len(self.data)
        item = _mapped(self._once_prepared(index), self._stored)
        if "labelled" in self.data[index]:
            item["labelled"] = self.data[index]["labelled"]
        self._then.set_random_state(seed=int(np.random.SeedSequence((self.seed, key)).generate_state(1)[0]))
        return self._then(item)

    def load(self, index: int) -> Case:
        """Return a case on the model grid as memory-mapped tensors (1, X, Y, Z); prepare it if it is not cached.

        Raises:
            AttUNet3dError: the case cannot be read.
        """
        return _mapped(self._prepared(index), self._stored)

    def is_ready(self, index: int) -> bool:
        """Whether a case is cached."""
        sums, paths = self._kept(index)
        return sums.is_file() and all(path.is_file() for path in paths.values())

    def is_sound(self, index: int) -> bool:
        """Whether a case is cached and matches its checksums; logs a warning if it does not match."""
        if not self.is_ready(index):
            return False
        sums, paths = self._kept(index)
        if sums.read_text(encoding="utf-8", errors="replace") == _sums(paths.values()):
            return True
        logger.warning("%s: its files in %s are damaged: preparing it again", self.data[index]["image"], self.cache_dir)
        return False

    def kept_as(self, index: int) -> str:
        """Return the name of a cached case, which depends on its files and the transforms."""
        return self._kept(index)[0].stem

    def state(self, index: int) -> list[str]:
        """Return a hash of the name of a case's CT, and one of its content on the model grid."""
        self._once_prepared(index)
        name = os.path.basename(self.data[index]["image"])
        content = self._kept(index)[0].read_text(encoding="utf-8", errors="replace").split()[::2]  # without file names
        return [hashlib.sha256(text.encode()).hexdigest() for text in (name, " ".join(content))]

    def prepare(self, index: int) -> None:
        """Resample a case to the model grid and cache it, even if it is cached already.

        Raises:
            AttUNet3dError: the case cannot be read.
        """
        sums, paths = self._kept(index)
        with only_own_error():
            item = self._to_grid(dict(self.data[index]))
        make_folder(self.cache_dir)
        for key, path in paths.items():
            values = np.asarray(item[key].cpu())
            stored = self._stored[key]
            if stored is np.int16:
                values = np.rint(values).clip(-32768, 32767)
            with atomic_path(path) as temporary:
                np.save(temporary, values.astype(stored), allow_pickle=False)
        write_text_atomic(sums, _sums(paths.values()))

    def _prepared(self, index: int) -> dict[str, Path]:
        """Return the files of a case; prepare it if it is not cached."""
        if not self.is_ready(index):
            self.prepare(index)
        return self._kept(index)[1]

    def _once_prepared(self, index: int) -> dict[str, Path]:
        """Like ``_prepared``, but accesses the disk only the first time."""
        if index not in self._ready:
            self._ready[index] = self._prepared(index)
        return self._ready[index]

    def _kept(self, index: int) -> tuple[Path, dict[str, Path]]:
        """Return the file of checksums of a case, and its cached files by key."""
        case = self.data[index]
        files = [_file_state(case[key]) for key in self._stored]
        more = sorted((key, value) for key, value in case.items() if key not in self._stored)
        name = hashlib.sha256(json.dumps([self._recipe, files, more]).encode()).hexdigest()[:32]
        return self.cache_dir / f"{name}.sha256", {key: self.cache_dir / f"{name}_{key}.npy" for key in self._stored}


class CaseSampler(DistributedSampler[Any]):
    """Yields keys for ``CachedCases``: every case once per epoch, in an order that depends only on seed and epoch.

    All processes together see the same batches as one process with batches as large as theirs together. The order is
    repeated from its start until all batches are full and every process has the same number of them.

    Args:
        dataset: the cases.
        batch_size: cases per step and process.
        seed: of the order.
        num_replicas: processes.
        rank: this process, from 0.
        shuffle: False keeps the order of the cases.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        batch_size: int = 1,
        seed: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
        shuffle: bool = True,
    ) -> None:
        super().__init__(dataset, num_replicas=num_replicas, rank=rank, shuffle=shuffle, seed=seed)
        self.cases = len(dataset)  # type: ignore[arg-type]
        step = batch_size * num_replicas
        self.total_size = math.ceil(self.cases / step) * step
        self.num_samples = self.total_size // num_replicas

    def __iter__(self) -> Iterator[int]:
        order = np.arange(self.cases)
        if self.shuffle:
            np.random.default_rng((self.seed, self.epoch)).shuffle(order)
        first = self.epoch * self.cases
        return iter([first + int(order[i % self.cases]) for i in range(self.rank, self.total_size, self.num_replicas)])


def validation_share(cases: int, rank: int = 0, processes: int = 1) -> list[int]:
    """Return the cases that a process validates: each case is validated by one process.

    If there are more processes than cases, each validates all cases, as none may be idle; the mean stays the same.
    """
    return list(range(cases)[rank::processes]) if cases >= processes else list(range(cases))


def fill_cache(datasets: Iterable[CachedCases], rank: int = 0, num_replicas: int = 1) -> None:
    """Prepare all cases before training starts, so that unreadable ones are found now and not hours later.

    Cached cases are compared with their checksums. Each of ``num_replicas`` processes prepares its share, with a
    progress bar on a terminal, and waits for the others.

    Raises:
        AttUNet3dError: a case cannot be read.
    """
    cases = {dataset.kept_as(index): (dataset, index) for dataset in datasets for index in range(len(dataset))}
    share = list(cases.values())[rank::num_replicas]
    missing = [(dataset, index) for dataset, index in share if not dataset.is_sound(index)]
    if missing:
        logger.info("%d cases are resampled to the model grid", len(missing))
        bar, _ = make_bar()
        with bar:
            task = bar.add_task("to the model grid", total=len(missing))
            for dataset, index in missing:
                dataset.prepare(index)
                bar.advance(task)
    if num_replicas > 1:
        idist.barrier()


def loader_workers(device: torch.device | str, processes: int = 1) -> int:
    """Return the number of processes that load patches: none if the CPU trains, else a share of the cores.

    Args:
        device: that trains.
        processes: training processes on this machine.
    """
    if torch.device(device).type == "cpu":
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(8, cores // processes - 1))


def _mapped(paths: Mapping[str, Path], stored: Mapping[str, type]) -> Case:
    arrays = {key: _map(path, stored[key]) for key, path in paths.items()}
    if len({array.shape for array in arrays.values()}) > 1:
        raise _damaged(next(iter(paths.values())))
    return {key: torch.from_numpy(array) for key, array in arrays.items()}


def _map(path: Path, dtype: type) -> np.ndarray:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings of Python, which parses the header
            # Copy on write: torch requires writable arrays, and the files must not change.
            array = np.lib.format.open_memmap(path, mode="c")
    except Exception as error:  # the parser raises various errors
        raise _damaged(path) from error
    if array.dtype != dtype or array.ndim != 4 or array.shape[0] != 1 or array.size == 0:
        raise _damaged(path)
    return array


def _damaged(path: Path) -> UnreadableInputError:
    return UnreadableInputError(f"{path}: damaged file of a cached case; remove it, and it is created again")


def _sums(paths: Iterable[Path]) -> str:
    return "".join(f"{file_sha256(path)}  {path.name}\n" for path in paths)


def _file_state(path: str) -> list[Any]:
    """Return names, sizes and times of a file, or of the files in a folder, to detect changes."""
    if not os.path.exists(path):
        raise InputNotFoundError(f"{path}: does not exist; check the datalist")
    return [[os.path.abspath(file), *state] for file, state in sorted(input_files(path).items())]


def _described(thing: Any, depth: int = 0) -> Any:
    """Describe a transform's class and settings for JSON, without its random state."""
    if thing is None or isinstance(thing, bool | int | float | str):
        return thing
    if isinstance(thing, Tensor | np.ndarray):
        return np.asarray(thing).tolist()
    if isinstance(thing, torch.dtype | np.dtype):
        return str(thing)
    if isinstance(thing, Mapping):
        return [[str(key), _described(value, depth)] for key, value in thing.items()]
    if isinstance(thing, list | tuple):
        return [_described(value, depth) for value in thing]
    if isinstance(thing, set | frozenset):
        return sorted(map(str, thing))
    kind = thing if hasattr(thing, "__qualname__") else type(thing)
    if kind is thing or depth > 3 or not hasattr(thing, "__dict__"):
        return kind.__qualname__
    settings = {key: value for key, value in vars(thing).items() if key != "R"}
    return [kind.__qualname__, _described(settings, depth + 1)]
