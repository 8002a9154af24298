"""Every command explains itself, with an example that names an option or argument it has."""

from __future__ import annotations

import re

import pytest
from typer.main import get_command

import trilemma as package
from trilemma.cli.main import app

COMMANDS = sorted(get_command(app).commands)  # type: ignore[attr-defined]


def test_the_commands_are_those_of_the_design():
    first = ["quickstart", "train", "evaluate", "generate", "predict", "score", "lint"]
    assert (
        sorted(
            [
                *first,
                "counterfactual",
                "diagnose",
                "compare",
                "demo",
                "report",
                "export",
                "init",
                "list",
                "monitor",
                "push",
                "recipe",
                "shards",
                "sweep",
                "validate",
            ]
        )
        == COMMANDS
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(trilemma, command):
    result = trilemma(command, "--help")
    assert result.exit_code == 0
    assert result.stderr == ""
    assert re.search(rf"^ +trilemma {command}\b", result.stdout, re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_in_an_example_exists(trilemma, command):
    text = trilemma(command, "--help").stdout
    examples = "\n".join(line for line in text.splitlines() if line.strip().startswith(f"trilemma {command}"))
    options = text.partition("Options:")[2]
    assert all(option in options for option in re.findall(r"--[a-z-]+", examples))


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_the_command_alone_is_a_question_for_help(trilemma, arguments):
    result = trilemma(*arguments)
    assert result.exit_code == 0
    assert all(command in result.stdout for command in COMMANDS)
    assert "quickstart" in result.stdout.partition("Commands:")[0]


def test_short_descriptions_fit_a_line(trilemma):
    assert "..." not in trilemma("--help").stdout.partition("Commands:")[2]


def test_version(trilemma):
    assert trilemma("--version").stdout == f"trilemma {package.__version__}\n"
