"""The options of every training method: one frozen class each, free of torch, a file per family.

They stand here, not in the methods' own files, so that a misspelt option is answered without importing
torch. A class variable tells the configuration what the method needs.
"""

from trilemma.methods.options.adversarial import Mart, PgdAT, Standard, Trades, WeatAdv, WeatNat
from trilemma.methods.options.dual import Dat
from trilemma.methods.options.energy_models import (
    LANGEVIN,
    PROXIMAL,
    DataView,
    Jeat,
    Jem,
    JemPlusPlus,
    PreJeat,
    SadaJem,
)
from trilemma.methods.options.joint import EbJdat, EbJdatRelease, JointModel
from trilemma.methods.options.second_order import Elle, ElleA, GradAlign
from trilemma.methods.options.single_step import Aaer, Fgsm, FgsmRS, FreeAT, NFgsm

__all__ = [
    "LANGEVIN",
    "PROXIMAL",
    "Aaer",
    "Dat",
    "DataView",
    "EbJdat",
    "EbJdatRelease",
    "Elle",
    "ElleA",
    "Fgsm",
    "FgsmRS",
    "FreeAT",
    "GradAlign",
    "Jeat",
    "Jem",
    "JemPlusPlus",
    "JointModel",
    "Mart",
    "NFgsm",
    "PgdAT",
    "PreJeat",
    "SadaJem",
    "Standard",
    "Trades",
    "WeatAdv",
    "WeatNat",
]
