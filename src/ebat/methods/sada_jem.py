"""SADA-JEM: a joint energy model whose chains start from class Gaussians (Yang et al. 2023)."""

from __future__ import annotations

from torch import Tensor

from ebat import energies
from ebat.classifier import Classifier
from ebat.data.batch import Batch
from ebat.methods import options
from ebat.methods.base import Method, MethodState, Points, Step, forward_sets, seen
from ebat.methods.inner import chain


class SadaJem(Method):
    """``L = w (mean E(x_data) - mean E(x^)) + mean CE(x, y)``.

    The data term sees un-augmented images, the cross-entropy augmented ones. Its published form updates
    the weights with adaptive SAM (``update.name: sam``).
    """

    Options = options.SadaJem
    views = ("unaugmented",)

    def points(self, clf: Classifier, batch: Batch, state: MethodState) -> Points:
        data = data_view(batch, self.options.data_view)
        chains = chain(clf, state, self.sampler, len(batch.images))
        return Points(batch.images, batch.labels, data=data, **chains)

    def terms(self, clf: Classifier, points: Points) -> Step:
        assert points.generated is not None and points.data is not None
        clean, generated, *data = forward_sets(clf, points.clean, points.generated, *distinct_data(points))
        natural = energies.cross_entropy(clean, points.labels).mean()
        contrast = contrastive(points, data[0] if data else clean, generated)
        return Step(
            self.options.generative * contrast + natural,
            clean=seen(points.clean, clean),
            generated=seen(points.generated, generated),
            metrics={"natural": natural.detach(), "contrastive": contrast.detach()},
            live={"clean": clean},
        )


def data_view(batch: Batch, view: str) -> Tensor:
    """The real images of the contrastive term: ``unaugmented`` ones, as published, or the ``classified`` ones.

    E(x, y) of one class alone says nothing of the others: with chains of E(x, y) and a network that can tell
    the two views apart (cropped photographs have black borders), only ``classified`` trains every class.
    """
    return batch.views.get("unaugmented", batch.images) if view == "unaugmented" else batch.images


def distinct_data(points: Points) -> list[Tensor]:
    """The data view, unless it is the clean batch itself: then one forward serves both terms."""
    return [] if points.data is None or points.data is points.clean else [points.data]


def contrastive(points: Points, data_logits: Tensor, generated_logits: Tensor) -> Tensor:
    """The contrastive term, in the energy that the chains descend.

    ``mean E(x_data) - mean E(x^)`` is maximum likelihood of p(x); with chains of given classes,
    ``mean E(x_data, y) - mean E(x^, y^)`` is that of p(x, y), and keeps a chain in its class.
    """
    if points.generated_labels is None:
        real, generated = energies.marginal_energy(data_logits), energies.marginal_energy(generated_logits)
    else:
        real = energies.joint_energy(data_logits, points.labels)
        generated = energies.joint_energy(generated_logits, points.generated_labels)
    return real.mean() - generated.mean()
