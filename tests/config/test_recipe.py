from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from trilemma.config.overrides import parse_overrides
from trilemma.config.recipe import dump_config, load_config, recipe_names, recipe_text
from trilemma.config.registry import METHODS
from trilemma.errors import ConfigError, UnknownNameError


def refused(recipe: str, *overrides: str) -> str:
    with pytest.raises((ConfigError, UnknownNameError)) as error:
        load_config(recipe, overrides)
    line = str(error.value)
    assert "\n" not in line
    return line


@pytest.mark.parametrize("name", recipe_names())
def test_every_packaged_recipe_loads_and_its_head_says_how_to_launch_it(name: str) -> None:
    config: Any = load_config(name)
    assert config.method.name in METHODS.names()
    assert recipe_text(name).startswith(f"# trilemma train {name}")


@pytest.mark.parametrize("name", recipe_names())
def test_a_dumped_config_loads_equal(name: str, tmp_path: Path) -> None:
    config: Any = load_config(name)
    (tmp_path / "config.yaml").write_text(dump_config(config))
    again = load_config(str(tmp_path / "config.yaml"))
    assert again == config
    assert dump_config(again) == dump_config(config)


def test_a_changed_config_survives_the_round_trip(tmp_path: Path) -> None:
    changes = [
        "regulariser.name=der", "regulariser.beta=0.3", "schedule.name=multistep", "schedule.milestones=[3, 5]",
        "update.name=sam", "sampler.name=momentum", "threat.radius=8/255", "method.alignment=der", "data.root=/a b",
    ]  # fmt: skip
    config: Any = load_config("digits/eb-jdat", changes)
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert load_config(str(tmp_path / "config.yaml")) == config
    assert config.schedule.milestones == (3, 5) and config.threat.radius == "8/255"


def test_overrides_reach_their_key_by_dots() -> None:
    config: Any = load_config(
        "digits/pgd-at", ["training.lr=0.3", "attack.steps=4", "network.width=8", "devices=2"]
    )
    assert (config.training.lr, config.attack.steps, config.network.width, config.devices) == (0.3, 4, 8, 2)
    assert load_config("digits/pgd-at", {"training.lr": 0.3, "attack.steps": 4}).training.lr == 0.3


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4), ("1E+2", 100.0), (".5e-1", 0.05), ("-2e3", -2000.0), ("0.1", 0.1), ("3", 3), ("true", True),
        ("null", None), ("8/255", "8/255"), ("[30, 40]", [30, 40]), ("a=b", "a=b"), ("", None), ("'1e-4'", "1e-4"),
    ],
)  # fmt: skip
def test_override_values_are_read_as_everybody_expects(text: str, value) -> None:
    (read,) = parse_overrides([f"a.b={text}"]).values()
    assert read == value and type(read) is type(value)


def test_a_new_method_drops_the_options_of_the_former_one(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("network: small-resnet\nmethod: {name: eb-jdat, align: 0.5}\nthreat: {radius: 0.1}\n")
    config: Any = load_config(str(file), ["method.name=trades"])
    assert config.method.model_dump() == METHODS.options("trades")().model_dump()
    assert "method.align: unknown key" in refused(str(file), "method.align=0.5", "method.name=trades")


@pytest.mark.parametrize("order", [1, -1])
def test_an_option_given_beside_the_new_name_is_kept_in_either_order(order: int) -> None:
    overrides = ["method.name=trades", "method.beta=3", "sampler={}"][::order]
    for given in (overrides, parse_overrides(overrides)):
        config: Any = load_config("digits/eb-jdat", given)
        assert config.method.beta == 3


def test_the_same_name_again_keeps_the_options(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(
        "network: small-resnet\nmethod: {name: trades, beta: 2}\nthreat: {radius: 0.1}\n"
    )
    config: Any = load_config(str(tmp_path / "own.yaml"), ["method.name=trades"])
    assert config.method.beta == 2


def test_a_short_form_takes_options(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("network: small-resnet\nmethod: trades\nthreat: {radius: 0.1}\n")
    config: Any = load_config(str(tmp_path / "own.yaml"), ["method.beta=2", "network.width=4"])
    assert config.method.beta == 2 and config.network.width == 4


@pytest.mark.parametrize(
    ("recipe", "overrides", "parts"),
    [
        ("digits/eb-jadt", (), ("unknown recipe 'digits/eb-jadt'", "Did you mean 'digits/eb-jdat'", "trilemma list")),
        ("nowhere.yaml", (), ("recipe file nowhere.yaml does not exist", "trilemma list recipes")),
        ("digits/pgd-at", ("training.lrr=1",), ("digits/pgd-at: training.lrr: unknown key", "Did you mean 'lr'")),
        ("digits/pgd-at", ("method.name=pdg-at",), ("unknown method 'pdg-at'", "Did you mean 'pgd-at'")),
        ("digits/pgd-at", ("lr",), ("override 'lr' is not of the form key=value, such as training.lr=0.1",)),
        ("digits/pgd-at", ("=3",), ("override '=3' is not of the form key=value",)),
        ("digits/pgd-at", ("training.lr.x=3",), ("training.lr is a single value, not a section",)),
        ("digits/pgd-at", ("training.lr=[1",), ("override training.lr=[1: not valid YAML",)),
        ("digits/pgd-at", ("epochs=3",), ("epochs: unknown key. Did you mean 'training.epochs'",)),
        ("digits/pgd-at", ("epoch=3",), ("epoch: unknown key. Did you mean 'training.epochs'",)),
        ("digits/pgd-at", ("batch=3",), ("Did you mean 'training.batch_size'",)),
        ("digits/pgd-at", ("steps=3",), ("Did you mean 'attack.steps' or 'sampler.steps'",)),
        ("digits/pgd-at", ("width=3",), ("Did you mean 'network.width'",)),
        ("digits/trades", ("beta=3",), ("Did you mean 'method.beta'",)),
        ("digits/pgd-at", ("training.radius=0.1",), ("Did you mean 'threat.radius'",)),
        ("digits/eb-jdat", ("method.name=pgd-at",), ("sampler: method 'pgd-at' has no sampler", "sampler={}")),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_that_says_what_to_do(recipe: str, overrides, parts) -> None:
    line = refused(recipe, *overrides)
    for part in parts:
        assert part in line, line


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "line 1: not valid YAML"),
        ("- a\n- b", "a recipe is a YAML mapping of sections such as data, network, method"),
        ("", "a recipe is a YAML mapping"),
        ("just words", "a recipe is a YAML mapping"),
    ],
)
def test_a_file_that_is_no_recipe_is_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(text)
    line = refused(str(file))
    assert line.startswith(f"{file}:") and message in line


def test_a_recipe_file_may_have_any_name(tmp_path: Path) -> None:
    file = tmp_path / "recipe"
    file.write_text(recipe_text("digits/pgd-at"))
    assert load_config(str(file)) == load_config("digits/pgd-at")


def test_a_dumped_config_is_plain_yaml() -> None:
    tree = yaml.safe_load(dump_config(load_config("digits/eb-jdat")))
    assert (
        tree["attack"]["steps"] == 5 and tree["method"]["name"] == "eb-jdat" and tree["regulariser"] is None
    )
