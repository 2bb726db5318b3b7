"""What pyproject.toml allows to be installed, and what the constraint files pin of it."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it

# The last releases with the holes that pyproject.toml names beside its floors.
VULNERABLE = {
    "filelock": ["3.20.2"],
    "h11": ["0.14.0"],
    "jinja2": ["3.1.5"],
    "monai": ["1.6.0"],
    "onnx": ["1.20.1"],
    "pydicom": ["2.4.4", "3.0.0", "3.0.1"],
    "pyjwt": ["2.14.0"],
    "pytest": ["9.0.2"],
    "python-multipart": ["0.0.18", "0.0.29"],
    "ray": ["2.53.0", "2.55.1"],
    "requests": ["2.32.5"],
    "setuptools": ["78.1.0"],
    "starlette": ["0.49.1", "1.0.0", "1.3.0"],
    "torch": ["2.6.0", "2.9.1"],
    "tqdm": ["4.66.2"],
    "urllib3": ["2.7.0"],
}
# The server's environment, whose DICOM code is for pydicom 2, is another one.
LABEL_EXTRAS = {"label", "test-label"}
DIFFERENT_IN_LABEL = {"pydicom"}
PYTHONS = ["3.10", "3.11", "3.12", "3.13"]


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def requirements(label: bool) -> Iterator[Requirement]:
    """Direct ones of the core and of the extras that go into the same environment."""
    content = project()
    extras = content["optional-dependencies"].items()
    groups = [listed for extra, listed in extras if (extra in LABEL_EXTRAS) == label]
    for line in [*content["dependencies"], *(line for group in groups for line in group)]:
        requirement = Requirement(line)
        if requirement.name != content["name"]:
            yield requirement


def pins(label: bool, python: str) -> dict[str, str]:
    """Name to version, of the lines for that Python on Linux."""
    found: dict[str, str] = {}
    path = ROOT / ("constraints-label.txt" if label else "constraints.txt")
    environment = {
        "python_version": python,
        "python_full_version": f"{python}.4",
        "sys_platform": "linux",
        "platform_machine": "x86_64",
        "platform_python_implementation": "CPython",
    }
    for line in path.read_text().splitlines():
        if line.startswith("#"):
            continue
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate(environment):
            (specifier,) = requirement.specifier
            assert specifier.operator == "==", line
            name = canonicalize_name(requirement.name)
            assert name not in found, line
            found[name] = specifier.version
    return found


@pytest.mark.parametrize("name", VULNERABLE)
def test_releases_with_known_holes_are_left_out(name: str) -> None:
    named = [r for label in (False, True) for r in requirements(label) if canonicalize_name(r.name) == name]
    assert named
    for requirement in named:
        for version in VULNERABLE[name]:
            assert not requirement.specifier.contains(version), (str(requirement), version)


def test_every_floor_is_given() -> None:
    for requirement in (*requirements(False), *requirements(True)):
        assert any(specifier.operator == ">=" for specifier in requirement.specifier), str(requirement)


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("label", [False, True])
def test_what_is_required_is_pinned(label: bool, python: str) -> None:
    pinned = pins(label, python)
    for requirement in requirements(label):
        version = pinned.get(canonicalize_name(requirement.name))
        assert version is not None, str(requirement)
        assert requirement.specifier.contains(version), (str(requirement), version)


@pytest.mark.parametrize("python", PYTHONS)
def test_both_environments_have_the_same_versions(python: str) -> None:
    core, label = pins(False, python), pins(True, python)
    assert {name for name in core.keys() & label.keys() if core[name] != label[name]} == DIFFERENT_IN_LABEL


def test_the_torch_that_make_installs_is_the_pinned_one() -> None:
    (version,) = re.findall(r"^TORCH := torch==(\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {pins(label, python)["torch"] for label in (False, True) for python in PYTHONS} == {version}
