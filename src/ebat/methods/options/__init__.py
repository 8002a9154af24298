"""The options of every training method: one frozen class each, free of torch, a file per family.

They stand here, not in the methods' own files, so that a misspelt option is answered without importing
torch. A class variable tells the configuration what the method needs.
"""

from ebat.methods.options.adversarial import Mart, PgdAT, Standard, Trades, WeatAdv, WeatNat
from ebat.methods.options.energy_models import LANGEVIN, PROXIMAL, DataView, Jeat, SadaJem
from ebat.methods.options.joint import EbJdat
from ebat.methods.options.single_step import Aaer, Fgsm, FgsmRS, FreeAT, NFgsm

__all__ = [
    "LANGEVIN",
    "PROXIMAL",
    "Aaer",
    "DataView",
    "EbJdat",
    "Fgsm",
    "FgsmRS",
    "FreeAT",
    "Jeat",
    "Mart",
    "NFgsm",
    "PgdAT",
    "SadaJem",
    "Standard",
    "Trades",
    "WeatAdv",
    "WeatNat",
]
