"""Shell completion: commands, options, and the names of recipes, protocols and lists; without torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trilemma.cli.common import complete_recipe, completed_by
from trilemma.cli.main import app
from trilemma.config.recipe import recipe_names
from trilemma.config.registry import PROTOCOLS

CODE = """
import sys
sys.argv = ["trilemma"]
from trilemma.cli.main import main
try:
    main()
finally:
    assert "torch" not in sys.modules
"""


def completed(line: str) -> list[str]:
    """What bash would offer at the end of the line."""
    words = line.split(" ")
    source = str(Path(__file__).parents[2] / "src")
    settings = {"_TRILEMMA_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        capture_output=True,
        text=True,
        env={**os.environ, **settings, "PYTHONPATH": source},
        check=True,
    )
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("trilemma ev", {"evaluate"}),
        ("trilemma train digits/trades training.ep", {"training.epochs="}),
        ("trilemma init photos --method pgd", {"pgd-at"}),
        ("trilemma train digits/eb", {name for name in recipe_names() if name.startswith("digits/eb")}),
        (
            "trilemma evaluate x --protocol autoattack-",
            {n for n in PROTOCOLS.names() if n.startswith("autoattack-")},
        ),
    ],
)
def test_bash_is_offered_names(line, offered):
    assert set(completed(line)) == offered and offered


def test_names_are_completed_by_their_beginning():
    assert completed_by(lambda: ("one", "two", "other"))("o") == ["one", "other"]
    assert complete_recipe("digits/") == [name for name in recipe_names() if name.startswith("digits/")]


def test_the_help_shows_how_to_install_it(trilemma):
    assert app.info.cls is not None
    assert "--install-completion" in trilemma("--help").stdout
