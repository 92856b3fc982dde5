"""Checks that an engine has the capabilities a plan needs, before anything is spent."""

from __future__ import annotations

from collections.abc import Mapping

from posttrain_recipes.errors import UsageError
from posttrain_recipes.planning.plans import Plan
from posttrain_recipes.plugin import Connection, DataMethod, Plugin, Waiter
from posttrain_recipes.waiting import in_thread

TRAINS = ("train", "load:optimizer", "save:sampler")
"""What every stage that trains needs: it saves, goes on from what it saved, and is sampled from."""


def of(plan: Plan) -> dict[str, list[str]]:
    """The capabilities that a plan needs, each with who needs it."""
    found: dict[str, list[str]] = {}

    def add(names: tuple[str, ...], who: str) -> None:
        for name in names:
            if who not in found.setdefault(name, []):
                found[name].append(who)

    for stage in plan.stages:
        plugins: list[tuple[str, Plugin]] = [
            *(("reward", reward) for reward, _ in stage.rewards),
            *(("eval", planned.eval) for planned in stage.evals),
        ]
        if stage.method is not None:
            if not isinstance(stage.method, DataMethod):
                add(TRAINS, f"stage '{stage.name}'")
                add(tuple(stage.lora.needs), f"'lora' of stage '{stage.name}'")
                options = getattr(stage.method.config, "needs", ())
                add(tuple(options), f"options of stage '{stage.name}'")
            plugins.insert(0, ("method", stage.method))
        plugins += [("reward", inner) for _, plugin in plugins for inner in plugin.rewards.values()]
        for kind, plugin in plugins:
            add(tuple(plugin.needs), f"{kind} '{plugin.name}' of stage '{stage.name}'")
    return found


def check(plan: Plan, connection: Connection, wait: Waiter) -> None:
    """Ask the engine for everything that the plan needs.

    Raises:
        UsageError: it lacks some of it; all that is missing is named.
    """
    wanted = of(plan)
    if plan.stages:
        plan.engine.rank = plan.stages[0].lora.rank
    missing: Mapping[str, str] = wait(in_thread(lambda: connection.missing(list(wanted))))
    if not missing:
        return
    lines = [f"{name}, for {wanted[name][0]}: {why}" for name, why in missing.items()]
    raise UsageError(
        f"the engine '{plan.engine.name}' cannot do what the recipe needs: {', '.join(missing)}",
        why="\n    ".join(lines),
        hint="choose another engine or method; 'ptl engines check' shows what an engine can do",
    )
