"""Published settings: the numbers of METHODS in pixel units, one place for each, and what overrides them."""

from __future__ import annotations

from inspect import signature

import pytest
import torch

from trilemma import samplers
from trilemma.config.chains import PRESETS, choose_chain
from trilemma.config.registry import METHODS, SAMPLERS, STARTS
from trilemma.config.sections import SamplerConfig
from trilemma.errors import UnknownNameError
from trilemma.samplers.guidance import with_statistics


def test_the_numbers_are_the_published_ones_in_pixel_units() -> None:
    """A gradient step s on [-1, 1] is s / 4 on [0, 1], a clamp c is 2 c, noise n is n / 2; WEAT's s is halved."""
    jem, proximal, weat = PRESETS["jem"], PRESETS["jem++"], PRESETS["weat"]
    assert (jem.step_size, jem.noise_std, jem.steps) == (1 / 4, 0.01 / 2, 20)
    assert (proximal.step_size, proximal.clamp, proximal.noise_std, proximal.steps) == (1 / 4, 2 * 1, 0, 10)
    assert (weat.step_size, weat.noise_std, weat.zeta, weat.steps) == (0.025 / 2, 0.001, 0.8, 500)
    assert PRESETS["dat"].step_size == 0.2 and 32 <= PRESETS["dat"].steps <= 35
    assert (PRESETS["der"].start, PRESETS["der"].energy, PRESETS["der"].stop) == (
        "local-pca",
        "reference",
        True,
    )


@pytest.mark.parametrize("name", ["jem", "jem++", "sada-jem"])
def test_training_takes_its_chain_from_the_preset(name: str) -> None:
    chain = METHODS.get(name).Options().resolved_sampler(SamplerConfig())
    preset = PRESETS[name]
    assert (chain.name, chain.steps, chain.start) == (preset.sampler, preset.steps, preset.start)
    assert {key: getattr(chain, key) for key in preset.step()} == preset.step()


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_names_a_sampler_that_has_its_settings(name: str) -> None:
    preset = PRESETS[name]
    parameters = signature(SAMPLERS.get(preset.sampler)).parameters
    assert set(preset.step()) <= set(parameters) and preset.start.partition(":")[0] in STARTS
    assert preset.source and preset.summary
    if name != "der":
        assert {key: parameters[key].default for key in preset.step()} == preset.step()


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_its_settings_and_others_override_them(toy, name: str) -> None:
    data = toy.image_set(per_class=20)
    clf = with_statistics(toy.mlp(), "reference", True, data)

    def run(**arguments) -> torch.Tensor:
        seed = torch.Generator().manual_seed(0)
        return samplers.generate(clf, toy.labels(), data=data, generator=seed, **arguments)

    chain = PRESETS[name].chain() | {"steps": 3}
    assert torch.equal(run(preset=name, steps=3), run(**chain))
    assert torch.equal(run(preset=name, steps=3, step_size=1e-3), run(**(chain | {"step_size": 1e-3})))
    start = run(preset=name, steps=0, start="uniform")
    assert torch.equal(start, run(steps=0, start="uniform"))


def test_what_is_given_comes_before_the_preset_and_the_preset_before_training() -> None:
    trained = {"name": "langevin", "energy": "marginal", "step_size": 0.25, "clamp": 2.0}
    assert choose_chain({}, None, trained) == {
        "start": "class-pca", "sampler": "langevin", "energy": "marginal", "steps": 100, "stop": False,
        "step_size": 0.25, "clamp": 2.0,
    }  # fmt: skip
    assert choose_chain({}, "weat", trained) == PRESETS["weat"].chain()
    given = {"start": None, "steps": 7, "stop": True, "zeta": 0.5}
    assert choose_chain(given, "weat") == PRESETS["weat"].chain() | {"steps": 7, "stop": True, "zeta": 0.5}
    # a step belongs to its sampler: another one keeps start and energy, and has its own step
    assert choose_chain({"sampler": "normalised"}, "weat") == {
        "sampler": "normalised", "start": "class-pca", "energy": "joint", "steps": 500, "stop": False,
    }  # fmt: skip
    assert choose_chain({"clamp": None}, "jem++")["clamp"] is None


def test_an_unknown_preset_names_the_nearest(toy) -> None:
    with pytest.raises(
        UnknownNameError, match=r"unknown preset 'wheat'\. Did you mean 'weat'\? Presets: weat"
    ):
        samplers.generate(toy.mlp(), toy.labels(), preset="wheat")
