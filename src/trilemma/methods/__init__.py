"""Training methods: one file each, with its options, its images (``points``) and its equation (``terms``)."""

from trilemma.methods.base import ForwardResult, Method, MethodState, Points, Step
from trilemma.methods.creation import create

__all__ = ["ForwardResult", "Method", "MethodState", "Points", "Step", "create"]
