"""Checks that a teacher has its student's tokenizer, before anything is spent.

Validation compares tokenizers that are on this machine. Here, the engine is up: every tokenizer has
been loaded, and what a checkpoint was trained from is known.
"""

from __future__ import annotations

from posttrain_recipes.errors import Fault, RecipeError
from posttrain_recipes.planning.building import other_tokenizer
from posttrain_recipes.planning.plans import Plan
from posttrain_recipes.running.serving import Serving
from posttrain_recipes.training.text.vocabulary import difference
from posttrain_recipes.waiting import GoneError


def check(plan: Plan, serving: Serving) -> None:
    """Compare the tokenizers that validation could not.

    Raises:
        RecipeError: weights that an option names have another tokenizer; all of them are told.
        PtlError: a tokenizer cannot be loaded.
    """
    faults = []
    for one in plan.same_tokenizer:
        theirs, who = one.theirs, f"'{one.theirs}'"
        if theirs.startswith("tinker://"):
            try:
                theirs = serving.base_of(one.theirs)
            except GoneError:
                continue  # the stage that needs it says so; one that is done does without
            who = f"'{one.theirs}' is of '{theirs}', which"
        if theirs == one.ours:
            continue
        models = one.ours, theirs
        differ = difference(*(serving.renderer(model).vocabulary for model in models))
        if differ:
            faults.append(Fault(one.location, one.key, other_tokenizer(who, one.ours, differ)))
    if faults:
        raise RecipeError(faults)
