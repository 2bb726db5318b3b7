"""Work that several processes do together, over gloo, and a disk that is full, for tests."""

from __future__ import annotations

import multiprocessing
import resource
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import distributed

SERVER = multiprocessing.get_context("forkserver")
# As in test_resume: whichever comes first starts the server for both.
SERVER.set_forkserver_preload(["attunet3d.training.run_checkpoint", "attunet3d.workflow", "monai.bundle"])


def together(work: Callable[..., Any], folder: Path, *arguments: Any, processes: int = 2) -> list[Any]:
    """What ``work(rank, *arguments)``, a function of a module, gives in each process of a group, by rank."""
    outputs = [folder / f"rank{rank}.pt" for rank in range(processes)]
    running = [
        SERVER.Process(target=_run, args=(work, arguments, rank, processes, folder / "meet", outputs[rank]))
        for rank in range(processes)
    ]
    for process in running:
        process.start()
    for process in running:
        process.join(timeout=120)
        if process.is_alive():
            process.kill()
            process.join()
    results = [torch.load(path, weights_only=True) if path.is_file() else "it was killed" for path in outputs]
    for rank, result in enumerate(results):
        if isinstance(result, str):
            raise AssertionError(f"process {rank}: {result}")
    return results


def _run(
    work: Callable[..., Any], arguments: tuple[Any, ...], rank: int, processes: int, meet: Path, output: Path
) -> None:
    torch.set_num_threads(1)
    try:
        distributed.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=processes)
        result = work(rank, *arguments)
        distributed.barrier()
        distributed.destroy_process_group()
    except BaseException:
        result = traceback.format_exc()
    torch.save(result, output)


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """As a disk on which a file can take so many bytes, and no more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
