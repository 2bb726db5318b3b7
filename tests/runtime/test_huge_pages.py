"""Huge pages are asked for where the system has them, before torch looks, and never against the user's word."""

from __future__ import annotations

import io
import os
import sys

import pytest

from attunet3d.runtime import huge_pages

NAME = "THP_MEM_ALLOC_ENABLE"


@pytest.mark.parametrize(
    ("system", "torch_is_there", "before", "after"),
    [
        ("always [madvise] never", False, None, "1"),
        ("[always] madvise never", False, None, "1"),
        ("always madvise [never]", False, None, None),
        (None, False, None, None),  # not Linux
        ("always [madvise] never", False, "0", "0"),
        ("always [madvise] never", True, None, None),  # too late: torch would not, what we do with memory would
    ],
)
def test_huge_pages_are_asked_for_where_they_can_be_had(
    monkeypatch: pytest.MonkeyPatch, system: str | None, torch_is_there: bool, before: str | None, after: str | None
) -> None:
    def fake_open(path: str, **_: object) -> io.StringIO:
        assert path == "/sys/kernel/mm/transparent_hugepage/enabled"
        if system is None:
            raise FileNotFoundError(path)
        return io.StringIO(system)

    monkeypatch.setattr(huge_pages, "open", fake_open, raising=False)
    monkeypatch.setenv(NAME, before or "")  # so that it is restored
    if before is None:
        monkeypatch.delenv(NAME)
    if torch_is_there:
        monkeypatch.setitem(sys.modules, "torch", sys)
    else:
        monkeypatch.delitem(sys.modules, "torch", raising=False)
    huge_pages.ask_for_huge_pages()
    assert os.environ.get(NAME) == after
