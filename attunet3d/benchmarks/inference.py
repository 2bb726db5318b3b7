"""Measure time and memory of this package and MONAI's stock pipeline, on the same CT, model grid and device.

Each measurement runs in its own process, one after the other. The parent process imports neither torch nor MONAI: on
Linux no child has a lower peak of memory than its parent (see ``_run``).
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import yaml

from attunet3d.benchmarks.stock_pipeline import busy_seconds
from attunet3d.config.changes import inference_values
from attunet3d.errors import AttUNet3dError, ConfigError, GeometryError
from attunet3d.io.writer import make_folder, write_text_atomic
from attunet3d.version import __version__

logger = logging.getLogger(__name__)
RESULT = "benchmark.json"
CONTENDERS = {
    "attunet3d": "this package as shipped",
    "attunet3d-fp32": "this package in fp32, overlap 0.5, no windows skipped: the reference for correctness",
    "monai-same-network": "MONAI's stock pipeline in fp32, overlap 0.5, with this package's network and weights",
    "monai-attentionunet": "MONAI's stock pipeline in fp32, overlap 0.5, with its AttentionUnet, as wide, untrained",
}
_OURS: dict[str, dict[str, Any]] = {
    "attunet3d": {"precision": "auto"},
    "attunet3d-fp32": {"precision": "fp32", "overlap": 0.5, "skip_below": None},
}
_STOCK = {"monai-same-network": "same", "monai-attentionunet": "monai"}
_QUIET = 0.2  # cores; above this load by other processes a figure is unreliable
_STAGES = ("read_and_preprocess", "network", "postprocess_and_write")


class BenchmarkError(AttUNet3dError):
    """A process that a benchmark measures failed; the message ends with the last line of its output."""


def run_benchmark(
    ct: str | Path,
    output_dir: str | Path,
    *,
    only: Sequence[str] = tuple(CONTENDERS),
    repeat: int = 2,
    threads: int | None = None,
    device: str = "auto",
    checkpoint: str | Path | None = None,
    presets: Sequence[str | Path] = (),
    allow_code: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
    **overrides: Any,
) -> dict[str, Any]:
    """Measure contenders on one CT; write ``benchmark.json`` to ``output_dir``, and the masks of each to a subfolder.

    For each contender, one process segments the CT once as warm-up and then ``repeat`` times. Another segments it once
    and exits: its wall time and peak memory are measured from outside; for this package it is the command line. By
    default ``scales`` is [1.0] and ``threshold`` 0.5, as the stock pipeline has no test-time scales.

    Args:
        ct: any CT that ``attunet3d.segment`` reads.
        output_dir: created if it does not exist.
        only: names from ``CONTENDERS``.
        repeat: repetitions after the warm-up, at least 1. The (lower) median is reported, as other processes can only
            slow a case down.
        threads: of each contender; by default the cores that this process may use.
        device: "auto", "cpu", "cuda", "cuda:1"; the same for all.
        checkpoint: weights; the bundle's own by default.
        presets: preset names or files. Spacing, HU window, window size and channels also apply to the stock pipeline.
        allow_code: as for ``Segmenter``.
        progress: called as ``progress(what, done, total)``.
        overrides: ids of the bundle's inference config and their values; as for the presets.

    Returns:
        The content of ``benchmark.json``: seconds, and MB of 2**20 bytes.

    Raises:
        BenchmarkError: a contender failed.
        ConfigError: a contender, a preset or an id does not exist.
        OutputError: the result cannot be written.
    """
    names = [name for name in CONTENDERS if name in only]
    if not names or set(only) - set(names):
        raise ConfigError(f"contenders {', '.join(only) or '(none)'}: choose among {', '.join(CONTENDERS)}")
    if repeat < 1 or (threads is not None and threads < 1):
        raise ConfigError(f"{repeat} warm cases, threads: {threads}; each must be at least 1")
    if checkpoint is not None:
        overrides["checkpoint"] = os.path.abspath(checkpoint)
    warnings: list[str] = []
    inference_values(presets, overrides, allow_code, warnings.append)
    overrides = {"scales": [1.0], "threshold": 0.5} | overrides  # the same work as the stock pipeline
    config = inference_values(presets, overrides, allow_code)
    path, folder = os.path.abspath(ct), make_folder(os.path.abspath(output_dir))
    notify, total = progress or (lambda what, done, total: None), 1 + 2 * len(names)
    warm, once = dict[str, dict[str, Any]](), dict[str, dict[str, Any]]()
    with tempfile.TemporaryDirectory() as scratch, _limited_to(threads) as threads:
        answer = Path(scratch) / "answer.json"
        plan = {"ct": path, "device": device, "threads": threads, "answer": str(answer)}

        def child(spec: dict[str, Any]) -> list[str]:
            return [sys.executable, "-m", "attunet3d.benchmarks.stock_pipeline", json.dumps(plan | spec)]

        notify("the CT and the device", 0, total)
        _run("the CT and the device", child({}), threads)
        found = json.loads(answer.read_text(encoding="utf-8"))
        plan["device"] = found["device"]  # resolves "auto", the same for all
        ours = {"presets": [str(preset) for preset in presets], "allow_code": allow_code, **overrides}
        specs = {name: _spec(name, str(folder / name), ours, config) for name in names}
        for done, name in enumerate(names, start=1):
            notify(f"{name}: warm cases", done, total)
            warm[name] = _run(name, child(specs[name] | {"cases": 1 + repeat}), threads)
            warm[name] |= json.loads(answer.read_text(encoding="utf-8"))
        # In reverse order: a machine that slows down meanwhile does not penalize the same contender twice.
        for done, name in enumerate(reversed(names), start=1 + len(names)):
            notify(f"{name}: whole process", done, total)
            command = child(specs[name] | {"cases": 1}) if name in _STOCK else _command_line(plan, specs[name]["ours"])
            once[name] = _run(name, command, threads)
    contenders = {name: _figures(name, warm[name], once[name]) for name in names}
    masks = {name: folder / figures["mask"] for name, figures in contenders.items()}
    others = [name for name in names if name != "attunet3d" and "attunet3d" in names]
    result = {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "ct": {"file": Path(path).name, **found["ct"]},  # not the path: it may name the patient
        "machine": {"threads": threads, **found["machine"]},
        "versions": {"attunet3d": __version__, **found["versions"]},
        "settings": {
            "warm_cases": repeat,
            "order": {"warm": names, "whole_process": names[::-1]},
            "checkpoint": Path(config["checkpoint"]).name,
            "presets": [Path(preset).stem for preset in presets],
            "overrides": {key: value for key, value in overrides.items() if key != "checkpoint"},
            "warnings": warnings,
            "stock": {name: config[name] for name in ("spacing", "hu_window", "roi_size", "channels")},
        },
        "contenders": contenders,
        "attunet3d_beside": {
            name: ratios(contenders["attunet3d"], contenders[name]) for name in others if name in _STOCK
        },
        "dice_of_attunet3d_against": {
            name: dice(masks["attunet3d"], masks[name]) for name in others if name != "monai-attentionunet"
        },
    }
    write_text_atomic(folder / RESULT, json.dumps(result, indent=2) + "\n")
    return result


def ratios(ours: Mapping[str, Any], stock: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the speed-up of one contender over another, and the ratio of their peak memory; None if unknown."""

    def quotient(a: float | None, b: float | None) -> float | None:
        return round(a / b, 3) if a and b else None

    keys = {"warm_times": "warm", "network_times": "network", "process_times": "process"}
    times = {name: quotient(stock["seconds"][key], ours["seconds"][key]) for name, key in keys.items()}
    return {**times, "memory_share": quotient(ours["peak_memory_mb"], stock["peak_memory_mb"])}


def dice(mask: Path, reference: Path) -> float | None:
    """Return the Dice of two masks; None if both are empty, or (logged) if a pipeline has misplaced its mask."""
    from attunet3d.metrics.masks import score  # not before the contenders have run: importing it takes memory

    try:
        values = score(mask, reference)
    except GeometryError as error:
        logger.error("no Dice: %s", error)
        return None
    return None if values["prediction_ml"] == values["reference_ml"] == 0 else round(values["dice"], 5)


def table(result: Mapping[str, Any]) -> str:
    """Format the result of ``run_benchmark`` as a table."""

    def show(value: float | None, digits: int) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    rows = [("seconds", "read+pre", "network", "post+write", "warm case", "whole process", "imports+setup", "peak MB")]
    for name, figures in result["contenders"].items():
        seconds = (f"{figures['seconds'][key]:.2f}" for key in (*_STAGES, "warm", "process", "imports_and_setup"))
        rows.append((name, *seconds, show(figures["peak_memory_mb"], 0)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    ct, machine = result["ct"], result["machine"]
    size = f"{' x '.join(map(str, ct['shape']))} voxels of {' x '.join(f'{s:g}' for s in ct['spacing_mm'])} mm"
    lines = [f"{ct['file']}: {size}; {machine['device']}, threads: {machine['threads']}, {machine['cpu']}"]
    lines += ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    for name, of in result["attunet3d_beside"].items():
        lines.append(
            f"attunet3d against {name}: a warm case {show(of['warm_times'], 1)} times as fast, "
            f"the whole process {show(of['process_times'], 1)} times, {show(of['memory_share'], 2)} of its memory"
        )
    for name, value in result["dice_of_attunet3d_against"].items():
        lines.append(f"Dice of attunet3d against {name}: {show(value, 4)}")
    lines += [f"warning: {line}" for line in result["settings"]["warnings"]]
    for name, figures in result["contenders"].items():
        if (other := max(value or 0.0 for value in figures["cores_disturbed"].values())) > _QUIET:
            lines.append(f"unreliable: other processes used {other:.1f} cores while {name} was measured")
    return "\n".join(lines)


def _spec(name: str, output_dir: str, ours: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Describe a contender for its process: for ours the arguments of ``Segmenter``."""
    if name in _STOCK:
        return {"stock": {"network": _STOCK[name], "config": config, "output_dir": output_dir}}
    return {"ours": {"output_dir": output_dir, **ours, **_OURS[name]}}


def _command_line(plan: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """Return the command line that is equivalent to arguments of ``Segmenter``."""
    command = [sys.executable, "-m", "attunet3d", "segment", plan["ct"], "--device", plan["device"]]
    options = {"output_dir": "--output", "precision": "--precision", "checkpoint": "--checkpoint"}
    for key, value in ours.items():
        if key in options:
            command += [options[key], value]
        elif key == "presets":
            command += [argument for preset in value for argument in ("--preset", preset)]
        elif key == "allow_code":
            command += ["--allow-code"] * value
        else:
            command += ["--set", f"{key}={yaml.safe_dump(value, default_flow_style=True).strip()}"]
    return command


def _run(name: str, command: Sequence[str], threads: int) -> dict[str, float | None]:
    """Run a process to its end and measure it.

    On Linux a child inherits its parent's peak memory (vfork, posix_spawn) or current size (fork) as lower bound of its
    own peak. Hence a peak that does not exceed our own may not be the child's, and is None.

    Returns:
        "wall" and "cpu", s; "peak" of resident memory, MB; and "disturbed", the mean number of its cores that other
        processes used. None if the system does not tell.

    Raises:
        BenchmarkError: it failed.
    """
    environment = os.environ | {variable: str(threads) for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    environment["PYTHONSAFEPATH"] = "1"  # no modules from the working directory (Python 3.11)
    if name in _STOCK:
        environment["THP_MEM_ALLOC_ENABLE"] = "0"  # torch's default, which importing this package changes
    answer: dict[str, float | None] = {"cpu": None, "peak": None, "disturbed": None}
    with tempfile.TemporaryFile() as stderr:
        start, busy = time.perf_counter(), busy_seconds()
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stderr, env=environment) as process:
            try:
                if sys.platform != "win32":
                    _, status, usage = os.wait4(process.pid, 0)
                    process.returncode = os.waitstatus_to_exitcode(status)
                    answer |= {"cpu": usage.ru_utime + usage.ru_stime, "peak": _above_our_own_mb(usage.ru_maxrss)}
                code = process.wait()
            except BaseException:
                process.kill()
                raise
        wall = time.perf_counter() - start
        if busy is not None and answer["cpu"] is not None:
            answer["disturbed"] = max((busy_seconds() or busy) - busy - answer["cpu"], 0.0) / wall
        stderr.seek(0)
        lines = [line.strip() for line in stderr.read().decode(errors="replace").splitlines() if line.strip()]
    if code < 0:
        lines = [f"ended by signal {-code}" + ("; out of memory?" if code == -9 else "")]
    if code:
        raise BenchmarkError(f"{name}: {lines[-1].removeprefix('error: ') if lines else f'exit code {code}'}")
    return answer | {"wall": wall}


def _above_our_own_mb(maxrss: int) -> float | None:
    import resource  # not on Windows

    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes on macOS, KiB elsewhere
    return maxrss / unit if maxrss > resource.getrusage(resource.RUSAGE_SELF).ru_maxrss else None


def _figures(name: str, warm: Mapping[str, Any], once: Mapping[str, float | None]) -> dict[str, Any]:
    first, *cases = warm["cases"]
    median = sorted(cases, key=lambda case: case["total"])[(len(cases) - 1) // 2]
    seconds = {stage: median[stage] for stage in _STAGES} | {
        "warm": median["total"],
        "first_case": first["total"],
        "imports_and_setup": warm["setup"],
        "process": once["wall"],
        "process_cpu": once["cpu"],
    }
    return {
        "what": CONTENDERS[name],
        "ran_as": warm["ran_as"],
        "seconds": {key: _rounded(value, 3) for key, value in seconds.items()},
        "seconds_of_warm_cases": [_rounded(case["total"], 3) for case in cases],
        "cores_disturbed": {"warm": _rounded(warm["disturbed"], 2), "process": _rounded(once["disturbed"], 2)},
        "peak_memory_mb": _rounded(once["peak"], 1),
        "peak_gpu_memory_mb": _rounded(warm["gpu_peak"], 1),
        "mask": f"{name}/{warm['mask']}",
    }


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


@contextmanager
def _limited_to(threads: int | None) -> Iterator[int]:
    """Limit the cores of child processes to the number of threads, if supported: some pools ignore the variables."""
    if not hasattr(os, "sched_setaffinity"):
        yield threads or os.cpu_count() or 1
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:threads])
    try:
        yield threads or len(before)
    finally:
        os.sched_setaffinity(0, before)
