"""Training steps in the form of the papers' released programs: the baselines of ``throughput.py``.

Each function is one step on a batch: the same mathematics as the method of that name, written from its equations in the
plain way of a release, with what that costs:

- the attack of ``eb-jdat`` takes the images two at a time, computes the clean logits anew at every step, and
  accumulates weight gradients that nothing uses;
- ``trades`` computes the clean logits anew at every step of its attack;
- chains live in host memory, and a fresh start is drawn for every image of the batch, one image after the other,
  although one in twenty is used; class Gaussians are drawn from covariance matrices;
- the proximal sampler has the inner loop over the first layer, and accumulates weight gradients as well;
- every term of the loss has a forward pass of its own.

``pgd-at``, ``jeat`` and ``dat`` have nothing of the first kind: they show what a plain loop over the same passes costs.
Random numbers come from :class:`Draws`, so that ``throughput.py`` can give a step those of the library and compare the
weights after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal
from torch.nn import functional as F

from trilemma.data.image_set import ImageSet
from trilemma.data.outlier_images import OutsideImages
from trilemma.methods.base import Method
from trilemma.networks.small_cnn import SmallCNN
from trilemma.units import parse_fraction

INNER_STEPS = 5
MICRO_BATCH = 2


class Draws:
    """The random numbers of a step, from torch's global generator.

    Args:
        buffer: chains in host memory, ``[M, C, H, W]``; ``None`` for a method without chains.
        classes: the class Gaussians that fresh chains start from; ``None`` for uniform noise.
        reinit: probability that a chain is restarted.
        outside: starting images of ``dat``.
    """

    def __init__(
        self,
        buffer: Tensor | None = None,
        classes: list[MultivariateNormal] | None = None,
        reinit: float = 0.05,
        outside: OutsideImages | None = None,
    ) -> None:
        self.buffer, self.classes, self.reinit, self.outside = buffer, classes, reinit, outside
        self.places = torch.empty(0, dtype=torch.int64)

    def uniform(self, like: Tensor) -> Tensor:
        """U(0, 1) numbers."""
        return torch.rand_like(like)

    def normal(self, like: Tensor) -> Tensor:
        """N(0, 1) numbers."""
        return torch.randn_like(like)

    def chains(self, count: int) -> Tensor:
        """Chains of the buffer, some of them restarted, ``[count, C, H, W]``."""
        assert self.buffer is not None
        self.places = torch.randint(len(self.buffer), (count,))
        fresh = torch.zeros(count, *self.buffer.shape[1:])
        for i in range(count):
            fresh[i] = self.fresh(self.buffer.shape[1:])
        restarted = (torch.rand(count) < self.reinit).float()[:, None, None, None]
        return restarted * fresh + (1 - restarted) * self.buffer[self.places]

    def fresh(self, shape: torch.Size) -> Tensor:
        """The start of one chain, ``[C, H, W]``."""
        if self.classes is None:
            return torch.rand(shape)
        label = int(torch.randint(len(self.classes), (1,)))
        return self.classes[label].sample().view(shape).clamp(0, 1)

    def store(self, images: Tensor) -> None:
        """Writes chains back."""
        assert self.buffer is not None
        self.buffer[self.places] = images.detach().cpu()

    def outside_images(self, count: int) -> Tensor:
        """Images from outside the training distribution."""
        assert self.outside is not None
        return self.outside(torch.randint(2**62, (count,)))


def class_gaussians(data: ImageSet, jitter: float = 2.5e-5) -> list[MultivariateNormal]:
    """N(mu, S + jitter I) of the flat images of each class."""
    classes = []
    for label in range(data.num_classes):
        index = (data.labels == label).nonzero().squeeze(1)
        # In float64, as the covariance of fewer images than pixels is singular without the jitter.
        images = data.float_images(index).flatten(1).double()
        centred = images - images.mean(0)
        covariance = centred.t() @ centred / len(images) + jitter * torch.eye(images.shape[1]).double()
        factor = torch.linalg.cholesky(covariance).float()
        classes.append(MultivariateNormal(images.mean(0).float(), scale_tril=factor, validate_args=False))
    return classes


def released_form(network: nn.Module) -> nn.Module:
    """The network as a release calls it, with the same weights: every convolution is PyTorch's own."""
    if not isinstance(network, SmallCNN):
        return network
    first, *others = network.body
    assert isinstance(first, nn.Conv2d)
    plain = nn.Conv2d(first.in_channels, first.out_channels, kernel_size=4, stride=2, padding=1)
    plain.weight, plain.bias = first.weight, first.bias
    return nn.Sequential(plain, *others, network.classifier)


@dataclass
class Release:
    """What a step needs beside its batch.

    Attributes:
        method: the library's method, for the settings of attack, sampler and loss.
        network: from images in [-1, 1] to logits.
        optimiser: of its weights.
        draws: source of random numbers.
        rho: radius of adaptive SAM; ``None`` for plain updates.
    """

    method: Method
    network: nn.Module
    optimiser: torch.optim.Optimizer
    draws: Draws
    rho: float | None = None

    def logits(self, images: Tensor) -> Tensor:
        # The logits of a classifier are float32; no conversion but in the comparison in float64.
        return self.network(2 * images - 1).float()  # type: ignore[no-any-return]

    def energy(self, images: Tensor) -> Tensor:
        return -self.logits(images).logsumexp(1)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        self.network.eval()
        yield
        self.network.train()

    def descend(self, loss: Callable[[], Tensor]) -> None:
        """A weight step along the gradient of the loss, with adaptive SAM at the perturbed weights."""
        self.optimiser.zero_grad()
        loss().backward()
        if self.rho is None:
            self.optimiser.step()
            return
        pairs = [(w, w.grad) for w in self.network.parameters() if w.grad is not None]
        weights = [w for w, _ in pairs]
        with torch.no_grad():
            norm = torch.stack([(w.abs() * gradient).norm() for w, gradient in pairs]).norm() + 1e-12
            steps = [w.square() * gradient * (self.rho / norm) for w, gradient in pairs]
            for weight, step in zip(weights, steps, strict=True):
                weight.add_(step)
        self.optimiser.zero_grad()
        loss().backward()
        with torch.no_grad():
            for weight, step in zip(weights, steps, strict=True):
                weight.sub_(step)
        self.optimiser.step()


# --- Inner loops ----------------------------------------------------------------------------------------------


def attack(
    release: Release,
    images: Tensor,
    start: Tensor,
    objective: Callable[[Tensor], Tensor],
    weight_gradients: bool = False,
    project: bool = True,
) -> Tensor:
    """Steps of steepest ascent of ``objective``, a scalar of the adversarial images, in eval mode."""
    method = release.method
    radius, step = method.threat.epsilon, float(parse_fraction(method.attack.step_size or 0))
    adversarial = start
    with release.evaluating():
        for _ in range(method.attack.steps or 0):
            adversarial = adversarial.detach().requires_grad_()
            value = objective(adversarial)
            if weight_gradients:
                value.backward()
                assert adversarial.grad is not None
                gradient = adversarial.grad
            else:
                (gradient,) = torch.autograd.grad(value, [adversarial])
            if method.threat.norm == "linf":
                moved = adversarial.detach() + step * gradient.sign()
                delta = (moved - images).clamp(-radius, radius)
            else:
                length = gradient.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)
                delta = adversarial.detach() + step * gradient / length - images
                length = delta.flatten(1).norm(dim=1).clamp_min(radius).view(-1, 1, 1, 1)
                delta = delta * radius / length
            adversarial = (images + delta if project else moved).clamp(0, 1)
    return adversarial.detach()


def uniform_start(release: Release, images: Tensor, scale: float = 1.0) -> Tensor:
    radius = scale * release.method.threat.epsilon
    return (images + (2 * release.draws.uniform(images) - 1) * radius).clamp(0, 1)


def langevin_chains(release: Release, count: int) -> Tensor:
    """Langevin steps down E(x) in eval mode, not clipped."""
    sampler, draws = release.method.sampler, release.draws
    samples = draws.chains(count)
    with release.evaluating():
        for _ in range(sampler.steps or 0):
            samples = samples.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(release.energy(samples).sum(), [samples])
            noise = draws.normal(samples)
            samples = (
                samples.detach() - (sampler.step_size or 0) * gradient + (sampler.noise_std or 0) * noise
            )
    draws.store(samples)
    return samples.detach()


def proximal_chains(release: Release, count: int) -> Tensor:
    """Outer steps of a gradient by the output of the first layer, each with five inner steps through that layer."""
    sampler = release.method.sampler
    first = next(layer for layer in release.network.modules() if isinstance(layer, nn.Conv2d))
    samples, outputs = release.draws.chains(count), []
    hook = first.register_forward_hook(lambda layer, inputs, output: outputs.append(output))
    size, clamp = (sampler.step_size or 0) / INNER_STEPS, sampler.clamp or 0
    for _ in range(sampler.steps or 0):
        outputs.clear()
        energy = release.energy(samples).sum()
        (output,) = outputs
        output.retain_grad()
        energy.backward()
        adjoint = output.grad.detach()
        for _ in range(INNER_STEPS):
            moving = samples.detach().requires_grad_()
            hamiltonian = (first(2 * moving - 1) * adjoint).sum()
            (gradient,) = torch.autograd.grad(hamiltonian, [moving])
            samples = (samples - size * gradient.clamp(-clamp, clamp)).clamp(0, 1)
    hook.remove()
    release.draws.store(samples)
    return samples.detach()


# --- Steps: images [N, C, H, W] in [0, 1], labels [N], and the un-augmented images -----------------------------


def pgd_at(release: Release, images: Tensor, labels: Tensor, data: Tensor) -> None:
    start = uniform_start(release, images)
    adversarial = attack(release, images, start, lambda x: F.cross_entropy(release.logits(x), labels))
    release.descend(lambda: F.cross_entropy(release.logits(adversarial), labels))


def trades(release: Release, images: Tensor, labels: Tensor, data: Tensor) -> None:
    def divergence(adversarial: Tensor, reduction: str) -> Tensor:
        clean = F.softmax(release.logits(images), dim=1)
        return F.kl_div(F.log_softmax(release.logits(adversarial), dim=1), clean, reduction=reduction)

    start = images + 0.001 * release.draws.normal(images)
    adversarial = attack(release, images, start, lambda x: divergence(x, "sum"))
    beta = release.method.options.beta
    release.descend(
        lambda: F.cross_entropy(release.logits(images), labels) + beta * divergence(adversarial, "batchmean")
    )


def jem(release: Release, images: Tensor, labels: Tensor, data: Tensor) -> None:
    joint_energy_model(release, images, labels, images, langevin_chains)


def jem_plus_plus(release: Release, images: Tensor, labels: Tensor, data: Tensor) -> None:
    joint_energy_model(release, images, labels, images, proximal_chains)


def sada_jem(release: Release, images: Tensor, labels: Tensor, data: Tensor) -> None:
    joint_energy_model(release, images, labels, data, proximal_chains)


def joint_energy_model(
    release: Release, images: Tensor, labels: Tensor, data: Tensor, chains: Callable[[Release, int], Tensor]
) -> None:
    samples = chains(release, len(images))

    def loss() -> Tensor:
        contrastive = release.energy(data).mean() - release.energy(samples).mean()
        return contrastive + F.cross_entropy(release.logits(images), labels)

    release.descend(loss)


def jeat(release: Release, images: Tensor, labels: Tensor, data: Tensor) -> None:
    def joint_energy(adversarial: Tensor) -> Tensor:
        return -release.logits(adversarial).gather(1, labels[:, None]).sum()

    adversarial = attack(release, images, uniform_start(release, images), joint_energy)
    samples = langevin_chains(release, len(images))

    def loss() -> Tensor:
        contrastive = release.energy(adversarial).mean() - release.energy(samples).mean()
        return F.cross_entropy(release.logits(adversarial), labels) + contrastive

    release.descend(loss)


def eb_jdat(release: Release, images: Tensor, labels: Tensor, data: Tensor) -> None:
    """Both forms of EB-JDAT, by the options of the method; backbone ``sada-jem``."""
    option, draws = release.method.options, release.draws
    start = uniform_start(release, images, option.start_scale)
    parts = []
    for first in range(0, len(images), MICRO_BATCH):
        here = slice(first, first + MICRO_BATCH)

        def objective(adversarial: Tensor, here: slice = here) -> Tensor:
            logits = release.logits(adversarial)
            if option.inner == "ce":
                return F.cross_entropy(logits, labels[here])
            angle = 1 - F.cosine_similarity(release.logits(images[here]), logits, dim=1)
            return (logits.gather(1, labels[here, None]).squeeze(1) + 2 * angle).sum()

        parts.append(attack(release, images[here], start[here], objective, True, option.project))
    adversarial = torch.cat(parts)
    samples = proximal_chains(release, len(images))
    if option.data_noise:
        data = data + option.data_noise * draws.normal(data)

    def loss() -> Tensor:
        contrastive = release.energy(data).mean() - release.energy(samples).mean()
        if option.alignment == "der":
            clean, moved = release.logits(images), release.logits(adversarial)
            marginal = moved.logsumexp(1) - clean.logsumexp(1)
            joint = (moved - clean).gather(1, labels[:, None]).squeeze(1)
            alignment = ((marginal**2 + joint**2 + 1e-12).sqrt() - option.margin).clamp_min(0).mean()
        else:
            alignment = release.energy(data).mean() - release.energy(adversarial).mean()
        natural = F.cross_entropy(release.logits(images), labels)
        robust = F.cross_entropy(release.logits(adversarial), labels)
        total: Tensor = (
            option.generative * contrastive
            + option.align * alignment
            + option.clean * natural
            + option.adversarial * robust
        )
        return total

    release.descend(loss)


def dat(release: Release, images: Tensor, labels: Tensor, data: Tensor) -> None:
    sampler = release.method.sampler
    adversarial = attack(release, images, images, lambda x: F.cross_entropy(release.logits(x), labels))
    negative = release.draws.outside_images(len(images)).to(images)
    with release.evaluating():
        for _ in range(sampler.steps or 0):
            negative = negative.detach().requires_grad_()
            value = release.logits(negative).gather(1, labels[:, None]).sum()
            (gradient,) = torch.autograd.grad(value, [negative])
            length = gradient.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)
            negative = (negative.detach() + (sampler.step_size or 0) * gradient / length).clamp(0, 1)
        negative = negative.detach()

        def loss() -> Tensor:
            real, outside = -release.energy(images), -release.energy(negative)
            real_loss = F.binary_cross_entropy_with_logits(real, torch.ones_like(real))
            outside_loss = F.binary_cross_entropy_with_logits(outside, torch.zeros_like(outside))
            robust = F.cross_entropy(release.logits(adversarial), labels)
            return robust + 0.5 * real_loss + 0.5 * outside_loss

        release.descend(loss)


STEPS: dict[str, Callable[[Release, Tensor, Tensor, Tensor], None]] = {
    "pgd-at": pgd_at, "trades": trades, "jem": jem, "jem++": jem_plus_plus, "sada-jem": sada_jem, "jeat": jeat,
    "eb-jdat": eb_jdat, "eb-jdat-release": eb_jdat, "dat": dat,
}  # fmt: skip
