"""Distribute cases over workers until each has an outcome, even if workers crash.

Ray places the workers, on other nodes if theirs go away; ``Crashes`` decides which case is to blame.
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
from attunet3d.many.crashes import Crashes
from attunet3d.many.manifest import ManyCase
from attunet3d.many.outcome import Outcome, failed, state_of_input
from attunet3d.many.results import FAILED, SET_ASIDE, ResultsTable
from attunet3d.many.status import Status
from attunet3d.many.worker import Job

if TYPE_CHECKING:
    from attunet3d.many.actors import Actors

CASES_PER_WORKER = 2  # one is read while one is in the network; this bounds the memory
_MOST_RELOADS = 3  # of a worker that dies before it has loaded the network once
_MOST_LOST = 10  # times that a case may be lost with a worker that does not answer


@dataclass
class _Slot:
    """A worker's slot in the pool; a worker that dies is replaced.

    Attributes:
        number: of the slot.
        actor: the present worker.
        node: id of its node, once it has answered.
        up: whether it has answered, and takes cases.
        taken: number of cases in it.
        since: when the oldest of them began, s.
        loads: number of workers that died in this slot while loading; None once one was ready.
        asked: whether the worker has just answered, and may run a trial.
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
class _Task:
    """A case that was submitted to a worker, possibly as a trial; without a case, the call of ``ready``."""

    slot: _Slot
    case: ManyCase | None = None
    trial: bool = False


class Pool:
    """A pool of workers and the cases that were submitted to them.

    Args:
        todo: cases.
        job: what they have in common.
        actors: starts workers and calls them.
        workers: number of workers.
        status: kept up to date.
        table: gets a row for each case.
        watch: called after each case and at least each second.
        case_minutes: see ``run_pool``.
        crashes: judges the deaths of workers.
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
        crashes: Crashes | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._todo, self._job, self._actors, self._status, self._table = todo, job, actors, status, table
        self._watch = watch or (lambda status: None)
        self._case_seconds = None if case_minutes is None else 60 * case_minutes
        self._clock = clock
        self._crashes = crashes or Crashes(clock)
        self._suspects: dict[str, ManyCase] = {}
        self._lost: Counter[str] = Counter()
        self._reason = ""  # of the last death or loss
        self._tasks: dict[Any, _Task] = {}
        self._slots = [_Slot(number, actors.start()) for number in range(workers)]
        self._start = clock()

    def run(self) -> None:
        """Run until all cases have an outcome. Raises AttUNet3dError for errors that are no case's fault."""
        try:
            for slot in self._slots:
                self._ask(slot)
            while self._todo or self._crashes.suspects or any(task.case for task in self._tasks.values()):
                self._step()
        finally:
            for slot in self._slots:
                with suppress(Exception):  # the cluster may be gone
                    self._actors.stop(slot.actor)

    def _step(self) -> None:
        if not self._slots:
            raise ConfigError(
                f"no worker is left: each died {_MOST_RELOADS + 1} times while it loaded the network, the last time "
                f"because {self._reason}; give workers more memory, or start fewer of them"
            )
        self._fill()
        for reference in self._actors.wait(list(self._tasks), 1.0):
            if reference in self._tasks:  # it may have been dropped with another task of its worker
                self._collect(reference)
        self._stop_overdue()
        for case, why in self._crashes.judge(self._actors.nodes):
            suspect = self._suspects[case]
            self._end(suspect, self._failed(suspect, WorkerDiedError(), why))
        self._status.seconds = self._clock() - self._start
        self._watch(self._status)

    def _fill(self) -> None:
        """Submit cases to workers that have room; once none are left, try suspects, one on each node."""
        running = [task for task in self._tasks.values() if task.case]
        if self._todo:
            if not any(task.trial for task in running):
                for slot in self._slots:
                    while slot.up and self._todo and slot.taken < CASES_PER_WORKER:
                        self._submit(slot, self._todo.popleft())
        elif all(task.trial for task in running):
            busy = {task.slot.node for task in self._tasks.values()}
            for slot in sorted(self._slots, key=lambda slot: not slot.asked):
                case = self._crashes.next_suspect(slot.node) if slot.up and slot.node not in busy else None
                if case is not None:
                    busy.add(slot.node)
                    if slot.asked:
                        self._crashes.begin_trial(case)
                        self._submit(slot, self._suspects[case], trial=True)
                    else:  # it may have died while it had nothing to do
                        self._ask(slot)
                slot.asked = False

    def _ask(self, slot: _Slot) -> None:
        slot.up = False
        self._tasks[self._actors.ready(slot.actor)] = _Task(slot)

    def _submit(self, slot: _Slot, case: ManyCase, trial: bool = False) -> None:
        if not slot.taken:
            slot.since = self._clock()
        slot.taken += 1
        self._tasks[self._actors.segment(slot.actor, case)] = _Task(slot, case, trial)

    def _collect(self, reference: Any) -> None:
        task = self._tasks[reference]
        try:
            answer = self._actors.answer(reference)
        except WorkerDiedError as death:
            self._worker_died(task.slot, str(death))
            return
        except WorkerLostError as loss:
            self._worker_lost(task.slot, str(loss))
            return
        except AttUNet3dError:  # what is a case's fault is a result
            raise
        except Exception as error:
            if task.case is None:
                raise ConfigError(f"workers do not start: {error}") from error
            answer = self._failed(task.case, error, f"unexpected: {error}", FAILED)
        del self._tasks[reference]
        slot = task.slot
        if task.case is None:
            self._status.processes[slot.number], slot.node = answer
            slot.up, slot.loads, slot.asked = True, None, True
            return
        slot.taken, slot.since = slot.taken - 1, self._clock()
        self._end(task.case, answer)

    def _worker_died(self, slot: _Slot, reason: str) -> None:
        cases = self._drain(slot)
        if slot.node and slot.node not in self._actors.nodes():
            self._requeue(cases)  # its node is gone, which is no case's fault
        else:
            self._suspects |= {case.id: case for case in cases}
            self._crashes.worker_died([case.id for case in cases], slot.node, reason)
        self._status.deaths += slot.number in self._status.processes
        self._replace(slot, reason)
        for other in self._slots:  # other deaths tell whether the case caused it
            if other.up and not other.taken:
                self._ask(other)

    def _worker_lost(self, slot: _Slot, reason: str) -> None:
        cases = self._drain(slot)
        self._actors.stop(slot.actor)  # it may still be alive, and working on them
        self._replace(slot, reason)
        self._lost.update(case.id for case in cases)
        worn = [case for case in cases if self._lost[case.id] >= _MOST_LOST]
        self._requeue([case for case in cases if case not in worn])
        for case in worn:
            why = f"{_MOST_LOST} times its worker did not answer: {reason}"
            self._end(case, self._failed(case, WorkerLostError(), why, FAILED))

    def _stop_overdue(self) -> None:
        """Kill workers whose case takes too long; if they have two, trials show which one it is."""
        if self._case_seconds is None:
            return
        for slot in self._slots:
            if not slot.taken or self._clock() - slot.since <= self._case_seconds:
                continue
            cases = self._drain(slot)
            self._actors.stop(slot.actor)
            self._replace(slot, "it took too long")
            if len(cases) == 1:
                why = f"took longer than {self._case_seconds / 60:g} min; allow more case_minutes"
                self._end(cases[0], self._failed(cases[0], TimeoutError(), why))
                continue
            self._suspects |= {case.id: case for case in cases}
            self._crashes.suspect(case.id for case in cases)

    def _drain(self, slot: _Slot) -> list[ManyCase]:
        """Take the cases back from a worker that no longer answers, except those that it has finished."""
        of_slot = [reference for reference, task in self._tasks.items() if task.slot is slot]
        there = set(self._actors.wait(of_slot, 0)) if of_slot else set()
        cases = []
        for reference in of_slot:
            case = self._tasks.pop(reference).case
            if case is None:
                continue
            try:
                if reference in there:
                    self._end(case, self._actors.answer(reference))
                    continue
            except AttUNet3dError:
                raise
            except Exception:  # it will be raised again when the case is run again
                pass
            cases.append(case)
        slot.taken = 0
        return cases

    def _replace(self, slot: _Slot, reason: str) -> None:
        """Start another worker in a slot, as soon as there is room for one."""
        self._reason = reason
        self._status.processes.pop(slot.number, None)
        slot.node, slot.up = "", False
        if slot.loads is not None:  # if one was ready here, the next one will be
            slot.loads += 1
            if slot.loads > _MOST_RELOADS:
                self._slots.remove(slot)
                return
        slot.actor = self._actors.start()
        self._ask(slot)

    def _requeue(self, cases: list[ManyCase]) -> None:
        """Queue cases again that were interrupted through no fault of theirs."""
        for case in cases:
            if case.id in self._crashes.suspects:
                self._crashes.release(case.id)
            else:
                self._todo.appendleft(case)

    def _failed(self, case: ManyCase, error: Exception, why: str, status: str = SET_ASIDE) -> Outcome:
        folder = Path(self._job.output)
        return failed(folder, case, error, why, state_of_input(folder, case), status, keep_uids=self._job.keep_uids)

    def _end(self, case: ManyCase, outcome: Outcome) -> None:
        self._table.add(outcome.row)
        self._status.add(outcome)
        self._crashes.clear(case.id)
        self._suspects.pop(case.id, None)
