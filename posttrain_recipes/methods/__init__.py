"""Built-in methods; they come in through the same hook as anybody's."""

from collections.abc import Sequence

from posttrain_recipes.methods.ai_preferences import AIPreferences
from posttrain_recipes.methods.best_of_n import BestOfN
from posttrain_recipes.methods.constitutional import Constitutional
from posttrain_recipes.methods.cpo import CPO
from posttrain_recipes.methods.distill_off_policy import DistillOffPolicy
from posttrain_recipes.methods.distill_on_policy import DistillOnPolicy
from posttrain_recipes.methods.dpo import DPO
from posttrain_recipes.methods.grpo import GRPO
from posttrain_recipes.methods.kto import KTO
from posttrain_recipes.methods.orpo import ORPO
from posttrain_recipes.methods.pass_rates import PassRates
from posttrain_recipes.methods.prompt_distill import PromptDistill
from posttrain_recipes.methods.reward_model import RewardModel
from posttrain_recipes.methods.sdft import SDFT
from posttrain_recipes.methods.self_play import SelfPlay
from posttrain_recipes.methods.sft import SFT
from posttrain_recipes.methods.simpo import SimPO
from posttrain_recipes.methods.teacher_samples import TeacherSamples
from posttrain_recipes.plugin import Method, hookimpl


@hookimpl
def ptl_methods() -> Sequence[type[Method]]:
    """The methods of this package."""
    return [
        SFT,
        DPO,
        ORPO,
        SimPO,
        CPO,
        KTO,
        RewardModel,
        GRPO,
        SelfPlay,
        DistillOffPolicy,
        DistillOnPolicy,
        PromptDistill,
        SDFT,
        TeacherSamples,
        BestOfN,
        PassRates,
        AIPreferences,
        Constitutional,
    ]
