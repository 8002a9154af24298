"""Part ``numbers``: impossible numbers on the command line, in Python, in YAML and in array files."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.fault_suite.case import Case, Judge, must_refuse, nothing_wrong
from benchmarks.fault_suite.damage import copy_of
from benchmarks.fault_suite.files import FINISHED, Sound, digit, nothing

_HUGE = "1" + "0" * 30
_LONG = "1" * 400

# Overrides of a recipe that no training can follow.
OVERRIDES = (
    "training.seed=18446744073709551616", f"training.seed={_HUGE}", "training.seed=-1", "training.seed=1.5",
    "training.seed=nan", "training.lr=nan", "training.lr=inf", "training.lr=-1", "training.lr=0",
    "training.lr=1e-400", "training.lr=1e400", "training.lr=1e308", "training.epochs=0", "training.epochs=-1",
    "training.epochs=1.5", f"training.epochs={_LONG}", "training.batch_size=0", "training.batch_size=-1",
    f"training.batch_size={_HUGE}", "devices=0", "devices=-1", "devices=1000000", f"devices={_HUGE}",
    "threat.radius=1e-400", "threat.radius=nan", "threat.radius=inf", "threat.radius=-0.1",
    "threat.radius=1/0", "threat.radius=1e400", "threat.radius=2e-400/3", f"threat.radius={_LONG}",
    "attack.steps=-1", "attack.steps=0", "attack.steps=1.5", "attack.step_size=inf", "attack.step_size=nan",
    "attack.step_size=-1", "attack.step_size=1e400", "attack.step_size=1e-400", "network.width=0",
    "network.width=-4", "network.width=1000000", f"network.width={_HUGE}", "network.depth=1000000007",
    "network.depth=-8", "network.width=4.5", "training.max_minutes=nan", "training.max_minutes=-1",
    "training.max_minutes=0", "data.held_out=2", "data.held_out=nan", "data.held_out=-0.5", "training.ema=1.5",
    "training.ema=nan", "training.ema=-1", "training.log_every=0",
    "data.train_images=0", "data.train_images=-5", "data.size=0", "data.size=1000000", f"data.size={_HUGE}",
    "training.checkpoint_minutes=nan", "training.checkpoint_minutes=-1", "optimiser.momentum=nan",
    "optimiser.momentum=1", "optimiser.weight_decay=inf", "optimiser.weight_decay=-1", "schedule.peak=0",
    "schedule.peak=nan", "schedule.warmup_steps=-1", "augmentation.crop=-1", "augmentation.crop=1000000",
    "augmentation.cutout=-1", "training.input_noise=nan", "training.input_noise=inf",
    "training.bn_momentum=nan", "training.bn_momentum=2", "training.evaluate_every=0",
    "training.held_out_images=0", "monitors.max_rollbacks=-1", "monitors.rate_factor=nan",
    "training.mean=[nan]", "training.std=[0]", "training.std=[inf]", "training.std=[1e-400]",
    "update.rho=nan", "update.rho=inf", "training.layer_lr={classifier: nan}", "training.freeze=-1",
)  # fmt: skip
# Those of a method with chains.
CHAINS = (
    "sampler.steps=0", "sampler.steps=-1", "sampler.step_size=nan", "sampler.step_size=inf", "sampler.step_size=0",
    "sampler.noise_std=nan", "sampler.noise_std=-1", "sampler.noise_std=inf", "sampler.clamp=nan",
    "sampler.buffer_size=-1", f"sampler.buffer_size={_HUGE}", "sampler.buffer_size=1000000000000",
    "sampler.reinit=2", "sampler.reinit=nan",
)  # fmt: skip

# Options of commands. Of some, a result is right too: `--images` of more images than there are means all.
COMMANDS: tuple[tuple[str, str], ...] = (
    *[
        ("evaluate run --protocol pgd-20 --images 10 --json -q", option)
        for option in (
            "--radius 1e-400", "--radius nan", "--radius inf", "--radius=-0.1", "--radius 1/0", "--radius 0/0",
            "--radius 1e400", "--radius 1e-400/2", f"--radius {_LONG}", "--radius 1/1e400", "--radius x",
            "--seed=-1", f"--seed {_HUGE}", "--seed 18446744073709551616", "--seed 1e3", "--images 0",
            "--images=-1", "--images 1.5", "--purify=-1", "--purify 2 --purify-step-size nan",
            "--purify 2 --purify-step-size inf", "--purify 2 --purify-noise nan", "--purify 2 --purify-noise=-1",
            "--purify 2 --purify-noise inf", "--purify 2 --purify-draws 0", "--protocol pgd--1", "--protocol pgd-0",
            "--protocol pgd-99999999999999999999999", "--radius 0.1,nan", "--radius 0.1,",
        )
    ],
    *[
        ("generate run --steps 2 --json -q", option)
        for option in (
            "--per-class 100000000", f"--per-class {_HUGE}", "--per-class 0", "--per-class=-1", "--steps=-1",
            "--step-size nan", "--step-size inf", "--step-size=-inf", "--step-size 1e400", "--noise-std nan",
            "--noise-std inf", "--noise-std=-1", "--clamp nan", "--clamp=-1", "--temperature nan",
            "--temperature=-1", "--diversity nan", "--diversity inf", "--seed=-1", f"--seed {_HUGE}",
            "--start local-pca:k=1000000000000", "--start local-pca:k=-1", "--start uniform:nan",
            "--start uniform:0.5,data:nan", "--start uniform:-1,data:2", "--draws 0", f"--draws {_HUGE}",
        )
    ],
    *[
        ("predict run digit.png --json", option)
        for option in (
            "--size 0", "--size=-1", "--size 1000000", f"--size {_HUGE}", "--classes 0", "--classes=-1",
            "--classes 1000000000", f"--classes {_HUGE}", "--mean nan --std 1", "--mean 0 --std 0",
            "--mean inf --std 1", "--output=-5", f"--output {_HUGE}",
        )
    ],
    *[
        ("predict weights.pt digit.png --network small-resnet,width=4 --classes 10 --size 8 --json", option)
        for option in (
            "--mean nan --std 1", "--mean 0 --std 0", "--mean inf --std 1", "--mean 0 --std 1e-400",
            "--mean 0 --std=-1", "--mean 0 --std nan", "--mean 1,2,3 --std 1,2,3", "--mean x --std 1",
            "--network small-resnet,width=1000000", "--network small-resnet,width=nan",
            "--network small-resnet,depth=1000000007", "--classes 1000000000000", "--size 1000000000",
        )
    ],
    *[
        ("counterfactual run digit.png --target 3 --out moved -q --json", option)
        for option in (
            "--budget nan", "--budget inf", "--budget=-1", "--budget 1e-400", "--budget 1/0", "--budget 1e400",
            "--tolerance nan", "--tolerance 0", "--tolerance=-1", "--tolerance 1e-400", "--steps 0", "--steps=-1",
            f"--target {_HUGE}", "--target=-1",
        )
    ],
    *[
        ("diagnose run --attack pgd --out seen -q --json", option)
        for option in ("--images 0", "--images=-1", "--radius nan", "--radius 1e-400", "--radius inf", "--seed=-1")
    ],
    *[
        ("monitor run --json", option)
        for option in ("--images 0", "--images=-1", "--classes 1", "--classes=-3", "--images 1.5")
    ],
    *[
        ("lint run --json -q", option)
        for option in ("--radius nan", "--radius 1e-400", "--radius=-1", f"--seed {_HUGE}", "--size 1000000")
    ],
)  # fmt: skip
# Numbers that are large or small, and have one meaning.
ACCEPTED: tuple[tuple[str, str], ...] = (
    ("evaluate run --protocol clean --json -q", f"--images {_HUGE}"),
    ("diagnose run --attack pgd --out seen -q --json", f"--images {_HUGE}"),
    ("monitor run --json", f"--images {_HUGE}"),
    ("monitor run --json", f"--classes {_LONG}"),
    ("evaluate run --protocol clean --json -q", "--seed 9007199254740992"),
    ("evaluate run --protocol pgd-20 --images 10 --json -q", "--radius 1e-30"),
)


@cache
def _classifier() -> Any:
    import trilemma

    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    return trilemma.Classifier(network, 10, image_shape=(1, 8, 8)).eval()


def _attack(name: str, **options: Any) -> Callable[[], Any]:
    def call() -> None:
        import trilemma

        images, labels = torch.full((4, 1, 8, 8), 0.5), torch.arange(4)
        threat = options.pop("threat", "0.1")
        threat = trilemma.Threat("linf", threat) if isinstance(threat, str) else threat
        print(getattr(trilemma.attacks, name)(_classifier(), images, labels, threat, **options))

    return call


def _wrapped(count: Any) -> Callable[[], Any]:
    def call() -> None:
        import trilemma

        print(trilemma.Classifier(torch.nn.Flatten(), count))

    return call


def _radius(radius: Any, norm: Any = "linf") -> Callable[[], Any]:
    def call() -> None:
        import trilemma

        print(repr(trilemma.Threat(norm, radius)))

    return call


def _evaluated(**options: Any) -> Callable[[], Any]:
    def call() -> None:
        import trilemma

        images, labels = torch.full((4, 1, 8, 8), 0.5), torch.arange(4)
        settings = {"protocols": ["pgd-20"], "threat": trilemma.Threat("linf", "0.1"), **options}
        print(trilemma.evaluate(_classifier(), (images, labels), **settings))

    return call


def _generated(**options: Any) -> Callable[[], Any]:
    def call() -> None:
        import trilemma

        print(
            trilemma.samplers.generate(
                _classifier(), torch.arange(4), **{"start": "uniform", "steps": 1, **options}
            )
        )

    return call


_NAN, _INF = float("nan"), float("inf")
_COUNTS: tuple[Any, ...] = (0, -1, 1, 1.5, "10", None, _NAN, True)
_RADII: tuple[Any, ...] = (
    "1e-400", "nan", "inf", _NAN, _INF, -1, "-1", "1/0", None, [], "1e400", 10**400, "", b"0.1",
)  # fmt: skip
PYTHON: dict[str, Callable[[], Any]] = {
    **{f"Classifier(network, {value!r})": _wrapped(value) for value in _COUNTS},
    **{
        f"Threat(linf, {value!r:.40})": _radius(value)
        for value in _RADII
    },
    **{
        f"pgd({key}={value!r:.40})": _attack("pgd", **{key: value})
        for key, value in (
            ("steps", -1), ("steps", 1.5), ("steps", _NAN), ("steps", "ten"), ("steps", None), ("step_size", _INF),
            ("step_size", _NAN), ("step_size", -1.0), ("step_size", "x"), ("step_size", 1e-400), ("restarts", 0),
            ("restarts", -1), ("target_labels", torch.tensor([99] * 4)), ("target_labels", torch.tensor([0])),
            ("threat", "1e-400"), ("threat", None), ("generator", 0),
        )
    },
    **{
        f"{name}({key}={value!r:.40})": _attack(name, **{key: value})
        for name, key, value in (
            ("apgd", "steps", -1), ("apgd", "targets", 0), ("apgd", "targets", 99),
            ("apgd", "loss", "x"), ("fab", "steps", -1), ("fab", "targets", -1), ("square", "queries", -1),
            ("square", "queries", 1.5), ("autoattack", "batch_size", 0), ("autoattack", "batch_size", -1),
            ("autoattack", "batch_size", 1.5), ("autoattack", "seed", 2**64),
            ("autoattack", "seed", _NAN), ("autoattack", "attacks", ["x"]), ("autoattack", "attacks", []),
        )
    },
    **{
        f"evaluate({key}={value!r:.40})": _evaluated(**{key: value})
        for key, value in (
            ("images", -1), ("images", 0), ("images", 1.5), ("images", _NAN), ("seed", 2**70),
            ("seed", 1.5), ("protocols", "x"), ("threat", "nan"), ("threat", {}),
        )
    },
    **{
        f"generate({key}={value!r:.40})": _generated(**{key: value})
        for key, value in (
            ("steps", -1), ("steps", 1.5), ("step_size", _INF), ("step_size", _NAN), ("noise_std", -1.0),
            ("noise_std", _NAN), ("start", "nope"), ("sampler", "nope"), ("energy", "nope"), ("generator", 3),
        )
    },
}  # fmt: skip


def _npz_member(name: str, shape: str, kind: str = "|u1", content: bytes = bytes(64)) -> bytes:
    """An ``.npy`` whose header claims a shape."""
    header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}"
    header += " " * (-(len(header) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + content


def _npz(**members: bytes) -> Callable[[Path], Any]:
    def write(folder: Path) -> None:
        import zipfile

        with zipfile.ZipFile(folder / "data.npz", "w") as archive:
            for name, content in members.items():
                archive.writestr(f"{name}.npy", content)

    return write


def _arrays(images: Any, labels: Any) -> Callable[[Path], Any]:
    return lambda folder: np.savez(folder / "data.npz", images=images, labels=labels)


_IMAGES = np.zeros((20, 8, 8), np.uint8)
_LABELS = _npz_member("labels", "(20,)", "<i8", bytes(160))
ARRAYS: dict[str, Callable[[Path], Any]] = {
    "images of 10^12 bytes": _npz(images=_npz_member("images", "(15625000000, 8, 8)"), labels=_LABELS),
    "images of 2^80 bytes": _npz(images=_npz_member("images", f"({2**40}, {2**40}, 8)"), labels=_LABELS),
    "images of negative shape": _npz(images=_npz_member("images", "(-20, 8, 8)"), labels=_LABELS),
    "images of a shape of text": _npz(images=_npz_member("images", "('20', 8, 8)"), labels=_LABELS),
    "images of 3,000 axes": _npz(images=_npz_member("images", f"({'1, ' * 3000})"), labels=_LABELS),
    "images of an object": _npz(images=_npz_member("images", "(20,)", "|O"), labels=_LABELS),
    "a header that is code": _npz(images=_npz_member("images", "__import__('os').getpid()"), labels=_LABELS),
    "a type that is code": _npz(
        images=_npz_member("images", "(1,)", "O', 'x': [1]*9, 'y': '"), labels=_LABELS
    ),
    "a label of 10^9": _arrays(_IMAGES, np.array([0] * 19 + [10**9])),
    "a label of 2^63 - 1": _arrays(_IMAGES, np.array([0] * 19 + [2**63 - 1])),
    "a label of -1": _arrays(_IMAGES, np.array([0, 1] * 9 + [0, -1])),
    "labels of 0.5": _arrays(_IMAGES, np.full(20, 0.5)),
    "labels that are NaN": _arrays(_IMAGES, np.full(20, np.nan)),
    "labels that are text": _arrays(_IMAGES, np.array(["a"] * 20)),
    "fewer labels than images": _arrays(_IMAGES, np.zeros(19, int)),
    "images that are NaN": _arrays(np.full((20, 8, 8), np.nan, np.float32), np.arange(20) % 10),
    "images of 1e308": _arrays(np.full((20, 8, 8), 1e308), np.arange(20) % 10),
    "images below 0": _arrays(np.full((20, 8, 8), -1, np.int16), np.arange(20) % 10),
    "images of no pixels": _arrays(np.zeros((20, 0, 8), np.uint8), np.arange(20) % 10),
    "no images": _arrays(np.zeros((0, 8, 8), np.uint8), np.zeros(0, int)),
}

YAML = {
    "3,000 lists deep": "[" * 3000 + "]" * 3000,
    "3,000 mappings deep": "{a: " * 3000 + "1" + "}" * 3000,
    "3,000 indented mappings": "\n".join(" " * depth + "a:" for depth in range(3000)),
    "a number of 5,000 digits": f"training: {{seed: {'9' * 5000}}}",
    "a number of 100,000 digits": f"training: {{seed: {'9' * 100_000}}}",
    "a number in base 60": "training: {seed: " + "1:" * 3000 + "1}",
    "a date": "training: {seed: 2020-01-01}",
    "seed twice": "training: {seed: 1, seed: 2}",
    "a key that is a list": "? [1, 2]\n: 3",
    "a tag": "training: !!python/object/apply:os.getcwd []",
    "two documents": "data: {name: digits}\n---\ndata: {name: digits}",
    "a NUL": "data: {name: 'digits\0'}",
    "an anchor to itself": "training: &a {epochs: 1, start: *a}",
}


def cases(folder: Path, short: bool) -> Iterator[Case]:
    """The cases; of the short form every 25th."""
    every = list(_all_cases(Sound(folder)))
    yield from every[::25] if short else every


def _all_cases(sound: Sound) -> Iterator[Case]:
    def prepare(target: Path) -> None:
        copy_of(sound.folder / FINISHED, target / "run")
        digit(target / "digit.png")

    def prepare_weights(target: Path) -> None:
        prepare(target)
        _export(target)

    quick = ("training.epochs=1", "training.held_out_images=20", "--out", "new", "-q")
    for recipe, overrides in (("digits/pgd-at", OVERRIDES), ("digits/eb-jdat", CHAINS)):
        for override in overrides:
            # A rate as large as this is a number; training diverges, and says so.
            large = "1e308" in override
            yield _case(
                f"validate {override}", nothing, ("validate", recipe, override),
                nothing_wrong if large else must_refuse,
            )  # fmt: skip
            yield _case(
                f"train {override}", nothing, ("train", recipe, *quick[:2], override, *quick[2:]),
                _nothing_learned if large else must_refuse, (2, 3) if large else (2,),
            )  # fmt: skip
    for command, option in COMMANDS:
        weights = "weights.pt" in command
        title = f"{command.split()[0]} {'weights ' if weights else ''}{option}"
        words = (*command.split(), *option.split())
        yield _case(title, prepare_weights if weights else prepare, words, must_refuse)
    for command, option in ACCEPTED:
        words = (*command.split(), *option.split())
        yield _case(f"{command.split()[0]} {option}", prepare, words, nothing_wrong)
    for title, call in PYTHON.items():
        yield _case(title, nothing, call, must_refuse)
    for title, write in ARRAYS.items():
        for line in (
            "evaluate run --data data.npz --protocol clean --json -q",
            "train new.yaml -q --out new",
        ):
            name = f"npz with {title}: {line.split()[0]}"
            yield _case(name, _both(prepare, write), tuple(line.split()), must_refuse)
    for title, text in YAML.items():
        for line in ("validate evil.yaml", "train evil.yaml --out new -q"):
            name = f"YAML with {title}: {line.split()[0]}"
            yield _case(name, _text_file(text), tuple(line.split()), must_refuse)
    yield from _names(prepare)


def _case(
    title: str,
    prepare: Callable[[Path], Any],
    action: tuple[str, ...] | Callable[[], Any],
    judge: Judge,
    codes: tuple[int, ...] = (2,),
) -> Case:
    may_leave = r"(^|/)\.lock$" + ("|^new/" if 3 in codes else "")
    return Case(
        title if len(title) < 120 else title[:110] + " ...",
        prepare,
        action,
        judge,
        codes,
        may_leave=may_leave,
    )


def _nothing_learned(ended: Any) -> str:
    return "finished with a learning rate of 1e308"


def _export(folder: Path) -> None:
    from safetensors.torch import load_file

    file = folder / "run" / "checkpoints" / "best" / "classifier.safetensors"
    weights = {
        name.removeprefix("network."): value
        for name, value in load_file(file).items()
        if name.startswith("network.")
    }
    torch.save(weights, folder / "weights.pt")


def _both(first: Callable[[Path], Any], second: Callable[[Path], Any]) -> Callable[[Path], Any]:
    def prepare(folder: Path) -> None:
        first(folder)
        second(folder)
        recipe = "data: {name: folder, root: data.npz}\nmethod: {name: standard}\ntraining: {epochs: 1}\n"
        (folder / "new.yaml").write_text(recipe + "network: {name: small-resnet, width: 4, depth: 8}\n")

    return prepare


def _text_file(text: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / "evil.yaml").write_text(text)


def _names(prepare: Callable[[Path], Any]) -> Iterator[Case]:
    """File names that are not UTF-8, which Linux allows."""
    name = os.fsdecode(b"caf\xe9")

    def rename(folder: Path) -> None:
        prepare(folder)
        os.rename(folder / "digit.png", folder / f"{name}.png")
        os.rename(folder / "run", folder / name)
        (folder / "plain").mkdir()
        (folder / "plain" / f"{name}.png").write_bytes((folder / f"{name}.png").read_bytes())

    for command in (
        ("predict", name, f"{name}.png"), ("predict", name, f"{name}.png", "--json"), ("score", name, "plain"),
        ("evaluate", name, "--protocol", "clean", "--images", "20", "-q"), ("report", name),
        ("compare", name, "--format", "csv"), ("compare", name, "--out", "x.html"), ("monitor", name),
        ("export", name, "--state-dict", "-q"), ("generate", name, "--per-class", "1", "--steps", "1", "-q"),
        ("train", name, "--resume"), ("train", "digits/standard", "training.epochs=1", "--out", f"{name}-2", "-q"),
        ("validate", f"{name}.yaml"), ("evaluate", "missing" + name),
    ):  # fmt: skip
        shown = " ".join(command).encode("ascii", "backslashreplace").decode()
        yield _case(f"a name that is not UTF-8: {shown}", rename, command, nothing_wrong)
