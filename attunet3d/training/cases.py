"""Cases on the model grid, kept on disk, and the order in which training takes them."""

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
# What is stored of a float32 image on the model grid: HU to the nearest whole number, far below the noise of a CT.
_STORED = {"linear": np.int16, "label": np.uint8}


class CachedCases(Dataset[Any]):
    """Cases for training: what `ToModelGridd` gives is kept on disk, what follows is done anew for each item.

    The files are mapped into memory, of an image only what a patch needs: they take no memory that the system could not
    have back, however many cases there are. A case is prepared again when, at the start of a run, its files, the
    transforms up to `ToModelGridd` or this package's version have changed; or, see `fill_cache`, when what is kept does
    not have the checksums that lie beside it, in a file as `sha256sum` writes it.

    An item depends on the seed and its key alone, not on which process makes it or when: with a `CaseSampler` a run
    that is resumed sees what it would have seen.

    Args:
        data: cases as {"image": path, "label": path}; what else they say goes to the transforms, "labelled" to all.
        transform: a ``Compose`` with one `ToModelGridd`, whose keys are kept: images as int16 HU, labels as uint8.
        cache_dir: folder for the files; made if it does not exist.
        seed: of the random transforms.

    Raises:
        ConfigError: ``transform`` has no `ToModelGridd`.
    """

    def __init__(
        self, data: Sequence[Mapping[str, Any]], transform: Compose, cache_dir: str | Path, seed: int = 0
    ) -> None:
        steps = list(transform.transforms)
        grids = [index for index, step in enumerate(steps) if isinstance(step, ToModelGridd)]
        if len(grids) != 1:
            raise ConfigError(f"the preprocessing of cached cases needs one ToModelGridd, found {len(grids)}")
        self.data = data
        self.transform = transform  # where MONAI looks for it
        self.cache_dir = Path(cache_dir)
        self.seed = seed
        self._to_grid = Compose(steps[: grids[0] + 1])
        self._then = Compose(steps[grids[0] + 1 :])
        grid = steps[grids[0]]
        self._stored = {str(key): _STORED[mode] for key, mode in zip(grid.keys, grid.mode, strict=True)}
        self._ready: dict[int, dict[str, Path]] = {}  # looked up once: raw data may lie on a slow disk
        self._recipe = json.dumps([__version__, [_described(step) for step in steps[: grids[0] + 1]]])

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, key: int) -> Any:
        """Item of a key from `CaseSampler`; keys below the number of cases are those of epoch 0."""
        index = key % len(self.data)
        item = _mapped(self._once_prepared(index), self._stored)
        if "labelled" in self.data[index]:
            item["labelled"] = self.data[index]["labelled"]
        self._then.set_random_state(seed=int(np.random.SeedSequence((self.seed, key)).generate_state(1)[0]))
        return self._then(item)

    def load(self, index: int) -> Case:
        """A case on the model grid, tensors (1, X, Y, Z) mapped from disk; it is prepared if it is not there yet.

        Raises:
            AttUNet3dError: the case cannot be read.
        """
        return _mapped(self._prepared(index), self._stored)

    def is_ready(self, index: int) -> bool:
        """Whether a case has been prepared."""
        sums, paths = self._kept(index)
        return sums.is_file() and all(path.is_file() for path in paths.values())

    def is_sound(self, index: int) -> bool:
        """Whether a case has been prepared and is as it was written; where it is not, that is logged."""
        if not self.is_ready(index):
            return False
        sums, paths = self._kept(index)
        if sums.read_text(encoding="utf-8", errors="replace") == _sums(paths.values()):
            return True
        logger.warning("%s: its files in %s are damaged, and made anew", self.data[index]["image"], self.cache_dir)
        return False

    def kept_as(self, index: int) -> str:
        """The name of what is kept of a case: the same for the same files and transforms."""
        return self._kept(index)[0].stem

    def state(self, index: int) -> list[str]:
        """Two hashes of a case: of its CT's name, and of what it is on the model grid, whatever its files' names."""
        self._once_prepared(index)
        name = os.path.basename(self.data[index]["image"])
        content = self._kept(index)[0].read_text(encoding="utf-8", errors="replace").split()[::2]  # without the names
        return [hashlib.sha256(text.encode()).hexdigest() for text in (name, " ".join(content))]

    def prepare(self, index: int) -> None:
        """Bring a case to the model grid and keep it, whether or not it is there.

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
        """A case's files, which are there now."""
        if not self.is_ready(index):
            self.prepare(index)
        return self._kept(index)[1]

    def _once_prepared(self, index: int) -> dict[str, Path]:
        """As `_prepared`, of which the disk is asked the first time alone."""
        if index not in self._ready:
            self._ready[index] = self._prepared(index)
        return self._ready[index]

    def _kept(self, index: int) -> tuple[Path, dict[str, Path]]:
        """The file of a case's checksums, and its files."""
        case = self.data[index]
        files = [_file_state(case[key]) for key in self._stored]
        more = sorted((key, value) for key, value in case.items() if key not in self._stored)
        name = hashlib.sha256(json.dumps([self._recipe, files, more]).encode()).hexdigest()[:32]
        return self.cache_dir / f"{name}.sha256", {key: self.cache_dir / f"{name}_{key}.npy" for key in self._stored}


class CaseSampler(DistributedSampler[Any]):
    """Every case once an epoch, in an order that depends on seed and epoch alone; gives keys for `CachedCases`.

    All processes together go through the same batches as one process with all of them in its batch. The order is
    filled up from its start, so that every batch is full and every process has as many.

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
    """Which of so many cases a process validates: every one belongs to one process, but where processes outnumber them.

    Then every process validates all: none may have nothing to do, and a mean over equal repetitions is still the mean.
    """
    return list(range(cases)[rank::processes]) if cases >= processes else list(range(cases))


def fill_cache(datasets: Iterable[CachedCases], rank: int = 0, num_replicas: int = 1) -> None:
    """Prepare all cases before training starts, so that one that cannot be read is found now and not hours later.

    What is there already is compared with its checksums. Each of ``num_replicas`` processes does its share, with a
    progress bar on a terminal, and waits for the others.

    Raises:
        AttUNet3dError: a case cannot be read.
    """
    cases = {dataset.kept_as(index): (dataset, index) for dataset in datasets for index in range(len(dataset))}
    share = list(cases.values())[rank::num_replicas]
    missing = [(dataset, index) for dataset, index in share if not dataset.is_sound(index)]
    if missing:
        logger.info("%d cases are brought to the model grid", len(missing))
        bar, _ = make_bar()
        with bar:
            task = bar.add_task("to the model grid", total=len(missing))
            for dataset, index in missing:
                dataset.prepare(index)
                bar.advance(task)
    if num_replicas > 1:
        idist.barrier()


def loader_workers(device: torch.device | str, processes: int = 1) -> int:
    """How many processes load patches: none beside a CPU that trains, else a share of the cores.

    ``processes``: how many train on this machine.
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
            warnings.simplefilter("ignore")  # of the header, which numpy has Python parse
            # Copy on write: torch wants arrays that can be written to, and nothing may change the files.
            array = np.lib.format.open_memmap(path, mode="c")
    except Exception as error:  # the parser raises whatever it likes
        raise _damaged(path) from error
    if array.dtype != dtype or array.ndim != 4 or array.shape[0] != 1 or array.size == 0:
        raise _damaged(path)
    return array


def _damaged(path: Path) -> UnreadableInputError:
    return UnreadableInputError(f"{path}: kept of a case, and damaged; remove it, and it is made again")


def _sums(paths: Iterable[Path]) -> str:
    return "".join(f"{file_sha256(path)}  {path.name}\n" for path in paths)


def _file_state(path: str) -> list[Any]:
    """What changes when a file, or a file in a folder, does: names, sizes and times."""
    if not os.path.exists(path):
        raise InputNotFoundError(f"{path}: does not exist; check the datalist")
    return [[os.path.abspath(file), *state] for file, state in sorted(input_files(path).items())]


def _described(thing: Any, depth: int = 0) -> Any:
    """A transform's class and settings as JSON can hold them, without its random state."""
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
