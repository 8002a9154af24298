"""The content of a classifier file is input: what cannot be right is one line that names it, and nothing is built."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn

from trilemma.classifier.classifier import Classifier
from trilemma.data.image_set import ImageSet
from trilemma.data.statistics import ClassPCA
from trilemma.errors import CheckpointError, ConfigError
from trilemma.files import CLASSIFIER, with_digests
from trilemma.networks.create import create_network
from trilemma.networks.options import SmallResNetOptions
from trilemma.samplers.guidance import logit_statistics, reference_stop
from trilemma.samplers.replay_buffer import CHAINS, load_chains

OPTIONS = SmallResNetOptions(width=2)
WEIGHT = "network.stem.weight"
Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors of a classifier file of three classes with all statistics."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = create_network(OPTIONS, 3, (1, 8, 8))
        images, logits = torch.randint(0, 256, (30, 1, 8, 8), dtype=torch.uint8), torch.randn(30, 3)
    clf = Classifier(
        network, 3, [0.4], [0.3], class_names=["ant", "bee", "cat"], image_shape=(1, 8, 8),
        network_config=OPTIONS.model_dump(mode="json"),
    )  # fmt: skip
    data = ImageSet(images, torch.arange(30) % 3, ("ant", "bee", "cat"), "toy", "train")
    pca = ClassPCA.fit(data, max_components=4).state_dict()
    clf.statistics = {f"pca.{name}": value for name, value in pca.items()}
    clf.statistics |= logit_statistics(logits, data.labels) | {"energy_quantiles": torch.linspace(-1, 1, 11)}
    clf.about = {"recipe": "digits/pgd-at", "step": 7, "chain": {"name": "momentum", "step_size": 0.5}}
    path = tmp_path_factory.mktemp("file") / "classifier.safetensors"
    clf.save(path)
    header, tensors = CLASSIFIER.read(path)
    return json.loads(json.dumps(header.content())), tensors


def write(path: Path, header: Any, tensors: dict[str, Tensor], version: str = "1") -> Path:
    """Writes a classifier file with right digests and any content."""
    text = header if isinstance(header, str) else json.dumps(header)
    metadata = {"format": "trilemma-classifier", "version": version, "header": text}
    path.write_bytes(save(tensors, with_digests(metadata, tensors)))
    return path


def refused(path: Path) -> str:
    """The line with which both readers of a file, or the one of its tensors, refuse it."""
    # A network that cannot be called is a mistake in a name, as in a recipe.
    with pytest.raises((CheckpointError, ConfigError)) as caught:
        Classifier.load(path)
    line = str(caught.value)
    assert line.startswith(f"{path}: ") and "\n" not in line and len(line) < 500
    return line.removeprefix(f"{path}: ")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("num_classes", "ten", "num_classes = 'ten': must be a valid integer"),
        ("num_classes", True, "num_classes = True"),
        ("num_classes", 0, "greater than or equal to 2"),
        ("num_classes", 10**9, "less than or equal to"),
        ("num_classes", 4, "3 class names for 4 classes"),
        ("class_names", "abc", "class_names = 'abc': must be a valid list"),
        ("class_names", [1, 2, 3], "class_names.0 = 1: must be a valid string"),
        ("class_names", ["a", "b", "\ud800"], "surrogate"),
        ("class_names", ["a", "a", "b"], "two classes are named 'a'"),
        ("image_shape", [1, 8], "image_shape = [1, 8]"),
        ("image_shape", [1, "8", 8], "image_shape.1 = '8'"),
        ("image_shape", [1, 10**5, 10**5], "larger than this trilemma reads"),
        ("image_shape", [1, 9, 9], "pca.image_shape is [1, 8, 8], but images are [1, 9, 9]"),
        ("mean", [0.1, 0.2], "2 values of mean for images of 1 channels"),
        ("mean", [float("nan")], "mean.0 = nan: must be a finite number"),
        ("mean", None, "mean without std"),
        ("std", [0.0], "every std must be above 0"),
        ("threat", {"evil": 1}, "threat.norm is missing"),
        ("threat", {"norm": "linf", "radius": "8/255", "evil": 1}, "threat.evil = 1"),
        ("threat", {"norm": "linf", "radius": "1e-99999999"}, "too small"),
        ("threat", "linf", "threat = 'linf': must be a mapping"),
        ("network", {"name": "nope"}, "unknown network 'nope'"),
        ("network", {"width": 2}, "network.name is missing"),
        ("network", {"name": "small-resnet", "width": "2", "evil": 1}, "network.evil = 1"),
        ("network", {"name": "small-resnet", "width": -1}, "network.width = -1: must be greater than 0"),
        ("network", {"name": "small-resnet", "norm": "evil"}, "network.norm = 'evil'"),
        ("network", {"name": "os:system"}, "Python's standard library"),
        ("network", {"name": "small-resnet", "width": 2**62}, "less than or equal to 9,007,199,254,740,992"),
        ("about", [], "about = []: must be a mapping"),
        ("about", {"data": 5}, "about.data = 5"),
        ("about", {"chain": 5}, "about.chain = 5: must be a mapping"),
        ("output", [], "output = []"),
        ("weights", "sha256:00", "weights = 'sha256:00'"),
    ],
)
def test_a_wrong_value_of_the_header_is_named(
    stored: Any, tmp_path: Path, key: str, value: Any, words: str
) -> None:
    header, tensors = stored
    assert words in refused(write(tmp_path / "x.safetensors", {**header, key: value}, tensors))


@pytest.mark.parametrize("key", ["num_classes", "class_names", "image_shape", "mean", "threat", "about"])
def test_a_missing_key_is_named(stored: Any, tmp_path: Path, key: str) -> None:
    header = {name: value for name, value in stored[0].items() if name != key}
    path = write(tmp_path / "x.safetensors", header, stored[1])
    assert f"{key} is missing" in refused(path)
    with pytest.raises(CheckpointError, match=f"{key} is missing"):
        CLASSIFIER.read_header(path)


def test_keys_of_later_versions_are_ignored_and_the_rest_is_kept(stored: Any, tmp_path: Path) -> None:
    header, tensors = stored
    clf = Classifier.load(write(tmp_path / "x.safetensors", {**header, "later": 1}, tensors))
    assert clf.about == header["about"] and clf.network_config == header["network"]
    assert clf.statistics.keys() == {
        name.removeprefix("statistics.") for name in tensors if name.startswith("statistics.")
    }


@pytest.mark.parametrize(
    "text", ["", "{", "null", "5", "[" * 100_000, '{"a":' * 5_000 + "1" + "}" * 5_000, "9" * 10_000]
)
def test_a_header_that_is_no_object_of_json_is_refused(stored: Any, tmp_path: Path, text: str) -> None:
    refused(write(tmp_path / "x.safetensors", text, stored[1]))


@pytest.mark.parametrize("version", ["", "x", "1.5", "-1", "1_0", "\u00b2", "9" * 5_000])
def test_a_version_that_is_no_number_is_refused(stored: Any, tmp_path: Path, version: str) -> None:
    assert "not a classifier file" in refused(
        write(tmp_path / "x.safetensors", stored[0], stored[1], version)
    )


@pytest.mark.parametrize(
    "options", [{"width": 10**6}, {"width": 2**53}, {"width": 2**64}, {"depth": 6 * 10**6 + 2}]
)
def test_a_network_larger_than_its_weights_is_never_built(
    stored: Any, tmp_path: Path, options: dict[str, int]
) -> None:
    network = {"name": "small-resnet", "width": 2, **options}
    path = write(tmp_path / "x.safetensors", {**stored[0], "network": network}, stored[1])
    started = time.process_time()
    line = refused(path)
    # 36 TB in the first case, and six million layers in the last one.
    assert time.process_time() - started < 2
    assert any(words in line for words in ("has more than", "too large", "less than or equal to"))


def changed(tensors: dict[str, Tensor], name: str, change: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    return {**tensors, name: change(tensors[name].clone())}


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.int64, torch.complex64, torch.float8_e4m3fn])
def test_weights_that_are_no_floats_are_refused(stored: Any, tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = changed(stored[1], WEIGHT, lambda value: value.to(dtype))
    assert f"stem.weight {str(dtype).removeprefix('torch.')} for float32" in refused(
        write(tmp_path / "x.safetensors", stored[0], tensors)
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_floats_are_converted(stored: Any, tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = changed(stored[1], WEIGHT, lambda value: value.to(dtype))
    clf = Classifier.load(write(tmp_path / "x.safetensors", stored[0], tensors))
    weight = clf.network.get_parameter("stem.weight")
    assert weight.dtype == torch.float32 and torch.equal(weight, tensors[WEIGHT].float())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_have_diverged(stored: Any, tmp_path: Path, value: float) -> None:
    tensors = changed(stored[1], WEIGHT, lambda weight: weight.index_fill_(0, torch.tensor([0]), value))
    line = refused(write(tmp_path / "x.safetensors", stored[0], tensors))
    assert line.startswith("this classifier has diverged: stem.weight") and "earlier checkpoint" in line


def test_a_mask_may_hold_infinities_and_a_variance_may_not_be_negative(tmp_path: Path) -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mask", torch.tensor([0.0, -float("inf")]))
            self.norm = nn.BatchNorm2d(1)

        def forward(self, images: Tensor) -> Tensor:
            normal: Tensor = self.norm(images)
            return normal.flatten(1)[:, :2]

    Classifier(Masked(), 2).save(tmp_path / "x.safetensors")
    Classifier.load(tmp_path / "x.safetensors", Masked())
    wrong = Masked()
    wrong.norm.get_buffer("running_var").fill_(-1)
    Classifier(wrong, 2).save(tmp_path / "y.safetensors")
    with pytest.raises(CheckpointError, match=r"has diverged: norm\.running_var"):
        Classifier.load(tmp_path / "y.safetensors", Masked())


STATISTICS = (
    "energy_mean", "energy_std", "energy_quantiles", "logit_mean", "logit_covariance", "pca.means", "pca.components",
    "pca.singular_values", "pca.counts", "pca.explained_variance", "pca.image_shape",
)  # fmt: skip


@pytest.mark.parametrize("name", STATISTICS)
def test_a_statistic_of_another_shape_type_or_range_is_named(stored: Any, tmp_path: Path, name: str) -> None:
    full = f"statistics.{name}"
    wrong: list[Callable[[Tensor], Tensor]] = [
        lambda value: torch.zeros(0),
        lambda value: value.to(torch.int8),
        lambda value: value.to(torch.complex64),
        lambda value: value[None].repeat(2, *[1] * value.ndim),
    ]
    if stored[1][full].is_floating_point():
        wrong += [lambda value: value * float("nan"), lambda value: value + float("inf")]
    if name in (
        "energy_std",
        "pca.singular_values",
        "pca.counts",
        "pca.explained_variance",
        "pca.image_shape",
    ):
        wrong.append(lambda value: -value.abs() - 1)
    for change in wrong:
        tensors = changed(stored[1], full, change)
        assert full in refused(write(tmp_path / "x.safetensors", stored[0], tensors))


def test_a_class_pca_is_whole_or_absent(stored: Any, tmp_path: Path) -> None:
    header, tensors = stored
    without = {name: value for name, value in tensors.items() if name != "statistics.pca.counts"}
    assert "the class PCA lacks counts" in refused(write(tmp_path / "x.safetensors", header, without))
    bare = {name: value for name, value in tensors.items() if name.startswith("network.")}
    assert Classifier.load(write(tmp_path / "y.safetensors", header, bare)).statistics == {}


def test_statistics_in_double_precision_are_converted(stored: Any, tmp_path: Path) -> None:
    tensors = changed(stored[1], "statistics.energy_mean", Tensor.double)
    loaded = Classifier.load(write(tmp_path / "x.safetensors", stored[0], tensors))
    assert loaded.statistics["energy_mean"].dtype == torch.float32


def test_a_spread_of_zero_stops_no_chain(stored: Any, tmp_path: Path) -> None:
    tensors = changed(stored[1], "statistics.energy_std", torch.zeros_like)
    clf = Classifier.load(write(tmp_path / "x.safetensors", stored[0], tensors))
    with pytest.raises(Exception, match=r"class 'ant' has a standard deviation of 0.*--no-stop"):
        reference_stop(clf, torch.tensor([0]))


def test_what_could_not_be_read_again_is_not_written(stored: Any, tmp_path: Path) -> None:
    clf = Classifier.load(write(tmp_path / "x.safetensors", *stored))
    clf.about = {"data": 5}
    with pytest.raises(CheckpointError, match=r"cannot be written \(about\.data = 5"):
        clf.save(tmp_path / "y.safetensors")
    assert not (tmp_path / "y.safetensors").exists()


@pytest.mark.parametrize(
    ("names", "images", "labels", "words"),
    [
        ([], torch.uint8, torch.int64, "class_names = []"),
        (["a", "b"], torch.float32, torch.int64, "images of 8 bits"),
        (["a", "b"], torch.uint8, torch.int32, "labels must be int64"),
        (["a"], torch.uint8, torch.int64, "label"),
    ],
)
def test_chains_of_another_kind_are_refused(
    tmp_path: Path, names: list[str], images: torch.dtype, labels: torch.dtype, words: str
) -> None:
    path = tmp_path / "chains.safetensors"
    tensors = {"images": torch.zeros(2, 1, 4, 4, dtype=images), "labels": torch.tensor([0, 1], dtype=labels)}
    metadata = {"format": "trilemma-chains", "version": "1", "header": json.dumps({"class_names": names})}
    path.write_bytes(save(tensors, with_digests(metadata, tensors)))
    with pytest.raises(CheckpointError) as caught:
        load_chains(path)
    assert words in str(caught.value) and CHAINS.remedy in str(caught.value)
