"""``trilemma evaluate --samples``: metrics of images that were generated before, beside starts and real images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from trilemma.cli.common import choose_device, find_run, option, print_json, print_progress, print_table
from trilemma.errors import ConfigError

# Shown beside the distances and the score, which carry the extractor's name.
MANIFOLD = ("precision", "recall", "density", "coverage")

if TYPE_CHECKING:
    from trilemma.metrics.frechet import Extractor
    from trilemma.runs.run_directory import RunDirectory

SamplesPath = Annotated[
    str | None, option("--samples PATH", "generated images to judge: a folder or .npz file; with --extractor")
]
ExtractorName = Annotated[
    str | None,
    option("--extractor E", "whose features: an independent RUN_OR_FILE, inception or inception:WEIGHTS"),
]
Origin = Annotated[
    str | None,
    option("--origin TEXT", "what the samples are, such as replay-buffer, and how they were picked"),
]


def judge_samples(
    source: str | None, samples: str | None, extractor: str | None, origin: str | None, data: str | None, seed: int,
    device: str | None, quiet: bool, as_json: bool,
) -> None:  # fmt: skip
    """Prints the row of the samples; a run's evaluation folder keeps it.

    Raises:
        ConfigError: one of ``samples`` and ``extractor`` without the other, or no images to compare with.
    """
    if samples is None:
        raise ConfigError(f"--extractor {extractor}: extracts the features of samples; give --samples too")
    if extractor is None:
        raise ConfigError(f"--samples {samples}: say with --extractor in whose features to compare them")
    if source is None and data is None:
        raise ConfigError(
            f"--samples {samples}: say with RUN or --data which training images to compare them with"
        )
    run = None if source is None else find_run(source)
    if source is not None and run is None:
        raise ConfigError(f"--samples {samples}: {source} is no run folder; leave it out and give --data")
    row = sample_row(run, samples, independent_extractor(extractor, run, device), origin, data, seed, quiet)
    if as_json:
        print_json({row["protocol"]: row})
    else:
        print_row(row)


def independent_extractor(name: str, run: RunDirectory | None, device: str | None) -> Extractor:
    """The extractor called ``name``, which must not be the run's own classifier."""
    from trilemma.classifier.load import load
    from trilemma.evaluation.protocols.generation import find_extractor
    from trilemma.evaluation.samples import check_independent

    found, judge = find_extractor(name, choose_device(device))
    if run is not None and judge is not None:
        check_independent("extractor", judge, load(run.path))
    return found


def sample_row(
    run: RunDirectory | None, samples: str, extractor: Extractor, origin: str | None, data: str | None, seed: int,
    quiet: bool,
) -> dict[str, Any]:  # fmt: skip
    """The row of the samples against the images of ``data``, else of the run, written into its evaluation folder."""
    from trilemma.config.registry import DATASETS
    from trilemma.data.sources import load_splits
    from trilemma.evaluation.evaluate import run_splits
    from trilemma.evaluation.protocols.generation import measure_samples, read_samples
    from trilemma.runs.records import write_row

    found = read_samples(samples, origin)
    if data is None and run is not None:
        splits = run_splits(run.path)
    else:
        splits = load_splits(str(data)) if data in DATASETS else load_splits("folder", data)
    print_progress(f"judging {len(found.images)} images of {samples}", quiet)
    row = measure_samples(found, splits, extractor, seed=seed)
    if run is not None:
        write_row(run.path, row)
    return row


def print_row(row: dict[str, Any]) -> None:
    """The three sets side by side, and what they were compared with."""
    print_table(sides(row))
    data = row["data"]
    print(
        f"{row['protocol']}: against {data['name']} {data['split']}, {data['images']}, in {data['extractor']}"
    )


def sides(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Start, sample and real images side by side."""
    names = row["facts"]["names"]
    return [
        {
            "images": name,
            "count": found["count"],
            **{names[key]: found[key] for key in names},
            **{key: value for key, value in found.items() if key in MANIFOLD},
        }
        for name, found in row["facts"]["sets"].items()
    ]
