"""``trilemma generate``: images from a classifier, beside the starts they came from."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from trilemma.cli.common import (
    Device,
    Json,
    Out,
    Quiet,
    Seed,
    Source,
    find_source,
    load_classifier,
    out_folder,
    print_json,
    print_table,
    share,
    tell,
    watched,
)
from trilemma.cli.samples import ExtractorName, independent_extractor, print_row, sample_row
from trilemma.config.registry import SAMPLERS
from trilemma.errors import ConfigError

StartName = Annotated[
    str,
    typer.Option(
        "--start",
        metavar="S",
        help="uniform, gaussian, class-mean-noise, class-gaussian, class-pca, data or phase-scrambled",
    ),
]
SamplerName = Annotated[
    str | None,
    typer.Option(
        "--sampler",
        metavar="S",
        help="`trilemma list samplers`  [default: the chain it was trained with, else momentum]",
        show_default=False,
    ),
]
EnergyName = Annotated[
    str | None,
    typer.Option(
        "--energy",
        metavar="E",
        help="joint, marginal, ce or reference  [default: that of its chain, else joint]",
        show_default=False,
    ),
]


def generate(
    source: Source,
    per_class: Annotated[
        int, typer.Option("--per-class", metavar="N", min=1, help="images of each class")
    ] = 10,
    start: StartName = "class-pca",
    sampler: SamplerName = None,
    energy: EnergyName = None,
    steps: Annotated[int, typer.Option("--steps", metavar="N", min=0, help="steps of the sampler")] = 100,
    step_size: Annotated[
        float | None,
        typer.Option(
            "--step-size",
            metavar="S",
            min=0,
            help="factor of the gradient, or length of a normalised step  [default: that of its chain]",
            show_default=False,
        ),
    ] = None,
    namer: Annotated[
        str | None,
        typer.Option(
            "--namer", metavar="RUN_OR_FILE", help="an independent classifier that judges", show_default=False
        ),
    ] = None,
    extractor: ExtractorName = None,
    out: Out = None,
    seed: Seed = 0,
    device: Device = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Draws images of every class, and a labelled grid.

    Prints what samples, their starts and real test images have in common: the share that --namer names
    as the class asked for, the distance to the nearest training image, and with --extractor the distances
    between the sets. A sample is judged beside its own start: class-informed starts look like their class
    before any step.

    \b
    Examples:
      trilemma generate runs/digits-eb-jdat --start uniform --steps 300
      trilemma generate runs/digits-eb-jdat --per-class 20 --namer runs/digits-standard
    """
    if sampler is not None:
        SAMPLERS.row(sampler)
    run = find_source(source)
    if namer is not None:
        find_source(namer)
    if extractor is not None and run is None:
        raise ConfigError(
            f"--extractor {extractor}: {source} is no run, whose training images are compared with; draw first, then "
            "trilemma evaluate --samples"
        )
    folder = out_folder(out, run, "samples")
    from trilemma.evaluation.evaluate import run_splits
    from trilemma.evaluation.samples import generate_samples, own_chain

    clf = load_classifier(source, device)
    judge = None if namer is None else load_classifier(namer, device)
    reader = None if extractor is None else independent_extractor(extractor, run, device)
    tell(f"generating {per_class} images per class from {source}", quiet)
    chain = own_chain(clf, sampler, energy)
    options = chain.options if step_size is None else {**chain.options, "step_size": step_size}
    record = generate_samples(
        clf, per_class, start, chain.sampler, chain.energy, steps, seed, folder, judge,
        None if run is None else run_splits(run.path), progress=watched(quiet), **options,
    )  # fmt: skip
    grid = folder / f"{record['name']}.png"
    row = None
    if reader is not None:
        row = sample_row(run, f"{folder / record['name']}.npz", reader, None, None, seed, quiet)
    if as_json:
        print_json({**record, "grid": str(grid)} | ({} if row is None else {"generation": row}))
        return
    print_table(figures(record))
    if row is not None:
        print_row(row)
    print(f"grid: {grid}\nimages: {folder / record['name']}")


def figures(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Start, sample and real images side by side."""
    return [
        {
            "images": name,
            "count": row["count"],
            "named as their class": share(row["named"]),
            "distance to nearest": row["distance"],
        }
        for name, row in record["figures"].items()
    ]
