"""Group relative policy optimization (Shao et al. 2024, arXiv 2402.03300) and its kin.

Of every prompt x the policy writes G replies y_i, which are rewarded. What one is worth is told by
the others, with no value model:

    A_i = (r_i - mean(r)) / std(r)
    loss = - 1/G sum_i 1/|y_i| sum_t min(rho_it A_i, clip(rho_it, 0.8, 1.2) A_i),   rho = p / q

with q the policy that sampled and p the one that is trained. `advantage:` and `loss:` name the
estimators and surrogates that others have put in their places, each with its paper in
`training/advantages.py` and `training/policy.py`; the length normalization follows the estimator.

How it departs from the paper: with one update a batch (the default) p is q at every step, and the
losses differ only in what they do to float noise; the divergence from the reference, if it costs
anything, is taken off the reward of a reply rather than added to the loss of each token, which
keeps the gradient that of the KL divergence (with k1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, cast

from posttrain_recipes.plugin import Checkpoint, Method, Prompt, Record, StageContext, Task
from posttrain_recipes.training import rollouts
from posttrain_recipes.training.groups import Source
from posttrain_recipes.training.prompts import Prompts, ReplyConfig, Worth, episodes
from posttrain_recipes.training.scoring import Patience


class GRPO(Method):
    """Policy gradients on groups of rewarded replies: GRPO, RLOO, Dr. GRPO, DAPO and kin.

    When: a rule, a program or another model can tell good replies from bad ones, and the model
    already writes some of both. When not: it never gets any right, or always (a group without
    variance teaches nothing: sft first); there are examples to imitate and nothing to search for.
    """

    name = "grpo"
    takes: ClassVar[tuple[type[Record], ...]] = (Prompt, Task)
    takes_reward = True
    same_tokenizer = ("reference",)
    loss = "-mean(min(rho A, clip(rho) A)), log rho = log p - log q, A = (r - mean r) / std r"
    paper = "Shao et al. 2024, DeepSeekMath, arXiv 2402.03300"

    class Config(ReplyConfig, rollouts.RolloutConfig):
        """Options of group relative policy optimization."""

    config: Config

    def train(self, stage: StageContext) -> Checkpoint:
        """Train on replies to the stage's prompts, or on episodes of its environment."""
        patience = Patience()
        worth = Worth(stage, self.config, patience)
        source: Source
        if stage.train and isinstance(stage.train[0], Task):
            source = episodes(cast(Sequence[Task], stage.train), stage, self.config, worth)
        else:
            prompts = cast(Sequence[Prompt], stage.train)
            source = Prompts(prompts, stage.renderer, self.config, worth)
        return rollouts.train(stage, self.config, source, self.config.max_tokens, patience)
