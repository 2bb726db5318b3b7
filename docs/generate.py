"""The site's pages, as ``make docs`` builds them: docs/ with parts of the reference filled in from what they describe.

    python docs/generate.py FOLDER

A page holds ``<!-- generated: NAME -->`` where such a part belongs, so that it cannot drift from the program. Links to
files of the repository outside docs/ lead to copies of those.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
BUNDLE = ROOT / "bundles/pancreas_ct_attunet3d_segmentation"
CONFIGS = BUNDLE / "configs"
COPIES = "repository"  # folder of the site
MARKER = re.compile(r"^<!-- generated: ([\w-]+) ?([\w.]*) -->$", re.MULTILINE)
OUTSIDE = re.compile(r"(?<=\]\()\.\./[^)#\s]+")
# What MONAI runs, and parts that hold others.
WIRING = frozenset({"imports", "initialize", "run", "train", "validate"})


def write_site(site: Path) -> None:
    """Write all pages and pictures to a new folder."""
    shutil.copytree(DOCS, site, ignore=shutil.ignore_patterns("*.py", "*.yaml", "__pycache__"))
    for page in sorted(DOCS.rglob("*.md")):
        (site / page.relative_to(DOCS)).write_text(finished(page, site), encoding="utf-8")


def finished(page: Path, site: Path) -> str:
    """A page with all that is generated, and its links out of docs/ leading to copies."""

    def to_copy(link: re.Match[str]) -> str:
        path = (page.parent / link[0]).resolve()
        if path.is_relative_to(DOCS):
            return link[0]
        copy = DOCS / COPIES / path.relative_to(ROOT)
        target = site / copy.relative_to(DOCS)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        return os.path.relpath(copy, page.parent)

    text = OUTSIDE.sub(to_copy, page.read_text(encoding="utf-8"))
    return MARKER.sub(lambda marker: generated(marker[1], marker[2]), text)


def generated(name: str, argument: str = "") -> str:
    """The Markdown that stands for a marker. Raises KeyError for a name that there is not."""
    makers = {
        "command-line": command_line,
        "config": lambda: config_ids(argument),
        "components": lambda: components(argument),
        "presets": presets,
        "model-card": model_card,
        "api": lambda: api(argument),
    }
    return makers[name]()


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


# Command line


def command_line() -> str:
    """A section for each verb: what it does, its arguments and its options, from the program itself."""
    sys.path.insert(0, str(ROOT))
    import typer

    import attunet3d.cli
    from attunet3d.cli.app import app

    del attunet3d  # imported for the verbs that it adds
    return "\n\n".join(verbs(typer.main.get_command(app), "attunet3d"))


def verbs(group: Any, name: str) -> Iterator[str]:
    """The sections of the verbs below a group of them."""
    for verb, command in group.commands.items():
        full = f"{name} {verb}"
        yield f"## {full}\n\n{in_markdown(command.help or '')}"
        rows = [
            [shown_name(option), in_markdown(option.help or "").replace("\n", " "), default_of(option)]
            for option in command.params
            if option.name != "help"
        ]
        if rows and not hasattr(command, "commands"):
            yield table(["argument or option", "meaning", "default"], rows)
        if hasattr(command, "commands"):
            yield from verbs(command, full)


def in_markdown(text: str) -> str:
    """The help of a verb, whose examples are code."""
    text = re.sub(r"^Example: (.*)$", r"Example:\n\n    \1", text.strip(), flags=re.MULTILINE)
    return re.sub(r"(?<!`)<([\w.-]+)>", r"`<\1>`", text)


def shown_name(option: Any) -> str:
    """``--output``, ``-o`` PATH."""
    kinds = {Path: "PATH", int: "N", float: "NUMBER"}
    kind = option.metavar or kinds.get(option.type_descriptor.annotation, "TEXT")
    if option.param_type_name == "argument":
        return f"`{option.metavar or option.name.upper()}`"
    names = ", ".join(f"`{name}`" for name in sorted(option.opts, key=len, reverse=True))
    return names if option.is_flag else f"{names} {kind}"


def default_of(option: Any) -> str:
    """The default of an option, or that it must be given."""
    if option.required:
        return "required"
    value = option.default
    if value is None or value is False:
        return ""
    return f"`{' '.join(map(str, value)) if isinstance(value, list | tuple) else value}`"


# Config


def read_config(name: str) -> dict[str, Any]:
    """A config of the bundle, as it stands in its file."""
    values: dict[str, Any] = yaml.safe_load((CONFIGS / name).read_text(encoding="utf-8"))
    return values


def meanings() -> dict[str, dict[str, str]]:
    """What each id means, by config."""
    texts: dict[str, dict[str, str]] = yaml.safe_load((DOCS / "config_ids.yaml").read_text(encoding="utf-8"))
    return texts


def plain_ids(config: Mapping[str, Any]) -> dict[str, Any]:
    """The ids of a config that are values, and the network's arguments, with their defaults."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if key == "network_def":
            found |= {f"network_def::{name}": default for name, default in value.items() if name != "_target_"}
        elif key not in WIRING and "::" not in key and not is_wiring(value):
            found[key] = value
    return found


def is_wiring(value: Any) -> bool:
    """Whether a value is a component, or a list of some."""
    if isinstance(value, dict):
        return "_target_" in value
    return isinstance(value, list) and any(isinstance(item, dict) for item in value)


def config_ids(name: str) -> str:
    """A table of the ids of a config: default and meaning. Raises KeyError for an id without a meaning."""
    texts = meanings()
    shared, own = texts["shared"], texts[name]
    rows = [
        [f"`{key}`", shown_value(value), own[key] if key in own else shared[key]]
        for key, value in plain_ids(read_config(f"{name}.yaml")).items()
    ]
    return table(["id", "default", "meaning"], rows)


def shown_value(value: Any) -> str:
    """A default, as it is written in YAML; ``$`` is MONAI's mark of an expression."""
    if isinstance(value, str) and value.startswith("$"):
        return f"computed: `{value[1:]}`"
    if value == "":
        return "empty"
    text = yaml.safe_dump(value, default_flow_style=True, width=1000)
    return f"`{text.strip().removesuffix('...').strip()}`"


def components(name: str) -> str:
    """A table of the objects that a config builds, with those of their arguments that are values."""
    rows = []
    for key, value in components_in(read_config(f"{name}.yaml")):
        arguments = [
            f"`{argument}` {shown_value(default)}"
            for argument, default in value.items()
            if not argument.startswith("_") and not is_wiring(default) and str(default)[:1] not in ("$", "@", "{", "[")
        ]
        rows.append([f"`{key}`", f"`{value['_target_'].removeprefix('$')}`", ", ".join(arguments)])
    return table(["id", "class or function", "arguments that are values"], rows)


def components_in(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Ids of components, and what stands there, with those in the parts of a config."""
    for key, value in config.items():
        if isinstance(value, dict) and "_target_" in value:
            if key != "network_def":
                yield prefix + key, value
        elif isinstance(value, dict):
            yield from components_in(value, f"{prefix}{key}::")


def presets() -> str:
    """A section for each preset: its comment, and its values."""
    sections = []
    for path in sorted((ROOT / "configs").glob("*.yaml")):
        lines = path.read_text(encoding="utf-8").splitlines()
        head = next(index for index, line in enumerate(lines) if not line.startswith("#"))
        command, *about = (line.removeprefix("# ") for line in lines[:head])
        text = re.sub(r"(?<!`)(--set \S+|-c \w+)", r"`\1`", " ".join(about))
        text = re.sub(r"docs/([\w/-]+\.md)", r"[\1](../\1)", text)
        sections.append(f"## {path.stem}\n\n{text}\n\n    {command}\n\n```yaml\n" + "\n".join(lines[head:]) + "\n```")
    return "\n\n".join(sections)


def model_card() -> str:
    """What the bundle says of its weights, in its README."""
    text = (BUNDLE / "docs/README.md").read_text(encoding="utf-8")
    card: str = re.split(r"^## (?=Model card|Licence)", text, flags=re.MULTILINE)[1]
    return card.partition("\n")[2].strip()


# Python


def api(package: str) -> str:
    """A directive of mkdocstrings for each public name of a package, but for those that ``attunet3d`` itself has."""
    elsewhere = set() if package == "attunet3d" else set(public_names("attunet3d"))
    return "\n\n".join(f"::: {package}.{name}" for name in public_names(package) if name not in elsewhere)


def public_names(package: str) -> list[str]:
    """The names that a package's stub states, but for those of modules."""
    folder = ROOT / package.replace(".", "/")
    names = {
        alias.name
        for node in ast.parse((folder / "__init__.pyi").read_text(encoding="utf-8")).body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
        if not alias.name.startswith("_") and not (folder / node.module / f"{alias.name}.py").exists()
    }
    return sorted(names, key=str.lower)


if __name__ == "__main__":
    write_site(Path(sys.argv[1]))
