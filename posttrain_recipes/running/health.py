"""What is wrong with RL while it trains: told as it is seen, once each, with what to do.

A run of RL can use its whole budget and teach nothing, or undo what the model could: its loss says
none of that. Judged are the metrics of its rollouts, over windows of steps, as a single step is
mostly noise.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

WINDOW = 10
"""Steps that are judged together."""
ZERO_VARIANCE = 0.75
"""A larger share of zero-variance groups than this is worth a word."""
CUT = 0.1
"""A larger share of replies that end at max_tokens than this is worth a word."""
APART_NATS = 1.0
"""The entropy of a policy that comes apart has doubled, and is by so many nats a token higher."""
LOST = 0.1
"""And it has lost more than this share of its first reward: with few prompts a step, entropy and
reward move as much with the prompts alone."""
FALLING = -4.0
"""A reward falls where the slope of its line, over the last `2 * WINDOW` steps or over all so far,
is this many of its standard errors below zero. Looked at every `WINDOW` steps: of 100 stages
of 200 steps without a slope no more than two look so (simulated)."""
SHORTEST = 6
"""Steps of a stage that is judged at its end, where it ends before there are `2 * WINDOW`."""
FALLING_SHORT = (
    *(-4.6, -4.03, -3.71, -3.5, -3.36, -3.25, -3.17),
    *(-3.11, -3.05, -3.01, -2.98, -2.95, -2.92, -2.9),
)
"""The same bound for stages of so many steps and more: Student's quantile at 0.5%, for one look."""
OVERVIEW = {
    "reward/mean": "reward",
    "groups/zero_variance_share": "share of zero-variance groups",
    "completions/clipped_ratio": "share of replies cut at max_tokens",
    "policy/kl_reference": "KL to the reference",
    "completions/mean_length": "tokens of a reply",
    "train/tokens_per_second": "tokens per second",
}
"""What tells at a glance how a step of RL went. MLflow sorts its sections by name and capitals go
first: these stand above all others."""
RAISE = "and have no end: raise max_tokens"
"""What to do where replies are cut."""
LITTLE_TO_LEARN = (
    "prompts of which the model gets some right and some wrong; sft first if it never does; "
    "'zero_variance_groups: replace', or a larger group_size"
)
"""What to do where groups have one reward for all replies."""


def overview(metrics: Mapping[str, float]) -> dict[str, float]:
    """Those of a step of RL under the names that MLflow shows first; nothing of other steps, whose
    loss says how they went."""
    if "reward/mean" not in metrics:
        return {}
    return {f"Overview/{name}": metrics[key] for key, name in OVERVIEW.items() if key in metrics}


@dataclass
class Health:
    """The judgement of one stage. `max_tokens` is the bound of its replies."""

    max_tokens: int | None = None
    auto_rate: bool = False
    """Whether the learning rate was `auto`, which is no advice then."""
    told: set[str] = field(default_factory=set)
    series: dict[str, list[float]] = field(default_factory=dict)
    ended: bool = False
    """Whether no step follows: a short stage is judged by the steps that it has."""

    def step(self, metrics: Mapping[str, float], *, last: bool = False) -> Iterator[str]:
        """Take the metrics of one more step; what is to be told, in words, with what to do.

        `last`: no step follows.
        """
        self.ended = last
        for name in WATCHED:
            if (value := metrics.get(name)) is not None:
                self.series.setdefault(name, []).append(value)
        for name, judge in JUDGES.items():
            if name not in self.told and (text := judge(self)):
                self.told |= {name, *FOLLOWS.get(name, ())}
                yield text

    def last(self, name: str, count: int = WINDOW) -> list[float]:
        """The last `count` values of a metric; empty where there are not as many yet."""
        found = self.series.get(name, [])
        return found[-count:] if len(found) >= count else []


def _comes_apart(health: Health) -> str | None:
    every, rewards = (health.series.get(name, []) for name in ("policy/entropy", "reward/mean"))
    if len(every) < 4 or len(rewards) < 4 or not any(health.series.get("groups/learned", [1])):
        return None  # where no group taught anything, entropy differs with the prompts
    begin, end = every[0], statistics.fmean(every[-3:])
    reward = statistics.fmean(rewards[-3:])
    fell = rewards[0] - reward > LOST * abs(rewards[0])
    if end < max(2 * begin, begin + APART_NATS) or not fell:
        return None
    usual = "lower it" if health.auto_rate else "'learning_rate: auto' takes what is usual"
    return (
        f"the policy comes apart: in {len(every)} steps its entropy rose from {begin:.3f} to "
        f"{end:.3f} nats a token, and the reward went from {rewards[0]:.3f} to {reward:.3f}; the "
        f"learning_rate is too high: {usual}"
    )


def _nothing_learned(health: Health) -> str | None:
    every = health.series.get("groups/learned", [])
    count = min(len(every), WINDOW) if health.ended else WINDOW
    learned, rewards = health.last("groups/learned", count), health.last("reward/mean", count)
    if count < 2 or not learned or any(learned):
        return None
    told = f"no group taught anything in {count} steps: "
    if rewards and min(rewards) == max(rewards) > health.series["reward/mean"][0]:
        return (
            f"{told}every reply gets the same reward, {rewards[0]:g}, more than at the start; "
            "nothing is left to learn of it: end the stage earlier ('max_steps', 'stop'), or read "
            "the replies, whether they are what was meant"
        )
    if rewards and max(rewards) == min(rewards):
        return (
            f"{told}every reply got the same reward, {rewards[0]:g}; see first whether a right "
            "answer is paid at all ('ptl preflight' tries the reference answer). If it is, the "
            f"model lacks it: {LITTLE_TO_LEARN}"
        )
    return f"{told}all replies of a group had one reward; take {LITTLE_TO_LEARN}"


def _nothing_said(health: Health) -> str | None:
    every = health.series.get("feedback/learned_share", [])
    count = min(len(every), WINDOW) if health.ended else WINDOW
    learned = health.last("feedback/learned_share", count)
    if not learned or any(learned):
        return None
    return (
        f"nothing was learned in {count} {'step' if count == 1 else 'steps'}: no attempt had "
        "feedback that its teacher could be shown. A reward says what is wrong in words, as "
        "'feedback:' of a function (docs/methods/sdpo.md has the others), or some attempts have to "
        "reach 'success', where 'show_success' is on and 'group_size' above 1"
    )


def _little_learned(health: Health) -> str | None:
    shares = health.last("groups/zero_variance_share")
    if not shares or not any(health.last("groups/learned")):
        return None
    share, rewards = statistics.fmean(shares), health.last("reward/mean", 3)
    full = rewards and min(rewards) == max(rewards) > health.series["reward/mean"][0]
    if share <= ZERO_VARIANCE or full:  # of a reward that is reached there is another word
        return None
    return (
        f"{share:.0%} of the groups of the last {WINDOW} steps had one reward for all replies, and "
        f"taught nothing; take {LITTLE_TO_LEARN}"
    )


def _reward_falls(health: Health) -> str | None:
    every = health.series.get("reward/mean", [])
    short = len(every) < 2 * WINDOW
    if not health.ended and (short or len(every) % WINDOW):
        return None
    if len(every) < SHORTEST:
        return None
    bound = FALLING_SHORT[len(every) - SHORTEST] if short else FALLING
    for rewards in (every[-2 * WINDOW :], every):
        if slope_t(rewards) < bound:
            begin, end = _ends(rewards)
            return (
                f"the reward falls, from {begin:.3f} to {end:.3f} in {len(rewards)} steps; a lower "
                "learning_rate, or kl_beta above 0"
            )
    return None


def _entropy_collapses(health: Health) -> str | None:
    every = health.series.get("policy/entropy", [])
    if len(every) < (SHORTEST if health.ended else WINDOW):
        return None
    begin, end = _ends(every)
    if not begin > 0 or end >= begin / 2:
        return None
    return (
        f"the entropy of the policy fell by half, from {begin:.3f} to {end:.3f} nats a token: it "
        "tries less and less; a lower learning_rate, kl_beta above 0, or fewer steps"
    )


def _ends(values: Sequence[float]) -> tuple[float, float]:
    """The means of the first and of the last values: of five, or of half where they are few."""
    count = min(5, len(values) // 2)
    return statistics.fmean(values[:count]), statistics.fmean(values[-count:])


def _replies_are_cut(health: Health) -> str | None:
    every = health.series.get("completions/clipped_ratio", [])
    shares = every[-5:] if len(every) >= 5 or health.ended else []
    if not shares or statistics.fmean(shares) <= CUT:
        return None
    steps = f"the last {len(shares)} steps" if len(shares) > 1 else "the only step"
    share = f"{statistics.fmean(shares):.0%} of the replies of {steps}"
    return f"{share} were cut at {_bound(health.max_tokens)}, {RAISE}"


def _made_are_cut(what: str, metric: str, health: Health) -> str | None:
    shares = health.last(metric, 1)
    if not shares or shares[0] <= CUT:
        return None
    share = f"{shares[0]:.0%} of the {what} of a batch"
    return f"{share} were cut at {_bound(health.max_tokens)}, {RAISE}"


def cut(truncated: Sequence[bool], max_tokens: int | None) -> str | None:
    """What to say of replies some of which ended at `max_tokens`; None where they are few."""
    count, every = sum(truncated), len(truncated)
    if count <= CUT * every:
        return None
    return f"{count} of {every} replies were cut at {_bound(max_tokens)}, {RAISE}"


def _bound(max_tokens: int | None) -> str:
    return f"max_tokens={max_tokens}" if max_tokens else "max_tokens"


MADE = {
    "data/truncated": "replies",
    "critic/truncated_critiques": "critiques",
    "critic/truncated_revisions": "revisions",
    "judge/truncated": "judge's answers",
}
"""What models write while records are made, by the metric of the share that is cut."""
JUDGES: Mapping[str, Callable[[Health], str | None]] = {
    "comes_apart": _comes_apart,
    "nothing_learned": _nothing_learned,
    "nothing_said": _nothing_said,
    "little_learned": _little_learned,
    "reward_falls": _reward_falls,
    "entropy_collapses": _entropy_collapses,
    "replies_are_cut": _replies_are_cut,
    **{metric: partial(_made_are_cut, what, metric) for metric, what in MADE.items()},
}
FOLLOWS = {
    "comes_apart": ("nothing_learned", "little_learned", "reward_falls", "replies_are_cut"),
    "nothing_learned": ("little_learned",),
}
"""What else is seen of the same cause: its advice would lead elsewhere."""
WATCHED = (
    "groups/learned",
    "feedback/learned_share",
    "groups/zero_variance_share",
    "reward/mean",
    "policy/entropy",
    "completions/clipped_ratio",
    *MADE,
)


def slope_t(values: list[float]) -> float:
    """The slope of the least-squares line through values at equal distances, in its standard
    errors; 0 for values that are all the same."""
    count = len(values)
    middle, mean = (count - 1) / 2, statistics.fmean(values)
    spread = math.fsum((i - middle) ** 2 for i in range(count))
    slope = math.fsum((i - middle) * (v - mean) for i, v in enumerate(values)) / spread
    rest = math.fsum((v - mean - slope * (i - middle)) ** 2 for i, v in enumerate(values))
    if rest <= 1e-12 * max(1.0, mean * mean):
        return 0.0 if abs(slope) < 1e-9 else math.copysign(math.inf, slope)
    return slope / math.sqrt(rest / (count - 2) / spread)
