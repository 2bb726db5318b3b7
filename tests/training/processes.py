"""Work that several processes do together, over gloo, for tests."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

CONTEXT = multiprocessing.get_context("fork")


def together(work: Callable[[int], Any], folder: Path, processes: int = 2) -> list[Any]:
    """What ``work(rank)`` gives in each of so many processes of one group, by rank; they meet in a file of ``folder``.

    They are forks, so that work may be any closure, and nothing is imported anew.
    """
    outputs = [folder / f"rank{rank}.pt" for rank in range(processes)]
    arguments = [(work, rank, processes, folder / "meet", outputs[rank]) for rank in range(processes)]
    running = [CONTEXT.Process(target=_run, args=one) for one in arguments]
    for process in running:
        process.start()
    for process in running:
        process.join(timeout=120)
    for process in running:
        if process.is_alive():
            process.kill()
            process.join()
    results = [torch.load(path, weights_only=True) if path.is_file() else "it was killed" for path in outputs]
    for rank, result in enumerate(results):
        if isinstance(result, str):
            raise AssertionError(f"process {rank}: {result}")
    return results


def _run(work: Callable[[int], Any], rank: int, processes: int, meet: Path, output: Path) -> None:
    torch.set_num_threads(1)
    try:
        torch.distributed.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=processes)
        result = work(rank)
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    except BaseException:
        result = traceback.format_exc()
    torch.save(result, output)
