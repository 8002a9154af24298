"""Figures of chains: each image and energy at its step, each chain in the colour of where it ends."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

from trilemma.errors import ConfigError
from trilemma.figures import DARK, LIGHT, draw_chain_energies, draw_neighbours, draw_trajectories, save_figure

STEPS = [0, 5, 20]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_chain_is_a_row_and_a_step_a_column(channels: int) -> None:
    # The grey level of the image of chain n at step t says which it is.
    levels = torch.arange(6).view(3, 2) / 5
    trajectories = levels.view(3, 2, 1, 1, 1).expand(3, 2, channels, 4, 4)
    (axes,) = draw_trajectories(trajectories, STEPS, torch.tensor([1, 0]), ["cat", "dog"], DARK).axes
    shown = np.asarray(axes.images[0].get_array())
    for chain in range(2):
        for step in range(3):
            part = shown[chain * 5 : chain * 5 + 4, step * 5 : step * 5 + 4]
            np.testing.assert_allclose(part, levels[step, chain].item(), atol=1e-6)
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0", "5", "20"]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["dog", "cat"]


def test_at_most_twenty_chains_are_drawn() -> None:
    (axes,) = draw_trajectories(torch.rand(1, 30, 1, 4, 4), [0], torch.zeros(30).long(), ["a"]).axes
    assert len(axes.get_yticks()) == 20


def test_energies_are_distances_from_the_class_in_its_standard_deviations() -> None:
    joint = torch.tensor([[10.0, 0.0], [4.0, -3.0], [2.0, -9.0]])
    labels, means, stds = torch.tensor([1, 0]), torch.tensor([-1.0, 3.0]), torch.tensor([2.0, 0.5])
    (axes,) = draw_chain_energies(joint, STEPS, labels, means, stds, LIGHT).axes
    lines = {to_hex(line.get_color()): line for line in axes.lines[:2]}
    # Chain 0 ends at (2 - 3) / 0.5 = -2, at the edge of the band; chain 1 at (-9 + 1) / 2 = -4, outside.
    inside, outside = lines[LIGHT.sets["generated"]], lines[LIGHT.alarm]
    np.testing.assert_allclose(np.asarray(inside.get_ydata()), [14.0, 2.0, -2.0])
    np.testing.assert_allclose(np.asarray(outside.get_ydata()), [0.5, -1.0, -4.0])
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == [
        "real images", "1 chains", "1 chains that end outside"
    ]  # fmt: skip


def test_a_step_too_many_is_one_line() -> None:
    with pytest.raises(ConfigError, match="draw_trajectories: 2 steps for 3 images per chain; give one each"):
        draw_trajectories(torch.rand(3, 1, 1, 4, 4), [0, 1], torch.tensor([0]), ["a"])
    with pytest.raises(ConfigError, match="draw_chain_energies: 1 steps for 3 energies per chain"):
        draw_chain_energies(torch.rand(3, 1), [0], torch.tensor([0]), torch.zeros(1), torch.ones(1))


def test_a_sample_stands_beside_its_neighbour(tmp_path: Path) -> None:
    samples, neighbours = torch.zeros(2, 1, 4, 4), torch.ones(2, 1, 4, 4)
    left, right = draw_neighbours(samples, neighbours, torch.tensor([0, 1]), ["a", "b"], LIGHT).axes
    assert (left.get_title(loc="left"), right.get_title(loc="left")) == ("sample", "nearest image")
    assert np.asarray(left.images[0].get_array())[:4, :4].max() == 0
    assert np.asarray(right.images[0].get_array())[:4, :4].min() == 1
    # A file name may be text.
    save_figure(
        f"{tmp_path}/near.png",
        lambda theme: draw_neighbours(samples, neighbours, torch.tensor([0, 1]), "ab", theme),
    )
    assert (tmp_path / "near-dark.png").is_file()
