"""The protocols: one judge each, with a name and a version."""
