"""How far a run has come, while it goes on and at its end."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from attunet3d.many.cluster import Resources
from attunet3d.many.outcome import Outcome

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
        stages: their seconds in this run, by name.
        slowest: seconds and ids of this run's cases.
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

    def add(self, ended: Outcome) -> None:
        """Count a case that has ended."""
        self.ended += 1
        self.by_status[ended.row.status] += 1
        self.stages.update(ended.stages)
        if ended.stages:
            self.slowest = sorted([*self.slowest, (float(ended.row.seconds), ended.row.id)], reverse=True)[:_SLOWEST]

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
        """What summary.json holds; of this run, but for the cases by status."""
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
