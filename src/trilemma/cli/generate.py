"""``trilemma generate``: samples images from a classifier and compares them with their start images."""

from __future__ import annotations

from typing import Annotated, Any

from trilemma.classifier.source import ClassifierSource
from trilemma.cli.common import (
    Device,
    Json,
    Out,
    Quiet,
    Seed,
    choose_device,
    option,
    output_folder,
    percent,
    print_json,
    print_progress,
    print_table,
    show_progress_bar,
)
from trilemma.cli.model import with_classifier
from trilemma.cli.samples import (
    Draws,
    ExtractorName,
    SampleOptions,
    independent_extractor,
    print_row,
    sample_row,
)
from trilemma.config.registry import SAMPLERS
from trilemma.errors import ConfigError

START_HELP = "see `trilemma list starts`"
SAMPLER_HELP = "see `trilemma list samplers`  [default: the sampler used in training, else momentum]"
ENERGY_HELP = "joint, marginal, ce or reference  [default: the energy used in training, else joint]"
STEP_SIZE_HELP = (
    "gradient factor, or length of a normalised step  [default: as in training, else the sampler's]"
)


@with_classifier
def generate(
    classifier: ClassifierSource,
    per_class: Annotated[int, option("--per-class N", "images per class", min=1)] = 10,
    start: Annotated[str, option("--start S", START_HELP)] = "class-pca",
    sampler: Annotated[str | None, option("--sampler S", SAMPLER_HELP)] = None,
    energy: Annotated[str | None, option("--energy E", ENERGY_HELP)] = None,
    steps: Annotated[int, option("--steps N", "sampler steps", min=0)] = 100,
    step_size: Annotated[float | None, option("--step-size S", STEP_SIZE_HELP, min=0)] = None,
    namer: Annotated[
        str | None, option("--namer RUN_OR_FILE", "independent classifier that labels the samples")
    ] = None,
    extractor: ExtractorName = None,
    draws: Draws = None,
    out: Out = None,
    seed: Seed = 0,
    device: Device = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Generates images of every class, and a labelled grid.

    Prints the same metrics for samples, their start images and real test images: the share that the classifier of
    --namer assigns to the requested class, the distance to the nearest training image, and with --extractor the
    distances between the sets. Compare samples with their starts: class-informed starts resemble their class
    before any step.

    \b
    Examples:
      trilemma generate runs/digits-eb-jdat --start uniform --steps 300
      trilemma generate runs/digits-eb-jdat --per-class 20 --namer runs/digits-standard
    """
    if sampler is not None:
        SAMPLERS.row(sampler)
    classifier.check()
    run = classifier.run
    naming = None if namer is None else ClassifierSource(namer)
    if naming is not None:
        naming.check()
    if extractor is not None and run is None:
        raise ConfigError(
            f"--extractor {extractor}: {classifier} is not a run, so there are no training images to compare with; "
            "generate first, then use `trilemma evaluate --samples`"
        )
    if draws is not None and extractor is None:
        raise ConfigError(f"--draws {draws}: requires --extractor, the network whose features are compared")
    folder = output_folder(out, run, "samples")
    from trilemma.evaluation.evaluate import run_splits
    from trilemma.evaluation.samples import generate as generate_images

    clf = classifier.open(choose_device(device))
    naming_classifier = None if naming is None else naming.open(choose_device(device))
    feature_extractor = None if extractor is None else independent_extractor(extractor, run, device)
    print_progress(f"generating {per_class} images per class from {classifier}", quiet)
    options: dict[str, Any] = {} if step_size is None else {"step_size": step_size}
    generated = generate_images(
        clf, per_class, start, sampler, energy, steps, seed, folder, naming_classifier,
        None if run is None else run_splits(run.path), progress=show_progress_bar(quiet), **options,
    )  # fmt: skip
    record, grid = generated.record, generated.grid
    row = None
    if feature_extractor is not None:
        archive, options_of_row = (
            f"{folder / record['name']}.npz",
            SampleOptions(None, extractor, draws=draws),
        )
        row = sample_row(run, archive, feature_extractor, options_of_row, None, seed, quiet)
    if as_json:
        print_json({**record, "grid": str(grid)} | ({} if row is None else {"generation": row}))
        return
    print_table(sample_metrics(record))
    if row is not None:
        print_row(row)
    print(f"grid: {grid}\nimages: {folder / record['name']}")


def sample_metrics(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns one table row each for start, sample and real images."""
    return [
        {
            "images": name,
            "count": metrics["count"],
            "named as their class": percent(metrics["named"]),
            "distance to nearest": metrics["distance"],
        }
        for name, metrics in record["figures"].items()
    ]
