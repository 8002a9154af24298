"""Networks: one architecture per file, built by :func:`trilemma.networks.create.create_network`.

Importing this package does not import torch, so that ``trilemma.networks.options`` is fast to import.
"""
