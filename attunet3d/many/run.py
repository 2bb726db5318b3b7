"""Keep a pool of Ray actors busy with cases until each one has ended.

Ray places the actors, restarts the ones that die, and moves them off nodes that go away. What it does not know is
which case was to blame, and that is done here: cases that were in a worker when it died are run again, each alone in a
worker; one that kills its worker then too is set aside.
"""

from __future__ import annotations

import json
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from attunet3d.errors import AttUNet3dError, ConfigError
from attunet3d.io.writer import write_text_atomic
from attunet3d.many.cluster import Resources
from attunet3d.many.manifest import ManyCase
from attunet3d.many.results import DONE, FAILED, SET_ASIDE, ResultsTable, remove_left_behind
from attunet3d.many.worker import Ended, Job, Worker, failed

SUMMARY = "summary.json"
_IN_A_WORKER = 2  # one is read while one is in the network: what is in flight, and so memory, is bounded
_MOST_DEATHS = 2  # of workers, by one case
_LOADING_AGAIN = 3  # times that a worker may die before it has loaded the network once
_SLOWEST = 10


@dataclass
class Status:
    """How far a run has come, for whoever watches it.

    Attributes:
        total: cases of the manifest.
        before: those that had ended before this run.
        ended: those that ended in it.
        by_status: of all that have ended.
        processes: of the workers that are ready, by their number.
        deaths: of workers.
        seconds: since the workers were asked for.
    """

    total: int
    before: int
    ended: int = 0
    by_status: Counter[str] = field(default_factory=Counter)
    processes: dict[int, int] = field(default_factory=dict)
    deaths: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {status}" for status, count in sorted(self.by_status.items()))
        rate = self.ended / self.seconds if self.seconds else 0.0
        left = self.total - self.before - self.ended
        eta = f"{left / rate / 60:.1f} min" if rate else "unknown"
        return (
            f"{self.before + self.ended} of {self.total} ({counts}), {60 * rate:.1f} a minute with "
            f"{len(self.processes)} workers, {eta} to go"
        )


@dataclass
class _Place:
    """A worker of the pool; `taken` is how much of it, of `_IN_A_WORKER`, is taken by cases."""

    number: int
    actor: Any
    node: str = ""
    up: bool = False
    taken: int = 0


@dataclass(frozen=True)
class _Flight:
    """A case in a worker, of which a suspect takes all; without a case, the worker is loading."""

    place: _Place
    case: ManyCase | None = None
    takes: int = 0


def run_pool(
    cases: Sequence[ManyCase],
    job: Job,
    resources: Resources,
    table: ResultsTable,
    watch: Callable[[Status], None] | None = None,
    *,
    retry_failed: bool = False,
) -> dict[str, Any]:
    """Segment the cases that have not ended, in a connected Ray cluster; the summary, which summary.json holds too.

    Args:
        cases: with safe and different ids.
        job: what they have in common.
        resources: of each worker.
        table: of the output folder, which is locked for this run.
        watch: called after each case and at least each second.
        retry_failed: run again what failed or was set aside.

    Raises:
        AttUNet3dError: what is asked for cannot be done at all: the session's values, the weights, the output folder.
    """
    finished = {DONE} if retry_failed else {DONE, FAILED, SET_ASIDE}
    todo = deque(case for case in cases if table.rows.get(case.id) not in finished)
    remove_left_behind(Path(job.output))
    status = Status(len(cases), len(cases) - len(todo))
    status.by_status.update(table.rows[case.id] for case in cases if table.rows.get(case.id) in finished)
    pool = _Pool(todo, job, resources, status, table, watch)
    if todo:
        pool.run()
    remove_left_behind(Path(job.output))
    summary = pool.summary()
    write_text_atomic(Path(job.output, SUMMARY), json.dumps(summary, indent=2) + "\n")
    return summary


class _Pool:
    def __init__(
        self,
        todo: deque[ManyCase],
        job: Job,
        resources: Resources,
        status: Status,
        table: ResultsTable,
        watch: Callable[[Status], None] | None,
    ) -> None:
        self._todo, self._job, self._status, self._table = todo, job, status, table
        self._resources = replace(resources, workers=min(resources.workers, len(todo)))
        self._watch = watch or (lambda status: None)
        self._suspects: deque[ManyCase] = deque()  # were in a worker that died: each is run alone
        self._deaths: Counter[str] = Counter()
        self._flights: dict[Any, _Flight] = {}
        self._stages: Counter[str] = Counter()
        self._slowest: list[tuple[float, str]] = []
        self._start = time.monotonic()

    def run(self) -> None:
        import ray

        wanted = self._resources
        actor = ray.remote(Worker).options(
            num_cpus=wanted.cpus,
            num_gpus=wanted.gpus,
            memory=int(wanted.memory_gb * 1e9) if wanted.memory_gb else None,
            max_restarts=-1,
            max_concurrency=_IN_A_WORKER,
        )
        places = [_Place(number, actor.remote(self._job)) for number in range(wanted.workers)]
        try:
            for place in places:
                self._wake(place)
            while self._todo or self._suspects or any(flight.case for flight in self._flights.values()):
                for place in places:
                    self._fill(place)
                if not self._flights:
                    raise ConfigError(
                        f"no worker is left: each died {_LOADING_AGAIN + 1} times while it loaded the network; give "
                        "workers more memory, or start fewer of them"
                    )
                done, _ = ray.wait(list(self._flights), timeout=1.0)
                for reference in done:
                    self._landed(reference, self._flights.pop(reference))
                self._status.seconds = time.monotonic() - self._start
                self._watch(self._status)
        finally:
            for place in places:
                ray.kill(place.actor)

    def _wake(self, place: _Place) -> None:
        """Ask for a worker; where it has died, for the one that Ray starts in its place, as soon as there is room."""
        retries = -1 if place.node else _LOADING_AGAIN  # what has been ready once will be again
        reference = place.actor.ready.options(max_task_retries=retries).remote()
        self._flights[reference] = _Flight(place)

    def _fill(self, place: _Place) -> None:
        """Give a worker what it has room for. While there are suspects it takes nothing else, until it is empty."""
        while place.up and (self._suspects or self._todo):
            waiting, takes = (self._suspects, _IN_A_WORKER) if self._suspects else (self._todo, 1)
            if place.taken + takes > _IN_A_WORKER:
                return
            case = waiting.popleft()
            place.taken += takes
            reference = place.actor.segment.options(max_task_retries=0).remote(case)
            self._flights[reference] = _Flight(place, case, takes)

    def _landed(self, reference: Any, flight: _Flight) -> None:
        import ray

        place, case = flight.place, flight.case
        try:
            result = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            if case is None:
                if isinstance(error.cause, AttUNet3dError):
                    raise error.cause from None
                raise ConfigError(f"workers do not start: {error.cause}") from error
            result = failed(case, error, f"unexpected {type(error.cause).__name__}")
        except ray.exceptions.RayError as error:
            self._died(flight, error)
            return
        if case is None:
            self._status.processes[place.number], place.node = result
            place.up, place.taken = True, 0
            return
        place.taken -= flight.takes
        self._end(result)

    def _died(self, flight: _Flight, error: Exception) -> None:
        import ray

        place, case = flight.place, flight.case
        if place.up:
            place.up = False
            self._status.deaths += 1
            self._status.processes.pop(place.number, None)
            self._wake(place)
        if case is None:
            return  # it died while it loaded the network, and Ray has tried often enough
        if not any(node["NodeID"] == place.node and node["Alive"] for node in ray.nodes()):
            # Its node is gone, which is no case's fault.
            (self._suspects if case.id in self._deaths else self._todo).appendleft(case)
            return
        self._deaths[case.id] += 1
        if self._deaths[case.id] < _MOST_DEATHS:
            self._suspects.append(case)
            return
        why = f"its worker died {_MOST_DEATHS} times, the last time with this case alone: {_reason(error)}"
        self._end(failed(case, error, why, SET_ASIDE))

    def _end(self, ended: Ended) -> None:
        self._table.add(ended.row)
        self._status.ended += 1
        self._status.by_status[ended.row.status] += 1
        self._stages.update(ended.stages)
        if ended.stages:
            self._slowest = sorted([*self._slowest, (float(ended.row.seconds), ended.row.id)], reverse=True)[:_SLOWEST]

    def summary(self) -> dict[str, Any]:
        """What summary.json holds; of this run, but for the cases by status."""
        status = self._status
        return {
            "cases": status.total,
            "by_status": dict(sorted(status.by_status.items())),
            "this_run": {
                "cases": status.ended,
                "seconds": round(status.seconds, 1),
                "cases_per_minute": round(60 * status.ended / status.seconds, 2) if status.seconds else None,
                "worker_deaths": status.deaths,
                "stage_seconds": {name: round(seconds, 3) for name, seconds in self._stages.items()},
                "slowest": [{"id": name, "seconds": seconds} for seconds, name in self._slowest],
            },
            "workers": {
                "number": self._resources.workers,
                "cpus": self._resources.cpus,
                "gpus": self._resources.gpus,
            },
        }


def _reason(error: Exception) -> str:
    """Ray's reason, on a line: its message goes on with where its own logs are."""
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:299] + "…"
