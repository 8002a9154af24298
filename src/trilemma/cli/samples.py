"""``trilemma evaluate --samples``: metrics of generated images, next to those of their starts and of real images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from trilemma.classifier.source import ClassifierSource
from trilemma.cli.common import choose_device, option, print_json, print_progress, print_table, print_text
from trilemma.errors import ConfigError
from trilemma.printing import print_lines
from trilemma.runs.lock import writing_inside

# Metrics whose table columns do not carry the extractor's name.
MANIFOLD = ("precision", "recall", "density", "coverage")
# Metrics of the distance to the nearest training image in pixels, and their titles.
PIXELS = {"distance": "distance to nearest", "distance_ratio": "of real", "near_copies": "near copies"}

if TYPE_CHECKING:
    from trilemma.data.image_set import Splits
    from trilemma.evaluation.protocols.generation import SampleSet
    from trilemma.metrics.frechet import Extractor
    from trilemma.runs.run_directory import RunDirectory

SamplesPath = Annotated[
    str | None,
    option("--samples PATH", "generated images to evaluate: a folder or .npz file; requires --extractor"),
]
ExtractorName = Annotated[
    str | None,
    option(
        "--extractor E",
        "feature extractor: an independent RUN_OR_FILE, efficientnet-lite0, inception or inception:WEIGHTS",
    ),
]
Draws = Annotated[
    int | None,
    option("--draws R", "divide the samples into R draws; 95 % intervals of all metrics from 5 draws", min=1),
]
Reference = Annotated[
    int | None,
    option(
        "--reference N", "number of training images to compare with, class-balanced  [default: all]", min=2
    ),
]
Origin = Annotated[
    str | None,
    option("--origin TEXT", "origin of the samples, such as replay-buffer, and how they were selected"),
]


@dataclass(frozen=True)
class SampleOptions:
    """What ``--samples`` names, and how it is measured."""

    samples: str | None
    extractor: str | None
    origin: str | None = None
    draws: int | None = None
    reference: int | None = None

    @property
    def given(self) -> bool:
        """Whether any of the options was given."""
        return any(value is not None for value in vars(self).values())

    def check(self) -> tuple[str, str]:
        """Returns samples and extractor.

        Raises:
            ConfigError: one of them without the other, or another option without them.
        """
        if self.samples is None:
            name, value = next((key, value) for key, value in vars(self).items() if value is not None)
            raise ConfigError(f"--{name} {value}: requires --samples")
        if self.extractor is None:
            raise ConfigError(
                f"--samples {self.samples}: requires --extractor, the network whose features are compared"
            )
        return self.samples, self.extractor


def evaluate_samples(
    source: ClassifierSource, options: SampleOptions, data: str | None, seed: int, device: str | None, quiet: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Prints the result row of the samples; with a run, also writes it to the run's evaluation folder.

    Raises:
        ConfigError: options that do not fit, or no images to compare with.
    """
    samples, extractor = options.check()
    if source.empty and data is None:
        raise ConfigError(
            f"--samples {samples}: needs training images to compare with; add a run folder or --data"
        )
    if not source.empty:
        source.check()
    run = source.run
    if not source.empty and run is None:
        raise ConfigError(f"--samples {samples}: {source} is not a run folder; replace it by --data")
    network = independent_extractor(extractor, run, device)
    from trilemma.evaluation.protocols.generation import read_samples

    row = sample_row(run, read_samples(samples, options.origin), network, options, data, seed, quiet)
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
    run: RunDirectory | None, samples: SampleSet, extractor: Extractor, options: SampleOptions, data: str | None,
    seed: int, quiet: bool,
) -> dict[str, Any]:  # fmt: skip
    """Returns the result row of the samples compared with the images of ``data``, by default of the run.

    With a run, the row is also written to its evaluation folder.
    """
    from trilemma.evaluation.protocols.generation import measure_samples
    from trilemma.runs.records import write_row

    splits = comparison_splits(data, run)
    assert splits is not None
    print_progress(f"evaluating {len(samples.images)} images of {options.samples or samples.name}", quiet)
    draws = 1 if options.draws is None else options.draws
    with writing_inside(None if run is None else run.path):
        row = measure_samples(samples, splits, extractor, seed=seed, draws=draws, reference=options.reference)
        if run is not None:
            write_row(run.path, row)
    return row


def comparison_splits(data: str | None, run: RunDirectory | None) -> Splits | None:
    """Returns the images of ``data``, a name or a path, by default those of the run; ``None`` without both."""
    from trilemma.config.registry import DATASETS
    from trilemma.data.sources import load_splits
    from trilemma.evaluation.evaluate import run_splits

    if data is not None:
        return load_splits(data) if data in DATASETS else load_splits("folder", data)
    return None if run is None else run_splits(run.path)


def print_row(row: dict[str, Any]) -> None:
    """Prints the metrics of the image sets as a table, and a line that states the reference images and features."""
    print_table(set_metrics(row))
    data = row["data"]
    print_lines(
        f"{row['protocol']}: against {data['name']} {data['split']}, {data['images']}, in {data['extractor']}"
    )
    if "draws" in row["facts"]:
        draws = row["facts"]["draws"]
        print_text(
            f"means of {draws['count']} draws of {draws['images']} images; in brackets: {draws['interval']}"
        )


def set_metrics(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns one table row each for start, sample and real images; with draws, values have their interval."""
    names = row["facts"]["names"] | {key: key for key in MANIFOLD} | PIXELS
    return [
        {
            "images": name,
            "count": metrics["count"],
            **{title: _with_interval(metrics, key) for key, title in names.items()},
        }
        for name, metrics in row["facts"]["sets"].items()
    ]


def _with_interval(metrics: dict[str, Any], key: str) -> object:
    """Returns a metric, with draws as text with its interval; ``None`` if the row has none of this name."""
    interval = metrics.get("intervals", {}).get(key)
    if interval is None:
        return metrics.get(key)
    return f"{metrics[key]:.4g} ({interval[0]:.4g} to {interval[1]:.4g})"
