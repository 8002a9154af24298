"""The verdict as evaluation reads it; it lives below, where the attacks need it too."""

from __future__ import annotations

from ebat.verdict import full_precision, right

__all__ = ["full_precision", "right"]
