"""Weight updates (plain, SAM, AWP) and the exponential moving average of the weights."""
