"""Which case is to blame when workers die; nothing here knows Ray.

Workers are killed by much that is no case's fault: a node that goes away, the kernel short of memory, an operator. What
was in a worker that died is therefore only a suspect, and tried alone on its node after all other cases. It is charged
with a death in such a trial if the node is still there when a node that had gone with it would have been missed. It is
set aside with `MOST_DEATHS` of them, without those near which a worker died that held no suspect: something else was
killing then.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

MOST_DEATHS = 3  # alone, that count
MOST_IN_ALL = 10  # alone, whatever else was killed then: runs end
# Ray asks a node every 3 s and misses it after 5 failures. Trials of a case are as far apart, so that a wave of kills
# that is shorter charges it once.
HEALTH_SECONDS = 20.0
WAVE_SECONDS = 120.0  # what dies within them may have one cause


@dataclass(frozen=True)
class _Death:
    """Of a worker: when, with which cases in it, where, and what the system says of it."""

    at: float
    cases: frozenset[str]
    node: str
    reason: str

    def is_near(self, other: _Death) -> bool:
        return abs(self.at - other.at) <= WAVE_SECONDS


@dataclass
class _Suspect:
    """`unproven` is its last death alone until the node has been asked for again."""

    on_trial: bool = False
    unproven: _Death | None = None
    charges: list[_Death] = field(default_factory=list)


class Crashes:
    """The workers' deaths of a run, and the cases that are suspected of them.

    Args:
        clock: seconds.
        health_seconds: after which a node that has gone is known to have.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, health_seconds: float | None = None) -> None:
        self._clock = clock
        self._health_seconds = HEALTH_SECONDS if health_seconds is None else health_seconds
        self._crashes: list[_Death] = []
        self._suspects: dict[str, _Suspect] = {}
        self._guilty: set[str] = set()

    @property
    def suspects(self) -> set[str]:
        """Cases that are neither finished nor set aside."""
        return set(self._suspects)

    def suspect(self, cases: Iterable[str]) -> None:
        """Cases that are to be tried alone, without a death."""
        for case in cases:
            self._suspects.setdefault(case, _Suspect())

    def worker_died(self, cases: Iterable[str], node: str, reason: str) -> None:
        """A worker is dead, and these cases were in it: none, one on trial, or some that are suspects from now on."""
        death = _Death(self._clock(), frozenset(cases), node, reason)
        self._crashes.append(death)
        self.suspect(death.cases)
        for case in death.cases:
            suspect = self._suspects[case]
            if suspect.on_trial:
                suspect.on_trial, suspect.unproven = False, death

    def release(self, case: str) -> None:
        """A trial has ended without a result, and that is not the case's fault."""
        if case in self._suspects:
            self._suspects[case].on_trial = False

    def clear(self, case: str) -> None:
        """A case has ended: it did not kill its workers."""
        self._suspects.pop(case, None)

    def next_suspect(self, node: str = "") -> str | None:
        """The suspect whose trial is next, on a node where it died least often; None while none can be tried."""
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
        """A suspect is in a worker now, and nothing else is on that node."""
        self._suspects[case].on_trial = True

    def judge(self, alive: Callable[[], Collection[str]]) -> list[tuple[str, str]]:
        """Cases that are to be set aside, each with the reason; call it from time to time.

        Args:
            alive: gives the nodes that are there now; it is only asked when a death is to be proven.
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
        """A suspect's charges without those near which something else was killing."""
        others = [d for d in self._crashes if case not in d.cases and d.cases.isdisjoint(self._guilty | self.suspects)]
        return [charge for charge in self._suspects[case].charges if not any(map(charge.is_near, others))]

    def _suspects_near(self, case: str, charges: list[_Death]) -> set[str]:
        """Other suspects that died near a case's charges: if they turn out to be innocent, so may this one."""
        near = [d for d in self._crashes if case not in d.cases and any(map(d.is_near, charges))]
        return {other for death in near for other in death.cases if other in self._suspects}
