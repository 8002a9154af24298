from __future__ import annotations

import numpy as np
import torch

from trilemma.walks import objectives


def test_each_objective_is_its_formula_at_the_images_still_on_the_way(toy) -> None:
    clf, labels = toy.mlp(), toy.labels()
    index = torch.tensor([4, 1])
    images = toy.images()[index]
    f = toy.logits64(clf, images)
    own = labels[index].numpy()
    lse, of_label = np.log(np.exp(f).sum(1)), f[[0, 1], own]
    clean = torch.from_numpy(toy.logits64(clf, toy.images(seed=9))).float()
    p = np.exp(clean[index].double().numpy())
    p /= p.sum(1, keepdims=True)
    wanted = {
        objectives.cross_entropy(clf, labels): lse - of_label,
        objectives.targeted_cross_entropy(clf, labels): of_label - lse,
        objectives.high_energy(clf, labels, 1.5): lse - of_label - 1.5 * lse,
        objectives.joint_energy(clf, labels): -of_label,
        objectives.marginal_energy(clf): -lse,
        objectives.divergence(clf, clean): (p * (np.log(p) - f + lse[:, None])).sum(1),
    }
    for objective, values in wanted.items():
        got, logits = objective(images, index)
        np.testing.assert_allclose(got.detach(), values, atol=1e-5)
        np.testing.assert_allclose(logits.detach(), f, atol=1e-5)


def test_rows_are_not_copied_while_nobody_has_left() -> None:
    everything = torch.arange(3.0)
    assert objectives.subset(everything, torch.arange(3)) is everything
    assert objectives.subset(everything, torch.tensor([2])).tolist() == [2.0]
