"""Active learning with MONAI Label, without a viewer: python examples/label_loop.py

Starts ``attunet3d label`` on phantoms and sends the requests of 3D Slicer: segment a case, compare the mask with that
of ``attunet3d segment``, save a corrected label, train on it, segment again with the new weights, ask for the next
case. Needs ``make label``.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import requests

MODEL = "pancreas_ct_attunet3d_segmentation"
PATIENCE = 1800.0  # timeout of requests and of the server's start, s; generous for slow machines


class Client:
    """The part of MONAI Label's REST interface that viewers use."""

    def __init__(self, url: str, process: subprocess.Popen[bytes] | None = None) -> None:
        self.url = url.rstrip("/")  # with the token, as printed by `attunet3d label`
        self.process = process  # of the server, if it was started here

    def ask(self, method: str, path: str, timeout: float = PATIENCE, **how: Any) -> requests.Response:
        """Send a request; raises requests.HTTPError with the server's reason if it fails."""
        answer = requests.request(method, self.url + path, timeout=timeout, **how)
        if not answer.ok:
            raise requests.HTTPError(f"{method} {path}: {answer.status_code} {answer.text[:1000]}", response=answer)
        return answer

    def info(self) -> dict[str, Any]:
        """Return what the server offers: models, trainers, strategies, and the number of cases and of labels."""
        return self.ask("GET", "/info/").json()

    def infer(self, image: str, path: Path) -> Path:
        """Segment a case and save the mask as NIfTI."""
        answer = self.ask("POST", f"/infer/{MODEL}", params={"image": image, "output": "image"})
        path.write_bytes(answer.content)
        return path

    def save_label(self, image: str, label: Path) -> None:
        """Save a finished label of a case."""
        info = '{"label_info": [{"name": "pancreas"}]}'
        with label.open("rb") as file:
            self.ask("PUT", "/datastore/label", params={"image": image}, data={"params": info}, files={"label": file})

    def train(self, **settings: Any) -> dict[str, Any]:
        """Train on the saved labels and wait; returns the task with its status and the end of its log."""
        self.ask("POST", f"/train/{MODEL}", json=settings)
        while True:
            task = self.ask("GET", "/train/").json()
            if task["status"] not in ("SUBMITTED", "RUNNING"):
                return task
            time.sleep(0.5)

    def next_sample(self, strategy: str) -> dict[str, Any]:
        """Return the case to label next; empty if all are labelled."""
        return self.ask("POST", f"/activelearning/{strategy}", json={}).json()

    def score(self) -> dict[str, Any]:
        """Score all unlabelled cases; waits for a scoring that is already running."""
        while True:
            answer = requests.post(f"{self.url}/scoring/{MODEL}", params={"run_sync": True}, timeout=PATIENCE)
            if answer.status_code != 429:
                answer.raise_for_status()
                return answer.json()
            time.sleep(0.5)


@contextlib.contextmanager
def free_port() -> Iterator[int]:
    """Reserve a free port, on which a program that sets SO_REUSEADDR can listen."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        if sys.platform != "linux":  # elsewhere it could not
            held.close()
        yield port


@contextlib.contextmanager
def server(studies: str | Path, app: Path, *options: str) -> Iterator[Client]:
    """Run ``attunet3d label`` on a free port; it is stopped with its child processes."""
    log = app.with_suffix(".log")
    with free_port() as port, log.open("w") as file:
        command = [sys.executable, "-m", "attunet3d", "label", str(studies), "--app", str(app), "--port", str(port)]
        token = secrets.token_urlsafe(32)
        environment = {**os.environ, "ATTUNET3D_LABEL_TOKEN": token}
        # Its own process group: training runs in a child of the server.
        process = subprocess.Popen(
            [*command, *options], env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            client = Client(f"http://127.0.0.1:{port}/{token}/", process)
            give_up = time.monotonic() + PATIENCE
            while True:
                try:
                    client.info()
                    break
                except requests.ConnectionError:
                    if process.poll() is not None or time.monotonic() > give_up:
                        raise RuntimeError(f"the server did not start:\n{log.read_text()[-4000:]}") from None
                    time.sleep(0.2)
            yield client
        finally:
            _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Stop a process and its children."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def attunet3d(*arguments: object) -> None:
    """Run the command line."""
    subprocess.run([sys.executable, "-m", "attunet3d", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


def differing_voxels(a: Path, b: Path) -> int:
    """Count the voxels that differ between two masks on the same grid."""
    first, second = nib.load(a), nib.load(b)
    if first.shape != second.shape or not np.allclose(first.affine, second.affine, atol=1e-4):
        raise ValueError(f"{a} and {b} are on different grids")
    return int((np.asarray(first.dataobj) != np.asarray(second.dataobj)).sum())


def main() -> None:
    """Run the loop and print the result of each step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="folder for all files; default: a temporary one")
    parser.add_argument("--epochs", type=int, default=2, help="number of training epochs")
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        work = arguments.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        loop(work, arguments.epochs)


def loop(work: Path, epochs: int) -> None:
    """Make phantoms in ``work``, start the server, and act as an annotator."""
    attunet3d("phantom", work / "phantoms", "--cases", 3, "--spacing", 3, 3, 3)
    studies, labels, app = work / "phantoms" / "imagesTr", work / "phantoms" / "labelsTr", work / "app"
    case = "phantom_0000"
    with server(studies, app, "--epistemic", "--set", "patch_size=[64,64,64]") as client:  # small, to be fast
        print("models:", ", ".join(client.info()["models"]))
        start = time.monotonic()
        mask = client.infer(case, work / "server.nii.gz")
        print(f"segmented {case} in {time.monotonic() - start:.1f} s")
        attunet3d("segment", studies / f"{case}.nii.gz", "-o", work / "masks")
        print(
            "voxels different from `attunet3d segment`:",
            differing_voxels(mask, work / "masks" / f"{case}_seg.nii.gz"),
        )
        client.save_label(case, labels / f"{case}.nii.gz")
        print("label saved; labelled cases:", client.info()["datastore"]["completed"])
        start = time.monotonic()
        task = client.train(max_epochs=epochs, device="cpu", val_split=0)
        print(f"training: {task['status']} in {time.monotonic() - start:.1f} s")
        after = client.infer(case, work / "after.nii.gz")
        print("voxels changed by the new weights:", differing_voxels(mask, after))
        weights = app / "model" / MODEL / "models" / "model.pt"
        attunet3d("segment", studies / f"{case}.nii.gz", "-o", work / "masks_after", "--checkpoint", weights)
        mask = work / "masks_after" / f"{case}_seg.nii.gz"
        print("voxels different from `attunet3d segment` with the new weights:", differing_voxels(after, mask))
        client.score()
        for strategy in ("random", "epistemic"):
            sample = client.next_sample(strategy)
            print(f"next case ({strategy}): {sample['id']}, uncertainty {sample['epistemic_entropy']:.3g}")
        found = client.ask("POST", f"/batch/infer/{MODEL}", params={"images": "unlabeled", "run_sync": True}).json()
        print("batch inference:", ", ".join(sorted(found)))


if __name__ == "__main__":
    main()
