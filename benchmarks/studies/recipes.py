"""What the packaged recipes reach, over three seeds, on the recipes' own test images: the table of the README.

    python benchmarks/studies/recipes.py --jobs 2
    python benchmarks/studies/recipes.py --data cifar10 --root PATH --jobs 2

Every run is a packaged recipe as it is, with another seed, on one thread. Of the checkpoint that was selected on
held-out images: clean accuracy and PGD-20 on all test images, and AutoAttack (standard) on all of digits and on the
first 1,000 of CIFAR-10, in stratified order. One seed says little about which of two recipes is ahead: the seeds of
one recipe differ by several percent, and so does one seed on two kinds of CPU, because sums in another order lead to
other weights. So the page states for each pair of recipes whether their ranges over the seeds overlap.
"""

from __future__ import annotations

import itertools
import json
import platform
import sys
from pathlib import Path
from statistics import mean

import torch
import yaml
from common import (
    PATH,
    RESULTS,
    ROOT,
    Draw,
    Job,
    Row,
    Scale,
    Study,
    accuracies,
    cases,
    finished,
    main,
    of,
    paragraph,
    table,
    update_page,
)  # fmt: skip
from matplotlib.figure import Figure

from trilemma.config.recipe import recipe_text
from trilemma.figures.style import RUN_MARKERS, Theme, new_figure

RECIPES = {
    "digits": ("digits/standard", "digits/pgd-at", "digits/eb-jdat"),
    "cifar10": ("cifar10/standard-small", "cifar10/pgd-at-small", "cifar10/eb-jdat-small"),
}
DATA = {"digits": "digits", "cifar10": "cifar10-jpeg@16"}
THREAT = {"digits": "L-inf 0.2", "cifar10": "L-inf 8/255"}
SEEDS = range(3)
AUTOATTACK = "autoattack-standard"
AUTOATTACK_IMAGES = {"digits": None, "cifar10": 1000}
PROTOCOLS = ("clean", "pgd-20", AUTOATTACK)
README_HEAD = (
    "Accuracy in percent, mean over three seeds (lowest to highest), protocols of version 1, the checkpoint selected "
    "on held-out images; all test images. The same seed gives other weights on another kind of CPU or with another "
    "number of threads, because sums are rounded in another order: compare ranges, not single runs. Command: `python "
    "benchmarks/studies/recipes.py`."
)


class Recipes(Study):
    name = "recipes"
    title = "Packaged recipes over three seeds"

    def jobs(self, scale: Scale) -> list[Job]:
        jobs = []
        for recipe, seed in itertools.product(RECIPES[scale.data], range(1) if scale.toy else SEEDS):
            tree = yaml.safe_load(recipe_text(recipe))
            tree["training"]["seed"] = seed
            if scale.root is not None:
                tree["data"]["root"] = PATH
            if scale.toy:
                tree["data"]["train_images"] = 40
                tree["training"] |= {"epochs": 1, "evaluate_every": 1, "batch_size": 20}
            jobs.append(Job(recipe, seed, tree))
        return jobs

    def measure(self, job: Job, run: Path, scale: Scale) -> Row:
        everything = 20 if scale.toy else 10**9
        images = 20 if scale.toy else AUTOATTACK_IMAGES[scale.data] or everything
        return {
            **accuracies(run, "best", ("clean", "pgd-20"), scale, images=everything),
            **accuracies(run, "best", (AUTOATTACK,), scale, images=images),
            "cpu": cpu(),
        }

    def tables(self, rows: list[Row], scale: Scale) -> str:
        count = AUTOATTACK_IMAGES[scale.data]
        caption = (
            f"Accuracy in percent, mean over the seeds (lowest to highest), threat {THREAT[scale.data]}, on all test "
            f"images{'' if count is None else f', AutoAttack on the first {count:,}'}. {_cpus(rows)}"
        )
        lines = [[case, *_cells(finished(rows, case=case))] for case in cases(rows)]
        header = ("recipe", *PROTOCOLS, "seeds")
        reading = paragraph(f"{scale.data}: {_ahead(rows)}")
        return f"{paragraph(caption)}\n\n{table(header, lines)}\n\n{reading}"

    def figures(self, rows: list[Row], scale: Scale) -> dict[str, Draw]:
        return {"": lambda theme: _figure(rows, theme)}


def cpu() -> str:
    """Name of the processor and its vector instructions, which decide the rounding."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"


def _cpus(rows: list[Row]) -> str:
    names = sorted({row["cpu"] for row in finished(rows)})
    return f"CPU: {'; '.join(names)}."


def _cells(rows: list[Row]) -> list[str]:
    """Table cells of one recipe: each protocol, and the number of seeds."""
    return [*(percent([row[name] for row in rows]) for name in PROTOCOLS), str(len(rows))]


def percent(values: list[float]) -> str:
    """``mean (lowest to highest)`` in percent; a dash if there is no value."""
    if not values:
        return "-"
    low, high = 100 * min(values), 100 * max(values)
    return f"{100 * mean(values):.1f} ({low:.1f} to {high:.1f})"


def _ahead(rows: list[Row]) -> str:
    """For each pair of recipes, which one is ahead under AutoAttack in every seed, if any."""
    sentences = []
    for first, second in itertools.combinations(cases(rows), 2):
        a, b = ([row[AUTOATTACK] for row in finished(rows, case=case)] for case in (first, second))
        if not a or not b:
            continue
        if min(a) > max(b) or min(b) > max(a):
            ahead, behind = (first, second) if min(a) > max(b) else (second, first)
            sentences.append(f"`{ahead}` is ahead of `{behind}` with every seed")
        else:
            sentences.append(f"the seeds of `{first}` and `{second}` overlap, so neither is ahead")
    return f"under AutoAttack, {'; '.join(sentences)}." if sentences else ""


def _figure(rows: list[Row], theme: Theme) -> Figure:
    """One point per run: clean accuracy against AutoAttack, a marker per recipe."""
    figure, axes = new_figure(6.4, 3.6)
    for number, case in enumerate(cases(rows)):
        points = of(rows, case=case)
        axes.plot(
            [100 * row["clean"] for row in points], [100 * row[AUTOATTACK] for row in points],
            linestyle="", marker=RUN_MARKERS[number], color=theme.runs[number], label=case,
        )  # fmt: skip
    axes.set_xlabel("clean accuracy, %")
    axes.set_ylabel("AutoAttack accuracy, %")
    axes.legend()
    return figure


def write_readme(page: Path) -> None:
    """Replaces the table of the README by the rows of all data that were measured."""
    lines, sentences = [], []
    for data, recipes in RECIPES.items():
        file = RESULTS / f"recipes-{data}.json"
        rows = json.loads(file.read_text(encoding="utf-8"))["rows"] if file.is_file() else []
        for recipe in recipes:
            if measured := finished(rows, case=recipe):
                lines.append([DATA[data], f"`{recipe}`", THREAT[data], *_cells(measured)])
        sentences.append(_ahead(rows) and f"{DATA[data]}: {_ahead(rows)} {_cpus(rows)}")
    header = ("data", "recipe", "threat", *PROTOCOLS, "seeds")
    reading = "\n\n".join(paragraph(sentence) for sentence in sentences if sentence)
    update_page(page, "measured", f"{paragraph(README_HEAD)}\n\n{table(header, lines)}\n\n{reading}")


if __name__ == "__main__":
    code = main(Recipes(), __doc__)
    if not {"--toy", "--row", "--results"} & set(sys.argv):
        write_readme(ROOT / "README.md")
    sys.exit(code)
