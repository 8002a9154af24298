"""docs/config.md is what the configuration's classes say."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from trilemma.config.config import Config

SCRIPT = Path(__file__).parents[2] / "docs" / "generate_config.py"


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    specification = importlib.util.spec_from_file_location("generate_config", SCRIPT)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date(generator):
    assert generator.PAGE.read_text(encoding="utf-8") == generator.page(), (
        "run: python docs/generate_config.py"
    )


def test_every_section_is_on_the_page(generator):
    text = generator.page()
    assert all(f"### {name}" in text or f"## {name}" in text for name in Config.model_fields)


def test_every_meaning_is_of_a_key_that_has_none_of_its_own(generator):
    sections = generator.fixed_sections()
    for key in generator.MEANINGS:
        section, name = key.split(".")
        assert sections[section].model_fields[name].description is None, key


@pytest.mark.parametrize(
    ("model", "name", "words"),
    [
        ("training", "ema", "number in (0, 1) or `null`"),
        ("training", "epochs", "integer > 0"),
        ("threat", "radius", "pixel length"),
        ("attack", "step_size", "pixel length or `null`"),
        ("augmentation", "crop", "`auto` or integer in [0, 8192]"),
        ("schedule", "milestones", "list of integers"),
        ("data", "held_out", "number in (0, 0.5)"),
    ],
)
def test_types_in_words(generator, model, name, words):
    section = generator.fixed_sections()[model]
    whole = generator.bounds(section.model_fields[name].metadata)
    assert generator.type_words(generator.key_types(section)[name], whole) == words
