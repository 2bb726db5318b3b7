"""Estimate the time and cost of segmenting an archive from the stage seconds of a run of ``attunet3d segment-many``.

    python examples/many_cost.py masks/summary.json --workers 64 --mb-per-ct 60 --storage-mb-s 1000 --price 0.04

A worker reads one case while another is in the network. The throughput is limited by the slowest of the workers, the
shared storage and the driver. ``--simulate`` simulates the cluster case by case, with cases of different sizes, for
comparison with the formula.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
from pathlib import Path


def rates(
    read: float, compute: float, workers: int, overlap: bool, mb: float, storage: float, driver: float
) -> dict[str, float]:
    """Return the throughput of each part of the cluster alone, cases per second.

    With ``overlap`` reading has its own core; without, it shares the core of the network.
    """
    per_case = max(read, compute) if overlap else read + compute
    return {
        "workers (reading)" if overlap and read > compute else "workers (network)": workers / per_case,
        "storage": storage / mb,
        "driver": 1 / driver,
    }


def simulate(
    cases: int, read: float, compute: float, workers: int, overlap: bool, mb: float, storage: float, seed: int = 0
) -> float:
    """Simulate the cluster and return its run time, s: sizes have an SD of a third, and the storage reads sequentially.

    A worker reads one case ahead; a case waits for the storage, for its reader and for the network.
    """
    draw = random.Random(seed)
    # Per worker: when its reader is free, its number, when its network is free, and when it was before that case.
    heap = [(0.0, number, 0.0, 0.0) for number in range(workers)]
    storage_free = 0.0
    last = 0.0
    for _ in range(cases):
        ready, number, network, _before = heapq.heappop(heap)
        size = max(draw.gauss(1, 1 / 3), 0.2)
        start = max(ready, storage_free)
        storage_free = start + size * mb / storage
        got = max(start + size * read, storage_free)
        done = max(got, network) + size * compute
        # The next case is read while this one is in the network, but no further ahead.
        following = max(got, network) if overlap else done
        heapq.heappush(heap, (following, number, done, network))
        last = max(last, done)
    return last


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("summary", type=Path, help="summary.json of a run")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--overlap", action="store_true", help="reading has a core of its own, or the network a GPU")
    parser.add_argument(
        "--network-seconds", type=float, help="replaces all measured stages but reading, e.g. for a GPU"
    )
    parser.add_argument("--mb-per-ct", type=float, default=60.0, help="size on the storage")
    parser.add_argument("--storage-mb-s", type=float, default=1000.0, help="throughput of the shared storage")
    parser.add_argument("--driver-seconds", type=float, default=0.005, help="of the driver, per case")
    parser.add_argument("--price", type=float, default=0.0, help="of a worker, per hour")
    parser.add_argument("--simulate", type=int, metavar="CASES", help="also simulate this many cases")
    given = parser.parse_args()
    run = json.loads(given.summary.read_text())["this_run"]
    stages = {name: seconds / run["cases"] for name, seconds in run["stage_seconds"].items()}
    read = stages.pop("read")
    compute = sum(stages.values()) if given.network_seconds is None else given.network_seconds
    common = (read, compute, given.workers, given.overlap, given.mb_per_ct, given.storage_mb_s)
    limits = rates(*common, given.driver_seconds)
    slowest = min(limits, key=lambda name: limits[name])
    print(f"per case: {read:.2f} s to read, {compute:.2f} s for the rest; limited by {slowest}")
    for name, rate in limits.items():
        print(f"  {name}: {3600 * rate:,.0f} cases per hour")
    for cases in (1_000, 100_000, 1_000_000):
        hours = cases / limits[slowest] / 3600
        print(f"{cases:>9,} CTs: {hours:10.1f} h, {hours * given.workers:12.0f} worker hours, "
              f"{hours * given.workers * given.price:12.2f} in total")  # fmt: skip
    if given.simulate:
        seconds = simulate(given.simulate, *common)
        formula = given.simulate / min(rate for name, rate in limits.items() if name != "driver")
        print(f"simulated {given.simulate:,} cases: {seconds:,.0f} s; formula: {formula:,.0f} s")


if __name__ == "__main__":
    main()
