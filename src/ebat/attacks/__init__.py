"""Attacks: plain functions from clean images to adversarial ones, one per file."""

from ebat.attacks.fgsm import fgsm
from ebat.attacks.he_pgd import he_pgd
from ebat.attacks.pgd import pgd

__all__ = ["fgsm", "he_pgd", "pgd"]
