"""The arguments and options that several subcommands share, so that they read the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Recipe = Annotated[
    str, typer.Argument(metavar="RECIPE", help="a packaged name (`trilemma list recipes`) or a YAML file")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="key=value", help="config keys with dots, such as training.epochs=5", show_default=False
    ),
]
Source = Annotated[
    str, typer.Argument(metavar="RUN_OR_FILE", help="a run folder, a classifier file, or timm:NAME")
]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="a run folder")]
Seed = Annotated[int, typer.Option("--seed", metavar="N", min=0, help="seed of every random number")]
Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="DEVICE",
        help="cpu, cuda or cuda:N; the accelerator if there is one",
        show_default=False,
    ),
]
Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="NAME",
        help="a data set or a path; by default the run's own data",
        show_default=False,
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="DIR",
        help="where to write  [default: a folder in the run, or here]",
        show_default=False,
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="no progress on standard error")]
Json = Annotated[bool, typer.Option("--json", help="the result as JSON on standard output")]
Norm = Annotated[
    str | None, typer.Option("--norm", metavar="N", help="linf or l2; with --radius", show_default=False)
]
Radius = Annotated[
    str | None,
    typer.Option(
        "--radius",
        metavar="R",
        help="such as 8/255, pixel units; by default the stored threat",
        show_default=False,
    ),
]
