"""The published results that `trilemma list published` lists, from a clone of RobustBench.

    python benchmarks/published_results.py PATH

`PATH` is a clone of https://github.com/RobustBench/robustbench or its git directory; its folder `model_info` holds one
file per entry of the leaderboards. Writes `src/trilemma/evaluation/published.csv`, which names the commit, its date and
the licence. RobustBench does not state numbers of parameters; they follow from the names of the architectures.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import re
import sys
from pathlib import Path
from typing import Any

from trilemma.evaluation.published import COLUMNS
from trilemma.networks.wide_resnet import WideResNet

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.clone import git

OUT = Path(__file__).resolve().parents[1] / "src" / "trilemma" / "evaluation" / "published.csv"
# Folder of model_info, norm and radius.
BOARDS = (
    ("cifar10", "Linf", "linf", "8/255"),
    ("cifar10", "L2", "l2", "0.5"),
    ("cifar10", "corruptions", "corruptions", ""),
    ("cifar100", "Linf", "linf", "8/255"),
    ("imagenet", "Linf", "linf", "4/255"),
)
# Millions of parameters by the beginning of an architecture's name, with 10 classes for CIFAR and 1000 for ImageNet.
# Approximate. Of an ensemble the largest part counts, of an unlisted name nothing is known.
MILLIONS = {
    "PreActResNet-18": 11.2, "ResNet-18": 11.2, "ResNet-20": 0.3, "ResNet-32": 0.5, "ResNet-110": 1.7,
    "ResNet-50": 23.5, "ResNest152": 60, "WideResNet-50-2": 68.9, "WideResNet-A4": 147, "WideResNet-34-R": 68,
    "DenseNet-121": 7, "ConvNeXt-T": 28.6, "ConvNeXt-S": 50.2, "ConvNeXt-B": 88.6, "ConvNeXt-L": 197.8,
    "ConvNeXtV2-L": 198, "Swin-B": 87.8, "Swin-L": 196.5, "ViT-S": 22.1, "ViT-B": 86.6, "XCiT-S12": 26.3,
    "XCiT-M12": 46.4, "XCiT-L12": 104.1,
}  # fmt: skip


def millions(architecture: str) -> float | None:
    """Millions of parameters of an architecture, or ``None``."""
    if wide := re.search(r"WideResNet-(\d+)-(\d+)", architecture):
        depth, width = (int(number) for number in wide.groups())
        if depth % 6 == 4:
            return round(_wide_resnet(depth, width), 1)
    name = architecture.removeprefix("MeanSparse ")
    return next((count for start, count in MILLIONS.items() if name.startswith(start)), None)


def _wide_resnet(depth: int, width: int) -> float:
    import torch

    with torch.device("meta"):
        network = WideResNet(10, depth=depth, width=width)
    return sum(weight.numel() for weight in network.parameters()) / 1e6


def entry(model: str, data: str, norm: str, radius: str, info: dict[str, Any]) -> list[Any]:
    """One line of the table: see COLUMNS."""
    reported = info["corruptions_acc"] if norm == "corruptions" else info["autoattack_acc"]
    # A leaderboard's "best known" accuracy: that of a stronger attack, where one was found.
    robust = info.get("external", reported)
    year = re.search(r"\b(20\d\d)\b", info["venue"])
    if norm != "corruptions" and info["eps"] == "0.031":
        radius = info["eps"]
    return [
        model, data, norm, radius, info["architecture"], millions(info["architecture"]), info["clean_acc"],
        "" if norm == "corruptions" else reported, robust, "yes" if info["additional_data"] else "no", info["venue"],
        year[1] if year else "", info["link"],
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("clone", type=Path)
    clone = parser.parse_args().clone
    commit, date = git(clone, "log", "-1", "--format=%H %cs").split()
    licence = git(clone, "show", "HEAD:LICENSE")
    notice = (
        re.search(r"Copyright \(c\)[^\n]*", licence),
        re.search(r"Permission is hereby granted.*?SOFTWARE\.\n", licence, re.DOTALL),
    )
    if notice[0] is None or notice[1] is None:
        raise SystemExit(
            f"{clone}: LICENSE is not the MIT licence any more; look at it and change this script"
        )
    head = [
        f"RobustBench (https://robustbench.github.io) of {date}, MIT licence",
        f"From https://github.com/RobustBench/robustbench, folder model_info, commit {commit}.",
        "Accuracies in per cent; robust: the lowest known, by AutoAttack or a stronger attack, or under corruptions.",
        "parameters: millions, not from RobustBench, but from the name of the architecture.",
        "Made by: python benchmarks/published_results.py PATH",
        notice[0][0],
        *notice[1][0].strip().splitlines(),
    ]
    text = io.StringIO()
    text.writelines(f"# {line}".rstrip() + "\n" for line in head)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for data, folder, norm, radius in BOARDS:
        files = git(clone, "ls-tree", "HEAD", f"model_info/{data}/{folder}/", "--name-only").splitlines()
        entries: list[list[Any]] = [
            entry(Path(file).stem, data, norm, radius, json.loads(git(clone, "show", f"HEAD:{file}")))
            for file in files
            if file.endswith(".json")
        ]
        entries.sort(key=lambda line: -float(line[COLUMNS.index("robust")]))
        writer.writerows(entries)
    OUT.write_text(text.getvalue(), encoding="utf-8")


if __name__ == "__main__":
    main()
