"""Fault tolerance, overhead and scaling of ``attunet3d segment-many``.

    python examples/many_on_ray.py kills       60 phantoms, 3 nodes on this machine; 3 workers killed, a node removed
    python examples/many_on_ray.py overhead    1,000 tiny CTs: overhead per case, memory over time
    python examples/many_on_ray.py workers     one worker against two, each with its own core

Needs ``pip install 'attunet3d[ray]'``, and two cores. Exit code 1 if a mask is missing, duplicated or different.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from attunet3d import Segmenter
from attunet3d.datasets.phantom import make_phantom
from attunet3d.many import segment_many

Shape = tuple[int, int, int]


def write_phantoms(folder: Path, count: int, shape: Shape) -> Path:
    folder.mkdir()
    for seed in range(count):
        made = make_phantom(seed, shape=shape, orientation="LPS")
        nib.save(nib.Nifti1Image(made.image, made.affine), folder / f"ct{seed:04d}.nii.gz")
    return folder


@contextmanager
def cluster_of(nodes: int) -> Iterator[tuple[Any, list[Any]]]:
    """Start nodes with one core each on this machine, and connect to them."""
    import ray
    from ray.cluster_utils import Cluster

    of_each = {"num_cpus": 1, "object_store_memory": 10**8}
    cluster = Cluster(initialize_head=True, head_node_args={**of_each, "include_dashboard": False})
    others = [cluster.add_node(**of_each) for _ in range(nodes - 1)]
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        yield cluster, others
    finally:
        ray.shutdown()
        cluster.shutdown()


def kills(work: Path) -> bool:
    cts = write_phantoms(work / "cts", 60, (96, 80, 48))
    options = {"device": "cpu", "spacing": [3.0] * 3}
    session = Segmenter(**options)
    start = time.perf_counter()
    masks = {p.name.removesuffix(".nii.gz"): session.segment(p).mask for p in sorted(cts.iterdir())}
    print(f"segment, one process: {len(masks)} masks in {time.perf_counter() - start:.1f} s")
    draw = random.Random(int(time.time()))
    moments = sorted(draw.sample(range(3, 50), 3))
    removal = draw.randrange(10, 40)
    with cluster_of(3) as (cluster, nodes):

        def watch(status: Any) -> None:
            if moments and status.ended >= moments[0] and status.processes:
                number, process = draw.choice(sorted(status.processes.items()))
                with suppress(ProcessLookupError):  # its node has just been removed
                    os.kill(process, signal.SIGKILL)
                    print(f"after {status.ended} cases: worker {number} (process {process}) killed")
                    moments.pop(0)
            if nodes and status.ended >= removal:
                cluster.remove_node(nodes[0])
                nodes.clear()  # keep the other one
                print(f"after {status.ended} cases: a node removed")

        summary = segment_many(cts, work / "out", cpus_per_worker=1, watch=watch, **options)
    run = summary["this_run"]
    print(f"{summary['by_status']}, {run['worker_deaths']} workers died; {run['seconds']} s")
    with (work / "out" / "results.csv").open(newline="") as file:
        rows = [row["id"] for row in csv.DictReader(file)]
    equal = sum(
        np.array_equal(np.asarray(nib.load(work / "out" / f"{name}_seg.nii.gz").dataobj), mask)
        for name, mask in masks.items()
    )
    left = [p.name for p in (work / "out").iterdir() if p.name.startswith(".tmp")]
    print(
        f"{equal} of {len(masks)} masks equal; {len(rows)} lines, {len(set(rows))} different; {len(left)} left behind"
    )
    return equal == len(masks) and sorted(rows) == sorted(masks) and not left


def overhead(work: Path) -> bool:
    cts = write_phantoms(work / "cts", 1, (24, 24, 16))
    manifest = work / "many.csv"
    manifest.write_text("path,id\n" + "".join(f"{cts}/ct0000.nii.gz,case{number:04d}\n" for number in range(1000)))
    step, pages = 100, os.sysconf("SC_PAGE_SIZE") / 1e6
    times: list[tuple[int, float]] = []

    def memory(process: int | str) -> float:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * pages

    def watch(status: Any) -> None:
        if status.ended >= step * len(times) and status.processes:
            times.append((status.ended, status.seconds))
            of_workers = ", ".join(f"{memory(process):.0f}" for process in status.processes.values())
            rss = f"driver {memory('self'):.0f} MB  worker {of_workers} MB"
            print(f"{status.ended:5d} cases  {status.seconds:6.1f} s  {rss}", flush=True)

    options = {"device": "cpu", "spacing": [6.0] * 3, "roi_size": [16] * 3}
    summary = segment_many(
        manifest, work / "out", address="local", workers=1, cpus_per_worker=1, watch=watch, **options
    )
    run = summary["this_run"]
    in_stages = sum(run["stage_seconds"].values())
    warm = (times[-1][1] - times[1][1]) / (times[-1][0] - times[1][0])
    print(f"{summary['by_status']}; stages {in_stages / run['cases']:.4f} s a case: {run['stage_seconds']}")
    print(f"wall {warm:.4f} s a case after the first {times[1][0]}, one worker")
    return summary["by_status"] == {"done": 1000}


def workers(work: Path) -> bool:
    cts = write_phantoms(work / "cts", 24, (160, 128, 80))
    seconds = {}
    for count, cpus in ((1, 1), (2, 1), (1, 2)):
        first: list[tuple[int, float]] = []

        def watch(status: Any, first: list[tuple[int, float]] = first) -> None:
            if status.ended:
                first.append((status.ended, status.seconds))

        summary = segment_many(
            cts,
            work / f"out_{count}_{cpus}",
            address="local",
            workers=count,
            cpus_per_worker=cpus,
            watch=watch,
            device="cpu",
        )
        (begin, start), (end, stop) = first[0], first[-1]
        seconds[count, cpus] = (stop - start) / (end - begin)
        stages = {name: round(s / 24, 3) for name, s in summary["this_run"]["stage_seconds"].items()}
        rate = 60 / seconds[count, cpus]
        print(f"{count} workers, {cpus} threads each: {rate:.1f} cases a minute; seconds a case {stages}", flush=True)
    print(f"2 workers against 1: {seconds[1, 1] / seconds[2, 1]:.2f} times; against 1 with both cores: "
          f"{seconds[1, 2] / seconds[2, 1]:.2f} times")  # fmt: skip
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["kills", "overhead", "workers"])
    what = {"kills": kills, "overhead": overhead, "workers": workers}[parser.parse_args().what]
    with tempfile.TemporaryDirectory() as work:
        return 0 if what(Path(work)) else 1


if __name__ == "__main__":
    sys.exit(main())
