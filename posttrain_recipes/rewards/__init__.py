"""Built-in rewards; they come in through the same hook as anybody's."""

from collections.abc import Sequence

from posttrain_recipes.plugin import Reward, hookimpl
from posttrain_recipes.rewards.exact_match import ExactMatchReward
from posttrain_recipes.rewards.function import Function
from posttrain_recipes.rewards.json_schema import JsonSchema
from posttrain_recipes.rewards.judge import JudgeReward
from posttrain_recipes.rewards.length import Length
from posttrain_recipes.rewards.numeric import Numeric
from posttrain_recipes.rewards.pairwise import Pairwise
from posttrain_recipes.rewards.python_tests import PythonTests
from posttrain_recipes.rewards.regex import Regex
from posttrain_recipes.rewards.reward_model import RewardModelReward
from posttrain_recipes.rewards.rubric import Rubric


@hookimpl
def ptl_rewards() -> Sequence[type[Reward]]:
    """The rewards of this package."""
    return [
        ExactMatchReward,
        Numeric,
        Regex,
        JsonSchema,
        Length,
        PythonTests,
        Function,
        RewardModelReward,
        JudgeReward,
        Rubric,
        Pairwise,
    ]
