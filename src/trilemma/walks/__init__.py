"""Iterative optimisation of images: the loop, its objectives, and ascent (attacks) and descent (samplers) with it."""
