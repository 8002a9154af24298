"""Severity, usual cause and remedy of every finding, by name. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """The fixed texts of a finding; the fields are those of :class:`trilemma.evaluation.lint.finding.Finding`."""

    severity: str
    means: str
    do: str


ERROR, WARNING = "error", "warning"

CATALOGUE = {
    "range": Entry(
        ERROR,
        "The values differ from those of training, and a radius in pixel units has no meaning.",
        "Pass float images in [0, 1] and leave normalisation to the Classifier; the attack checks were skipped.",
    ),
    "constant-images": Entry(
        WARNING,
        "Images with a single value were not decoded, or were damaged.",
        "Inspect them; remove broken files from the data.",
    ),
    "non-finite-outputs": Entry(
        ERROR,
        "The weights are damaged, or the forward pass overflows or divides by zero.",
        "Find the layer with torch.autograd.detect_anomaly; the attack checks were skipped.",
    ),
    "softmax-outputs": Entry(
        ERROR,
        "The network ends in a softmax; the second one in the loss flattens it, and gradient attacks become weak.",
        "Return logits: remove the last softmax.",
    ),
    "log-softmax-outputs": Entry(
        WARNING,
        "The network ends in a log-softmax: losses are unchanged, but E(x) is 0 for every image.",
        "Return logits: remove the last log-softmax.",
    ),
    "quantised-outputs": Entry(
        ERROR,
        "The outputs are rounded, or labels instead of logits: the gradient is zero almost everywhere, but predictions "
        "can be changed.",
        "Return the logits before rounding; report square or autoattack-standard.",
    ),
    "bounded-outputs": Entry(
        WARNING,
        "A sigmoid, tanh, clamp, ReLU or the like after the last layer: outputs near the limit have hardly any "
        "gradient, and gradient attacks such as pgd-20 are too weak.",
        "Return the outputs before it (the answers do not change), or report screen or autoattack-standard.",
    ),
    "normalisation": Entry(
        ERROR,
        "Normalisation is applied twice, or not at all, or with other constants than in training.",
        "Normalise in one place, by mean and std of the Classifier or inside the network, and pass images in [0, 1].",
    ),
    "inverted-images": Entry(
        ERROR,
        "The network was trained on images in which light and dark are exchanged.",
        "Pass images as in training: 1 - x, or data of the same polarity.",
    ),
    "channel-order": Entry(
        ERROR,
        "The network was trained on channels in the reverse order (BGR, as OpenCV reads them, instead of RGB).",
        "Reverse the channels before or inside the network: images.flip(1).",
    ),
    "orientation": Entry(
        ERROR,
        "The network was trained on flipped, rotated or transposed images, or these were read that way.",
        "Read the images as in training; look at one of them beside one of the training images.",
    ),
    "one-answer": Entry(
        ERROR,
        "A constant network, a bias that outweighs everything else, or images that all look the same to the network: "
        "accuracy is the share of one class, and cannot fall under attack.",
        "Do not report its robustness; check training, weights and images. The attack checks were skipped.",
    ),
    "permuted-labels": Entry(
        ERROR,
        "The labels have another class order than the outputs: that of another data set, of folders sorted as text, or "
        "shifted by one.",
        "Match classes by name (class_names of the Classifier and of the data); the attack checks were skipped.",
    ),
    "swapped-classes": Entry(
        ERROR,
        "Two names are exchanged in the labels or in the outputs; with two classes the outputs may also be negated.",
        "Match classes by name (class_names of the Classifier and of the data).",
    ),
    "negated-logits": Entry(
        ERROR,
        "The outputs are losses, energies or distances, which are smallest for the answer.",
        "Return logits, largest for the answer: negate the outputs; the attack checks were skipped.",
    ),
    "few-answers": Entry(
        WARNING,
        "A collapsed network, outputs that were never trained, or a class order that does not fit.",
        "Measure each class with the protocol classes; accuracy on the other classes cannot fall under attack.",
    ),
    "below-chance": Entry(
        ERROR,
        "Labels of other classes or in another order, or outputs of the wrong sign.",
        "Compare the labels and answers of a few images; the attack checks were skipped.",
    ),
    "at-chance": Entry(
        WARNING,
        "An untrained network, labels that belong to other images or other classes, or images that it cannot read.",
        "Compare the labels and answers of a few images; the attack checks were skipped.",
    ),
    "random-forward": Entry(
        ERROR,
        "Dropout that is active in eval mode, or noise in the forward pass: verdicts are random, and an attack that "
        "does not average over the noise is too weak.",
        "Remove the noise, or attack the expectation: protocol autoattack-rand; the attack checks were skipped.",
    ),
    "train-mode": Entry(
        WARNING,
        "BatchNorm that normalises by the batch, or active dropout. Evaluation here switches to eval mode and restores "
        "the modes; code that does not gets other outputs.",
        "Call .eval() before evaluating; if a layer ignores it, correct its train() method.",
    ),
    "batch-dependence": Entry(
        ERROR,
        "BatchNorm that normalises by the batch even in eval mode: attacked images change the verdicts of others.",
        "Use running statistics (track_running_stats=True, training=False); the attack checks were skipped.",
    ),
    "zero-gradients": Entry(
        ERROR,
        "A step function, a detached tensor or a saturated unit: gradient attacks change nothing, and the robustness "
        "that they measure is not real.",
        "Attack through a differentiable substitute of that layer, and report square or autoattack-standard.",
    ),
    "quantised-input": Entry(
        ERROR,
        "The first layers round their input: the gradient is zero almost everywhere, but predictions can be changed.",
        "Pass the gradient unchanged through the rounding (straight-through); report square or autoattack-standard.",
    ),
    "non-finite-gradients": Entry(
        ERROR,
        "A square root, norm or division at zero, or an overflow: the attack's next step is NaN.",
        "Add a small constant under the root or in the denominator.",
    ),
    "shattered-gradients": Entry(
        ERROR,
        "The gradient does not predict the loss nearby: steep steps, high-frequency terms, or a wrong backward pass.",
        "Attack through a smooth substitute, and report square or autoattack-standard.",
    ),
    "saturated-logits": Entry(
        ERROR,
        "Logits so large that the softmax rounds to 0 and 1: the cross-entropy has no gradient for attacks to follow.",
        "Divide the logits by a constant (accuracy does not change), or report an attack on a margin.",
    ),
    "squashed-logits": Entry(
        ERROR,
        "Outputs that are bounded or very small (sigmoid, tanh, a high temperature, a loss other than the "
        "cross-entropy) make the softmax of every image nearly flat: the cross-entropy misleads attacks, and pgd-20 is "
        "too high.",
        "Return the outputs before squashing, or multiply them by a constant (the answers do not change); or report "
        "screen or autoattack-standard, which climb a margin.",
    ),
    "black-box-better": Entry(
        ERROR,
        "Masked gradients: a black-box attack, which has less information, is better only if gradients mislead.",
        "Report square or autoattack-standard; do not rely on gradient attacks on this classifier.",
    ),
    "one-step-better": Entry(
        ERROR,
        "The loss is rough around the images: small steps end in local maxima that one large step passes over.",
        "Report autoattack-standard; if it was trained with single-step attacks, its robustness may have collapsed.",
    ),
    "unbounded-attack-fails": Entry(
        ERROR,
        "Without a bound every image can be reached, so the attack fails; the classifier is not robust.",
        "Look for masked gradients, or an attack that does not maximise its loss.",
    ),
    "noise-better": Entry(
        ERROR,
        "Random noise of the radius cannot be better than a working attack.",
        "Look for masked gradients, a wrong sign, or an attack that gets other labels.",
    ),
    "loss-not-increasing": Entry(
        WARNING,
        "The steps do not increase the loss: gradients vanish or mislead, or the step size is far too large.",
        "Report autoattack-standard, which adapts its step size and includes an attack without gradients.",
    ),
    "budget-ignored": Entry(
        ERROR,
        "The attack does not project, projects in another norm, or works on another scale of images.",
        "Project to the ball and then to [0, 1] after the last step; do not count images outside.",
    ),
    "attack-too-weak": Entry(
        WARNING,
        "Too few steps, too small a step size, a wrong sign, or gradients of the wrong loss.",
        "Compare its loss after each step with trilemma.attacks.pgd on the same images.",
    ),
    "radius-units": Entry(
        WARNING,
        "The radius is not in units of [0, 1]: a radius on [-1, 1] is half as large there, one on normalised images "
        "std times as large.",
        "State the radius in units of [0, 1]: divide one on [-1, 1] by 2, multiply one on normalised images by std.",
    ),
    "screen-far-from-autoattack": Entry(
        WARNING,
        "The fast estimate is wrong for this classifier, as it can be with masked gradients.",
        "Report autoattack-standard only.",
    ),
    "pgd-far-from-autoattack": Entry(
        WARNING,
        "Gradients are masked, as after some single-step training, or this PGD has too few steps or starts for the "
        "threat.",
        "Report autoattack-standard; if pgd-50-10 is as far from it, do not rely on gradient attacks.",
    ),
    "purified-not-attacked": Entry(
        ERROR,
        "An attack on the classifier alone does not see the purifier: one that only hides gradients looks robust.",
        "Attack through the purifier: add --protocol pgd-20 to --purify, and report that row.",
    ),
    "rising-curve": Entry(
        WARNING,
        "An attack in a larger ball can find all that it finds in a smaller one, so it is too weak at the larger "
        "radius: hidden gradients, or too few steps.",
        "Read the value at the larger radius as at most that at the smaller one; report autoattack-standard.",
    ),
    "implausible": Entry(
        WARNING,
        "Nothing published for networks of this size or smaller is as robust: most likely hidden gradients, a wrong "
        "radius, or test images in the training data.",
        "Read the other findings, check threat and data, and attack the classifier with an adaptive attack.",
    ),
}
