"""Built-in evals; they come in through the same hook as anybody's."""

from collections.abc import Sequence

from posttrain_recipes.evals.episodes import Episodes
from posttrain_recipes.evals.exact_match import ExactMatch
from posttrain_recipes.evals.generations import Generations
from posttrain_recipes.evals.mean_reward import MeanReward
from posttrain_recipes.evals.nll import NLL
from posttrain_recipes.evals.preference import PreferenceAccuracy
from posttrain_recipes.evals.reward import RewardAccuracy
from posttrain_recipes.evals.win_rate import WinRate
from posttrain_recipes.plugin import Eval, hookimpl


@hookimpl
def ptl_evals() -> Sequence[type[Eval]]:
    """The evals of this package."""
    return [
        NLL,
        ExactMatch,
        PreferenceAccuracy,
        RewardAccuracy,
        Generations,
        MeanReward,
        WinRate,
        Episodes,
    ]
