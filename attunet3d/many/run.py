"""Run a pool of workers on the cases that have no outcome yet, and write the summary."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from attunet3d.io.writer import remove_left_behind, write_text_atomic
from attunet3d.many.actors import Actors
from attunet3d.many.cluster import Resources
from attunet3d.many.manifest import ManyCase
from attunet3d.many.outcome import is_unchanged
from attunet3d.many.pool import CASES_PER_WORKER, Pool
from attunet3d.many.results import DONE, FAILED, SET_ASIDE, ResultsTable
from attunet3d.many.status import Status
from attunet3d.many.worker import Job

SUMMARY = "summary.json"
_THREADS = 16  # they mostly wait for storage


def run_pool(
    cases: Sequence[ManyCase],
    job: Job,
    resources: Resources,
    table: ResultsTable,
    watch: Callable[[Status], None] | None = None,
    *,
    retry_failed: bool = False,
    case_minutes: float | None = None,
) -> dict[str, Any]:
    """Segment the cases without an outcome in a connected Ray cluster; return the summary, as in summary.json.

    Args:
        cases: with safe and distinct ids.
        job: settings that all cases share.
        resources: of each worker.
        table: of the output folder, which is locked for this run.
        watch: called after each case and at least each second.
        retry_failed: also run cases that failed or were set aside.
        case_minutes: most that a case may take; a worker that takes longer is killed.

    Raises:
        AttUNet3dError: values of the session, the weights or the output folder allow no case to be segmented.
    """
    folder = Path(job.output)
    before = finished_before(cases, job, table, {DONE} if retry_failed else {DONE, FAILED, SET_ASIDE})
    todo = deque(case for case in cases if case.id not in before)
    remove_left_behind(folder, exclusive=True)  # it is locked
    status = Status(len(cases), len(before))
    status.by_status.update(before.values())
    resources = replace(resources, workers=min(resources.workers, len(todo)))
    if todo:
        actors = Actors(job, resources, CASES_PER_WORKER)
        Pool(todo, job, actors, resources.workers, status, table, watch, case_minutes=case_minutes).run()
    remove_left_behind(folder, exclusive=True)
    summary = status.summary(resources)
    write_text_atomic(folder / SUMMARY, json.dumps(summary, indent=2) + "\n")
    return summary


def finished_before(cases: Sequence[ManyCase], job: Job, table: ResultsTable, statuses: set[str]) -> dict[str, str]:
    """Return the status, by id, of cases of earlier runs whose input and mask have not changed since."""
    folder = Path(job.output)

    def kept(case: ManyCase) -> bool:
        return is_unchanged(folder, job.output_format, case, *table.rows[case.id])

    asked = [case for case in cases if table.rows.get(case.id, ("",))[0] in statuses]
    with ThreadPoolExecutor(_THREADS) as threads:
        same = list(threads.map(kept, asked))
    return {case.id: table.rows[case.id][0] for case, is_same in zip(asked, same, strict=True) if is_same}
