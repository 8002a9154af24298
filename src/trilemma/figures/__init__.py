"""Figures in a light and a dark variant, drawn from metrics and arrays; nothing here reads a run folder.

Every function returns a matplotlib figure that is not registered with pyplot: ``figure.savefig("name.png")`` writes
it, and a notebook shows it. ``theme`` is :data:`LIGHT` (the default) or :data:`DARK`. The names below are imported on
first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trilemma.figures.chains import draw_chain_energies, draw_trajectories
    from trilemma.figures.confusion import draw_confusion
    from trilemma.figures.counterfactual import (
        animate_counterfactual,
        draw_counterfactual,
        draw_counterfactuals,
        draw_way,
    )
    from trilemma.figures.energy_landscape import (
        draw_deltas,
        draw_histograms,
        draw_moves,
        draw_plane,
        draw_quiver,
    )
    from trilemma.figures.reliability import draw_reliability
    from trilemma.figures.robustness import draw_robustness, robustness_curves
    from trilemma.figures.sample_grid import draw_grid, draw_neighbours
    from trilemma.figures.style import DARK, LIGHT, save_figure
    from trilemma.figures.trade_off import draw_generation, draw_trade_off
    from trilemma.figures.training_curves import (
        draw_accuracy,
        draw_delta_energies,
        draw_energies,
        draw_log,
        draw_loss,
    )

_MODULES = {
    "DARK": "style",
    "LIGHT": "style",
    "animate_counterfactual": "counterfactual",
    "draw_accuracy": "training_curves",
    "draw_chain_energies": "chains",
    "draw_confusion": "confusion",
    "draw_counterfactual": "counterfactual",
    "draw_counterfactuals": "counterfactual",
    "draw_delta_energies": "training_curves",
    "draw_deltas": "energy_landscape",
    "draw_energies": "training_curves",
    "draw_generation": "trade_off",
    "draw_grid": "sample_grid",
    "draw_histograms": "energy_landscape",
    "draw_log": "training_curves",
    "draw_loss": "training_curves",
    "draw_moves": "energy_landscape",
    "draw_neighbours": "sample_grid",
    "draw_plane": "energy_landscape",
    "draw_quiver": "energy_landscape",
    "draw_reliability": "reliability",
    "draw_robustness": "robustness",
    "draw_trade_off": "trade_off",
    "draw_trajectories": "chains",
    "draw_way": "counterfactual",
    "robustness_curves": "robustness",
    "save_figure": "style",
}

__all__ = [
    "DARK",
    "LIGHT",
    "animate_counterfactual",
    "draw_accuracy",
    "draw_chain_energies",
    "draw_confusion",
    "draw_counterfactual",
    "draw_counterfactuals",
    "draw_delta_energies",
    "draw_deltas",
    "draw_energies",
    "draw_generation",
    "draw_grid",
    "draw_histograms",
    "draw_log",
    "draw_loss",
    "draw_moves",
    "draw_neighbours",
    "draw_plane",
    "draw_quiver",
    "draw_reliability",
    "draw_robustness",
    "draw_trade_off",
    "draw_trajectories",
    "draw_way",
    "robustness_curves",
    "save_figure",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
