"""`learning_rate: auto` becomes a number here, before a method's options are made of it.

So a method, its fingerprint, the run's record and MLflow have the number alone; the word, with what
the number follows from, is kept beside it (`PlannedStage.auto`). How it follows is in
`posttrain_recipes.learning_rate`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain_recipes import hub, shape
from posttrain_recipes.ggufs import is_gguf
from posttrain_recipes.language.flat import Origin
from posttrain_recipes.language.nodes import Key, name_of
from posttrain_recipes.language.recipe import Recipe
from posttrain_recipes.learning_rate import HIDDEN, automatic
from posttrain_recipes.models.registered import is_registered
from posttrain_recipes.options import AUTO, FromModel, PluginConfig
from posttrain_recipes.planning.plans import PlannedStage, model_location
from posttrain_recipes.plugin import Engine, Method, Plugin

if TYPE_CHECKING:
    from posttrain_recipes.planning.building import Builder

SERVED = {
    "Qwen/Qwen3-8B": 4096,
    "Qwen/Qwen3.5-4B": 2560,
    "Qwen/Qwen3.5-9B": 4096,
    "Qwen/Qwen3.5-9B-Base": 4096,
    "Qwen/Qwen3.5-35B-A3B-Base": 2048,
    "Qwen/Qwen3.5-397B-A17B": 4096,
    "Qwen/Qwen3.6-27B": 5120,
    "Qwen/Qwen3.6-35B-A3B": 2048,
    "Qwen/Qwen3.8-27B": 5120,
    "deepseek-ai/DeepSeek-V3.1": 7168,
    "moonshotai/Kimi-K2.6": 7168,
    "openai/gpt-oss-20b": 2880,
    "openai/gpt-oss-120b": 2880,
    "thinkingmachines/Inkling": 6144,
    "thinkingmachines/Inkling-Small": 4096,
}
"""Hidden sizes of the models of `prices.yaml`, which are served and need not be on this machine;
from `tinker_cookbook.hyperparam_utils`."""
LARGE = 4096
"""The hidden size of models of 8B, for an example."""


def options(config: type[PluginConfig]) -> list[str]:
    """The options that may be `auto`."""
    fields = config.model_fields.items()
    return [name for name, info in fields if FromModel.LEARNING_RATE in info.metadata]


def filled(
    builder: Builder, method: type[Plugin], config: type[PluginConfig], given: Any, key: Key
) -> dict[str, Any]:
    """The options of a stage's method with a number for each `auto`; notes where none is found."""
    found = dict(given)
    forced = builder.engine.open_options if builder.engine else {}
    for name, value in forced.items():
        if name in config.model_fields and name not in found:
            found[name] = value
            builder.pins[f"{method.name}: {name} {value:g}: the engine does nothing else"] = None
    for name in options(config):
        if found.get(name, config.model_fields[name].default) == AUTO:
            found[name] = _rate(builder, method, name, (*key, name))
    return found


def _rate(builder: Builder, method: type[Plugin], name: str, key: Key) -> float:
    assert issubclass(method, Method)
    stage = builder.recipe.root.value["stages"].value[builder.index]
    kept = builder.kept.get(name_of(stage) or "", {})
    family, model, rank = method.family, builder.model, builder.rank
    hidden = _hidden(builder)
    if hidden is None and name not in kept:
        # Else its own fault, or not known.
        if model and model in builder.models and not is_registered(model):
            large = f"{automatic(LARGE, family, rank):g}"
            place = folder(model_location(model, builder.recipe.base_dir).partition(":")[0])
            wrong = place and shape.damage(place)
            remedy = (
                f"write a number, as '{name}: {large}', which auto is for {family} at a hidden "
                f"size of {LARGE} (8B)"
            )
            why = f"of {model}: {wrong}" if wrong else f"{_why(builder)}; {remedy}"
            builder.fault(key, f"'auto' follows from the model's hidden size, and {why}")
        return automatic(HIDDEN, family, rank)
    rate = kept.get(name) or automatic(hidden or HIDDEN, family, rank)
    width = f"hidden size {hidden}" if hidden else "as the run had it"
    why = f"{family}, {width}, rank {rank}"
    builder.auto[name] = why
    builder.pins[f"{method.name}: {name} {rate:g}: auto, by {why}"] = None
    return rate


def settle(builder: Builder) -> None:
    """Have the engine decide what its options leave to the recipe's model, and note it."""
    engine = builder.engine
    if engine is None or builder.model not in builder.models:
        return
    if not engine.loads:  # its models need not be on this machine
        if told := engine.settle(None, builder.ask):
            builder.pins[told] = None
        return
    location = model_location(builder.model, builder.recipe.base_dir).partition(":")[0]
    if builder.ask and folder(location) is None:
        hub.fetch_config(location)
    if told := engine.settle(folder(location), builder.ask):
        builder.pins[told] = None


def _hidden(builder: Builder) -> int | None:
    """The hidden size of the present stage's model, by its config, or as it is known."""
    location = model_location(builder.model, builder.recipe.base_dir).partition(":")[0]
    place = folder(location)
    if place is None and builder.ask and location not in SERVED:
        hub.fetch_config(location)
        place = folder(location)
    found = shape.hidden_size(shape.read_config(place)) if place else None
    return found or SERVED.get(location)


def folder(location: str) -> Path | None:
    """Where the config of a model is: its directory, or one of the hub's cache."""
    if Path(location).is_dir() or is_gguf(location):
        return Path(location)
    path = hub.cached("model", location, "config.json")
    return path.parent if path else None


def _why(builder: Builder) -> str:
    location = model_location(builder.model, builder.recipe.base_dir).partition(":")[0]
    if is_gguf(location):
        return f"{builder.model} tells no embedding_length"
    if folder(location):
        return f"the config.json of {builder.model} tells no hidden_size"
    asked = "" if builder.ask else " ('ptl plan' and 'ptl run' ask the hub for it)"
    return f"no config.json of {builder.model} is on this machine{asked}"


def resolved(
    written: Recipe, engine: Engine, origins: Sequence[Origin], stages: Sequence[PlannedStage]
) -> Any:
    """The recipe with what its stages and its engine have in place of `auto`.

    A stage that comes to several, as one under a matrix may, stays as it is written: each of its
    variants has its own number beside its name.
    """
    data = written.root.plain()
    if settled := engine.settled():
        spec = data.get("engine", engine.name)
        data["engine"] = {**({"use": spec} if isinstance(spec, str) else spec), **settled}
    made: dict[Key, list[PlannedStage]] = {}
    for origin, stage in zip(origins, stages, strict=True):
        made.setdefault(origin.key, []).append(stage)
    for key, variants in made.items():
        for name in variants[0].auto:
            rates = {number(stage.inputs, name) for stage in variants}
            if len(rates) == 1 and all(name in stage.auto for stage in variants):
                place: Any = data
                for part in key:
                    place = place[part]
                place["method"][name] = rates.pop()
    return data


def number(inputs: Mapping[str, Any], name: str) -> Any:
    """What an option of a stage's method is, by what the stage depends on."""
    return inputs.get("method", {}).get("config", {}).get(name)
