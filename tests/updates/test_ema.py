from __future__ import annotations

import copy

import torch
from torch import nn

from trilemma.updates.ema import EMA


def test_the_average_is_the_closed_form_with_its_warm_up() -> None:
    network = nn.Linear(2, 2)
    ema, decay = EMA(network, 0.3), 0.3
    expected, generator = network.weight.detach().double().clone(), torch.Generator().manual_seed(0)
    decays = []
    for n in range(12):
        with torch.no_grad():
            network.weight.copy_(torch.randn(2, 2, generator=generator))
        ema.update(network)
        d = min(decay, (1 + n) / (10 + n))
        decays.append(d)
        expected = d * expected + (1 - d) * network.weight.detach().double()
    torch.testing.assert_close(ema.average["weight"].double(), expected, atol=1e-6, rtol=0)
    assert decays[0] == 0.1 and decays[-1] == 0.3, "both regimes must be covered"


def test_buffers_are_averaged_and_counters_copied() -> None:
    network = nn.BatchNorm1d(2)
    ema = EMA(network, 0.9)
    network(torch.randn(8, 2) + 5)
    ema.update(network)
    assert network.num_batches_tracked is not None and network.running_mean is not None
    assert ema.average["num_batches_tracked"] == network.num_batches_tracked == 1
    torch.testing.assert_close(ema.average["running_mean"], 0.9 * network.running_mean)  # d = 0.1, from 0


def test_the_network_is_left_alone_and_the_average_does_not_share_its_memory() -> None:
    network = nn.Linear(2, 2)
    ema = EMA(network, 0.9)
    before = copy.deepcopy(network.state_dict())
    ema.update(network)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    with torch.no_grad():
        network.weight.fill_(9.0)
    assert not torch.equal(ema.average["weight"], network.weight)


def test_a_saved_average_goes_on_where_it_was() -> None:
    network = nn.Linear(2, 2)
    one, other = EMA(network, 0.9), EMA(nn.Linear(2, 2), 0.9)
    for _ in range(3):
        one.update(network)
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    with torch.no_grad():
        network.weight.mul_(2)
    one.update(network)
    other.update(network)
    assert one.steps == other.steps == 4
    assert all(torch.equal(one.average[name], other.average[name]) for name in one.average)
