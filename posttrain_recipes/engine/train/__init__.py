"""Training: forward and backward passes, and the losses over token log-probabilities."""
