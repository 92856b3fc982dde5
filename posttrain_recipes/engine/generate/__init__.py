"""Sampling: requests join a batch, take a slot, and leave it token by token."""
