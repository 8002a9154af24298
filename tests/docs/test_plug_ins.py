"""The method, the attack and the sampler of docs/examples, each outside the package in one file, as a user has them."""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from tests.training.support import differences, state_of
from torch import Tensor
from typer.testing import CliRunner

import trilemma
from trilemma import noise
from trilemma.attacks import autoattack, fgsm, pgd
from trilemma.cli.main import app
from trilemma.config import registry
from trilemma.errors import ConfigError
from trilemma.evaluation.diagnose import diagnose
from trilemma.methods.base import MethodState, Points
from trilemma.training import loop
from trilemma.walks.walk import Objective

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
THREAT = trilemma.Threat("linf", "0.2")
LBGAT = {
    "data": {"name": "digits"},
    "network": {"name": "small-resnet", "width": 4},
    "method": {"name": "lbgat", "beta": 0.5, "guide": {"name": "small-resnet", "width": 4}},
    "threat": {"norm": "linf", "radius": 0.2},
    "attack": {"steps": 1},
    "training": {"epochs": 1, "log_every": 3, "held_out_images": 20},
}


@pytest.fixture(scope="module")
def example() -> Iterator[Callable[[str], ModuleType]]:
    """``example("mala")``: that file, imported; what it registered is forgotten after the tests of this file."""
    with pytest.MonkeyPatch.context() as patch:
        for table in (registry.METHODS, registry.ATTACKS, registry.SAMPLERS):
            patch.setattr(table, "_rows", dict(table._rows))

        def load(name: str) -> ModuleType:
            if name not in sys.modules:
                specification = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
                assert specification is not None and specification.loader is not None
                module = importlib.util.module_from_spec(specification)
                patch.setitem(sys.modules, name, module)
                specification.loader.exec_module(module)
            return sys.modules[name]

        yield load


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="trilemma")
    assert result.exit_code == 0, result.output
    return result.stdout


# --- lbgat ----------------------------------------------------------------------------------------------


def test_lbgat_is_its_equation_and_trains_both_networks(example, toy):
    example("lbgat")
    guide_network = {"name": "small-resnet", "width": 4}
    method = trilemma.methods.create("lbgat", THREAT, attack={"steps": 2}, beta=0.5, guide=guide_network)
    data = toy.image_set(shape=(1, 8, 8))
    clf = toy.mlp(shape=(1, 8, 8))
    state = method.init_state(clf, data, seed=0)
    clean, adversarial = toy.images(shape=(1, 8, 8)), toy.images(shape=(1, 8, 8), seed=2)
    step = method.terms(clf, Points(clean, toy.labels(), adversarial=adversarial), state)

    def log_probabilities(logits: np.ndarray) -> np.ndarray:
        normaliser = np.log(np.exp(logits).sum(1))
        return np.stack([row - constant for row, constant in zip(logits, normaliser, strict=True)])

    f, f_adversarial = toy.logits64(clf, clean), toy.logits64(clf, adversarial)
    g = state.modules["guide"](clean).detach().double().numpy()
    boundary = ((f_adversarial - g) ** 2).mean()
    guide = -log_probabilities(g)[np.arange(6), toy.labels().numpy()].mean()
    p, q = log_probabilities(f), log_probabilities(f_adversarial)
    divergence = (np.exp(p) * (p - q)).sum(1).mean()
    assert float(step.loss.detach()) == pytest.approx(boundary + guide + 0.5 * divergence, rel=1e-5)

    step.loss.backward()
    owned = list(state.parameters())
    assert owned and all(weight.grad is not None and bool(weight.grad.any()) for weight in owned)
    assert all(weight.grad is not None and bool(weight.grad.any()) for weight in clf.parameters())


def test_lbgat_is_validated_trained_interrupted_and_resumed_bit_for_bit(example, tmp_path, monkeypatch):
    """The guide learns with the classifier, and its weights come back with the rest of the run."""
    import yaml

    example("lbgat")
    recipe = tmp_path / "lbgat.yaml"
    recipe.write_text(yaml.safe_dump(LBGAT))
    assert "FAILED" not in run("validate", recipe)

    whole = trilemma.train(str(recipe), out="whole", progress=False)
    one_step = loop.Loop._one_step

    def interrupted_at_5(training, batch):
        one_step(training, batch)
        if training.state.step == 5:
            training.stop.name = "SIGTERM"

    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, "_one_step", interrupted_at_5)
        with pytest.raises(KeyboardInterrupt):
            trilemma.train(str(recipe), out="broken", progress=False)
    resumed = trilemma.train(str(recipe), out="broken", resume=True, progress=False)

    ours, theirs = state_of(resumed.path), state_of(whole.path)
    assert ours["method"]["modules"]["guide"]
    assert differences(ours, theirs) == []
    weights = resumed.classifier.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in whole.classifier.state_dict().items())
    steps = [row for row in whole.metrics if row["kind"] == "step"]
    assert steps[-1]["terms"]["guide"] < steps[0]["terms"]["guide"]


# --- mi-fgsm --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_mi_fgsm_with_one_step_is_fgsm_and_without_momentum_pgd_from_the_image(example, toy, norm):
    attack = example("mi_fgsm").mi_fgsm
    arguments = toy.mlp(), toy.images(), toy.labels(), trilemma.Threat(norm, 0.1)
    assert torch.allclose(attack(*arguments, steps=1), fgsm(*arguments), atol=1e-6)
    walked = pgd(*arguments, steps=5, step_size=0.02, random_start=False)
    torch.testing.assert_close(attack(*arguments, steps=5, decay=0.0), walked, atol=1e-6, rtol=0)


def test_the_momentum_is_that_of_the_equation(example, toy):
    clf, images, labels, threat = toy.mlp(), toy.images(), toy.labels(), trilemma.Threat("linf", 0.1)
    x, momentum = images.double(), torch.zeros_like(images).double()
    for _ in range(4):
        x.requires_grad_()
        loss = torch.nn.functional.cross_entropy(clf.double()(x), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, x)
        momentum = 0.9 * momentum + gradient / gradient.abs().sum((1, 2, 3), keepdim=True)
        x = x.detach() + 0.025 * momentum.sign()
        x = torch.minimum(torch.maximum(x, images - 0.1), images + 0.1).clamp(0, 1)
    clf.float()
    found = example("mi_fgsm").mi_fgsm(clf, images, labels, threat, steps=4, decay=0.9)
    torch.testing.assert_close(found, x.float(), atol=1e-5, rtol=0)


def test_mi_fgsm_is_used_wherever_a_built_in_attack_is(example, toy, run_copy, tmp_path):
    example("mi_fgsm")
    trained = trilemma.load(run_copy)
    row = trilemma.evaluate(trained, "digits", protocols=["attack:mi-fgsm"], images=60)["attack:mi-fgsm"]
    assert row["facts"]["function"] == "mi_fgsm:mi_fgsm"
    assert "attack:mi-fgsm" in run("evaluate", run_copy, "--protocol", "attack:mi-fgsm", "--images", 60)
    assert "mi-fgsm" in run("list", "attacks")
    assert "mi-fgsm" in run("diagnose", run_copy, "--images", 30, "--attack", "mi-fgsm", "--attack", "pgd")
    clf = toy.mlp()
    record = diagnose(
        clf, (toy.images(12), toy.labels(12)), trilemma.Threat("linf", 0.1), attacks=["mi-fgsm"]
    )
    assert set(record["moves"]["attacks"]) == {"mi-fgsm"}
    result = autoattack(
        clf, toy.images(), toy.labels(), trilemma.Threat("linf", 0.3), attacks=("mi-fgsm", "square"),
        progress=False,
    )  # fmt: skip
    assert result.work["mi-fgsm"].broken > 0


# --- mala -----------------------------------------------------------------------------------------------

MEAN, STD = 0.7, 0.2


def gaussian(images: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """U of N(MEAN, STD^2) in every pixel."""
    values = ((images - MEAN) / STD).square().flatten(1).sum(1) / 2
    return values, values


def drawn(sampler: Callable[..., Tensor], toy, energy: Objective, clip: bool, share: float) -> Tensor:
    """Ends of 4,000 chains from 0.5, with a step of ``share`` of the variance and the noise of temperature 1."""
    starts = torch.full((4000, 1, 1, 2), 0.5)
    seeds = noise.image_seeds(len(starts), torch.Generator().manual_seed(0))
    step = share * STD**2
    return sampler(
        toy.mlp(), starts, energy, 40, step_size=step, noise_std=math.sqrt(2 * step), seeds=seeds, clip=clip
    )


def test_mala_draws_the_gaussian_that_langevin_misses(example, toy):
    """Langevin's own stationary variance is STD^2 / (1 - step / (2 STD^2)), which a large step shows."""
    images = drawn(example("mala").mala, toy, gaussian, False, 0.8)
    count = images.numel()
    assert float(images.mean()) == pytest.approx(MEAN, abs=4 * STD / math.sqrt(count))
    assert float(images.var()) == pytest.approx(STD**2, rel=4 * math.sqrt(2 / count))
    # pixels of one image share its acceptance and are still independent
    assert abs(float(torch.corrcoef(images.flatten(1).T)[0, 1])) < 4 / math.sqrt(len(images))
    biased = drawn(trilemma.samplers.langevin, toy, gaussian, False, 0.8)
    assert float(biased.var()) == pytest.approx(STD**2 / (1 - 0.4), rel=0.1)


def test_mala_in_the_box_draws_the_truncated_gaussian(example, toy):
    images = drawn(example("mala").mala, toy, gaussian, True, 0.5)
    assert float(images.min()) >= 0 and float(images.max()) <= 1
    low, high = (0 - MEAN) / STD, (1 - MEAN) / STD

    def density(z: float) -> float:
        return math.exp(-z * z / 2) / math.sqrt(2 * math.pi)

    mass = (math.erf(high / math.sqrt(2)) - math.erf(low / math.sqrt(2))) / 2
    shift = (density(low) - density(high)) / mass
    variance = STD**2 * (1 + (low * density(low) - high * density(high)) / mass - shift**2)
    count = images.numel()
    assert float(images.mean()) == pytest.approx(MEAN + STD * shift, abs=4 * math.sqrt(variance / count))
    assert float(images.var()) == pytest.approx(variance, rel=4 * math.sqrt(2 / count))


def test_mala_is_generated_with_and_trained_with(example, run_copy, tmp_path):
    example("mala")
    assert "mala" in run("list", "samplers")
    run(
        "generate",
        run_copy,
        "--sampler",
        "mala",
        "--steps",
        3,
        "--per-class",
        1,
        "--out",
        tmp_path,
    )
    assert list(tmp_path.rglob("*.png"))
    quick = {
        "network.width": 4, "sampler.name": "mala", "sampler.steps": 2, "sampler.buffer_size": 200,
        "training.epochs": 1, "training.held_out_images": 20,
    }  # fmt: skip
    trained = trilemma.train("digits/jem", quick, out="mala", progress=False)
    assert trained.classifier.about["method"] == "jem"


def test_mala_refuses_what_would_change_its_draws(example, toy):
    mala = example("mala").mala
    arguments = toy.mlp(), toy.images(), gaussian, 2
    with pytest.raises(ConfigError, match="noise_std=0"):
        mala(*arguments, noise_std=0.0, seeds=torch.arange(6))
    with pytest.raises(ConfigError, match="budget"):
        mala(*arguments, budget=1.0, seeds=torch.arange(6))


def test_a_state_without_networks_is_as_before():
    assert "modules" not in MethodState(0).state_dict()
