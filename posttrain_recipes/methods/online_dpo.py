"""Online DPO (Guo et al. 2024, arXiv 2402.04792), and XPO (Xie et al. 2024, arXiv 2405.21046).

Of every prompt x the policy writes replies, a reward or a judge tells the best and the worst of
them on the spot, and the step is DPO's on that pair:

    loss = - log sigmoid(beta * h),   h = log p(y+|x)/p_ref(y+|x) - log p(y-|x)/p_ref(y-|x)

averaged over the prompts of a step. `loss:` names others, as in `dpo`. Replies that got the same
are no pair.

With `opponent: reference` each reply is compared with one that the reference wrote, and with
`xpo_alpha` the policy is pushed away from what the reference already says, which is XPO:

    loss + alpha * log p(y_ref|x)

Departs from the papers: XPO's loss is over all pairs so far, here over those of a step. Nash-MD
(Munos et al. 2023, arXiv 2312.00886) samples from a mixture of two policies token by token, which
needs the logits of both: no wire has them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from pydantic import Field, model_validator

from posttrain_recipes.plugin import (
    Checkpoint,
    CountTokens,
    Family,
    Prompt,
    Record,
    StageContext,
    WatchedReply,
    Workload,
)
from posttrain_recipes.training.loops import rl, token_counts
from posttrain_recipes.training.loops.rollout_method import RolloutMethod
from posttrain_recipes.training.preference import completions
from posttrain_recipes.training.preference.pair_losses import PairLossConfig
from posttrain_recipes.training.requests import derive_seed
from posttrain_recipes.training.rl.importance import targets
from posttrain_recipes.training.rl.metrics import watched
from posttrain_recipes.training.rl.rollout import Group, Passes, Rollout, RolloutSegment
from posttrain_recipes.training.rl.scoring import RolloutScorer
from posttrain_recipes.training.rl.sources import PromptSource
from posttrain_recipes.waiting import CancellableWaiter

if TYPE_CHECKING:
    import tinker
    from torch import Tensor


class OnlineDPO(RolloutMethod):
    """Online DPO: prefer the better of two replies that the policy has just written.

    When: a judge or a reward can tell which of two replies is better, and pairs that were made
    beforehand are of another model, or of this one as it was. When not: there is a rule whose
    rewards mean something by themselves (grpo learns from all replies); pairs of people (dpo).
    """

    name = "online_dpo"
    takes: ClassVar[tuple[type[Record], ...]] = (Prompt,)
    needs_reward: ClassVar[bool] = True
    family: ClassVar[Family] = Family.PREFERENCE
    loss = "-log sigmoid(beta * (log p/p_ref(better) - log p/p_ref(worse))), both just written"
    paper = "Guo et al. 2024, Direct alignment from online AI feedback, arXiv 2402.04792"

    class Config(PairLossConfig, RolloutMethod.Config):
        """Options of online DPO."""

        group_size: int = Field(default=2, ge=1, le=1024)
        """Replies of the policy to each prompt. The best and the worst are a pair; with opponent:
        reference each is one with a reply of the reference."""
        opponent: Literal["policy", "reference"] = "policy"
        """Who writes the other reply of a pair."""
        xpo_alpha: float = Field(default=0.0, ge=0)
        """For opponent: reference, what a nat of log p of the reference's reply costs: XPO's bonus
        on exploring what the reference would not say."""

        @model_validator(mode="after")
        def _two_replies(self) -> OnlineDPO.Config:
            if self.opponent == "policy" and self.group_size < 2:
                raise ValueError("group_size 1 makes no pair; raise it, or set opponent: reference")
            if self.opponent == "policy" and self.xpo_alpha:
                raise ValueError("xpo_alpha is for opponent: reference")
            if self.xpo_alpha and self.ld_alpha != 1:
                raise ValueError("xpo_alpha prices whole replies; leave ld_alpha out, or it")
            prompts = self.batch_size // self.updates_per_batch  # of the smallest step
            self.check_ranked(prompts * (1 if self.opponent == "policy" else self.group_size))
            return self

        @property
        def reads_reference(self) -> bool:
            """It always does."""
            return True

    config: Config

    @property
    def needs(self) -> Sequence[str]:
        """A loss of pairs beside."""
        return ("custom_loss", *super().needs)

    def workload(self, sample: Sequence[Record], count: int, tokens: CountTokens) -> Workload:
        """Replies, each read by the reference; at most all of them are learned from."""
        config = self.config
        return token_counts.rollouts(
            config,
            [tokens(cast(Prompt, record).messages) for record in sample],
            count,
            group_size=config.group_size * (1 + (config.opponent == "reference")),
            max_tokens=config.max_tokens,
            readers=config.readers,
            forwards=1,
        )

    def train(self, stage: StageContext) -> Checkpoint:
        """Optimizer steps on pairs of replies that were just written and judged."""
        config, waiter = self.config, CancellableWaiter()
        source, scorer = self.source(stage, waiter), RolloutScorer(stage, config, waiter)

        def rollout(prompt: int, seed: int, sampler: tinker.SamplingClient) -> list[Group]:
            [group] = source.sample(prompt, seed, sampler)  # y ~ p(. | x)
            if config.opponent == "reference":
                assert scorer.reference is not None
                [other] = source.sample(prompt, derive_seed(seed, 1), scorer.reference)
                for rollout in other.rollouts:
                    rollout.by_reference = True
                group.rollouts += other.rollouts  # y_ref ~ p_ref(. | x)
            return [scorer.score(group, sampler)]

        with rl.RolloutLoop(
            stage, config, source, rollout, waiter, OnlinePairs(config.beta)
        ) as loop:
            for step in loop:
                for groups in step.groups():
                    pairs = [pair for group in groups for pair in judged(group, config)]
                    step.passes += forward_backward(loop.client, pairs, config, step.size)
                step.update()  # Adam
        return loop.checkpoint

    def source(self, stage: StageContext, waiter: CancellableWaiter) -> PromptSource:
        """Completions of the stage's prompts."""
        prompts = cast(Sequence[Prompt], stage.train)
        return PromptSource(prompts, stage.renderer, self.config, waiter)


@dataclass(frozen=True)
class JudgedPair:
    """Two replies to one prompt, the better one first."""

    replies: tuple[Rollout, Rollout]
    share: float = 1.0
    """What it weighs among the pairs of its prompt; these sum to 1 at most."""
    by_reference: int | None = None
    """Which of them the reference wrote."""


def judged(group: Group, config: OnlineDPO.Config) -> Iterator[JudgedPair]:
    """The pairs of a group: of replies with a reward, those that got the same left out."""
    if config.opponent == "policy":
        ranked = sorted(_usable(group.rollouts), key=lambda one: -(one.reward or 0.0))
        if len(ranked) > 1 and _better(ranked[0], ranked[-1]):
            yield JudgedPair((ranked[0], ranked[-1]))
        return
    count = config.group_size
    for ours, theirs in zip(group.rollouts[:count], group.rollouts[count:], strict=True):
        if len(_usable((ours, theirs))) < 2:
            continue
        if _better(ours, theirs):
            yield JudgedPair((ours, theirs), 1 / count, by_reference=1)
        elif _better(theirs, ours):
            yield JudgedPair((theirs, ours), 1 / count, by_reference=0)


def _usable(rollouts: Sequence[Rollout]) -> list[Rollout]:
    return [one for one in rollouts if one.reward is not None and not one.masked and one.length]


def _better(one: Rollout, other: Rollout) -> bool:
    assert one.reward is not None
    assert other.reward is not None
    return one.reward - other.reward > 1e-9


def forward_backward(
    client: tinker.TrainingClient, pairs: Sequence[JudgedPair], config: OnlineDPO.Config, size: int
) -> Passes:
    """Submit the pass that learns from pairs, without waiting; none where there are none.

    Args:
        size: how many prompts the loss is a mean over; those without a pair count in it.
    """
    if not pairs:
        return []
    items = [RolloutSegment(reply, 0) for pair in pairs for reply in pair.replies]

    def loss(data: object, logprobs: list[Tensor]) -> tuple[Tensor, dict[str, float]]:
        import torch

        own = [torch.tensor(item.segment.sampled[1:]) for item in items]
        lengths = [int(mine.sum()) for mine in own]
        counts = [
            torch.tensor(counted)
            for place in range(0, len(items), 2)
            for counted in config.counts_by_token(lengths[place : place + 2])
        ]
        of_policy = [
            (logp.flatten()[mine] * counted).sum()
            for logp, mine, counted in zip(logprobs, own, counts, strict=True)
        ]
        of_reference = [
            (torch.tensor(item.reference) * counted).sum()
            for item, counted in zip(items, counts, strict=True)
        ]
        logps = completions.Logps(
            torch.stack(of_policy).view(-1, 2),
            torch.stack(of_reference).view(-1, 2),
            torch.tensor(lengths).view(-1, 2),
        )
        values = config.of_pairs(logps)  # - log sigmoid(beta h)
        if config.xpo_alpha:
            explored = torch.tensor([pair.by_reference for pair in pairs])
            # + alpha log p(y_ref)
            values = values + config.xpo_alpha * logps.policy[range(len(pairs)), explored]
        return (values * torch.tensor([pair.share for pair in pairs])).sum() / size, {}

    read = [targets(item.segment) for item in items]
    return [(items, client.forward_backward_custom(read, loss))]


@dataclass(frozen=True)
class OnlinePairs:
    """A `Learner` of the rollout loop."""

    beta: float
    compares_batch: bool = True
    """Some losses compare the pairs of a batch with each other."""

    def ready(
        self, client: tinker.TrainingClient, groups: Sequence[Group], wait: Callable[[Any], Any]
    ) -> None:
        """There is nothing to get ready."""

    def told(
        self,
        groups: Sequence[Group],
        items: Sequence[RolloutSegment],
        outputs: Sequence[dict[str, tinker.TensorData]],
    ) -> Mapping[str, float]:
        """What TRL logs of pairs, and how many groups had none."""
        import torch

        share = {"pairs/formed": len(items) / 2}
        if not items:
            return share
        if any(item.rollout.by_reference for item in items):
            won = [not better.rollout.by_reference for better in items[::2]]
            share["pairs/policy_won"] = sum(won) / len(won)
        found = [item.segment.read(output) for item, output in zip(items, outputs, strict=True)]
        policy = torch.tensor([sum(own) for own in found]).view(-1, 2)
        reference = torch.tensor([sum(item.reference) for item in items]).view(-1, 2)
        rewards = self.beta * (policy - reference)
        return {**share, **completions.pair_metrics(rewards, policy)}

    def watched(self, groups: Sequence[Group]) -> list[WatchedReply]:
        """The best and the worst reply of two groups."""
        return watched(groups)
