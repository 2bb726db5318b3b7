"""Start and call the workers of a pool as Ray actors, and translate Ray's errors."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import Any

from attunet3d.errors import ConfigError
from attunet3d.many.cluster import Resources
from attunet3d.many.manifest import ManyCase
from attunet3d.many.worker import Job, Worker

_MOST_CHARACTERS = 300


class WorkerDiedError(Exception):
    """A worker died; the message is the reason that Ray gives."""


class WorkerLostError(Exception):
    """A worker does not answer, and may or may not be dead."""


class Actors:
    """Starts actors and calls them; each call returns a reference to its result.

    Ray does not restart them, as then it would not report whether and why one died.

    Args:
        job: settings that all cases share.
        resources: of each actor.
        concurrency: number of calls that an actor runs at a time.
    """

    def __init__(self, job: Job, resources: Resources, concurrency: int) -> None:
        import ray

        self._job = job
        self._class = ray.remote(Worker).options(
            num_cpus=resources.cpus,
            num_gpus=resources.gpus,
            memory=int(resources.memory_gb * 1e9) if resources.memory_gb else None,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=concurrency,
        )

    def start(self) -> Any:
        """Start an actor, which runs as soon as there is room for it."""
        return self._class.remote(self._job)

    def stop(self, actor: Any) -> None:
        """Kill an actor, unless it is dead."""
        import ray

        ray.kill(actor)

    def ready(self, actor: Any) -> Any:
        """Call ``Worker.ready``."""
        return actor.ready.remote()

    def segment(self, actor: Any, case: ManyCase) -> Any:
        """Call ``Worker.segment``."""
        return actor.segment.remote(case)

    def wait(self, references: Sequence[Any], seconds: float) -> list[Any]:
        """Wait for at least one result, for at most ``seconds``; return the references of available ones."""
        import ray

        if not references:
            time.sleep(seconds)
            return []
        return ray.wait(list(references), num_returns=len(references) if seconds == 0 else 1, timeout=seconds)[0]

    def answer(self, reference: Any) -> Any:
        """Return the result of a call.

        Raises:
            WorkerDiedError, WorkerLostError: there is none.
            ConfigError: the cluster has gone.
            Exception: the call raised it.
        """
        import ray
        from ray import exceptions

        try:
            return ray.get(reference)
        except exceptions.RayTaskError as error:
            raise (error.cause if isinstance(error.cause, Exception) else error) from None
        except exceptions.LocalRayletDiedError as error:
            raise _gone() from error
        except (exceptions.ActorDiedError, exceptions.OutOfMemoryError, exceptions.NodeDiedError) as error:
            raise WorkerDiedError(reason_of(str(error))) from None
        except exceptions.RayError as error:
            raise WorkerLostError(reason_of(str(error))) from None

    def nodes(self) -> set[str]:
        """Return the ids of the nodes that are alive, according to Ray."""
        import ray

        try:
            return {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        except ray.exceptions.RayError as error:
            raise _gone() from error


def reason_of(text: str) -> str:
    """Shorten Ray's message on a death to one line, without the ids before the reason and the advice after it."""
    text = " ".join(text.split())
    _, found, reason = text.partition("The actor is dead because ")
    if not found:
        _, found, reason = text.partition("The actor died because ")
    reason = re.sub(r" If the process was killed by the kernel OOM killer.*", "", reason if found else text)
    return reason if len(reason) <= _MOST_CHARACTERS else reason[: _MOST_CHARACTERS - 1] + "…"


def _gone() -> ConfigError:
    return ConfigError("the Ray cluster has gone; start it, and repeat the command to continue")
