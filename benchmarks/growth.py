"""How time and memory grow with batch, attack steps, classes, image size and number of images: exponents and a figure.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive python benchmarks/growth.py

One quantity grows, the others stay at the values of `BASE`. Every point is measured in a process of its own: processor
seconds (the least of its turns), and the largest memory while it ran, less that before. The exponent is the slope of a
straight line through the logarithms; the local one is that of the two largest sizes, where constant costs are smallest.
Images are noise, networks have random weights. Writes `benchmarks/results/growth.json`, `.md` and `.png`; a point whose
row is there is left out unless `--again`. What a person wrote under `## Reading` stays.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.result_page import write  # noqa: E402

from trilemma import Batch, Classifier, Threat, methods  # noqa: E402
from trilemma.data.image_set import ImageSet  # noqa: E402
from trilemma.data.loader import Loader  # noqa: E402
from trilemma.data.statistics import BANK_BYTES, ClassGaussian, GaussianBank  # noqa: E402
from trilemma.figures.style import RUN_MARKERS, Theme, in_theme, new_figure, save_figure  # noqa: E402
from trilemma.networks.small_resnet import SmallResNet  # noqa: E402
from trilemma.runs.run_directory import RunDirectory  # noqa: E402
from trilemma.training.statistics import PCA_BYTES, attach, fit_pca  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "growth.json"
COMMAND = "OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive python benchmarks/growth.py"
BASE = {"batch": 32, "steps": 2, "classes": 10, "side": 32, "images": 2_000}
TURNS = 3
# A point that took this many seconds is not repeated.
LONG = 1.0
Case = Callable[[Mapping[str, int]], Callable[[], object]]


def images_of(size: Mapping[str, int]) -> ImageSet:
    """Noise with balanced labels."""
    count, classes = max(size["images"], size["classes"]), size["classes"]
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(
        0, 256, (count, 3, size["side"], size["side"]), dtype=torch.uint8, generator=generator
    )
    return ImageSet(images, torch.arange(count) % classes, tuple(map(str, range(classes))), "noise", "train")


def classifier_of(size: Mapping[str, int]) -> Classifier:
    network = SmallResNet(size["classes"], 3, width=8, depth=8)
    return Classifier(network, size["classes"], image_shape=(3, size["side"], size["side"]))


def step(size: Mapping[str, int]) -> Callable[[], object]:
    """A training step of pgd-at: attack, loss, gradient of the weights."""
    clf, data = classifier_of(size), images_of({**size, "images": size["batch"]})
    threat = Threat("linf", "8/255")
    method = methods.create("pgd-at", threat=threat, attack={"steps": size["steps"]})
    state = method.init_state(clf, data, 0)
    index = torch.arange(len(data))[: size["batch"]]
    batch = Batch(data.float_images(index), data.labels[index])

    def run() -> None:
        clf.train()
        method.loss(clf, batch, state).loss.backward()

    return run


def epoch(size: Mapping[str, int]) -> Callable[[], object]:
    """An epoch of the loader alone, without augmentation."""
    loader = Loader(images_of(size), size["batch"])
    return lambda: [None for _ in loader.epoch(0)]


def pca(size: Mapping[str, int]) -> Callable[[], object]:
    """The class PCA of a classifier file."""
    data = images_of(size)
    return lambda: fit_pca(data)


def gaussians(size: Mapping[str, int]) -> Callable[[], object]:
    """A bank of class Gaussians and one start of every class."""
    data = images_of(size)
    labels = torch.arange(size["classes"])

    def run() -> GaussianBank:
        bank = GaussianBank(ClassGaussian(data), 0)
        bank.draw(labels)
        return bank

    return run


def file(size: Mapping[str, int]) -> Callable[[], object]:
    """Statistics of a classifier and its file."""
    clf, data = classifier_of(size).eval(), images_of(size)
    folder = tempfile.TemporaryDirectory()

    def run() -> int:
        attach(clf, data)
        path = Path(folder.name) / "classifier.safetensors"
        clf.save(path)
        weights = sum(int(value.nbytes) for value in clf.network.state_dict().values())
        return path.stat().st_size - weights

    return run


def log(size: Mapping[str, int]) -> Callable[[], object]:
    """Reading a training log of as many lines."""
    folder = tempfile.TemporaryDirectory()
    path = Path(folder.name)
    row = {"kind": "step", "loss": 1.5, "clean_accuracy": 0.5, "minutes": 1.0, "images_per_second": 900.0}
    with (path / "metrics.jsonl").open("w") as stream:
        for number in range(size["lines"]):
            stream.write(json.dumps({"step": number, "epoch": number / 100, **row}) + "\n")
    (path / "config.yaml").write_text("")
    run = RunDirectory(path)
    return lambda: (folder, len(run.metrics()))


# Series: what is measured, the quantity that grows, its sizes, and the values that differ from BASE.
SERIES: dict[str, tuple[Case, str, tuple[int, ...], dict[str, int]]] = {
    "training step, batch": (step, "batch", (8, 32, 128), {}),
    "training step, attack steps": (step, "steps", (1, 5, 20), {}),
    "training step, classes": (step, "classes", (10, 100, 1_000), {}),
    "training step, side": (step, "side", (16, 32, 64), {"batch": 16}),
    "loader epoch, images": (epoch, "images", (1_000, 8_000, 64_000), {"side": 16, "batch": 128}),
    "class PCA, classes": (pca, "classes", (10, 30, 100, 300, 1_000), {"side": 16, "images": 10_000}),
    "class PCA, side": (pca, "side", (8, 16, 32, 64), {"images": 1_000}),
    "class PCA, images": (pca, "images", (500, 2_000, 8_000), {"side": 16}),
    "class Gaussians, classes": (gaussians, "classes", (10, 100, 1_000), {"images": 10_000}),
    "class Gaussians, side": (gaussians, "side", (8, 16, 32, 64), {"images": 1_000}),
    "class Gaussians, images": (gaussians, "images", (500, 2_000, 8_000), {}),
    "classifier file, classes": (file, "classes", (10, 100, 1_000), {"images": 10_000}),
    "reading a log, lines": (log, "lines", (1_000, 10_000, 100_000), {}),
}  # fmt: skip
PANELS = ("training step", "class PCA", "class Gaussians")


@contextmanager
def processor_time() -> Iterator[list[float]]:
    """A context with a list that gets its processor seconds."""
    began, taken = time.process_time(), list[float]()
    yield taken
    taken.append(time.process_time() - began)


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def point(series: str, value: int) -> dict[str, Any]:
    """Measures one point in this process."""
    torch.manual_seed(0)
    case, quantity, _, changes = SERIES[series]
    run = case({**BASE, **changes, quantity: value})
    before, result = peak_mb(), None
    seconds: list[float] = []
    while len(seconds) < TURNS and sum(seconds) < LONG:
        with processor_time() as taken:
            result = run()
        seconds += taken
    row = {
        "series": series,
        "size": value,
        "seconds": round(min(seconds), 5),
        "mb": round(peak_mb() - before, 1),
    }
    if case is file:
        row["stored"] = f"{float(str(result)) / 1e6:.2f} MB beside the weights"
    elif isinstance(result, GaussianBank):
        held = sum(images.nbytes for _, images in result._chunks.values())
        row["stored"] = f"{held / 1e6:.1f} MB of samples"
    elif case is pca:
        row["stored"] = "nothing" if result is None else f"{result.singular_values.shape[1]} directions"  # type: ignore[attr-defined]
    return row


def slope(points: list[tuple[float, float]]) -> float | None:
    """The exponent of a power law through points (size, cost); ``None`` if a cost is not positive."""
    if len(points) < 2 or any(cost <= 0 for _, cost in points):
        return None
    x, y = ([math.log(value) for value in column] for column in zip(*points, strict=True))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum(
        (a - mean_x) ** 2 for a in x
    )


def by_series(rows: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The rows of every series that has some, by size."""
    grouped = {
        name: sorted((row for row in rows.values() if row["series"] == name), key=lambda row: row["size"])
        for name in SERIES
    }
    return {name: points for name, points in grouped.items() if points}


def page(content: Mapping[str, Any]) -> str:
    """A table of exponents, and one of all points."""
    grouped = by_series(content["rows"])
    lines = [
        "# Growth\n", f"`{content['command']}`\n", f"{content['about']}\n",
        f"Base: {', '.join(f'{name} {value:,}' for name, value in BASE.items())}.\n",
        "![Processor time and memory against the size, in proportion to the smallest one](growth.png)\n",
        "| series | sizes | exponent of time | between the two largest | exponent of memory |",
        "|---|---|---|---|---|",
    ]  # fmt: skip

    def text(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}"

    for name, points in grouped.items():
        times = [(row["size"], row["seconds"]) for row in points]
        memory = [(row["size"], row["mb"]) for row in points]
        sizes = f"{points[0]['size']:,} to {points[-1]['size']:,}"
        lines.append(
            f"| {name} | {sizes} | {text(slope(times))} | {text(slope(times[-2:]))} | {text(slope(memory))} |"
        )
    lines += ["", "| series | size | processor seconds | memory, MB | stored |", "|---|---|---|---|---|"]
    for name, points in grouped.items():
        for row in points:
            stored = row.get("stored", "")
            lines.append(f"| {name} | {row['size']:,} | {row['seconds']:.4g} | {row['mb']:.1f} | {stored} |")
    lines.append(
        f"\nLimits: {PCA_BYTES / 1e6:.0f} MB of class PCA in a file, {BANK_BYTES / 1e6:.0f} MB of samples in a bank."
    )
    return "\n".join(lines) + "\n"


@in_theme
def draw(rows: Mapping[str, Any], theme: Theme) -> Figure:
    """Time above and memory below, against the size relative to the smallest one."""
    grouped = by_series(rows)
    figure, grid = new_figure(3.6 * len(PANELS), 6.0, 2, len(PANELS), sharex="col")
    for column, panel in enumerate(PANELS):
        own = [(name, points) for name, points in grouped.items() if name.startswith(f"{panel},")]
        for line, (cost, label) in enumerate((("seconds", "processor seconds"), ("mb", "memory, MB"))):
            axes = grid[line][column]
            axes.set(xscale="log", yscale="log")
            for axis in (axes.xaxis, axes.yaxis):
                # Plain numbers: formulas are text in the figures of this project.
                axis.set_major_locator(LogLocator(subs=(1, 2, 5) if axis is axes.yaxis else (1,)))
                axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
                axis.set_minor_formatter(NullFormatter())
            for number, (name, points) in enumerate(own):
                shown = [(row["size"] / points[0]["size"], row[cost]) for row in points if row[cost] > 0]
                axes.plot(
                    *zip(*shown, strict=True), color=theme.runs[number], marker=RUN_MARKERS[number], markersize=4,
                    label=name.removeprefix(f"{panel}, "),
                )  # fmt: skip
            if column == 0:
                axes.set_ylabel(label)
            if line == 0:
                axes.set_title(panel)
                axes.legend(loc="best")
            else:
                axes.set_xlabel("size / smallest size")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--series", choices=SERIES, nargs="*", default=list(SERIES))
    parser.add_argument("--again", action="store_true", help="measure points again that have a row")
    parser.add_argument("--most", type=int, help="leave out larger sizes: shows that the script works")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    known = json.loads(options.results.read_text())["rows"] if options.results.is_file() else {}
    for name in options.series:
        for size in SERIES[name][2]:
            key = f"{name} {size}"
            if (key in known and not options.again) or (options.most and size > options.most):
                continue
            # A copy of this process, whose peak of memory begins anew.
            with get_context("fork").Pool(1) as pool:
                row = pool.apply(point, (name, size))
            print(row, flush=True)
            known = write(options.results, COMMAND, {key: row}, page)
    save_figure(options.results.with_suffix(".png"), lambda theme: draw(known, theme))


if __name__ == "__main__":
    main()
