from __future__ import annotations

from typing import Any

import pytest
import torch

from trilemma import energies, noise, samplers
from trilemma.config.chains import ENERGIES
from trilemma.data.statistics import ClassPCA
from trilemma.errors import ConfigError, ImageError, UnknownNameError, UserError
from trilemma.samplers.generate import starting_images
from trilemma.samplers.guidance import energy_objective, reference_stop


def known(toy):
    """A classifier with the statistics that training stores."""
    clf = toy.mlp()
    clf.statistics = {
        f"pca.{name}": value for name, value in ClassPCA.fit(toy.image_set()).state_dict().items()
    }
    clf.statistics |= {
        "energy_mean": torch.tensor([-1.0, -2.0, -3.0]),
        "energy_std": torch.tensor([0.2, 0.4, 0.6]),
        "logit_mean": torch.tensor([[1.0, -0.5, 0.0], [0.3, 2.0, -1.0], [-0.2, 0.1, 3.0]]),
        "logit_covariance": torch.diag_embed(
            torch.tensor([[0.5, 1.0, 2.0], [1.0, 1.0, 1.0], [0.2, 0.4, 0.6]])
        ),
    }
    return clf


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("sampler", ["langevin", "momentum", "normalised", "proximal"])
@pytest.mark.parametrize("energy", ENERGIES)
def test_generated_images_are_images_and_repeat_with_their_seed(toy, sampler: str, energy: str) -> None:
    clf, labels = known(toy), toy.labels()
    first, again, other = (
        samplers.generate(clf, labels, "class-pca", sampler, energy, 3, generator=generator(seed))
        for seed in (0, 0, 1)
    )
    assert first.shape == (6, 1, 4, 4) and first.min() >= 0 and first.max() <= 1
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_images_of_a_class_do_not_depend_on_the_batch(toy) -> None:
    clf, labels = known(toy), toy.labels()
    whole = samplers.generate(clf, labels, steps=4, generator=generator())
    source = generator()
    parts = [samplers.generate(clf, part, steps=4, generator=source) for part in labels.split(4)]
    torch.testing.assert_close(torch.cat(parts), whole, atol=1e-5, rtol=0)


def test_a_chain_in_bfloat16_is_near_the_one_in_float32_and_leaves_the_classifier_alone(toy) -> None:
    clf, labels = known(toy), toy.labels()
    network, state = clf.network, {name: value.clone() for name, value in clf.state_dict().items()}
    chain: dict[str, Any] = {"energy": "mahalanobis", "sampler": "normalised", "step_size": 0.1, "stop": True}
    exact, lowered = (
        samplers.generate(clf, labels, steps=5, generator=generator(), precision=precision, **chain)
        for precision in ("fp32", "bf16")
    )
    difference = (exact - lowered).abs().max()
    assert lowered.dtype == torch.float32
    assert 0 < difference < 0.02
    assert clf.network is network
    assert all(torch.equal(value, state[name]) for name, value in clf.state_dict().items())


def test_the_reference_energy_pulls_to_the_energy_of_real_images(toy) -> None:
    clf, labels = known(toy), toy.labels()
    options: dict[str, Any] = {
        "start": "class-pca",
        "sampler": "langevin",
        "energy": "reference",
        "noise_std": 0.0,
        "step_size": 0.02,
    }
    distance = []
    for steps in (0, 60):
        images = samplers.generate(clf, labels, steps=steps, generator=generator(), **options)
        means = clf.statistics["energy_mean"][labels]
        distance.append((energies.joint_energy(clf(images), labels) - means).abs())
    assert distance[1].mean() < 0.3 * distance[0].mean()


def test_stopping_freezes_an_image_at_the_energy_of_its_class(toy) -> None:
    clf, labels = known(toy), toy.labels(12)
    options: dict[str, Any] = {
        "start": "uniform",
        "energy": "joint",
        "sampler": "langevin",
        "noise_std": 0.0,
        "step_size": 0.01,
    }
    frozen = samplers.generate(clf, labels, steps=80, stop=True, generator=generator(), **options)
    free = samplers.generate(clf, labels, steps=80, generator=generator(), **options)
    gap = (energies.joint_energy(clf(frozen), labels) - clf.statistics["energy_mean"][labels]).abs()
    near = gap < clf.statistics["energy_std"][labels] / 2  # tau is a quarter of the class's variance
    assert near.any()
    assert (energies.joint_energy(clf(free), labels) < energies.joint_energy(clf(frozen), labels))[near].all()


def test_the_stopping_rule_takes_its_tau(toy) -> None:
    clf, labels = known(toy), toy.labels(3)
    logits = torch.eye(3) * torch.tensor([1.25, 2.25, 3.25])  # each 0.25 away from its class
    index = torch.arange(3)
    assert reference_stop(clf, labels, tau=0.07)(logits[0], logits, index).tolist() == [True] * 3
    assert reference_stop(clf, labels, tau=0.06)(logits[0], logits, index).tolist() == [False] * 3
    assert reference_stop(clf, labels)(logits[0], logits, index).tolist() == [False, False, True]


def test_counterfactuals_start_from_the_image_and_keep_the_budget(toy) -> None:
    clf, images, targets = known(toy), toy.images(), toy.labels()
    moved = samplers.generate(
        clf, targets, images, "langevin", "ce", 30, noise_std=0.0, step_size=0.05, budget=0.4
    )
    assert ((moved - images).flatten(1).norm(dim=1) <= 0.4 + 1e-5).all()
    before, after = (energies.cross_entropy(clf(x), targets) for x in (images, moved))
    assert (after < before).all()
    assert torch.equal(samplers.generate(clf, targets, images, steps=0), images)


def test_no_steps_return_the_start_that_is_shown_beside_the_sample(toy) -> None:
    clf, labels = known(toy), toy.labels()
    start = samplers.generate(clf, labels, "class-pca", steps=0, generator=generator())
    seeds = noise.derive(noise.image_seeds(6, generator()), 0)
    assert torch.equal(start, starting_images(clf, "class-pca", labels, seeds))


def test_data_may_be_tensors(toy) -> None:
    data = (toy.images(30), toy.labels(30))
    images = samplers.generate(toy.mlp(), toy.labels(), "data", steps=0, data=data, generator=generator())
    found = (images.flatten(1)[:, None] == data[0].flatten(1)[None]).all(2)
    assert found.any(1).all()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"start": "class-pcs"}, ConfigError, "Did you mean 'class-pca'"),
        ({"sampler": "momentun"}, UnknownNameError, "Did you mean 'momentum'"),
        ({"energy": "joined"}, ConfigError, "Did you mean 'joint'"),
        ({"energy": "reference"}, ConfigError, "need 'energy_mean' of the training images"),
        ({"stop": True}, ConfigError, "need 'energy_mean' of the training images"),
        ({"start": "class-pca"}, ConfigError, "needs class statistics; pass data="),
        ({"start": torch.zeros(2, 1, 4, 4)}, ImageError, "2 images for 6 labels; give one image per label"),
        ({"start": torch.full((6, 1, 4, 4), 2.0)}, ImageError, r"outside \[0, 1\]"),
        ({"labels": torch.full((6,), 5)}, ImageError, r"values 5..5, but classes are 0..2"),
    ],
)
def test_what_cannot_be_generated_is_said_in_one_line(toy, change, error, message: str) -> None:
    arguments = {"labels": toy.labels(), "start": "uniform", "steps": 1} | change
    with pytest.raises(error, match=message) as raised:
        samplers.generate(toy.mlp(), **arguments)
    assert "\n" not in str(raised.value)


def test_networks_arrays_and_lengths_as_text_are_taken(toy) -> None:
    clf, images, labels = toy.mlp(), toy.images(), toy.labels()

    def run(network: Any, classes: Any, start: Any, **options: Any) -> torch.Tensor:
        return samplers.generate(network, classes, start, steps=3, generator=generator(), **options)

    expected = run(clf, labels, images)
    assert torch.equal(run(clf, labels.tolist(), images.numpy()), expected)
    assert torch.equal(run(lambda x: clf.network((x - 0.5) / 0.25), labels.int(), images), expected)
    leaf = images.clone().requires_grad_()
    found = run(clf, labels, leaf * 1)
    assert torch.equal(found, expected) and not found.requires_grad
    assert run(clf, labels, images.double()).dtype == torch.float64
    assert torch.equal(
        run(clf, labels, images, step_size="2/255"), run(clf, labels, images, step_size=2 / 255)
    )
    assert samplers.generate(clf, [], "uniform").shape == (0, 1, 4, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": -1}, "steps=-1; must be at least 0"),
        ({"steps": "3"}, "steps='3'; must be a whole number"),
        ({"step_size": -0.1}, "step_size=-0.1; must be above 0"),
        ({"step_size": True}, "step_size"),
        ({"noise_std": -1}, "noise_std=-1; must be at least 0"),
        ({"clamp": 0}, "clamp=0; must be above 0"),
        ({"budget": "x"}, "budget"),
        ({"sampler": 3}, "sampler=3"),
        ({"energy": 3}, "energy=3 is unknown"),
        ({"precision": "fp16"}, "precision"),
        ({"generator": 0}, "generator=0; pass torch.Generator"),
        ({"seeds": torch.arange(6)}, "no option 'seeds'"),
        ({"labels": ["a"] * 6}, "labels: list given"),
        ({"labels": None}, "labels: NoneType given"),
        ({"start": 3}, "images: a int given"),
        ({"clf": torch.nn.Flatten(), "start": "uniform"}, "got a network without starting images"),
    ],
)
def test_what_is_no_argument_is_one_line(toy, change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"clf": toy.mlp(), "labels": toy.labels(), "start": toy.images()} | change
    with pytest.raises(UserError, match=message) as caught:
        samplers.generate(**arguments)
    assert "\n" not in str(caught.value)


def test_images_that_become_nan_are_counted(toy) -> None:
    def broken(images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = toy.mlp()(images)
        return logits / (images.flatten(1).amax(1, keepdim=True) - images.flatten(1).amax(1, keepdim=True))

    with pytest.raises(ImageError, match="generate: 6 of 6 images became NaN"):
        samplers.generate(broken, toy.labels(), toy.images(), steps=1)


@pytest.mark.parametrize(("sampler", "diversity"), [("langevin", 0.0), ("momentum", 0.0), ("langevin", 4.0)])
def test_stopping_gives_the_images_of_the_whole_batch_frozen_in_place(
    toy, sampler: str, diversity: float
) -> None:
    """Sample by sample under the same seeds: finished images that leave the batch change no other image."""
    clf, labels, steps = known(toy), toy.labels(24), 60
    options: dict[str, Any] = {"step_size": 0.01, "noise_std": 0.02}
    taken = torch.zeros(24, dtype=torch.int64)

    def count(step: dict[str, Any]) -> None:
        taken[step["index"]] += 1

    start = samplers.generate(clf, labels, "uniform", steps=0, generator=generator())
    compact = samplers.generate(
        clf, labels, start, sampler, steps=steps, stop=True, generator=generator(), callback=count,
        diversity=diversity, **options,
    )  # fmt: skip
    assert int((taken < steps).sum()) > 0 and taken.min() < taken.float().mean() < steps

    # The loop of the definition, without compaction: all images in the batch, finished ones held where they are.
    x, velocity = start.clone(), torch.zeros_like(start)
    stopped = torch.zeros(24, dtype=torch.bool)
    objective = energy_objective(clf, "joint", labels)
    seeds = noise.image_seeds(24, generator())
    for step in range(steps):
        here = x.clone().requires_grad_()
        values, logits = objective(here, torch.arange(24))
        if diversity:
            squares = (here.flatten(1)[:, None] - x.flatten(1)[None]).square().sum(2)
            others = (labels[:, None] == labels) & ~torch.eye(24, dtype=torch.bool)
            # h^2 is D / 16, and D is 16
            values = values + diversity * ((-squares / 2).exp() * others).sum(1) / others.sum(1)
        (gradient,) = torch.autograd.grad(values.sum(), here)
        gap = (energies.joint_energy(logits, labels) - clf.statistics["energy_mean"][labels]).square()
        stopped |= gap < (clf.statistics["energy_std"][labels] / 2).square()
        velocity = (0.8 * velocity if sampler == "momentum" else 0.0) - 0.01 * gradient
        moved = (x + velocity + 0.02 * noise.normal(seeds, step + 1, (1, 4, 4))).clamp(0, 1)
        x = torch.where(stopped[:, None, None, None], x, moved)
    torch.testing.assert_close(compact, x, atol=1e-5, rtol=0)
