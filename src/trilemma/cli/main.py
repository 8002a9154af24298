"""The ``trilemma`` command and its subcommands, in the order of a typical first session."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

import trilemma
from trilemma.cli.common import option
from trilemma.cli.compare import compare
from trilemma.cli.counterfactual import counterfactual
from trilemma.cli.demo import demo
from trilemma.cli.diagnose import diagnose
from trilemma.cli.evaluate import evaluate
from trilemma.cli.exits import OneLineErrors
from trilemma.cli.export import export
from trilemma.cli.generate import generate
from trilemma.cli.init import init
from trilemma.cli.lint import lint
from trilemma.cli.list import list_
from trilemma.cli.monitor import monitor
from trilemma.cli.predict import predict
from trilemma.cli.push import push
from trilemma.cli.quickstart import quickstart
from trilemma.cli.recipe import recipe
from trilemma.cli.report import report
from trilemma.cli.score import score
from trilemma.cli.shards import shards
from trilemma.cli.sweep import sweep
from trilemma.cli.train import train
from trilemma.cli.validate import validate
from trilemma.printing import print_block, print_lines, print_traceback, print_warnings_visibly

app = typer.Typer(
    name="trilemma",
    cls=OneLineErrors,
    add_completion=True,
    # plain-text help: brackets are kept, and the text can be searched and piped
    rich_markup_mode=None,
    # a bug prints Python's own traceback, with exit code 1
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(quickstart)
app.command()(init)
app.command()(train)
app.command()(sweep)
app.command()(evaluate)
app.command()(generate)
app.command()(predict)
app.command()(score)
app.command()(counterfactual)
app.command()(demo)
app.command()(lint)
app.command()(diagnose)
app.command()(monitor)
app.command()(compare)
app.command()(report)
app.command()(export)
app.command()(push)
app.command("list")(list_)
app.command()(recipe)
app.command()(validate)
app.command()(shards)


def _version(requested: bool) -> None:
    if requested:
        print_lines(f"trilemma {trilemma.__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def trilemma_command(
    context: typer.Context,
    version: Annotated[
        bool, option("--version", "print the version and exit", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Train, evaluate, analyse and sample image classifiers that are accurate, robust and generative.

    \b
    Start here:
      trilemma quickstart                     train and compare three classifiers in a few minutes, offline
      trilemma list recipes                   list the packaged training recipes
      trilemma train digits/eb-jdat           train one recipe into a run folder under runs/
      trilemma COMMAND --help                 options and examples of a command

    Exit codes: 0 success, 1 bug, 2 user error (with a one-line message), 3 training failed, 4 not stored (such as on a
    full disk; what was computed is printed), 130 interrupted.
    """
    if context.invoked_subcommand is None:
        print_block(context.get_help())


def main() -> None:
    """Entry point of the installed command."""
    # Must be set before torch is loaded: spinning threads reduce throughput by a factor of 2-5 on shared cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    print_warnings_visibly()
    try:
        app(prog_name="trilemma")
    except Exception as error:
        # A bug, with exit code 1. Python would print the messages in the traceback as they are.
        print_traceback(error)
        sys.exit(1)
