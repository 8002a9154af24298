"""The model card of a classifier for the Hugging Face hub, made from its results."""

from __future__ import annotations

from typing import Any

import yaml

from trilemma import __version__
from trilemma.classifier.classifier import Classifier
from trilemma.pages.lint import lint_result
from trilemma.pages.words import facts
from trilemma.runs.read import Contents
from trilemma.runs.records import is_stale
from trilemma.tables import Rows, markdown_cell, markdown_table


def model_card(repository: str, clf: Classifier, results: Contents | None, license: str | None) -> str:
    """The card as Markdown with a YAML header: results by protocol, lint findings, how to load it, how it was trained.

    Args:
        repository: ``OWNER/NAME``.
        clf: the classifier.
        results: a run or a folder of result rows; ``None`` if nothing was measured. Rows of another
            classifier are left out.
        license: identifier of the licence, such as ``mit``; ``None`` if none was chosen.
    """
    measured = {} if results is None else {**results.rows, **results.measures}
    own = (None, clf.weights_digest())
    rows = Rows(
        {
            name: row
            for name, row in measured.items()
            if (row.get("checkpoint") or {}).get("weights") in own and not is_stale(row)
        }
    )
    parts = [
        f"# {markdown_cell(repository.partition('/')[2])}",
        "An image classifier in the format of trilemma: images in [0, 1] to logits, normalisation inside.",
        "## Results",
        *_results(rows, results),
        "## Use",
        f"```python\nimport trilemma\n\nclf = trilemma.load(\"hub:{repository}\")\nlogits = clf(images)\n```",
        f"`images` are float32 `{_shape(clf)}` in [0, 1]. The {clf.num_classes} classes in the order of the logits: "
        + ", ".join(map(markdown_cell, clf.class_names)) + ".",
    ]  # fmt: skip
    if results is not None and results.is_run:
        parts += ["## Training", markdown_table([{"": key, "value": value} for key, value in facts(results)])]
    licence = (
        f"Licence: {markdown_cell(license)}."
        if license
        else "No licence was chosen; ask the owner before using the weights."
    )
    parts += ["## Licence", licence]
    header = yaml.safe_dump(_header(repository, clf, rows, license), sort_keys=False, allow_unicode=True)
    return f"---\n{header}---\n\n" + "\n\n".join(part.strip() for part in parts) + "\n"


def _results(rows: Rows, results: Contents | None) -> list[str]:
    if not rows or results is None:
        return ["Nothing was measured with this classifier yet."]
    lint = lint_result(results)
    return [
        rows.to_markdown(),
        "Protocols are named and versioned by trilemma; an accuracy under attack holds for the stated threat only.",
        f"Lint: {lint.line}",
        "\n".join(f"- {markdown_cell(str(finding))}" for finding in lint.findings),
    ]


def _header(repository: str, clf: Classifier, rows: Rows, license: str | None) -> dict[str, Any]:
    """The metadata of the card, with the accuracies as results that the hub shows."""
    header: dict[str, Any] = {} if license is None else {"license": license}
    method = [clf.about["method"]] if "method" in clf.about else []
    header |= {
        "library_name": "trilemma",
        "pipeline_tag": "image-classification",
        "tags": ["adversarial-robustness", "energy-based-model", *method],
    }
    measured = [row for row in rows.values() if row.get("quantity", "accuracy") == "accuracy"]
    if measured:
        results = [
            {
                "task": {"type": "image-classification"},
                "dataset": {
                    "name": row["data"]["name"],
                    "type": row["data"]["name"],
                    "split": row["data"]["split"],
                },
                "metrics": [{"type": "accuracy", "name": _metric_name(row), "value": row["value"]}],
            }
            for row in measured
        ]
        header["model-index"] = [{"name": repository.partition("/")[2], "results": results}]
    return header | {"trilemma": __version__}


def _metric_name(row: dict[str, Any]) -> str:
    """Protocol, version, threat and number of images of a row."""
    threat = row["threat"]
    attack = "" if threat is None else f", {threat['norm']} {threat['radius']}"
    return f"{row['protocol']} v{row['version']}{attack}, {row['count']} images"


def _shape(clf: Classifier) -> str:
    return "[N, " + ("C, H, W" if clf.image_shape is None else ", ".join(map(str, clf.image_shape))) + "]"
