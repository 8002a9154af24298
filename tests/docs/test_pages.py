"""README and docs say what is true: examples run, commands parse, links resolve, costs and names agree."""

from __future__ import annotations

import importlib
import inspect
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import yaml
from typer.main import get_command

from trilemma.cli.list import KINDS, PUBLISHED
from trilemma.cli.main import app
from trilemma.config import registry
from trilemma.config.chains import ENERGIES, PRESETS
from trilemma.config.grid import parse_grid
from trilemma.config.recipe import build_config, load_config, recipe_names
from trilemma.config.starts import parse_start

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted(DOCS.rglob("*.md"))]
FENCE = re.compile(
    r"(?:^<!-- not run: (?P<reason>.*?) -->\n+)?^```(?P<language>\w*)\n(?P<body>.*?)^```$", re.M | re.S
)
COMMANDS: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]
PLACEHOLDER = re.compile(r"^[A-Z_]+$")


class Command(NamedTuple):
    """A command line and the page it stands on."""

    page: Path
    line: str


def page_id(value: object) -> str | None:
    return str(value.relative_to(ROOT)) if isinstance(value, Path) else None


def blocks(page: Path, language: str) -> list[tuple[str, str | None]]:
    """(code, reason not to run it) of the page's blocks in a language."""
    found = FENCE.finditer(page.read_text(encoding="utf-8"))
    return [(match["body"], match["reason"]) for match in found if match["language"] == language]


def shell_lines(page: Path) -> list[str]:
    return [
        line
        for body, _ in blocks(page, "sh")
        for line in body.replace("\\\n", " ").splitlines()
        if line.strip()
    ]


def prose(page: Path) -> str:
    """The page without its code blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


WITH_PYTHON = [page for page in PAGES if blocks(page, "python")]
IN_BLOCKS = [
    Command(page, line) for page in PAGES for line in shell_lines(page) if line.startswith("trilemma ")
]
IN_PROSE = [
    Command(page, line.replace("\\|", "|"))
    for page in PAGES
    for line in re.findall(r"`(trilemma [^`]+)`", prose(page))
]


# --- Python ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", WITH_PYTHON, ids=page_id)
def test_python_examples_run(page, monkeypatch):
    """The blocks of a page are one program, as a reader would type it."""
    for table in vars(registry).values():
        if isinstance(table, registry.Registry):
            monkeypatch.setattr(table, "_rows", dict(table._rows))
    module = ModuleType(f"example_{page.stem.replace('-', '_')}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    # The README's lines can be run again.
    for _ in range(2 if page.name == "README.md" else 1):
        for number, (body, reason) in enumerate(blocks(page, "python"), 1):
            if reason is None:
                exec(compile(body, f"{page.name}, block {number}", "exec"), vars(module))


def test_a_block_that_is_not_run_says_why():
    assert all(reason is None or len(reason) > 10 for page in PAGES for _, reason in blocks(page, "python"))


def test_the_readme_example_has_ten_lines():
    ((body, _),) = blocks(ROOT / "README.md", "python")
    assert sum(bool(line.strip()) for line in body.splitlines()) == 10


# --- Command lines --------------------------------------------------------------------------------------


def parsed(line: str) -> dict[str, Any]:
    """The parameters of a command line, nothing run; an unknown option or a missing argument raises."""
    _, name, *arguments = shlex.split(line, comments=True)
    parameters: dict[str, Any] = COMMANDS[name].make_context(name, arguments).params
    return parameters


@pytest.mark.parametrize("command", IN_BLOCKS, ids=lambda command: command.line)
def test_commands_in_blocks_would_run(command):
    given = parsed(command.line)
    recipe = given.get("recipe")
    if recipe is not None and recipe.endswith(".yaml"):
        # a recipe of the user's own, which an earlier line of the page writes
        written = [
            c.line.split()[2].strip("/") for c in IN_BLOCKS if c.page == command.page and " init " in c.line
        ]
        assert recipe.removesuffix(".yaml") in written
    elif recipe is not None and not given.get("resume"):
        assert recipe in recipe_names()
        grid = parse_grid(given.get("values") or given.get("overrides") or ())
        for values in grid.combinations():
            load_config(recipe, {**grid.fixed, **values})
    for name in given.get("protocol") or ():
        registry.PROTOCOLS.row(name)
    assert given.get("kind") in (None, *KINDS, PUBLISHED)
    if "sampler" in given:
        assert given["sampler"] in (None, *registry.SAMPLERS.names())
        assert given["energy"] in (None, *ENERGIES)
        assert given["preset"] in (None, *PRESETS)
        if given["start"] is not None:
            parse_start(given["start"])


@pytest.mark.parametrize("command", IN_PROSE, ids=lambda command: command.line)
def test_commands_in_prose_exist(command):
    _, name, *words = command.line.split()
    declared = {option for parameter in COMMANDS[name].params for option in parameter.opts}
    assert set(re.findall(r"--[a-z-]+", command.line)) <= declared | {"--help"}
    optional = any(word.startswith("[") for word in words)
    if words and not optional and not PLACEHOLDER.match(words[0]) and name in ("train", "validate", "sweep"):
        assert words[0] in recipe_names() or words[0].startswith("-")


def test_the_command_table_of_the_readme_is_complete():
    named = {command.line.split()[1] for command in IN_PROSE if command.page.name == "README.md"}
    assert named == set(COMMANDS)


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_other_programs_of_shell_blocks_exist(page):
    makefile = (ROOT / "Makefile").read_text()
    for line in shell_lines(page):
        words = shlex.split(line, comments=True)
        if words[0] == "make":
            assert f"\n{words[1]}:" in makefile
        elif words[0] == "python":
            assert (ROOT / words[1]).is_file()
        else:
            assert words[0] in ("trilemma", "pip", "mkdocs", "torchrun") or words[0].startswith(".venv/bin/")


# --- Links ----------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and mkdocs make them."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_resolve(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"https?:", target):
            continue
        file, _, anchor = target.partition("#")
        other = (page.parent / file).resolve() if file else page
        assert other.is_file(), target
        if DOCS in page.parents:
            assert DOCS in other.parents, f"{target} leaves the site"
        assert not anchor or anchor in anchors(other), target


def test_pictures_exist():
    sources = re.findall(r'<img src="([^"]+)"', (ROOT / "README.md").read_text())
    assert sources
    missing = [source for source in sources if not (ROOT / source).is_file()]
    assert not missing


def test_every_page_is_in_the_navigation():
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    listed: set[str] = set()

    def collect(entry: Any) -> None:
        if isinstance(entry, str):
            listed.add(entry)
        else:
            for inner in entry.values() if isinstance(entry, dict) else entry:
                collect(inner)

    collect(site["nav"])
    pages = [*DOCS.rglob("*.md"), *DOCS.rglob("*.ipynb")]
    assert listed == {page.relative_to(DOCS).as_posix() for page in pages}


# --- Facts ----------------------------------------------------------------------------------------------


def test_every_method_has_a_page_and_a_link_in_the_readme():
    methods = {
        *(name for name, row in registry.METHODS.rows().items() if row.target.startswith("trilemma.")),
        "der",
    }
    assert {page.stem for page in (DOCS / "methods").glob("*.md")} == methods | {"index", "updates"}
    readme = (ROOT / "README.md").read_text()
    assert all(f"(docs/methods/{name}.md)" in readme for name in methods)


@pytest.mark.parametrize("name", sorted(registry.METHODS.rows()))
def test_the_cost_on_a_methods_page_is_the_one_that_validate_counts(name):
    from trilemma.training.estimate import forward_passes

    config = build_config({"network": "small-resnet", "method": name, "threat": {}})
    text = (DOCS / "methods" / f"{name}.md").read_text()
    assert f"Cost: **{forward_passes(config)}** forward passes" in text


def test_the_names_of_the_api_page_exist_with_these_arguments():
    text = (DOCS / "api.md").read_text()
    calls = re.findall(r"^\| `(trilemma\.[\w.]+)\(([^)]*)\)`", text, re.M)
    assert len(calls) > 10
    for dotted, arguments in calls:
        thing: Any = importlib.import_module("trilemma")
        for part in dotted.split(".")[1:]:
            thing = getattr(thing, part)
        accepted = list(inspect.signature(thing).parameters)
        wanted = arguments.split(", ")
        assert [name for name in accepted if name in wanted] == wanted, dotted


def test_the_references_of_the_api_page_exist():
    for target in re.findall(r"^::: (\S+)$", (DOCS / "api.md").read_text(), re.M):
        try:
            importlib.import_module(target)
        except ModuleNotFoundError:
            module, _, name = target.rpartition(".")
            assert hasattr(importlib.import_module(module), name), target


def test_what_is_to_be_measured_stands_only_in_the_marked_tables():
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        if page.name == "README.md":
            text = re.sub(r"<!-- measured: begin.*?<!-- measured: end -->", "", text, flags=re.S)
        if page.parent.name == "methods":
            text = text.partition("## Measured here")[0]
        assert "TBD" not in text, page
