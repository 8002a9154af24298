from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from trilemma import noise, samplers
from trilemma.config.registry import STARTS
from trilemma.config.sections import SamplerConfig
from trilemma.data.statistics import ClassPCA
from trilemma.errors import CheckpointError, ConfigError, DataError
from trilemma.samplers.replay_buffer import CHAINS_FILE, ReplayBuffer, load_chains, save_chains
from trilemma.samplers.starts import TrainingStarts, make_start

SEEDS = noise.image_seeds(9, torch.Generator().manual_seed(0))


# The start from chains of a finished run is no start of training.
OF_TRAINING = [name for name in STARTS.rows() if name != "replay-buffer"]
MIXTURE = "uniform:0.25,local-pca:k=3:0.75"


@pytest.mark.parametrize("name", [*STARTS.rows(), MIXTURE])
def test_starts_are_images_that_belong_to_their_seed(toy, name: str) -> None:
    data, labels = toy.image_set(), toy.labels(9)
    starts = make_start(name, labels, SEEDS, (1, 4, 4), data, None, data)
    assert starts.shape == (9, 1, 4, 4) and starts.min() >= 0 and starts.max() <= 1
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    shuffled = make_start(name, labels[order], SEEDS[order], (1, 4, 4), data, None, data)
    torch.testing.assert_close(shuffled, starts[order], atol=1e-6, rtol=0)
    assert len(starts.flatten(1).unique(dim=0)) > (3 if name in ("data", "replay-buffer") else 8)


def test_data_starts_are_training_images_of_the_class_and_reach_all_of_them(toy) -> None:
    data = toy.image_set(per_class=4)
    labels = toy.labels(300)
    seeds = noise.image_seeds(300, torch.Generator().manual_seed(0))
    starts = make_start("data", labels, seeds, (1, 4, 4), data, None)
    everything = data.float_images().flatten(1)
    found = (starts.flatten(1)[:, None] == everything[None]).all(2)
    assert (found.sum(1) == 1).all()
    assert torch.equal(data.labels[found.int().argmax(1)], labels)
    assert found.any(0).all()


def test_class_mean_noise_is_centred_on_the_class(toy) -> None:
    data = toy.image_set()
    labels = torch.ones(2000, dtype=torch.int64)
    seeds = noise.image_seeds(2000, torch.Generator().manual_seed(0))
    starts = make_start("class-mean-noise", labels, seeds, (1, 4, 4), data, None)
    mean = data.float_images()[data.labels == 1].mean(0)
    middle = (mean > 0.4) & (mean < 0.6)  # elsewhere the clipping moves the mean
    torch.testing.assert_close(starts.mean(0)[middle], mean[middle], atol=0.03, rtol=0)


def test_stored_statistics_serve_where_the_data_are_not_at_hand(toy) -> None:
    data, labels = toy.image_set(), toy.labels(9)
    pca = ClassPCA.fit(data)
    for name in ("class-pca", "class-mean-noise"):
        stored = make_start(name, labels, SEEDS, (1, 4, 4), None, pca)
        assert torch.equal(stored, make_start(name, labels, SEEDS, (1, 4, 4), data, None))


def test_the_components_of_many_classes_are_computed_when_drawn(toy, monkeypatch) -> None:
    data, labels = toy.image_set(), toy.labels(9)
    at_once = {
        name: make_start(name, labels, SEEDS, (1, 4, 4), data, None)
        for name in ("class-mean-noise", "class-pca")
    }
    monkeypatch.setattr("trilemma.samplers.starts.PCA_BYTES", 0)
    monkeypatch.setattr(ClassPCA, "fit", None)
    drawn = {name: make_start(name, labels, SEEDS, (1, 4, 4), data, None) for name in at_once}
    torch.testing.assert_close(drawn["class-mean-noise"], at_once["class-mean-noise"])
    assert drawn["class-pca"].shape == at_once["class-pca"].shape


@pytest.mark.parametrize(
    "name", ["class-pca", "class-gaussian", "class-mean-noise", "local-pca", "data", "phase-scrambled"]
)
def test_a_start_that_needs_data_says_so(toy, name: str) -> None:
    with pytest.raises(ConfigError, match=f"start: '{name}' needs .* pass data="):
        make_start(name, toy.labels(9), SEEDS, (1, 4, 4), None, None)


def test_an_unknown_start_names_the_nearest(toy) -> None:
    with pytest.raises(ConfigError, match=r"unknown start 'class-pcs'\. Did you mean 'class-pca'"):
        make_start("class-pcs", toy.labels(9), SEEDS, (1, 4, 4), None, None)


@pytest.mark.parametrize("name", [*OF_TRAINING, MIXTURE])
def test_training_starts_resume_exactly(toy, name: str) -> None:
    labels = toy.labels(9)
    starts = TrainingStarts(name, toy.image_set(), seed=5, device="cpu")
    starts(labels)
    state = copy.deepcopy(starts.state_dict())
    wanted = starts(labels)
    resumed = TrainingStarts(name, toy.image_set(), seed=5, device="cpu")
    first = resumed(labels)
    resumed.load_state_dict(state)
    assert torch.equal(resumed(labels), wanted)
    assert not torch.equal(first, wanted)


def drawn(name: str, labels: torch.Tensor, data, chains=None, seed: int = 0) -> torch.Tensor:
    seeds = noise.image_seeds(len(labels), torch.Generator().manual_seed(seed))
    return make_start(name, labels, seeds, data.image_shape, data, None, chains)


def middling(toy, per_class: int):
    """Images of narrow classes around 1/2, so that no draw is clipped."""
    data = toy.image_set(per_class=per_class)
    return dataclasses.replace(
        data, images=(110 + data.images.float() / 16 + 6 * data.labels[:, None, None, None]).byte()
    )


def test_local_pca_of_all_images_has_their_mean_and_covariance(toy) -> None:
    """With k the size of the class the neighbours of every image are the class: the law is that of class-pca."""
    data, labels = middling(toy, 12), torch.zeros(20_000, dtype=torch.int64)
    starts = drawn("local-pca:k=12:explained_variance=1", labels, data).flatten(1).double()
    members = data.float_images(data.labels == 0).flatten(1).double()
    torch.testing.assert_close(starts.mean(0), members.mean(0), atol=5e-4, rtol=0)
    torch.testing.assert_close(starts.T.cov(), members.T.cov(), atol=1.5e-5, rtol=0)
    # the eleven directions of twelve images, and no other
    outside = torch.linalg.svd(members - members.mean(0)).Vh[11:]
    assert ((starts - members.mean(0)) @ outside.T).abs().max() < 1e-6


def test_local_pca_draws_around_the_neighbours_of_one_image(toy) -> None:
    """Against NumPy: each draw given its image has the mean of the k nearest and lies in their span."""
    data, k = middling(toy, 12), 3
    labels = torch.arange(300) % 3
    seeds = noise.image_seeds(300, torch.Generator().manual_seed(0))
    starts = (
        make_start(f"local-pca:k={k}", labels, seeds, data.image_shape, data, None)
        .flatten(1)
        .double()
        .numpy()
    )
    chosen = (noise.uniform(seeds, 1, (1,))[:, 0].double() * 12).long().numpy()
    residuals = []
    for i, label in enumerate(labels.tolist()):
        members = data.float_images(data.labels == label).flatten(1).double().numpy()
        squares = ((members - members[chosen[i]]) ** 2).sum(1)
        near = members[np.argsort(squares, kind="stable")[:k]]
        shift = starts[i] - near.mean(0)
        basis = np.linalg.svd(near - near.mean(0), full_matrices=False)[2][: k - 1]
        residuals.append(np.abs(shift - basis.T @ (basis @ shift)).max())
    assert max(residuals) < 1e-6
    assert len(set(zip(labels.tolist(), chosen.tolist(), strict=True))) == 36


def test_local_pca_keeps_the_directions_that_explain_the_variance(toy) -> None:
    data, labels = middling(toy, 12), torch.zeros(500, dtype=torch.int64)
    starts = drawn("local-pca:k=12:explained_variance=0.5", labels, data).flatten(1).double()
    members = data.float_images(data.labels == 0).flatten(1).double()
    share = torch.linalg.svdvals(members - members.mean(0)).square().cumsum(0)
    rank = int((share / share[-1] < 0.5).sum()) + 1
    assert int(torch.linalg.matrix_rank(starts - members.mean(0), atol=1e-4)) == rank < 11


def test_a_smaller_class_has_all_its_images_as_neighbours(toy) -> None:
    data, labels = middling(toy, 12), toy.labels(30)
    assert torch.equal(drawn("local-pca", labels, data), drawn("local-pca:k=12", labels, data))


def test_a_mixture_draws_each_start_with_its_weight_from_the_image_s_own_seed(toy) -> None:
    data, labels = toy.image_set(), toy.labels(3000)
    mixed = drawn("data:0.3,uniform:0.7", labels, data)
    alone = {name: drawn(name, labels, data) for name in ("data", "uniform")}
    which = {name: (mixed == images).flatten(1).all(1) for name, images in alone.items()}
    assert (which["data"] ^ which["uniform"]).all()
    # 5 standard deviations of 3000 draws
    assert which["data"].float().mean().item() == pytest.approx(0.3, abs=0.042)
    assert torch.equal(drawn("data,uniform", labels, data), drawn("data:0.5,uniform:0.5", labels, data))


def test_chains_of_training_are_saved_and_drawn(toy, tmp_path) -> None:
    def start(labels: torch.Tensor) -> torch.Tensor:
        # as jem's chains, outside [0, 1] too
        images: torch.Tensor = toy.images(len(labels))
        return 1.5 * images - 0.25

    buffer = ReplayBuffer(start, 12, 3, reinit=0.0)
    file = tmp_path / CHAINS_FILE
    save_chains(file, buffer.state_dict(), ("a", "b", "c"))
    chains = load_chains(file)
    torch.testing.assert_close(
        chains.float_images(), buffer.images.clamp(0, 1), atol=0.5 / 255 + 1e-6, rtol=0
    )
    assert chains.class_names == ("a", "b", "c")
    labels = toy.labels(60)
    starts = drawn("replay-buffer", labels, toy.image_set(), file)
    found = (starts.flatten(1)[:, None] == chains.float_images().flatten(1)[None]).all(2)
    assert (
        torch.equal(chains.labels[found.int().argmax(1)], labels)
        and found.any(1).all()
        and found.any(0).all()
    )
    given = samplers.generate(
        toy.mlp(), labels, "replay-buffer", steps=0, chains=(toy.images(9), toy.labels(9))
    )
    assert ((given.flatten(1)[:, None] - toy.images(9).flatten(1)[None]).abs().amax(2).amin(1) == 0).all()


def test_chains_of_other_weights_than_the_classifier_beside_them_are_named(toy, tmp_path, capsys) -> None:
    file = tmp_path / "classifier.safetensors"
    clf = toy.mlp()
    clf.save(file)
    chains = ReplayBuffer(lambda labels: toy.images(len(labels)), 12, 3, reinit=0.0).state_dict()
    names = ("a", "b", "c")
    for weights, words in (
        (clf.weights_digest(), ""),
        (None, ""),
        (toy.mlp(seed=1).weights_digest(), "other"),
    ):
        save_chains(tmp_path / CHAINS_FILE, chains, names, weights)
        assert len(load_chains(file)) == 12
        printed = capsys.readouterr().err
        assert words in printed and printed.count("\n") == len(words[:1])


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("uniform:0.5,class-pca:0.6", ConfigError, "the weights of .* sum to 1.1; they must sum to 1"),
        ("uniform:0.5,class-pca", ConfigError, "has weights for 1 of 2 starts; give all or none"),
        ("uniform:-1,class-pca:2", ConfigError, "the weight of 'uniform' is -1; weights must be above 0"),
        ("uniform:half,class-pca:0.5", ConfigError, "'half' in .* is neither OPTION=NUMBER nor a weight"),
        ("uniform:nan", ConfigError, "'nan' in .* is neither OPTION=NUMBER nor a weight"),
        ("unifrom:0.5,class-pca:0.5", ConfigError, "unknown start 'unifrom'. Did you mean 'uniform'"),
        ("", ConfigError, "unknown start ''"),
        (
            "local-pca:n=3",
            ConfigError,
            "start 'local-pca': no option 'n'.* Its options: k, explained_variance",
        ),
        ("uniform:std=3", ConfigError, "start 'uniform': no option 'std'. It has none"),
        ("local-pca:k=3.5", ConfigError, "k=3.5; must be a whole number"),
        ("local-pca:k=1", ConfigError, "k=1; must be at least 2"),
        ("local-pca:k=50", DataError, "class 'class 0' has 5 images, but local-pca needs k=50 of each class"),
        (
            "local-pca:explained_variance=2",
            DataError,
            r"explained_variance is 2; give a fraction in \(0, 1\]",
        ),
        ("replay-buffer", ConfigError, "needs the chains of a finished run; pass chains=RUN"),
    ],
)
def test_a_wrong_start_is_one_line(toy, name: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        drawn(name, toy.labels(9), toy.image_set())
    assert "\n" not in str(caught.value)


def test_chains_that_do_not_exist_or_do_not_fit_are_one_line(toy, finished_run, tmp_path) -> None:
    for source in (finished_run, finished_run / "checkpoints" / "best" / "classifier.safetensors"):
        with pytest.raises(
            ConfigError, match=r"needs the chains of training, and .* has none: runs with sampler.buffer_size"
        ):
            load_chains(source)
    with pytest.raises(CheckpointError, match="no such run folder or classifier file"):
        load_chains(tmp_path / "nowhere")
    (tmp_path / CHAINS_FILE).write_bytes(b"none")
    with pytest.raises(CheckpointError, match="not a file of chains, or cut short"):
        load_chains(tmp_path / CHAINS_FILE)
    small = (torch.rand(3, 1, 2, 2), toy.labels(3))
    with pytest.raises(ConfigError, match=r"start 'replay-buffer': returned torch.float32 \[6, 1, 2, 2\]"):
        samplers.generate(toy.mlp(), toy.labels(), "replay-buffer", steps=0, chains=small)
    with pytest.raises(ConfigError, match="has no image of class 2"):
        samplers.generate(toy.mlp(), toy.labels(), "replay-buffer", chains=(toy.images(4), toy.labels(4, 2)))


def test_a_recipe_takes_a_mixture_and_refuses_chains_of_a_finished_run() -> None:
    assert SamplerConfig(start=MIXTURE).start == MIXTURE
    for start, message in (
        ("uniform:0.5,data:0.6", "sum to 1.1"),
        ("uniform:0.5,replay-buffer:0.5", "are chains of a finished run"),
        ("unifrom", "unknown start 'unifrom'. Did you mean 'uniform'"),
    ):
        with pytest.raises(ValidationError, match=message):
            SamplerConfig(start=start)
