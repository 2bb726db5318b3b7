"""Damaged calls of the label server: whatever comes, it answers with a reason, stays in its folders, and stays up."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from fuzz_mutations import Rng, any_of, damaged_bytes
from fuzz_plan import Outcome, kind_of, rng_of
from fuzz_values import COMMAND, TEXTS, damaged_value, json_text, nasty

ROOT = Path(__file__).resolve().parents[2]
CANARY = "a file that is none of the server's"
MODEL = "pancreas_ct_attunet3d_segmentation"
PATIENCE = 3.0  # seconds until what was sent is said to be all
SECONDS = 300.0  # for an answer: slow is not hung
_BOUNDARY = "----fuzz"
_HOST, _TOKEN = "@HOST@", "/@TOKEN@"  # of the server that is asked: put in when a call is sent


@dataclass(frozen=True)
class Call:
    """A call of the server, whose parts may hold anything."""

    method: str
    path: str
    query: dict[str, str] = field(default_factory=dict)
    body: Any = None  # for JSON
    parts: dict[str, tuple[str, bytes]] | None = None  # of a form: file name, or "", and content
    headers: dict[str, str] = field(default_factory=dict)


_LABEL = {"label_info": [{"name": "pancreas", "idx": 1}]}
_TRAIN = {"model": MODEL, "max_epochs": 1, "device": "cpu", "val_split": 0.2, "pretrained": True, "train_batch_size": 1}
CALLS = {
    "rest info": [
        Call("GET", "/info/"),
        Call("GET", "/datastore/", {"output": "all"}),
        Call("GET", "/logs/", {"lines": "9"}),
    ],
    "rest images": [
        Call("GET", "/datastore/image", {"image": "ct0"}),
        Call("GET", "/datastore/image/info", {"image": "ct0"}),
        Call(
            "PUT", "/datastore/image", {"image": "new"}, parts={"file": ("new.nii.gz", b"none"), "params": ("", b"{}")}
        ),
        Call("PUT", "/datastore/image/info", {"image": "ct0"}, body={"note": "x"}),
        Call("DELETE", "/datastore", {"id": "ct0"}),
    ],
    "rest labels": [
        Call("GET", "/datastore/label", {"label": "ct0", "tag": "final"}),
        Call("GET", "/datastore/label/info", {"label": "ct0", "tag": "final"}),
        Call(
            "PUT",
            "/datastore/label",
            {"image": "ct0", "label_id": "", "tag": "final"},
            parts={"params": ("", json.dumps(_LABEL).encode()), "label": ("ct0.nii.gz", b"none")},
        ),
        Call("DELETE", "/datastore/label", {"id": "ct0", "tag": "final"}),
    ],
    "rest inference": [
        Call("POST", f"/infer/{MODEL}", {"image": "ct0", "output": "json", "session_id": ""}),
        Call("POST", f"/infer/{MODEL}", {"image": "ct0"}, parts={"params": ("", b'{"device": "cpu"}')}),
        Call("POST", f"/infer/{MODEL}", {"output": "image"}, parts={"file": ("ct.nii.gz", b"none")}),
        Call("POST", f"/batch/infer/{MODEL}", {"images": "unlabeled", "run_sync": "false"}, body={"max_batch_size": 1}),
        Call("GET", f"/batch/infer/{MODEL}", {"all": "false"}),
    ],
    "rest training": [
        Call("POST", f"/train/{MODEL}", {"run_sync": "false", "enqueue": "false"}, body=_TRAIN),
        Call("GET", "/train/", {"all": "false"}),
        Call("POST", "/activelearning/random", body={"client_id": "x"}),
        Call("POST", f"/scoring/{MODEL}", {"run_sync": "false"}, body={"device": "cpu"}),
    ],
    "rest others": [
        Call("GET", f"/model/{MODEL}"),
        Call("GET", f"/model/info/{MODEL}"),
        Call("PUT", f"/model/{MODEL}", parts={"file": ("model.pt", b"none"), "info": ("", b"{}")}),
        Call("PUT", "/session/", {"uncompress": "false", "expiry": "9"}, parts={"files": ("ct.nii.gz", b"none")}),
        Call("GET", "/session/x", {"image": "true"}),
        Call("GET", "/proxy/dicom/wado/instances/1"),
        Call("GET", "/ohif/index.html"),
        Call("POST", "/auth/token", parts={"username": ("", b"x"), "password": ("", b"x")}),
    ],
}


def call_bytes(rng: Rng, call: Call) -> bytes:
    """A damaged call as it goes over the wire, its own address apart."""
    for _ in range(int(any_of(rng, [1, 1, 2]))):
        call = _damaged(rng, call)
    head, body = _written(call)
    how = int(rng.integers(12))
    if how == 0:
        head, body = damaged_bytes(rng, bytearray(head)), body
    elif how == 1:
        body = damaged_bytes(rng, bytearray(body))
    elif how == 2:
        sizes = ["-1", "0", "99999999999999999999", "1", "x", "+5", "5, 6", "0x10"]
        head = re.sub(rb"Content-Length: \d*", b"Content-Length: " + str(any_of(rng, sizes)).encode(), head)
    elif how == 3:
        head = re.sub(rb"Content-Length: \d*", b"Transfer-Encoding: chunked", head)
        size = any_of(rng, [b"%x" % len(body), b"ffffffffffffffff", b"-1", b"g", b"0", b"1;" + b"x" * 9000, b"\0"])
        body = size + b"\r\n" + body + any_of(rng, [b"\r\n0\r\n\r\n", b"", b"\r\n0\r\nX: y\r\n"])
    return head + b"\r\n" + body


def _damaged(rng: Rng, call: Call) -> Call:
    """One part of it changed."""
    how = int(rng.integers(7))
    if how < 2 and call.query:
        query = dict(call.query)
        key = any_of(rng, list(query))
        query[key] = any_of(rng, [*_PLACES, *TEXTS, str(nasty(rng))[:3000]])
        return replace(call, query=query)
    if how == 2:
        query = {
            **call.query,
            any_of(rng, ["image", "tag", "model", "params", "label_id", "x\0"]): any_of(rng, _PLACES),
        }
        return replace(call, query=query)
    if how == 3:
        pieces = call.path.split("/")
        pieces[int(rng.integers(1, len(pieces)))] = any_of(rng, [*_PLACES, *TEXTS])[:3000]
        return replace(call, path="/".join(pieces))
    if how == 4 and call.parts is not None:
        return replace(call, parts=_damaged_parts(rng, call.parts))
    if how == 5:
        name = any_of(rng, ["Host", "Content-Type", "X-Forwarded-For", "Range", "Cookie", "Accept-Encoding", "Origin"])
        word = any_of(rng, [*_PLACES, "x" * 70_000, "bytes=0-99999999999", "multipart/form-data", "evil.example", "*"])
        return replace(call, headers={**call.headers, name: word})
    if call.body is not None:
        return replace(call, body=damaged_value(rng, call.body))
    methods = ["GET", "PUT", "POST", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "FUZZ"]
    return replace(call, method=any_of(rng, methods), body=any_of(rng, [None, nasty(rng)]))


_PLACES = [
    *("../outside/secret", "../../outside/secret.nii.gz", "..%2foutside%2fsecret", "..\\outside\\secret", "ct0/../ct1"),
    *("/etc/passwd", "file:///etc/passwd", "ct0\0", "ct0;x", "ct0\r\nX: y", "labels/final/../../../../outside/secret"),
    *(f"$__import__('os').system('{COMMAND}')", "http://127.0.0.1:9/", "@config", "%model", "SECRET", "{}", "[]"),
]


def _damaged_parts(rng: Rng, parts: dict[str, tuple[str, bytes]]) -> dict[str, tuple[str, bytes]]:
    parts = dict(parts)
    name = any_of(rng, list(parts))
    file_name, content = parts[name]
    how = int(rng.integers(4))
    if how == 0 or (file_name and how == 1):
        parts[name] = any_of(rng, [*_PLACES, "x" * 3000, 'a"b', "a.py", "ct0.nii.gz"]), content
    elif how == 2:
        parts[any_of(rng, ["params", "file", "label", "../x", "x\0"])] = parts.pop(name)
    else:
        values = [_LABEL, _TRAIN, {"image": any_of(rng, _PLACES)}, nasty(rng)]
        parts[name] = file_name, json_text(rng, damaged_value(rng, any_of(rng, values))).encode(errors="replace")
    return parts


def _written(call: Call) -> tuple[bytes, bytes]:
    """The lines of its head, and its body."""
    query = "&".join(f"{quote(key)}={quote(value.encode(errors='replace'))}" for key, value in call.query.items())
    body, headers = b"", {"Host": _HOST, "Connection": "close"}
    if call.parts is not None:
        for name, (file_name, content) in call.parts.items():
            disposition = f'form-data; name="{name}"' + (f'; filename="{file_name}"' if file_name else "")
            body += (
                f"--{_BOUNDARY}\r\nContent-Disposition: {disposition}\r\n\r\n".encode(errors="replace")
                + content
                + b"\r\n"
            )
        body += f"--{_BOUNDARY}--\r\n".encode()
        headers["Content-Type"] = f"multipart/form-data; boundary={_BOUNDARY}"
    elif call.body is not None:
        body = json.dumps(call.body).encode() if not isinstance(call.body, str) else call.body.encode(errors="replace")
        headers["Content-Type"] = "application/json"
    headers |= {"Content-Length": str(len(body)), **call.headers}
    path = quote(call.path.encode(errors="replace"), safe="/%:;@$")
    lines = [
        f"{call.method} {_TOKEN}{path}{'?' + query if query else ''} HTTP/1.1",
        *(f"{k}: {v}" for k, v in headers.items()),
    ]
    return "".join(f"{line}\r\n" for line in lines).encode("utf-8", "replace"), body


class Server:
    """The real server on phantoms, watched from inside; beside its folders lies what it must not touch."""

    def __init__(self, folder: Path) -> None:
        self.studies, self.app, self.outside = folder / "studies", folder / "app", folder / "outside"
        self.here, self.log = folder / "here", folder / "seen"
        self._originals = folder / "originals"
        for place in (self.studies, self.outside, self.here, folder / "tmp", folder / "home"):
            place.mkdir(parents=True)
        _write_cts(self._originals)
        shutil.copytree(self._originals, self.studies, dirs_exist_ok=True)
        (self.outside / "secret").write_text(CANARY)
        shutil.copy(self.outside / "secret", self.outside / "secret.nii.gz")
        self.log.touch()
        allowed = [
            self.studies,
            self.app,
            self.app.with_suffix(".log"),
            folder / "tmp",
            folder / "home",
            Path("/dev/shm"),
        ]
        os.environ |= {
            "FUZZ_LOG": str(self.log),
            "FUZZ_ALLOWED": os.pathsep.join(map(os.path.realpath, allowed)),
            "FUZZ_SECRET": os.path.realpath(self.outside),
            "PYTHONPATH": os.pathsep.join(
                map(str, (ROOT / "tests" / "fuzz" / "in_server", ROOT / "tests" / "fuzz", ROOT))
            ),
            "PYTHONDONTWRITEBYTECODE": "1",
            "TMPDIR": str(folder / "tmp"),
            "HOME": str(folder / "home"),
        }
        os.chdir(self.here)

    @contextmanager
    def running(self) -> Iterator[Server]:
        """Until the block ends."""
        import torch
        from conftest import TINY
        from label_loop import server

        from attunet3d import AttentionUNet

        torch.manual_seed(3)
        weights = self.app.parent / "model.pt"
        torch.save(AttentionUNet(channels=TINY["channels"]).state_dict(), weights)
        values = {**TINY, "scales": [1.0], "threshold": 0.5}
        words = [word for name, value in values.items() for word in ("--set", f"{name}={value}")]
        with server(self.studies, self.app, "--checkpoint", str(weights), *words) as client:
            self._url = urlsplit(client.url)
            self._seen = len(self.log.read_text())
            yield self

    def judge(self, call: bytes) -> tuple[str, str]:
        """Send a call: "good" or the status it is refused with, and what is wrong with that, if anything is."""
        wrong = []
        answer = self._answer(call)
        head, _, body = answer.partition(b"\r\n\r\n")
        status = head.split(b" ")[1].decode(errors="replace") if head.startswith(b"HTTP/") else ""
        outcome = "good" if status[:1] in "123" and status else f"HTTP {status}" if status else "closed"
        if status[:1] == "5" and not _states_reason(body):
            wrong.append(f"{outcome} without a reason: {body[:300]!r}")
        if CANARY.encode() in answer or b"root:x:0" in answer:
            wrong.append("gives a file that is none of its own")
        if b"Traceback (most" in body and b"/logs" not in call.split(b"\r\n")[0]:
            wrong.append(f"shows a traceback: {body[-300:]!r}")
        if b"/train" in call[:30] and outcome == "good":
            self._answer(_sound("DELETE", "/train/"))
        if not self._answer(_sound("GET", "/info/")).startswith(b"HTTP/1.1 200"):
            wrong.append("does not answer /info/ any more")
        seen = self.log.read_text()
        wrong += [f"does {what}" for what in seen[self._seen :].splitlines()]
        self._seen = len(seen)
        wrong += [f"writes {path.name!r}" for path in self.here.iterdir()]
        self._restore()
        if wrong:
            wrong.append(f"the call: {call[:600]!r}")
        return outcome, "; ".join(wrong)

    def _answer(self, call: bytes) -> bytes:
        found = b""
        call = call.replace(_HOST.encode(), self._url.netloc.encode())
        call = call.replace(_TOKEN.encode(), self._url.path.rstrip("/").encode())
        with socket.create_connection((self._url.hostname or "", self._url.port or 0), timeout=PATIENCE) as connection:
            try:
                connection.sendall(call)
                found = connection.recv(1)
            except TimeoutError:  # it may wait for the rest of a body that was cut off
                connection.shutdown(socket.SHUT_WR)
            except OSError:  # it has read enough
                return b""
            connection.settimeout(SECONDS)
            with suppress(ConnectionError):
                while block := connection.recv(1 << 16):
                    found += block
        return found

    def _restore(self) -> None:
        for path in self._originals.iterdir():
            if not (self.studies / path.name).is_file():
                shutil.copy(path, self.studies)
        for path in self.here.iterdir():
            path.unlink()


def _sound(method: str, path: str) -> bytes:
    head, body = _written(Call(method, path))
    return head + b"\r\n" + body


def _states_reason(body: bytes) -> bool:
    try:
        detail = json.loads(body)["detail"]
    except (ValueError, KeyError, TypeError):
        return False
    return bool(detail) and detail != "Internal Server Error"


def _write_cts(folder: Path) -> None:
    import nibabel as nib
    import numpy as np
    from dicom_files import phantom

    folder.mkdir()
    for number in range(3):
        image = nib.Nifti1Image(phantom((14, 12, 10)), np.diag([3.0, 3.0, 3.0, 1.0]))
        nib.save(image, folder / f"ct{number}.nii.gz")


def work(seed: int, scratch: Path) -> None:
    """A process with a server: case numbers on stdin, what became of them as JSON lines on what was stdout."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.path.insert(0, str(ROOT / "examples"))
    kinds = {"rest": list(CALLS)}
    with Server(scratch / "sound").running() as running:
        print(json.dumps(kinds), file=answers, flush=True)
        for line in sys.stdin:
            case = int(line)
            _, kind = kind_of(case, kinds)
            start = time.perf_counter()
            try:
                rng = rng_of(seed, case)
                outcome, failure = running.judge(call_bytes(rng, any_of(rng, CALLS[kind])))
            except Exception:
                outcome, failure = "check failed", traceback.format_exc()
            found = Outcome(case, kind, outcome, failure, round(time.perf_counter() - start, 3))
            print(json.dumps(vars(found)), file=answers, flush=True)
