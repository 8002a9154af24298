"""Which way attacks move the energies of networks that are robust and of networks that are not.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive python benchmarks/energy_signs.py --root PATH

The literature reports, for large CIFAR networks: on one that is not robust, untargeted ascent of the cross-entropy
lowers E(x) strongly, and targeted, boundary and margin attacks raise it; on adversarially trained ones E(x*) lies
slightly above E(x). Here the attacks of `trilemma diagnose`, with its budgets, meet small networks of our own,
trained by
packaged recipes, and two third-party robust ones (`../shared/reference-models`); PATH is a folder with CIFAR-10. Runs
lie in `runs/energy-signs` and are trained once. Writes `benchmarks/results/energy-signs.json`, `.md` and `.png`; a case
whose row is there is left out unless it is named. What a person wrote under `## Reading` stays.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.result_page import write  # noqa: E402
from tests.reference_models import reference  # noqa: E402

import trilemma  # noqa: E402
from trilemma import Classifier, Threat  # noqa: E402
from trilemma.config.presets import CLASS, DIAGNOSE, DIAGNOSE_DEFAULT, LOSS, diagnose_presets  # noqa: E402
from trilemma.evaluation.diagnose import landscape  # noqa: E402
from trilemma.evaluation.evaluate import run_splits  # noqa: E402
from trilemma.evaluation.source import open_data  # noqa: E402
from trilemma.figures.energy_landscape import AIMS  # noqa: E402
from trilemma.figures.style import Theme, new_figure, save_figure  # noqa: E402
from trilemma.runs.run_directory import RunDirectory  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "energy-signs.json"
RUNS = ROOT / "runs" / "energy-signs"
COMMAND = "OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive python benchmarks/energy_signs.py --root PATH"
IMAGES = 200
COMPARED = (*DIAGNOSE_DEFAULT, "apgd-dlr")
Rows = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class Case:
    """Networks of one kind: a recipe and its seeds, or a third-party network.

    Attributes:
        robust: whether it was trained against attacks.
        recipe: a packaged one; empty for a third-party network, which has the case's name.
        changes: of the recipe.
    """

    robust: bool
    recipe: str = ""
    changes: dict[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)


_PHOTOGRAPHS = {"data.train_images": 10_000, "training.epochs": 15, "training.evaluate_every": 5}
_GROUP, _SILU = {"network.norm": "group"}, {"network.activation": "silu"}
CASES = {
    "digits, standard": Case(False, "digits/standard", seeds=(0, 1, 2)),
    "digits, standard, group norm": Case(False, "digits/standard", _GROUP, (0, 1, 2)),
    "digits, standard, SiLU": Case(False, "digits/standard", _SILU, (0, 1, 2)),
    "digits, standard, group norm and SiLU": Case(False, "digits/standard", _GROUP | _SILU, (0, 1, 2)),
    "cifar10 16x16, standard, batch norm and ReLU": Case(
        False,
        "cifar10/standard-small",
        {**_PHOTOGRAPHS, "network.norm": "batch", "network.activation": "relu"},
    ),
    "cifar10 16x16, standard, group norm and SiLU": Case(False, "cifar10/standard-small", _PHOTOGRAPHS),
    "digits, pgd-at": Case(True, "digits/pgd-at"),
    "cifar10 16x16, pgd-at": Case(True, "cifar10/pgd-at-small", _PHOTOGRAPHS),
    "mnist_wk_small_linf03": Case(True),
    "cifar10_resnet4b_at2": Case(True),
}


def measure(name: str, seed: int, root: Path | None) -> dict[str, Any]:
    """One network under all attacks."""
    case = CASES[name]
    threat: Threat | None
    clf: Classifier
    if case.recipe:
        path = RUNS / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"
        if RunDirectory(path).status().get("status") != "finished":
            changes = {**case.changes, "training.seed": seed}
            if case.recipe.startswith("cifar10"):
                changes["data.root"] = str(root)
            trilemma.train(case.recipe, changes, out=path, resume=RunDirectory(path).config_file.is_file())
        clf, data = trilemma.load(path), run_splits(path).test
        threat = clf.threat
    else:
        clf, images, labels, threat = reference(name, IMAGES)
        data = open_data(clf, (images, labels))
    assert threat is not None
    found = landscape(clf, data.first(IMAGES), threat, diagnose_presets(COMPARED), "uniform", 0)
    return {"seed": seed, "threat": str(threat), "images": min(IMAGES, len(data)), **found.moves()}


def page(content: Mapping[str, Any]) -> str:
    """Tables of everything measured so far."""
    rows: Rows = content["rows"]
    names = [name for name in CASES if name in rows]
    lines = [
        "# Which way attacks move the energies\n",
        f"`{content['command']}`\n",
        f"{content['about']}\n",
        "Mean dE(x) = E(x) - E(x*) in logits, mean over seeds (lowest to highest), and the share broken in brackets; "
        f"of the images classified right among the first {IMAGES} test images in a stratified order. Positive: the "
        "attack lowers E(x), so that the classifier believes in its images more than in real ones.\n",
        "| attack | budget | " + " | ".join(names) + " |",
        "|---" * (2 + len(names)) + "|",
        "| threat | | " + " | ".join(rows[name][0]["threat"] for name in names) + " |",
        "| trained against attacks | | "
        + " | ".join("yes" if CASES[n].robust else "no" for n in names)
        + " |",
        "| none: mean E(x) | | " + " | ".join(f"{_clean(rows[name]):.2f}" for name in names) + " |",
    ]
    for attack in COMPARED:
        cells = " | ".join(_cell(rows[name], attack) for name in names)
        lines.append(f"| {attack} | {DIAGNOSE[attack].words(10)} | {cells} |")
    lines += [
        "",
        "Signs, one count per attack and seed: `loss` are "
        + ", ".join(n for n in COMPARED if DIAGNOSE[n].aim == LOSS)
        + "; `class` the others.\n",
        "| | `loss` lowers E(x) | `class` raises E(x) | `loss` raises E(x) |",
        "|---|---|---|---|",
    ]
    for name in names:
        loss, other = (_signs(rows[name], aim) for aim in (LOSS, CLASS))
        lines.append(
            f"| {name} | {sum(s > 0 for s in loss)} of {len(loss)} | {sum(s < 0 for s in other)} of {len(other)} "
            f"| {sum(s < 0 for s in loss)} of {len(loss)} |"
        )
    lines += ["", "![Mean moves of E(x)](energy-signs.png)"]
    return "\n".join(lines) + "\n"


def _clean(found: list[dict[str, Any]]) -> float:
    return float(mean(row["clean"]["marginal"]["mean"] for row in found))


def _means(found: list[dict[str, Any]], attack: str) -> list[float]:
    return [row["attacks"][attack]["delta_marginal"]["mean"] for row in found]


def _cell(found: list[dict[str, Any]], attack: str) -> str:
    values = _means(found, attack)
    broken = mean(row["attacks"][attack]["broken"]["value"] for row in found)
    between = f" ({min(values):+.2f} to {max(values):+.2f})" if len(values) > 1 else ""
    return f"{mean(values):+.2f}{between} [{broken:.0%}]"


def _signs(found: list[dict[str, Any]], aim: str) -> list[float]:
    return [v for attack in COMPARED if DIAGNOSE[attack].aim == aim for v in _means(found, attack)]


def draw(rows: Rows, theme: Theme) -> Figure:
    """Per case a panel, per attack the mean dE(x) of each seed, and 5 % to 95 % of the first one's images."""
    names = [name for name in CASES if name in rows]
    columns = 2
    figure, grid = new_figure(
        8.4, 2.5 * -(-len(names) // columns), -(-len(names) // columns), columns, sharey=True, squeeze=False
    )
    heights = {attack: len(COMPARED) - place for place, attack in enumerate(COMPARED)}
    for axes in grid.flat[len(names) :]:
        axes.set_visible(False)
    for name, axes in zip(names, grid.flat, strict=False):
        for attack, height in heights.items():
            first = rows[name][0]["attacks"][attack]["delta_marginal"]
            axes.plot(
                [first["p05"], first["p95"]],
                [height] * 2,
                color=theme.sets["adversarial"],
                alpha=0.3,
                linewidth=4,
            )
            hollow = DIAGNOSE[attack].aim == CLASS
            values = _means(rows[name], attack)
            axes.plot(
                values, [height] * len(values), AIMS[DIAGNOSE[attack].aim][0], linestyle="", markersize=5,
                color=theme.sets["adversarial"], markeredgewidth=1.4,
                markerfacecolor=theme.background if hollow else theme.sets["adversarial"],
            )  # fmt: skip
        axes.axvline(0, color=theme.text, linewidth=1)
        axes.set_title(name, fontsize=9.5)
        axes.set_yticks(list(heights.values()), list(heights))
        axes.grid(True, axis="x")
        axes.set_xlabel("dE(x): raised on the left, lowered on the right")
    return figure


def publish(cases: Rows) -> None:
    """Adds ``cases`` to what was measured before, and draws everything."""
    rows = write(RESULTS, COMMAND, cases, page)
    save_figure(RESULTS.with_suffix(".png"), lambda theme: draw(rows, theme))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, metavar="PATH", help="a folder with CIFAR-10")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), metavar="NAME", help="measure these anew")
    arguments = parser.parse_args()
    known = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"] if RESULTS.is_file() else {}
    for name in arguments.cases or [name for name in CASES if name not in known]:
        if CASES[name].recipe.startswith("cifar10") and arguments.root is None:
            print(f"{name}: left out, give --root", file=sys.stderr)
            continue
        publish({name: [measure(name, seed, arguments.root) for seed in CASES[name].seeds]})


if __name__ == "__main__":
    main()
