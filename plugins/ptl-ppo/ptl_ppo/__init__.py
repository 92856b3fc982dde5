"""Proximal policy optimization with a critic, for posttrain_recipes: the method `ppo`."""

from __future__ import annotations

from posttrain_recipes.plugin import Method, hookimpl
from ptl_ppo.method import PPO

PTL_API = 1


@hookimpl
def ptl_methods() -> list[type[Method]]:
    """The methods of this package."""
    return [PPO]
