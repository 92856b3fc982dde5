"""Checks that the weights a recipe names are there, before anything is spent.

Validation asks no engine and no hub. Here the engine is up, and is asked for each base model and
checkpoint; what is not there is told where the recipe names it.
"""

from __future__ import annotations

from collections.abc import Mapping

from posttrain_recipes.errors import Fault, PtlError, RecipeError
from posttrain_recipes.planning.plans import NamedWeights, Plan
from posttrain_recipes.planning.reuse import Action
from posttrain_recipes.running.serving import Serving
from posttrain_recipes.waiting import EngineLostError, GoneError, RefusedError

ANOTHER = "name another one; one that is gone expired, was deleted, or is another engine's"


def check(plan: Plan, serving: Serving, decided: Mapping[str, Action]) -> None:
    """Load the tokenizer of each base model, and look for the checkpoints.

    Args:
        decided: what becomes of each stage: those that train no more do without what they name,
            and those that are gone on with without what they started from.

    Raises:
        RecipeError: some are not there; all of them are told.
    """
    faults = []
    for one in plan.named_models:
        try:
            serving.renderer(one.name)
        except EngineLostError:
            raise
        except PtlError as error:
            told = ": ".join(filter(None, (error.what, error.why)))
            told = "; ".join(filter(None, (told.rstrip("."), error.hint)))
            faults.append(Fault(one.location, one.key, told, code=error.code))
    for one in plan.named_checkpoints:
        action = decided.get(one.stage)
        needed = action == "run" or (action == "resume" and one.samples)
        if needed and (why := missing(one, serving)):
            faults.append(
                Fault(one.location, one.key, f"{why}; {ANOTHER}", code="no-such-checkpoint")
            )
    if faults:
        raise RecipeError(list(dict.fromkeys(faults)))


def missing(one: NamedWeights, serving: Serving) -> str | None:
    """Why a checkpoint cannot be used; None where nothing speaks against it."""
    if not one.samples:
        why = serving.lost(one.name)
        return why and f"'{one.name}' {why}"
    try:
        serving.base_of(one.name)
    except GoneError:
        return f"the engine has no '{one.name}'"
    except RefusedError as error:
        return f"'{one.name}' cannot be used: {error.why}"
    return None
