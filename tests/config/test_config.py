from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from trilemma.config.config import Config
from trilemma.config.recipe import build_config
from trilemma.config.registry import METHODS
from trilemma.config.section import Section
from trilemma.config.sections import TrainingConfig
from trilemma.errors import ConfigError, UnknownNameError
from trilemma.units import parse_fraction

THREAT = {"norm": "linf", "radius": "8/255"}


def tree(method: str = "trades", **sections):
    threat = {"threat": THREAT} if METHODS.options(method).uses_attack else {}
    return {"network": "small-resnet", "method": method, **threat, **sections}


def refused(tree) -> str:
    with pytest.raises((ConfigError, UnknownNameError)) as error:
        build_config(tree, "my.yaml")
    line = str(error.value)
    assert line.startswith("my.yaml: ") and "\n" not in line
    return line.removeprefix("my.yaml: ")


@settings(max_examples=40, derandomize=True, deadline=None, database=None)
@given(st.integers(1, 999), st.integers(1, 999))
def test_fractions_are_exact(numerator: int, denominator: int) -> None:
    assert parse_fraction(f"{numerator}/{denominator}") == Fraction(numerator, denominator)
    assert parse_fraction(f" {numerator} / {denominator} ") == Fraction(numerator, denominator)


def test_decimals_are_what_is_written_and_not_the_nearest_float() -> None:
    assert parse_fraction(0.1) == parse_fraction("0.1") == parse_fraction("1e-1") == Fraction(1, 10)
    assert parse_fraction(2) == 2


@pytest.mark.parametrize("value", ["", "8/0", "a", "8//255", None, True, [1], float("nan"), float("inf")])
def test_what_is_no_number_is_refused(value) -> None:
    with pytest.raises(ValueError, match="is not a number such as"):
        parse_fraction(value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trainning": {}}, "trainning: unknown key. Did you mean 'training'? Allowed here: data, network, method,"),
        ({"training": {"lrr": 1}}, "training.lrr: unknown key. Did you mean 'lr'? Allowed here: epochs, max_minutes,"),
        ({"network": {"name": "small-resnet", "widht": 8}}, "network.widht: unknown key. Did you mean 'width'?"),
        ({"method": {"name": "trades", "bta": 1}}, "method.bta: unknown key. Did you mean 'beta'? Allowed here: name,"),
        ({"regulariser": {"name": "der", "btea": 1}}, "regulariser.btea: unknown key. Did you mean 'beta'?"),
        ({"method": {"name": "standard", "beta": 1}}, "method.beta: unknown key."),
    ],
)  # fmt: skip
def test_an_unknown_key_names_itself_the_nearest_and_what_is_allowed(change, message: str) -> None:
    assert refused(tree() | change).startswith(message)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"training": {"lr": "fast"}}, ("training.lr:", "number", "got 'fast'")),
        ({"training": {"lr": 0}}, ("training.lr:", "greater than 0", "got 0")),
        ({"training": {"lr": float("nan")}}, ("training.lr:", "finite", "got nan")),
        ({"training": {"epochs": 1.5}}, ("training.epochs:", "integer", "got 1.5")),
        ({"training": {"ema": 1.0}}, ("training.ema:", "less than 1", "got 1.0")),
        (
            {"training": {"select": "best"}},
            ("training.select:", "'auto', 'clean', 'pgd-10' or 'last'", "got 'best'"),
        ),
        ({"training": 5}, ("training:", "dictionary", "got 5")),
        ({"threat": {"norm": "l1", "radius": 1}}, ("threat.norm:", "choose one of linf, l2", "got 'l1'")),
        ({"threat": {"radius": "8/0"}}, ("threat.radius:", "'8/0' is not a number such as 0.03 or '8/255'")),
        ({"threat": {"radius": -1}}, ("threat.radius:", "-1 must be above 0")),
        ({"attack": {"steps": 0}}, ("attack.steps:", "greater than 0", "got 0")),
        ({"update": {"name": "sams"}}, ("update.name:", "'plain', 'sam' or 'awp'", "got 'sams'")),
        ({"network": {"name": "small-resnet", "depth": 9}}, ("network.depth:", "6 n + 2", "got 9")),
        (
            {"network": {"name": "small-resnett"}},
            ("unknown network", "Did you mean 'small-resnet'", "Networks:"),
        ),
        ({"method": "trade"}, ("unknown method", "Did you mean 'trades'", "Methods:")),
        ({"method": {"name": 5}}, ("method:", "needs a name", "methods:")),
        ({"method": {"name": ["trades"]}}, ("method:", "needs a name")),
        ({"method": None}, ("method:", "needs a name")),
        ({"network": {}}, ("network:", "needs a name")),
    ],
)
def test_a_wrong_value_names_the_key_the_value_and_what_is_allowed(change, parts) -> None:
    line = refused(tree() | change)
    for part in parts:
        assert part in line, line


def test_a_missing_section_is_named_and_further_mistakes_are_counted() -> None:
    assert refused({"method": "standard"}) == "network: missing; every recipe needs it"
    assert refused(tree(training={"lr": 0, "epochs": 0})).endswith("(and 1 more)")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (tree("pgd-at") | {"threat": None}, "threat: method 'pgd-at' trains on adversarial images and needs"),
        (tree("standard", attack={"steps": 3}), "attack: method 'standard' has no attack; remove the"),
        (tree("trades", sampler={"steps": 3}), "sampler: method 'trades' has no sampler; remove the sampler keys"),
        (tree("standard", regulariser={"name": "der"}), "regulariser.name: 'der' compares"),
        (tree("sada-jem", regulariser={"name": "der"}), "regulariser.name: 'der' compares"),
        (tree("standard", training={"select": "pgd-10"}), "training.select: 'pgd-10' needs threat.norm"),
        (tree(schedule={"name": "multistep"}), "schedule.milestones: a multistep schedule needs at least one epoch"),
    ],
)  # fmt: skip
def test_an_impossible_combination_fails_before_any_work(wrong, message: str) -> None:
    assert refused(wrong).startswith(message)


def test_a_perturbation_that_begins_after_the_last_epoch_draws_a_warning() -> None:
    for from_epoch, count in ((5, 0), (6, 1)):
        update = {"name": "awp", "from_epoch": from_epoch}
        found = build_config(tree(update=update, training={"epochs": 5})).warnings
        assert len(found) == count and all(line.startswith("update.from_epoch: 6 ") for line in found)
    assert build_config(tree(update={"from_epoch": 6}, training={"epochs": 5})).warnings == []


def test_a_config_is_frozen_in_every_part() -> None:
    config = build_config(tree("eb-jdat"))
    for part, name in (
        (config, "devices"),
        (config.training, "lr"),
        (config.method, "align"),
        (config.network, "width"),
    ):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(part, name, 3)


def test_what_the_method_fills_in_is_written_into_the_config() -> None:
    config = build_config(tree("eb-jdat"))
    assert (config.attack.steps, config.attack.step_size) == (5, "2/255")
    assert (config.sampler.name, config.sampler.steps, config.sampler.clamp) == ("proximal", 10, 2.0)
    own = build_config(tree("eb-jdat", attack={"steps": 3}, sampler={"buffer_size": 50}))
    assert (own.attack.steps, own.attack.step_size, own.sampler.buffer_size) == (3, "2/255", 50)
    assert build_config(tree("n-fgsm")).attack.step_size == "8/255"
    assert build_config(tree("standard")).attack.steps is None


def test_another_sampler_does_not_inherit_the_step_of_the_default_one() -> None:
    config = build_config(tree("eb-jdat", sampler={"name": "momentum"}))
    assert (config.sampler.step_size, config.sampler.noise_std, config.sampler.clamp) == (None, None, None)
    assert config.sampler.start == "class-gaussian"


def test_every_description_and_default_holds_for_every_section() -> None:
    for name, field in Config.model_fields.items():
        assert name in {"network", "method", "regulariser", "threat"} or field.default is not None
    assert (
        TrainingConfig().model_dump()
        == TrainingConfig.model_validate(TrainingConfig().model_dump()).model_dump()
    )
    assert issubclass(Config, Section)


def test_numbers_written_with_an_exponent_are_numbers() -> None:
    assert build_config(tree(training={"lr": "1e-4"})).training.lr == 1e-4
