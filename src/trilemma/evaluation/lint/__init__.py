"""The lint: what a sceptic would check before believing a figure."""

from trilemma.evaluation.lint.finding import Finding
from trilemma.evaluation.lint.run import Lint, inspect, lint

__all__ = ["Finding", "Lint", "inspect", "lint"]
