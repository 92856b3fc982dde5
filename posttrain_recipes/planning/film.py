"""What `watch:` asks for, and what it takes: prompts that are answered again while stages train."""

from __future__ import annotations

from typing import Any

from posttrain_recipes.planning import tokens
from posttrain_recipes.planning.plans import SPREAD, Filmstrip, Plan, PlannedStage, model_location
from posttrain_recipes.planning.pricing import Prices, duration, show_usd
from posttrain_recipes.plugin import DataMethod
from posttrain_recipes.workload import Usage


def filmstrip(asked: Any, billed: bool) -> Filmstrip | None:
    """What a recipe's `watch:` means; by default nothing where tokens are billed."""
    if asked is None:
        return None if billed else Filmstrip()
    if not isinstance(asked, dict):
        return Filmstrip() if asked else None
    every = asked.get("every", "auto")
    numbers = {name: int(asked[name]) for name in ("prompts", "max_tokens") if name in asked}
    return Filmstrip(every=None if every == "auto" else int(every), **numbers)


def shows(stage: PlannedStage) -> bool:
    """Whether a stage trains weights that write replies."""
    method = stage.method
    return method is not None and method.writes and not isinstance(method, DataMethod)


def ahead(plan: Plan, stage: PlannedStage, steps: int | None, prices: Prices) -> str | None:
    """What the replies of `watch:` take in a stage, in words; None for nothing.

    Prompts are not counted: they are few, and of a length that only their tokenizer knows.

    Args:
        steps: of the stage; None where that is not known.
    """
    film = plan.watch
    if film is None or not shows(stage):
        return None
    once = film.prompts * film.max_tokens
    if steps is None and film.every is not None:
        each = f"{film.prompts} prompts answered every {film.every} steps"
        return f"{each}, each time {_cost(plan, stage, once, prices)}"
    times = len(SPREAD) + 2 if steps is None else len(film.steps(steps))
    if not times:
        return None
    told = f"{film.prompts} prompts answered {times} times"
    return f"{told}, {_cost(plan, stage, times * once, prices)}"


def _cost(plan: Plan, stage: PlannedStage, most: int, prices: Prices) -> str:
    told = f"at most {most:,} tokens"
    usage = Usage(sample=most)
    if plan.engine.billed:
        usd = prices.of(stage.model).usd(usage)
        return f"{told}, {'price unknown' if usd is None else f'at most {show_usd(usd)}'}"
    folder = tokens.folder(model_location(stage.model, plan.path.parent))
    took = plan.engine.seconds(folder, usage) if folder is not None else None
    if took is None:
        return told
    return f"{told}, at most {f'about {duration(took)}' if took >= 1 else 'a second'}"
