"""Everything that waits for an accelerator, in the order of its worth, in as many minutes as there are.

    python benchmarks/gpu/programme.py --minutes 9 --out FOLDER --root PATH

Each result is a file ``FOLDER/PART/NAME.json``, written as it is made, and what is there already is not made again: any
minutes of an accelerator add to the same table, ``FOLDER/programme.md``. A training that the time cuts off goes on in
the next call, if ``FOLDER/runs`` is still there. ``--root`` is a folder of CIFAR-10 images (`docs/data.md`).

1. ``agreement``: one step of every method here and on the CPU, and AutoAttack's verdicts on 200 images.
2. ``ceilings``: matrix products and memory copies as fast as they go.
3. ``rates``: images per second of a forward pass, of one with its backward pass, and of whole training steps.
4. ``speedrun``: minutes of training and the AutoAttack accuracy reached with them.
5. ``autoattack``: ours against the reference program (with ``--reference FOLDER``).
6. ``collapse``: catastrophic overfitting with and without DER; ``methods``: methods with equal minutes.

``--toy`` does one row of each kind on the CPU with 8x8 digits, to see that the programme works.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import agreement
import throughput
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import trilemma
from trilemma.config.registry import METHODS, NETWORKS
from trilemma.data.image_set import ImageSet
from trilemma.data.sources import load_images
from trilemma.demo.packaged import CLASSIFIER
from trilemma.evaluation.samples import generate
from trilemma.networks.cost import count_macs
from trilemma.networks.create import create_network

Row = dict[str, Any]
# Training images that a held-out split leaves of CIFAR-10.
TRAINING_IMAGES = 45_000
CLAIMS = ("pgd-at", "trades", "weat-adv", "eb-jdat", "dat")
AUTOATTACK = "autoattack-standard"


@dataclass(frozen=True)
class Setting:
    """What the parts share.

    Attributes:
        device: ``cuda`` or ``cpu``.
        root: folder of CIFAR-10 images.
        out: folder of results and runs.
        toy: toy size.
        reference: folder of the reference program of AutoAttack.
        claim_minutes: minutes of training of each method in the part ``methods``.
    """

    device: str
    root: str | None
    out: Path
    toy: bool
    reference: str | None
    claim_minutes: float

    def images(self, count: int) -> ImageSet:
        """The first test images of a fixed stratified order."""
        data = load_images("digits") if self.toy else load_images("cifar10", root=self.root)
        return data.first(20 if self.toy else count)

    def recipe(self, method: str, tree: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """The packaged recipe of a method and its overrides: PreActResNet-18 in bfloat16, or a toy."""
        if self.toy:
            small = {"training.epochs": 1, "data.train_images": 200, "training.batch_size": 100}
            kept = ("training.ema", "training.select", "threat.radius")
            return f"digits/{method}", small | {key: value for key, value in tree.items() if key in kept}
        on_gpu = {
            "data.root": self.root, "network": {"name": "preact-resnet", "depth": 18},
            "training.precision": "bf16", "training.channels_last": True,
        }  # fmt: skip
        return f"cifar10/{method}", on_gpu | tree


class Item(NamedTuple):
    """One row of the table.

    Attributes:
        part, name: folder and file of the result.
        minutes: about what it takes on an H100; it is begun if so many are left.
        make: measures it.
    """

    part: str
    name: str
    minutes: float
    make: Callable[[], Row]


def synchronised(device: str) -> float:
    """The time when all work given to the device is done."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


def repeated(work: Callable[[], object], device: str, seconds: float) -> float:
    """Seconds of one call of ``work``, from as many as fit into ``seconds``, after two for warming up."""
    work()
    began = synchronised(device)
    work()
    once = synchronised(device) - began
    count = max(1, int(seconds / max(once, 1e-6)))
    began = synchronised(device)
    for _ in range(count):
        work()
    return (synchronised(device) - began) / count


# 1. Agreement.


def agreement_items(setting: Setting) -> Iterator[Item]:
    for method in METHODS.names():
        yield Item("agreement", method, 0.1, partial(agreement.compare, method, setting.device, 64))
    yield Item("agreement", "autoattack", 0.5, partial(verdicts, setting))


def verdicts(setting: Setting) -> Row:
    """AutoAttack's verdicts on the packaged classifier of the digits, here and on the CPU."""
    count = 5 if setting.toy else 200
    data = load_images("digits").first(count)
    images, labels = data.float_images(), data.labels
    found = []
    for device in ("cpu", setting.device):
        clf = trilemma.load(CLASSIFIER).to(device)
        assert clf.threat is not None
        result = trilemma.attacks.autoattack(clf, images.to(device), labels.to(device), clf.threat)
        found.append(result.robust.cpu())
    return {
        "images": count,
        "robust_cpu": float(found[0].float().mean()),
        "robust": float(found[1].float().mean()),
        "differ": int((found[0] != found[1]).sum()),
    }


# 2. Ceilings.


def ceiling_items(setting: Setting) -> Iterator[Item]:
    for kind in ("bf16", "tf32", "fp32"):
        yield Item("ceilings", kind, 0.1, partial(matrix_product, setting, kind))
    yield Item("ceilings", "copy", 0.1, partial(memory_copy, setting))


def matrix_product(setting: Setting, kind: str) -> Row:
    size = 128 if setting.toy else 8192
    dtype = torch.bfloat16 if kind == "bf16" else torch.float32
    one, other = (torch.randn(size, size, device=setting.device, dtype=dtype) for _ in range(2))
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = kind == "tf32"
    try:
        seconds = repeated(lambda: one @ other, setting.device, 0.01 if setting.toy else 2.0)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    return {"size": size, "tflops": 2e-12 * size**3 / seconds}


def memory_copy(setting: Setting) -> Row:
    size = 2**16 if setting.toy else 2**30
    source = torch.zeros(size, dtype=torch.uint8, device=setting.device)
    target = torch.empty_like(source)
    seconds = repeated(lambda: target.copy_(source), setting.device, 0.01 if setting.toy else 1.0)
    return {"bytes": size, "gigabytes_per_second": 2e-9 * size / seconds}


# 3. Rates.


def rate_items(setting: Setting) -> Iterator[Item]:
    networks = ["small-resnet"] if setting.toy else ["preact-resnet", "wide-resnet"]
    batches = [16] if setting.toy else [512, 128, 1024]
    settings = ["bf16"] if setting.toy else ["bf16", "bf16 compiled", "fp32"]
    for network in networks:
        for batch in batches:
            for kind in settings:
                for passes in ("forward", "backward"):
                    name = f"{network}, {passes}, {batch}, {kind}"
                    yield Item("rates", name, 0.2, partial(passed, setting, network, passes, batch, kind))
                for method in ("pgd-at", "fgsm-rs", "eb-jdat", "jem++"):
                    # torch.compile does not differentiate an input gradient.
                    if kind == "bf16 compiled" and method not in ("pgd-at", "fgsm-rs"):
                        continue
                    name = f"{network}, {method}, {batch}, {kind}"
                    minutes = 1.5 if kind == "bf16 compiled" else 0.5
                    yield Item(
                        "rates", name, minutes, partial(stepped, setting, network, method, batch, kind)
                    )


def passed(setting: Setting, network: str, passes: str, batch: int, kind: str) -> Row:
    """Images per second of a forward pass, or of a forward and a backward pass to weights and images."""
    precision, compiled = throughput.SETTINGS[kind]
    shape = (1, 8, 8) if setting.toy else (3, 32, 32)
    deep = {"depth": 28, "width": 10} if network == "wide-resnet" else {}
    options = NETWORKS.options(network).model_validate({"name": network, **deep})
    net: nn.Module = create_network(options, 10, shape).to(setting.device)
    net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if compiled:
        net.compile()
    images = torch.rand(batch, *shape, device=setting.device).contiguous(memory_format=torch.channels_last)
    images.requires_grad_(passes == "backward")
    labels = torch.arange(batch, device=setting.device) % 10

    def work() -> None:
        with (
            torch.set_grad_enabled(passes == "backward"),
            torch.autocast(setting.device, torch.bfloat16, enabled=precision == "bf16"),
        ):
            loss = F.cross_entropy(net(images), labels)
        if passes == "backward":
            loss.backward()

    seconds = repeated(work, setting.device, 0.05 if setting.toy else 2.0)
    macs = count_macs(net, shape)
    factor = 6 if passes == "backward" else 2
    return {"images": batch / seconds, "tflops": 1e-12 * factor * macs * batch / seconds}


def stepped(setting: Setting, network: str, method: str, batch: int, kind: str) -> Row:
    """Images per second of a training step."""
    steps = 1 if setting.toy else 10
    images, tflops = throughput.speed(method, kind, network, setting.root, setting.device, batch, steps)
    return {"images": images, "tflops": tflops}


# 4. The speedrun, and 6. claims: trainings.


def trained(setting: Setting, name: str, recipe: str, overrides: dict[str, Any]) -> Row:
    """Trains, or goes on training, and evaluates the best classifier on test images."""
    run = trilemma.train(
        recipe,
        overrides,
        out=setting.out / "runs" / name,
        resume="auto",
        progress=False,
        device=setting.device,
    )
    count = 20 if setting.toy else None
    rows = trilemma.evaluate(run, protocols=["clean", "pgd-20"], images=count, device=setting.device)
    robust = trilemma.evaluate(
        run, protocols=[AUTOATTACK], images=5 if setting.toy else 1000, device=setting.device,
        resume=any((run.path / "evaluation").glob(f"{AUTOATTACK}*.state.safetensors")),
    )  # fmt: skip
    last = [line for line in run.metrics if line["kind"] == "epoch"][-1]
    return {
        "minutes": last["minutes"], "epochs": last["epoch"],
        "held_out_pgd10": last["held_out_pgd10"], "held_out_fgsm": last["held_out_fgsm"],
        **{protocol: row["value"] for protocol, row in {**rows, **robust}.items()},
    }  # fmt: skip


def speedrun_items(setting: Setting) -> Iterator[Item]:
    plans = [("n-fgsm", 15), ("pgd-at", 10), ("n-fgsm", 30), ("pgd-at", 20), ("n-fgsm", 8), ("pgd-at", 6)]
    for method, epochs in plans[:1] if setting.toy else plans:
        name = f"{method}, {epochs} epochs"
        tree = {
            "training.epochs": epochs, "training.ema": 0.995, "training.batch_size": 256, "training.lr": 0.2,
            "schedule": {"name": "cyclic", "peak": 0.4}, "training.evaluate_every": epochs,
        }  # fmt: skip
        call = setting.recipe(method, tree)
        yield Item("speedrun", name, 2.0, partial(trained, setting, f"speedrun, {name}", *call))


def collapse_items(setting: Setting) -> Iterator[Item]:
    remedy = {"monitors.remedies": {"accuracy-gap": [["rollback", "der"]]}, "training.evaluate_every": 1}
    der = {"regulariser": {"name": "der", "beta": 3.0}}
    kinds: dict[str, dict[str, Any]] = {"alone": {}, "der": der, "remedy": remedy}
    for radius in ("8/255", "16/255"):
        for method in ("fgsm", "fgsm-rs"):
            for kind, tree in kinds.items():
                name = f"{method}, {radius.partition('/')[0]} of 255, {kind}"
                full = {"training.epochs": 30, "threat.radius": radius, "training.evaluate_every": 2, **tree}
                # The last checkpoint shows the collapse; the best would hide it.
                full["training.select"] = "last"
                call = setting.recipe(method, full)
                yield Item("collapse", name, 3.0, partial(trained, setting, f"collapse, {name}", *call))
                if setting.toy:
                    return


def method_items(setting: Setting) -> Iterator[Item]:
    for method in CLAIMS[:1] if setting.toy else CLAIMS:

        def make(method: str = method) -> Row:
            tree: dict[str, Any] = {"training.batch_size": 128}
            if not setting.toy:
                images, _ = throughput.speed(
                    method, "bf16", "preact-resnet", setting.root, setting.device, 128, 5
                )
                epochs = max(1, round(60 * setting.claim_minutes * images / TRAINING_IMAGES))
                tree |= {"training.epochs": epochs, "training.evaluate_every": max(1, epochs // 5)}
            name = f"methods, {method}"
            row = trained(setting, name, *setting.recipe(method, tree))
            # The features of the Frechet distance are those of another network.
            judges = sorted((setting.out / "runs").glob("speedrun, *"))
            made = generate(
                setting.out / "runs" / name,
                per_class=2 if setting.toy else 100,
                start="class-gaussian",
                steps=5 if setting.toy else 100,
                namer=judges[0] if judges else None,
                device=setting.device,
            )
            measured = made.record["figures"]["sample"]
            return row | {
                f"samples: {key}": value for key, value in measured.items() if isinstance(value, float)
            }

        yield Item("methods", method, setting.claim_minutes + 2.0, make)


# 5. AutoAttack.


def autoattack_items(setting: Setting) -> Iterator[Item]:
    yield Item("autoattack", "ours and the reference", 3.0, partial(both_programs, setting))


def subject(setting: Setting) -> trilemma.Classifier:
    """The classifier of the first speedrun that is there, or the packaged one of the digits at toy size."""
    runs = sorted((setting.out / "runs").glob("speedrun, *"))
    if setting.toy or not runs:
        return trilemma.load(CLASSIFIER)
    return trilemma.load(runs[0])


def both_programs(setting: Setting) -> Row:
    clf = subject(setting).to(setting.device).eval()
    digits = clf.image_shape == (1, 8, 8)
    data = load_images("digits").first(5 if setting.toy else 1000) if digits else setting.images(1000)
    images, labels = data.float_images(device=setting.device), data.labels.to(setting.device)
    assert clf.threat is not None
    began = synchronised(setting.device)
    found = trilemma.attacks.autoattack(clf, images, labels, clf.threat, progress=False)
    row: Row = {
        "images": len(images), "network": type(clf.network).__name__, "threat": str(clf.threat),
        "seconds": synchronised(setting.device) - began, "robust": float(found.robust.float().mean()),
    }  # fmt: skip
    if setting.reference is None:
        return row
    robust, seconds = reference_verdicts(setting, copy.deepcopy(clf), images, labels)
    return row | {
        "reference_seconds": seconds,
        "ratio": seconds / row["seconds"],
        "reference_robust": float(robust.float().mean()),
        "differ": int((robust.cpu() != found.robust.cpu()).sum()),
    }


def reference_verdicts(
    setting: Setting, clf: trilemma.Classifier, images: Tensor, labels: Tensor
) -> tuple[Tensor, float]:
    """Verdicts and seconds of the reference program."""
    assert setting.reference is not None and clf.threat is not None
    sys.path.insert(0, setting.reference)
    program: Any = import_module("autoattack")
    norm = {"linf": "Linf", "l2": "L2"}[clf.threat.norm]
    ensemble = program.AutoAttack(
        clf,
        norm=norm,
        eps=clf.threat.epsilon,
        version="standard",
        device=setting.device,
        seed=0,
        verbose=False,
    )
    began = synchronised(setting.device)
    found = ensemble.run_standard_evaluation(images, labels, bs=250)
    seconds = synchronised(setting.device) - began
    with torch.no_grad():
        return clf(found).argmax(1) == labels, seconds


# The programme.

PARTS: dict[str, Callable[[Setting], Iterator[Item]]] = {
    "agreement": agreement_items,
    "ceilings": ceiling_items,
    "rates": rate_items,
    "speedrun": speedrun_items,
    "autoattack": autoattack_items,
    "collapse": collapse_items,
    "methods": method_items,
}


def file_of(out: Path, item: Item) -> Path:
    return out / item.part / f"{item.name}.json"


def carry_out(setting: Setting, items: list[Item], deadline: float) -> list[str]:
    """Makes the rows that are missing while the time lasts; returns a line about each one that failed."""
    failed = []
    for item in items:
        left = (deadline - time.monotonic()) / 60
        if file_of(setting.out, item).is_file() or left < item.minutes:
            continue
        print(f"{item.part}: {item.name} ({left:.1f} minutes left)", flush=True)
        began = time.perf_counter()
        try:
            row = item.make()
        # What fails on this machine must not keep the rest from being made.
        except Exception as error:
            failed.append(f"{item.part}, {item.name}: {type(error).__name__}: {str(error).splitlines()[0]}")
            print(failed[-1], file=sys.stderr, flush=True)
            continue
        row |= {"device": hardware(setting.device), "seconds_in_all": round(time.perf_counter() - began, 1)}
        file_of(setting.out, item).parent.mkdir(parents=True, exist_ok=True)
        file_of(setting.out, item).write_text(json.dumps(row, indent=1) + "\n")
        page(setting, items)
    return failed


def hardware(device: str) -> str:
    name = torch.cuda.get_device_name() if device.startswith("cuda") else platform.machine()
    return f"{name}, torch {torch.__version__}, Python {platform.python_version()}"


def page(setting: Setting, items: list[Item]) -> str:
    """Writes the table of everything that the folder holds, and returns it."""
    lines = ["# The accelerator programme", "", f"trilemma {trilemma.__version__}", ""]
    for part in dict.fromkeys(item.part for item in items):
        names = [item for item in items if item.part == part]
        rows = {
            item.name: json.loads(file_of(setting.out, item).read_text())
            for item in names
            if file_of(setting.out, item).is_file()
        }
        lines += [f"## {part}", "", f"{len(rows)} of {len(names)} rows.", ""]
        if rows:
            columns = list(dict.fromkeys(key for row in rows.values() for key in row))
            lines += [f"| row | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
            lines += [
                f"| {name} | {' | '.join(shown(row.get(key)) for key in columns)} |"
                for name, row in rows.items()
            ]
            lines.append("")
    text = "\n".join(lines)
    setting.out.mkdir(parents=True, exist_ok=True)
    (setting.out / "programme.md").write_text(text + "\n")
    return text


def shown(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main(arguments: list[str] | None = None) -> int:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--minutes", type=float, default=9.0, help="nothing is begun that would not end in time"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of results and runs")
    parser.add_argument("--root", help="folder of CIFAR-10 images")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--reference", help="folder of the reference program of AutoAttack")
    parser.add_argument(
        "--claim-minutes", type=float, default=2.0, help="training of each method of 'methods'"
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--toy", action="store_true", help="one row of each kind on the CPU")
    options = parser.parse_args(arguments)
    if options.minutes <= 0 or options.claim_minutes <= 0:
        parser.error("--minutes and --claim-minutes must be above 0")
    device = "cpu" if options.toy else options.device
    if device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("no CUDA device here; --toy shows that the programme works")
    if not options.toy and options.root is None:
        parser.error("--root is missing: a folder of CIFAR-10 images")
    setting = Setting(
        device, options.root, options.out, options.toy, options.reference, options.claim_minutes
    )
    deadline = time.monotonic() + 60 * options.minutes
    items = [item for part in options.parts for item in PARTS[part](setting)]

    def cut_off(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    # A training saves its state when it is interrupted; everything else is a row short.
    signal.signal(signal.SIGALRM, cut_off)
    signal.setitimer(signal.ITIMER_REAL, 60 * options.minutes)
    failed: list[str] = []
    try:
        failed = carry_out(setting, items, deadline)
    except KeyboardInterrupt:
        print("the time is over; the same command goes on", flush=True)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    print(page(setting, items))
    missing = sum(not file_of(setting.out, item).is_file() for item in items)
    print(f"{len(items) - missing} of {len(items)} rows; {len(failed)} failed in this call")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
