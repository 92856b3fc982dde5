"""The policy gradient as the rollout loop is handed it: what is read before a batch is learned
from, and what is told of a step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from posttrain_recipes.plugin import WatchedReply
from posttrain_recipes.training.rl import entropy, importance, observations
from posttrain_recipes.training.rl.metrics import watched
from posttrain_recipes.training.rl.observations import AnsweredSegment
from posttrain_recipes.training.rl.policy_loss import PolicyConfig
from posttrain_recipes.training.rl.rollout import Group, RolloutSegment

if TYPE_CHECKING:
    import tinker


@dataclass(frozen=True)
class PolicyGradient:
    """A `Learner` of the rollout loop."""

    config: PolicyConfig

    @property
    def compares_batch(self) -> bool:
        """Whether what is learned of a group is known only once the whole batch has its rewards."""
        return self.config.compares_batch or self.config.top_entropy is not None

    def ready(
        self, client: tinker.TrainingClient, groups: Sequence[Group], wait: Callable[[Any], Any]
    ) -> None:
        """Have it known what each token of groups weighs in the loss."""
        config = self.config
        if config.importance_weights is not None:
            # The others teach nothing, whatever they weigh.
            always = config.surrogate.regularizes or self.compares_batch
            taught = [one for one in groups if always or one.varies]
            read = [one for group in taught for one in group.scored if not one.masked]
            importance.weigh(client, read, config, wait)
        if config.top_entropy is not None:
            entropy.keep_uncertain(groups, config.top_entropy)

    def told(
        self,
        groups: Sequence[Group],
        items: Sequence[RolloutSegment],
        outputs: Sequence[dict[str, tinker.TensorData]],
    ) -> Mapping[str, float]:
        """Metrics of a step, from what the engine's pass found for each item."""
        rollouts = [one for group in groups for one in group.scored]
        pairs = list(zip(items, outputs, strict=True))
        answers = [one for one in pairs if isinstance(one[0], AnsweredSegment)]
        own = [one for one in pairs if not isinstance(one[0], AnsweredSegment)]
        return {
            **importance.metrics(rollouts, self.config),
            **drift([item for item, _ in own], [output for _, output in own], self.config),
            **observations.metrics([i for i, _ in answers], [output for _, output in answers]),
        }

    def watched(self, groups: Sequence[Group]) -> list[WatchedReply]:
        """The best and the worst rollout of two groups, those that were learned from first, with
        what is known of each token."""
        return watched(groups, self.config.token_advantages)


def drift(
    items: Sequence[RolloutSegment],
    outputs: Sequence[dict[str, tinker.TensorData]],
    config: PolicyConfig,
) -> dict[str, float]:
    """How far the policy p had moved from the one that the ratio of the loss is to, and from q,
    which sampled, when it was trained on.

    `outputs` are what the engine's forward pass found for each item.
    """
    gaps: list[float] = []
    means: list[float] = []
    stale: list[float] = []
    left_out: list[bool] = []
    for item, output in zip(items, outputs, strict=True):
        policy = item.segment.read(output)
        own = [p - q for p, q in zip(policy, item.old, strict=True)]
        stale += [q - p for p, q in zip(policy, item.sampled, strict=True)]
        left_out += config.left_out(item.worth, policy, item.sampled)
        gaps += own
        means.append(sum(own) / max(1, len(own)))
    if not gaps:
        return {}
    ratios = [math.exp(min(gap, 30.0)) for gap in (means if config.surrogate.by_sequence else gaps)]
    low, high = config.clip
    masked = {"policy/left_out_share": sum(left_out) / len(left_out)}
    return {
        **(masked if config.off_policy_mask is not None else {}),
        "policy/ratio_mean": sum(ratios) / len(ratios),
        "policy/ratio_max": max(ratios),
        "policy/clip_share": sum(not low <= r <= high for r in ratios) / len(ratios),
        "policy/kl_sampler": sum(stale) / len(stale),
    }
