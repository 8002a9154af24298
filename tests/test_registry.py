from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest

from trilemma.config import registry
from trilemma.config.registry import Registry, Row, import_object
from trilemma.errors import UnknownNameError, UserError

ALL = {name: value for name, value in vars(registry).items() if isinstance(value, Registry)}
ROWS = [(table, name) for table, rows in ALL.items() for name in rows.names()]


@pytest.mark.parametrize(("table", "name"), ROWS)
def test_every_row_has_a_target_that_exists_and_a_summary(table: str, name: str) -> None:
    row = ALL[table].row(name)
    assert row.summary and "\n" not in row.summary
    assert import_object(row.target) is not None
    if row.options:
        assert import_object(row.options).model_fields["name"].default == name


def test_an_unknown_name_names_the_nearest_and_all() -> None:
    with pytest.raises(UnknownNameError) as error:
        registry.METHODS.get("eb-jadt")
    assert isinstance(error.value, UserError)
    line = str(error.value)
    names = ", ".join(registry.METHODS.names())
    assert line == f"unknown method 'eb-jadt'. Did you mean 'eb-jdat'? Methods: {names}"
    assert "\n" not in line
    with pytest.raises(UnknownNameError) as error:
        registry.METHODS.get("zzzzzz")
    assert "Did you mean" not in str(error.value)


def test_a_row_can_be_added_at_run_time() -> None:
    table = Registry("thing", {}, "trilemma.things")
    table.add("own", "fractions:Fraction", summary="mine")
    assert table.names() == ["own"] and table.row("own").summary == "mine"
    assert table.get("own")(1, 2) == 0.5


def test_other_packages_add_rows_by_entry_points_and_cannot_take_our_names(monkeypatch) -> None:
    points = [
        EntryPoint("theirs", "fractions:Fraction", "trilemma.things"),
        EntryPoint("ours", "os:remove", "trilemma.things"),
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: points if group == "trilemma.things" else [])
    table = Registry("thing", {"ours": Row("math:sqrt")}, "trilemma.things")
    assert table.names() == ["ours", "theirs"]
    assert table.get("ours")(4) == 2 and table.get("theirs")(1, 2) == 0.5
    assert table.row("theirs").summary == "from another package"


def test_lists_options_recipes_and_their_mistakes_need_no_torch() -> None:
    program = """
import sys
from trilemma.config import registry
from trilemma.errors import ConfigError, UnknownNameError
from trilemma.config.recipe import load_config
from trilemma.config.recipe import recipe_names
tables = [value for value in vars(registry).values() if isinstance(value, registry.Registry)]
assert all(table.rows() for table in tables)
for name in registry.NETWORKS.names():
    assert registry.NETWORKS.options(name).model_fields
mistakes = 0
for mistake in ("training.lrr=1", "method.name=pgd", "sampler.name=sgld"):
    try:
        load_config(recipe_names()[0], [mistake])
    except (ConfigError, UnknownNameError):
        mistakes += 1
if mistakes == 3:
    print("torch" in sys.modules, "numpy" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] == "False"
