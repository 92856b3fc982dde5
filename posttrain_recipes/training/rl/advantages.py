"""Advantage estimators: from the rewards of a group of completions to the advantage of each.

Pure functions of the rewards r (G,) of the completions of one prompt, in the units of the reward
except where an estimator divides by a standard deviation.

To add one: a function with `@estimator` here, and its test. It is then a value of the option
`advantage`; `ptl schema -o schemas/recipe.schema.json` and `tools/method_docs.py` write it into
schema and docs.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

Rewards = Sequence[float]
Formula = Callable[[Rewards, Sequence[Rewards]], list[float]]
"""(rewards of the group (G,), those of all groups of the batch) -> advantages (G,)."""
LengthNorm = Literal["sequence", "token", "constant"]
EPSILON = 1e-6
"""Added to a standard deviation that is divided by."""

ESTIMATORS: dict[str, Formula] = {}
BATCH_WIDE: set[str] = set()
"""Estimators that need the rewards of the whole batch before they can tell anything."""
LENGTH_NORMS: dict[str, LengthNorm] = {}
"""How each estimator's source weighs the tokens of long and short completions."""


def estimator(length_norm: LengthNorm, batch_wide: bool = False) -> Callable[[Any], Any]:
    """Make a function of the rewards of a group a value of the option `advantage`, by its name.

    Args:
        length_norm: how its source weighs tokens.
        batch_wide: it takes the rewards of all groups of the batch too.
    """

    def register(function: Callable[..., list[float]]) -> Callable[..., list[float]]:
        name = function.__name__
        LENGTH_NORMS[name] = length_norm
        if batch_wide:
            BATCH_WIDE.add(name)
        ESTIMATORS[name] = function if batch_wide else lambda rewards, batch: function(rewards)
        ESTIMATORS[name].__doc__ = function.__doc__
        return function

    return register


@estimator(length_norm="token")
def group_mean(r: Rewards) -> list[float]:
    """r - mean(r), the group's mean as the baseline of REINFORCE."""
    return [r_i - mean(r) for r_i in r]


@estimator(length_norm="sequence")
def group_norm(r: Rewards) -> list[float]:
    """(r - mean(r)) / (std(r) + 1e-6), GRPO.

    Shao et al. 2024, arXiv 2402.03300, section 4.1.2; std with G - 1.
    """
    return [(r_i - mean(r)) / (std(r) + EPSILON) for r_i in r]


@estimator(length_norm="constant")
def rloo(r: Rewards) -> list[float]:
    """r - mean of the other G - 1 rewards, REINFORCE leave-one-out.

    Ahmadian et al. 2024, arXiv 2402.14740, equation 8. A group of one has no others: 0.
    """
    return [r_i - (sum(r) - r_i) / (len(r) - 1) if len(r) > 1 else 0.0 for r_i in r]


@estimator(length_norm="constant")
def dr_grpo(r: Rewards) -> list[float]:
    """r - mean(r) with a constant length normalization, Dr. GRPO.

    Liu et al. 2025, arXiv 2503.20783, section 3.2: no division by the spread, which favours easy
    and hard prompts, nor by |o_i|, which favours long wrong answers.
    """
    return group_mean(r)


@estimator(length_norm="token", batch_wide=True)
def reinforce_pp(r: Rewards, batch: Sequence[Rewards]) -> list[float]:
    """(r - mean) / (std + 1e-6) over the whole batch, REINFORCE++.

    Hu et al. 2025, arXiv 2501.03262, equation 9 (its batch normalization of advantages).
    """
    rewards = [reward for group in batch for reward in group]
    if not rewards:
        return []
    centre, scale = mean(rewards), std(rewards) + EPSILON
    return [(r_i - centre) / scale for r_i in r]


if TYPE_CHECKING:
    Estimator = str
else:
    Estimator = Literal[tuple(ESTIMATORS)]


def summaries(table: Mapping[str, Callable[..., Any]]) -> str:
    """The values of an option and what each is: the first lines of their docstrings."""
    first = {name: inspect.cleandoc(f.__doc__ or "").splitlines()[0] for name, f in table.items()}
    return "; ".join(f"{name}: {line.rstrip('.')}" for name, line in first.items())


def token_weights(lengths: Sequence[int], how: LengthNorm, max_tokens: int) -> list[float]:
    """What one token of each completion (G,) of a group weighs in the loss.

    sequence: 1 / (G |o_i|), each completion counts the same (GRPO, arXiv 2402.03300 eq. 3);
    token: 1 / sum_j |o_j|, each token counts the same (DAPO, arXiv 2503.14476 eq. 8);
    constant: 1 / (G max_tokens), no completion's length matters (Dr. GRPO, arXiv 2503.20783).
    """
    count, total = len(lengths), sum(lengths)
    if how == "sequence":
        return [1 / (count * length) if length else 0.0 for length in lengths]
    if how == "token":
        return [1 / total if total else 0.0] * count
    return [1 / (count * max_tokens) if count else 0.0] * count


def varies(rewards: Sequence[float]) -> bool:
    """Whether a group has anything to learn from: not all of its rewards are the same."""
    return len(rewards) > 1 and max(rewards) - min(rewards) > 1e-9


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean, summed exactly."""
    return math.fsum(values) / len(values)


def std(values: Sequence[float]) -> float:
    """The sample standard deviation (n - 1); 0 of fewer than two."""
    if len(values) < 2:
        return 0.0
    centre = mean(values)
    return math.sqrt(math.fsum((v - centre) ** 2 for v in values) / (len(values) - 1))
