"""Metrics: accuracy with its interval, calibration, out-of-distribution detection, energies and generated images."""
