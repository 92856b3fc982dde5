"""`model: models:/NAME@ALIAS` becomes a base model and the state that the first stage starts from.

That is done to the recipe before it is planned. So fingerprints, the resolved recipe, a lock and a
reproduction go by the checkpoint, and an alias that moves changes what a run would do, and never
what one did.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain_recipes.errors import Fault, UsageError
from posttrain_recipes.home import default_home
from posttrain_recipes.language.nodes import Node
from posttrain_recipes.language.recipe import Recipe
from posttrain_recipes.models.registered import FORM, RegisteredName

if TYPE_CHECKING:
    from posttrain_recipes.tracking.registered import RegisteredCheckpoint

LOCAL = "local"


@dataclass(frozen=True)
class Settled:
    """A recipe without a registered model, what was found in the registry, and what is wrong."""

    recipe: Recipe
    pins: dict[str, None] = field(default_factory=dict)
    faults: tuple[Fault, ...] = ()


def settled(recipe: Recipe, home: str | Path | None) -> Settled:
    """The recipe with the checkpoint that its registered model is now; itself where it names none.

    Args:
        home: where the registry is if no server is named; None: the default one.

    Raises:
        PtlError: the registry does not answer.
    """
    model, stages = recipe.root.child("model"), recipe.root.child("stages")
    named = model and isinstance(model.value, str) and RegisteredName.parse(model.value)
    if model is None or not named or stages is None:
        return Settled(recipe)
    from posttrain_recipes.tracking.registered import look_up  # 'ptl validate' needs none of it

    folder = default_home(home)
    try:
        number, found = look_up(str(named), folder)
    except UsageError as error:
        told = "; ".join(filter(None, (error.what, error.why, error.hint)))
        return Settled(recipe, faults=(recipe.fault(("model",), told, code=error.code),))
    faults = []
    if why := _elsewhere(recipe, found, folder):
        faults.append(recipe.fault(("model",), f"{named} is version {number}, {why}"))
    first = stages.child(0)
    start = Node(found.state, model.at, model.at)
    if first is not None and first.child("repeat") is not None:
        faults.append(
            recipe.fault(
                ("stages", 0),
                f"a loop cannot be the first that starts from {named}; put a stage before it, if "
                "only one that evaluates",
            )
        )
    elif first is not None and isinstance(first.value, dict) and "init_from" not in first.value:
        begun = replace(first, value={**first.value, "init_from": start})
        stages = replace(stages, value=[begun, *stages.value[1:]])
    lora = recipe.root.child("lora")
    rank = lora.child("rank") if lora else None
    if rank is not None and rank.value != found.rank:
        faults.append(
            recipe.fault(
                ("lora", "rank"),
                f"{named} is an adapter of rank {found.rank}, and keeps it: remove this",
            )
        )
    shape = {**(lora.value if lora else {}), "rank": Node(found.rank, model.at, model.at)}
    root = {
        **recipe.root.value,
        "model": replace(model, value=found.base_model),
        "stages": stages,
        "lora": replace(lora or model, value=shape),
    }
    pin = f"{named}: version {number}, {found.state} of {found.run}/{found.stage}"
    return Settled(
        replace(recipe, root=replace(recipe.root, value=root)), {pin: None}, tuple(faults)
    )


def _elsewhere(recipe: Recipe, found: RegisteredCheckpoint, home: Path) -> str:
    """Why the recipe's engine cannot have a checkpoint; empty where it may."""
    spec: Any = recipe.data.get("engine", LOCAL)
    engine = spec.get("use") if isinstance(spec, dict) else spec
    if found.engine != LOCAL:
        if engine != LOCAL:
            return ""  # whether that service has it is for it to say, when it is asked
        return (
            f"which lies on engine '{found.engine}', and this recipe runs on '{engine}': name that "
            "engine, with 'engine:'"
        )
    if engine != LOCAL:
        return ""  # it may be this engine, served: 'ptl serve'
    from posttrain_recipes.engines import Local

    if (why := Local(Local.Config()).lost(found.state, home / "engine")) is None:
        return ""
    return (
        f"a checkpoint that was left in the embedded engine of {found.host} ({found.home}); in this"
        f" home it {why}: run this there; or have 'ptl serve' serve that home, and name its address"
        " with 'engine: {use: server, base_url: ...}'"
    )


def check(model: str, key: tuple[str | int, ...]) -> str:
    """What is wrong with a registered model that stands at a key, by its form; empty where nothing
    is."""
    if RegisteredName.parse(model) is None:
        return f"is no version of a registered model: {FORM}"
    if key != ("model",):
        return "a registered model stands at the recipe's 'model:' alone; name its checkpoint here"
    return ""
