"""Workers, nodes and deaths that are made up, with a clock of their own: hours of a run in a moment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attunet3d.many.actors import WorkerDiedError, WorkerLostError
from attunet3d.many.crashes import Crashes
from attunet3d.many.manifest import ManyCase
from attunet3d.many.outcome import Outcome
from attunet3d.many.pool import Pool
from attunet3d.many.results import DONE, ResultsTable, Row
from attunet3d.many.status import Status
from attunet3d.many.worker import Job

TICK = 0.5
LOADING = 3.0
UNTIL_A_NODE_IS_MISSED = 15.0


@dataclass(eq=False)
class Call:
    """What was asked of a worker, and the seconds of work that are left; a case begins when the one before ends."""

    actor: Actor
    case: str | None
    left: float
    answer: Any = None  # an exception, or what is returned


@dataclass(eq=False)
class Actor:
    number: int
    node: str | None = None
    loaded: float = 0.0
    dead: str | None = None
    calls: list[Call] = field(default_factory=list)


class Cluster:
    """Actors of a run, as ``Actors`` has them.

    Args:
        nodes: workers that each has room for, by name.
        deadly: cases that kill their worker at their end.
        hanging: cases that never end.
        seconds: of each case.
    """

    def __init__(
        self, nodes: dict[str, int], deadly: Sequence[str] = (), hanging: Sequence[str] = (), seconds: float = 4.0
    ) -> None:
        self.now = 0.0
        self.room = dict(nodes)
        self.alive = set(nodes)
        self.actors: list[Actor] = []
        self.deadly, self.hanging, self.seconds = set(deadly), set(hanging), seconds
        self.events: list[tuple[float, Callable[[], None]]] = []
        self.runs: list[tuple[float, str]] = []

    def at(self, when: float, event: Callable[[], None]) -> None:
        self.events.append((when, event))

    def kill(self, number: int = 0) -> None:
        """Kill a worker, by its number among those that live."""
        living = [actor for actor in self.actors if actor.node and not actor.dead]
        if living:
            self._die(living[number % len(living)], "killed from outside")

    def kill_all(self) -> None:
        for _ in range(len(self.actors)):
            self.kill()

    def lose(self, node: str, *, workers_first: bool = False) -> None:
        """A node vanishes: its workers' deaths are known when it is missed, or at once."""
        self.room[node] = 0
        for actor in self.actors:
            if actor.node == node and not actor.dead:
                if workers_first:
                    self._die(actor, "killed with its node")
                else:
                    actor.dead = "its node has died"
        self.at(self.now + UNTIL_A_NODE_IS_MISSED, lambda: self._missed(node))

    def _missed(self, node: str) -> None:
        self.alive.discard(node)
        for actor in self.actors:
            if actor.node == node and actor.dead:
                self._die(actor, actor.dead)

    def _die(self, actor: Actor, reason: str) -> None:
        actor.dead = reason
        for call in actor.calls:
            call.answer = WorkerDiedError(reason)
        actor.calls = []

    def _tick(self) -> None:
        self.now += TICK
        for event in [event for when, event in self.events if when <= self.now]:
            event()
        self.events = [(when, event) for when, event in self.events if when > self.now]
        for actor in self.actors:
            if actor.node is None and not actor.dead:
                for node, room in self.room.items():
                    if sum(a.node == node and not a.dead for a in self.actors) < room:
                        actor.node, actor.loaded = node, self.now + LOADING
                        break
            if actor.node and not actor.dead and actor.loaded <= self.now:
                self._work(actor)

    def _work(self, actor: Actor) -> None:
        for call in [call for call in actor.calls if call.case is None]:
            call.answer = (actor.number, actor.node)
            actor.calls.remove(call)
        if actor.calls:
            call = actor.calls[0]
            call.left -= TICK
            if call.left <= 0 and call.case in self.deadly:
                self._die(actor, "SIGSEGV")
            elif call.left <= 0 and call.case not in self.hanging:
                call.answer = Outcome(Row(str(call.case), DONE, seconds="1.0"), {"network": 1.0})
                actor.calls.remove(call)

    # As `Actors`.

    def start(self) -> Actor:
        self.actors.append(Actor(len(self.actors)))
        return self.actors[-1]

    def stop(self, actor: Actor) -> None:
        self._die(actor, "stopped")

    def ready(self, actor: Actor) -> Call:
        return self._call(actor, None)

    def segment(self, actor: Actor, case: ManyCase) -> Call:
        self.runs.append((self.now, case.id))
        return self._call(actor, case.id)

    def _call(self, actor: Actor, case: str | None) -> Call:
        call = Call(actor, case, self.seconds)
        if actor.dead and (actor.node not in self.alive or self.room[actor.node]):
            call.answer = WorkerDiedError(actor.dead)
        else:
            actor.calls.append(call)
        return call

    def wait(self, calls: Sequence[Call], seconds: float) -> list[Call]:
        until = self.now + seconds
        while not (there := [call for call in calls if call.answer is not None]) and self.now < until:
            self._tick()
        return there

    def answer(self, call: Call) -> Any:
        if isinstance(call.answer, WorkerDiedError | WorkerLostError):
            raise call.answer
        return call.answer

    def nodes(self) -> set[str]:
        return set(self.alive)


@dataclass
class SimulatedRun:
    """Ids by status, the reason of each that is not done, and when the run ended, s."""

    by_status: dict[str, list[str]]
    messages: dict[str, str]
    seconds: float
    status: Status


def simulate(folder: Path, cluster: Cluster, cases: Sequence[str], workers: int, **options: Any) -> SimulatedRun:
    """A run of these cases, each of which must end once."""
    table = Rows(folder)
    status = Status(len(cases), 0)
    from collections import deque

    todo = deque(ManyCase(name, str(folder / name)) for name in cases)
    job = Job(str(folder), {})

    def watch(status: Status) -> None:
        assert cluster.now < 3 * 3600, "the run does not end"

    pool = Pool(
        todo, job, cluster, workers, status, table, watch,  # type: ignore[arg-type]
        crashes=Crashes(lambda: cluster.now), clock=lambda: cluster.now, **options,
    )  # fmt: skip
    pool.run()
    assert sorted(row.id for row in table.all) == sorted(cases)
    by_status: dict[str, list[str]] = {}
    for row in sorted(table.all, key=lambda row: row.id):
        by_status.setdefault(row.status, []).append(row.id)
    return SimulatedRun(by_status, {row.id: row.message for row in table.all}, cluster.now, status)


class Rows(ResultsTable):
    """A table that is not on disk."""

    def __init__(self, folder: Path) -> None:
        self.all: list[Row] = []

    def add(self, row: Row) -> None:
        self.all.append(row)
