"""Attacks: plain functions from clean images to adversarial images, one attack per file."""

from trilemma.attacks.apgd import apgd
from trilemma.attacks.autoattack import autoattack
from trilemma.attacks.autoattack_rand import autoattack_rand
from trilemma.attacks.fab import fab
from trilemma.attacks.pgd import fgsm, he_pgd, pgd
from trilemma.attacks.screen import screen
from trilemma.attacks.square import square

__all__ = ["apgd", "autoattack", "autoattack_rand", "fab", "fgsm", "he_pgd", "pgd", "screen", "square"]
