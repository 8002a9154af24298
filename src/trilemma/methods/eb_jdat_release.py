"""EB-JDAT as its authors' code of May 2025 trains it, for comparison with the paper's equation."""

from __future__ import annotations

from trilemma.methods import options
from trilemma.methods.eb_jdat import EbJdat


class EbJdatRelease(EbJdat):
    """The equation of :class:`EbJdat` with the released inner step, alignment, weights and reach::

        L = w1 (mean E(x_data) - mean E(x^)) + w2 (mean E(x_data) - mean E(x*))
          + a mean CE(x, y) + b mean CE(x*, y)
        x* <- clip(x* + a sign grad [f(x*)[y] + 2 (1 - cos(f(x), f(x*)))])

    The step raises the true logit, and the second term widens the gap. In the release, x_data and x are two
    different random batches. Here x_data is the data view of the labelled batch itself. Both terms are
    differences of two means, so which image stands beside which changes neither value nor gradient, and rolling
    x_data by one place would do nothing. What does differ: the two means are over the same images, so the
    estimate has the expectation of the released one and less noise.

    x* starts within half a radius and takes five steps of an eighth, kept in the box but not in the ball: it
    reaches 9/8 radii. The released 8/255 is meant on [-1, 1], half of what the threat says here.
    """

    Options = options.EbJdatRelease
