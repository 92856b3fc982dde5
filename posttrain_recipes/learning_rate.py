"""`learning_rate: auto`: a peak learning rate for an adapter, from the shape of its model.

Imitation goes by two published fits. For supervised training of adapters on every layer with alpha
32, "LoRA Without Regret" (Schulman et al. 2025, thinkingmachines.ai/blog/lora) and
`tinker_cookbook.hyperparam_utils.get_lr` give `5e-4 (2000 / hidden size) ** e`, where 5e-4 is ten
times the rate of full fine-tuning, and `e` was fitted to 0.781 for Llama and 0.0775 for Qwen. Their
mean stands here, so that the rate is between both at any size, and the name of a model is not asked
for. The same post finds the best rate to be independent of the rank, because what an adapter adds
is scaled by alpha / rank.

Of preferences and RL single rates are published, none over sizes: the recipes of `tinker_cookbook`
have 4e-5 for RL and 1e-5 for DPO at hidden size 4096, a tenth of what imitation has there and less.
At 576 the best of five rates was a third of it (`benchmarks/learning_rate.py`), and at 192 the
bundled recipes learn by RL with as much as it. A rate that goes as 1 / hidden size meets the first
two, and is never above that of imitation, as it would be below 75; the bundled recipes name their
own.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

BASE, HIDDEN = 5e-4, 2000
"""The rate of imitation, and the hidden size, where the fits of both families of models meet."""
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


@dataclass(frozen=True)
class Rule:
    """`rate (at / hidden size) ** exponent`."""

    rate: float
    at: int
    exponent: float

    def of(self, hidden: int) -> float:
        """The rate of a model of this hidden size."""
        return self.rate * (self.at / hidden) ** self.exponent


RULES = {
    Family.IMITATION: Rule(BASE, HIDDEN, (0.781 + 0.0775) / 2),
    Family.PREFERENCE: Rule(3.7e-5, 4096, 1.0),
    Family.RL: Rule(3.7e-5, 4096, 1.0),
}


def automatic(hidden: int, family: Family, rank: int) -> float:
    """The peak learning rate of Adam for an adapter of that rank, rounded to `DIGITS`.

    Args:
        hidden: the hidden size of the model, at least 1.
        rank: of the adapter; it does not change the rate, as alpha is 32 at every rank.
    """
    imitation, own = RULES[Family.IMITATION].of(hidden), RULES[family].of(hidden)
    return float(f"{min(imitation, own):.{DIGITS}g}")
