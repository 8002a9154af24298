"""Registries of methods, networks, attacks, samplers, starts, data sets and protocols: name to ``"module:object"``.

Objects are imported on demand, so that listing the names needs no torch. Other packages add rows through the
entry-point groups ``trilemma.methods``, ``trilemma.networks``, ``trilemma.attacks``, ``trilemma.samplers``,
``trilemma.starts``, ``trilemma.datasets`` and ``trilemma.protocols``, or at run time with :meth:`Registry.add`. An
added row can be used wherever a built-in row can, since names are validated only against these tables.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, get_type_hints

from trilemma.config.section import section_of
from trilemma.errors import ConfigError, UnknownNameError, describe, nearest


@dataclass(frozen=True)
class Row:
    """One registry row.

    Attributes:
        target: ``"module:object"``.
        summary: one line for ``trilemma list``.
        options: ``"module:object"`` of the options class of a network; "" for the default (:meth:`Registry.options`).
        paper: the source.
        cost: forward passes per image, if known (an attack or sampler step costs 2, a loss term 3).
        blank: placeholder of a parameterised name (``ood:SET``); the target is called with the value.
        default: value of a parameterised name that is given without one; "" if it needs one.
        search: ``"module:function"`` of the attack's variant for AutoAttack, which counts forward passes; "" for none.
    """

    target: str
    summary: str = ""
    options: str = ""
    paper: str = ""
    cost: str = ""
    blank: str = ""
    default: str = ""
    search: str = ""

    @property
    def built_in(self) -> bool:
        """Whether the target is this package's own, whose results need no check."""
        return self.target.startswith("trilemma.")


def import_object(target: str) -> Any:
    """The object named ``"module:object"``."""
    module, _, name = target.partition(":")
    return getattr(import_module(module), name)


class Registry:
    """The rows of one kind, with lookup by name.

    Args:
        kind: what the rows are, for error messages ("method").
        rows: the built-in rows by name.
        group: entry-point group in which other packages declare rows.
    """

    def __init__(self, kind: str, rows: Mapping[str, Row], group: str) -> None:
        self.kind = kind
        self.group = group
        self._rows = dict(rows)

    @cached_property
    def _external(self) -> dict[str, Row]:
        """The rows that installed packages declare as entry points."""
        return {
            point.name: Row(
                target=point.value,
                summary=f"from package {point.dist.name}" if point.dist else "from another package",
            )
            for point in entry_points(group=self.group)
        }

    def add(self, name: str, target: str, **about: str) -> None:
        """Adds a row; ``about`` sets the other fields of :class:`Row`. Adding the same row again has no effect.

        Raises:
            ConfigError: ``target`` is not of the form ``"module:object"``, or the name belongs to another object.
        """
        if not isinstance(target, str) or not all(target.partition(":")):
            given = repr(target) if isinstance(target, str) else f"a {type(target).__name__}"
            raise ConfigError(
                f"{self.kind} {name!r}: the target must be a text 'module:object', got {given}; in a script, "
                'f"{__name__}:NAME"'
            )
        if name in self._rows and self._rows[name].target != target:
            raise ConfigError(
                f"{self.kind} {name!r}: this name belongs to {self._rows[name].target}; choose another"
            )
        self._rows[name] = Row(target=target, **about)

    def rows(self) -> dict[str, Row]:
        """All rows by name, in the order of the table; a built-in row has precedence over an entry point."""
        return {**self._rows, **{name: row for name, row in self._external.items() if name not in self._rows}}

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self.rows())

    def __contains__(self, name: object) -> bool:
        return name in self.rows()

    def row(self, name: str) -> Row:
        """The row of ``name``; for ``NAME:VALUE`` the row of the parameterised ``NAME``.

        Raises:
            UnknownNameError: no such row; the message lists all names and the nearest one.
        """
        rows = self.rows()
        row = rows.get(name if name in rows else name.partition(":")[0])
        if row is None or (name not in rows and not row.blank):
            raise UnknownNameError(
                f"unknown {self.kind} {name!r}.{nearest(name, rows)} "
                f"{self.kind.capitalize()}s: {', '.join(sorted(rows))}"
            )
        return row

    def get(self, name: str) -> Any:
        """Imports and returns the object of ``name``; for ``NAME:VALUE`` the result of calling it with ``VALUE``.

        Raises:
            UnknownNameError: no such row, or a parameterised name without a value.
            ConfigError: the object of another package's row cannot be imported.
        """
        row = self.row(name)
        if not row.blank:
            return self._import(name, row)
        base, _, value = name.partition(":")
        value = value or row.default
        if not value:
            raise UnknownNameError(
                f"{self.kind} {base!r} needs a value; write {base}:{row.blank}; {row.summary}"
            )
        return self._import(base, row)(value)

    def _import(self, name: str, row: Row) -> Any:
        """The object of the row ``name``; a missing module or object of a user's row is a ConfigError."""
        try:
            return import_object(row.target)
        except (ImportError, AttributeError) as error:
            if row.built_in:
                raise
            raise ConfigError(f"{self.kind} {name!r}: cannot import {row.target}: {error}") from error

    def options(self, name: str) -> Any:
        """The options class of a method or network.

        It is the row's ``options`` if set, else the target's attribute ``Options``, else for a network a class created
        from the parameters of the target.

        Raises:
            UnknownNameError: no such row.
            ConfigError: the method has no options class, or :func:`trilemma.config.section.section_of` cannot create
                that of the network.
        """
        row = self.row(name)
        if row.options:
            return import_object(row.options)
        target = self.get(name)
        if not hasattr(target, "Options") and self.kind != "network":
            raise ConfigError(
                f"{self.kind} {name!r}: {row.target} has no Options; set this attribute to its options class"
            )
        return target.Options if hasattr(target, "Options") else section_of(target, name)


class NetworkRegistry(Registry):
    """The networks: a name ``MODULE:FUNCTION`` that is not in the table names a function of the user's.

    The module may be in the working directory. The parameters of the function are its options. Recipes and classifier
    files come from others too, and must not be able to call just anything: only a subclass of ``torch.nn.Module``, or a
    function whose annotated return type is one, is ever called.
    """

    _OWN = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")

    def is_own(self, name: str) -> bool:
        """Whether ``name`` has the form ``MODULE:FUNCTION`` and is not in the table."""
        return bool(self._OWN.fullmatch(name)) and not {name, name.partition(":")[0]} & self.rows().keys()

    def row(self, name: str) -> Row:
        return Row(name, "function of the user's") if self.is_own(name) else super().row(name)

    def options(self, name: str) -> Any:
        return (
            section_of(self.get(name), name, registered=False) if self.is_own(name) else super().options(name)
        )

    def _import(self, name: str, row: Row) -> Any:
        if not self.is_own(name):
            return super()._import(name, row)
        if row.target.partition(":")[0].partition(".")[0] in sys.stdlib_module_names:
            raise ConfigError(f"network {name!r}: is of Python's standard library, which has no networks")
        sys.path.insert(0, str(Path.cwd()))
        try:
            target = import_object(row.target)
        # Any exception: the module is the user's.
        except Exception as error:
            raise ConfigError(
                f"network {name!r}: cannot be imported ({describe(error)}); run the command where "
                f"{name.partition(':')[0].partition('.')[0]}.py is, or add its folder to PYTHONPATH"
            ) from error
        finally:
            sys.path.pop(0)
        if not callable(target):
            raise ConfigError(f"network {name!r}: is a {type(target).__name__}, not a function or class")
        if not _returns_network(target):
            raise ConfigError(
                f"network {name!r}: is not declared to return a network, so a recipe or file may not call it; annotate "
                "it: def FUNCTION(...) -> torch.nn.Module"
            )
        return target


def _returns_network(target: Any) -> bool:
    """Whether ``target`` is a subclass of ``torch.nn.Module``, or a function annotated to return one."""
    from torch import nn

    if isinstance(target, type):
        return issubclass(target, nn.Module)
    try:
        returned = get_type_hints(target).get("return")
    # Annotations that cannot be evaluated, or a callable that has none.
    except (NameError, TypeError, AttributeError):
        return False
    return isinstance(returned, type) and issubclass(returned, nn.Module)


def _method(module: str, class_name: str, summary: str, paper: str, cost: str) -> Row:
    return Row(f"trilemma.methods.{module}:{class_name}", summary, paper=paper, cost=cost)


METHODS = Registry(
    "method",
    {
        "standard": _method("standard", "Standard",
            "cross-entropy on clean images", "", "3"),
        "fgsm": _method("fgsm", "Fgsm",
            "one sign step from the clean image; collapses at large radii", "Goodfellow et al. 2015", "5"),
        "fgsm-rs": _method("fgsm_rs", "FgsmRS",
            "one sign step of 5/4 of the radius from a random start, projected", "Wong et al. 2020", "5"),
        "n-fgsm": _method("n_fgsm", "NFgsm",
            "one sign step from strong noise, not projected", "de Jorge et al. 2022", "5"),
        "grad-align": _method("grad_align", "GradAlign",
            "one sign step, and a penalty that aligns the input gradients across the ball",
            "Andriushchenko and Flammarion 2020", "11"),
        "elle": _method("elle", "Elle",
            "one sign step, and a penalty on the non-linearity of the loss around the image",
            "Abad Rocamora et al. 2024", "14"),
        "elle-a": _method("elle_a", "ElleA",
            "elle with a penalty weight that rises only while the linearity error is unusually large",
            "Abad Rocamora et al. 2024", "14"),
        "free-at": _method("free_at", "FreeAT",
            "perturbation and weights updated from the same backward pass, each batch repeated 8 times",
            "Shafahi et al. 2019",
            "3 per replay"),
        "aaer": _method("aaer", "Aaer",
            "one sign step from noise, and a penalty on abnormal adversarial examples", "Lin et al. 2023", "6"),
        "pgd-at": _method("pgd_at", "PgdAT",
            "cross-entropy on multi-step adversarial images", "Madry et al. 2018", "2 steps + 3"),
        "trades": _method("trades", "Trades",
            "clean cross-entropy plus beta KL to the adversarial image", "Zhang et al. 2019", "2 steps + 7"),
        "mart": _method("mart", "Mart",
            "boosted cross-entropy, and a KL term weighted up for misclassified images", "Wang et al. 2020",
            "2 steps + 6"),
        "weat-nat": _method("weat", "WeatNat",
            "trades with each image weighted by its energy", "Mirza et al. 2024", "2 steps + 7"),
        "weat-adv": _method("weat", "WeatAdv",
            "weat-nat with the cross-entropy of the adversarial image", "Mirza et al. 2024", "2 steps + 7"),
        "jem": _method("jem", "Jem",
            "joint energy model with Langevin chains from noise", "Grathwohl et al. 2020", "2 steps + 6"),
        "jem++": _method("jem_plus_plus", "JemPlusPlus",
            "joint energy model with clamped noiseless chains and BatchNorm", "Yang and Ji 2021", "2 steps + 6"),
        "sada-jem": _method("sada_jem", "SadaJem",
            "joint energy model with class-informed chains", "Yang et al. 2023", "2 steps + 9"),
        "prejeat": _method("prejeat", "PreJeat",
            "cross-entropy on images of the energy attack", "arXiv 2108.09093", "2 steps + 3"),
        "jeat": _method("jeat", "Jeat",
            "likelihood of adversarial images under the energy model", "arXiv 2108.09093",
            "2 (attack + sampler steps) + 6"),
        "eb-jdat": _method("eb_jdat", "EbJdat",
            "joint model of clean images, adversarial images and labels", "arXiv 2505.19459",
            "2 (attack + sampler steps) + 9 to 12"),
        "eb-jdat-release": _method("eb_jdat_release", "EbJdatRelease",
            "eb-jdat with the released inner step, alignment and reach", "arXiv 2505.19459",
            "2 (attack + sampler steps) + 10 to 13"),
        "dat": _method("dat", "Dat",
            "robust cross-entropy, and an energy that separates real images from chains started at other images",
            "arXiv 2510.13872", "2 (attack + sampler steps) + 9 at most"),
    },
    "trilemma.methods",
)  # fmt: skip

NETWORKS = NetworkRegistry(
    "network",
    {
        "small-resnet": Row(
            "trilemma.networks.small_resnet:SmallResNet",
            "residual network for training on a CPU, 0.08 M parameters and up",
            "trilemma.networks.options:SmallResNetOptions",
            "He et al. 2016",
        ),
        "small-cnn": Row(
            "trilemma.networks.small_cnn:SmallCNN",
            "two strided convolutions and two linear layers for 28x28 images, 0.17 M parameters and up",
            "trilemma.networks.options:SmallCNNOptions",
            "Wong et al. 2020",
        ),
        "shallow-cnn": Row(
            "trilemma.networks.shallow_cnn:ShallowCNN",
            "one 3x3 convolution of 4 filters and a linear layer: collapses in minutes under single-step training",
            "trilemma.networks.options:ShallowCNNOptions",
            "Andriushchenko and Flammarion 2020",
        ),
        "preact-resnet": Row(
            "trilemma.networks.preact_resnet:PreActResNet",
            "PreActResNet-18, CIFAR form, 11.17 M parameters",
            "trilemma.networks.options:PreActResNetOptions",
            "He et al. 2016",
        ),
        "wide-resnet": Row(
            "trilemma.networks.wide_resnet:WideResNet",
            "WRN-depth-width; 28-10 has 36.5 M parameters",
            "trilemma.networks.options:WideResNetOptions",
            "Zagoruyko and Komodakis 2016",
        ),
        "timm": Row(
            "trilemma.networks.timm_network:timm_network",
            "any network of timm (extra 'timm')",
            "trilemma.networks.options:TimmOptions",
        ),
    },
    "trilemma.networks",
)

ATTACKS = Registry(
    "attack",
    {
        "fgsm": Row(
            "trilemma.attacks.pgd:fgsm",
            "one sign step of the radius",
            paper="Goodfellow et al. 2015",
            cost="2",
        ),
        "apgd": Row(
            "trilemma.attacks.apgd:apgd",
            "gradient ascent with momentum and adaptive step size; cross-entropy, DLR, targeted DLR",
            paper="Croce and Hein 2020",
            cost="2 steps (x 9 targets)",
            search="trilemma.attacks.apgd:search",
        ),
        "autoattack": Row(
            "trilemma.attacks.autoattack:autoattack",
            "apgd, fab and square, each on the images still robust; returns verdicts, not only images",
            paper="Croce and Hein 2020",
        ),
        "pgd": Row(
            "trilemma.attacks.pgd:pgd",
            "projected gradient ascent on the cross-entropy",
            paper="Madry et al. 2018",
            cost="2 steps",
        ),
        "he-pgd": Row(
            "trilemma.attacks.pgd:he_pgd",
            "projected gradient ascent on cross-entropy plus gamma E(x), which keeps the energy high",
            paper="Beadini and Masi 2023",
            cost="2 steps",
        ),
        "fab": Row(
            "trilemma.attacks.fab:fab",
            "minimum-norm attack: steps to the linearised decision boundary of each of 9 target classes",
            paper="Croce and Hein 2020",
            cost="3 steps targets",
            search="trilemma.attacks.fab:search",
        ),
        "screen": Row(
            "trilemma.attacks.screen:screen",
            "short apgd on cross-entropy and margins, then 400 queries of square; an estimate of autoattack",
            cost="about 659",
        ),
        "square": Row(
            "trilemma.attacks.square:square",
            "random search with square patches that reduce the margin; needs no gradient",
            paper="Andriushchenko et al. 2020",
            cost="queries",
            search="trilemma.attacks.square:search",
        ),
    },
    "trilemma.attacks",
)

SAMPLERS = Registry(
    "sampler",
    {
        "langevin": Row(
            "trilemma.samplers.samplers:langevin",
            "plain gradient steps on the energy with noise",
            paper="Grathwohl et al. 2020",
        ),
        "momentum": Row(
            "trilemma.samplers.samplers:momentum",
            "gradient steps with momentum and little noise",
            paper="WEAT",
        ),
        "proximal": Row(
            "trilemma.samplers.samplers:proximal",
            "steps along the clamped gradient, no noise",
            paper="Yang and Ji 2021",
        ),
        "normalised": Row(
            "trilemma.samplers.samplers:normalised",
            "steps of one L2 length along the gradient, no noise",
            paper="DAT",
        ),
    },
    "trilemma.samplers",
)

# Ordered by how much information about its class a start contains: the less, the more the samples show what the
# classifier itself has learned.
STARTS = Registry(
    "start",
    {
        "uniform": Row("trilemma.samplers.starts:uniform", "U(0, 1) in every pixel"),
        "gaussian": Row("trilemma.samplers.starts:gaussian", "N(1/2, 1/16) in every pixel"),
        "class-mean-noise": Row(
            "trilemma.samplers.starts:class_mean_noise", "the class mean plus N(0, 0.09)"
        ),
        "class-gaussian": Row(
            "trilemma.samplers.starts:class_gaussian",
            "the Gaussian of the class's training images",
            paper="Yang and Ji 2021",
        ),
        "class-pca": Row(
            "trilemma.samplers.starts:class_pca",
            "the principal components of the class",
            paper="arXiv 2407.06315",
        ),
        "local-pca": Row(
            "trilemma.samplers.starts:local_pca",
            "the principal components of the k training images nearest to one of the class; :k=100",
            paper="arXiv 2505.22486",
        ),
        "data": Row("trilemma.samplers.starts:data", "a random training image of the class"),
        "phase-scrambled": Row(
            "trilemma.samplers.starts:phase_scrambled_data",
            "training images with random Fourier phases",
            paper="DAT",
        ),
        "replay-buffer": Row(
            "trilemma.samplers.starts:replay_buffer",
            "a random chain of the class, kept from training with the run",
            paper="arXiv 1912.03263",
        ),
    },
    "trilemma.starts",
)

DATASETS = Registry(
    "dataset",
    {
        "digits": Row(
            "trilemma.data.catalogue:DIGITS",
            "8x8 grey digits of UCI, in this package: 1,200 / 200 / 397 images",
        ),
        "cifar10": Row(
            "trilemma.data.catalogue:CIFAR10", "32x32 colour, 10 classes, official archive or data.root"
        ),
        "cifar100": Row(
            "trilemma.data.catalogue:CIFAR100", "32x32 colour, 100 classes, official archive or data.root"
        ),
        "mnist": Row("trilemma.data.catalogue:MNIST", "28x28 grey digits, official archive or data.root"),
        "fashion-mnist": Row(
            "trilemma.data.catalogue:FASHION_MNIST", "28x28 grey clothing, official archive or data.root"
        ),
        "svhn": Row(
            "trilemma.data.catalogue:SVHN", "32x32 colour house numbers, official archive or data.root"
        ),
        "folder": Row(
            "trilemma.data.catalogue:FOLDER", "any image folder, tar, tar.gz, zip or npz at data.root"
        ),
        "shards": Row(
            "trilemma.data.catalogue:SHARDS", "tar shards at data.root, read while training (extra 'stream')"
        ),
        "imagenet": Row(
            "trilemma.data.catalogue:IMAGENET", "ImageNet-1k as tar shards at data.root (extra 'stream')"
        ),
    },
    "trilemma.datasets",
)

PROTOCOLS = Registry(
    "protocol",
    {
        "clean": Row("trilemma.evaluation.protocols.accuracy:clean", "accuracy on unperturbed images"),
        "pgd-20": Row(
            "trilemma.evaluation.protocols.accuracy:pgd_20", "CE, 20 steps of radius / 4, one random start"
        ),
        "pgd-50-10": Row(
            "trilemma.evaluation.protocols.accuracy:pgd_50_10",
            "CE, 50 steps of radius / 4, worst case over 10 random starts",
        ),
        "attack": Row(
            "trilemma.evaluation.protocols.accuracy:attack",
            "one run of a registered attack (including a user's own) or of a preset of diagnose",
            blank="NAME",
        ),
        "classes": Row(
            "trilemma.evaluation.protocols.classes:classes",
            "accuracy of each class, their mean as the value, and the confusion matrix",
            cost="1",
        ),
        "top": Row(
            "trilemma.evaluation.protocols.classes:top",
            "share of images whose label is among the K classes with the largest logits",
            cost="1",
            blank="K",
        ),
        "screen": Row(
            "trilemma.evaluation.protocols.autoattack:screen",
            "an estimate of autoattack-standard at 1/15 of its cost; refuses classifiers of single-step training",
        ),
        "autoattack-standard": Row(
            "trilemma.evaluation.protocols.autoattack:autoattack_standard",
            "APGD-CE, targeted APGD-DLR, targeted FAB, Square, each on the images still robust",
            paper="Croce and Hein 2020",
        ),
        "autoattack-few-classes": Row(
            "trilemma.evaluation.protocols.autoattack:autoattack_few_classes",
            "autoattack-standard with a margin loss instead of DLR, for 2 or 3 classes",
            paper="Croce and Hein 2020",
        ),
        "autoattack-rand": Row(
            "trilemma.evaluation.protocols.autoattack_rand:autoattack_rand",
            "expected accuracy of a random network under APGD-CE and APGD-DLR along mean gradients",
            paper="Croce and Hein 2020",
        ),
        "corruptions": Row(
            "trilemma.evaluation.protocols.corruptions:corruptions",
            "mean accuracy under 15 corruptions x 5 severities; SET: a folder as CIFAR-10-C, or imagenet-c (made)",
            paper="Hendrycks and Dietterich 2019",
            cost="75",
            blank="SET",
            default="imagenet-c",
        ),
        "ece": Row(
            "trilemma.evaluation.protocols.calibration:ece",
            "expected calibration error, 15 confidence bins of equal width",
            paper="Guo et al. 2017",
            cost="1",
        ),
        "ece-pgd-20": Row(
            "trilemma.evaluation.protocols.calibration:ece_pgd_20",
            "expected calibration error on the adversarial images of pgd-20",
            paper="Guo et al. 2017",
            cost="42",
        ),
        "ood": Row(
            "trilemma.evaluation.protocols.ood:ood",
            "AUROC of E(x), max softmax and the gradient norm; SET: a data set, a path, uniform-noise or permuted",
            paper="Grathwohl et al. 2020",
            cost="6",
            blank="SET",
        ),
        "generation": Row(
            "trilemma.evaluation.protocols.generation:generation",
            "FD, KD, precision, recall of samples against training images; `trilemma evaluate --samples`",
            paper="Heusel et al. 2017",
        ),
    },
    "trilemma.protocols",
)
