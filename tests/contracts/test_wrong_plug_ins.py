"""Plug-ins that break their contract are refused by name in one line, wherever they are used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
from torch import nn

import trilemma
from trilemma.attacks import autoattack
from trilemma.config import MethodOptions, registry
from trilemma.config.recipe import build_config
from trilemma.config.registry import ATTACKS, DATASETS, METHODS, NETWORKS, PROTOCOLS, SAMPLERS, STARTS
from trilemma.data import load_splits
from trilemma.errors import ConfigError, DataError, ImageError
from trilemma.evaluation.diagnose import diagnose
from trilemma.evaluation.evaluate import evaluate
from trilemma.evaluation.protocol import Measurement, Protocol, Verdicts
from trilemma.methods import Method, Step
from trilemma.methods.inner import attacked
from trilemma.samplers.generate import generate
from trilemma.walks import objectives
from trilemma.walks.steps import descend
from trilemma.walks.walk import Walkers

THREAT = trilemma.Threat("linf", 0.1)


@pytest.fixture(autouse=True)
def registries(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test adds is forgotten afterwards."""
    for table in vars(registry).values():
        if isinstance(table, registry.Registry):
            monkeypatch.setattr(table, "_rows", dict(table._rows))


def named(function: object) -> str:
    """The target of a function or class of this file."""
    return f"{__name__}:{getattr(function, '__name__', function)}"


# --- rows -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [named, "no_colon", "module:", ":name"])
def test_a_target_that_is_no_module_and_object_is_refused_at_once(target: Any) -> None:
    with pytest.raises(ConfigError, match="attack 'mine': the target must be a text 'module:object'"):
        ATTACKS.add("mine", target)


def test_a_name_belongs_to_one_object() -> None:
    ATTACKS.add("mine", "here:attack")
    ATTACKS.add("mine", "here:attack")
    for name in ("mine", "pgd"):
        with pytest.raises(ConfigError, match=f"attack '{name}': this name belongs to .*; choose another"):
            ATTACKS.add(name, "elsewhere:attack")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("no_such_module:attack", "No module named 'no_such_module'"),
        ("math:attack", "has no attribute 'attack'"),
    ],
)
def test_a_row_that_cannot_be_imported_says_what_is_missing(target: str, message: str) -> None:
    ATTACKS.add("mine", target)
    with pytest.raises(ConfigError, match=f"attack 'mine': cannot import {target}: .*{message}"):
        ATTACKS.get("mine")


# --- attacks --------------------------------------------------------------------------------------------


def far_away(clf, images, labels, threat):
    return 1 - images


def one_too_few(clf, images, labels, threat):
    return images[1:]


def an_array(clf, images, labels, threat):
    return images.numpy()


def not_a_number(clf, images, labels, threat):
    return images * torch.nan


def no_threat(clf, images, labels):
    return images


def one_more(clf, images, labels, threat, strength):
    return images


def in_place(clf, images, labels, threat):
    return images.add_(threat.epsilon / 2).clamp_(0, 1)


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (far_away, r"\d of \d adversarial images lie outside linf 0\.1"),
        (not_a_number, r"\d of \d adversarial images lie outside"),
        (
            one_too_few,
            r"returned torch.float32 \[\d, 1, 4, 4\]; its function returns float images \[\d, 1, 4, 4\]",
        ),
        (an_array, "returned ndarray"),
        (no_threat, "too many positional arguments; its function is called with 4 positional arguments"),
        (one_more, "missing a required argument: 'strength'"),
    ],
)
def test_attacks(toy, attack: Callable[..., Any], message: str) -> None:
    ATTACKS.add("wrong", named(attack))
    clf, images = toy.mlp(), toy.images()
    labels = clf(images).argmax(1)
    with pytest.raises(ConfigError, match=f"attack 'wrong': {message}"):
        evaluate(clf, (images, labels), protocols=["attack:wrong"], threat=THREAT)
    with pytest.raises(ConfigError, match=f"attack 'wrong': {message}"):
        diagnose(clf, (images, labels), THREAT, attacks=["wrong"])
    with pytest.raises(ConfigError, match=f"attack 'wrong': {message}"):
        autoattack(clf, images, labels, THREAT, attacks=("wrong",), progress=False)


def test_an_attack_that_writes_into_its_images_changes_no_other_result(toy) -> None:
    ATTACKS.add("in-place", named(in_place))
    data = toy.images(12), toy.labels(12)
    rows = evaluate(toy.mlp(), data, protocols=["attack:in-place", "clean"], threat=THREAT)
    assert rows["clean"]["value"] == evaluate(toy.mlp(), data, protocols=["clean"])["clean"]["value"]


# --- samplers and starts --------------------------------------------------------------------------------


def other_shape(clf, images, energy, steps, step_size=1.0, noise_std=0.0, clamp=None, seeds=None, **options):
    return images[:, :, 1:]


def nothing(clf, images, energy, steps, step_size=1.0, noise_std=0.0, clamp=None, seeds=None, **options):
    return None


def beyond(clf, images, energy, steps, step_size=1.0, noise_std=0.0, clamp=None, seeds=None, **options):
    return images.add_(4)


def no_options(clf, images, energy, steps):
    return images


@pytest.mark.parametrize(
    ("sampler", "error", "message"),
    [
        (other_shape, ConfigError, r"sampler 'wrong': returned torch.float32 \[6, 1, 3, 4\]"),
        (nothing, ConfigError, "sampler 'wrong': returned NoneType"),
        (beyond, ConfigError, r"sampler 'wrong': returned values outside \[0, 1\]"),
        (no_options, ConfigError, "sampler 'wrong': got an unexpected keyword argument 'seeds'"),
    ],
)
def test_samplers(toy, sampler: Callable[..., Any], error: type[Exception], message: str) -> None:
    SAMPLERS.add("wrong", named(sampler))
    starts = toy.images()
    before = starts.clone()
    with pytest.raises(error, match=message):
        generate(toy.mlp(), toy.labels(), start=starts, sampler="wrong", steps=1)
    assert torch.equal(starts, before)


def test_a_step_rule_that_returns_another_shape_is_refused(toy) -> None:
    def step_rule(walkers: Walkers, gradient: torch.Tensor) -> torch.Tensor:
        return gradient[:, :, 1:]

    clf = toy.mlp()
    with pytest.raises(ConfigError, match=r"the step rule returned \[6, 1, 3, 4\] for images \[6, 1, 4, 4\]"):
        descend(clf, toy.images(), objectives.marginal_energy(clf), step_rule, 1)


def test_a_misspelt_option_of_a_sampler_is_named(toy) -> None:
    for sampler in ("langevin", "momentum"):
        with pytest.raises(
            ConfigError, match=f"sampler '{sampler}' has no option 'clam'. Did you mean 'clamp'"
        ):
            generate(toy.mlp(), toy.labels(), start="uniform", sampler=sampler, steps=1, clam=0.1)


def images_at_once(context):
    return torch.zeros(6, *context.image_shape)


def no_seeds(context):
    return lambda labels: torch.zeros(len(labels), *context.image_shape)


def too_small(context):
    return lambda labels, seeds: torch.zeros(len(labels), 1, 3, 3)


def too_bright(context):
    return lambda labels, seeds: torch.full((len(labels), *context.image_shape), 5.0)


def no_context():
    return too_small(None)


@pytest.mark.parametrize(
    ("start", "error", "message"),
    [
        (images_at_once, ConfigError, "start 'wrong', its draw function: its registry row names a Tensor"),
        (no_seeds, ConfigError, "start 'wrong', its draw function: too many positional arguments"),
        (too_small, ConfigError, r"start 'wrong': returned torch.float32 \[6, 1, 3, 3\]"),
        (too_bright, ImageError, "images: values"),
        (no_context, ConfigError, "start 'wrong': too many positional arguments"),
    ],
)
def test_starts(toy, start: Callable[..., Any], error: type[Exception], message: str) -> None:
    STARTS.add("wrong", named(start))
    with pytest.raises(error, match=message):
        generate(toy.mlp(), toy.labels(), start="wrong", steps=1)


# --- protocols ------------------------------------------------------------------------------------------

too_few = Protocol(1, False, lambda request: Verdicts(torch.ones(2, dtype=torch.bool)))
floats = Protocol(1, False, lambda request: Verdicts(torch.ones(6)))
a_number: Any = Protocol(1, False, lambda request: 0.5)  # type: ignore[arg-type, return-value]
words: Any = Protocol(1, False, lambda request: Measurement("high", 6))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("protocol", "message"),
    [
        ("too_few", r"returned torch.bool verdicts \[2\] for 6 images"),
        ("floats", r"returned torch.float32 verdicts \[6\] for 6 images"),
        ("a_number", "returned float for 6 images"),
        ("words", "returned Measurement for 6 images"),
        ("no_threat", "its registry row names a function"),
    ],
)
def test_protocols(toy, protocol: str, message: str) -> None:
    PROTOCOLS.add("wrong", named(protocol))
    with pytest.raises(ConfigError, match=f"protocol 'wrong': {message}"):
        evaluate(toy.mlp(), (toy.images(), toy.labels()), protocols=["wrong"])


# --- networks -------------------------------------------------------------------------------------------


def no_channels(num_classes: int) -> nn.Module:
    return nn.Flatten()


def no_module(num_classes: int, in_channels: int) -> Any:
    return torch.relu


def feature_maps(num_classes: int, in_channels: int) -> nn.Module:
    return nn.Conv2d(in_channels, num_classes, 3)


def other_images(num_classes: int, in_channels: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, num_classes))


def other_classes(num_classes: int, in_channels: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes - 3))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (no_channels, "got an unexpected keyword argument 'in_channels'"),
        (no_module, "returned a builtin_function_or_method; its function returns a torch.nn.Module"),
        (feature_maps, r"returned \[2, 10, 6, 6\] for 2 images and 10 classes"),
        (other_images, r"cannot classify images of shape \(1, 8, 8\): RuntimeError: mat1 and mat2 shapes"),
        (other_classes, r"returned \[2, 7\] for 2 images and 10 classes"),
    ],
)
def test_networks(tmp_path, shared_cache, network: Callable[..., Any], message: str) -> None:
    NETWORKS.add("wrong", named(network))
    with pytest.raises(ConfigError, match=f"network 'wrong': {message}"):
        trilemma.train("digits/standard", {"network.name": "wrong"}, out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


# --- data sets ------------------------------------------------------------------------------------------


def no_root():
    return {}


def missing_file(root):
    return np.load("there-is-no-such-file.npy")


def three_parts(root):
    return {"train": (np.zeros((4, 1, 8, 8), np.uint8), np.arange(4), "more")}


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (no_root, ConfigError, "data set 'wrong': too many positional arguments"),
        (missing_file, DataError, "wrong: its function cannot read its files: .*there-is-no-such-file"),
        (three_parts, DataError, r"wrong: train must be \(images, labels\)"),
    ],
)
def test_data_sets(function: Callable[..., Any], error: type[Exception], message: str) -> None:
    DATASETS.add("wrong", named(function))
    with pytest.raises(error, match=message):
        load_splits("wrong")


# --- methods --------------------------------------------------------------------------------------------


class WrongOptions(MethodOptions):
    name: Literal["wrong"] = "wrong"


class Wrong(Method):
    Options = WrongOptions

    def loss_of(self, clf, points):
        logits = clf.logits(points.clean)
        return nn.functional.cross_entropy(logits, points.labels, reduction="none")


class NoTerms(Wrong):
    pass


class NoStep(Wrong):
    def terms(self, clf, points, state):
        return self.loss_of(clf, points).mean()


class LossPerImage(Wrong):
    def terms(self, clf, points, state):
        return Step(self.loss_of(clf, points))


class LossWithoutGraph(Wrong):
    def terms(self, clf, points, state):
        return Step(self.loss_of(clf, points).mean().detach())


class NoState(NoStep):
    def init_state(self, clf, data, seed):
        return None


class UndeclaredAttack(NoStep):
    def points(self, clf, batch, state):
        objective = objectives.cross_entropy(clf, batch.labels)
        attacked(self, clf, batch.images, batch.images, lambda: objective)
        raise AssertionError("not reached")


class NoMethod:
    Options: ClassVar[type[MethodOptions]] = WrongOptions


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (NoTerms, "does not define terms"),
        (NoMethod, "is not a subclass of trilemma.methods.Method"),
        (NoStep, "terms returned Tensor; it returns a Step"),
        (LossPerImage, r"Step.loss has shape \[\d+\]"),
        (LossWithoutGraph, "Step.loss has no gradient"),
        (NoState, "init_state returned NoneType"),
        (UndeclaredAttack, "it has no threat; an attack needs `uses_attack"),
    ],
)
def test_methods(tmp_path, shared_cache, method: type, message: str) -> None:
    METHODS.add("wrong", named(method))
    config = build_config(
        {"data": {"name": "digits"}, "network": {"name": "small-resnet", "width": 8}, "method": "wrong"}
    )
    with pytest.raises(ConfigError, match=f"method 'wrong': .*{message}"):
        trilemma.train(config, out=tmp_path / "run", progress=False)
