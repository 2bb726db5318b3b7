"""Requests in the form of 3D Slicer's MONAILabel extension: http.client, the path of the URL kept, forms of its own."""

from __future__ import annotations

import http.client
import json
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

from conftest import HANG

LIMIT = "----------lImIt_of_THE_fIle_eW_$"


class Slicer:
    """The extension with that text in its field *MONAI Label server*."""

    def __init__(self, url: str) -> None:
        self.url = urlsplit(url.rstrip("/"))

    def ask(self, method: str, path: str, body: bytes | None = None, kind: str = "") -> tuple[int, str, bytes]:
        """Status, content type and content of the answer."""
        headers = {} if body is None else {"content-type": kind, "content-length": str(len(body))}
        with closing(http.client.HTTPConnection(str(self.url.hostname), self.url.port, timeout=HANG)) as connection:
            connection.request(method, self.url.path + path, body=body, headers=headers)
            with connection.getresponse() as answer:
                return answer.status, answer.getheader("content-type") or "", answer.read()

    def send(self, method: str, path: str, params: dict[str, Any]) -> tuple[int, str, bytes]:
        """With JSON."""
        return self.ask(method, path, json.dumps(params).encode(), "application/json")

    def send_form(
        self, method: str, path: str, params: dict[str, Any], name: str = "", file: str = "", content: bytes = b""
    ) -> tuple[int, str, bytes]:
        """With a form; the name of a file is its whole path on the machine of Slicer."""
        parts = [f'--{LIMIT}\r\nContent-Disposition: form-data; name="params"\r\n\r\n{json.dumps(params)}\r\n'.encode()]
        if name:
            head = f'--{LIMIT}\r\nContent-Disposition: form-data; name="{name}"; filename="{file}"\r\n'
            parts += [head.encode(), b"Content-Type: application/octet-stream\r\n\r\n", content, b"\r\n"]
        body = b"".join([*parts, f"--{LIMIT}--\r\n".encode()])
        return self.ask(method, path, body, f"multipart/form-data; boundary={LIMIT}")
