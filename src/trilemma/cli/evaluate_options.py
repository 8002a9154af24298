"""The options of ``trilemma evaluate`` that no other command has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

MaybeSource = Annotated[
    str | None,
    typer.Argument(
        metavar="RUN_OR_FILE",
        help="a run folder, a classifier file, weights, timm:NAME or robustbench:NAME",
        show_default=False,
    ),
]
Protocols = Annotated[
    list[str] | None,
    typer.Option(
        "--protocol", metavar="NAME", help="may be repeated  [default: clean, pgd-20]", show_default=False
    ),
]
Images = Annotated[
    int | None,
    typer.Option(
        "--images", metavar="N", min=1, help="only so many, in a fixed stratified order", show_default=False
    ),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="go on with an AutoAttack evaluation that was interrupted")
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="MOD:FN",
        help="FN() gives the network: images in [0, 1] to logits",
        show_default=False,
    ),
]
Network = Annotated[
    str | None,
    typer.Option(
        "--network",
        metavar="NAME",
        help="the network that a file of weights belongs to; options after commas",
        show_default=False,
    ),
]
Mean = Annotated[
    str | None,
    typer.Option(
        "--mean",
        metavar="M,...",
        help="per channel, if the network wants normalised images",
        show_default=False,
    ),
]
Std = Annotated[str | None, typer.Option("--std", metavar="S,...", help="with --mean", show_default=False)]
Checkpoint = Annotated[
    Literal["best", "last", "both"],
    typer.Option("--checkpoint", help="of a run: the best on held-out images, or the last"),
]
Kept = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="DIR",
        help="where rows and unfinished work go; a run has its own folder for them",
        show_default=False,
    ),
]
