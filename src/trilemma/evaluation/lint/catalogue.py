"""Every finding by name: how grave it is, what it usually means, what to do. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """What is known of a finding beforehand."""

    severity: str
    means: str
    do: str


ERROR, WARNING = "error", "warning"

CATALOGUE = {
    "range": Entry(
        ERROR,
        "The classifier was trained on other values than it is given, and a radius in pixel units means nothing.",
        "Pass float images in [0, 1] and leave normalisation to the Classifier; the attack checks were left out.",
    ),
    "constant-images": Entry(
        WARNING,
        "Images that hold a single value were not decoded, or were lost on the way.",
        "Look at them; leave broken files out of the data.",
    ),
    "non-finite-outputs": Entry(
        ERROR,
        "The weights are damaged, or the forward pass overflows or divides by zero.",
        "Find the layer with torch.autograd.detect_anomaly; the attack checks were left out.",
    ),
    "softmax-outputs": Entry(
        ERROR,
        "The network ends in a softmax; a second one inside the loss flattens it, and gradient attacks lose their way.",
        "Return logits: remove the last softmax.",
    ),
    "log-softmax-outputs": Entry(
        WARNING,
        "The network ends in a log-softmax: losses are unharmed, but E(x) is 0 for every image.",
        "Return logits: remove the last log-softmax.",
    ),
    "normalisation": Entry(
        ERROR,
        "Normalisation is applied twice, or not at all, or with other constants than in training.",
        "Normalise in one place: mean and std of the Classifier, or inside the network, and images in [0, 1].",
    ),
    "random-forward": Entry(
        ERROR,
        "Dropout that does not switch off, or noise in the forward pass: a verdict is a matter of luck, and an attack "
        "that does not average over the noise looks weaker than it is.",
        "Remove the noise, or attack its expectation over many forwards; the attack checks were left out.",
    ),
    "train-mode": Entry(
        WARNING,
        "BatchNorm that normalises by the batch, or active dropout. Evaluation here switches to eval mode and puts the "
        "modes back; code that does not gets other outputs.",
        "Call .eval() before evaluating; if a layer ignores it, repair its train().",
    ),
    "batch-dependence": Entry(
        ERROR,
        "BatchNorm that normalises by the batch even in eval mode: attacked images change their neighbours' verdicts.",
        "Use running statistics (track_running_stats=True, training=False); the attack checks were left out.",
    ),
    "zero-gradients": Entry(
        ERROR,
        "A step function, a detached tensor or a saturated unit: gradient attacks do not move, and robustness under "
        "them is an illusion.",
        "Attack through a differentiable stand-in for that layer, and report square or autoattack-standard.",
    ),
    "quantised-input": Entry(
        ERROR,
        "The first layers round their input: the gradient is zero almost everywhere while the decision can be changed.",
        "Let the gradient pass the rounding unchanged (straight-through), and report square or autoattack-standard.",
    ),
    "non-finite-gradients": Entry(
        ERROR,
        "A square root, norm or division at zero, or an overflow: the attack's step from there is not a number.",
        "Add a small constant under the root or in the denominator.",
    ),
    "shattered-gradients": Entry(
        ERROR,
        "The local slope says nothing about the neighbourhood: steep steps, high-frequency terms, or a wrong backward.",
        "Attack through a smooth stand-in, and report square or autoattack-standard.",
    ),
    "saturated-logits": Entry(
        ERROR,
        "Logits so large that the softmax rounds to 0 and 1: attacks on the cross-entropy stand still.",
        "Divide the logits by a constant (accuracy does not change), or report an attack on a margin.",
    ),
    "black-box-better": Entry(
        ERROR,
        "Gradients are hidden: an attack that sees less cannot do better unless they mislead.",
        "Report square or autoattack-standard; do not believe gradient attacks on this classifier.",
    ),
    "one-step-better": Entry(
        ERROR,
        "The loss is rough around the images: many small steps get stuck where one large step jumps over.",
        "Report autoattack-standard; if this was trained with one step, its robustness may have collapsed.",
    ),
    "unbounded-attack-fails": Entry(
        ERROR,
        "With every image allowed any image can be reached, so the attack is lost, not the classifier robust.",
        "Look for hidden gradients or an attack that does not follow its loss.",
    ),
    "noise-better": Entry(
        ERROR,
        "Random noise of the radius cannot beat an attack that works.",
        "Look for hidden gradients, a wrong sign, or an attack that is handed other labels.",
    ),
    "loss-not-increasing": Entry(
        WARNING,
        "The steps do not climb: gradients vanish or mislead, or the step is far too large.",
        "Report autoattack-standard, whose step adapts and whose black-box part needs no gradient.",
    ),
    "budget-ignored": Entry(
        ERROR,
        "The attack does not project, projects in another norm, or works on images of another scale.",
        "Project to the ball and then to [0, 1] after the last step; count no image outside.",
    ),
    "attack-too-weak": Entry(
        WARNING,
        "Too few steps, a step that is too small, a wrong sign, or gradients through the wrong loss.",
        "Compare its loss after each step with trilemma.attacks.pgd on the same images.",
    ),
    "radius-units": Entry(
        WARNING,
        "A radius in other units than pixels in [0, 1]: in [-1, 1] it is worth half, in normalised units std times it.",
        "State the radius in [0, 1] units: divide that of [-1, 1] by 2, multiply that of normalised images by std.",
    ),
    "screen-far-from-autoattack": Entry(
        WARNING,
        "The quick estimate does not hold for this classifier, as happens where gradients are hidden.",
        "Quote autoattack-standard only.",
    ),
}
