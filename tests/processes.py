"""Work in other processes, which have torch and MONAI imported already; and a disk that is full, for tests."""

from __future__ import annotations

import multiprocessing
import os
import resource
import runpy
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch
from conftest import HANG
from torch import distributed

SERVER = multiprocessing.get_context("forkserver")
# What takes longest to import of all that training and evaluation do; the rest is found out by each process.
SERVER.set_forkserver_preload(
    [
        "attunet3d.segmenter.session",
        "attunet3d.training.run_checkpoint",
        "attunet3d.workflow",
        "hypothesis",
        "matplotlib.figure",
        "monai.bundle",
        "pytest",
        "torch._dynamo",
        "torch.utils.tensorboard",
    ]
)


def together(work: Callable[..., Any], folder: Path, *arguments: Any, processes: int = 2) -> list[Any]:
    """What ``work(rank, *arguments)``, a function of a module, gives in each process of a group, by rank."""
    outputs = [folder / f"rank{rank}.pt" for rank in range(processes)]
    run_all(
        [
            SERVER.Process(target=_run, args=(work, arguments, rank, processes, folder / "meet", outputs[rank]))
            for rank in range(processes)
        ]
    )
    results = [torch.load(path, weights_only=True) if path.is_file() else "it was killed" for path in outputs]
    for rank, result in enumerate(results):
        if isinstance(result, str):
            raise AssertionError(f"process {rank}: {result}")
    return results


def run_module(
    module: str, arguments: Sequence[object], folder: Path, environments: Sequence[dict[str, str]] = ({},)
) -> None:
    """``python -m module arguments`` in a folder, once for each environment, all at the same time; none may fail."""
    outputs = [folder / f"output{number}.txt" for number in range(len(environments))]
    texts = [str(argument) for argument in arguments]
    running = [
        SERVER.Process(target=_run_module, args=(module, texts, folder, environment, output))
        for environment, output in zip(environments, outputs, strict=True)
    ]
    run_all(running)
    printed = "\n".join(output.read_text()[-3000:] for output in outputs)
    assert [process.exitcode for process in running] == [0] * len(running), printed


def run_all(processes: Sequence[ForkServerProcess]) -> None:
    """Start them and wait for all; where one fails or hangs, the others, which may wait for it, are ended."""
    for process in processes:
        process.start()
    left = {process.sentinel: process for process in processes}
    failed = False
    while left and not failed:
        ended = [left.pop(sentinel) for sentinel in wait(list(left), HANG)]
        for process in ended:
            process.join()
        failed = not ended or any(process.exitcode for process in ended)
    for process in left.values():
        process.kill()
        process.join()


@contextmanager
def ranks(count: int) -> Iterator[list[dict[str, str]]]:
    """The environments that torchrun gives to its processes; they meet at a port that is taken already: ours."""
    store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": str(count)}
    common |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    yield [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


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


def _run_module(module: str, arguments: list[str], folder: Path, environment: dict[str, str], output: Path) -> None:
    torch.set_num_threads(1)
    os.environ.update(environment)
    os.chdir(folder)
    with output.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """As a disk on which a file can take so many bytes, and no more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
