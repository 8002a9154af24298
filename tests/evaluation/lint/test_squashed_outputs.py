"""Heads that keep the answers and mislead the cross-entropy are found; ordinary outputs are not."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from trilemma import Threat
from trilemma.evaluation.lint import lint
from trilemma.evaluation.lint.checks import output_findings
from trilemma.evaluation.lint.scale import best_factor, missing_factor

HEADS = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softsign": functional.softsign,
    "arctangent": torch.atan,
    "log-sigmoid": functional.logsigmoid,
    "hard sigmoid": functional.hardsigmoid,
    "clamp": lambda z: z.clamp(-5, 5),
    "ReLU": torch.relu,
    "log of 1 + ReLU": lambda z: z.relu().log1p(),
    "ten times sigmoid": lambda z: 10 * z.sigmoid(),
    "ten times softmax with a temperature": lambda z: 10 * (z / 5).softmax(1),
}
SCALES = {
    "temperature 30": lambda z: z / 30,
    "a thousandth": lambda z: z * 1e-3,
    "a millionth": lambda z: z * 1e-6,
    "sigmoid with a temperature": lambda z: (z / 10).sigmoid(),
    "unit length": lambda z: functional.normalize(z, dim=1),
}


def names(clf, data, threat=None):
    return [finding.name for finding in lint(clf, data[0], data[1], threat=threat)]


@pytest.mark.parametrize("head", [*HEADS])
def test_outputs_that_pile_up_at_a_limit(head, standard, few, around):
    assert names(around(standard, after=HEADS[head]), few)[0] == "bounded-outputs"


# The softmax of outputs this small is far from its limits.
@pytest.mark.parametrize("head", [head for head in HEADS if head != "ten times softmax with a temperature"])
def test_outputs_of_a_robust_network_pile_up_too(head, robust, digits):
    # Its outputs are smaller, and it takes more images to see that they are bounded.
    with torch.no_grad():
        outputs = robust(digits[0])
    assert output_findings(outputs) == []
    assert [finding.name for finding in output_findings(HEADS[head](outputs))] == ["bounded-outputs"]


@pytest.mark.parametrize("head", [*SCALES, "sigmoid", "tanh", "softsign"])
def test_an_attack_on_the_margin_that_is_better(head, robust, few, around):
    found = lint(around(robust, after=(HEADS | SCALES)[head]), few[0], few[1], threat=Threat("linf", "0.2"))
    (finding,) = [f for f in found if f.name == "squashed-logits"]
    assert finding.severity == "error"
    assert finding.seen.startswith(
        "10 steps on the margin break images that 10 steps on the cross-entropy do not"
    )
    # A softsign approaches its limits slowly, so few of these outputs are near them.
    bounded = head in ("sigmoid", "tanh")
    assert found[0].name == ("bounded-outputs" if bounded else "squashed-logits")


def test_energies_that_level_off_are_no_bound(digits):
    """Outputs of `eb-jdat` crowd below their largest value, which differs among classes and is no limit."""
    generator = torch.Generator().manual_seed(0)
    own = torch.nn.functional.one_hot(digits[1], 10).bool()
    size = own.shape
    # A third of the images of a class are within 2 % of the range from its largest output, and few are nearest to it.
    level = torch.linspace(4.1, 5.3, 10) - 0.28 * torch.rand(size, generator=generator).sqrt()
    other = -2 + 0.9 * torch.randn(size, generator=generator)
    outputs = torch.where(own, level, other)
    crowded = (outputs.amax(0) - outputs <= 0.02 * (outputs.amax(0) - outputs.amin(0))).double().mean(0)
    assert crowded.median() > 0.03
    assert output_findings(outputs) == []


@pytest.mark.parametrize("digits_kept", [1, 2])
def test_rounded_outputs(digits_kept, standard, few, around):
    rounded = around(standard, after=lambda z: (z * 10**digits_kept).round() / 10**digits_kept)
    assert names(rounded, few)[0] == "quantised-outputs"


def test_labels_instead_of_logits(standard, few, around):
    labels = around(standard, after=lambda z: functional.one_hot(z.argmax(1), 10).float())
    found = lint(labels, *few)
    assert found[0].name == "quantised-outputs"
    assert found[0].seen == "the outputs only take the values 0 and 1"


HARMLESS = {
    "float16": lambda z: z.half().float(),
    "bfloat16": lambda z: z.bfloat16().float(),
    "shifted": lambda z: z + 1000,
    "halved": lambda z: z / 2,
    "tripled": lambda z: 3 * z,
}


@pytest.mark.parametrize("head", [*HARMLESS])
@pytest.mark.parametrize("kind", ["standard", "robust"])
def test_heads_that_hide_nothing(kind, head, few, around, request):
    assert (
        names(around(request.getfixturevalue(kind), after=HARMLESS[head]), few, Threat("linf", "0.15")) == []
    )


@pytest.mark.parametrize("count", [4, 10, 50, 400])
@pytest.mark.parametrize("classes", [2, 10, 200])
def test_outputs_without_a_bound(count, classes):
    """Normal and bimodal outputs, with a class that is masked and one that is hardly ever answered."""
    generator = torch.Generator().manual_seed(count + classes)
    normal = torch.randn(count, classes, generator=generator)
    labels = torch.arange(count) % classes
    bimodal = normal + 10 * functional.one_hot(labels, classes)
    masked, rare = bimodal.clone(), bimodal.clone()
    masked[:, 0], rare[:, 0] = -1e4, rare[:, 0] - 50
    for outputs in (normal, bimodal, masked, rare):
        assert output_findings(outputs) == []


def test_the_factor_that_fits_is_that_of_the_temperature():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(3000, 5, generator=generator)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator).squeeze(1)
    assert best_factor(logits, labels) == pytest.approx(1, rel=0.2)
    for factor in (100.0, 10.0, 0.1):
        assert best_factor(logits / factor, labels) == pytest.approx(factor, rel=0.2)


def test_all_correct_on_few_images_is_no_scale():
    labels = torch.arange(40) % 10
    logits = 4.0 * functional.one_hot(labels, 10)
    assert missing_factor(logits, labels) == 1
    assert missing_factor(logits / 1000, labels) > 100
