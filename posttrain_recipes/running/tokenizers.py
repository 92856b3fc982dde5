"""Checks that a teacher has its student's tokenizer, before anything is spent.

Validation compares tokenizers that are on this machine. Here, the engine is up: every tokenizer has
been loaded, and what a checkpoint was trained from is known.
"""

from __future__ import annotations

from posttrain_recipes.errors import Fault, RecipeError
from posttrain_recipes.planning.plans import Plan
from posttrain_recipes.planning.weights import other_tokenizer
from posttrain_recipes.running.serving import Serving
from posttrain_recipes.training.text.vocabulary import difference
from posttrain_recipes.waiting import GoneError, RefusedError


def check(plan: Plan, serving: Serving) -> None:
    """Compare the tokenizers that validation could not.

    Raises:
        RecipeError: weights that an option names have another tokenizer; all of them are told.
        PtlError: a tokenizer cannot be loaded.
    """
    faults = []
    for pair in plan.same_tokenizer:
        base, who = pair.other, f"'{pair.other}'"
        if base.startswith("tinker://"):
            try:
                base = serving.base_of(pair.other)
            except (GoneError, RefusedError):
                continue  # the stage that needs it says so; one that is done does without
            who = f"'{pair.other}' is of '{base}', which"
        if base == pair.model:
            continue
        models = pair.model, base
        differ = difference(*(serving.renderer(model).vocabulary for model in models))
        if differ:
            faults.append(
                Fault(
                    pair.location,
                    pair.key,
                    other_tokenizer(who, pair.model, differ, pair.instead),
                    code="other-tokenizer",
                )
            )
    if faults:
        raise RecipeError(faults)
