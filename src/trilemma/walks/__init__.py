"""Walks on the energy landscape: the engine, what is climbed or descended, and the two constraints."""
