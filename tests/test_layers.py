"""Imports point one way: from the command line down to readers and errors."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter

from conftest import ROOT

PACKAGE = ROOT / "attunet3d"
# From the top down; what stands on one line does not import its neighbours.
LAYERS = (
    "__main__",
    "cli",
    "label many benchmarks",
    "workflow",
    "report training",
    "segmenter",
    "datasets",
    "metrics pictures",
    "inferers",
    "runtime",
    "transforms checkpoint",
    "config",
    "networks console",
    "io",
    "errors version",
)
HEIGHT = {wing: height for height, line in enumerate(reversed(LAYERS)) for wing in line.split()}
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}


def imported(module: str) -> Iterator[str]:
    """The modules of the package that a module imports anywhere: also within functions, and for types alone."""
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES and node.module != "__future__":
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in MODULES else node.module


IMPORTS = {module: set(imported(module)) - {module} for module in MODULES}


def wing(module: str) -> str:
    """What lies directly in the package: "io" of "attunet3d.io.dicom.seg"; "" of the package itself."""
    return module.partition(".")[2].partition(".")[0]


def test_every_wing_has_its_place_and_every_place_its_wing():
    assert {wing(module) for module in MODULES} - {""} == set(HEIGHT)


def test_no_import_points_up_or_to_a_neighbour():
    upward = [
        f"{module} imports {other}"
        for module, others in IMPORTS.items()
        for other in others
        if wing(module)
        and wing(other) != wing(module)
        and (not wing(other) or HEIGHT[wing(other)] >= HEIGHT[wing(module)])
    ]
    assert not upward


def test_no_modules_import_each_other_in_a_circle():
    order = list(TopologicalSorter(IMPORTS).static_order())  # raises CycleError, which names the circle
    assert len(order) == len(MODULES) > 100


def test_imports_are_absolute_so_that_all_of_them_are_seen_here():
    relative = [
        module
        for module, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert not relative
