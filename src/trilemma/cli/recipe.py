"""``trilemma recipe``: prints a recipe, as written or with every key."""

from __future__ import annotations

from typing import Annotated

from trilemma.cli.common import Overrides, Recipe, option
from trilemma.config.recipe import dump_config, load_config, recipe_text
from trilemma.errors import ConfigError
from trilemma.printing import print_block


def recipe(
    recipe: Recipe,
    overrides: Overrides = None,
    resolved: Annotated[
        bool, option("--resolved", "print every key, with the base, the overrides and all defaults filled in")
    ] = False,
) -> None:
    """Prints a recipe as YAML, to read or to start from.

    A recipe of your own need not repeat the packaged one: with `base: digits/pgd-at` it states only what it changes.

    \b
    Examples:
      trilemma recipe digits/pgd-at
      trilemma recipe digits/pgd-at --resolved attack.steps=5 > mine.yaml
    """
    if resolved:
        print_block(dump_config(load_config(recipe, overrides or ())))
        return
    if overrides:
        raise ConfigError(f"{overrides[0]}: overrides change only the resolved recipe; add --resolved")
    print_block(recipe_text(recipe))
