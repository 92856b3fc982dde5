"""Policy gradients on groups: advantages on tokens, the surrogate losses, and what they showed.

The engine's losses are sums over tokens; the weight that a token has by the length normalization
and the size of the batch is put into its advantage, which every one of them is linear in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from posttrain_recipes.options import PluginConfig
from posttrain_recipes.training.rl import advantages
from posttrain_recipes.training.rl.rollout import Group, Rollout, Segment

if TYPE_CHECKING:
    import tinker
    from torch import Tensor

PolicyLoss = Literal["importance_sampling", "ppo", "cispo", "dro", "gspo"]
CLIPS: dict[str, tuple[float, float]] = {
    "ppo": (0.8, 1.2),
    "cispo": (0.0, 4.0),
    "gspo": (1 - 3e-4, 1 + 4e-4),
}
"""Bounds on the ratio p/q where a recipe gives none: PPO's usual 0.2; CISPO clips from above
alone; GSPO's are of a ratio of sequences (arXiv 2507.18071, section 5.1)."""


class PolicyConfig(PluginConfig):
    """Options of the policy gradient."""

    advantage: advantages.Estimator = "group_norm"
    """From rewards to advantages: group_mean (r - mean), group_norm (over the spread, GRPO), rloo
    (against the others), dr_grpo (r - mean, constant length), reinforce_pp (over the batch)."""
    loss: PolicyLoss = "ppo"
    """The surrogate: importance_sampling (no clipping), ppo, cispo, dro, gspo (sequences)."""
    length_norm: advantages.LengthNorm | None = None
    """What a token weighs: sequence (replies count the same), token (tokens do), constant
    (max_tokens divides all); by default what the paper of the advantage does."""
    clip_low: float | None = Field(default=None, ge=0, le=1)
    """Smallest ratio p/q that is not clipped; by default 0.8 for ppo, 0 for cispo."""
    clip_high: float | None = Field(default=None, ge=1)
    """Largest ratio p/q that is not clipped; by default 1.2 for ppo, 4 for cispo."""
    dro_beta: float = Field(default=0.05, gt=0)
    """For loss dro: the pull towards the policy that sampled."""

    @model_validator(mode="after")
    def _clips_have_a_loss(self) -> PolicyConfig:
        if self.loss not in CLIPS and not (self.clip_low is None and self.clip_high is None):
            raise ValueError(f"loss '{self.loss}' does not clip; remove clip_low and clip_high")
        return self

    @property
    def clip(self) -> tuple[float, float]:
        """Bounds on the ratio p/q."""
        low, high = CLIPS.get(self.loss, (0.0, math.inf))
        return (
            low if self.clip_low is None else self.clip_low,
            high if self.clip_high is None else self.clip_high,
        )


@dataclass
class Item:
    """One sequence of a rollout that is learned from."""

    segment: Segment
    rollout: Rollout


class PolicyGradient:
    """Turns groups into one forward and backward pass."""

    def __init__(self, config: PolicyConfig, max_tokens: int) -> None:
        self.config = config
        self.max_tokens = max_tokens
        self.length_norm = config.length_norm or (
            "sequence" if config.loss == "gspo" else advantages.LENGTH_NORMS[config.advantage]
        )

    @property
    def streams(self) -> bool:
        """Whether a group can be learned from before the others of its batch are there."""
        return self.config.advantage not in advantages.BATCH_WIDE

    def weigh(self, groups: Sequence[Group], groups_in_update: int) -> None:
        """Give every rollout its advantage and its tokens their weight.

        The sum of the loss becomes a mean over the `groups_in_update` groups of an optimizer step;
        groups without variance count in it, with nothing to add.
        """
        estimate = advantages.ESTIMATORS[self.config.advantage]
        for group, values in zip(groups, estimate([g.rewards for g in groups]), strict=True):
            scored = group.scored
            # A masked reply is one of the group, yet none of its tokens is one of the loss.
            lengths = [0 if rollout.masked else rollout.length for rollout in scored]
            weights = advantages.token_weights(lengths, self.length_norm, self.max_tokens)
            for rollout, value, weight in zip(scored, values, weights, strict=True):
                # Float noise in the mean of equal rewards is no reason to move.
                rollout.advantage = value if abs(value) > 1e-9 else 0.0
                rollout.weight = weight / groups_in_update

    def submit(
        self, client: tinker.TrainingClient, groups: Sequence[Group]
    ) -> tuple[list[Item], tinker.APIFuture[tinker.ForwardBackwardOutput] | None]:
        """Submit forward and backward of what there is to learn, without waiting; None: nothing."""
        items = [
            Item(segment, rollout)
            for group in groups
            for rollout in group.rollouts
            if rollout.learned
            for segment in rollout.segments
        ]
        if not items:
            return items, None
        config = self.config
        if config.loss == "dro":
            return items, client.forward_backward_custom(
                [_targets(item) for item in items], _dro(items, config.dro_beta)
            )
        settings = {}
        if config.loss in CLIPS:
            low, high = config.clip
            settings = {"clip_low_threshold": low, "clip_high_threshold": high}
        data = [_datum(item, config.loss) for item in items]
        return items, client.forward_backward(data, config.loss, settings or None)


def _targets(item: Item) -> tinker.Datum:
    """The sequence as the engine takes it for a loss of ours: N - 1 inputs and targets."""
    import tinker

    tokens, sampled = item.segment.tokens, item.segment.sampled
    shape = [len(tokens) - 1]
    weights = [float(own) for own in sampled[1:]]
    return tinker.Datum(
        model_input=tinker.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={
            "target_tokens": tinker.TensorData(data=tokens[1:], dtype="int64", shape=shape),
            "weights": tinker.TensorData(data=weights, dtype="float32", shape=shape),
        },
    )


def _datum(item: Item, loss: str) -> tinker.Datum:
    """The sequence as the engine takes it: N - 1 inputs, targets, log-probabilities, advantages."""
    import tinker

    segment, rollout = item.segment, item.rollout
    worth = rollout.advantage * rollout.weight
    columns = {
        "logprobs": segment.logprobs[1:],
        "advantages": [worth if own else 0.0 for own in segment.sampled[1:]],
    }
    if loss == "gspo":
        columns["sequence_ratio_mask"] = [float(own) for own in segment.sampled[1:]]
    shape = [len(segment.tokens) - 1]
    return tinker.Datum(
        model_input=tinker.ModelInput.from_ints(segment.tokens[:-1]),
        loss_fn_inputs={
            "target_tokens": tinker.TensorData(data=segment.tokens[1:], dtype="int64", shape=shape),
            **{
                name: tinker.TensorData(data=values, dtype="float32", shape=shape)
                for name, values in columns.items()
            },
        },
    )


def _dro(
    items: Sequence[Item], beta: float
) -> Callable[[list[tinker.Datum], list[Tensor]], tuple[Tensor, dict[str, float]]]:
    """-sum_t w (A log p - beta/2 (log p - log q)^2), over the policy's own tokens.

    Richemond et al. 2024, arXiv 2405.19107, for each token. The engine's own sums the second term
    over the prompt too, whose log q nobody knows; so this one is computed on our side.
    """

    def loss(data: list[tinker.Datum], logprobs: list[Tensor]) -> tuple[Tensor, dict[str, float]]:
        import torch

        total = torch.zeros(())
        for item, logp in zip(items, logprobs, strict=True):
            own = torch.tensor(item.segment.sampled[1:])
            q = torch.tensor(item.segment.logprobs[1:])[own]
            p = logp.flatten()[own]
            gain = item.rollout.advantage * p - beta / 2 * (p - q).square()
            total = total - item.rollout.weight * gain.sum()
        return total, {}

    return loss


def drift(
    items: Sequence[Item], outputs: Sequence[dict[str, tinker.TensorData]], config: PolicyConfig
) -> dict[str, float]:
    """How far the policy p had moved from q, which sampled, when it was trained on.

    `outputs` are what the engine's forward pass found for each item.
    """
    gaps: list[float] = []
    means: list[float] = []
    for item, output in zip(items, outputs, strict=True):
        values = [0.0, *(float(v) for v in output["logprobs"].data)]
        policy = item.segment.own(values)
        sampler = item.segment.own(item.segment.logprobs)
        own = [p - q for p, q in zip(policy, sampler, strict=True)]
        gaps += own
        means.append(sum(own) / max(1, len(own)))
    if not gaps:
        return {}
    ratios = [math.exp(min(gap, 30.0)) for gap in (means if config.loss == "gspo" else gaps)]
    low, high = config.clip
    return {
        "policy/ratio_mean": sum(ratios) / len(ratios),
        "policy/ratio_max": max(ratios),
        "policy/clip_share": sum(not low <= r <= high for r in ratios) / len(ratios),
        "policy/kl_sampler": -sum(gaps) / len(gaps),
    }
