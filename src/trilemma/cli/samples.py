"""``trilemma evaluate --samples``: metrics of generated images, next to those of their starts and of real images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from trilemma.classifier.source import ClassifierSource
from trilemma.cli.common import choose_device, option, print_json, print_progress, print_table
from trilemma.errors import ConfigError

# Metrics whose table columns do not carry the extractor's name.
MANIFOLD = ("precision", "recall", "density", "coverage")

if TYPE_CHECKING:
    from trilemma.metrics.frechet import Extractor
    from trilemma.runs.run_directory import RunDirectory

SamplesPath = Annotated[
    str | None,
    option("--samples PATH", "generated images to evaluate: a folder or .npz file; requires --extractor"),
]
ExtractorName = Annotated[
    str | None,
    option("--extractor E", "feature extractor: an independent RUN_OR_FILE, inception or inception:WEIGHTS"),
]
Origin = Annotated[
    str | None,
    option("--origin TEXT", "origin of the samples, such as replay-buffer, and how they were selected"),
]


def evaluate_samples(
    source: ClassifierSource, samples: str | None, extractor: str | None, origin: str | None, data: str | None,
    seed: int, device: str | None, quiet: bool, as_json: bool,
) -> None:  # fmt: skip
    """Prints the result row of the samples; with a run, also writes it to the run's evaluation folder.

    Raises:
        ConfigError: one of ``samples`` and ``extractor`` without the other, or no images to compare with.
    """
    if samples is None:
        raise ConfigError(f"--extractor {extractor}: requires --samples")
    if extractor is None:
        raise ConfigError(
            f"--samples {samples}: requires --extractor, the network whose features are compared"
        )
    if source.empty and data is None:
        raise ConfigError(
            f"--samples {samples}: needs training images to compare with; add a run folder or --data"
        )
    if not source.empty:
        source.check()
    run = source.run
    if not source.empty and run is None:
        raise ConfigError(f"--samples {samples}: {source} is not a run folder; replace it by --data")
    row = sample_row(run, samples, independent_extractor(extractor, run, device), origin, data, seed, quiet)
    if as_json:
        print_json({row["protocol"]: row})
    else:
        print_row(row)


def independent_extractor(name: str, run: RunDirectory | None, device: str | None) -> Extractor:
    """Returns the feature extractor called ``name``.

    Raises:
        ConfigError: it is the run's own classifier.
    """
    from trilemma.classifier.load import load
    from trilemma.evaluation.protocols.generation import load_extractor
    from trilemma.evaluation.samples import check_independent

    extractor, classifier = load_extractor(name, choose_device(device))
    if run is not None and classifier is not None:
        check_independent("extractor", classifier, load(run.path))
    return extractor


def sample_row(
    run: RunDirectory | None, samples: str, extractor: Extractor, origin: str | None, data: str | None, seed: int,
    quiet: bool,
) -> dict[str, Any]:  # fmt: skip
    """Returns the result row of the samples compared with the images of ``data``, by default of the run.

    With a run, the row is also written to its evaluation folder.
    """
    from trilemma.config.registry import DATASETS
    from trilemma.data.sources import load_splits
    from trilemma.evaluation.evaluate import run_splits
    from trilemma.evaluation.protocols.generation import measure_samples, read_samples
    from trilemma.runs.records import write_row

    sample_sets = read_samples(samples, origin)
    if data is None and run is not None:
        splits = run_splits(run.path)
    else:
        splits = load_splits(str(data)) if data in DATASETS else load_splits("folder", data)
    print_progress(f"evaluating {len(sample_sets.images)} images of {samples}", quiet)
    row = measure_samples(sample_sets, splits, extractor, seed=seed)
    if run is not None:
        write_row(run.path, row)
    return row


def print_row(row: dict[str, Any]) -> None:
    """Prints the metrics of the image sets as a table, and a line that states the reference images and features."""
    print_table(set_metrics(row))
    data = row["data"]
    print(
        f"{row['protocol']}: against {data['name']} {data['split']}, {data['images']}, in {data['extractor']}"
    )


def set_metrics(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns one table row each for start, sample and real images."""
    names = row["facts"]["names"]
    return [
        {
            "images": name,
            "count": metrics["count"],
            **{names[key]: metrics[key] for key in names},
            **{key: value for key, value in metrics.items() if key in MANIFOLD},
        }
        for name, metrics in row["facts"]["sets"].items()
    ]
