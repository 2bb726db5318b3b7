"""Progress of a run, and its summary."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from attunet3d.many.cluster import Resources
from attunet3d.many.outcome import Outcome

_SLOWEST = 10


@dataclass
class Status:
    """Progress of a run.

    Attributes:
        total: number of cases.
        before: number of cases with an outcome of an earlier run.
        ended: number of cases with an outcome of this run.
        by_status: number of cases by status, of both.
        processes: process id of each worker that is ready, by its number.
        deaths: number of workers that died.
        seconds: since the workers were started.
        stages: seconds of this run's cases, by stage.
        slowest: seconds and ids of the slowest cases of this run.
    """

    total: int
    before: int
    ended: int = 0
    by_status: Counter[str] = field(default_factory=Counter)
    processes: dict[int, int] = field(default_factory=dict)
    deaths: int = 0
    seconds: float = 0.0
    stages: Counter[str] = field(default_factory=Counter)
    slowest: list[tuple[float, str]] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        """Count a case."""
        self.ended += 1
        self.by_status[outcome.row.status] += 1
        self.stages.update(outcome.stages)
        if outcome.stages:
            case = float(outcome.row.seconds), outcome.row.id
            self.slowest = sorted([*self.slowest, case], reverse=True)[:_SLOWEST]

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {status}" for status, count in sorted(self.by_status.items()))
        rate = self.ended / self.seconds if self.seconds else 0.0
        left = self.total - self.before - self.ended
        eta = f"{left / rate / 60:.1f} min" if rate else "unknown"
        return (
            f"{self.before + self.ended} of {self.total} ({counts}), {60 * rate:.1f} a minute with "
            f"{len(self.processes)} workers, {eta} to go"
        )

    def summary(self, resources: Resources) -> dict[str, Any]:
        """Make the content of summary.json; only "cases" and "by_status" include earlier runs."""
        return {
            "cases": self.total,
            "by_status": dict(sorted(self.by_status.items())),
            "this_run": {
                "cases": self.ended,
                "seconds": round(self.seconds, 1),
                "cases_per_minute": round(60 * self.ended / self.seconds, 2) if self.seconds else None,
                "worker_deaths": self.deaths,
                "stage_seconds": {name: round(seconds, 3) for name, seconds in self.stages.items()},
                "slowest": [{"id": name, "seconds": seconds} for seconds, name in self.slowest],
            },
            "workers": {"number": resources.workers, "cpus": resources.cpus, "gpus": resources.gpus},
        }
