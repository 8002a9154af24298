"""A recipe may change another one: ``base``."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.config.test_recipe import refused

from trilemma.config.recipe import dump_config, load_config


def write(folder: Path, **recipes: str) -> None:
    for name, text in recipes.items():
        (folder / f"{name}.yaml").write_text(text)


def test_sections_merge_and_keys_override(tmp_path: Path) -> None:
    write(tmp_path, own="base: digits/pgd-at\nattack: {steps: 2}\ntraining: {epochs: 3}\n")
    expected = load_config("digits/pgd-at", ["attack.steps=2", "training.epochs=3"])
    assert load_config(str(tmp_path / "own.yaml")) == expected
    # what is stored with a run needs no base
    write(tmp_path, stored=dump_config(expected))
    assert load_config(str(tmp_path / "stored.yaml")) == expected


def test_a_chain_of_bases_in_other_folders_is_relative_to_each_file(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    write(tmp_path / "a", first="base: digits/eb-jdat\ntraining: {epochs: 3, lr: 0.2}\n")
    write(tmp_path, second="base: a/first.yaml\ntraining: {lr: 0.3}\n")
    training = load_config(str(tmp_path / "second.yaml"), ["training.seed=4"]).training
    assert (training.epochs, training.lr, training.seed, training.ema) == (3, 0.3, 4, 0.995)


def test_another_method_drops_the_options_of_the_base_and_null_drops_a_section(tmp_path: Path) -> None:
    write(tmp_path, own="base: digits/eb-jdat\nmethod: trades\nsampler: null\nnetwork: {width: 4}\n")
    config = load_config(str(tmp_path / "own.yaml"))
    assert config.method.model_dump() == load_config("digits/trades").method.model_dump()
    assert config.sampler.name is None
    # the same network: its other options stay
    assert config.network.model_dump()["norm"] == "group" and config.network.model_dump()["width"] == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: other.yaml\n", "base: recipe file "),
        ("base: digits/pgd\n", "base: unknown recipe 'digits/pgd'. Did you mean"),
        ("base: [digits/pgd-at]\n", "base: ['digits/pgd-at'] is not the name or the path of a recipe"),
        ("base: ./own.yaml\n", "recipes are based on each other ("),
        ("base: digits/pgd-at\nbase: digits/trades\n", "base is given a second time"),
        ("base: digits/pgd-at\nepochs: 3\n", "epochs: unknown key. Did you mean 'training.epochs'?"),
    ],
)
def test_a_mistake_in_it_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path, own=text)
    assert message in refused(str(tmp_path / "own.yaml"))


def test_a_circle_of_two_is_named(tmp_path: Path) -> None:
    write(tmp_path, a="base: b.yaml\n", b="base: a.yaml\n")
    assert "b.yaml -> " in refused(str(tmp_path / "a.yaml"))


def test_a_base_is_no_override(tmp_path: Path) -> None:
    assert "a base is a key of recipe files" in refused("digits/pgd-at", "base=digits/trades")
