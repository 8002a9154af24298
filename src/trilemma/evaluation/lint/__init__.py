"""The lint: checks for common mistakes in robustness evaluations, run before every evaluation."""

from trilemma.evaluation.lint.finding import Finding
from trilemma.evaluation.lint.run import Lint, inspect, lint

__all__ = ["Finding", "Lint", "inspect", "lint"]
