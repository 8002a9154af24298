"""Class statistics have the law they claim, and noise belongs to the image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from trilemma.data import ClassGaussian, ClassPCA, GaussianBank, ImageSet, class_means
from trilemma.data.statistics import ClassPCAOnDemand
from trilemma.errors import DataError


def covariance(image_set: ImageSet, label: int) -> np.ndarray:
    """S_y with divisor n, by numpy."""
    places = torch.nonzero(image_set.labels == label).flatten()
    images = image_set.float_images(places).flatten(1)
    return np.cov(images.double().numpy(), rowvar=False, bias=True)


def test_class_means_are_numpys(small_set: ImageSet) -> None:
    means = class_means(small_set)
    assert means.shape == (3, 1, 3, 4)
    for label in range(3):
        expected = small_set.images[small_set.labels == label].double().mean(0) / 255
        assert torch.allclose(means[label].double(), expected, atol=1e-6)


def test_gaussian_map_has_exactly_the_covariance(small_set: ImageSet) -> None:
    """M M^T = S_c + jitter I, M read off column by column from basis vectors."""
    jitter = 2.5e-3
    law = ClassGaussian(small_set, jitter=jitter)
    for label, count in enumerate((15, 9, 6)):
        zero = law._map(label, torch.zeros(1, count), torch.zeros(1, 12))
        from_weights = law._map(label, torch.eye(count), torch.zeros(count, 12)) - zero
        from_white = law._map(label, torch.zeros(12, count), torch.eye(12)) - zero
        matrix = torch.cat([from_weights, from_white]).double()
        expected = covariance(small_set, label) + jitter * np.eye(12)
        assert np.allclose((matrix.T @ matrix).numpy(), expected, atol=1e-6)
        assert torch.allclose(zero[0], class_means(small_set)[label].flatten(), atol=1e-6)


def test_gaussian_samples_have_the_covariance(small_set: ImageSet) -> None:
    law = ClassGaussian(small_set)
    samples = law.sample(torch.ones(40_000, dtype=torch.int64), torch.arange(40_000)).flatten(1).double()
    expected = covariance(small_set, 1) + 2.5e-5 * np.eye(12)
    found = np.cov(samples.numpy(), rowvar=False)
    scale = np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
    assert np.abs((found - expected) / scale).max() < 0.05
    assert torch.allclose(samples.mean(0), class_means(small_set)[1].flatten().double(), atol=5e-3)


def test_pca_samples_have_the_covariance(small_set: ImageSet) -> None:
    pca = ClassPCA.fit(small_set, explained_variance=1.0)
    samples = pca.sample(torch.zeros(40_000, dtype=torch.int64), torch.arange(40_000)).flatten(1).double()
    expected = covariance(small_set, 0) * 15 / 14
    found = np.cov(samples.numpy(), rowvar=False)
    scale = np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
    assert np.abs((found - expected) / scale).max() < 0.05


@pytest.mark.parametrize("pixels", [(1, 2, 3), (1, 5, 8)])
def test_pca_is_the_singular_value_decomposition(pixels: tuple[int, int, int]) -> None:
    """Fewer pixels than images and the other way round take different Gram matrices."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (20, *pixels), dtype=torch.uint8, generator=generator)
    one_class = ImageSet(images, torch.zeros(20, dtype=torch.int64), ("only",), "one", "train")
    pca = ClassPCA.fit(one_class, explained_variance=1.0)
    centred = one_class.float_images().flatten(1).double()
    centred = centred - centred.mean(0)
    expected = torch.linalg.svdvals(centred)
    rank = pca.singular_values.shape[1]
    assert rank == min(19, images[0].numel())
    assert torch.allclose(pca.singular_values[0].double(), expected[:rank], rtol=1e-5)
    basis = pca.components[0].double()
    assert torch.allclose(basis @ basis.T, torch.eye(rank, dtype=torch.float64), atol=1e-5)
    assert torch.allclose(centred @ basis.T @ basis, centred, atol=1e-4)


def test_pca_keeps_the_fewest_components_that_explain_enough(small_set: ImageSet) -> None:
    pca = ClassPCA.fit(small_set, explained_variance=0.8)
    for label, count in enumerate((15, 9, 6)):
        total = np.trace(covariance(small_set, label)) * count
        kept = pca.singular_values[label].double() ** 2
        number = int((kept > 0).sum())
        assert kept.sum() / total >= 0.8 > kept[: number - 1].sum() / total
        assert not pca.components[label, number:].any()
    assert ClassPCA.fit(small_set, max_components=2).components.shape == (3, 2, 12)


def test_pca_of_a_class_with_one_image_is_that_image() -> None:
    single = ImageSet(
        torch.full((1, 1, 2, 2), 51, dtype=torch.uint8), torch.zeros(1).long(), ("x",), "one", "train"
    )
    sample = ClassPCA.fit(single).sample(torch.zeros(3).long(), torch.arange(3))
    assert torch.allclose(sample, torch.full((3, 1, 2, 2), 0.2))


def test_max_images_per_class_counts_what_it_used(small_set: ImageSet) -> None:
    assert ClassPCA.fit(small_set, max_images_per_class=7).counts.tolist() == [7, 7, 6]


def test_sigma_zero_gives_the_mean(small_set: ImageSet) -> None:
    sample = ClassPCA.fit(small_set).sample(torch.tensor([2, 0]), torch.tensor([5, 6]), sigma=0.0)
    assert torch.allclose(sample, class_means(small_set)[[2, 0]], atol=1e-6)


@pytest.mark.parametrize("law", [ClassPCA.fit, ClassGaussian], ids=["pca", "gaussian"])
def test_noise_belongs_to_the_image_not_to_its_batch(small_set: ImageSet, law: object) -> None:
    source = law(small_set)  # type: ignore[operator]
    labels, seeds = torch.arange(12) % 3, torch.arange(12) * 31
    together = source.sample(labels, seeds)
    alone = torch.cat([source.sample(labels[i : i + 1], seeds[i : i + 1]) for i in range(12)])
    assert torch.allclose(together, alone, atol=1e-5)
    assert together.shape == (12, 1, 3, 4)
    assert together.min() >= 0
    assert together.max() <= 1
    assert source.sample(labels[:0], seeds[:0]).shape == (0, 1, 3, 4)


def test_pca_on_demand_has_the_law_of_the_fitted_one(small_set: ImageSet) -> None:
    fitted, on_demand = ClassPCA.fit(small_set), ClassPCAOnDemand(small_set)
    labels, seeds = torch.arange(3).repeat_interleave(20_000), torch.arange(60_000)
    assert torch.allclose(
        fitted.mean_images(labels[::20_000]), on_demand.mean_images(labels[::20_000]), atol=1e-6
    )
    # Both are functions of their own random numbers, so their moments are compared.
    first, second = (law.sample(labels, seeds).flatten(1) for law in (fitted, on_demand))
    for label in range(3):
        a, b = first[labels == label], second[labels == label]
        assert torch.allclose(a.mean(0), b.mean(0), atol=0.01)
        assert torch.allclose(a.T.cov(), b.T.cov(), atol=0.005)
    with pytest.raises(DataError, match=r"explained_variance is 0"):
        ClassPCAOnDemand(small_set, explained_variance=0)


def test_pca_survives_storage(small_set: ImageSet) -> None:
    pca = ClassPCA.fit(small_set)
    again = ClassPCA.from_state_dict(pca.state_dict()).to("cpu")
    labels, seeds = torch.tensor([0, 1, 2]), torch.tensor([1, 2, 3])
    assert torch.equal(pca.sample(labels, seeds), again.sample(labels, seeds))
    assert again.explained_variance == 0.99
    assert again.image_shape == (1, 3, 4)


def test_bank_is_a_pure_function_of_class_and_counter(small_set: ImageSet) -> None:
    law = ClassGaussian(small_set)
    labels = torch.tensor([0, 1, 0, 2, 0, 0, 0])
    together = GaussianBank(law, seed=3, chunk=4).draw(labels)
    bank = GaussianBank(law, seed=3, chunk=4)
    one_by_one = torch.cat([bank.draw(label[None]) for label in labels])
    assert torch.equal(together, one_by_one)
    assert not torch.equal(together[0], together[2])
    assert not torch.equal(together, GaussianBank(law, seed=4, chunk=4).draw(labels))


def test_bank_resumes_exactly_inside_a_chunk(small_set: ImageSet) -> None:
    law = ClassGaussian(small_set)
    bank = GaussianBank(law, seed=0, chunk=4)
    bank.draw(torch.tensor([0, 0, 0, 1, 0, 0]))
    resumed = GaussianBank(law, seed=0, chunk=4)
    resumed.load_state_dict(bank.state_dict())
    labels = torch.tensor([0, 1, 2, 0, 0, 0])
    assert torch.equal(bank.draw(labels), resumed.draw(labels))
    assert bank.draw(labels[:0]).shape == (0, 1, 3, 4)


@pytest.mark.parametrize(
    ("classes", "side", "chunk"), [(10, 32, 64), (100, 32, 64), (1000, 32, 10), (1000, 224, 1)]
)
def test_a_bank_has_a_limited_memory(classes: int, side: int, chunk: int) -> None:
    class Law:
        num_classes, image_shape, device = classes, (3, side, side), "cpu"

        def sample_class(self, label: int, seeds: Tensor) -> Tensor:
            drawn.append(len(seeds))
            return seeds.view(-1, 1, 1, 1).expand(-1, 3, side, side)

    drawn: list[int] = []
    bank = GaussianBank(Law(), seed=0)  # type: ignore[arg-type]
    images = bank.draw(torch.tensor([0, 1, 0, 1, classes - 1]))
    assert drawn == ([chunk] * 3 if chunk > 1 else [1] * 5)
    assert chunk * classes * 3 * side**2 * 4 <= 128_000_000 or chunk == 1
    # Whatever the chunk, the first draws of a class are its counters 0 and 1.
    assert (images[2] - images[0]).unique().tolist() == [1]
    assert (len(bank._chunks) == 0) == (chunk == 1)


def test_indices_by_class_are_those_of_a_search() -> None:
    labels = torch.randint(0, 50, (3_000,), generator=torch.Generator().manual_seed(0))
    labels[labels == 7] = 8
    images = torch.zeros(3_000, 1, 1, 1, dtype=torch.uint8)
    found = ImageSet(images, labels, tuple(map(str, range(51))), "x", "all").indices_by_class
    assert len(found) == 51 and len(found[7]) == len(found[50]) == 0
    assert all(torch.equal(index, (labels == k).nonzero().flatten()) for k, index in enumerate(found))


def test_a_class_without_images_is_named(small_set: ImageSet) -> None:
    without = small_set.subset(torch.nonzero(small_set.labels != 1).flatten())
    for fit in (class_means, ClassPCA.fit, ClassGaussian):
        with pytest.raises(DataError, match="class 'b' has no image"):
            fit(without)
    with pytest.raises(DataError, match=r"explained_variance is 1\.5"):
        ClassPCA.fit(small_set, explained_variance=1.5)
