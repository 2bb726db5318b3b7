"""Keep workers busy with cases until each one has ended, whatever dies on the way.

Ray places the workers, on other nodes if theirs go away; `Deaths` says which case is to blame.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attunet3d.errors import AttUNet3dError, ConfigError
from attunet3d.many.actors import WorkerDiedError, WorkerLostError
from attunet3d.many.deaths import Deaths
from attunet3d.many.ended import Ended, failed, state_of_input
from attunet3d.many.manifest import ManyCase
from attunet3d.many.results import FAILED, SET_ASIDE, ResultsTable
from attunet3d.many.status import Status
from attunet3d.many.worker import Job

if TYPE_CHECKING:
    from attunet3d.many.actors import Actors

IN_A_WORKER = 2  # one is read while one is in the network: what is in flight, and so memory, is bounded
_LOADING_AGAIN = 3  # times that a worker may die before it has loaded the network once
_MOST_LOST = 10  # times that a case may be in a worker from which there is no answer


@dataclass
class _Place:
    """A worker of the pool, or the one that is started in its stead.

    Attributes:
        number: of the place.
        actor: that is there now.
        node: where it is, once it has answered.
        up: whether it has answered, and takes cases.
        taken: how many cases are in it.
        since: when the oldest of them had it for itself, s.
        loads: how often it has died before one was ever ready; None once one was.
        asked: whether it has just answered, and may have a trial.
    """

    number: int
    actor: Any
    node: str = ""
    up: bool = False
    taken: int = 0
    since: float = 0.0
    loads: int | None = 0
    asked: bool = False


@dataclass(frozen=True)
class _Flight:
    """A case in a worker, perhaps on trial there; without a case, the worker is asked whether it is ready."""

    place: _Place
    case: ManyCase | None = None
    trial: bool = False


class Pool:
    """Workers, and what is in them.

    Args:
        todo: cases.
        job: what they have in common.
        actors: starts workers and asks them.
        workers: how many.
        status: is kept up to date.
        table: gets a line for each case.
        watch: called after each case and at least each second.
        case_minutes: see `run_pool`.
        deaths: judges the deaths of workers.
        clock: seconds.
    """

    def __init__(
        self,
        todo: deque[ManyCase],
        job: Job,
        actors: Actors,
        workers: int,
        status: Status,
        table: ResultsTable,
        watch: Callable[[Status], None] | None = None,
        *,
        case_minutes: float | None = None,
        deaths: Deaths | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._todo, self._job, self._actors, self._status, self._table = todo, job, actors, status, table
        self._watch = watch or (lambda status: None)
        self._case_seconds = None if case_minutes is None else 60 * case_minutes
        self._clock = clock
        self._deaths = deaths or Deaths(clock)
        self._suspects: dict[str, ManyCase] = {}
        self._lost: Counter[str] = Counter()
        self._reason = ""  # of the last death or loss
        self._flights: dict[Any, _Flight] = {}
        self._places = [_Place(number, actors.start()) for number in range(workers)]
        self._start = clock()

    def run(self) -> None:
        """Until all cases have ended. Raises AttUNet3dError for what is no case's fault."""
        try:
            for place in self._places:
                self._ask(place)
            while self._todo or self._deaths.suspects or any(flight.case for flight in self._flights.values()):
                self._step()
        finally:
            for place in self._places:
                with suppress(Exception):  # the cluster may be what has gone
                    self._actors.stop(place.actor)

    def _step(self) -> None:
        if not self._places:
            raise ConfigError(
                f"no worker is left: each died {_LOADING_AGAIN + 1} times while it loaded the network, the last time "
                f"because {self._reason}; give workers more memory, or start fewer of them"
            )
        self._fill()
        for reference in self._actors.wait(list(self._flights), 1.0):
            if reference in self._flights:  # it may have gone with another one of its worker
                self._landed(reference)
        self._stop_slow()
        for case, why in self._deaths.judge(self._actors.nodes):
            suspect = self._suspects[case]
            self._end(suspect, self._failed(suspect, WorkerDiedError(), why))
        self._status.seconds = self._clock() - self._start
        self._watch(self._status)

    def _fill(self) -> None:
        """Give workers what they have room for: cases, and when none is left suspects, one on a node."""
        flying = [flight for flight in self._flights.values() if flight.case]
        if self._todo:
            if not any(flight.trial for flight in flying):
                for place in self._places:
                    while place.up and self._todo and place.taken < IN_A_WORKER:
                        self._launch(place, self._todo.popleft())
        elif all(flight.trial for flight in flying):
            busy = {flight.place.node for flight in self._flights.values()}
            for place in sorted(self._places, key=lambda place: not place.asked):
                case = self._deaths.waiting(place.node) if place.up and place.node not in busy else None
                if case is not None:
                    busy.add(place.node)
                    if place.asked:
                        self._deaths.begin_trial(case)
                        self._launch(place, self._suspects[case], trial=True)
                    else:  # it may have died while it had nothing to do
                        self._ask(place)
                place.asked = False

    def _ask(self, place: _Place) -> None:
        place.up = False
        self._flights[self._actors.ready(place.actor)] = _Flight(place)

    def _launch(self, place: _Place, case: ManyCase, trial: bool = False) -> None:
        if not place.taken:
            place.since = self._clock()
        place.taken += 1
        self._flights[self._actors.segment(place.actor, case)] = _Flight(place, case, trial)

    def _landed(self, reference: Any) -> None:
        flight = self._flights[reference]
        try:
            answer = self._actors.answer(reference)
        except WorkerDiedError as death:
            self._died(flight.place, str(death))
            return
        except WorkerLostError as loss:
            self._was_lost(flight.place, str(loss))
            return
        except AttUNet3dError:  # what is a case's fault is a result
            raise
        except Exception as error:
            if flight.case is None:
                raise ConfigError(f"workers do not start: {error}") from error
            answer = self._failed(flight.case, error, f"unexpected: {error}", FAILED)
        del self._flights[reference]
        place = flight.place
        if flight.case is None:
            self._status.processes[place.number], place.node = answer
            place.up, place.loads, place.asked = True, None, True
            return
        place.taken, place.since = place.taken - 1, self._clock()
        self._end(flight.case, answer)

    def _died(self, place: _Place, reason: str) -> None:
        cases = self._emptied(place)
        if place.node and place.node not in self._actors.nodes():
            self._again(cases)  # its node is gone, which is no case's fault
        else:
            self._suspects |= {case.id: case for case in cases}
            self._deaths.died([case.id for case in cases], place.node, reason)
        self._status.deaths += place.number in self._status.processes
        self._replace(place, reason)
        for other in self._places:  # who else is dead tells whether it was the case
            if other.up and not other.taken:
                self._ask(other)

    def _was_lost(self, place: _Place, reason: str) -> None:
        cases = self._emptied(place)
        self._actors.stop(place.actor)  # it may still live, and work on them
        self._replace(place, reason)
        self._lost.update(case.id for case in cases)
        worn = [case for case in cases if self._lost[case.id] >= _MOST_LOST]
        self._again([case for case in cases if case not in worn])
        for case in worn:
            why = f"{_MOST_LOST} times there was no answer from its worker: {reason}"
            self._end(case, self._failed(case, WorkerLostError(), why, FAILED))

    def _stop_slow(self) -> None:
        """Kill workers in which a case takes too long; if it was not alone, it is seen on trial which one that is."""
        if self._case_seconds is None:
            return
        for place in self._places:
            if not place.taken or self._clock() - place.since <= self._case_seconds:
                continue
            cases = self._emptied(place)
            self._actors.stop(place.actor)
            self._replace(place, "it took too long")
            if len(cases) == 1:
                why = f"took longer than {self._case_seconds / 60:g} min; allow more case_minutes"
                self._end(cases[0], self._failed(cases[0], TimeoutError(), why))
                continue
            self._suspects |= {case.id: case for case in cases}
            self._deaths.suspect(case.id for case in cases)

    def _emptied(self, place: _Place) -> list[ManyCase]:
        """The cases in a worker that gives no answer any more, without those that it has finished."""
        of_place = [reference for reference, flight in self._flights.items() if flight.place is place]
        there = set(self._actors.wait(of_place, 0)) if of_place else set()
        cases = []
        for reference in of_place:
            case = self._flights.pop(reference).case
            if case is None:
                continue
            try:
                if reference in there:
                    self._end(case, self._actors.answer(reference))
                    continue
            except AttUNet3dError:
                raise
            except Exception:  # it is seen again when the case is run again
                pass
            cases.append(case)
        place.taken = 0
        return cases

    def _replace(self, place: _Place, reason: str) -> None:
        """Ask for another worker in a place, as soon as there is room for one."""
        self._reason = reason
        self._status.processes.pop(place.number, None)
        place.node, place.up = "", False
        if place.loads is not None:  # what has been ready once will be again
            place.loads += 1
            if place.loads > _LOADING_AGAIN:
                self._places.remove(place)
                return
        place.actor = self._actors.start()
        self._ask(place)

    def _again(self, cases: list[ManyCase]) -> None:
        """Take back cases that have no result, which is not their fault."""
        for case in cases:
            if case.id in self._deaths.suspects:
                self._deaths.released(case.id)
            else:
                self._todo.appendleft(case)

    def _failed(self, case: ManyCase, error: Exception, why: str, status: str = SET_ASIDE) -> Ended:
        folder = Path(self._job.output)
        return failed(folder, case, error, why, state_of_input(folder, case), status, keep_uids=self._job.keep_uids)

    def _end(self, case: ManyCase, ended: Ended) -> None:
        self._table.add(ended.row)
        self._status.add(ended)
        self._deaths.ended(case.id)
        self._suspects.pop(case.id, None)
