from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest
import torch
from torch import nn

from trilemma.config import registry
from trilemma.config.recipe import build_config
from trilemma.config.registry import METHODS, NETWORKS, Registry, Row, import_object
from trilemma.errors import ConfigError, UnknownNameError, UserError
from trilemma.networks.create import create_network

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


def one_layer(num_classes: int, in_channels: int, pixels: int, bias: bool = True) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * pixels, num_classes, bias))


def untyped(num_classes, in_channels, pixels=64):
    return one_layer(num_classes, in_channels, pixels)


def test_a_network_without_an_options_class_has_those_of_its_parameters(monkeypatch) -> None:
    monkeypatch.setattr(NETWORKS, "_rows", dict(NETWORKS._rows))
    NETWORKS.add("one-layer", f"{__name__}:one_layer")
    NETWORKS.add("untyped", f"{__name__}:untyped")
    tree = {"data": {"name": "digits"}, "method": "standard"}
    config = build_config({**tree, "network": {"name": "one-layer", "pixels": 64}})
    assert config.network.model_dump() == {"name": "one-layer", "pixels": 64, "bias": True}
    assert create_network(config.network, 10, (1, 8, 8))(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    for options, message in (
        ({}, "network.pixels"),
        ({"pixels": "many"}, "network.pixels"),
        ({"pixels": 64, "bias_": True}, "did you mean 'bias'"),
    ):
        with pytest.raises(ConfigError, match=f"(?i){message}"):
            build_config({**tree, "network": {"name": "one-layer", **options}})
    with pytest.raises(ConfigError, match="'untyped': its parameter 'pixels' needs a type"):
        build_config({**tree, "network": "untyped"})


def test_a_method_without_options_is_named(monkeypatch) -> None:
    monkeypatch.setattr(METHODS, "_rows", dict(METHODS._rows))
    METHODS.add("bare", "fractions:Fraction")
    with pytest.raises(ConfigError, match="method 'bare': fractions:Fraction has no Options"):
        METHODS.options("bare")


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
