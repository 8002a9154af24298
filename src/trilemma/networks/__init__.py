"""Networks: one architecture per file, built by :func:`trilemma.networks.create.create_network`.

Importing this package imports no torch, so that ``trilemma.networks.options`` stays cheap.
"""
