"""Built-in rewards; they come in through the same hook as anybody's."""

from collections.abc import Mapping

from posttrain_recipes.plugin import hookimpl


@hookimpl
def ptl_rewards() -> Mapping[str, str]:
    """Where the rewards of this package are: each is imported when it is first asked for."""
    return {
        "exact_match": "posttrain_recipes.rewards.exact_match:ExactMatchReward",
        "numeric": "posttrain_recipes.rewards.numeric:Numeric",
        "regex": "posttrain_recipes.rewards.regex:Regex",
        "json_schema": "posttrain_recipes.rewards.json_schema:JsonSchema",
        "length": "posttrain_recipes.rewards.length:Length",
        "python_tests": "posttrain_recipes.rewards.python_tests:PythonTests",
        "function": "posttrain_recipes.rewards.function:Function",
        "reward_model": "posttrain_recipes.rewards.reward_model:RewardModelReward",
        "steps": "posttrain_recipes.rewards.steps:Steps",
        "judge": "posttrain_recipes.rewards.judge:JudgeReward",
        "rubric": "posttrain_recipes.rewards.rubric:Rubric",
        "pairwise": "posttrain_recipes.rewards.pairwise:Pairwise",
    }
