"""Every number of a recipe has bounds: no field of any section takes what float32 and 64 bits do not hold."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from trilemma.config import sections
from trilemma.config.config import SharedConfig
from trilemma.config.recipe import load_config
from trilemma.config.registry import METHODS, NETWORKS
from trilemma.config.section import Section
from trilemma.config.starts import parse_start
from trilemma.errors import ConfigError, UserError

SECTIONS: list[tuple[type[Section], dict[str, Any]]] = [
    (model, {"name": "der"} if name == "RegulariserConfig" else {})
    for name, model in vars(sections).items()
    if isinstance(model, type) and issubclass(model, Section) and model is not Section
]
SECTIONS += [(METHODS.options(name), {"name": name}) for name in METHODS.names()]
SECTIONS += [
    (NETWORKS.options(name), {"name": name} | ({"model": "resnet18"} if name == "timm" else {}))
    for name in NETWORKS.names()
]
IMPOSSIBLE = [
    float("nan"), float("inf"), -float("inf"), 1e308, 1e-320, 2**63, 10**30, 10**5_000, "1e-400", "1e999", "nan",
    "9" * 5_000, "1_000", "\u0663",
]  # fmt: skip


@pytest.mark.parametrize(("model", "base"), SECTIONS, ids=lambda value: getattr(value, "__name__", ""))
def test_no_number_of_a_section_is_beyond_what_is_computed_with(
    model: type[Section], base: dict[str, Any]
) -> None:
    for name in model.model_fields:
        for value in IMPOSSIBLE:
            try:
                accepted = getattr(model.model_validate({**base, name: value}), name)
            except (ValidationError, UserError):
                continue
            # A text is a name or a path, which may look like a number; the norm is inf.
            assert isinstance(accepted, str), (name, value, accepted)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.lr=1e308", "too large"),
        ("training.lr=1e-400", "too small"),
        ("training.weight_decay=nan", "training.weight_decay"),
        ("training.epochs=" + "9" * 5_000, "more than 100 digits"),
        ("threat.radius=1e-400", "too small"),
        ("attack.step_size=inf", "'inf' is not a number"),
        ("data.size=1000000", "less than or equal to 8192"),
        ("augmentation.crop=1000000", "augmentation.crop"),
        ("x=" + "[" * 3_000, "nested too deeply"),
    ],
)
def test_an_impossible_number_is_one_line(override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        load_config("digits/pgd-at", [override])
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_processes_are_as_many_as_a_machine_may_start() -> None:
    from trilemma.training.devices import check_devices

    config = load_config("digits/standard", {"devices": 1_000_000, "training.batch_size": 1_000_000})
    assert "devices" in SharedConfig.model_fields
    with pytest.raises(ConfigError, match="devices: 1000000 processes are more than"):
        check_devices(config, "cpu")


@pytest.mark.parametrize("weight", ["nan", "1_0", "\u0663", "1e-400", "-1", "inf"])
def test_the_weight_of_a_start_is_a_decimal_number(weight: str) -> None:
    with pytest.raises(ConfigError):
        parse_start(f"uniform:{weight},class-pca:0.5")
