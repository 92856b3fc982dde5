"""Built-in evals; they come in through the same hook as anybody's."""

from collections.abc import Mapping

from posttrain_recipes.plugin import hookimpl


@hookimpl
def ptl_evals() -> Mapping[str, str]:
    """Where the evals of this package are: each is imported when it is first asked for."""
    return {
        "nll": "posttrain_recipes.evals.nll:NLL",
        "exact_match": "posttrain_recipes.evals.exact_match:ExactMatch",
        "preference_accuracy": "posttrain_recipes.evals.preference:PreferenceAccuracy",
        "reward_accuracy": "posttrain_recipes.evals.reward:RewardAccuracy",
        "generations": "posttrain_recipes.evals.generations:Generations",
        "mean_reward": "posttrain_recipes.evals.mean_reward:MeanReward",
        "win_rate": "posttrain_recipes.evals.win_rate:WinRate",
        "episodes": "posttrain_recipes.evals.episodes:Episodes",
        "gsm8k": "posttrain_recipes.evals.suites.gsm8k:GSM8K",
        "mbpp": "posttrain_recipes.evals.suites.mbpp:MBPP",
        "humaneval": "posttrain_recipes.evals.suites.humaneval:HumanEval",
        "ifeval": "posttrain_recipes.evals.suites.ifeval:IFEval",
        "mmlu": "posttrain_recipes.evals.suites.multiple_choice:MMLU",
        "multiple_choice": "posttrain_recipes.evals.suites.multiple_choice:MultipleChoice",
        "safety": "posttrain_recipes.evals.suites.safety:Safety",
    }
