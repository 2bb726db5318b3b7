"""Printed names cannot control the terminal, break a line, or pass for a line of ours."""

from __future__ import annotations

import ast
import io
import json
import logging
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, cast

import pytest
from conftest import ROOT

from attunet3d.cli.options import products
from attunet3d.console import _Format, make_bar, say_above
from attunet3d.io.json_text import json_text
from attunet3d.io.printable import ForeignText, one_line, own, printable, say, shortened

# Line breaks, escapes, C1 controls, DEL, marks of direction, no width, the end of a line or paragraph, no text.
EVIL = "a\n\r\t\0\x1b[31m\x07\x7f\x80\x9b2J\x85\u200b\u200d\u202e\u2028\u2029\u2066\ufeff\u00ad\udcffz"
FORGED = "ct\nerror: forged"
# The places that print; and two that answer their parent process, in pipes.
PRINTS = {"cli/__init__.py", "cli/options.py", "io/printable.py", "console.py"}
ANSWERS = {"benchmarks/stock_pipeline.py", "benchmarks/training.py"}


def test_nothing_prints_but_the_places_that_make_it_printable() -> None:
    found = {}
    for path in sorted((ROOT / "attunet3d").rglob("*.py")):
        calls = [node for node in ast.walk(ast.parse(path.read_bytes())) if isinstance(node, ast.Call)]
        printing = [ast.unparse(call.func) for call in calls if _prints(call.func)]
        if printing:
            found[path.relative_to(ROOT / "attunet3d").as_posix()] = printing
    assert found.keys() == PRINTS | ANSWERS, found


def _prints(function: ast.expr) -> bool:
    *_, last = text = ast.unparse(function).split(".")
    if last in ("print", "echo", "secho", "StreamHandler", "basicConfig", "Console", "print_exc", "print_exception"):
        return True
    return text[:-1] in (["sys", "stdout"], ["sys", "stderr"]) and last in ("write", "writelines")


def test_control_characters_are_escaped() -> None:
    assert printable(EVIL).isascii()
    assert printable("\n\x1b\x9b\u202e\udcff") == r"\n\x1b\x9b\u202e\udcff"
    assert printable("a\u3164b\u034f") == r"a\u3164b\u034f"
    same = "Kasus 7 Köln 山田 Größe 9:41\u202fAM a\u3000b [red] \\n 🫀"
    assert printable(same) == same
    assert one_line(EVIL).isprintable()
    assert one_line("a  b\n  in line 1") == "a b in line 1"
    assert shortened("x" * 30, 10) == "xxxxx … xxxxx"


def test_json_is_exact_and_printable() -> None:
    text = json_text({EVIL: [EVIL]})
    assert text.isprintable()
    assert json.loads(text) == {EVIL: [EVIL]}
    with pytest.raises(ValueError, match="JSON compliant"):
        json_text(float("nan"))


def test_output_of_others_is_indented() -> None:
    arrived = io.StringIO()
    with redirect_stderr(cast("Any", ForeignText(arrived))):
        for part in ("half", " a line", "\nerror: for", "ged\n", "\n", "\x1b[2J"):
            print(part, end="", file=sys.stderr)
        sys.stderr.writelines(["\nerror: forged\n"])
        say(FORGED)
    assert arrived.getvalue() == ("  half a line\n  error: forged\n\n  \\x1b[2J\n  error: forged\nct\\nerror: forged\n")


def test_warnings_and_tracebacks_of_python() -> None:
    arrived = io.StringIO()
    error = ValueError(f"{EVIL}\nerror: forged")
    with redirect_stderr(cast("Any", ForeignText(arrived))):
        print(warnings.formatwarning(str(error), UserWarning, "a.py", 1), file=sys.stderr)
        sys.excepthook(ValueError, error, None)
    text = arrived.getvalue()
    _is_clean(text)
    assert text.count("\n  error: forged") == 2


def test_records_of_the_log() -> None:
    try:
        raise ValueError(f"{EVIL}\nerror: forged")
    except ValueError:
        found = sys.exc_info()
    record = logging.LogRecord("x", logging.INFO, "a.py", 1, "%s", (f"{EVIL}\nerror: forged",), found, sinfo=FORGED)
    text = _Format("%(levelname)s %(message)s").format(record)
    _is_clean(text)
    first, *below = text.split("\n")
    assert first.startswith("INFO a")
    assert all(line.startswith("  ") for line in below)


def _is_clean(text: str) -> None:
    assert all(line.isprintable() for line in text.split("\n"))
    assert not [line for line in text.split("\n") if line.startswith("error: forged")]


def test_products(capsys: pytest.CaptureFixture[str]) -> None:
    with products() as product:
        product(Path("masks/Köln 山田_seg.nii.gz"))
        product("two\nlines")
        product(Path(f"{FORGED}\x1b"))  # none comes so far, see refuse_unprintable
    stdout, stderr = capsys.readouterr()
    assert stdout == "masks/Köln 山田_seg.nii.gz\ntwo\nlines\nct\\nerror: forged\\x1b\n"
    assert stderr == ""


def test_a_product_in_a_locale_that_lacks_its_characters() -> None:
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    with redirect_stdout(stdout), products() as product:
        product(Path("Köln_seg.nii.gz"))
    assert cast("io.BytesIO", stdout.buffer).getvalue() == b"K\\xf6ln_seg.nii.gz\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "400")
    return Terminal()


MARKUP = "[red]x[/red][/] :pill: \x1b]0;title\x07 \x9b2J\u202e"
SHOWN = "[red]x[/red][/] :pill: \\x1b]0;title\\x07 \\x9b2J\\u202e"


def test_a_bar_on_a_terminal_takes_no_markup(terminal: Terminal) -> None:
    with redirect_stderr(cast("Any", ForeignText(terminal))), redirect_stdout(sys.stderr):
        bar, console = make_bar()
        with bar:
            bar.add_task(MARKUP)
            bar.refresh()
            shown = terminal.getvalue()
            assert SHOWN in shown
            say_above(console, f"a {MARKUP}")
            print(f"b {MARKUP}")
            print(f"c {MARKUP}", end="", flush=True, file=sys.stderr)
            print(file=sys.stderr)
            say(f"d {MARKUP}")
        assert own(sys.stderr) is terminal
    shown = terminal.getvalue()
    assert [f"{start} {SHOWN}" in shown for start in ("a", "  b", "  c", "d")] == [True] * 4
    for raw in ("\x1b]0", "\x07", "\x9b", "\u202e", "💊"):
        assert raw not in shown
