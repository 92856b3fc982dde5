"""`learning_rate: auto`: a peak learning rate for an adapter, from the shape of its model.

Two published fits are its ground. For supervised training of adapters on every layer with alpha
32, "LoRA Without Regret" (Schulman et al. 2025, thinkingmachines.ai/blog/lora) and
`tinker_cookbook.hyperparam_utils.get_lr` give `5e-4 (2000 / hidden size) ** e`, where 5e-4 is ten
times the rate of full fine-tuning, and `e` was fitted to 0.781 for Llama and 0.0775 for Qwen. Their
mean stands here, so that the rate is between both at any size, and the name of a model is not asked
for. The same post finds the best rate to be independent of the rank, because what an adapter adds
is scaled by alpha / rank.
"""

from __future__ import annotations

from enum import StrEnum

BASE = 5e-4
"""The rate of imitation at `HIDDEN`."""
HIDDEN = 2000
"""Where the fits of both families of models meet."""
EXPONENT = (0.781 + 0.0775) / 2
"""Of `HIDDEN / hidden size`: the mean of the two fits."""
DIGITS = 2
"""Significant digits: more are not known of it, and two are read at a glance."""


class Family(StrEnum):
    """What a method learns from, by which its learning rate is set."""

    IMITATION = "imitation"
    """Text or probabilities that are to be copied: every token says what it should have been."""
    PREFERENCE = "preference"
    """Which of two replies is better: a margin that can be widened without end."""
    RL = "rl"
    """Rewards of what the policy wrote itself: noisy, and over many steps."""


FACTORS = {Family.IMITATION: 1.0, Family.PREFERENCE: 0.1, Family.RL: 0.1}
"""By family, times the rate of imitation."""


def automatic(hidden: int, family: Family, rank: int) -> float:
    """The peak learning rate of Adam for an adapter of that rank, rounded to `DIGITS`.

    Args:
        hidden: the hidden size of the model, at least 1.
        rank: of the adapter; it does not change the rate, as alpha is 32 at every rank.
    """
    rate = FACTORS[family] * BASE * (HIDDEN / hidden) ** EXPONENT
    return float(f"{rate:.{DIGITS}g}")
