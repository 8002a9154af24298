"""Metrics: accuracy with its interval, the energy landscape, and what generated images are worth."""
