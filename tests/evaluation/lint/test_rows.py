"""The lint where results are made: told before the figures, written into every row, and left out on request."""

from __future__ import annotations

from typing import Any

import trilemma
from trilemma.evaluation.lint import Finding
from trilemma.evaluation.lint.rows import add_lint, curve_findings, findings_of, row_findings
from trilemma.evaluation.lint.run import Lint


def test_every_row_says_what_the_lint_found(standard, few, around, capsys):
    soft = around(standard, after=lambda z: z.softmax(1))
    rows = trilemma.evaluate(soft, few)
    assert rows["clean"]["lint"] == rows["pgd-20"]["lint"]
    found = rows["clean"]["lint"]
    assert (found["images"], [f["name"] for f in found["findings"]]) == (64, ["softmax-outputs"])
    assert capsys.readouterr().err.startswith("lint: error: softmax-outputs (64 of 64 images): ")


def test_nothing_is_said_where_nothing_was_found_or_nobody_looked(standard, few, capsys):
    row = trilemma.evaluate(standard, few, ["clean"])["clean"]
    assert row["lint"]["findings"] == []
    assert row["lint"]["attacked"] == 0  # a protocol without an attack is not judged by attacks
    assert trilemma.evaluate(standard, few, ["clean"], lint=False)["clean"]["lint"] is None
    assert capsys.readouterr().err == ""


def test_findings_are_told_before_a_protocol_begins(standard, few, around, capsys, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("trilemma.evaluation.protocols.accuracy.pgd", interrupted)
    try:
        trilemma.evaluate(around(standard, lambda x: x.detach()), few, ["pgd-20"])
    except KeyboardInterrupt:
        assert "zero-gradients" in capsys.readouterr().err


ROW = {
    "count": 250,
    "data": {"name": "digits"},
    "threat": {"norm": "linf", "radius": "0.2"},
    "checkpoint": {},
}


def pair(screen, standard, **change):
    return {"screen": ROW | {"value": screen}, "autoattack-standard": ROW | {"value": standard} | change}


def test_screen_and_autoattack_far_apart(capsys):
    assert row_findings(pair(0.5, 0.492)) == []
    rows = pair(0.5, 0.4)
    (found,) = row_findings(rows)
    assert (found.name, found.count, found.of) == ("screen-far-from-autoattack", 25, 250)
    assert row_findings(pair(0.5, 0.4, count=100)) == []
    assert row_findings({"screen": ROW | {"value": 0.5}}) == []
    add_lint(rows, Lint())
    assert all(row["lint"]["findings"] == [found.record()] for row in rows.values())
    assert "screen-far-from-autoattack" in capsys.readouterr().err


def masked(standard: float, count: int = 1000, other: int | None = None, **pgd: float) -> list[Any]:
    """Findings of a row under AutoAttack and rows under PGD; ``pgd_50_10`` is ``pgd-50-10``."""
    row = {**ROW, "count": other or count}
    rows = {name.replace("_", "-"): row | {"value": value} for name, value in pgd.items()}
    return row_findings({**rows, "autoattack-standard": {**ROW, "count": count, "value": standard}})


def test_pgd_far_above_autoattack_is_named_with_the_strongest_pgd():
    (found,) = masked(0.30, pgd_20=0.50, pgd_50_10=0.42)
    assert (found.name, found.count, found.of) == ("pgd-far-from-autoattack", 120, 1000)
    assert found.seen == "pgd-50-10 gives 42.0%, autoattack-standard 30.0%"
    assert masked(0.30, pgd_20=0.50, pgd_50_10=0.38) == []
    # ten points with their interval above 8.6
    assert masked(0.30, pgd_20=0.40, count=10_000) == [] != masked(0.30, pgd_20=0.401, count=10_000)
    assert masked(0.30, pgd_20=0.44, count=64) == [] != masked(0.30, pgd_20=0.55, count=64)


def test_pgd_on_other_images_or_another_attack_is_not_compared():
    assert masked(0.30, pgd_20=0.60, other=500) == []
    assert masked(0.30, fab=0.60) == []
    assert row_findings({"pgd-20": {**ROW, "value": 0.6}}) == []


def test_findings_of_rows_made_at_several_times():
    range_, soft = (Finding.from_catalogue(name, "seen", 1, 2) for name in ("range", "softmax-outputs"))
    records = [Lint([range_], images=5).record(), Lint([range_, soft], images=9).record()]
    assert findings_of({"lint": record} for record in records) == ([range_, soft], 9, True)
    assert findings_of([{"lint": records[0]}, {"lint": None}, {}]) == ([range_], 5, False)
    assert findings_of([]) == ([], 0, True)


def curve(
    *values: float, radii: tuple[str, ...] = ("4/255", "8/255", "0.1"), **other: Any
) -> list[dict[str, Any]]:
    return [
        {
            "protocol": "pgd-20", "version": 1, "value": value, "count": 100, "data": {"name": "digits"}, "seed": 0,
            "checkpoint": {}, "threat": {"norm": "linf", "radius": radius}, **other,
        }
        for value, radius in zip(values, radii, strict=True)
    ]  # fmt: skip


def test_a_curve_that_rises_is_a_finding_whatever_the_order_of_its_rows():
    (finding,) = curve_findings(curve(0.5, 0.3, 0.4)[::-1])
    assert (finding.name, finding.count, finding.of) == ("rising-curve", 10, 100)
    assert "pgd-20 gives 30.0% at linf 8/255 and 40.0% at 0.1" in finding.seen


def test_curves_that_fall_or_are_of_different_images_are_no_finding():
    assert curve_findings(curve(0.5, 0.3, 0.3)) == []
    # a verdict may change with the random start
    assert curve_findings(curve(0.5, 0.3, 0.31)) == []
    low, _, high = curve(0.2, 0.2, 0.9)
    assert curve_findings([low, {**high, "data": {"name": "other"}}]) == []
    assert curve_findings([low, {**high, "threat": {"norm": "l2", "radius": "0.5"}}]) == []
