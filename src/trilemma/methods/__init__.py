"""Training methods: one file each, with its options, its images (``points``) and its equation (``terms``)."""

from trilemma.methods.base import Method, MethodState, Points, Seen, Step
from trilemma.methods.creation import create

__all__ = ["Method", "MethodState", "Points", "Seen", "Step", "create"]
