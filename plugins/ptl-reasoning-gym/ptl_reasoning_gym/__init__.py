"""The tasks of reasoning-gym for posttrain_recipes.

Datasets of prompts: `reasoning_gym`, items of one task or of several, and
`reasoning_gym_curriculum`, items of the level that a model is ready for. A reward and an eval,
`reasoning_gym`: what the task's own `score_answer` says of the answer that stands in a reply.
"""

from __future__ import annotations

from posttrain_recipes.plugin import Dataset, Eval, Reward, hookimpl
from ptl_reasoning_gym.curriculum import ReasoningGymCurriculum
from ptl_reasoning_gym.datasets import ReasoningGym
from ptl_reasoning_gym.evals import ReasoningGymEval
from ptl_reasoning_gym.rewards import ReasoningGymReward

PTL_API = 1


@hookimpl
def ptl_datasets() -> list[type[Dataset]]:
    """The datasets of this package."""
    return [ReasoningGym, ReasoningGymCurriculum]


@hookimpl
def ptl_rewards() -> list[type[Reward]]:
    """The reward of this package."""
    return [ReasoningGymReward]


@hookimpl
def ptl_evals() -> list[type[Eval]]:
    """The eval of this package."""
    return [ReasoningGymEval]
