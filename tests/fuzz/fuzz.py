"""Damage inputs in thousands of ways: a good result or a typed error, and nothing else, is what may come of each.

    python tests/fuzz/fuzz.py --cases 2400 --seed 0

Inputs are CTs and label maps, manifests, datalists, presets and values of --set, weights and their recipes, the state
and the cache of training, records and tables of runs, and, where MONAI Label is installed in .venv-label, calls of its
server. A case runs as the program does, in a child process with limits of time and memory; a child that dies or hangs
is a failure like any other, and the next case gets a new one. ``--case N`` repeats one case and keeps its input.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), *(str(HERE.parent / folder) for folder in ("", "io", "io/dicom", "training")), str(ROOT)]

from fuzz_plan import MIX, Outcome, group_of, numbers, table  # noqa: E402

SECONDS = 900.0  # of one case, and to start: more is a hang, even on a slow machine; the slowest is told in the table
LABEL_PYTHON = Path(os.environ.get("LABEL_PYTHON", ROOT / ".venv-label" / "bin" / "python"))


class Child:
    """A process that works on one case after the other."""

    def __init__(self, seed: int, groups: Sequence[str], scratch: Path, python: str) -> None:
        self.errors = scratch / "stderr"
        shutil.rmtree(scratch / "sound", ignore_errors=True)
        command = [python, __file__, "--worker", str(scratch), "--seed", str(seed), "--only", *groups]
        with self.errors.open("a") as stderr:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            )
        if not self._answer(SECONDS):
            raise RuntimeError(f"the worker does not start: {self.errors.read_text()[-2000:]}")

    def run(self, case: int) -> Outcome:
        self.errors.write_text("")
        if self.process.stdin is None:
            raise RuntimeError("no pipe to the worker")
        start = time.perf_counter()
        self.process.stdin.write(f"{case}\n".encode())
        self.process.stdin.flush()
        answer = self._answer(SECONDS)
        if isinstance(answer, dict):
            return Outcome(**answer)
        seconds = time.perf_counter() - start
        self.end()
        kind = group_of(case)
        if answer is None:
            return Outcome(case, kind, "hang", f"no answer in {SECONDS:g} s", seconds)
        said = self.errors.read_text(errors="replace").partition("Extension modules")[0]
        return Outcome(case, kind, "crash", f"exit status {self.process.returncode}: {said[-1500:]}", seconds)

    def _answer(self, seconds: float) -> Any:
        """What the child said; None if it did not in time, "" if it died."""
        out = self.process.stdout
        if out is None or not select.select([out], [], [], seconds)[0]:
            return None
        line = out.readline()
        return json.loads(line) if line else ""

    def end(self) -> None:
        if self.process.stdin:
            self.process.stdin.close()
        try:
            self.process.wait(60 if self.process.stdout and self.process.poll() is None else 0)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()


def fuzz(cases: Sequence[int], seed: int, jobs: int, folder: Path) -> list[Outcome]:
    """The outcomes of these cases, in order; inputs of failures are kept in ``folder``."""
    found: list[Outcome] = []
    running: list[Future[None]] = []
    threads = ThreadPoolExecutor(jobs + 1)
    for name, python, many, chosen in (
        ("worker", sys.executable, jobs, [case for case in cases if group_of(case) != "rest"]),
        ("rest", str(LABEL_PYTHON), 1, [case for case in cases if group_of(case) == "rest"]),
    ):
        queue: SimpleQueue[int] = SimpleQueue()
        for case in chosen:
            queue.put(case)
        groups = sorted({group_of(case) for case in chosen})
        for number in range(many if chosen else 0):
            scratch = folder / f"{name}{number}"
            arguments = (queue, seed, groups, scratch, python, found)
            running.append(threads.submit(_drive, *arguments))
    for one in running:
        one.result()
    return sorted(found, key=lambda outcome: outcome.case)


def _drive(
    queue: SimpleQueue[int], seed: int, groups: Sequence[str], scratch: Path, python: str, found: list[Outcome]
) -> None:
    scratch.mkdir(parents=True)
    child: Child | None = None
    try:
        while True:
            try:
                case = queue.get_nowait()
            except Empty:
                return
            child = child or Child(seed, groups, scratch, python)
            outcome = child.run(case)
            found.append(outcome)
            if child.process.poll() is not None:
                child = None
            if outcome.failure:
                print(
                    f"FAILED seed {seed} case {case} ({outcome.kind}): {outcome.outcome}: {outcome.failure}", flush=True
                )
    finally:
        if child:
            child.end()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cases", type=int, default=2400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--only", nargs="*", choices=list(MIX), default=[], help="cases of these alone")
    parser.add_argument("--case", type=int, help="run this case alone and keep its input")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        if options.only == ["rest"]:
            from fuzz_rest import work as work_rest

            work_rest(options.seed, options.worker)
        else:
            from fuzz_worker import work

            work(options.seed, options.only, options.worker)
        return 0
    left_out = [] if LABEL_PYTHON.is_file() else ["rest"]
    if left_out:
        print("calls of the label server are left out: there is no .venv-label, see `make label`")
    cases = numbers(options.cases, options.only, left_out) if options.case is None else [options.case]
    if not cases:
        parser.error("nothing is left of these cases")
    folder = Path(tempfile.mkdtemp(prefix="attunet3d-fuzz-"))
    outcomes = fuzz(cases, options.seed, options.jobs, folder)
    print(table(outcomes))
    failed = any(o.failure for o in outcomes)
    if failed:
        command = f"python tests/fuzz/fuzz.py --seed {options.seed} --case N"
        print(f"inputs of faults are in {folder}; repeat one with: {command}")
    else:
        shutil.rmtree(folder)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
