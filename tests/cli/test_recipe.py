"""``trilemma recipe``."""

from __future__ import annotations

from pathlib import Path

from trilemma.config.recipe import load_config, recipe_text


def test_a_packaged_recipe_is_printed_as_written(trilemma):
    result = trilemma("recipe", "digits/eb-jdat")
    assert (result.exit_code, result.stdout) == (0, recipe_text("digits/eb-jdat"))
    assert result.stdout.startswith("# trilemma train digits/eb-jdat\n# Measured: ")


def test_the_resolved_one_has_every_key_and_is_a_recipe(trilemma):
    result = trilemma("recipe", "digits/pgd-at", "attack.steps=3", "--resolved")
    Path("mine.yaml").write_text(result.stdout)
    assert load_config("mine.yaml") == load_config("digits/pgd-at", {"attack.steps": 3})
    assert "weight_decay: 0.0005" in result.stdout


def test_mistakes(mistake):
    assert "Did you mean 'digits/pgd-at'?" in mistake("recipe", "digits/pgdat")
    assert "add --resolved" in mistake("recipe", "digits/pgd-at", "attack.steps=3")
