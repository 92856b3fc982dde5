"""Sampling with continuous batching: sequences join and leave the running batch at any token."""
