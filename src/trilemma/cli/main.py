"""The ``trilemma`` command: its subcommands, in the order a newcomer meets them."""

from __future__ import annotations

import os
from typing import Annotated

import typer

import trilemma
from trilemma.cli.common import option
from trilemma.cli.compare import compare
from trilemma.cli.diagnose import diagnose
from trilemma.cli.evaluate import evaluate
from trilemma.cli.exits import OneLineErrors
from trilemma.cli.export import export
from trilemma.cli.generate import generate
from trilemma.cli.list import list_
from trilemma.cli.predict import predict
from trilemma.cli.quickstart import quickstart
from trilemma.cli.report import report
from trilemma.cli.train import train
from trilemma.cli.validate import validate

app = typer.Typer(
    name="trilemma",
    cls=OneLineErrors,
    add_completion=False,
    rich_markup_mode=None,  # plain help: brackets stay brackets, and it can be searched and piped
    pretty_exceptions_enable=False,  # a bug shows Python's own traceback, exit code 1
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(quickstart)
app.command()(train)
app.command()(evaluate)
app.command()(generate)
app.command()(predict)
app.command()(diagnose)
app.command()(compare)
app.command()(report)
app.command()(export)
app.command("list")(list_)
app.command()(validate)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"trilemma {trilemma.__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def trilemma_command(
    context: typer.Context,
    version: Annotated[
        bool, option("--version", "print the version and leave", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Train, evaluate, see and sample image classifiers that are accurate, robust and generative at once.

    \b
    Start here:
      trilemma quickstart                     a few minutes on a laptop, no network
      trilemma list recipes                   what can be trained
      trilemma train digits/eb-jdat           a run folder under runs/
      trilemma COMMAND --help                 every command has an example

    Exit codes: 0 done, 1 a bug, 2 a mistake (one line says which), 3 training failed, 130 interrupted.
    """
    if context.invoked_subcommand is None:
        print(context.get_help())


def main() -> None:
    """Entry point of the installed command."""
    # Before torch is loaded: threads that spin while they wait cost 2-5 times the throughput on shared cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    app(prog_name="trilemma")
