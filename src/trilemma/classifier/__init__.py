"""The classifier: a network with its normalisation, its file format, and context managers for its modes."""

from trilemma.classifier.classifier import Classifier

__all__ = ["Classifier"]
