"""AutoAttack's verdicts, ours against the recorded ones, image by image on the third-party reference networks.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive python benchmarks/reference_verdicts.py
    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive python benchmarks/reference_verdicts.py cifar10_resnet4b_at2

Runs `autoattack-standard` (seed 0) on official test images 0 to 249 of each network in `../shared/reference-models`,
`pgd-50-10` and `screen` (seeds 0, 1, 2) beside it, and writes `benchmarks/results/reference-verdicts.json` and `.md`
and the tables in `docs/protocols.md`. A network whose row is there is left out unless it is named; one that was
interrupted goes on where it was. Criterion: per network at most one image that the reference breaks and we do not; the
mean over networks of (ours - recorded) robust accuracy at most 0.2 % in size.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from studies.common import update_page  # type: ignore[import-not-found]

import trilemma
from trilemma import __version__
from trilemma.attacks.autoattack import AutoAttackResult, autoattack
from trilemma.attacks.screen import screen_pool

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "reference-verdicts.json"
SEEDS = (0, 1, 2)
PAGE = ROOT / "docs" / "protocols.md"


def reference_models() -> Any:
    """The loader that the tests use."""
    spec = importlib.util.spec_from_file_location("reference_models", ROOT / "tests" / "reference_models.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def measure(name: str) -> dict[str, Any]:
    """One network: verdicts, disagreements and cost."""
    loader = reference_models()
    clf, images, labels, threat = loader.reference(name)
    recorded = loader.verdicts(name)
    state = RESULTS.with_name(f".{name}.safetensors")
    before = time.process_time()
    result = autoattack(clf, images, labels, threat, state=state, resume=True)
    seconds = time.process_time() - before
    state.unlink()
    return {
        "threat": f"{threat.norm} {threat.radius}",
        "images": len(labels),
        "clean": clean_share(result),
        "recorded_clean": recorded["clean_accuracy"],
        "robust": int(result.robust.sum()) / len(labels),
        "recorded_robust": recorded["robust_accuracy"],
        "only_reference_breaks": (result.robust & ~recorded["robust"]).nonzero().flatten().tolist(),
        "only_we_break": {
            str(place): result.broken_by[place]
            for place in (~result.robust & recorded["robust"]).nonzero().flatten().tolist()
        },
        "work": {
            attack: {
                "attacked": work.attacked,
                "broken": work.broken,
                "unconfirmed": work.unconfirmed,
                "forwards_per_image": round(work.forwards / max(1, work.attacked), 1),
                "backwards_per_image": round(work.backwards / max(1, work.attacked), 1),
                "seconds": round(work.seconds, 1),
            }
            for attack, work in result.work.items()
        },
        "processor_seconds": round(seconds, 1),
        "recorded_seconds": recorded["reference_seconds_one_thread"],
        "threads": torch.get_num_threads(),
        "trilemma": __version__,
        "torch": torch.__version__,
    }


def measure_pgd(name: str) -> dict[str, Any]:
    """PGD-50-10 of one network on the same images, and its processor time."""
    clf, images, labels, threat = reference_models().reference(name)
    before = time.process_time()
    row = trilemma.evaluate(clf, (images, labels), ["pgd-50-10"], threat, lint=False)["pgd-50-10"]
    return {"robust": row["value"], "processor_seconds": round(time.process_time() - before, 1)}


def measure_screen(name: str) -> dict[str, Any]:
    """What `screen` leaves of the same images by seed, and which of these the record says are broken."""
    loader = reference_models()
    clf, images, labels, threat = loader.reference(name)
    recorded = loader.verdicts(name)["robust"]
    before = time.process_time()
    pools = [screen_pool(clf, images, labels, threat, "auto", seed) for seed in SEEDS]
    seconds = (time.process_time() - before) / len(SEEDS)
    stands = [pool.robust for pool in pools]
    return {
        "left": [int(found.sum()) for found in stands],
        "recorded_left": int(recorded.sum()),
        "only_reference_breaks": [(found & ~recorded).nonzero().flatten().tolist() for found in stands],
        "only_we_break": [(~found & recorded).nonzero().flatten().tolist() for found in stands],
        "processor_seconds": round(seconds, 1),
    }


def clean_share(result: AutoAttackResult) -> float:
    return sum(name != "clean" for name in result.broken_by) / len(result.broken_by)


def accuracy_table(rows: dict[str, dict[str, Any]]) -> list[str]:
    """What the networks' accuracies are, ours beside the recorded ones, as lines of Markdown."""
    lines = [
        "| network | threat | clean | `pgd-50-10` | `autoattack-standard`, ours | recorded | only the record breaks "
        "| only we break | seconds: `pgd-50-10` | AutoAttack, ours | recorded |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        ours = ", ".join(f"{place} ({attack})" for place, attack in row["only_we_break"].items())
        theirs = ", ".join(map(str, row["only_reference_breaks"]))
        walks = row["pgd_50_10"]
        lines.append(
            f"| `{name}` | {row['threat']} | {row['clean']:.1%} | {walks['robust']:.1%} | {row['robust']:.1%} "
            f"| {row['recorded_robust']:.1%} | {theirs or '-'} | {ours or '-'} | {walks['processor_seconds']:.0f} "
            f"| {row['processor_seconds']:.0f} | {row['recorded_seconds']:.0f} |"
        )
    return lines


def screen_table(rows: dict[str, dict[str, Any]]) -> list[str]:
    """What the screen leaves beside what AutoAttack's record leaves, as lines of Markdown."""
    lines = [
        "| network | threat | AutoAttack leaves (record) | screen leaves, seeds 0, 1, 2 "
        "| of these broken in the record | stand in the record, broken by screen | seconds: screen "
        "| AutoAttack, ours |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        found = row["screen"]
        left = ", ".join(map(str, found["left"]))
        missed = ", ".join(str(len(places)) for places in found["only_reference_breaks"])
        more = ", ".join(str(len(places)) for places in found["only_we_break"])
        lines.append(
            f"| `{name}` | {row['threat']} | {found['recorded_left']} | {left} | {missed} | {more} "
            f"| {found['processor_seconds']:.0f} | {row['processor_seconds']:.0f} |"
        )
    return lines


def table(rows: dict[str, dict[str, Any]]) -> str:
    """The rows as Markdown, with the criterion."""
    lines = [
        "# AutoAttack: our verdicts against recorded ones",
        "",
        "`OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive python benchmarks/reference_verdicts.py`: official test images",
        "0 to 249, seed 0, one thread. Passes are per attacked image, forward / backward. Seconds of networks are",
        "of the processor, those of attacks of the clock on a machine that was shared; the recorded ones were measured",
        "by whoever ran the reference, on another day.",
        "",
        *accuracy_table(rows),
    ]
    lines += [
        "",
        "| network | attack | attacked | broken | not confirmed | passes | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        for attack, work in row["work"].items():
            passes = f"{work['forwards_per_image']:.0f} / {work['backwards_per_image']:.0f}"
            counts = f"{work['attacked']} | {work['broken']} | {work['unconfirmed']}"
            lines.append(f"| {name} | {attack} | {counts} | {passes} | {work['seconds']:.0f} |")
    differences = [row["robust"] - row["recorded_robust"] for row in rows.values()]
    mean = sum(differences) / len(differences)
    missed = max(len(row["only_reference_breaks"]) for row in rows.values())
    held = missed <= 1 and abs(mean) <= 0.002
    lines += [
        "",
        f"Most images that only the reference breaks: {missed}. Mean difference of robust accuracy: {mean:+.2%}. "
        f"Criterion (at most 1, at most 0.2 %): {'held' if held else 'NOT held'}.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    names = reference_models().NAMES
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("networks", nargs="*", help=f"of {', '.join(names)}; by default those without a row")
    asked = parser.parse_args().networks
    rows: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    for name in asked or [name for name in names if name not in rows]:
        rows[name] = measure(name) | {"pgd_50_10": measure_pgd(name), "screen": measure_screen(name)}
        rows = {name: rows[name] for name in names if name in rows}
        RESULTS.write_text(json.dumps(rows, indent=2) + "\n")
        RESULTS.with_suffix(".md").write_text(table(rows))
        print(f"{name}: {rows[name]}", file=sys.stderr)
    update_page(PAGE, "reference-verdicts", "\n".join(accuracy_table(rows)))
    update_page(PAGE, "screen-verdicts", "\n".join(screen_table(rows)))
    print(table(rows))


if __name__ == "__main__":
    main()
