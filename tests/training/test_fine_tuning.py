"""Fine-tuning: weights of other classifiers and files, new classifier layers, frozen layers, rates by layer."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training.conftest import Interrupt
from tests.training.support import STEPS_PER_EPOCH, TREE, differences, state_of, tiny
from torch import Tensor, nn

from trilemma.classifier.classifier import Classifier
from trilemma.classifier.contexts import inner_loop
from trilemma.classifier.load import load
from trilemma.config.config import Config
from trilemma.config.recipe import build_config, load_config
from trilemma.data.image_set import Splits
from trilemma.errors import CheckpointError, ConfigError
from trilemma.networks.create import create_network
from trilemma.runs.run_directory import RunDirectory
from trilemma.training.build import build_classifier, build_data
from trilemma.training.checkpoint import load_state
from trilemma.training.checks import check_run
from trilemma.training.layers import layers, parameter_groups
from trilemma.training.start import load_initial_weights, load_start
from trilemma.training.train import train

FINE = {"epochs": 2, "freeze": ["stem", "blocks.0"], "layer_lr": {"classifier": 10.0}, "lr_decay": 0.5}


@pytest.fixture(scope="module")
def data() -> Splits:
    return build_data(tiny("standard"))


def classifier(classes: int = 10, names: tuple[str, ...] | None = None, mean: float = 0.3) -> Classifier:
    """The network of :func:`tiny` with weights and statistics of its own."""
    options = tiny("standard").network
    with torch.random.fork_rng():
        torch.manual_seed(5)
        network = create_network(options, classes, (1, 8, 8))
        for name, buffer in network.named_buffers():
            if name.endswith("running_mean"):
                buffer.uniform_(-0.1, 0.1)
    return Classifier(
        network, classes, [mean], [0.2], class_names=names, image_shape=(1, 8, 8),
        network_config=options.model_dump(mode="json"),
    )  # fmt: skip


def begun(start: Path | str, data: Splits, **training: Any) -> tuple[Classifier, str]:
    """The classifier that a run would train, and what was not copied into it."""
    config = tiny("standard", {"start": str(start), **training})
    initial = load_start(config, data.train)
    clf = build_classifier(config, data.train, initial)
    return clf, load_initial_weights(clf, initial, config)


def test_the_normalisation_of_the_initial_weights_is_taken_over(data: Splits, tmp_path: Path) -> None:
    classifier().save(tmp_path / "clf.safetensors")
    clf, replaced = begun(tmp_path / "clf.safetensors", data)
    assert clf.mean is not None and clf.mean.item() == pytest.approx(0.3) and replaced == ""
    clf, _ = begun(tmp_path / "clf.safetensors", data, mean=[0.6], std=[0.1])
    assert clf.mean is not None and clf.mean.item() == pytest.approx(0.6)


@pytest.mark.parametrize("form", ["classifier file", "state dict", "wrapped state dict", "exported"])
def test_weights_in_every_form_give_the_same_logits(form: str, data: Splits, tmp_path: Path) -> None:
    whole, file = classifier(mean=0.5), tmp_path / "file.safetensors"
    assert whole.std is not None
    whole.std.fill_(0.5)
    if form == "classifier file":
        whole.save(file)
    elif form == "exported":
        from trilemma.evaluation.export import export

        whole.save(tmp_path / "c.safetensors")
        file = tmp_path / "exported.pt"
        export(tmp_path / "c.safetensors", file, "state-dict", data="digits")
    else:
        weights = whole.network.state_dict()
        if form.startswith("wrapped"):
            weights = {f"module.{name}": value for name, value in weights.items()}
        file = tmp_path / "weights.pt"
        torch.save({"state_dict": weights, "epoch": 3} if form.startswith("wrapped") else weights, file)
    clf, replaced = begun(file, data)
    images = data.test.float_images(range(20))
    assert replaced == ""
    torch.testing.assert_close(clf.eval()(images), whole.eval()(images), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("classes", "names", "message"),
    [
        (4, None, "is new: 4 classes there, 10 here"),
        (10, tuple("abcdefghij"), None),
        (10, tuple("9876543210"), None),
    ],
)
def test_another_set_of_classes_gets_a_new_classifier_layer(
    classes: int, names: tuple[str, ...] | None, message: str | None, data: Splits, tmp_path: Path
) -> None:
    start = classifier(classes, names)
    start.save(tmp_path / "clf.safetensors")
    clf, replaced = begun(tmp_path / "clf.safetensors", data)
    own, given = clf.network.state_dict(), start.network.state_dict()
    # the digits are named by numbers, which say nothing about the meaning of other names
    kept = message is None
    assert replaced == (
        "" if kept else f"the classifier layer (classifier.weight, classifier.bias) {message}"
    )
    assert all(torch.equal(own[name], given[name]) for name in own if not name.startswith("classifier"))
    assert own["classifier.weight"].shape == (10, 16)
    assert torch.equal(own["classifier.weight"], given["classifier.weight"]) == kept if kept else True


def test_named_classes_that_differ_get_a_new_layer(data: Splits, tmp_path: Path) -> None:
    import dataclasses

    classifier(10, tuple("abcdefghij")).save(tmp_path / "clf.safetensors")
    named = dataclasses.replace(data.train, class_names=tuple("klmnopqrst"))
    _, replaced = begun(tmp_path / "clf.safetensors", dataclasses.replace(data, train=named))
    assert replaced.endswith("is new: 10 classes there, 10 others here")


def test_a_run_says_that_its_classifier_layer_is_new(tmp_path: Path) -> None:
    classifier(4).save(tmp_path / "clf.safetensors")
    config = tiny("standard", {"epochs": 1, "start": str(tmp_path / "clf.safetensors")})
    run = train(config, out=tmp_path / "run", progress=False)
    (event,) = [event for event in RunDirectory(run.path).events() if event["kind"] == "start"]
    assert event["message"].endswith("is new: 4 classes there, 10 here")
    assert run.classifier.mean is not None and run.classifier.mean.item() == pytest.approx(0.3)


def fine(start: Path, method: str = "standard", **sections: Any) -> Config:
    training = {**TREE["training"], **FINE, "start": str(start), **sections.pop("training", {})}
    return build_config({**TREE, "method": method, "training": training, **sections})


@pytest.fixture
def start(tmp_path: Path) -> Path:
    classifier().save(tmp_path / "start.safetensors")
    return tmp_path / "start.safetensors"


@pytest.mark.parametrize(
    ("method", "sections"),
    [
        ("standard", {"optimiser": {"weight_decay": 0.1}}),
        ("pgd-at", {"attack": {"steps": 1}, "update": {"name": "awp"}}),
        # an attack in train mode sets the mode of the whole network
        ("n-fgsm", {"optimiser": {"name": "adam"}, "training": {"ema": 0.9}}),
    ],
)
def test_frozen_layers_keep_weights_and_statistics_and_a_resume_is_bit_for_bit(
    method: str, sections: dict[str, Any], start: Path, tmp_path: Path, interrupt_after: Interrupt
) -> None:
    config = fine(start, method, **sections)
    whole = train(config, out=tmp_path / "whole", progress=False)
    before, after = classifier().network.state_dict(), whole.classifier.network.state_dict()
    frozen = {name for name in before if name.startswith(("stem", "blocks.0"))}
    assert {name for name in before if torch.equal(before[name], after[name])} >= frozen
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved >= {"classifier.weight", "blocks.1.conv1.weight", "norm.running_mean"}

    interrupt_after(STEPS_PER_EPOCH + 2)
    with pytest.raises(KeyboardInterrupt):
        train(config, out=tmp_path / "broken", progress=False)
    interrupt_after(0)
    train(config, out=tmp_path / "broken", resume=True, progress=False)
    assert differences(state_of(whole.path), state_of(tmp_path / "broken")) == []


def test_a_number_freezes_layers_from_the_input_on(data: Splits) -> None:
    clf = build_classifier(tiny("standard", {"freeze": 2}), data.train)
    assert layers(clf.network) == ["stem", "blocks.0", "blocks.1", "blocks.2", "norm", "classifier"]
    trained = {name.partition(".conv")[0] for name, p in clf.network.named_parameters() if p.requires_grad}
    assert not any(name.startswith(("stem", "blocks.0")) for name in trained)
    assert clf.train().network.blocks[0].norm1.training is False  # type: ignore[union-attr,index]
    assert clf.network.blocks[1].norm1.training is True  # type: ignore[union-attr,index]
    with inner_loop(clf, "train"):
        assert clf.network.blocks[0].norm1.training is False  # type: ignore[union-attr,index]
    assert [p.requires_grad for p in clf.network.stem.parameters()] == [False]  # type: ignore[union-attr]


def test_the_rate_of_a_layer_is_its_decay_times_its_factors(data: Splits) -> None:
    config = tiny("standard", {"lr_decay": 0.5, "layer_lr": {"classifier": 10.0, "blocks.*.norm1": 3.0}})
    network = build_classifier(config, data.train).network
    factors = {}
    for group in parameter_groups(network, config.training):
        for name, parameter in network.named_parameters():
            if any(parameter is other for other in group["params"]):
                factors[name] = group["factor"]
    assert factors["classifier.weight"] == 10 and factors["norm.weight"] == 0.5
    assert factors["blocks.2.conv1.weight"] == 0.25 and factors["blocks.2.norm1.weight"] == 0.75
    assert factors["stem.weight"] == 0.5**5 and len(factors) == len(list(network.parameters()))
    # without these keys there is one group, as in the state of earlier versions
    (group,) = parameter_groups(network, tiny("standard").training)
    assert group.keys() == {"params"}


def test_the_first_step_moves_each_layer_by_its_rate(
    start: Path, tmp_path: Path, interrupt_after: Interrupt
) -> None:
    steps = {}
    for name, rates in (("plain", {}), ("scaled", {"layer_lr": {"classifier": 10.0}})):
        plain = {"freeze": [], "layer_lr": {}, "lr_decay": 1.0, **rates}
        config = fine(start, training=plain, optimiser={"momentum": 0.0, "weight_decay": 0.0})
        interrupt_after(1)
        with pytest.raises(KeyboardInterrupt):
            train(config, out=tmp_path / name, progress=False)
        weights = load_state(RunDirectory(tmp_path / name).state_file)["weights"]
        before = classifier().state_dict()
        steps[name] = {key: weights[key] - before[key] for key in before if "running" not in key}
    layer = "network.classifier.weight"
    torch.testing.assert_close(steps["scaled"][layer], 10 * steps["plain"][layer], atol=1e-6, rtol=1e-3)
    other = "network.stem.weight"
    torch.testing.assert_close(steps["scaled"][other], steps["plain"][other], atol=1e-7, rtol=1e-4)


@pytest.mark.parametrize(
    ("training", "message"),
    [
        (
            {"freeze": ["block.0"]},
            r"training.freeze: 'block.0' matches no parameter. Did you mean 'blocks.0'\?",
        ),
        ({"freeze": 6}, "training.freeze: 6 layers given, but the network has 6"),
        ({"freeze": ["*"]}, "training.freeze: freezes every parameter"),
        ({"layer_lr": {"head": 2.0}}, "training.layer_lr: 'head' matches no parameter"),
        ({"layer_lr": {"classifier": -1}}, "training.layer_lr.classifier: .*greater than 0"),
        ({"mean": [0.5]}, "training.mean, training.std: give both"),
        ({"mean": [0.5, 0.5], "std": [1, 1]}, "mean"),
    ],
)
def test_mistakes_are_said_before_the_run(training: dict[str, Any], message: str, data: Splits) -> None:
    with pytest.raises(ConfigError, match=message):
        check_run(tiny("standard", training), data)


def test_freezing_random_weights_draws_a_warning(start: Path) -> None:
    assert any("training.freeze" in line for line in tiny("standard", {"freeze": 1}).warnings)
    assert not any("training.freeze" in line for line in fine(start).warnings)


# --- Networks of the user's -------------------------------------------------------------------------------

NETS = """
import torch
from torch import nn

def wide(num_classes, in_channels=1, width: int = 8, **more) -> nn.Module:
    layers = [nn.Conv2d(in_channels, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(),
              nn.Linear(width * 36, num_classes)]
    network = nn.Sequential(*layers)
    return Compiled(nn.DataParallel(network)) if more.get("compiled") else network

class Compiled(nn.Module):
    "What torch.compile returns."
    def __init__(self, network):
        super().__init__()
        self._orig_mod = network

class Ten(nn.Sequential):
    def __init__(self, hidden=4):
        super().__init__(nn.Flatten(), nn.Linear(64, hidden), nn.Tanh(), nn.Linear(hidden, 10))

def broken(num_classes) -> nn.Module:
    raise ValueError("no such thing")

def undeclared(num_classes):
    raise AssertionError("called")

number = 3
"""


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module of networks in the working directory."""
    monkeypatch.chdir(tmp_path)
    name = f"nets_of_{tmp_path.name.replace('-', '_')}"
    Path(f"{name}.py").write_text(NETS)
    yield name
    sys.modules.pop(name, None)


def own(network: str, **options: Any) -> Config:
    return tiny("standard", {"epochs": 1}, network={"name": network, **options})


@pytest.mark.parametrize(
    ("function", "options"),
    [("wide", {"width": 4}), ("wide", {"width": 4, "compiled": True}), ("Ten", {"hidden": 5}), ("Ten", {})],
)
def test_a_function_of_ones_own_is_trained_stored_and_rebuilt(
    nets: str, function: str, options: dict[str, Any]
) -> None:
    run = train(own(f"{nets}:{function}", **options), out="run", progress=False)
    stored = load_config("run/config.yaml").network.model_dump()
    assert stored["name"] == f"{nets}:{function}" and options.items() <= stored.items()
    assert run.classifier.network_config == stored
    again = load("run")
    state = load_state(RunDirectory("run").state_file)
    for names in (again.state_dict(), state["weights"]):
        assert not any("_orig_mod" in name or "module." in name for name in names)
    images = torch.rand(3, 1, 8, 8)
    assert torch.equal(again(images), run.classifier(images))


def test_initial_weights_from_a_function_of_ones_own(nets: str, data: Splits) -> None:
    config = tiny("standard", {"start": f"{nets}:Ten"}, network={"name": f"{nets}:Ten"})
    initial = load_start(config, data.train)
    clf = build_classifier(config, data.train, initial)
    assert load_initial_weights(clf, initial, config) == "" and clf.mean is None
    assert all(
        torch.equal(a, b) for a, b in zip(clf.network.parameters(), initial.network.parameters(), strict=True)
    )


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (
            "nowhere:wide",
            "network 'nowhere:wide': cannot be imported .*No module named 'nowhere'.*PYTHONPATH",
        ),
        ("{}:wid", "has no attribute 'wid'"),
        ("{}:number", "is a int, not a function or class"),
        ("{}:undeclared", "not declared to return a network"),
        ("os:system", "standard library"),
        ("yaml:safe_load", "not declared to return a network"),
        ("smal-resnet", "unknown network 'smal-resnet'. Did you mean 'small-resnet'"),
    ],
)
def test_a_function_that_is_not_there_is_one_line(nets: str, network: str, message: str) -> None:
    with pytest.raises(Exception, match=message) as error:
        own(network.format(nets))
    assert "\n" not in str(error.value)


def test_neither_a_recipe_nor_a_file_calls_just_anything(nets: str, data: Splits) -> None:
    """Both may come from others, and a function that is no network could do anything."""
    for name in (f"{nets}:undeclared", "os:getcwd"):
        with pytest.raises(ConfigError, match=r"declared to return a network|standard library"):
            load_start(tiny("standard", {"start": name}), data.train)
    clf = classifier()
    clf.network_config = {"name": f"{nets}:undeclared"}
    clf.save("stranger.safetensors")
    with pytest.raises(ConfigError, match="not declared to return a network"):
        load("stranger.safetensors")


def test_an_option_that_the_function_does_not_take_is_refused(nets: str) -> None:
    with pytest.raises(ConfigError, match=r"network\.depth: unknown key"):
        own(f"{nets}:Ten", depth=3)


def test_a_classifier_whose_network_cannot_be_imported_any_more_is_one_line(nets: str) -> None:
    train(own(f"{nets}:Ten"), out="run", progress=False)
    Path(f"{nets}.py").unlink()
    sys.modules.pop(nets)
    with pytest.raises(ConfigError, match=f"network '{nets}:Ten': cannot be imported"):
        load("run/checkpoints/best/classifier.safetensors")


# --- timm -------------------------------------------------------------------------------------------------


class Published(nn.Sequential):
    """A network of timm, with the constants of its weights."""

    pretrained_cfg = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.2, 0.2)}  # noqa: RUF012

    def __init__(self, num_classes: int, in_chans: int) -> None:
        super().__init__(
            nn.Conv2d(in_chans, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes)
        )

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = super().forward(images)
        return result


@pytest.mark.parametrize(("pretrained", "mean"), [(True, 0.5), (False, 0.5)])
def test_pretrained_weights_get_the_constants_they_were_trained_with(
    pretrained: bool, mean: float, data: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    def create(num_classes: int, in_channels: int, **_: Any) -> nn.Module:
        return Published(num_classes, in_channels)

    monkeypatch.setattr("trilemma.networks.timm_network.timm_network", create)
    config = tiny("standard", network={"name": "timm", "model": "resnet18", "pretrained": pretrained})
    clf = build_classifier(config, data.train)
    # grey images: the mean of the three channels
    assert clf.mean is not None and clf.mean.item() == pytest.approx(mean)
    assert clf.std is not None and clf.std.item() == pytest.approx(0.2 if pretrained else 0.5)


def test_weights_of_another_architecture_name_the_network(data: Splits, tmp_path: Path) -> None:
    torch.save(nn.Linear(4, 3).state_dict(), tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="another architecture"):
        begun(tmp_path / "w.pt", data)
