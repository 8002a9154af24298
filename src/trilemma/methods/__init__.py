"""Training methods: one file per method, with its options, its images (``points``) and its loss (``terms``)."""

from trilemma.methods.base import ForwardResult, Method, MethodState, Points, Step
from trilemma.methods.creation import create

__all__ = ["ForwardResult", "Method", "MethodState", "Points", "Step", "create"]
