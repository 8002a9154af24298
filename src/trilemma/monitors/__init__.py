"""Monitors turn the metrics of training steps into alarms; remedies say how the training loop answers them."""
