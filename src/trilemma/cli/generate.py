"""``trilemma generate``: images from a classifier, beside the starts they came from."""

from __future__ import annotations

from typing import Annotated, Any

from trilemma.cli.common import (
    Device,
    Json,
    Out,
    Quiet,
    Seed,
    Source,
    find_run,
    load_classifier,
    option,
    output_folder,
    percent,
    print_json,
    print_progress,
    print_table,
    show_progress_bar,
)
from trilemma.cli.samples import ExtractorName, independent_extractor, print_row, sample_row
from trilemma.config.registry import SAMPLERS
from trilemma.errors import ConfigError

STARTS = "uniform, gaussian, class-mean-noise, class-gaussian, class-pca, data or phase-scrambled"
DEFAULT_SAMPLER = "`trilemma list samplers`  [default: the chain it was trained with, else momentum]"
DEFAULT_ENERGY = "joint, marginal, ce or reference  [default: that of its chain, else joint]"
DEFAULT_STEP = "factor of the gradient, or length of a normalised step  [default: that of its chain]"


def generate(
    source: Source,
    per_class: Annotated[int, option("--per-class N", "images of each class", min=1)] = 10,
    start: Annotated[str, option("--start S", STARTS)] = "class-pca",
    sampler: Annotated[str | None, option("--sampler S", DEFAULT_SAMPLER)] = None,
    energy: Annotated[str | None, option("--energy E", DEFAULT_ENERGY)] = None,
    steps: Annotated[int, option("--steps N", "steps of the sampler", min=0)] = 100,
    step_size: Annotated[float | None, option("--step-size S", DEFAULT_STEP, min=0)] = None,
    namer: Annotated[
        str | None, option("--namer RUN_OR_FILE", "an independent classifier that judges")
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
    run = find_run(source)
    if namer is not None:
        find_run(namer)
    if extractor is not None and run is None:
        raise ConfigError(
            f"--extractor {extractor}: {source} is no run, whose training images are compared with; draw first, then "
            "trilemma evaluate --samples"
        )
    folder = output_folder(out, run, "samples")
    from trilemma.evaluation.evaluate import run_splits
    from trilemma.evaluation.samples import generate_samples, own_chain

    clf = load_classifier(source, device)
    judge = None if namer is None else load_classifier(namer, device)
    reader = None if extractor is None else independent_extractor(extractor, run, device)
    print_progress(f"generating {per_class} images per class from {source}", quiet)
    chain = own_chain(clf, sampler, energy)
    options = chain.options if step_size is None else {**chain.options, "step_size": step_size}
    record = generate_samples(
        clf, per_class, start, chain.sampler, chain.energy, steps, seed, folder, judge,
        None if run is None else run_splits(run.path), progress=show_progress_bar(quiet), **options,
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
            "named as their class": percent(row["named"]),
            "distance to nearest": row["distance"],
        }
        for name, row in record["figures"].items()
    ]
