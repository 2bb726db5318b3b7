"""What the documentation says is there, is there."""

import re

import pytest
from conftest import ROOT

TESTS = {path: path.read_text(encoding="utf-8") for path in sorted((ROOT / "tests").rglob("test_*.py"))}
NAMED = sorted(
    {
        name
        for page in (ROOT / "docs").glob("*.md")
        for name in re.findall(r"`(test_\w+(?:\[[^`]+\])?)`", page.read_text())
    }
)


@pytest.mark.parametrize("name", NAMED)
def test_every_test_that_is_named_exists(name):
    function, _, case = name.partition("[")
    text = "".join(text for text in TESTS.values() if f"def {function}(" in text)
    assert text, f"no test {function}"
    assert not case or f'"{case[:-1]}"' in text, f"{function} has no case {case[:-1]}"


def test_links_between_pages_and_files_lead_somewhere():
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
            assert "://" in target or (page.parent / target).exists(), f"{page.name}: {target}"
