"""Find the cases that crash workers; independent of Ray.

Workers also die through no fault of a case: a node goes away, the kernel runs out of memory, an operator kills them.
The cases in a worker that died are therefore only suspects, and each is tried alone on a node after all other cases. If
the worker dies in such a trial, the case is charged with it, provided that the node is still there when its loss would
have been noticed. A case with ``MOST_DEATHS`` charges is set aside; charges do not count near the death of a worker
that held no suspect, as something else was killing workers then.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

MOST_DEATHS = 3  # charges that count
MOST_IN_ALL = 10  # charges, counting or not, so that runs end
# Ray checks a node every 3 s and declares it dead after 5 failures. Trials of a case are as far apart, so that a
# shorter wave of kills charges it once.
HEALTH_SECONDS = 20.0
WAVE_SECONDS = 120.0  # deaths within this time may have one cause


@dataclass(frozen=True)
class _Death:
    """Death of a worker: time, cases in it, node, and the reason that the system gives."""

    at: float
    cases: frozenset[str]
    node: str
    reason: str

    def is_near(self, other: _Death) -> bool:
        return abs(self.at - other.at) <= WAVE_SECONDS


@dataclass
class _Suspect:
    """A suspect; ``unproven`` is the death in its last trial, until it is known whether the node is still there."""

    on_trial: bool = False
    unproven: _Death | None = None
    charges: list[_Death] = field(default_factory=list)


class Crashes:
    """Records deaths of a run's workers, and decides which cases caused them.

    Args:
        clock: time, s.
        health_seconds: time after which the loss of a node has been noticed; by default ``HEALTH_SECONDS``.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, health_seconds: float | None = None) -> None:
        self._clock = clock
        self._health_seconds = HEALTH_SECONDS if health_seconds is None else health_seconds
        self._crashes: list[_Death] = []
        self._suspects: dict[str, _Suspect] = {}
        self._guilty: set[str] = set()

    @property
    def suspects(self) -> set[str]:
        """Suspects that are neither cleared nor set aside."""
        return set(self._suspects)

    def suspect(self, cases: Iterable[str]) -> None:
        """Add suspects without a death."""
        for case in cases:
            self._suspects.setdefault(case, _Suspect())

    def worker_died(self, cases: Iterable[str], node: str, reason: str) -> None:
        """Record the death of a worker and its cases, which become suspects unless they are on trial."""
        death = _Death(self._clock(), frozenset(cases), node, reason)
        self._crashes.append(death)
        self.suspect(death.cases)
        for case in death.cases:
            suspect = self._suspects[case]
            if suspect.on_trial:
                suspect.on_trial, suspect.unproven = False, death

    def release(self, case: str) -> None:
        """End a trial without a verdict: it was interrupted through no fault of the case."""
        if case in self._suspects:
            self._suspects[case].on_trial = False

    def clear(self, case: str) -> None:
        """Drop a suspect that has an outcome: it did not crash its worker."""
        self._suspects.pop(case, None)

    def next_suspect(self, node: str = "") -> str | None:
        """Return the suspect to be tried next on a node, by the fewest charges there; None if none can be tried."""
        free = {
            case: suspect
            for case, suspect in self._suspects.items()
            if not suspect.on_trial and suspect.unproven is None and len(self._standing(case)) < MOST_DEATHS
        }
        return min(
            free,
            key=lambda case: (sum(c.node == node for c in free[case].charges), len(free[case].charges)),
            default=None,
        )

    def begin_trial(self, case: str) -> None:
        """Begin the trial of a suspect, which is alone on its node."""
        self._suspects[case].on_trial = True

    def judge(self, alive: Callable[[], Collection[str]]) -> list[tuple[str, str]]:
        """Return the cases that are to be set aside, each with the reason; to be called from time to time.

        Args:
            alive: returns the ids of the nodes that are alive; called only if there is a death to prove.
        """
        now = self._clock()
        due = [
            (suspect, death)
            for suspect in self._suspects.values()
            if (death := suspect.unproven) is not None and now - death.at >= self._health_seconds
        ]
        nodes = alive() if due else ()
        for suspect, death in due:
            suspect.unproven = None
            if death.node in nodes:
                suspect.charges.append(death)
        standing = {case: self._standing(case) for case in self._suspects}
        charged = {case for case, charges in standing.items() if len(charges) >= MOST_DEATHS}
        guilty = []
        for case, suspect in self._suspects.items():
            if len(suspect.charges) >= MOST_IN_ALL or (
                case in charged and self._suspects_near(case, standing[case]) <= charged
            ):
                guilty.append((case, suspect.charges))
        for case, _ in guilty:
            del self._suspects[case]
            self._guilty.add(case)
        return [
            (case, f"its worker died {len(charges)} times with this case alone: {charges[-1].reason}")
            for case, charges in guilty
        ]

    def _standing(self, case: str) -> list[_Death]:
        """Return the charges of a suspect that count: those not near the death of a worker without suspects."""
        others = [d for d in self._crashes if case not in d.cases and d.cases.isdisjoint(self._guilty | self.suspects)]
        return [charge for charge in self._suspects[case].charges if not any(map(charge.is_near, others))]

    def _suspects_near(self, case: str, charges: list[_Death]) -> set[str]:
        """Return other suspects whose workers died near a case's charges: if they are innocent, the case may be too."""
        near = [d for d in self._crashes if case not in d.cases and any(map(d.is_near, charges))]
        return {other for death in near for other in death.cases if other in self._suspects}
