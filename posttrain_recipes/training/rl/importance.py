"""Off-policy control: what a token of the loss weighs where another policy wrote it.

    loss = - sum_t w_t surrogate(p / p_old, A),   w_t = p_old / q

q is the policy that sampled, p_old the one at the start of the batch, as the trainer reads it,
and p the one that is trained. q is another than p_old where rollouts are stale (`max_staleness`),
or where the server samples with other kernels than it trains with. w is truncated or left out
where it is large (Yao et al. 2025, fengyao.notion.site/off-policy-rl; the four ways are those of
TRL's `vllm_importance_sampling_mode`), and it has no gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from posttrain_recipes.options import PluginConfig
from posttrain_recipes.training.rl.behaviour import BehaviourLogprobs
from posttrain_recipes.training.rl.rollout import Rollout, Segment

if TYPE_CHECKING:
    import tinker

MOST = 30.0
"""Largest log-ratio that is raised to a power of e."""


class ImportanceConfig(PluginConfig):
    """Options of off-policy control."""

    importance_weights: (
        Literal["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"] | None
    ) = None
    """What the loss of a token is multiplied by where another policy wrote it: w = p_old/q, with
    p_old the policy as the batch began, which reads each reply again, and q the one that sampled;
    the ratio of the loss is p/p_old then. token: of each token; sequence: the product over the
    reply. truncate: no more than importance_cap; mask: 0 above it. By default nothing is
    multiplied, and the ratio of the loss is p/q."""
    importance_cap: float = Field(default=3.0, gt=0)
    """For importance_weights: the largest that is taken as it is."""
    importance_floor: float = Field(default=0.0, ge=0)
    """For importance_weights: the smallest; below it truncate takes this, and mask 0."""
    behaviour_logprobs: BehaviourLogprobs = "auto"
    """log q of the sampling policy: sampled, as the server tells it with a sample; recomputed, as
    the same weights read it afterwards, one prefill of each reply, so that ratios and KL compare
    like with like; auto recomputes where the two are more than 0.03 nats a token apart (root mean
    square) in the stage's first groups, and takes the embedded engine's as they are; with
    importance_weights, which see to the difference, auto is sampled."""
    off_policy_mask: float | None = Field(default=None, gt=0)
    """Leave out replies (of rewarded steps, the tokens) that are worse than their group and of
    which log q/p is more than this, in nats, the mean of the reply's tokens: DeepSeek-V3.2, arXiv
    2512.02556. Takes a second pass."""

    @model_validator(mode="after")
    def _bounds_have_weights(self) -> ImportanceConfig:
        bounds = (self.importance_cap, self.importance_floor)
        if self.importance_weights is None and bounds != (3.0, 0.0):
            raise ValueError(
                "importance_cap and importance_floor are of importance_weights; say which, as "
                "importance_weights: sequence_mask, or remove them"
            )
        if self.importance_floor >= self.importance_cap:
            raise ValueError("importance_floor has to be below importance_cap")
        return self

    def ratios(self, old: Sequence[float], sampled: Sequence[float]) -> list[float]:
        """p_old/q of each token (T,), of the whole sequence where that is asked; not bounded.

        Args:
            old: log p_old of the policy's own tokens (T,).
            sampled: log q of them (T,).
        """
        gaps = [p - q for p, q in zip(old, sampled, strict=True)]
        if (self.importance_weights or "").startswith("sequence"):
            gaps = [math.fsum(gaps)] * len(gaps)
        return [math.exp(min(gap, MOST)) for gap in gaps]

    def bounded(self, ratios: Sequence[float]) -> list[float]:
        """w of each token (T,)."""
        low, high = self.importance_floor, self.importance_cap
        if (self.importance_weights or "").endswith("truncate"):
            return [min(max(ratio, low), high) for ratio in ratios]
        return [ratio if low <= ratio <= high else 0.0 for ratio in ratios]

    def left_out(
        self, worth: Sequence[float], logp: Sequence[float], logq: Sequence[float]
    ) -> list[bool]:
        """Which own tokens of a sequence (T,) `off_policy_mask` leaves out: DeepSeek-V3.2, arXiv
        2512.02556, section 3.1.

        Args:
            worth: the advantage of each, with what it is credited for (T,).
            logp: log p of them (T,).
            logq: log q of them (T,).
        """
        if self.off_policy_mask is None or not worth:
            return [False] * len(worth)
        gap = math.fsum(q - p for p, q in zip(logp, logq, strict=True)) / len(worth)
        return [gap > self.off_policy_mask and value < 0 for value in worth]


def targets(segment: Segment) -> tinker.Datum:
    """A sequence to be read, as the engine takes it: N - 1 inputs and targets."""
    import tinker

    tokens, shape = segment.tokens, [len(segment.tokens) - 1]
    weights = [float(own) for own in segment.sampled[1:]]
    return tinker.Datum(
        model_input=tinker.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={
            "target_tokens": tinker.TensorData(data=tokens[1:], dtype="int64", shape=shape),
            "weights": tinker.TensorData(data=weights, dtype="float32", shape=shape),
        },
    )


def weigh(
    client: tinker.TrainingClient,
    rollouts: Sequence[Rollout],
    config: ImportanceConfig,
    wait: Callable[[Any], Any],
) -> None:
    """Have the policy read rollouts before it learns from any of their batch: log p_old of each of
    its own tokens, and what those weigh."""
    places = [(one, segment) for one in rollouts for segment in one.segments]
    if not places:
        return
    data = [targets(segment) for _, segment in places]
    read = wait(client.forward(data, "cross_entropy"))
    for (rollout, segment), output in zip(places, read.loss_fn_outputs, strict=True):
        old = segment.read(output)
        rollout.old.append(old)
        ratios = config.ratios(old, segment.own(segment.logprobs))
        rollout.factors.append(config.bounded(ratios))


def metrics(rollouts: Iterable[Rollout], config: ImportanceConfig) -> dict[str, float]:
    """Of p_old/q before it was bounded, over tokens; empty where none was asked."""
    ratios: list[float] = []
    for rollout in rollouts:
        for segment, old in zip(rollout.segments, rollout.old, strict=bool(rollout.old)):
            ratios += config.ratios(old, segment.own(segment.logprobs))
    if not ratios:
        return {}
    weights = config.bounded(ratios)
    squares = math.fsum(weight * weight for weight in weights)
    pairs = zip(ratios, weights, strict=True)
    return {
        "importance/ratio_mean": math.fsum(ratios) / len(ratios),
        "importance/ratio_max": max(ratios),
        "importance/bounded_share": sum(r != w for r, w in pairs) / len(ratios),
        "importance/effective_share": math.fsum(weights) ** 2 / max(1e-30, squares) / len(weights),
    }
