"""What a training step costs: the library's own loop, its passes alone, and a step in the form of the papers' releases.

    OMP_NUM_THREADS=1 python benchmarks/throughput.py --root PATH

For every method and network: images per second of ``trilemma.train``'s loop with all it does in a step; its forward
passes per image, counted in multiplications and stated by ``trilemma validate``; the highest memory of its tensors; and
the share of its parts. Two other sides take turns with it in one process, a segment of steps each: the passes alone (as
many gradients of images and of weights, of the same kind and with as many multiplications, and nothing else), and for
some methods the step of ``release_steps.py``. Before they are timed, both steps are taken from the same weights with
the same random numbers in float64, and the weights after it are compared. Ratios are medians over the rounds, of
processor time and of the clock.

``--root`` is a folder of CIFAR-10 images (`docs/data.md`); without it the data are the digits, at 8x8. Writes
`benchmarks/results/throughput.json` and `.md`; rows of earlier calls stay, unless they are measured again.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.release_steps import STEPS, Draws, Release, class_gaussians, released_form  # noqa: E402
from benchmarks.result_page import write  # noqa: E402
from benchmarks.timed_loop import OURS, Other, Turn, adapted_malloc, create_loop, run_rounds  # noqa: E402

from trilemma import noise  # noqa: E402
from trilemma.classifier.classifier import Classifier  # noqa: E402
from trilemma.classifier.contexts import inner_loop  # noqa: E402
from trilemma.classifier.fast_copy import fast_copy  # noqa: E402
from trilemma.classifier.memory_format import preferred_memory_format, set_memory_format  # noqa: E402
from trilemma.config.config import Config  # noqa: E402
from trilemma.config.recipe import build_config  # noqa: E402
from trilemma.config.registry import METHODS  # noqa: E402
from trilemma.data.batch import Batch  # noqa: E402
from trilemma.data.image_set import Splits  # noqa: E402
from trilemma.data.outlier_images import OutsideImages  # noqa: E402
from trilemma.data.sources import load_splits  # noqa: E402
from trilemma.memory import freed_memory_kept  # noqa: E402
from trilemma.methods import inner  # noqa: E402
from trilemma.methods.base import Method, MethodState  # noqa: E402
from trilemma.methods.creation import create_from_config  # noqa: E402
from trilemma.methods.dat import DatState  # noqa: E402
from trilemma.samplers.replay_buffer import ReplayBuffer  # noqa: E402
from trilemma.samplers.samplers import run_sampler  # noqa: E402
from trilemma.training import build  # noqa: E402
from trilemma.training.estimate import forward_passes  # noqa: E402
from trilemma.training.loop import Loop  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "throughput.json"
COMMAND = "OMP_NUM_THREADS=1 python benchmarks/throughput.py --root PATH"
# Images per step, timed steps of a turn, rounds.
Size = tuple[int, int, int]
Gaussians = Callable[[Splits], list[MultivariateNormal]]
RELEASE, PASSES = "release", "passes alone"
NETWORKS: dict[str, dict[str, Any]] = {
    "small-cnn": {"name": "small-cnn"},
    "small-resnet": {"name": "small-resnet", "depth": 8, "width": 16},
    "WRN-28-2": {"name": "wide-resnet", "depth": 28, "width": 2},
}
# The batch is the published one of the JEM family. In ten timed steps are one line of the log and one forward pass of
# clean images, as of every ten steps of a run; the compute-bound network gets fewer, as its step takes half a minute.
SIZES: dict[str, Size] = {"small-cnn": (64, 10, 3), "small-resnet": (64, 5, 2), "WRN-28-2": (64, 1, 2)}
TOY: Size = (8, 1, 1)
# As published; all others have plain updates here.
WITH_SAM = ("sada-jem", "eb-jdat-release")
RHO = 2.0
DAT_STEPS = 10
# Images of the comparison in float64 and of the counting, of which neither depends on the batch.
FEW = 4
TRAIN_IMAGES, CHAINS = 5_000, 1_000
TARGETS = {
    "eb-jdat": {"small-cnn": 4.0, "small-resnet": 4.0, "WRN-28-2": 1.8},
    "jem++": dict.fromkeys(NETWORKS, 2.0),
    "sada-jem": dict.fromkeys(NETWORKS, 2.0),
}
# Largest time of a step of pgd-at, in that of its passes.
PASSES_TARGET = {"pgd-at": 1.05}
# A freed block above this size does not change the thresholds of glibc.
MOST_ADAPTED = 32 << 20
# Largest difference of the weights after a step, relative to the largest change of a weight.
TOLERANCE = 1e-6


def configuration(method: str, network: str, root: str | None, batch: int) -> Config:
    """The method with its own defaults, on a data set."""
    kind = METHODS.options(method)
    tree: dict[str, Any] = {
        "data": {"name": "cifar10", "root": root, "train_images": TRAIN_IMAGES}
        if root
        else {"name": "digits"},
        "network": NETWORKS[network],
        "method": {"name": method},
        "schedule": {"name": "constant"},
        "training": {"batch_size": batch, "epochs": 1, "lr": 0.01},
    }
    if kind.uses_attack:
        l2 = method == "dat"
        tree["threat"] = {"norm": "l2" if l2 else "linf", "radius": "1/2" if l2 else "8/255"}
    if method == "dat":
        tree["sampler"] = {"steps": DAT_STEPS}
    elif kind.uses_sampler:
        tree["sampler"] = {"buffer_size": CHAINS}
    if method in WITH_SAM:
        tree["update"] = {"name": "sam", "rho": RHO}
    return build_config(tree)


@dataclass
class Setting:
    """The parts of one step outside the training loop."""

    config: Config
    clf: Classifier
    method: Method
    state: MethodState
    batch: Batch

    @classmethod
    def of(cls, config: Config, data: Splits) -> Setting:
        """In float32, from initial weights of a fixed seed."""
        torch.manual_seed(0)
        clf = build.build_classifier(config, data.train).train()
        method = create_from_config(config)
        state = method.init_state(clf, data.train, seed=0)
        full_length(state, method)
        loader = build.build_loader(config, data.train, torch.device("cpu"))
        return cls(config, clf, method, state, next(iter(loader.epoch(0))))

    def in_float64(self) -> Setting:
        """The same with weights, images and chains in float64."""
        batch = self.batch
        views = {name: images.double() for name, images in batch.views.items()}
        state = copy.deepcopy(self.state)
        if state.buffer is not None:
            start = state.buffer.start
            state.buffer.images = state.buffer.images.double()
            state.buffer.start = lambda labels: start(labels).double()
        double = replace(batch, images=batch.images.double(), views=views)
        return Setting(self.config, copy.deepcopy(self.clf).double(), self.method, state, double)

    def of_few(self) -> Setting:
        """The same with the first images of the batch."""
        batch, few = self.batch, slice(FEW)
        views = {name: images[few] for name, images in batch.views.items()}
        return replace(
            self, batch=replace(batch, images=batch.images[few], labels=batch.labels[few], views=views)
        )

    def step(self) -> None:
        """One step of the library, without what the loop does around it."""
        update = build.build_update(self.config.update, self.clf, 1)
        points = self.method.points(self.clf, self.batch, self.state)
        optimiser = build.build_optimiser(self.config, self.clf)
        update(lambda: self.method.terms(self.clf, points, self.state), optimiser, lambda: None)

    def release(self, draws: Draws) -> Turn:
        """The step of the release, on the weights of this setting."""
        optimiser = build.build_optimiser(self.config, self.clf)
        rho = RHO if self.config.update.name == "sam" else None
        network = released_form(self.clf.network)
        release = Release(self.method, network, optimiser, draws, rho)
        batch = self.batch
        data = batch.views.get("unaugmented", batch.images)
        step = STEPS[self.config.method.name]
        return lambda: step(release, batch.images, batch.labels, data)


def full_length(state: MethodState, method: Method) -> None:
    """Walks of ``dat`` have the length that its stated cost has, instead of growing from 0."""
    if isinstance(state, DatState):
        state.extra["steps"] = torch.tensor(method.sampler.steps or 0)


# --- The same mathematics ---------------------------------------------------------------------------------------


class Replayed(Draws):
    """The random numbers, chains and starting images that a step of the library has drawn, in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.uniforms: list[Tensor] = []
        self.normals: list[Tensor] = []
        self.images: list[Tensor] = []

    def uniform(self, like: Tensor) -> Tensor:
        return self.uniforms.pop(0).to(like)

    def normal(self, like: Tensor) -> Tensor:
        return self.normals.pop(0).to(like)

    def chains(self, count: int) -> Tensor:
        return self.images.pop(0)

    def store(self, images: Tensor) -> None:
        pass

    def outside_images(self, count: int) -> Tensor:
        return self.images.pop(0)


@contextmanager
def recorded() -> Iterator[Replayed]:
    """Records what the library draws; numbers behind fresh chains and starting images are part of those images."""
    draws = Replayed()
    inside: list[bool] = []

    def numbers(function: Callable[..., Tensor], drawn: list[Tensor]) -> Callable[..., Tensor]:
        def record(*given: Any) -> Tensor:
            values = function(*given)
            if not inside:
                # The library writes on numbers that it has drawn.
                drawn.append(values.clone())
            return values

        return record

    def images(function: Callable[..., Any]) -> Callable[..., Any]:
        def record(*given: Any) -> Any:
            inside.append(True)
            result = function(*given)
            inside.pop()
            draws.images.append((result[0] if isinstance(result, tuple) else result).clone())
            return result

        return record

    with (
        patch.object(noise, "uniform", numbers(noise.uniform, draws.uniforms)),
        patch.object(noise, "normal", numbers(noise.normal, draws.normals)),
        patch.object(ReplayBuffer, "draw", images(ReplayBuffer.draw)),
        patch.object(OutsideImages, "__call__", images(OutsideImages.__call__)),
    ):
        yield draws


def in_full_precision(conversion: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A conversion to float32 that leaves float64 alone."""
    return lambda values: values if values.dtype == torch.float64 else conversion(values)


def disagreement(setting: Setting) -> float:
    """Largest difference of the weights after a step of both, relative to the largest change of a weight; float64.

    Raises:
        ArithmeticError: they do not take the same step.
    """
    ours, theirs = setting.in_float64(), setting.in_float64()
    before = [weight.detach().clone() for weight in ours.clf.parameters()]
    # Logits of a classifier are float32, of which the rounding would turn signs of small gradients.
    with patch.object(Tensor, "float", in_full_precision(Tensor.float)):
        with recorded() as draws:
            ours.step()
        theirs.release(draws)()
    with torch.no_grad():
        pairs = list(zip(before, ours.clf.parameters(), theirs.clf.parameters(), strict=True))
        change = max(float((after - start).abs().max()) for start, after, _ in pairs)
        difference = max(float((after - other).abs().max()) for _, after, other in pairs) / change
    if not difference <= TOLERANCE or not change > 0:
        raise ArithmeticError(
            f"{setting.config.method.name}: the weights differ by {difference:.1e} of the step"
        )
    return difference


# --- What is measured -------------------------------------------------------------------------------------------


def counted(work: Turn, setting: Setting) -> float:
    """Forward passes per image of ``work``, a step of ``setting``, in the multiplications of one forward pass."""

    def multiplications(passed: Turn) -> int:
        with FlopCounterMode(display=False) as counter:
            passed()
        return int(counter.get_total_flops())

    def forward() -> None:
        with inner_loop(setting.clf), torch.no_grad():
            setting.clf.logits(setting.batch.images)

    return multiplications(work) / multiplications(forward)


def memory_of(work: Turn) -> tuple[float, int]:
    """The most that the tensors of ``work`` hold at once beside those before, in MB, and the largest of them in bytes.

    Those above 32 MB are left out of the latter, as of :func:`adapted_malloc`.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    assert profiler.profiler is not None
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = highest = largest = 0
    for event in sorted(events, key=lambda one: one.start_ns()):
        held += event.nbytes()
        highest = max(highest, held)
        largest = max(largest, event.nbytes() if event.nbytes() <= MOST_ADAPTED else 0)
    return round(highest / 1e6, 1), largest


def passes_alone(setting: Setting) -> Turn:
    """As many gradients of images and of weights as a step has, of the same kind, and nothing else.

    A pass is that of the classifier, with its normalisation and the cross-entropy behind it. As in a step, the loss is
    in the method's BatchNorm mode, and its gradient goes on to the adversarial images, where monitors read it.
    """
    config, clf, method = setting.config, setting.clf, setting.method
    images, labels, options = setting.batch.images, setting.batch.labels, config.method
    walks = [
        (options.attack_mode, config.attack.steps if options.uses_attack else 0),
        (config.sampler.mode or "eval", config.sampler.steps if options.uses_sampler else 0),
    ]
    losses = 1 if config.update.name == "plain" else 2
    moving = images.detach().requires_grad_()
    sets = [moving if options.uses_attack else images, *[images] * (options.loss_sets - 1)]

    @torch.no_grad()
    def forward(times: int) -> None:
        for _ in range(times):
            clf.logits(images)

    def work() -> None:
        for mode, steps in walks:
            with inner_loop(clf, mode):
                for _ in range(steps or 0):
                    torch.autograd.grad(F.cross_entropy(clf.logits(moving), labels), moving)
        forward(options.other_forwards)
        with method.loss_context(clf):
            for _ in range(losses):
                forward(options.detached_sets)
                total = sum(F.cross_entropy(clf.logits(each), labels) for each in sets)
                assert isinstance(total, Tensor)
                total.backward()
                clf.zero_grad(set_to_none=True)
                moving.grad = None

    return work


class Parts:
    """Processor time of the parts of a step, each without the parts inside it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._stack: list[str] = []
        self._since = 0.0

    def _switch(self) -> None:
        now = time.process_time()
        if self._stack:
            self.seconds[self._stack[-1]] = self.seconds.get(self._stack[-1], 0.0) + now - self._since
        self._since = now

    def of(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, whose time counts as that of ``part``."""

        def timed(*given: Any, **named: Any) -> Any:
            self._switch()
            self._stack.append(part)
            try:
                return function(*given, **named)
            finally:
                self._switch()
                self._stack.pop()

        return timed

    def shares(self) -> dict[str, float]:
        total = sum(self.seconds.values())
        return {part: round(seconds / total, 4) for part, seconds in self.seconds.items()}


@contextmanager
def parts_timed(method: Method) -> Iterator[Parts]:
    """Times the parts of every step of the loop."""
    parts, kind = Parts(), type(method)
    points = "attack" if method.options.uses_attack else "sampler"
    batches, update = Loop._batches, build.build_update

    def timed_batches(loop: Loop) -> Iterator[Batch]:
        following = parts.of("data", lambda iterator: next(iterator))
        iterator = batches(loop)
        while True:
            yield following(iterator)

    with ExitStack() as stack:
        for owner, name, replacement in (
            (Loop, "_one_step", parts.of("other", Loop._one_step)),
            (Loop, "_batches", timed_batches),
            (Loop, "_read", parts.of("logging", Loop._read)),
            (Loop, "_log", parts.of("logging", Loop._log)),
            (kind, "points", parts.of(points, kind.points)),
            (kind, "after_backward", parts.of("update", kind.after_backward)),
            (inner, "run_sampler", parts.of("sampler", run_sampler)),
            (ReplayBuffer, "draw", parts.of("sampler", ReplayBuffer.draw)),
            (ReplayBuffer, "write", parts.of("sampler", ReplayBuffer.write)),
            (OutsideImages, "__call__", parts.of("sampler", OutsideImages.__call__)),
            (build, "build_update", lambda *given: parts.of("loss", update(*given))),
            (torch.optim.SGD, "step", parts.of("update", torch.optim.SGD.step)),
        ):
            stack.enter_context(patch.object(owner, name, replacement))
        yield parts


@dataclass(frozen=True)
class Sides:
    """Timed rounds of one method and network, with the parts of the library's step."""

    seconds: list[dict[str, Any]]
    shares: dict[str, float]

    def ratio(self, other: str, clock: str) -> float:
        """How many times as long the other side takes."""
        ratios = [getattr(one[other], clock) / getattr(one[OURS], clock) for one in self.seconds]
        return round(float(median(ratios)), 3)


def timed_sides(setting: Setting, data: Splits, others: dict[str, Other], size: Size) -> Sides:
    """Rounds of the library's loop, the passes alone and the release."""
    with tempfile.TemporaryDirectory() as folder, parts_timed(setting.method) as parts:
        loop = create_loop(Path(folder) / "run", setting.config, data)
        full_length(loop.state.method_state, loop.method)
        seconds = run_rounds(loop, others, size[1], size[2])
    return Sides(seconds, parts.shares())


def measure(method: str, network: str, root: str | None, size: Size, gaussians: Gaussians) -> dict[str, Any]:
    """One row of the results."""
    config = configuration(method, network, root, size[0])
    data = load_splits(config.data.name, root=config.data.root, train_images=config.data.train_images)
    setting = Setting.of(config, data)
    if setting.state.starts is not None:
        # Class Gaussians are drawn ahead of use, which is not counted.
        setting.state.starts(torch.arange(data.train.num_classes))
    few = setting.of_few()
    row: dict[str, Any] = {
        "method": method, "network": network, "data": data.train.name, "batch": size[0], "update": config.update.name,
        "stated": forward_passes(config),
        "counted": round(counted(few.step, few), 2),
        "peak_mb": memory_of(setting.step)[0],
    }  # fmt: skip
    alone = Setting.of(config, data)
    in_format_of_loop(alone.clf)
    others: dict[str, Other] = {}
    if not config.method.double_backwards:
        others[PASSES] = Other(passes_alone(alone), partial(context_of_loop, config, alone.clf))
        few_alone = alone.of_few()
        row["counted_alone"] = round(counted(passes_alone(few_alone), few_alone), 2)
    if method in STEPS:
        row["disagreement"] = disagreement(few)
        released = Setting.of(config, data)
        draws = draws_of(released, data, gaussians)
        few_released, step = released.of_few(), released.release(draws)
        row["counted_release"] = round(counted(few_released.release(draws), few_released), 2)
        row["peak_mb_release"], largest = memory_of(step)
        others[RELEASE] = Other(step, lambda: adapted_malloc(largest))
    sides = timed_sides(setting, data, others, size)
    seconds = [{side: list(spent) for side, spent in one.items()} for one in sides.seconds]
    row |= {
        "images_per_second": round(size[0] / median(one[OURS].cpu for one in sides.seconds), 2),
        "images_per_second_clock": round(size[0] / median(one[OURS].wall for one in sides.seconds), 2),
        "shares": sides.shares,
        "seconds": seconds,
    }
    for side, name in ((RELEASE, "release_ratio"), (PASSES, "passes_ratio")):
        if side in others:
            row[name], row[f"{name}_clock"] = sides.ratio(side, "cpu"), sides.ratio(side, "wall")
    return row


def draws_of(setting: Setting, data: Splits, gaussians: Gaussians) -> Draws:
    """The random numbers of a release, with chains in host memory."""
    sampler, state = setting.method.sampler, setting.state
    outside = state.outside if isinstance(state, DatState) else None
    classes = gaussians(data) if sampler.start == "class-gaussian" else None
    chains = None if state.buffer is None else state.buffer.images.clone()
    return Draws(chains, classes, sampler.reinit or 0.0, outside)


@contextmanager
def context_of_loop(config: Config, clf: Classifier) -> Iterator[None]:
    """Freed memory and convolutions as in a step of the loop."""
    with freed_memory_kept(clf.device), build.build_convolutions(config, clf.network):
        yield


def in_format_of_loop(clf: Classifier) -> None:
    """Gives the network the memory format that the loop gives it."""
    set_memory_format(clf, preferred_memory_format(clf.network, clf.device))


def measure_copy(network: str, root: str | None, size: Size) -> dict[str, Any]:
    """Input gradients on a copy with folded BatchNorm and the cheap gradient of the first layer, in eval mode."""
    config = configuration("pgd-at", network, root, size[0])
    data = load_splits(config.data.name, root=config.data.root, train_images=config.data.train_images)
    setting = Setting.of(config, data)
    clf, images = setting.clf.eval().requires_grad_(False), setting.batch.images
    in_format_of_loop(clf)
    began = time.process_time()
    other = fast_copy(clf, images[:2], gradients_only=True)
    copying = time.process_time() - began
    spent: dict[str, list[float]] = {"network": [], "copy": []}
    with freed_memory_kept(clf.device):
        for _ in range(2 * size[2] + 1):
            for name, judge in (("network", clf), ("copy", other)):
                began = time.process_time()
                moving = images.detach().requires_grad_()
                torch.autograd.grad(judge.logits(moving).sum(), moving)
                spent[name].append(time.process_time() - began)
    pairs = list(zip(*spent.values(), strict=True))[1:]
    return {
        "network": network, "batch": size[0], "copied": other is not clf,
        "copy_ratio": round(median(copy_time / own for own, copy_time in pairs), 3),
        "copying_in_gradients": round(copying / median(own for own, _ in pairs), 2),
    }  # fmt: skip


# --- The page ---------------------------------------------------------------------------------------------------


def page(content: dict[str, Any]) -> str:
    """Tables of speed, of shares, and of the folded copy."""
    steps = [row for row in content["rows"].values() if "method" in row]
    steps.sort(key=lambda row: (list(NETWORKS).index(row["network"]), row["method"]))
    copies = [row for row in content["rows"].values() if "copy_ratio" in row]
    lines = [
        "# Throughput of training\n",
        f"`{content['command']}`\n",
        f"{content['about']}\n",
        "images/s: of the library's whole loop. Passes: forward passes per image, counted in multiplications / stated.",
        "Alone: the time of the passes alone, in that of a step (1 is the limit); they do the same multiplications.",
        "Release: the time of a step in the form of the papers' releases ([what that means](../release_steps.py)), in",
        "that of a step of the library, and the passes that it does. In processor time, in brackets by the clock;",
        "medians. Memory: the highest of a step's tensors. The library and its passes alone keep freed memory; the",
        "release has the malloc of glibc as it adapts by itself.",
        "**Bold: short of the target** in the last column.\n",
        "| network | method | update | batch | images/s | passes | alone | release | its passes | MB | release, MB "
        "| target |",
        "|---" * 12 + "|",
    ]
    lines += [_line(row) for row in steps]
    parts = ["data", "attack", "sampler", "loss", "update", "logging", "other"]
    lines += [
        "",
        "Shares of the processor time of a step; the loss has its backward pass, the update is the optimiser's.\n",
        "| network | method | " + " | ".join(parts) + " |",
        "|---" * (2 + len(parts)) + "|",
    ]
    for row in steps:
        shares = " | ".join(f"{row['shares'].get(part, 0):.1%}" for part in parts)
        lines.append(f"| {row['network']} | {row['method']} | {shares} |")
    if copies:
        lines += [
            "",
            "An input gradient in eval mode on a copy of the network with folded BatchNorm and the cheap gradient of",
            "the first layer, in the time of one on the network itself; and what copying costs, in such gradients.\n",
            "| network | batch | gradient on the copy | making it |",
            "|---|---|---|---|",
        ]
    lines += [
        f"| {row['network']} | {row['batch']} | {row['copy_ratio']:.2f} | {row['copying_in_gradients']:.1f} |"
        for row in copies
    ]
    return "\n".join(lines) + "\n"


def _line(row: dict[str, Any]) -> str:
    """One row of the first table."""
    method, network = row["method"], row["network"]
    release, alone = _ratio(row, "release_ratio"), _ratio(row, "passes_ratio")
    targets = []
    if (least := TARGETS.get(method, {}).get(network)) is not None:
        targets.append(f"release at least {least}")
        release = f"**{release}**" if row["release_ratio"] < least else release
    if (most := PASSES_TARGET.get(method)) is not None:
        targets.append(f"alone at least {1 / most:.2f}")
        alone = f"**{alone}**" if row["passes_ratio"] * most < 1 else alone
    cells = [
        network, method, row["update"], row["batch"], f"{row['images_per_second']:,.1f}",
        f"{row['counted']:.1f} / {row['stated']}", alone, release, row.get("counted_release", "-"),
        row["peak_mb"], row.get("peak_mb_release", "-"), "; ".join(targets) or "-",
    ]  # fmt: skip
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def _ratio(row: dict[str, Any], name: str) -> str:
    return f"{row[name]:.2f} ({row[f'{name}_clock']:.2f})" if name in row else "-"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--root", help="folder of CIFAR-10 images; digits without")
    parser.add_argument("--methods", nargs="+", default=METHODS.names(), choices=METHODS.names())
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--toy", action="store_true", help="tiny: shows that the script works")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    kept: list[list[MultivariateNormal]] = []

    def gaussians(data: Splits) -> list[MultivariateNormal]:
        if not kept:
            kept.append(class_gaussians(data.train))
        return kept[0]

    threads = torch.get_num_threads()
    about = f"{threads} thread{'s' if threads > 1 else ''}"
    for network in options.networks:
        size = TOY if options.toy else SIZES[network]
        for method in options.methods:
            row = measure(method, network, options.root, size, gaussians)
            print(row, flush=True)
            write(options.results, COMMAND, {f"{method}, {network}": row}, page, about)
        write(
            options.results,
            COMMAND,
            {f"copy, {network}": measure_copy(network, options.root, size)},
            page,
            about,
        )


if __name__ == "__main__":
    main()
