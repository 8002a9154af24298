"""Attacks: plain functions from clean images to adversarial ones, one per file."""

from ebat.attacks.apgd import apgd
from ebat.attacks.autoattack import autoattack
from ebat.attacks.fab import fab
from ebat.attacks.fgsm import fgsm
from ebat.attacks.he_pgd import he_pgd
from ebat.attacks.pgd import pgd
from ebat.attacks.screen import screen
from ebat.attacks.square import square

__all__ = ["apgd", "autoattack", "fab", "fgsm", "he_pgd", "pgd", "screen", "square"]
