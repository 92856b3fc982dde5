"""Evals with published data, prompts and rules of scoring, which recipes have by name alone."""
