"""Segment thousands of CTs on a cluster, with a pool of Ray actors that have one session each (``attunet3d[ray]``)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["CASE_MINUTES", "list_cases", "segment_many"]

CASE_MINUTES = 120.0  # far longer than any case takes, unless its storage hangs


def list_cases(source: Path, left_out: list[str] | None = None, output: Path | None = None) -> list[Any]:
    """List the cases of a manifest, or of a folder, whose headers are read in parallel by Ray.

    Args:
        source: manifest or folder; for a folder Ray must be connected.
        left_out: gets a line for each image in the folder that is not a CT to segment.
        output: folder of results, which is not searched; results elsewhere are not cases either.

    Raises:
        ConfigError, InputNotFoundError: as ``read_manifest``, ``entries_of`` and ``check_cases``.
    """
    from attunet3d.many.manifest import entries_of, list_entry, name_cases, read_manifest

    if source.is_file():
        return read_manifest(source)
    import ray

    def listed(entry: Path) -> tuple[list[Any], list[str]]:
        lines: list[str] = []
        return list_entry(entry, lines, output), lines

    remote = ray.remote(num_cpus=1)(listed)
    found = []
    for cases, lines in ray.get([remote.remote(entry) for entry in entries_of(source.resolve(), output)]):
        found += cases
        if left_out is not None:
            left_out += lines
    return name_cases(found, source)


def segment_many(
    source: str | Path,
    output: str | Path,
    *,
    address: str = "auto",
    workers: int | None = None,
    cpus_per_worker: float | None = None,
    gpus_per_worker: float | None = None,
    memory_gb: float | None = None,
    output_format: str = "nifti",
    qc: bool = False,
    keep_uids: bool = True,
    retry_failed: bool = False,
    case_minutes: float | None = CASE_MINUTES,
    left_out: list[str] | None = None,
    watch: Callable[[Any], None] | None = None,
    warn: Callable[[str], object] = lambda line: None,
    **session: Any,
) -> dict[str, Any]:
    """Segment the CTs of a manifest or folder on a Ray cluster; return the summary, as in summary.json.

    The folder gets the files of ``Segmenter.segment`` for each case, and results.csv with a row for each finished case.
    The same call continues a run that was killed.

    Args:
        source: manifest (CSV, JSON lines) or folder.
        output: on storage that all nodes share.
        address: see ``connected``.
        workers, cpus_per_worker, gpus_per_worker, memory_gb: see ``plan_workers``; memory is per worker.
        output_format, qc, keep_uids: as ``Segmenter.segment``.
        retry_failed: also run cases that failed or were set aside before.
        case_minutes: a case that takes longer is set aside, and its worker is killed; None for no limit.
        left_out: gets a line for each image in a folder that is not a CT to segment.
        watch: called with the ``Status`` after each case and at least each second.
        warn: called with each warning of the session, see ``Segmenter.warnings``.
        session: arguments of ``Segmenter``.

    Raises:
        AttUNet3dError: the run as a whole cannot go on; errors of a case are in its row of results.csv.
    """
    from attunet3d.checkpoint import file_sha256
    from attunet3d.config.changes import inference_values
    from attunet3d.config.files import preset_path
    from attunet3d.errors import CheckpointError
    from attunet3d.io.locking import locked
    from attunet3d.io.output_formats import find_formats
    from attunet3d.io.paths import existing
    from attunet3d.many.cluster import connected, need_ray, plan_workers
    from attunet3d.many.results import ResultsTable, check_settings
    from attunet3d.many.run import run_pool
    from attunet3d.many.worker import Job

    need_ray()
    find_formats(output_format)
    source, folder = Path(source), Path(output).absolute()
    # A missing or invalid manifest is refused before anything is written or started.
    cases = None if source.is_dir() else list_cases(existing(source))
    overrides = dict(session)
    # Workers have another working directory, so paths must be absolute.
    presets = [str(preset_path(preset).absolute()) for preset in overrides.pop("presets", ())]
    allow_code = overrides.pop("allow_code", False)
    if overrides.get("checkpoint") is None:
        overrides.pop("checkpoint", None)
    else:
        overrides["checkpoint"] = str(Path(overrides["checkpoint"]).absolute())
    values = inference_values(presets, overrides, allow_code, warn)
    if not Path(values["checkpoint"]).is_file():
        raise CheckpointError(f"{values['checkpoint']}: no such checkpoint; give a model.pt that training wrote")
    values |= {"checkpoint": file_sha256(values["checkpoint"]), "format": output_format}
    for kept_out in ("device", "backend", "bundle_root", "dataset_dir", "output_dir"):
        values.pop(kept_out, None)
    with locked(folder), connected(address):
        check_settings(folder, values)
        cases = list_cases(source, left_out, folder) if cases is None else cases
        resources = plan_workers(workers, cpus_per_worker, gpus_per_worker, memory_gb)
        job = Job(
            str(folder),
            {"presets": presets, "allow_code": allow_code, **overrides},
            output_format,
            qc,
            keep_uids,
            max(int(resources.cpus), 1),
            memory_gb,
            resources.share,
        )
        table = ResultsTable(folder)
        try:
            return run_pool(cases, job, resources, table, watch, retry_failed=retry_failed, case_minutes=case_minutes)
        finally:
            table.close()
