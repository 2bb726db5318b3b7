"""What the documentation says is there, is there. ``make docs``, which builds it, also checks anchors."""

import ast
import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from conftest import ROOT
from test_layers import LAYERS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
WRITTEN = [
    *PAGES,
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "AGENTS.md")),
    *ROOT.glob("bundles/*/docs/*.md"),
]
TESTS = {path: path.read_text(encoding="utf-8") for path in sorted((ROOT / "tests").rglob("test_*.py"))}
NAMED = sorted(
    {name for page in PAGES for name in re.findall(r"`(test_\w+(?:\[[^`]+\])?)`", page.read_text(encoding="utf-8"))}
)
# In docstrings and comments: names of other programs and libraries, and of files.
OTHERS = {
    "LoadImage",
    "SaveImage",
    "ScaleIntensityRange",
    "compute_average_surface_distance",
    "compute_hausdorff_distance",
    "compute_surface_dice",
    "isatty",
    "nohup",
    "sha256sum",
    "ulimit",
}
QUOTED = re.compile(r"(?<!`)`{1,2}([A-Za-z_]\w*(?:\.\w+)*)(?:\([^`]*\))?`{1,2}(?!`)")
FILES = re.compile(r"\.(csv|dcm|gz|html|json|md|pt|py|yaml)$|^case_7$")
MADE = re.compile(r"`((?:attunet3d|docs|tests|configs|bundles|examples)/[\w./-]*)`(?! \(new\))")


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    """What fills in the reference."""
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", NAMED)
def test_every_test_that_is_named_exists(name: str) -> None:
    function, _, case = name.partition("[")
    text = "".join(text for text in TESTS.values() if f"def {function}(" in text)
    assert text, f"no test {function}"
    assert not case or f'"{case[:-1]}"' in text, f"{function} has no case {case[:-1]}"


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        assert "://" in target or (page.parent / target).exists(), target


def in_nav(entry: object) -> Iterator[str]:
    """The pages below an entry of the nav."""
    if isinstance(entry, str):
        yield entry
    for value in entry.values() if isinstance(entry, dict) else entry if isinstance(entry, list) else ():
        yield from in_nav(value)


def test_the_nav_has_every_page_once() -> None:
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    assert sorted(in_nav(nav)) == sorted(page.relative_to(DOCS).as_posix() for page in PAGES)


def test_pages_that_code_names_exist() -> None:
    texts = [
        *ROOT.glob("attunet3d/**/*.py"),
        *ROOT.glob("configs/*"),
        *ROOT.glob("bundles/*/[cd]*/*"),
        ROOT / "Makefile",
    ]
    named = {
        name
        for path in texts
        if path.suffix != ".png"
        for name in re.findall(r"\bdocs/[\w/-]+\.md", path.read_text(encoding="utf-8"))
    }
    assert named
    assert not [name for name in named if not (ROOT / name).exists()]


def identifiers(tree: ast.AST) -> Iterator[str]:
    """The names in code and in its texts, without docstrings."""
    bodies = [node.body for node in ast.walk(tree) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)]
    docstrings = {id(body[0].value) for body in bodies if body and isinstance(body[0], ast.Expr)}
    for node in ast.walk(tree):
        names = [getattr(node, field, None) for field in ("id", "attr", "arg", "name", "asname", "module")]
        if isinstance(node, ast.Constant) and id(node) not in docstrings:
            names.append(node.value)
        for name in names:
            if isinstance(name, str):
                yield from re.findall(r"\w+", name)


def members(tree: ast.AST) -> Iterator[tuple[str, set[str]]]:
    """The classes in a module, and the names in each of them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            yield node.name, set(identifiers(node))


def test_names_in_docstrings_and_comments_exist() -> None:
    sources = {path: path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("attunet3d/**/*.py"))}
    trees = {path: ast.parse(text) for path, text in sources.items()}
    known = {name for tree in trees.values() for name in identifiers(tree)} | {path.stem for path in sources}
    known |= OTHERS | {path.parent.name for path in sources}
    classes = dict(pair for tree in trees.values() for pair in members(tree))
    wrong = []
    for path, text in sources.items():
        for name in QUOTED.findall(text):
            first, *rest = name.split(".")
            missing = {first, *rest} - known or set(rest) - classes.get(first, known)
            if missing and not FILES.search(name):
                wrong.append(f"{path.relative_to(ROOT)}: {name}")
    assert not wrong


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_files_that_are_named_exist(page: Path) -> None:
    names = MADE.findall(page.read_text(encoding="utf-8"))
    assert not [name for name in names if not (ROOT / name).exists() and not re.search("NAME|VERB", name)]


def test_the_picture_of_the_wings_has_them_in_their_order() -> None:
    drawn = re.findall(
        r'font-weight="bold">(\w+)(?:/|\.py)<', (DOCS / "pictures/wings.svg").read_text(encoding="utf-8")
    )
    assert drawn == " ".join(LAYERS).split()[1:]  # without __main__


@pytest.mark.parametrize("name", ["inference", "train", "evaluate"])
def test_every_config_id_has_a_meaning(generate: ModuleType, name: str) -> None:
    table = generate.config_ids(name)  # KeyError: an id without one
    texts = generate.meanings()
    ids = set(generate.plain_ids(generate.read_config(f"{name}.yaml")))
    assert ids
    assert all(f"| `{key}` |" in table for key in ids)
    assert not set(texts[name]) - ids


def test_no_meaning_is_left_of_an_id_that_has_gone(generate: ModuleType) -> None:
    ids = {
        key
        for name in ("inference", "train", "evaluate")
        for key in generate.plain_ids(generate.read_config(f"{name}.yaml"))
    }
    assert not set(generate.meanings()["shared"]) - ids


def test_every_preset_is_in_the_table_and_has_its_section(generate: ModuleType) -> None:
    names = {path.stem for path in (ROOT / "configs").glob("*.yaml")}
    page = (DOCS / "reference/presets.md").read_text(encoding="utf-8")
    assert {name for name in names if f"`{name}`" in page} == names
    assert set(re.findall(r"^## (\w+)$", generate.presets(), re.MULTILINE)) == names


def test_every_verb_and_option_is_in_the_reference(generate: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("typer", minversion="0.29")
    monkeypatch.setattr(sys, "path", [*sys.path])
    text = generate.command_line()
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "attunet3d/cli").glob("*.py"))
    options = set(re.findall(r'Option\((?:[^()]|\n)*?"(--[\w-]+)"', sources)) - {"--version"}
    assert len(options) > 20
    assert not {option for option in options if f"`{option}`" not in text}
    assert "## attunet3d prepare pairs" in text
    assert re.search(r"^\| `--output`, `-o` PATH \| [^|]+ \| required \|$", text, re.MULTILINE)


def test_every_public_name_is_in_the_reference(generate: ModuleType) -> None:
    page = (DOCS / "reference/python.md").read_text(encoding="utf-8")
    packages = {".".join(path.parent.relative_to(ROOT).parts) for path in ROOT.glob("attunet3d/**/__init__.pyi")}
    assert set(re.findall(r"generated: api ([\w.]+)", page)) == packages
    assert "::: attunet3d.Segmenter" in generate.api("attunet3d")
    assert "recipe" not in generate.public_names("attunet3d.config")


def test_what_the_sdist_includes_is_there() -> None:
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]
    assert not [name for name in build["targets"]["sdist"]["include"] if not (ROOT / name).exists()]
