"""What methods are written over, a room for each idea; for plugins, one door to all of it.

    loops/       supervised: batches -> steps -> checkpoints; rl: rollouts -> steps
    rl/          rollouts, their sources, rewards, advantages, the surrogate loss
    preference/  losses over log-probabilities of whole completions
    distill/     teachers, and learning from them on the student's own samples
    judges/      models that judge
    sampling/    replies of a fixed model, for evals and for stages that make data; and programs of
                 others that ask it, in a process of their own
    text/        chat templates, examples, answers
    sandbox/     a model's code, where it can do no harm
    intervals    means and shares with their 95% intervals

A plugin imports what it needs of `posttrain_recipes.training` itself, by the names of `__all__`:
those are stable, and the rooms that they live in are not. Nothing is imported before it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from posttrain_recipes.training.moved import FLAT, MODULES, MOVED, install

if TYPE_CHECKING:
    from posttrain_recipes.training.intervals import mean, proportion, ratio
    from posttrain_recipes.training.judges import verdicts
    from posttrain_recipes.training.loops import supervised
    from posttrain_recipes.training.loops.rollout_method import PolicyGradientMethod
    from posttrain_recipes.training.preference import completions, losses
    from posttrain_recipes.training.preference.pairs import PairConfig, PairMethod
    from posttrain_recipes.training.rl.rollout import Rollout
    from posttrain_recipes.training.sampling import harness
    from posttrain_recipes.training.sampling.generation import generate, log_likelihoods
    from posttrain_recipes.training.text.answer_extraction import equal, extract, fenced
    from posttrain_recipes.training.text.examples import Example, datum, tokenize

__all__ = [
    "Example",
    "PairConfig",
    "PairMethod",
    "PolicyGradientMethod",
    "Rollout",
    "completions",
    "datum",
    "equal",
    "extract",
    "fenced",
    "generate",
    "harness",
    "log_likelihoods",
    "losses",
    "mean",
    "proportion",
    "ratio",
    "supervised",
    "tokenize",
    "verdicts",
]


def __getattr__(name: str) -> Any:
    if name in FLAT:
        return getattr(importlib.import_module(f"{__name__}.{FLAT[name]}"), name)
    if name in MODULES:
        return importlib.import_module(f"{__name__}.{MODULES[name]}")
    if name in MOVED:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def __dir__() -> list[str]:
    return list(__all__)


install()
