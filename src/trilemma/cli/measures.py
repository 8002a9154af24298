"""Result rows whose value is no accuracy, as a table: calibration, out-of-distribution detection, generation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trilemma.evaluation.records import checkpoint_name


def measures(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The value, which way is better, and what was found beside it."""
    return [
        {
            "protocol": row["protocol"],
            "quantity": f"{row['quantity']}, {row['better']} is better",
            "value": row["value"],
            "95 % interval": None if row["lower"] is None else f"{row['lower']:.3f} to {row['upper']:.3f}",
            "also": ", ".join(f"{name} {value:.4g}" for name, value in row["also"].items()),
            "images": row["count"],
            "checkpoint": checkpoint_name(row["checkpoint"]),
            "data": f"{row['data']['name']} {row['data']['split']}",
            "threat": "-" if row["threat"] is None else f"{row['threat']['norm']} {row['threat']['radius']}",
            "seconds": row["seconds"],
        }
        for row in rows
    ]
