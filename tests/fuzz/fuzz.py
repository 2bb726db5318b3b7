"""Damage inputs in thousands of ways and segment each: a mask or a typed error, and nothing else, is what may come out.

    python tests/fuzz/fuzz.py --cases 2400 --seed 0

A case runs as `attunet3d segment` does, in a child process with limits of time and memory; a child that dies or hangs
is a failure like any other, and the next case gets a new one. `--only N` repeats one case and keeps its input.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1])]

from fuzz_inputs import PATIENT, write_inputs  # noqa: E402
from fuzz_mutations import mutate  # noqa: E402

SECONDS = 900.0  # of one case, and to start: more is a hang, even on a slow machine; the slowest is told in the table
MORE_BYTES = 2**30  # that one case may take, resident, beyond what the process holds
MORE_ADDRESSES = 6 * 2**30  # and reserved, which costs nothing


@dataclass(frozen=True)
class Outcome:
    """Of one case: "mask", an error's class, or in `failure` what must not happen."""

    case: int
    kind: str
    outcome: str
    failure: str = ""
    seconds: float = 0.0
    peak_mb: float = 0.0  # beyond what the process held before


def make_case(inputs: dict[str, Path], seed: int, case: int, folder: Path) -> tuple[str, Path]:
    """The damaged input of this seed and number, in `folder`, and its kind."""
    kinds = list(inputs)
    kind = kinds[case % len(kinds)]
    source = inputs[kind]
    whole = source if source.is_dir() else source.parent
    shutil.copytree(whole, folder)
    path = folder if source.is_dir() else folder / source.name
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mutate(np.random.default_rng([seed, case]), path)
    return kind, path


def run_case(session: Any, path: Path, output: Path, uneven: bool = False) -> tuple[str, str]:
    """The outcome of one input, and what is wrong with that, if anything is; `uneven` as the session allows it."""
    from attunet3d.errors import AttUNet3dError
    from attunet3d.io.printable import one_line
    from attunet3d.io.reader import open_ct

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        (case,) = session.segment_all([path], output, names=["case"])
    error = case.error
    left = sorted(p.name for p in output.iterdir()) if output.is_dir() else []
    said, wrong = one_line(error) if error else "", []
    if error is None:
        outcome = "mask"
        if left != ["case_seg.json", "case_seg.nii.gz"]:
            wrong.append(f"files {left}")
        else:
            said = (output / "case_seg.json").read_text(encoding="utf-8")
            shape = list(_shape_on_disk(output / "case_seg.nii.gz"))
            if not shape == json.loads(said)["geometry"]["shape"] == list(open_ct(path, allow_uneven=uneven).shape):
                wrong.append(f"mask of shape {shape}")
            said = "".join(json.loads(said)["warnings"])
    else:
        outcome = type(error).__name__
        if not isinstance(error, AttUNet3dError):
            wrong.append("".join(traceback.format_exception(error)))
        if left:
            wrong.append(f"left behind: {left}")
    wrong += [f"warning: {w.category.__name__}: {w.message} ({w.filename}:{w.lineno})" for w in warned]
    wrong += [f"quotes {name}: {said}" for name, value in PATIENT.items() if value in said]
    if not said.isprintable():
        wrong.append(f"not printable: {said!r}")
    return outcome, "; ".join(wrong)


def _shape_on_disk(path: Path) -> tuple[int, ...]:
    import nibabel as nib

    return tuple(nib.load(path).shape)


def work(seed: int, inputs: dict[str, Path], scratch: Path) -> None:
    """A child: case numbers on stdin, outcomes as JSON lines on what was stdout."""
    import torch
    from conftest import TINY

    from attunet3d import AttentionUNet, Segmenter

    faulthandler.enable()
    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.manual_seed(3)
    weights = scratch / "model.pt"
    torch.save(AttentionUNet(channels=TINY["channels"]).state_dict(), weights)
    settings = {**TINY, "scales": [1.0], "device": "cpu", "precision": "fp32", "backend": "torch", "memory_limit": 2.0}
    sessions = [Segmenter(weights, allow_uneven=uneven, **settings) for uneven in (False, True)]
    whole = next(path for path in inputs.values() if path.is_file())
    for session in sessions:
        session.segment(whole)  # what is imported and allocated once does not count
    soft = _memory("VmSize") + MORE_ADDRESSES
    resource.setrlimit(resource.RLIMIT_AS, (soft, soft))
    print(json.dumps("ready"), file=answers, flush=True)
    for line in sys.stdin:
        case = int(line)
        folder = scratch / f"case{case}"
        start, base = time.perf_counter(), _reset_peak()
        kind = list(inputs)[case % len(inputs)]
        try:
            _, path = make_case(inputs, seed, case, folder / "input")
            uneven = bool(case // len(inputs) % 2)
            outcome, failure = run_case(sessions[uneven], path, folder / "output", uneven)
        except Exception:
            outcome, failure = "check failed", traceback.format_exc()
        more = _memory("VmHWM") - base
        if more > MORE_BYTES:
            failure += f" took {more >> 20} MiB"
        seconds = time.perf_counter() - start
        found = Outcome(case, kind, outcome, failure.strip(), round(seconds, 3), round(more / 1e6, 1))
        if not failure:
            shutil.rmtree(folder)
        print(json.dumps(vars(found)), file=answers, flush=True)


def _memory(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {field} in /proc/self/status: the fuzz test needs Linux")


def _reset_peak() -> int:
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    return _memory("VmRSS")


class Child:
    """A process that works on one case after the other."""

    def __init__(self, seed: int, originals: Path, scratch: Path) -> None:
        self.errors = scratch / "stderr"
        command = [sys.executable, __file__, "--worker", str(originals), str(scratch), "--seed", str(seed)]
        with self.errors.open("a") as stderr:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        if self._answer(SECONDS) != "ready":
            raise RuntimeError(f"the worker does not start: {self.errors.read_text()[-2000:]}")

    def run(self, case: int, kind: str) -> Outcome:
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
        if answer is None:
            return Outcome(case, kind, "hang", f"no answer in {SECONDS:g} s", seconds)
        said = self.errors.read_text().partition("Extension modules")[0]
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
            self.process.wait(1 if self.process.stdout and self.process.poll() is None else 0)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()


def fuzz(cases: Sequence[int], seed: int, jobs: int, folder: Path, kind: str = "") -> list[Outcome]:
    """The outcomes of these cases, in order; inputs of failures are kept in `folder`."""
    originals = folder / "originals"
    originals.mkdir(parents=True)
    inputs = write_inputs(originals)
    (originals / "inputs.json").write_text(json.dumps({kind: str(path) for kind, path in inputs.items()}))
    kinds = list(inputs)
    queue: SimpleQueue[int] = SimpleQueue()
    for case in cases:
        if kinds[case % len(kinds)].startswith(kind):
            queue.put(case)
    found: list[Outcome] = []

    def drive(number: int) -> None:
        scratch = folder / f"worker{number}"
        scratch.mkdir()
        child: Child | None = None
        try:
            while True:
                try:
                    case = queue.get_nowait()
                except Empty:
                    return
                child = child or Child(seed, originals, scratch)
                outcome = child.run(case, kinds[case % len(kinds)])
                found.append(outcome)
                if child.process.poll() is not None:
                    child = None
                if outcome.failure:
                    print(f"FAILED seed {seed} case {case} ({outcome.kind}): {outcome.outcome}: {outcome.failure}")
        finally:
            if child:
                child.end()

    threads = [threading.Thread(target=drive, args=(n,)) for n in range(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(found, key=lambda outcome: outcome.case)


def table(outcomes: Sequence[Outcome]) -> str:
    """Counts by outcome and by kind of input, and the extremes."""
    failed = [o for o in outcomes if o.failure]
    lines = [f"{len(outcomes)} cases, {len(failed)} failures", "", "outcome"]
    lines += [f"  {count:6d}  {name}" for name, count in Counter(o.outcome for o in outcomes).most_common()]
    lines += ["", "input                              cases   masks  errors  failures"]
    for kind in dict.fromkeys(o.kind for o in outcomes):
        of = [o for o in outcomes if o.kind == kind]
        masks, bad = sum(o.outcome == "mask" for o in of), sum(bool(o.failure) for o in of)
        lines.append(f"  {kind:32s} {len(of):6d}  {masks:6d}  {len(of) - masks:6d}  {bad:8d}")
    slowest, largest = max(outcomes, key=lambda o: o.seconds), max(outcomes, key=lambda o: o.peak_mb)
    lines += ["", f"slowest: case {slowest.case}, {slowest.seconds:.2f} s ({slowest.kind}, {slowest.outcome})"]
    lines += [f"most memory: case {largest.case}, {largest.peak_mb:.0f} MB more than before it ({largest.kind})"]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cases", type=int, default=2400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--kind", default="", help="only inputs whose kind begins so, such as nrrd or 'dicom RLE'")
    parser.add_argument("--only", type=int, help="run this case alone and keep its input")
    parser.add_argument("--worker", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        originals, scratch = options.worker
        named = json.loads((originals / "inputs.json").read_text())
        work(options.seed, {kind: Path(path) for kind, path in named.items()}, scratch)
        return 0
    folder = Path(tempfile.mkdtemp(prefix="attunet3d-fuzz-"))
    cases = range(options.cases) if options.only is None else [options.only]
    outcomes = fuzz(cases, options.seed, options.jobs, folder, options.kind)
    if not outcomes:
        parser.error(f"none of these cases is of a kind that begins with {options.kind!r}")
    print(table(outcomes))
    if options.only is not None:
        inputs = json.loads((folder / "originals" / "inputs.json").read_text())
        kept = folder / "input"
        make_case({kind: Path(path) for kind, path in inputs.items()}, options.seed, options.only, kept)
        print(f"the input is {kept}")
        return int(bool(outcomes[0].failure))
    shutil.rmtree(folder)
    failed = any(o.failure for o in outcomes)
    if failed:
        print(f"repeat one with: python tests/fuzz/fuzz.py --seed {options.seed} --only N")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
