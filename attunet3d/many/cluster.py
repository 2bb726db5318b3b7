"""Connect to a Ray cluster or start one on this machine, and plan the workers that fit into it."""

from __future__ import annotations

import importlib.util
import logging
import math
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from attunet3d.errors import ConfigError
from attunet3d.many.address_file import read_address_file
from attunet3d.many.local_cluster import ray_environment, restore_environment, start_local_cluster, use_token_of_user

_REFUSED = "it requires another token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH as on its head"
_MOST_THREADS = 2  # of a worker without a GPU, by default


@dataclass(frozen=True)
class Resources:
    """Resources of each worker, and the number of workers."""

    workers: int
    cpus: float
    gpus: float
    memory_gb: float | None
    share: float  # of the smallest node


def need_ray() -> None:
    """Raise ConfigError if Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("segment-many needs Ray, which is not installed; run: pip install 'attunet3d[ray]'")


@contextmanager
def connected(address: str = "auto") -> Iterator[None]:
    """Connect to a Ray cluster within the block.

    A local cluster listens on the loopback interface only, requires a token, has no dashboard, and ends with this
    process. If the process is already connected, that connection is used and kept; else the environment is restored at
    the end.

    Args:
        address: of the cluster; "auto" is the one that RAY_ADDRESS names or that this user started here with ``ray
            start``, or else a local one; "local" always starts a local one.

    Raises:
        ConfigError: the address cannot be reached, or no cluster can be started.
    """
    need_ray()
    before = ray_environment()  # which Ray changes when it is imported
    import ray

    if ray.is_initialized():
        yield
        return
    with ExitStack() as stack:
        stack.callback(restore_environment, before)
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        handler = signal.getsignal(signal.SIGTERM)
        try:
            _connect(address, stack)
        except Exception as error:  # Ray raises plain Exception if a node does not start
            reason = _REFUSED if _is_refused(error) else error
            raise ConfigError(
                f"address {address}: no Ray cluster can be reached or started ({reason})", arguments=("address",)
            ) from error
        finally:
            # Ray has put a handler of its own there, which would end the process.
            if callable(handler) and threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, handler)
        yield


class _Modules(list[str]):
    """The module search path of workers: of the folders that Ray adds, only those that this process has too.

    Ray puts the working directory first, so that a Python file in a folder of downloaded images could run.
    """

    def extend(self, places: Iterable[str]) -> None:
        """Add the folders that are in ``sys.path``."""
        known = set(map(os.path.abspath, sys.path))
        super().extend(place for place in places if place in known)


def _connect(address: str, stack: ExitStack) -> None:
    """Connect; ``stack`` undoes it."""
    import ray

    stack.callback(ray.shutdown)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS") or "auto"
    if not address.startswith("ray://"):  # a client's working directory means nothing to its cluster
        options["job_config"] = ray.job_config.JobConfig()
        options["job_config"]._py_driver_sys_path = _Modules()
    if address not in ("auto", "local"):
        ray.init(address=address, **options)
        return
    found = read_address_file() if address == "auto" else None
    if found:
        use_token_of_user()
        try:
            ray.init(address=found, **options)
            return
        except ConnectionError as error:
            if _is_refused(error):
                raise
    start_local_cluster(stack, **options)


def _is_refused(error: Exception) -> bool:
    """Whether a cluster requires another token, which Ray only tells in its message."""
    return "InvalidAuthToken" in f"{error} {error.__cause__}"


def plan_workers(
    workers: int | None = None, cpus: float | None = None, gpus: float | None = None, memory_gb: float | None = None
) -> Resources:
    """Plan as many workers as the connected cluster has room for now, unless a number is given.

    With GPUs each worker gets one and its share of the node's cores; without, up to 2 cores. More workers than fit are
    allowed: they start when nodes join.

    Raises:
        ConfigError: no node has room for one worker.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if gpus is None:
        gpus = 1.0 if any(node.get("GPU", 0) >= 1 for node in nodes) else 0.0
    fit = [node for node in nodes if node.get("GPU", 0) >= gpus and node.get("CPU", 0) >= (cpus or 1)]
    if cpus is None and fit:
        if gpus:
            cpus = max(min(math.floor(node["CPU"] / (node["GPU"] / gpus)) for node in fit), 1)
        else:
            cpus = min(_MOST_THREADS, min(node["CPU"] for node in fit))
    cpus = cpus or 1
    counts = [
        math.floor(
            min(
                node["CPU"] / cpus,
                node["GPU"] / gpus if gpus else math.inf,
                node.get("memory", math.inf) / (memory_gb * 1e9) if memory_gb else math.inf,
            )
            + 1e-6
        )
        for node in fit
    ]
    if not sum(counts) and workers is None:
        has = "; ".join(f"{node.get('CPU', 0):g} CPUs, {node.get('GPU', 0):g} GPUs" for node in nodes)
        memory = f" and {memory_gb:g} GB" if memory_gb else ""
        raise ConfigError(
            f"no node has room for a worker of {cpus:g} CPUs, {gpus:g} GPUs{memory}; there are: {has}. Ask for less "
            "with cpus_per_worker, gpus_per_worker, memory_gb",
            arguments=("cpus_per_worker", "gpus_per_worker", "memory_gb"),
        )
    share = 1 / max(max(counts, default=1), 1)
    return Resources(workers or sum(counts), cpus, gpus, memory_gb, share)
