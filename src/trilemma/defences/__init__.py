"""Defences at test time: purification of images by a walk on the energy, and the attack through it."""

from trilemma.defences.adaptive import purified_pgd
from trilemma.defences.purification import Purification, purify

__all__ = ["Purification", "purified_pgd", "purify"]
