"""Attacks: plain functions from clean images to adversarial ones, one per file."""

from ebat.attacks.fgsm import fgsm
from ebat.attacks.pgd import pgd

__all__ = ["fgsm", "pgd"]
