"""The surrogate losses of the policy gradient, and how a group's tokens are weighted in them.

p is the policy that is trained and q the one that sampled, rho = p / q the ratio of the two on a
token, A the advantage of the completion. The loss of an optimizer step is

    - sum over its completions i and their own tokens t of  w_i surrogate(rho_it, A_it)

What divergence from a reference costs is taken off A_it of each token, or added to the loss (see
`advantages`). A token's loss may be multiplied by a factor of its own: `importance`, `entropy`.

A surrogate that the engine has is computed there, in one forward and backward pass. The engine's
are sums over tokens, linear in A, so that w is multiplied into it. Any other is computed on our
side from the log-probabilities that the engine sends back, which takes two passes.

To add one: a function with `@surrogate()` here, and its test. It is then a value of `loss`; `ptl
schema -o schemas/recipe.schema.json` and `tools/method_docs.py` write it into schema and docs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from pydantic import Field, model_validator

from posttrain_recipes.options import summaries
from posttrain_recipes.training.rl import advantages
from posttrain_recipes.training.rl.advantages import DivergenceConfig
from posttrain_recipes.training.rl.entropy import EntropyConfig
from posttrain_recipes.training.rl.importance import ImportanceConfig, targets
from posttrain_recipes.training.rl.observations import ObservationConfig
from posttrain_recipes.training.rl.rollout import Group, Passes, RolloutSegment, Segment

if TYPE_CHECKING:
    import tinker
    from torch import Tensor

    Formula = Callable[[Tensor, Tensor, "Tensor | float", "PolicyConfig"], Tensor]
    Advantage: TypeAlias = "Tensor | float"


@dataclass(frozen=True)
class Surrogate:
    """A surrogate loss."""

    formula: Formula
    """(log p (T,), log q (T,), A (T,), config) -> the loss (T,) of each own token of one
    sequence; A may be one number for all of them."""
    clip: tuple[float, float] | None = None
    """Bounds on the ratio where a recipe gives none; None: it does not clip."""
    engine: bool = False
    """Whether engines have it, under the same name: then they compute it, and the formula here is
    what they are held to (`tests/unit/test_surrogates.py`)."""
    by_sequence: bool = False
    """Whether its ratio is that of the whole sequence."""
    length_norm: advantages.LengthNorm | None = None
    """How its source weighs tokens, where the estimator's way is not meant."""
    regularizes: bool = False
    """Whether it pulls on a completion whose advantage is 0 too."""

    @property
    def need(self) -> str:
        """What an engine has to be able to do for it."""
        return f"loss:{self.formula.__name__}" if self.engine else "custom_loss"


SURROGATES: dict[str, Surrogate] = {}


def surrogate(**options: Any) -> Callable[[Formula], Formula]:
    """Make a formula a value of the option `loss`, by its name.

    Args:
        options: the further fields of `Surrogate`.
    """

    def register(formula: Formula) -> Formula:
        SURROGATES[formula.__name__] = Surrogate(formula, **options)
        return formula

    return register


def ratio(logp: Tensor, logq: Tensor) -> Tensor:
    """rho = p / q."""
    return (logp - logq).exp()


@surrogate(engine=True)
def importance_sampling(logp: Tensor, logq: Tensor, A: Advantage, config: PolicyConfig) -> Tensor:
    """-rho A, no clipping."""
    return -ratio(logp, logq) * A


@surrogate(clip=(0.8, 1.2), engine=True)
def ppo(logp: Tensor, logq: Tensor, A: Advantage, config: PolicyConfig) -> Tensor:
    """-min(rho A, clip(rho) A).

    Schulman et al. 2017, arXiv 1707.06347, equation 7. With `delta` the first rho is at most that,
    so that a bad reply which became likelier does not outweigh all others: the two-sided clip of
    Prime Intellect 2025, arXiv 2505.07291.
    """
    rho = ratio(logp, logq)
    low, high = config.clip
    most = math.inf if config.delta is None else config.delta
    return -(rho.clamp(max=most) * A).minimum(rho.clamp(low, high) * A)


@surrogate(clip=(0.0, 4.0), engine=True)
def cispo(logp: Tensor, logq: Tensor, A: Advantage, config: PolicyConfig) -> Tensor:
    """-clip(rho) A log p, the clipped ratio a constant weight of the token's gradient.

    MiniMax 2025, arXiv 2506.13585, equation 4; clipped from above alone by default.
    """
    low, high = config.clip
    return -ratio(logp, logq).clamp(low, high).detach() * A * logp


@surrogate(regularizes=True)
def dro(logp: Tensor, logq: Tensor, A: Advantage, config: PolicyConfig) -> Tensor:
    """-(A log p - beta/2 (log rho)^2).

    Richemond et al. 2024, arXiv 2405.19107, for each token. The engine's own sums the second term
    over the prompt too, whose log q nobody knows; so this one is computed on our side.
    """
    return -(A * logp - config.dro_beta / 2 * (logp - logq).square())


@surrogate(clip=(1 - 3e-4, 1 + 4e-4), engine=True, by_sequence=True, length_norm="sequence")
def gspo(logp: Tensor, logq: Tensor, A: Advantage, config: PolicyConfig) -> Tensor:
    """-min(s A, clip(s) A) with s = exp(mean log rho), the ratio of the sequence.

    Zheng et al. 2025, arXiv 2507.18071, equations 5 and 7, clip range of section 5.1. Every token
    has the sequence's s. With `length_norm: constant` it is LUSPO, up to a constant factor.
    """
    s = (logp - logq).mean().exp().expand(logp.shape)
    low, high = config.clip
    return -(s * A).minimum(s.clamp(low, high) * A)


@surrogate()
def sapo(logp: Tensor, logq: Tensor, A: Advantage, config: PolicyConfig) -> Tensor:
    """-(4/tau) sigmoid(tau (rho - 1)) A, a soft gate in the place of a clip.

    Gao et al. 2025, arXiv 2511.20347: tau is one number where A > 0 and another
    where not. At rho = 1 value and slope are those of -rho A up to a constant.
    """
    taus = (config.sapo_positive, config.sapo_negative)
    tau = where_positive(A, *map(logp.new_tensor, taus))
    return -(4 / tau) * (tau * (ratio(logp, logq) - 1)).sigmoid() * A


@surrogate(clip=(math.exp(-0.4), math.exp(0.4)), length_norm="sequence")
def gmpo(logp: Tensor, logq: Tensor, A: Advantage, config: PolicyConfig) -> Tensor:
    """-exp(mean of clipped log rho) A, the geometric mean of the tokens' ratios.

    Zhao et al. 2025, arXiv 2507.20673: each token's log rho is clipped from above where
    A > 0 and from below where not, before the mean. Every token has the mean's exponential.
    """
    low, high = (math.log(max(bound, 1e-30)) for bound in config.clip)
    gap = logp - logq
    clipped = where_positive(A, gap.clamp(max=high), gap.clamp(min=low))
    return -clipped.mean().exp().expand(logp.shape) * A


@surrogate(length_norm="token")
def vespo(logp: Tensor, logq: Tensor, A: Advantage, config: PolicyConfig) -> Tensor:
    """-phi(w) A log p with phi(w) = w^k e^(lambda (1 - w)), w the ratio of the sequence.

    Shen et al. 2026, arXiv 2602.10693: phi, which is 1 at w = 1, is a constant weight of the
    gradient; k and lambda are 2 and 3 where A >= 0, 3 and 2 where not. w = exp(sum log rho) is a
    product, not a mean, and bounded below by 1e-8, as in the authors' code.
    """
    import torch

    log_w = (logp - logq).detach().clamp(-20, 20).sum().clamp(math.log(1e-8), 20.0)
    two, three = logp.new_tensor(2), logp.new_tensor(3)
    negative = torch.as_tensor(A) < 0
    k, pull = torch.where(negative, three, two), torch.where(negative, two, three)
    phi = (k * log_w + pull * (1 - log_w.exp())).exp()
    return -phi * A * logp


def where_positive(A: Advantage, above: Tensor, below: Tensor) -> Tensor:
    """`above` where A > 0 and `below` elsewhere, as tensors that broadcast with A."""
    import torch

    return torch.where(torch.as_tensor(A) > 0, above, below)


def _clips(side: int) -> str:
    found = {name: s.clip[side] for name, s in SURROGATES.items() if s.clip is not None}
    return ", ".join(f"{bound:g} for {name}" for name, bound in found.items())


if TYPE_CHECKING:
    PolicyLoss = str
else:
    PolicyLoss = Literal[tuple(SURROGATES)]


_OF_ONE_LOSS = {
    "delta": "ppo",
    "dro_beta": "dro",
    "sapo_positive": "sapo",
    "sapo_negative": "sapo",
}


class PolicyConfig(DivergenceConfig, ImportanceConfig, EntropyConfig, ObservationConfig):
    """Options of the policy gradient."""

    advantage: advantages.Estimator = Field(
        default="group_norm",
        description=f"From rewards to advantages: {summaries(advantages.ESTIMATORS)}.",
    )
    loss: PolicyLoss = Field(
        default="ppo",
        description="The surrogate, of the ratio rho = p/q: "
        + summaries({name: s.formula for name, s in SURROGATES.items()})
        + ".",
    )
    length_norm: advantages.LengthNorm | None = None
    """What a token weighs: sequence (replies count the same), token (tokens do), constant
    (max_tokens divides all); by default what the paper of the advantage does."""
    clip_low: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description=f"Smallest ratio p/q that is not clipped; by default {_clips(0)}.",
    )
    clip_high: float | None = Field(
        default=None,
        ge=1,
        description=f"Largest ratio p/q that is not clipped; by default {_clips(1)}.",
    )
    delta: float | None = Field(default=None, gt=1)
    """For loss ppo: the largest ratio p/q of a reply that is worse than its group, whose gradient
    is otherwise not clipped; above clip_high. Takes a second pass of the engine."""
    pass_k: int = Field(default=4, ge=2)
    """For advantage pass_at_k: of how many replies the best counts."""
    dro_beta: float = Field(default=0.05, gt=0)
    """For loss dro: the pull towards the policy that sampled."""
    sapo_positive: float = Field(default=1.0, gt=0)
    """For loss sapo: how soon its gate closes where the advantage is positive."""
    sapo_negative: float = Field(default=1.05, gt=0)
    """For loss sapo: how soon it closes elsewhere."""

    @model_validator(mode="after")
    def _clips_have_a_loss(self) -> PolicyConfig:
        if self.surrogate.clip is None and not (self.clip_low is None and self.clip_high is None):
            raise ValueError(f"loss '{self.loss}' does not clip; remove clip_low and clip_high")
        fields = type(self).model_fields
        for name, loss in _OF_ONE_LOSS.items():
            if self.loss != loss and getattr(self, name) != fields[name].default:
                raise ValueError(f"{name} means nothing to loss '{self.loss}'; remove it")
        if self.advantage != "pass_at_k" and self.pass_k != fields["pass_k"].default:
            raise ValueError(f"pass_k means nothing to advantage '{self.advantage}'; remove it")
        if self.loss == "vespo" and self.importance_weights is not None:
            raise ValueError(
                "loss 'vespo' weighs by the ratio p/q of the whole sequence already; remove "
                "importance_weights"
            )
        if self.delta is not None and self.delta <= self.clip[1]:
            raise ValueError(f"delta must be above clip_high, which is {self.clip[1]:g}")
        return self

    @property
    def surrogate(self) -> Surrogate:
        """The surrogate that `loss` names."""
        return SURROGATES[self.loss]

    @property
    def loss_need(self) -> str:
        """What an engine has to be able to do for the loss."""
        return "custom_loss" if self.on_our_side else self.surrogate.need

    @property
    def forwards(self) -> int:
        """Passes without a gradient that a reply takes before the one that has it."""
        return self.on_our_side + (self.importance_weights is not None)

    @property
    def backwards(self) -> int:
        """Passes with a gradient that a reply takes, those of what is trained beside included."""
        return 1

    @property
    def on_our_side(self) -> bool:
        """Whether the loss is computed from log-probabilities that the engine sends back."""
        ours = self.kl_in_loss or self.delta is not None or self.off_policy_mask is not None
        return ours or not self.surrogate.engine

    def estimate(self, group: Group, batch: Sequence[Group]) -> list[float]:
        """A of each scored rollout (G,), by the estimator that `advantage` names.

        Args:
            batch: all groups of the batch, for an estimator that looks at them.
        """
        return advantages.ESTIMATORS[self.advantage](group, batch, self)

    @property
    def compares_batch(self) -> bool:
        """Whether an advantage is known only once the whole batch has its rewards."""
        return self.advantage in advantages.BATCH_WIDE

    @property
    def compares_alone(self) -> bool:
        """Whether a reply has an advantage that is the only one to its prompt."""
        return self.advantage in advantages.ALONE

    @property
    def wants_greedy(self) -> bool:
        """Whether the greedy reply to each prompt is sampled too."""
        return self.advantage == "remax"

    @property
    def clip(self) -> tuple[float, float]:
        """Bounds on the ratio p/q."""
        low, high = self.surrogate.clip or (0.0, math.inf)
        return (
            low if self.clip_low is None else self.clip_low,
            high if self.clip_high is None else self.clip_high,
        )

    def credit(self, group: Group) -> None:
        """Credit each token of the group with the steps that end after it, where a reward marks
        steps: the sum of (r - mean) / std over all steps of the group, times the reward's weight.

        Shao et al. 2024, arXiv 2402.03300, section 4.1.3. The std divides with `advantage:
        group_norm` alone.
        """
        for place, marks in enumerate(group.marked):
            if not marks:
                continue
            centre = advantages.mean(marks)
            scale = advantages.std(marks) + advantages.EPSILON
            for rollout in group.scored:
                one = rollout.marks[place]
                count = rollout.length
                credits = rollout.credits[0] if rollout.credits else [0.0] * count
                for end, mark in one.steps:
                    worth = mark - centre
                    worth /= scale if self.advantage == "group_norm" else 1.0
                    for t in range(min(end, count)):
                        credits[t] += one.weight * worth
                rollout.credits = [credits]

    def token_advantages(self, item: RolloutSegment) -> list[float]:
        """A of each of the policy's own tokens (T,) of a sequence, with what it is credited for,
        what divergence costs taken off and what entropy is worth added."""
        costs = self.kl_costs(item.sampled, item.reference)
        bonuses = self.bonus(item.sampled, item.rollout.surprise)
        parts = zip(item.worth, costs, bonuses, strict=True)
        return [worth - cost + bonus for worth, cost, bonus in parts]

    def token_weights(self, group: Group, max_tokens: int) -> list[float]:
        """What one token of each scored rollout (G,) weighs in the loss of its group."""
        how = (
            self.length_norm
            or self.surrogate.length_norm
            or advantages.LENGTH_NORMS[self.advantage]
        )
        # A masked reply is one of the group, yet none of its tokens is one of the loss.
        lengths = [0 if rollout.masked else rollout.length for rollout in group.scored]
        return advantages.token_weights(lengths, how, max_tokens)


def forward_backward(
    client: tinker.TrainingClient, groups: Sequence[Group], config: PolicyConfig
) -> Passes:
    """Submit the pass that learns from groups, without waiting; none where nothing is learned.

    Divergence costs in groups that are learned from alone: in the others the noise of two ways to
    the same log-probability would be all the gradient there is, and Adam's step as long as ever.
    """
    chosen = config.surrogate
    items = [item for group in groups for item in _learned(group, config)]
    if not items:
        return []
    if config.on_our_side:
        loss = _on_our_side(items, config)
        read = [targets(item.segment) for item in items]
        return [(items, client.forward_backward_custom(read, loss))]
    clip = dict(zip(("clip_low_threshold", "clip_high_threshold"), config.clip, strict=True))
    data = [_datum(item, config) for item in items]
    return [(items, client.forward_backward(data, config.loss, clip if chosen.clip else None))]


def _learned(group: Group, config: PolicyConfig) -> Iterator[RolloutSegment]:
    """The sequences of a group that have something to teach."""
    rollouts = [rollout for rollout in group.scored if not rollout.masked]
    always = config.surrogate.regularizes
    if not always and not any(rollout.teaches for rollout in group.scored):
        return
    for rollout in rollouts:
        if not (always or rollout.teaches or config.kl_beta or config.entropy_bonus):
            continue
        for place, segment in enumerate(rollout.segments):
            if any(segment.sampled):
                yield RolloutSegment(rollout, place)


def _datum(item: RolloutSegment, config: PolicyConfig) -> tinker.Datum:
    """The sequence as the engine takes it: N - 1 inputs, targets, log-probabilities, advantages."""
    import tinker

    segment = item.segment
    pairs = zip(config.token_advantages(item), item.weights, strict=True)
    columns = {
        "logprobs": _placed(item.old, segment),
        "advantages": _placed([value * weight for value, weight in pairs], segment),
    }
    if config.surrogate.by_sequence:
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


def _placed(own: Sequence[float], segment: Segment) -> list[float]:
    """Values of the policy's own tokens (T,) where those are targets (N - 1,), and zeros."""
    values = iter(own)
    return [next(values) if mine else 0.0 for mine in segment.sampled[1:]]


def _on_our_side(
    items: Sequence[RolloutSegment], config: PolicyConfig
) -> Callable[[list[tinker.Datum], list[Tensor]], tuple[Tensor, dict[str, float]]]:
    """sum_it w_it formula(log p, log q, A) + w_i beta k3, over the policy's own tokens."""
    formula = config.surrogate.formula

    def loss(data: list[tinker.Datum], logprobs: list[Tensor]) -> tuple[Tensor, dict[str, float]]:
        import torch

        total = torch.zeros(())
        for item, logp in zip(items, logprobs, strict=True):
            p = logp.flatten()[torch.tensor(item.segment.sampled[1:])]
            weights = torch.tensor(item.weights)
            A, old = torch.tensor(config.token_advantages(item)), torch.tensor(item.old)
            losses = weights * formula(p, old, A, config)
            left_out = config.left_out(item.worth, p.tolist(), item.sampled)
            losses = losses.masked_fill(torch.tensor(left_out), 0.0)
            if config.kl_in_loss:
                divergence = config.kl_loss(p, torch.tensor(item.reference))
                losses = losses + item.rollout.weight * divergence
            total = total + losses.sum()
        return total, {}

    return loss
