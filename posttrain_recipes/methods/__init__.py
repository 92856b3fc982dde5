"""Built-in methods; they come in through the same hook as anybody's."""

from collections.abc import Mapping

from posttrain_recipes.plugin import hookimpl


@hookimpl
def ptl_methods() -> Mapping[str, str]:
    """Where the methods of this package are: each is imported when it is first asked for."""
    return {
        "sft": "posttrain_recipes.methods.sft:SFT",
        "dpo": "posttrain_recipes.methods.dpo:DPO",
        "online_dpo": "posttrain_recipes.methods.online_dpo:OnlineDPO",
        "orpo": "posttrain_recipes.methods.orpo:ORPO",
        "simpo": "posttrain_recipes.methods.simpo:SimPO",
        "cpo": "posttrain_recipes.methods.cpo:CPO",
        "kto": "posttrain_recipes.methods.kto:KTO",
        "reward_model": "posttrain_recipes.methods.reward_model:RewardModel",
        "grpo": "posttrain_recipes.methods.grpo:GRPO",
        "self_play": "posttrain_recipes.methods.self_play:SelfPlay",
        "distill_off_policy": "posttrain_recipes.methods.distill_off_policy:DistillOffPolicy",
        "distill_on_policy": "posttrain_recipes.methods.distill_on_policy:DistillOnPolicy",
        "gkd": "posttrain_recipes.methods.gkd:GKD",
        "prompt_distill": "posttrain_recipes.methods.prompt_distill:PromptDistill",
        "sdft": "posttrain_recipes.methods.sdft:SDFT",
        "sdpo": "posttrain_recipes.methods.sdpo:SDPO",
        "merge": "posttrain_recipes.methods.merge:Merge",
        "teacher_samples": "posttrain_recipes.methods.teacher_samples:TeacherSamples",
        "best_of_n": "posttrain_recipes.methods.best_of_n:BestOfN",
        "gepa": "posttrain_recipes.methods.gepa:GEPA",
        "pass_rates": "posttrain_recipes.methods.pass_rates:PassRates",
        "ai_preferences": "posttrain_recipes.methods.ai_preferences:AIPreferences",
        "constitutional": "posttrain_recipes.methods.constitutional:Constitutional",
    }
