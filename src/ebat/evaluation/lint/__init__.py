"""The lint: what a sceptic would check before believing a figure."""

from ebat.evaluation.lint.finding import Finding
from ebat.evaluation.lint.run import Lint, inspect, lint

__all__ = ["Finding", "Lint", "inspect", "lint"]
