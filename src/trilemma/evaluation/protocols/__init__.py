"""The protocols of the registry; each measures one quantity of a classifier."""
