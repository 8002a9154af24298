"""How a gradient becomes a weight step, and the average of the weights."""
