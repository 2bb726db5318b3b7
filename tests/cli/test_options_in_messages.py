"""The library names Python arguments; the command line adds the options of the verb that runs."""

from __future__ import annotations

import ast
import pickle
import re
from collections import ChainMap
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer.main
from conftest import ROOT, Run
from dicom_files import edit, write_series

from attunet3d.cli.app import app
from attunet3d.cli.verbs import Verb, with_options
from attunet3d.config.files import CONFIG_FILES, defines
from attunet3d.errors import AttUNet3dError, ConfigError, GeometryError, Notice, only_own_error, own_error

PACKAGE = ROOT / "attunet3d"
FLAG = re.compile(r"(?<![\w-])--[a-z*]")
# Options of other programs: of MONAI's and pip in messages, and commands that are run.
OTHERS = {
    "config/changes.py": 1,
    "label/folder.py": 1,
    "label/server.py": 5,
    "benchmarks/inference.py": 7,
}


def verbs() -> dict[str, Any]:
    def below(name: str, command: Any) -> dict[str, Any]:
        if not hasattr(command, "commands"):
            return {name: command}
        inner = [below(f"{name} {key}".strip(), verb) for key, verb in command.commands.items()]
        return dict(ChainMap(*inner))

    return below("", typer.main.get_command(app))


def texts(tree: ast.AST) -> list[str]:
    """The strings of a module but its docstrings, with "*" for each value in an f-string."""
    skipped = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            found.append("".join(part.value if isinstance(part, ast.Constant) else "*" for part in node.values))
            skipped |= {id(part) for part in node.values}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
            found.append(node.value)
    return found


@cache
def trees() -> dict[str, ast.AST]:
    paths = {path.relative_to(PACKAGE).as_posix(): path for path in PACKAGE.rglob("*.py")}
    return {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in paths.items()}


def test_no_text_outside_the_command_line_holds_an_option() -> None:
    found: dict[str, list[str]] = {}
    for name, tree in trees().items():
        if not name.startswith("cli/"):
            with_flags = [text for text in texts(tree) if FLAG.search(text)]
            if len(with_flags) != OTHERS.get(name, 0):
                found[name] = with_flags
    assert not found
    assert texts(ast.parse('f"say which with --{name}-label"')) == ["say which with --*-label"]


def test_every_argument_that_an_error_names_is_an_option_or_an_id() -> None:
    """Else a parameter of the command line has been renamed, or the name is misspelled."""
    options = {option.name for verb in verbs().values() for option in verb.params}
    names = {
        part.value
        for tree in trees().values()
        for node in ast.walk(tree)
        if isinstance(node, ast.keyword) and node.arg == "arguments"
        for part in ast.walk(node.value)
        if isinstance(part, ast.Constant)
    }
    assert len(names) > 10
    assert not [name for name in names - options if not any(defines(mode, name) for mode in CONFIG_FILES)]


def test_every_command_adds_its_options() -> None:
    assert len(verbs()) > 10
    assert all(type(verb) is Verb for verb in verbs().values())


@pytest.mark.parametrize(
    ("verb", "arguments", "added"),
    [
        ("segment", ("allow_uneven",), " (--allow-uneven)"),
        ("segment", ("series_uid", "segmentable_series"), " (--series, --all-series)"),
        ("segment", ("output_format", "allow_code"), " (--format, --allow-code)"),
        ("segment", ("case_minutes",), ""),
        ("segment", ("overlap",), " (--set overlap=...)"),
        ("segment", ("learning_rate",), ""),  # of training alone
        ("segment", ("cts",), ""),  # no option
        ("segment-many", ("memory_gb", "cpus_per_worker"), " (--memory, --num-cpus-per-worker)"),
        ("inspect", ("allow_uneven", "overlap"), ""),
        (
            "train",
            ("learning_rate", "precision", "resume"),
            " (--set learning_rate=..., --set precision=..., --resume)",
        ),
        ("train", ("allow_uneven",), ""),  # of inference alone
        ("evaluate", ("validate_on_training",), " (--set validate_on_training=...)"),
        ("prepare pairs", ("images", "pancreas_labels"), " (--images, --pancreas-label)"),
        ("label", ("allow_hosts", "port"), " (--allow-host, --port)"),
    ],
)
def test_the_options_of_a_verb_for_arguments(verb: str, arguments: tuple[str, ...], added: str) -> None:
    for said in (GeometryError("it is so", arguments=arguments), Notice("it is so", arguments)):
        assert with_options(said, verbs()[verb]) == f"it is so{added}"


def wrapped(message: str) -> ConfigError:
    """As the library wraps an error to say which CT it is about."""
    found = ConfigError(message.format("uneven"))
    found.__context__ = GeometryError("uneven", arguments=("allow_uneven",))  # as `from None` leaves it
    return found


def test_an_error_that_quotes_another_has_its_options() -> None:
    segment = verbs()["segment"]
    assert with_options(wrapped("a.nii.gz: {}"), segment) == "a.nii.gz: uneven (--allow-uneven)"
    assert with_options(wrapped("of something else"), segment) == "of something else"
    assert with_options("a text", segment) == "a text"


def test_arguments_survive_pickling_and_wrapping_by_others() -> None:
    error = GeometryError("uneven", arguments=("allow_uneven",))
    for same in (pickle.loads(pickle.dumps(error)), own_error(_caused(error))):  # noqa: S301
        assert (type(same), str(same), same.arguments) == (GeometryError, "uneven", ("allow_uneven",))
    notice = pickle.loads(pickle.dumps(Notice("uneven", ("allow_uneven",))))  # noqa: S301
    assert (notice, notice.arguments) == ("uneven", ("allow_uneven",))
    assert AttUNet3dError().arguments == ()


def test_a_cause_that_is_raised_again_is_no_endless_chain() -> None:
    def transform() -> None:
        try:
            raise GeometryError("uneven", arguments=("allow_uneven",))
        except GeometryError as error:
            raise RuntimeError("applying transform") from error

    with pytest.raises(GeometryError) as caught, only_own_error():
        transform()
    assert caught.value.__context__ is not None
    assert with_options(caught.value, verbs()["segment"]) == "uneven (--allow-uneven)"


def _caused(error: Exception) -> Exception:
    outer = RuntimeError("applying transform")
    outer.__cause__ = error
    return outer


def test_the_program_adds_options_to_errors_of_cases_and_of_the_verb(
    run: Run, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    hu = np.zeros((12, 10, 6), np.int16)
    uneven = write_series(tmp_path / "uneven", hu)
    edit(uneven[-1], ImagePositionPatient=[-100, -50, 37.5])
    for number, uid in enumerate(("1.2.3", "1.2.4")):
        for path in write_series(tmp_path / "two", hu + number, uid=uid):
            path.rename(path.with_suffix(f".{number}"))
    begin = ("segment", tmp_path / "uneven", tmp_path / "two", "-o", tmp_path / "out", "--device", "cpu")
    code, _, stderr = run(*begin, "--checkpoint", tiny_checkpoint, "--precision", "fp32")
    assert code == 1
    lines = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert re.search(r"allow_uneven=True interpolates between them \(--allow-uneven\)$", lines[0])
    assert re.search(r"choose one with series_uid, .* \(--series, --all-series\)$", lines[1])

    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "last.pt").touch()
    code, _, stderr = run("train", "--dataset-dir", tmp_path, "--datalist", "none.json", "-o", tmp_path / "run")
    assert code == 2
    assert stderr.endswith("continue it with resume=True, or choose another folder (--resume)\n")
