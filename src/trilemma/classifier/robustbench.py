"""Checkpoint files of RobustBench whose networks this package computes exactly; the package robustbench is not needed.

Source: the model zoo of RobustBench (Croce et al. 2021, 2010.09670), version of March 2025. Left out are networks of
other forms: DeepMind's wide ResNets, ResNets with activations after the sums, transformers, ensembles, and
PreActResNets whose form is not documented.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trilemma.data.cache import cache_folder
from trilemma.errors import CheckpointError, UnknownNameError, nearest

# Number of classes of each data set, and the radius of each pair of data set and norm.
CLASSES = {"cifar10": 10, "cifar100": 100}
RADII = {("cifar10", "Linf"): "8/255", ("cifar10", "L2"): "0.5", ("cifar100", "Linf"): "8/255"}
IMAGE_SHAPE = (3, 32, 32)
WEBSITE = "https://github.com/RobustBench/robustbench"
FILES = "https://drive.google.com/uc?id="

WRN_28_10, WRN_34_10 = "wide-resnet,depth=28,width=10", "wide-resnet,depth=34,width=10"
WRN_34_15, WRN_34_20 = "wide-resnet,depth=34,width=15", "wide-resnet,depth=34,width=20"
WRN_70_16 = "wide-resnet,depth=70,width=16"
PREACT, PREACT_WONG = "preact-resnet", "preact-resnet,final_norm=false,shortcut=raw"

Normalisation = tuple[tuple[float, float, float], tuple[float, float, float]]
CENTRED = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616))
CIFAR10_RONY = ((0.491, 0.482, 0.447), (0.247, 0.243, 0.262))
CIFAR10_EXACT = (
    (0.4913997551666284, 0.48215855929893703, 0.4465309133731618),
    (0.24703225141799082, 0.24348516474564, 0.26158783926049628),
)
CIFAR100_CHEN = ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))
CIFAR100_EXACT = (
    (0.5070751592371323, 0.48654887331495095, 0.4409178433670343),
    (0.2673342858792401, 0.2564384629170883, 0.27615047132568404),
)


@dataclass(frozen=True)
class Entry:
    """A network of the model zoo.

    Attributes:
        network: registered network and its options, as ``--network`` takes them.
        drive: id of the file on Google Drive.
        normalisation: mean and standard deviation, where the network has one inside and the file may lack it.
    """

    network: str
    drive: str
    normalisation: Normalisation | None = None


ENTRIES: dict[tuple[str, str], dict[str, Entry]] = {
    ("cifar10", "Linf"): {
        "Carmon2019Unlabeled": Entry(WRN_28_10, "15tUx-gkZMYx7BfEOw1GY5OKC-jECIsPQ"),
        "Sehwag2020Hydra": Entry(WRN_28_10, "1pi8GHwAVkxVH41hEnf0IAJb_7y-Q8a2Y"),
        "Wang2020Improving": Entry(WRN_28_10, "1T939mU4kXYt5bbvM55aT4fLBvRhyzjiQ"),
        "Hendrycks2019Using": Entry(WRN_28_10, "1-DcJsYw2dNEOyF9epks2QS7r9nqBDEsw", CENTRED),
        "Rice2020Overfitting": Entry(WRN_34_20, "1vC_Twazji7lBjeMQvAD9uEQxi9Nx2oG-", CIFAR10),
        "Zhang2019Theoretically": Entry(WRN_34_10, "1hPz9QQwyM7QSuWu-ANG_uXR-29xtL8t_"),
        "Huang2020Self": Entry(WRN_34_10, "1nInDeIyZe2G-mJFxQJ3UoclQNomWjMgm"),
        "Wong2020Fast": Entry(PREACT_WONG, "1Re--_lf3jCEw9bnQqGkjw3J7v2tSZKrv", CIFAR10),
        "Zhang2019You": Entry(WRN_34_10, "1kB2qqPQ8qUNmK8VKuTOhT1X4GT46kAoA"),
        "Zhang2020Attacks": Entry(WRN_34_10, "1lBVvLG6JLXJgQP2gbsTxNHl6s3YAopqk"),
        "Wu2020Adversarial_extra": Entry(WRN_28_10, "1-WJWpAZLlmc4gJ8XXNf7IETjnSZzaCNp"),
        "Wu2020Adversarial": Entry(WRN_34_10, "13LBcgNvhFppCFG22i1xATrahFPfMgXGf"),
        "Sehwag2021Proxy": Entry(WRN_34_10, "1QFA5fPMj2Qw4aYNG33PkFqiv_RTDWvzm"),
        "Sitawarin2020Improving": Entry(WRN_34_10, "12teknvo6dQGSWBaGnbNFwFO3-Y8j2eB6"),
        "Chen2020Efficient": Entry(WRN_34_10, "1c5EXpd3Kn_s6qQIbkLX3tTOOPC8VslHg", CIFAR10),
        "Cui2020Learnable_34_20": Entry(WRN_34_20, "1y7BUxPhQjNlb4w4BUlDyYJIS4w4fsGiS"),
        "Cui2020Learnable_34_10": Entry(WRN_34_10, "16s9pi_1QgMbFLISVvaVUiNfCzah6g2YV"),
        "Zhang2020Geometry": Entry(WRN_28_10, "1UoG1JhbAps1MdMc6PEFiZ2yVXl_Ii5Jk"),
        "Sridhar2021Robust": Entry(WRN_28_10, "1muDMpOyRlgJ7n2rhS2NpfFGp3rzjuIu0"),
        "Sridhar2021Robust_34_15": Entry(WRN_34_15, "1-3ii3GX93YqIcmJ3VNsOgYA7ecdnSZ0Z"),
        "Addepalli2021Towards_WRN34": Entry(WRN_34_10, "1-3vgjTNfSq7LSMKuayEQ-jLflAP196dB"),
        "Chen2021LTD_WRN34_10": Entry(WRN_34_10, "1-0RoQKYvHLNh7hZ71wJjSit1XtrJQo9D"),
        "Chen2021LTD_WRN34_20": Entry(WRN_34_20, "1-5JmY9rapuGwCUc2nPvy7Rb_sn_dHhFm"),
        "Standard": Entry(WRN_28_10, "1t98aEuzeTL8P7Kpd5DIrCoCL21BNZUhC"),
        "Jia2022LAS-AT_34_10": Entry(WRN_34_10, "1-3l7xKhIPyes3O4QSz0HU6L-hfOoS0xD"),
        "Jia2022LAS-AT_70_16": Entry(WRN_70_16, "1-4p-Gr0hjl8wq6qvvTza4x4a5Rmu-Bfr"),
        "Addepalli2022Efficient_WRN_34_10": Entry(WRN_34_10, "1--dVDtZhAk4D2zMtTDwIGnImuCGxTcBA"),
        "Cui2023Decoupled_WRN-34-10": Entry(WRN_34_10, "1-ArD-TugRXUbH3VtM9qnzvby6NvdXNUN"),
        "Chen2024Data_WRN_34_10": Entry(WRN_34_10, "1-AzyMQaoUuwxec6O_Yri5OVtVqnNgR4R"),
        "Chen2024Data_WRN_34_20": Entry(WRN_34_20, "1-IbKAGtp79tAEm59N0i8QMvMZ3nxSD2-"),
    },
    ("cifar10", "L2"): {
        "Rice2020Overfitting": Entry(PREACT, "1jo-31utiYNBVzLM0NxUEWz0teo3Z0xa7", CIFAR10),
        "Rony2019Decoupling": Entry(WRN_28_10, "1Oua2ZYSxNvoDrtlY9vTtRzyBWHziE4Uy", CIFAR10_RONY),
        "Standard": Entry(WRN_28_10, "1t98aEuzeTL8P7Kpd5DIrCoCL21BNZUhC"),
        "Wu2020Adversarial": Entry(WRN_34_10, "1M5AZ0EZQt7d2AlTmsnqZcfx91-x7YEAV"),
        "Sehwag2021Proxy": Entry(WRN_34_10, "1UviikNzpltVFsgMuqQ8YhpmvGczGRS4S"),
        "Augustin2020Adversarial_34_10": Entry(WRN_34_10, "1qPsKS546mKcs71IEhzOS-kLpQFSFhaKL", CIFAR10_EXACT),
        "Augustin2020Adversarial_34_10_extra": Entry(WRN_34_10, "1--1MFZja6C2iVWi9MgetYjnSIenRBLT-", CIFAR10_EXACT),
    },
    ("cifar100", "Linf"): {
        "Cui2020Learnable_34_20_LBGAT6": Entry(WRN_34_20, "1rN76st8q_32j6Uo8DI5XhcC2cwVhXBwK"),
        "Cui2020Learnable_34_10_LBGAT0": Entry(WRN_34_10, "1RnWbGxN-A-ltsfOvulr68U6i2L8ohAJi"),
        "Cui2020Learnable_34_10_LBGAT6": Entry(WRN_34_10, "1TfIgvW3BAkL8jL9J7AAWFSLW3SSzJ2AE"),
        "Chen2020Efficient": Entry(WRN_34_10, "1JEh95fvsfKireoELoVCBxOi12IPGFDUT", CIFAR100_CHEN),
        "Wu2020Adversarial": Entry(WRN_34_10, "1yWGvHmrgjtd9vOpV5zVDqZmeGhCgVYq7", CIFAR100_EXACT),
        "Sehwag2021Proxy": Entry(WRN_34_10, "1ejMNF2O4xkSdrjtZt2UXUeim-y9F7Req"),
        "Sitawarin2020Improving": Entry(WRN_34_10, "1hbpwans776KM1SMbOxISkDx0KR0DW8EN"),
        "Hendrycks2019Using": Entry(WRN_28_10, "1If3tppQsCe5dN8Vbo9ff0tjlKQTTrShd", CENTRED),
        "Rice2020Overfitting": Entry(PREACT, "1XXNZn3fZBOkD1aqNL1cvcD8zZDccyAZ6", CIFAR100_EXACT),
        "Addepalli2021Towards_PARN18": Entry(PREACT, "1-FwVya1sDvdFXr0_ZBoXEJW9ukGC7hPK"),
        "Addepalli2021Towards_WRN34": Entry(WRN_34_10, "1-9GAld_105-jWBLXL73btmfOCwAqvz7Y"),
        "Chen2021LTD_WRN34_10": Entry(WRN_34_10, "1-I4NZyULdEWH46b4EaCTxuuRo4eFXsg_"),
        "Jia2022LAS-AT_34_10": Entry(WRN_34_10, "1-338K2PUf5FTwk4cbUUeTNz247GrXaMG"),
        "Jia2022LAS-AT_34_20": Entry(WRN_34_20, "1WhRq01Yl1v8O3skkrGUBuySlptidc5a6"),
        "Addepalli2022Efficient_WRN_34_10": Entry(WRN_34_10, "1-3c-iniqNfiwGoGPHC3nSostnG6J9fDt"),
        "Cui2020Learnable_34_10_LBGAT9_eps_8_255": Entry(WRN_34_10, "1TrUAN9opXBQa24WCTVtQTY-RkXK_3dmA"),
        "Cui2023Decoupled_WRN-34-10": Entry(WRN_34_10, "1whziIioVu5SGI1fBKyc331IfG_1MgenN"),
        "Cui2023Decoupled_WRN-34-10_autoaug": Entry(WRN_34_10, "18hjcLa1V3JTNUOshafLvw1ncxL2gu50M"),
        "Chen2024Data_WRN_34_10": Entry(WRN_34_10, "1-N5a0Z9o-8-oIrF4_EaVFVOOPI5-D-H2"),
    },
}  # fmt: skip


@dataclass(frozen=True)
class Found:
    """The file of a network, and what the model zoo says about it.

    Attributes:
        path: the file.
        entry: its row in the table.
        data: the data set.
        num_classes: K.
        norm, radius: the threat model of the benchmark.
    """

    path: Path
    entry: Entry
    data: str
    num_classes: int
    norm: str
    radius: str


def find(name: str) -> Found:
    """Returns the file of a network of RobustBench.

    The file is looked for in ``robustbench/DATA/NORM/NAME.pt`` of trilemma's cache folder, the layout of RobustBench's
    own downloads.

    Args:
        name: ``NAME`` (of cifar10 and Linf), ``DATA/NORM/NAME``, or the path of such a file, which ends in ``.pt``.

    Raises:
        UnknownNameError: no network of this name, or one that this package does not compute.
        CheckpointError: there is no such file; the message has its address.
    """
    path = Path(name) if name.endswith(".pt") else None
    *setting, model = Path(name.removesuffix(".pt")).parts[-3:]
    if not setting or (path is not None and tuple(setting) not in ENTRIES):
        setting = ["cifar10", "Linf"]
    if tuple(setting) not in ENTRIES:
        known = ", ".join("/".join(pair) for pair in ENTRIES)
        raise UnknownNameError(
            f"robustbench:{name}: write robustbench:DATA/NORM/NAME, DATA/NORM one of {known}"
        )
    data, norm = setting
    entries = ENTRIES[data, norm]
    if model not in entries:
        raise UnknownNameError(
            f"robustbench:{name}: no network {model!r} of {data}, {norm} that trilemma can compute."
            f"{nearest(model, entries)} Names: {', '.join(entries)}"
        )
    file = path or cache_folder() / "robustbench" / data / norm / f"{model}.pt"
    if not file.is_file():
        raise CheckpointError(
            f"robustbench:{name}: no file {file}; download {FILES}{entries[model].drive} ({WEBSITE}) and put it there"
        )
    return Found(file, entries[model], data, CLASSES[data], norm.lower(), RADII[data, norm])
