"""One reading per value: what YAML 1.1 and 1.2 read differently is refused with its line."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.config.test_recipe import refused

from trilemma.config.overrides import parse_overrides
from trilemma.config.recipe import load_config
from trilemma.config.yaml_text import parse_yaml
from trilemma.errors import ConfigError

RECIPE = """data: {name: digits}
network: {name: small-resnet, width: 8, depth: 8}
method: {name: pgd-at}
threat: {norm: linf, radius: 8/255}
training: {epochs: 1, lr: 0.1}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "own.yaml"


@pytest.mark.parametrize(
    ("addition", "message"),
    [
        ("training: {epochs: 2}", "line 6: training is given a second time (first on line 5); keep one of the two"),
        ("monitors: {overfitting: true, overfitting: true}", "line 6: overfitting is given a second time"),
        ("monitors: {remedies: {accuracy-gap: stop, accuracy-gap: stop}}", "line 6: accuracy-gap is given a second"),
        ("monitors:\n  max_rollbacks: 1\n  max_rollbacks: 2", "line 8: max_rollbacks is given a second time (first on"),
        ("update: {<<: {rho: 1.0}, <<: {rho: 2.0}}", "line 6: << is given a second time"),
    ],
)  # fmt: skip
def test_a_key_given_twice_is_refused_at_any_depth(file: Path, addition: str, message: str) -> None:
    file.write_text(RECIPE + addition)
    assert message in refused(str(file))


def test_a_merge_key_gives_values_that_the_mapping_itself_may_change(file: Path) -> None:
    file.write_text(RECIPE.replace("{epochs: 1,", "{<<: {epochs: 7, ema: 0.9}, epochs: 1,"))
    training = load_config(str(file)).training
    assert (training.epochs, training.ema) == (1, 0.9)


@pytest.mark.parametrize(
    "value", ["yes", "On", "no", "010", "0x10", "0o7", "0b1", "1_000", "1:30", "-.inf", ".nan"]
)
def test_a_value_of_two_readings_is_refused(file: Path, value: str) -> None:
    file.write_text(RECIPE.replace("lr: 0.1", f"lr: {value}"))
    assert f"own.yaml: line 5: {value} has two readings in YAML; write " in refused(str(file))
    assert refused("digits/pgd-at", f"training.lr={value}").startswith(
        f"override training.lr={value}: {value} has"
    )
    assert parse_yaml(f"'{value}'", "") == value


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("training.lr", True, "is a truth value, not a number; got True"),
        ("training.epochs", True, "is a truth value, not a number"),
        ("training.epochs", "010", "is not a decimal number; got '010'"),
        ("training.lr", "1_0", "is not a decimal number"),
        ("training.lr", "nan", "is not a decimal number"),
        ("training.lr", float("inf"), "finite"),
        ("training.lr", "2024-01-01", "number"),
        ("training.compile", 1, "is a number; write true or false"),
        ("training.compile", "y", "is not a truth value"),
        ("augmentation.flip", 1, "is a number"),
        ("augmentation.crop", True, "is a truth value"),
        ("augmentation.crop", "04", "is not a decimal number"),
        ("schedule.milestones", [True, 3], "is a truth value"),
        ("threat.radius", "010/255", "is not a number such as"),
        ("threat.radius", 8, "more than the whole range [0, 1]; write '8/255'"),
        ("training.seed", 2**64 - 1, "less than or equal to"),
    ],
)  # fmt: skip
def test_a_value_of_another_kind_is_not_converted(key: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config("digits/pgd-at", {key: value})
    assert str(error.value).startswith(f"digits/pgd-at: {key}: ") and message in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ((RECIPE + "# café\n").encode("latin-1"), "line 6 is not UTF-8 (byte 0xe9); save the file as UTF-8"),
        (RECIPE.encode("utf-16"), "is UTF-16 text; save the file as UTF-8"),
        (RECIPE.encode() + b"update:\n\tname: sam\n", "line 7: begins with a tab; indent with spaces"),
        (RECIPE.encode() + b"# \0", "is a control character"),
        (RECIPE.encode() + b"---\n" + RECIPE.encode(), "found another document"),
        (b"- a list\n", "a recipe is a YAML mapping of sections"),
        (b"", "a recipe is a YAML mapping of sections"),
        (RECIPE.encode() + b"1: 2\n", "line 6: 1 is not a key; a key is a name"),
        (RECIPE.encode() + b"training.lr: 2\n", "training.lr: keys with dots are for the command line; in a file"),
        (b"a: " + b"[" * 5000, "nested too deeply"),
    ],
)  # fmt: skip
def test_another_form_of_file_is_named(file: Path, content: bytes, message: str) -> None:
    file.write_bytes(content)
    line = refused(str(file))
    assert line.startswith(f"{file}: ") and message in line


def test_a_byte_order_mark_and_windows_line_ends_change_nothing(file: Path) -> None:
    file.write_bytes(RECIPE.encode())
    plain = load_config(str(file))
    file.write_bytes(b"\xef\xbb\xbf" + RECIPE.replace("\n", "\r\n").encode())
    assert load_config(str(file)) == plain


def test_a_folder_with_a_recipes_name_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").mkdir()
    assert "x.yaml is a folder" in refused(str(tmp_path / "x.yaml"))


def test_the_value_of_an_override_is_taken_whole() -> None:
    given = ["data.root=/photos #2/a: b", "method.x= 3 ", "training.start=2024-01-01"]
    assert parse_overrides(given) == {
        "data.root": "/photos #2/a: b", "method.x": 3, "training.start": "2024-01-01"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["training.lr=0.1", "training.lr=0.2"],
            "training.lr is given twice on the command line, as 0.1 and as 0.2",
        ),
        (
            ["training={lr: 1}", "training.lr=2"],
            "training.lr is given twice on the command line, as 1 in training",
        ),
        (["method=trades", "method.name=mart"], "method.name is given twice"),
    ],
)
def test_overrides_that_contradict_each_other_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_overrides(overrides)
    assert str(error.value).startswith(message)


def test_overrides_that_agree_or_name_the_whole_first_are_not() -> None:
    assert load_config("digits/pgd-at", ["training.lr=0.2", "training.lr=2e-1"]).training.lr == 0.2
    # in either order, the whole section does not remove the key beside it
    for overrides in (["training.lr=2", "training={epochs: 3}"], ["training={epochs: 3}", "training.lr=2"]):
        training = load_config("digits/pgd-at", overrides).training
        assert (training.epochs, training.lr) == (3, 2.0)


def test_a_name_alone_stands_for_its_section() -> None:
    config = load_config(
        "digits/pgd-at", ["schedule=cosine", "optimiser=adam", "data=mnist", "method=trades"]
    )
    assert (config.schedule.name, config.optimiser.name) == ("cosine", "adam")
    assert (config.data.name, config.method.name) == ("mnist", "trades")
