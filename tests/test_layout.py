"""The layout: imports point one way, from a room to rooms before it, and never in a circle.

``python tests/test_layout.py`` prints files, lines, circles and upward imports of a source tree.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).parents[1] / "src" / "trilemma"
# A module may import from its own room and from the rooms before it.
ROOMS = (
    "ground", "config", "runs", "data", "networks", "classifier", "walks", "attacks", "samplers", "defences",
    "methods", "updates", "monitors", "metrics", "figures", "training", "evaluation", "pages", "sweeps", "demo", "cli",
)  # fmt: skip
# Single files at the top of the package, which import nothing of the other rooms.
GROUND = (
    "_version", "energies", "errors", "files", "headers", "limits", "memory", "noise", "printing",
    "processes", "progress", "shares", "storing", "tables", "text_files", "threat", "transfers", "units",
    "workers",
)  # fmt: skip
# The package's own doors: they name what every room offers, and import it on first use.
DOORS = ("trilemma", "trilemma.__main__")


class Import(NamedTuple):
    """``importer``, on ``line``, imports the module ``imported``."""

    importer: str
    line: int
    imported: str

    def __str__(self) -> str:
        return f"{self.importer.replace('.', '/')}, line {self.line}: imports {self.imported}"


def modules(source: Path) -> dict[str, Path]:
    """Dotted name to file of every module of the package."""
    found = {}
    for path in sorted(source.rglob("*.py")):
        parts = [source.name, *path.relative_to(source).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(source: Path) -> list[Import]:
    """Every import of a module of the package by another, at any depth: a late one hides no circle."""
    known = modules(source)
    return [
        Import(name, line, imported)
        for name, path in known.items()
        for line, imported in _imported(ast.parse(path.read_text(encoding="utf-8")), known)
        if imported != name
    ]


def _imported(tree: ast.AST, known: dict[str, Path]) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
            # a name may be a module of its own
            names = [
                dotted if (dotted := f"{node.module}.{alias.name}") in known else node.module
                for alias in node.names
            ]
        else:
            continue
        for name in dict.fromkeys(names):
            if name in known:
                yield node.lineno, name


def room(module: str) -> str:
    """The room of a module; ``errors`` and the other files at the top are the ground."""
    first = module.partition(".")[2].partition(".")[0]
    return "ground" if first in GROUND else first


def upward(found: list[Import]) -> list[Import]:
    """Imports from a room that comes later."""
    order = {name: place for place, name in enumerate(ROOMS)}
    return [
        one
        for one in found
        if one.importer not in DOORS
        and one.imported != "trilemma"
        and order[room(one.imported)] > order[room(one.importer)]
    ]


def circles(found: list[Import]) -> list[tuple[str, ...]]:
    """Groups of modules that import each other, directly or by way of others (Tarjan's algorithm)."""
    edges: dict[str, set[str]] = {}
    for one in found:
        if one.importer not in DOORS:
            edges.setdefault(one.importer, set()).add(one.imported)
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups: list[tuple[str, ...]] = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for other in sorted(edges.get(module, ())):
            if other not in index:
                visit(other)
                low[module] = min(low[module], low[other])
            elif other in stack:
                low[module] = min(low[module], index[other])
        if low[module] == index[module]:
            group = []
            while True:
                group.append(stack.pop())
                if group[-1] == module:
                    break
            if len(group) > 1:
                groups.append(tuple(sorted(group)))

    for module in sorted(edges):
        if module not in index:
            visit(module)
    return groups


def test_every_module_is_in_a_room() -> None:
    assert {room(name) for name in modules(SOURCE) if name not in DOORS} == set(ROOMS)


def test_no_import_points_upwards() -> None:
    assert [str(one) for one in upward(imports(SOURCE))] == []


def test_no_import_circle() -> None:
    assert circles(imports(SOURCE)) == []


def test_the_ground_imports_nothing_but_the_ground() -> None:
    below = [one for one in imports(SOURCE) if one.importer not in DOORS and room(one.importer) == "ground"]
    assert [str(one) for one in below if room(one.imported) != "ground"] == []


def test_a_planted_upward_import_and_a_planted_circle_are_found(tmp_path: Path) -> None:
    package = tmp_path / "trilemma"
    for name, text in {
        "__init__.py": "",
        "errors.py": "",
        "config/__init__.py": "",
        "config/recipe.py": "from trilemma.config import registry\n",
        "config/registry.py": "def late():\n    from trilemma.config.recipe import x\n",
        "walks/__init__.py": "import trilemma.cli.main\n",
        "cli/__init__.py": "",
        "cli/main.py": "from trilemma.errors import y\n",
    }.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    found = imports(package)
    assert [str(one) for one in upward(found)] == ["trilemma/walks, line 1: imports trilemma.cli.main"]
    assert circles(found) == [("trilemma.config.recipe", "trilemma.config.registry")]


def main(source: Path) -> None:
    """Prints the size of the tree and everything that breaks the layout."""
    files = modules(source)
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files.values())
    found = imports(source)
    print(f"{len(files)} files, {lines:,} lines, {len(found)} imports")
    up = upward(found) if {room(name) for name in files if name not in DOORS} <= set(ROOMS) else None
    print(f"circles: {len(circles(found))}, upward imports: {'-' if up is None else len(up)}")
    for group in circles(found):
        print("  circle:", ", ".join(group))
    for one in up or ():
        print("  upward:", one)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else SOURCE)
