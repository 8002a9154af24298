"""Published results: the file, the entries beside a row, and results that are better than anything published."""

from __future__ import annotations

from typing import Any

import pytest

from trilemma.config.registry import PROTOCOLS
from trilemma.evaluation.lint.rows import STANDARD, row_findings
from trilemma.evaluation.published import (
    implausible,
    leaderboard,
    published,
    published_bound,
    published_rows,
    source,
)

LINF = {"norm": "linf", "radius": "8/255"}


def row(clean: float, robust: float, parameters: int = 11_170_000, **changes: Any) -> dict[str, Any]:
    """A row of AutoAttack on all test images of CIFAR-10."""
    count = changes.pop("count", 10_000)
    return {
        "protocol": STANDARD, "value": robust, "lower": robust - 0.01, "count": count,
        "data": {"name": "cifar10", "split": "test", "images": "all 10000"}, "threat": LINF,
        "facts": {"attacked": round(clean * count)}, "parameters": parameters,
    } | changes  # fmt: skip


def test_the_file_names_its_source_and_holds_the_leaderboards() -> None:
    assert source() == "RobustBench (https://robustbench.github.io) of 2025-03-31, MIT licence"
    sizes = {
        board: len(leaderboard(*board)) for board in dict.fromkeys((e.data, e.norm) for e in published())
    }
    assert sizes == {
        ("cifar10", "linf"): 99, ("cifar10", "l2"): 21, ("cifar10", "corruptions"): 23, ("cifar100", "linf"): 38,
        ("imagenet", "linf"): 30,
    }  # fmt: skip
    entries = {(e.model, e.data, e.norm): e for e in published()}
    # As its paper and the leaderboard state them.
    entry = entries["Carmon2019Unlabeled", "cifar10", "linf"]
    assert (entry.clean, entry.autoattack, entry.robust, entry.extra_data) == (0.8969, 0.5953, 0.5953, True)
    assert (entry.architecture, entry.year) == ("WideResNet-28-10", 2019)
    assert entry.parameters == pytest.approx(36.5e6, rel=0.01)
    stronger = entries["Amini2024MeanSparse_S-WRN-94-16", "cifar10", "linf"]
    assert (stronger.autoattack, stronger.robust) == (0.7528, 0.731)
    assert all(0 <= e.robust <= e.clean + 0.01 <= 1.01 and e.link.startswith("http") for e in published())


def test_beside_a_row_are_networks_of_its_size_the_most_robust_first() -> None:
    found = published_rows("cifar10", LINF, 36_480_000, count=4)
    assert [entry.architecture for entry in found] == ["WideResNet-28-10"] * 4
    assert found[0].model == "Cui2023Decoupled_WRN-28-10" and found == sorted(found, key=lambda e: -e.robust)
    assert {e.architecture for e in published_rows("cifar10", LINF, 11_170_000)} <= {
        "PreActResNet-18",
        "ResNet-18",
    }
    assert published_rows("cifar10", LINF, count=1)[0].model == "Bartoldson2024Adversarial_WRN-94-16"
    assert published_rows("cifar10", None)[0].norm == "corruptions"
    for data, threat in (
        ("cifar10", {"norm": "linf", "radius": "4/255"}),
        ("cifar10-jpeg", LINF),
        ("digits", LINF),
    ):
        assert published_rows(data, threat, 1000) == []


def test_nothing_that_is_published_is_implausible() -> None:
    for entry in published():
        if entry.norm != "corruptions" and entry.parameters is not None:
            threat = {"norm": entry.norm, "radius": entry.radius}
            # The count of correct images is whole, and the share printed may be rounded up.
            claim = row(
                entry.clean - 1e-4, entry.robust, entry.parameters, threat=threat, lower=entry.robust - 1e-4
            )
            claim["data"] = {"name": entry.data, "split": "test"}
            assert implausible(claim) is None, entry


def test_the_bound_joins_published_pairs_by_straight_lines() -> None:
    parameters = 11_170_000
    entries = {e.model: e for e in published_bound("cifar10", LINF, parameters, 0.5)[1]}
    assert {e.architecture for e in entries.values()} >= {"PreActResNet-18", "ResNet-18", "ResNet-20"}
    assert all(e.parameters is None or e.parameters < 12e6 for e in entries.values())
    first, second = entries["Gowal2021Improving_R18_ddpm_100m"], entries["Rade2021Helper_R18_extra"]
    for clean in (0.5, first.clean):
        assert published_bound("cifar10", LINF, parameters, clean)[0] == first.robust == 0.585
    between = (first.clean + second.clean) / 2
    middle = (first.robust + second.robust) / 2
    assert published_bound("cifar10", LINF, parameters, between)[0] == pytest.approx(middle)
    beyond = second.robust * (1 - 0.95) / (1 - second.clean)
    assert published_bound("cifar10", LINF, parameters, 0.95)[0] == pytest.approx(beyond)
    assert published_bound("digits", LINF, parameters, 0.5) == (1.0, [])


def test_what_is_beyond_everything_published_for_its_size_is_implausible() -> None:
    message = implausible(row(0.85, 0.70))
    assert message is not None
    assert "85.0% clean and 70.0% (at least 69.0%) under AutoAttack with 11.2 M parameters" in message
    assert (
        "reach at most 58.5% at that clean accuracy (the most robust: Gowal2021Improving_R18_ddpm_100m"
        in message
    )
    assert implausible(row(0.85, 0.70, 365_900_000)) is None
    assert implausible(row(0.95, 0.20)) is None and implausible(row(0.95, 0.30)) is not None
    # A larger radius makes it less plausible still, a smaller one is not compared.
    assert implausible(row(0.85, 0.70, threat={"norm": "linf", "radius": "16/255"})) is not None
    assert implausible(row(0.85, 0.70, threat={"norm": "linf", "radius": "2/255"})) is None
    # Few images leave a wide interval.
    assert implausible(row(0.85, 0.70, lower=0.5, count=30)) is None
    # A tiny network is compared with the smallest published ones, not with one entry alone.
    bound, entries = published_bound("cifar10", LINF, 80_000, 0.4)
    assert len(entries) >= 10 and bound > 0.4


@pytest.mark.parametrize(
    "changes",
    [
        {"data": {"name": "cifar10-jpeg", "split": "test"}},
        {"data": {"name": "imagefolder:123abc", "split": "all"}},
        {"data": {"name": "cifar10", "split": "train"}},
        {"data": {"name": "digits", "split": "test"}},
        {"parameters": None},
    ],
)
def test_other_rows_are_not_compared(changes: dict[str, Any]) -> None:
    assert implausible(row(0.99, 0.95) | changes) is None


def test_the_finding_is_one_of_the_lint_and_rows_of_earlier_versions_are_read() -> None:
    assert STANDARD in PROTOCOLS
    (finding,) = row_findings({STANDARD: row(0.9, 0.8)})
    assert (finding.name, finding.severity) == ("implausible", "warning") and "80.0%" in finding.seen
    old = row(0.9, 0.8)
    del old["parameters"]
    assert row_findings({STANDARD: old}) == []
