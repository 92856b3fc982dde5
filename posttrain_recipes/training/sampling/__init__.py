"""Replies and log-probabilities of a fixed model: for evals, and for stages that make data."""

from __future__ import annotations

from typing import Any

from posttrain_recipes.training.moved import find, public


def __getattr__(name: str) -> Any:
    if name == "__all__":
        return public(f"{__name__}.generation")
    if name.startswith("__"):
        raise AttributeError(name)
    return find("sampling", name)
