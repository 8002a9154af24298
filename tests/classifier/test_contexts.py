from __future__ import annotations

import pytest
import torch
from torch import nn

from trilemma import attacks
from trilemma.classifier.contexts import (
    Mode,
    autocast_off,
    batch_norm_frozen,
    batch_norm_trains,
    inner_loop,
    reestimate_batch_norm,
    running_statistics_kept,
)
from trilemma.errors import ImageError
from trilemma.threat import Threat


def everything(clf):
    """Modes of every submodule, gradient flags, and copies of buffers, weights and gradients."""
    return (
        [module.training for module in clf.modules()],
        [(p.requires_grad, p.grad is None) for p in clf.parameters()],
        [value.clone() for value in (*clf.buffers(), *clf.parameters())],
    )


def assert_untouched(clf, before) -> None:
    modes, flags, values = before
    assert [module.training for module in clf.modules()] == modes
    assert [(p.requires_grad, p.grad is None) for p in clf.parameters()] == flags
    assert all(torch.equal(a, b) for a, b in zip((*clf.buffers(), *clf.parameters()), values, strict=True))


def mixed(toy):
    """A net with BatchNorm and dropout whose submodules are in different modes, with one frozen weight."""
    clf = toy.conv(dropout=0.5)
    clf.train()
    clf.network[1].eval()
    clf.network[0].weight.requires_grad_(False)
    return clf


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("attack", [attacks.fgsm, attacks.pgd])
def test_an_attack_leaves_the_classifier_as_it_was(toy, attack, mode: str) -> None:
    clf = mixed(toy)
    before = everything(clf)
    attack(clf, toy.images(), toy.labels(), Threat("linf", 0.1), mode=mode)
    assert_untouched(clf, before)


@pytest.mark.parametrize("mode", ["eval", "train", None])
def test_a_loop_that_raises_leaves_the_classifier_as_it_was(toy, mode) -> None:
    clf = mixed(toy)
    before = everything(clf)

    def broken_loop() -> None:
        with inner_loop(clf, mode):
            clf.logits(toy.images())
            clf.network[1].running_mean.add_(1.0)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broken_loop()
    assert_untouched(clf, before)


def test_an_attack_interrupted_by_its_callback_leaves_the_classifier_as_it_was(toy) -> None:
    clf = mixed(toy)
    before = everything(clf)

    def interrupt(state) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attacks.pgd(clf, toy.images(), toy.labels(), Threat("linf", 0.1), mode="train", callback=interrupt)
    assert_untouched(clf, before)


def test_inside_the_loop_modes_are_set_and_weights_ask_for_no_gradient(toy) -> None:
    clf = mixed(toy)
    modes: tuple[tuple[Mode, bool], ...] = (("eval", False), ("train", True))
    for mode, training in modes:
        with inner_loop(clf, mode):
            assert all(module.training == training for module in clf.modules())
            assert not any(p.requires_grad for p in clf.parameters())
    with inner_loop(clf, None):
        assert clf.training and not clf.network[1].training


@pytest.mark.parametrize("training", [True, False])
def test_a_graph_built_before_an_attack_can_still_go_backward(toy, training: bool) -> None:
    clf = toy.conv().train(training)
    (wanted,) = torch.autograd.grad(clf.logits(toy.images()).square().sum(), clf.network[0].weight)
    loss = clf.logits(toy.images()).square().sum()
    attacks.pgd(clf, toy.images(), toy.labels(), Threat("linf", 0.1), steps=1, mode="train")
    (gradient,) = torch.autograd.grad(loss, clf.network[0].weight)
    assert torch.equal(gradient, wanted)


def test_running_statistics_kept_normalises_by_the_batch_and_keeps_every_buffer(toy) -> None:
    clf = toy.conv().train()
    before = everything(clf)
    with running_statistics_kept(clf):
        kept = clf.logits(toy.images())
        clf.logits(torch.full_like(toy.images(), float("nan")))  # not even this one may leave a trace
    assert_untouched(clf, before)
    assert torch.equal(clf.logits(toy.images()), kept)  # train mode: by the batch's own statistics
    assert not torch.equal(clf.network[1].running_mean, before[2][0])


def test_running_statistics_kept_lets_a_layer_in_eval_mode_use_its_statistics(toy) -> None:
    clf = toy.conv().eval()
    wanted = clf.logits(toy.images())
    with running_statistics_kept(clf):
        assert torch.equal(clf.logits(toy.images()), wanted)


def test_batch_norm_trains_where_one_image_changes_the_others(toy) -> None:
    clf = toy.conv()
    assert batch_norm_trains(clf.train())
    assert not batch_norm_trains(clf.eval())
    assert batch_norm_trains(nn.BatchNorm2d(3, track_running_stats=False).eval())
    assert not batch_norm_trains(toy.mlp().train())


@pytest.mark.parametrize("momentum", [0.1, 0.9, None])
def test_reestimated_statistics_are_the_average_over_the_batches(momentum) -> None:
    norm = nn.BatchNorm2d(2, momentum=momentum)
    network = nn.Sequential(norm, nn.Dropout(0.5)).train()
    assert norm.running_mean is not None
    norm.running_mean.fill_(7.0)  # what training left behind must not count
    batches = [torch.randn(n, 2, 3, 3, generator=torch.Generator().manual_seed(n)) for n in (4, 4, 6)]
    reestimate_batch_norm(network, network, batches)
    mean = torch.stack([batch.mean((0, 2, 3)) for batch in batches]).mean(0)
    variance = torch.stack([batch.transpose(0, 1).flatten(1).var(1) for batch in batches]).mean(0)
    torch.testing.assert_close(norm.running_mean, mean)
    torch.testing.assert_close(norm.running_var, variance)
    assert norm.momentum == momentum
    assert network.training and norm.training and network[1].training


def test_reestimated_statistics_see_the_other_layers_in_eval_mode(toy) -> None:
    clf = toy.conv(dropout=0.9).train()
    clf.network[1].eval()
    batches = [toy.images(seed=seed) for seed in (5, 6)]
    reestimate_batch_norm(clf, clf.logits, batches)
    maps = torch.cat([clf.network[0](batch) for batch in batches])
    torch.testing.assert_close(clf.network[1].running_mean, maps.mean((0, 2, 3)))
    assert clf.training and not clf.network[1].training


def test_reestimation_that_raises_puts_momentum_and_modes_back(toy) -> None:
    clf = toy.conv().eval()
    with pytest.raises(ImageError):
        reestimate_batch_norm(clf, clf.logits, [toy.images(), toy.images()[0]])
    assert not clf.network[1].training and clf.network[1].momentum == 0.1


def test_autocast_off_turns_it_off_where_there_is_one() -> None:
    layer, images = nn.Linear(2, 2), torch.rand(3, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(images).dtype == torch.bfloat16
        with autocast_off(images.device):
            assert layer(images).dtype == torch.float32
        assert layer(images).dtype == torch.bfloat16
    with autocast_off(torch.device("meta")):
        pass


def test_frozen_batch_norm_uses_its_statistics_keeps_them_and_still_trains(toy) -> None:
    clf = mixed(toy)
    clf.network[1].train()
    clf.network[3].p = 0.0
    before = everything(clf)
    with batch_norm_frozen(clf):
        assert not batch_norm_trains(clf) and clf.network.training
        logits = clf.logits(toy.images())
    assert_untouched(clf, before)
    torch.testing.assert_close(logits, clf.eval()(toy.images()))
    logits.square().sum().backward()
    assert clf.network[1].weight.grad.abs().sum() > 0
