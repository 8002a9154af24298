"""Networks: one architecture per file, built by :func:`ebat.networks.create.create_network`.

Importing this package imports no torch, so that ``ebat.networks.options`` stays cheap.
"""
