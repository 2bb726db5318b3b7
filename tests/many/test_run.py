"""Runs on a local Ray cluster: the masks of ``segment``, whatever dies on the way."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import HANG, ROOT, TINY, Run
from deadly_network import DeadlyNetwork
from dicom_files import phantom, write_series

from attunet3d import Segmenter
from attunet3d.datasets.phantom import make_phantom
from attunet3d.many import crashes, segment_many
from attunet3d.many.outcome import Outcome
from attunet3d.many.run import Status

pytest.importorskip("ray")
pytestmark = pytest.mark.ray

SESSION = {"device": "cpu", "precision": "fp32", **TINY}


# Nodes are missed as soon as this, and not as soon as a busy machine lets them wait; see HEALTH_SECONDS.
QUICK = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 300, "health_check_failure_threshold": 10}


@pytest.fixture(scope="module")
def cts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 12 phantoms."""
    folder = tmp_path_factory.mktemp("cts")
    for seed in range(12):
        made = make_phantom(seed, shape=(60, 56, 44), orientation="LPS")
        nib.save(nib.Nifti1Image(made.image, made.affine), folder / f"ct{seed:02d}.nii.gz")
    return folder


@pytest.fixture(scope="module")
def masks(cts: Path, tiny_checkpoint: Path) -> dict[str, np.ndarray]:
    """What ``segment`` makes of them, by id."""
    session = Segmenter(tiny_checkpoint, **SESSION)
    return {p.name.removesuffix(".nii.gz"): session.segment(p).mask for p in sorted(cts.iterdir())}


@pytest.fixture(scope="module", autouse=True)
def nodes() -> Iterator[list[Any]]:
    """A cluster of three nodes with a core each, a connection to it, and the two of them that may go.

    Workers import this checkout, and the network of the tests.
    """
    import ray
    from ray.cluster_utils import Cluster

    each = {"num_cpus": 1, "object_store_memory": 10**8}
    paths = (str(ROOT), str(Path(__file__).parent), os.environ.get("PYTHONPATH", ""))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(paths))
        patch.setattr(crashes, "HEALTH_SECONDS", 5.0)
        cluster = Cluster(
            initialize_head=True, head_node_args={**each, "include_dashboard": False, "_system_config": QUICK}
        )
        others = [cluster.add_node(**each) for _ in range(2)]
        ray.init(address=cluster.address, log_to_driver=False)
        yield others
        ray.shutdown()
        cluster.shutdown()


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def check(out: Path, masks: dict[str, np.ndarray]) -> None:
    """Each case once in the table, with the voxels of ``segment`` and a whole record; nothing else in the folder."""
    rows = rows_of(out)
    assert sorted(row["id"] for row in rows) == sorted(masks)
    assert {row["status"] for row in rows} == {"done"}
    for row in rows:
        np.testing.assert_array_equal(np.asarray(nib.load(out / row["output"]).dataobj), masks[row["id"]])
        record = json.loads((out / f"{row['id']}_seg.json").read_text())
        assert row["volume_ml"] == f"{record['volume_ml']:.3f}"
    assert all(row["record"] == f"{row['id']}_seg.json" and row["state"] for row in rows)
    files = {f"{name}_seg{suffix}" for name in masks for suffix in (".json", ".nii.gz")}
    assert {p.name for p in out.iterdir()} == files | {"results.csv", "run.json", "summary.json", ".run.lock"}


@pytest.mark.slow
def test_three_nodes_with_deaths(
    nodes: list[Any], cts: Path, masks: dict[str, np.ndarray], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """Two workers and a node's own process are killed on the way: the same masks, nothing twice, nothing lost."""
    todo: list[Callable[[Status], None]] = []

    def kill(status: Status) -> None:
        for process in status.processes.values():
            with suppress(ProcessLookupError):  # it went with its node, and the run does not know it yet
                os.kill(process, signal.SIGKILL)
                return
        todo.insert(0, kill)

    def lose(status: Status) -> None:
        (raylet,) = nodes.pop().all_processes["raylet"]
        raylet.process.kill()

    todo = [kill, lose, kill]

    def watch(status: Status) -> None:
        if status.ended >= 2 * (4 - len(todo)) and todo and status.processes:
            todo.pop(0)(status)

    summary = segment_many(
        cts, tmp_path, cpus_per_worker=1, workers=3, watch=watch, checkpoint=tiny_checkpoint, **SESSION
    )
    assert not todo
    # The second may be one that goes with its node by itself.
    assert summary["this_run"]["worker_deaths"] >= 1
    assert summary["by_status"] == {"done": 12}
    check(tmp_path, masks)


@pytest.mark.slow
def test_runs_that_are_killed_and_terminated(
    run: Run, cts: Path, masks: dict[str, np.ndarray], tiny_checkpoint: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The same command does the rest, and only that."""
    options = [part for name, value in TINY.items() for part in ("--set", f"{name}={value}")]
    arguments = ["segment-many", cts, "-o", tmp_path, "--address", "local", "--num-cpus-per-worker", "1", "--workers",
                 "1", "--checkpoint", tiny_checkpoint, "--device", "cpu", "--precision", "fp32", *options]  # fmt: skip
    killed_at_two = (
        "import os, signal, sys; from attunet3d.cli import main; from attunet3d.many.status import Status\n"
        "add = Status.add\n"
        "def killed(status, ended):\n"
        "    add(status, ended)\n"
        "    if status.ended == 2: os.kill(os.getpid(), signal.SIGKILL)\n"
        "Status.add = killed; main()"
    )
    first = [sys.executable, "-c", killed_at_two, *map(str, arguments)]
    assert subprocess.run(first, capture_output=True, timeout=HANG, check=False).returncode == -signal.SIGKILL
    killed = len(rows_of(tmp_path))
    assert killed == 2
    (tmp_path / f"{rows_of(tmp_path)[0]['id']}_seg.nii.gz").unlink()
    add = Status.add

    def terminated(status: Status, ended: Outcome) -> None:
        add(status, ended)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Status, "add", terminated)
        code, stdout, stderr = run(*arguments)
    assert (code, stdout, stderr) == (143, "", f"interrupted, {killed} of 12 done; repeat the command to resume\n")
    # What the killed run's worker had still finished may end before the mask that is made again.
    before = [row["id"] for row in rows_of(tmp_path) if (tmp_path / row["output"]).exists()]
    stamps = {name: (tmp_path / f"{name}_seg.nii.gz").stat().st_mtime_ns for name in before}
    code, stdout, stderr = run(*arguments)
    assert code == 0, stderr
    assert f"this run: {12 - killed} in" in stderr
    assert stdout.splitlines() == [str(tmp_path / "results.csv"), str(tmp_path / "summary.json")]
    assert {name: (tmp_path / f"{name}_seg.nii.gz").stat().st_mtime_ns for name in before} == stamps
    table = tmp_path / "results.csv"
    header, gone, *others = table.read_text().splitlines(keepends=True)
    assert len(others) == 12, "of the mask that had gone there are two lines, of all others one"
    assert gone.split(",")[0] in "".join(others)
    table.write_text(header + "".join(others))
    check(tmp_path, masks)


@pytest.mark.slow
def test_bad_cases_among_good_ones(run: Run, cts: Path, tmp_path: Path) -> None:
    """A corrupt file, an ambiguous folder, a CT larger than memory, and one that kills its worker."""
    checkpoint, data, out = tmp_path / "model.pt", tmp_path / "data", tmp_path / "out"
    torch.save(DeadlyNetwork().state_dict(), checkpoint)
    write_series(data / "study", phantom(), uid="1.2.3.1")
    write_series(data / "study" / "b", phantom(), uid="1.2.3.2")
    (data / "corrupt.nii.gz").write_bytes((cts / "ct00.nii.gz").read_bytes()[:-3000])
    bright = np.full((40, 40, 40), 1000, np.int16)
    bright[0, 0, 0] = -1000
    nib.save(nib.Nifti1Image(bright, np.diag([6, 6, 6, 1])), data / "deadly.nii.gz")
    huge = nib.Nifti1Image(np.zeros((1, 1, 1), np.int16), np.eye(4)).header
    huge.set_data_shape((1200, 1200, 1400))
    with (data / "huge.nii").open("wb") as file:  # of holes: it takes no place on the disk
        file.write(huge.binaryblock + bytes(4))
        file.truncate(352 + 2 * 1200 * 1200 * 1400)
    good = sorted(cts.iterdir())[:6]
    paths = [good[0], data / "study", data / "deadly.nii.gz", *good[1:3], data / "corrupt.nii.gz", data / "huge.nii"]
    manifest = tmp_path / "cohort.csv"
    manifest.write_text("path\n" + "".join(f"{path}\n" for path in [*paths, *good[3:]]))
    options = {
        "device": "cpu",
        "spacing": [6.0] * 3,
        "roi_size": [32] * 3,
        "network_def": {"_target_": "deadly_network.DeadlyNetwork"},
    }
    summary = segment_many(
        manifest,
        out,
        keep_uids=False,
        address="local",
        cpus_per_worker=1,
        workers=1,
        memory_gb=2,
        checkpoint=checkpoint,
        allow_code=True,
        **options,
    )
    assert summary["by_status"] == {"done": 6, "failed": 3, "set aside": 1}
    rows = {row["id"]: row for row in rows_of(out)}
    assert {name: row["error_type"] for name, row in rows.items() if row["status"] == "failed"} == {
        "study": "AmbiguousSeriesError",
        "corrupt": "UnreadableInputError",
        "huge": "MemoryLimitError",
    }
    assert "1.2.3." not in rows["study"]["message"] + (out / "study_failed.json").read_text()
    assert "portal venous" not in rows["study"]["message"], "what headers say in free words is in no table"
    assert "attunet3d inspect" in rows["study"]["message"]
    assert rows["deadly"]["status"] == "set aside"
    assert "died 3 times with this case alone: its worker process has died" in rows["deadly"]["message"]
    assert (rows["deadly"]["error_type"], rows["deadly"]["record"]) == ("WorkerDiedError", "deadly_failed.json")
    assert json.loads((out / "deadly_failed.json").read_text())["status"] == "set aside"
    assert summary["this_run"]["worker_deaths"] == 4
    # What failed has ended: it is run again only if that is asked for, and the exit code still tells of it.
    values = [part for name, value in options.items() if name != "device" for part in ("--set", f"{name}={value}")]
    code, _, stderr = run("segment-many", manifest, "-o", out, "--address", "local", "--device", "cpu", "--checkpoint",
                          checkpoint, "--allow-code", *values)  # fmt: skip
    warning, *lines = stderr.splitlines()
    assert (code, lines) == (1, ["10 cases: 6 done, 3 failed, 1 set aside"])
    assert ": no recipe with these weights" in warning


def test_what_cannot_be_carried_out(
    run: Run, cts: Path, bare_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line and exit code 2, before any worker starts; the last one, in the workers."""
    begin = ("segment-many", cts, "-o", tmp_path / "out", "--address", "local")
    for arguments, message in (
        (("--checkpoint", tmp_path / "no.pt"), "no such checkpoint"),
        (("--format", "tiff"), "unknown"),
        (("--set", "nope=1"), "'nope'"),
        (("--num-cpus-per-worker", "1000"), "no node has room for a worker of 1000 CPUs"),
        (("--workers", "1", "--num-cpus-per-worker", "1", "--checkpoint", bare_checkpoint), "does not fit"),
    ):
        code, stdout, stderr = run(*begin, *arguments)
        assert (code, stdout) == (2, ""), stderr
        (error,) = [line for line in stderr.splitlines() if not line.startswith("warning: bare.pt: no recipe")]
        assert error.startswith("error: ")
        assert message in error
