"""Gymnasium environments for posttrain_recipes.

Datasets: `gymnasium`, tasks in any environment whose observations a table can hold, told in words
to a language model, and `gymnasium_play`, episodes by chance as conversations to imitate. Methods
without a language model: `random_policy` and `q_learning`.
"""

from __future__ import annotations

from posttrain_recipes.plugin import Dataset, Method, hookimpl
from ptl_gymnasium.methods import QLearning, RandomPolicy
from ptl_gymnasium.tasks import Gymnasium, GymnasiumPlay

PTL_API = 1


@hookimpl
def ptl_datasets() -> list[type[Dataset]]:
    """The datasets of this package."""
    return [Gymnasium, GymnasiumPlay]


@hookimpl
def ptl_methods() -> list[type[Method]]:
    """The methods of this package."""
    return [RandomPolicy, QLearning]
