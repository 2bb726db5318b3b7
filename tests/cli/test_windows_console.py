"""What the command line meets on Windows, pretended."""

from __future__ import annotations

import errno
import io
import sys

import pytest

from attunet3d.cli import options
from attunet3d.cli.app import app
from attunet3d.errors import OutputError


class Closed(io.StringIO):
    """A stdout whose reader has gone away, as Windows says it."""

    encoding = "cp1252"

    def write(self, text: str) -> int:
        raise OSError(errno.EINVAL, "Invalid argument")


def test_a_reader_that_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Closed())
    with pytest.raises(OutputError, match=r"stdout: cannot be written \(Invalid argument\)"), options.products() as out:
        out("a")
    monkeypatch.setattr(options.sys, "platform", "win32")
    with pytest.raises(BrokenPipeError), options.products() as out:
        out("a")


@pytest.mark.parametrize("encoding", ["cp1252", "cp437"])
def test_products_in_the_encoding_of_a_console(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding, newline="\n"))
    with options.products() as out:
        out("C:\\CTs\\Bauchspeicheldrüse_膵臓.nii.gz")
    text = written.getvalue().decode(encoding)
    assert text == "C:\\CTs\\Bauchspeicheldrüse_\\u81b5\\u81d3.nii.gz\n"


@pytest.mark.parametrize("verb", ["segment", "segment-many", "prepare"])
def test_help_in_the_encoding_of_a_console(monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="cp1252", errors="strict"))
    app([verb, "--help"], standalone_mode=False)
    sys.stdout.flush()
    assert b"--help" in written.getvalue()
