"""Learning from preferences: losses over log-probabilities of whole completions."""
