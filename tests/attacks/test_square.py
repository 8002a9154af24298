"""Square Attack: its windows, its bumps, and what must hold after every query."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.reference_models import reference, verdicts

from trilemma import attacks, noise
from trilemma.attacks.ensemble.oracle import Oracle
from trilemma.attacks.margins import is_wrong, margin
from trilemma.attacks.square import CHUNK, _Points, window_side
from trilemma.attacks.square import search as square_search
from trilemma.attacks.square_moves import Move, Recolour, bump, bumps, corners, nonempty, stripes
from trilemma.classifier.contexts import inner_loop
from trilemma.errors import ConfigError, ImageError
from trilemma.threat import NORMS, Threat

few = settings(
    max_examples=12,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
SHAPE = (3, 9, 11)
RADIUS = {"linf": 0.05, "l2": 0.4}


def seeds(count: int = 6, seed: int = 0) -> torch.Tensor:
    return noise.image_seeds(count, torch.Generator().manual_seed(seed))


def search(clf, images, labels, threat, own, queries: int = 60) -> torch.Tensor:
    with inner_loop(clf):
        found: torch.Tensor = square_search(Oracle(clf), images, labels, threat, own, queries=queries)
    return found


def change(kind, current, clean, draws, side: int, epsilon: float) -> torch.Tensor:
    """``current`` after the second of two prepared moves, proposed in one batch with the first."""
    rows = torch.arange(len(current))
    moves = kind(clean, torch.stack([draws.flip(0), draws], 1), side, epsilon)
    image, step = rows.repeat_interleave(2), torch.tensor([0, 1]).repeat(len(rows))
    before = current.clone()
    candidates = moves.candidates(current, image, step)
    images: torch.Tensor = current.clone()
    candidates.write(images, 2 * rows + 1)
    assert torch.equal(current, before)
    return images


class Recorder(Oracle):
    """Keeps every image it is asked about."""

    def __init__(self, clf) -> None:
        super().__init__(clf)
        self.asked: list[torch.Tensor] = []

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        self.asked.append(images.clone())
        return super().logits(images)


@few
@given(
    norm=st.sampled_from(NORMS),
    radius=st.floats(0.003, 1.0),
    seed=st.integers(0, 999),
    channels=st.sampled_from([1, 3]),
    extent=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    classes=st.integers(2, 4),
)
def test_it_stays_inside_ball_and_box(toy, norm, radius, seed, channels, extent, classes) -> None:
    shape = (channels, *extent)
    clf, threat = toy.mlp(classes, shape), Threat(norm, radius)
    images = toy.images(shape=shape, seed=seed).round(decimals=1)
    labels = toy.labels(classes=classes)
    generator = torch.Generator().manual_seed(seed)
    starred = attacks.square(clf, images, labels, threat, queries=30, generator=generator)
    assert threat.contains(starred, images).all()
    assert starred.shape == images.shape and starred.dtype == images.dtype and not starred.requires_grad
    wrong = clf(images).argmax(1) != labels
    assert torch.equal(starred[wrong], images[wrong])


@pytest.mark.parametrize("size", [8, 9, 12, 16, 28, 32, 33, 48, 64])
def test_windows_follow_the_schedule_and_leave_room(size: int) -> None:
    """0.8 of the area, halved after 10, 50, 200, 500, 1000, 2000 and 4000 changes, whatever the number of queries."""
    halvings = {1: 0, 10: 0, 11: 1, 50: 1, 51: 2, 200: 2, 201: 3, 500: 3, 501: 4, 1000: 4, 1001: 5}
    halvings |= {2000: 5, 2001: 6, 4000: 6, 4001: 7, 9999: 7}
    for query, times in halvings.items():
        ideal = (0.8 / 2**times * size**2) ** 0.5
        for at_least in (1, 3):
            side = window_side(query, size, size, at_least)
            assert at_least <= side <= size - 1
            assert side in (at_least, size - 1) or abs(side - ideal) <= 0.5
            draws = torch.tensor([[0.5 * 2.0**-23] * 2, [1 - 2.0**-24] * 2])  # the ends of the noise
            found = corners(draws, side, size, size + 5)
            assert [edge.tolist() for edge in found] == [[0, size - side], [0, size + 5 - side]]


def test_a_change_in_linf_is_one_square_of_one_sign_per_channel_and_never_none() -> None:
    clean = torch.rand(400, *SHAPE, generator=torch.Generator().manual_seed(0)) * 0.4 + 0.3
    own = seeds(400)
    current = stripes(clean, own, 0.1)
    assert torch.equal((current - clean).round(decimals=5).unique(), torch.tensor([-0.1, 0.1]))
    assert ((current - clean).std(2) < 1e-6).all()  # along a column
    for side in (1, 2, 8):
        for stream in range(3):  # the same window again and again: what is there must not be drawn again
            draws = noise.uniform(own, stream, (8,))
            draws[:, :2] = noise.uniform(own, 9, (2,))
            changed = change(Recolour, current, clean, draws, side, 0.1)
            row, column = corners(draws[:, :2], side, *SHAPE[1:])
            signs = (changed - clean).div(0.1).round()
            assert ((changed - clean).abs() - 0.1).abs().max() < 1e-6
            differs = changed != current
            assert differs.flatten(1).any(1).all()
            for i in range(0, 400, 37):
                inside = torch.zeros(SHAPE[1:], dtype=torch.bool)
                inside[row[i] : row[i] + side, column[i] : column[i] + side] = True
                assert not differs[i][:, ~inside].any()
                assert (signs[i][:, inside].std(1, correction=0) == 0).all()
            current = changed


def test_what_is_drawn_again_is_uniform_over_the_other_patterns() -> None:
    draws = (torch.arange(7000) + 0.5) / 7000
    numbers = ((1 - nonempty(draws, 3)) / 2 @ torch.tensor([1.0, 2.0, 4.0])).long()
    assert torch.bincount(numbers, minlength=8).tolist() == [0] + [1000] * 7


@pytest.mark.parametrize("side", [1, 2, 3, 4, 5, 8, 11])
def test_the_bump_is_equation_2(side: int) -> None:
    def hill(width: int) -> np.ndarray:
        n = side // 2
        heights = np.zeros((side, width))
        for r in range(1, side + 1):
            for s in range(1, width + 1):
                m = n - max(abs(r - side // 2 - 1), abs(s - width // 2 - 1))
                heights[r - 1, s - 1] = sum(1 / (n + 1 - k) ** 2 for k in range(m + 1))
        return heights

    eta = np.concatenate([hill(side // 2), -hill(side - side // 2)], axis=1)
    np.testing.assert_allclose(bump(side), eta / np.linalg.norm(eta), rtol=1e-6)


def test_a_change_in_l2_is_algorithm_3() -> None:
    """Against the algorithm written out for one image in float64; windows that overlap are among the draws."""
    generator = torch.Generator().manual_seed(3)
    clean = torch.rand(60, *SHAPE, generator=generator)
    current = (clean + 0.1 * torch.randn(clean.shape, generator=generator)).clamp(0, 1)
    draws, epsilon, side = torch.rand(60, 8, generator=generator), 4.0, 5
    changed = change(Move, current, clean, draws, side, epsilon)
    places = [corners(pair, side, *SHAPE[1:]) for pair in (draws[:, :2], draws[:, 2:4])]
    hill = bump(side).double().numpy()
    for i in range(60):
        nu = (current[i].double() - clean[i].double()).numpy()
        (r1, s1), (r2, s2) = ((int(row[i]), int(column[i])) for row, column in places)
        one = np.s_[r1 : r1 + side, s1 : s1 + side]
        two = np.s_[r2 : r2 + side, s2 : s2 + side]
        unused = epsilon**2 - (nu**2).sum()
        union = np.zeros(SHAPE[1:], dtype=bool)
        union[one] = union[two] = True
        for c in range(3):
            rho = 1 if draws[i, 5 + c] < 0.5 else -1
            eta = hill if draws[i, 4] < 0.5 else hill.T
            temporary = rho * eta + nu[c][one] / np.linalg.norm(nu[c][one])
            available = np.sqrt((nu[c][union] ** 2).sum() + unused / 3)
            nu[c][two] = 0.0
            nu[c][one] = temporary / np.linalg.norm(temporary) * available
        assert np.linalg.norm(nu) == pytest.approx(epsilon, rel=1e-6)
        wanted = np.clip(clean[i].double().numpy() + nu, 0, 1)
        np.testing.assert_allclose(changed[i].double().numpy(), wanted, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 11), (2, 5, 4), (1, 1, 1), (1, 2, 3), (3, 32, 32)])
def test_in_l2_the_perturbation_is_as_long_as_the_radius(shape: tuple[int, int, int]) -> None:
    """Away from the box, where nothing is cut off: at the start and after every change."""
    clean, own = torch.full((5, *shape), 0.5), seeds(5)
    epsilon = 0.3
    current = bumps(clean, own, epsilon)
    for query in range(1, 80):
        torch.testing.assert_close(
            (current - clean).flatten(1).norm(dim=1), torch.full((5,), epsilon), rtol=1e-4, atol=0
        )
        side = window_side(query, *shape[1:], at_least=3)
        draws = noise.uniform(own, query, (5 + shape[0],))
        current = change(Move, current, clean, draws, side, epsilon)


def test_a_bump_meeting_its_reverse_keeps_the_mass() -> None:
    clean = torch.full((1, 1, 9, 9), 0.5)
    draws = torch.tensor([[0.2, 0.2, 0.9, 0.9, 0.1, 0.1]])
    current = change(Move, clean.clone(), clean, draws, 3, 0.3)
    turned = change(Move, current, clean, 1 - (1 - draws) * torch.tensor([1, 1, 1, 1, 1, 0.2]), 3, 0.3)
    torch.testing.assert_close(turned - clean, clean - current, atol=1e-5, rtol=0)


@pytest.mark.parametrize("norm", NORMS)
def test_the_margin_never_rises_and_every_query_is_in_the_ball(toy, norm: str) -> None:
    clf, images, threat = toy.mlp(shape=SHAPE), toy.images(20, SHAPE), Threat(norm, RADIUS[norm] / 8)
    labels, own = clf(images).argmax(1), seeds(20)
    before = torch.full((20,), torch.inf)
    for queries in (1, 2, 10, 40, 120):
        logits = clf(search(clf, images, labels, threat, own, queries))
        margins, broken = -margin(logits, labels), is_wrong(logits, labels)
        assert (margins <= before + 1e-5).all()
        before = margins
    assert not broken.all()  # the radius leaves something to test
    with inner_loop(clf):
        oracle = Recorder(clf)
        square_search(oracle, images[:1], labels[:1], threat, own[:1], queries=40)
    # Several candidates of the image share a pass; those behind an accepted one are evaluated again.
    assert len(oracle.asked) < 40 <= oracle.forwards < 120 and oracle.backwards == 0
    assert all(threat.contains(asked, images[:1]).all() for asked in oracle.asked)


@pytest.mark.parametrize("norm", NORMS)
def test_an_image_does_not_depend_on_its_batch(toy, norm: str) -> None:
    clf, images, threat = toy.mlp(shape=SHAPE), toy.images(12, SHAPE), Threat(norm, RADIUS[norm])
    labels, own = clf(images).argmax(1), seeds(12)
    whole = search(clf, images, labels, threat, own)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    shuffled = search(clf, images[order], labels[order], threat, own[order])
    torch.testing.assert_close(shuffled, whole[order], atol=1e-6, rtol=0)
    parts = [search(clf, images[i::5], labels[i::5], threat, own[i::5]) for i in range(5)]
    for i, part in enumerate(parts):
        torch.testing.assert_close(part, whole[i::5], atol=1e-6, rtol=0)
    layouts = {
        "channels last": images.contiguous(memory_format=torch.channels_last),
        "columns first": images.transpose(2, 3).contiguous().transpose(2, 3),
        "channels outermost": images.transpose(0, 1).contiguous().transpose(0, 1),
        "every second": images.repeat_interleave(2, 3)[..., ::2],
    }
    for layout in layouts.values():
        assert torch.equal(layout, images)
        torch.testing.assert_close(search(clf, layout, labels, threat, own), whole, atol=1e-6, rtol=0)
    double = search(clf.double(), images.double(), labels, threat, own)
    assert double.dtype == torch.float64
    assert (
        (double - whole).abs().amax((1, 2, 3)) < 1e-5
    ).float().mean() > 0.8  # a tie may be decided otherwise


def test_images_that_are_broken_leave_at_once(toy) -> None:
    clf, images = toy.mlp(shape=SHAPE), toy.images(12, SHAPE)
    labels = clf(images).argmax(1)
    with inner_loop(clf):
        oracle = Oracle(clf)
        square_search(oracle, images, labels, Threat("linf", 1.0), seeds(12), queries=500)
        assert oracle.forwards < 12 * 30
        empty = square_search(oracle, images[:0], labels[:0], Threat(), seeds(0), queries=3)
    assert empty.shape == (0, *SHAPE)


def test_what_belongs_to_an_image_stays_together() -> None:
    rows = torch.arange(4)
    points = _Points(rows, rows * 2, rows * 3, rows * 4, rows * 5, rows * 6)
    points.select(torch.tensor([1, 3]))
    assert [getattr(points, part.name).tolist() for part in fields(points)] == [
        [k, 3 * k] for k in range(1, 7)
    ]


def test_what_it_refuses(toy) -> None:
    clf, images, labels = toy.mlp(), toy.images(), toy.labels()
    with pytest.raises(ConfigError, match="queries=0"):
        attacks.square(clf, images, labels, Threat(), queries=0)
    with pytest.raises(ImageError, match="labels"):
        attacks.square(clf, images, labels[:2], Threat())
    with pytest.raises(ImageError, match="divide by 255"):
        attacks.square(clf, images * 255, labels, Threat())


@pytest.mark.parametrize("name", ["mnist_wk_small_linf03", "cifar10_wk_small_l2_36px"])
def test_it_breaks_no_image_that_the_record_says_stands(name: str) -> None:
    """And some of those it says are broken."""
    clf, images, labels, threat = reference(name, 30)
    robust = verdicts(name)["robust"][:30]
    starred = attacks.square(clf, images, labels, threat, 150, torch.Generator().manual_seed(0))
    right = clf(starred).argmax(1) == labels
    assert (right[robust]).all()
    assert name.startswith("cifar10") or right.sum() < (clf(images).argmax(1) == labels).sum()


class Constant(Oracle):
    """A network that no perturbation moves."""

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        self.passes.add(forwards=len(images))
        return torch.tensor([[1.0, 0.0]]).expand(len(images), 2)


def test_a_rejected_candidate_is_not_evaluated_again(toy) -> None:
    """3000 queries on 8x8 grey images have windows of one pixel in most: 64 places, at two signs, per prepared part."""
    images, labels = toy.images(3, (1, 8, 8)), torch.zeros(3, dtype=torch.int64)
    oracle = Constant(toy.mlp(2, (1, 8, 8)))
    found = square_search(oracle, images, labels, Threat("linf", 0.1), seeds(3), queries=3000)
    assert oracle.forwards < 3 * 1100
    torch.testing.assert_close(found, stripes(images, noise.derive(seeds(3), 0), 0.1), atol=1e-6, rtol=0)


def one_by_one(clf, clean, labels, threat, own, queries: int) -> torch.Tensor:
    """The search with one candidate of one image per pass, and no candidate left out."""
    current = (stripes if threat.norm == "linf" else bumps)(clean, noise.derive(own, 0), threat.epsilon)
    lowest = -margin(clf(current), labels)
    for query in range(1, queries):
        side = window_side(query, clean.shape[2], clean.shape[3], 1 if threat.norm == "linf" else 3)
        first = (query - 1) // CHUNK * CHUNK + 1
        draws = noise.uniform(own, first, (CHUNK, 5 + clean.shape[1]))[:, query - first]
        moved = change(
            Recolour if threat.norm == "linf" else Move, current, clean, draws, side, threat.epsilon
        )
        margins = -margin(clf(moved), labels)
        # A broken image has left.
        better = (margins < lowest) & (lowest > 0)
        current = torch.where(better[:, None, None, None], moved, current)
        lowest = torch.where(better, margins, lowest)
    return current


@pytest.mark.parametrize("norm", NORMS)
def test_it_ends_where_the_search_by_single_candidates_ends(toy, norm: str) -> None:
    clf, images = toy.mlp(shape=(1, 8, 8)), toy.images(5, (1, 8, 8))
    labels, threat = clf(images).argmax(1), Threat(norm, RADIUS[norm] / 8)
    found = search(clf, images, labels, threat, seeds(5), queries=260)
    with torch.no_grad():
        expected = one_by_one(clf, images, labels, threat, seeds(5), 260)
    torch.testing.assert_close(found, threat.project(expected, images), atol=1e-5, rtol=0)


class Falling(Constant):
    """Logits that fall by the least float32 difference from pass to pass."""

    passes_so_far = 0

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        self.passes_so_far += 1
        return torch.tensor([[8 - self.passes_so_far * 2.0**-21, 0.0]]).expand(len(images), 2)


def test_a_margin_that_falls_by_rounding_only_is_no_better_one(toy) -> None:
    images, labels = toy.images(2, (1, 8, 8)), torch.zeros(2, dtype=torch.int64)
    found = square_search(
        Falling(toy.mlp(2, (1, 8, 8))), images, labels, Threat("linf", 0.1), seeds(2), queries=5
    )
    start = stripes(images, noise.derive(seeds(2), 0), 0.1)
    torch.testing.assert_close(found, start, atol=1e-6, rtol=0)
