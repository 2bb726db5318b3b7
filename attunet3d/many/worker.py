"""The worker of a pool, a Ray actor with one session: it reads one case while the network works on another."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attunet3d.errors import AmbiguousSeriesError, AttUNet3dError
from attunet3d.many.manifest import ManyCase
from attunet3d.many.outcome import Outcome, done, failed, find_outcome, state_of_input
from attunet3d.many.results import check_usable, storage_error


@dataclass(frozen=True)
class Job:
    """Settings that all cases of a run share; plain values, which are sent to the workers.

    Attributes:
        output: folder for masks and records, absolute, on storage that all nodes share.
        session: arguments of ``Segmenter``, but for the memory limit.
        output_format, qc, keep_uids: as ``Segmenter.segment``.
        threads: of each worker.
        memory_gb: most that each worker may take; None: ``memory_share`` of what is free on its node when it starts.
        memory_share: share of one worker in its node.
    """

    output: str
    session: dict[str, Any]
    output_format: str = "nifti"
    qc: bool = False
    keep_uids: bool = True
    threads: int = 1
    memory_gb: float | None = None
    memory_share: float = 1.0


class Worker:
    """A session that works on two cases at a time: it reads one while the network works on the other."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._reading, self._network, self._loading = threading.Lock(), threading.Lock(), threading.Lock()
        self._current: Any = None  # the memory plan of the case that is in the network, or waits for it
        self._session: Any = None

    def ready(self) -> tuple[int, str]:
        """Load the network, and return the process id and the id of the node. Raises as ``load``."""
        import ray

        self.load()
        return os.getpid(), ray.get_runtime_context().get_node_id()

    def load(self) -> None:
        """Load the network, unless it is loaded. Raises as ``Segmenter``."""
        import torch

        from attunet3d.console import set_up_logging
        from attunet3d.runtime.free_memory import available_bytes
        from attunet3d.segmenter.outputs import Outputs
        from attunet3d.segmenter.session import Segmenter

        with self._loading:
            if self._session is None:
                set_up_logging(False)  # pydicom's messages quote headers, and Ray keeps what workers print
                job = self._job
                torch.set_num_threads(job.threads)
                limit, left = job.memory_gb, available_bytes()
                if limit is None and left is not None:
                    limit = left * job.memory_share / 1e9
                self._outputs = Outputs(job.output, job.output_format, job.qc, False, job.keep_uids)
                session = Segmenter(memory_limit=limit, **job.session)
                self._reader = session.reader(self._outputs)
                self._session = session

    def segment(self, case: ManyCase) -> Outcome:
        """Segment one case, unless its mask exists already; errors of the case become its outcome.

        Raises:
            OutputError: results can no longer be written, which is not the case's fault.
        """
        folder = Path(self._job.output)
        check_usable(folder)
        state = state_of_input(folder, case)
        try:
            return find_outcome(folder, self._outputs, self._session.made_with, case, state) or self._segment(case)
        except Exception as error:  # an unforeseen one must not stop the other cases either
            storage = storage_error(error, folder)
            if storage is not None:
                raise storage from error
            message = str(error) if isinstance(error, AttUNet3dError) else f"unexpected: {error}"
            if isinstance(error, AmbiguousSeriesError):  # its message quotes the headers of the series
                message = message.partition(": ")[0] + ": several CT series, or patients; see `attunet3d inspect`"
            return failed(folder, case, error, message, state, keep_uids=self._job.keep_uids)

    def _segment(self, case: ManyCase) -> Outcome:
        with self._reading:
            current = self._current
            read = None if current is None else self._reader.read_beside(case.path, current, case.series_uid)
            if read is None:  # there is no other case, or both do not fit, so wait until the other is done
                with self._network:
                    read = self._reader.read(case.path, case.series_uid)
            mine = self._current = read.memory
        try:
            with self._network:
                found = self._session.segment_read(read, case.path, case.id, self._outputs)
        finally:
            if self._current is mine:
                self._current = None
        return done(Path(self._job.output), case, found.record)
