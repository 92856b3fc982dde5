"""What `watch:` asks for, and what it takes: prompts that are answered again while stages train."""

from __future__ import annotations

from typing import Any

from posttrain_recipes.planning.plans import Filmstrip, Plan, PlannedStage
from posttrain_recipes.planning.pricing import Prices, show_usd
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


def ahead(plan: Plan, stage: PlannedStage, steps: int, prices: Prices) -> str | None:
    """What the replies of `watch:` take in a stage of so many steps, in words; None for nothing.

    Prompts are not counted: they are few, and of a length that only their tokenizer knows.
    """
    film = plan.watch
    if film is None or not shows(stage) or not (times := len(film.steps(steps))):
        return None
    most = times * film.prompts * film.max_tokens
    told = f"{film.prompts} prompts answered {times} times, at most {most:,} tokens"
    if not plan.engine.billed:
        return told
    usd = prices.of(stage.model).usd(Usage(sample=most))
    return f"{told}, {'price unknown' if usd is None else f'at most {show_usd(usd)}'}"
