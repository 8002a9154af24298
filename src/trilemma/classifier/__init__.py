"""The classifier: a network with its normalisation, its file, and the contexts it is used in."""

from trilemma.classifier.classifier import Classifier

__all__ = ["Classifier"]
