"""Checks that an engine has the capabilities a plan needs, before anything is spent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from posttrain_recipes.errors import UsageError
from posttrain_recipes.options import ModelRef, references
from posttrain_recipes.planning.plans import BASE, Plan, PlannedStage
from posttrain_recipes.plugin import Connection, DataMethod, Offer, Plugin, Reward, Waiter
from posttrain_recipes.waiting import in_thread

ASKS = ("sample", "prompt_logprobs")
"""How the names of capabilities begin that a client which samples has."""
TRAINED = "sample:trained"
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


def refused(plan: Plan, offers: Mapping[str, Offer]) -> list[str]:
    """What the plan asks of models that an engine does not offer, each with stage and option.

    That is a model which is trained there or sampled from and is not served for that, and options
    which ask for longer sequences than it reads.
    """
    found: dict[str, None] = {}
    for stage in plan.stages:
        where = f"stages.{stage.name}"
        offer = offers.get(stage.model, Offer())
        trains = stage.method is not None and not isinstance(stage.method, DataMethod)
        if trains and offer.trainable is False:
            found[f"{where}.model: {stage.model} is not trained there"] = None
        for option, plugin in _plugins(stage):
            own = f"{where}.{option}"
            read = {f"{own}.{path}": name for path, name in _referred(plan, stage, plugin)}
            asks = any(need.startswith(ASKS) for need in plugin.needs)
            if asks and not isinstance(plugin, Reward) and (not read or TRAINED in plugin.needs):
                read[own] = stage.model
            for place, name in read.items():
                if offers.get(name, Offer()).sampleable is False:
                    found[f"{place}: {name} is not sampled from there"] = None
            for name in dict.fromkeys((stage.model, *read.values())):
                found |= dict.fromkeys(_too_long(own, plugin, name, offers.get(name, Offer())))
    return list(found)


def _plugins(stage: PlannedStage) -> Iterator[tuple[str, Plugin]]:
    """The method, rewards and evals of a stage, by their place in it."""
    made: list[tuple[str, Plugin]] = [("method", stage.method)] if stage.method else []
    made += [(f"reward.{reward.name}", reward) for reward, _ in stage.rewards]
    made += [(f"eval.{planned.name}", planned.eval) for planned in stage.evals]
    for option, plugin in made:
        yield option, plugin
        yield from ((f"{option}.{path}", inner) for path, inner in plugin.rewards.items())


def _referred(plan: Plan, stage: PlannedStage, plugin: Plugin) -> Iterator[tuple[str, str]]:
    """The base models that the options of a plugin name, by option; of a checkpoint only the engine
    knows it."""
    models = {other.name: other.model for other in plan.stages} | {BASE: stage.model}
    for path, ref in references(plugin.config, ModelRef):
        name = ref.model or models.get(ref.stage or "")
        if name:
            yield ".".join(map(str, path)), name


def _too_long(where: str, plugin: Plugin, model: str, offer: Offer) -> Iterator[str]:
    if offer.context is None:
        return
    for option, room in (("max_length", 0), ("max_tokens", 1)):  # a prompt has a token at least
        value = getattr(plugin.config, option, None)
        if option == "max_length" and option not in plugin.config.model_fields_set:
            continue  # a bound that nobody chose: records may all be shorter
        if isinstance(value, int) and value + room > offer.context:
            yield (
                f"{where}.{option}: {value:,} is more than the {offer.context:,} tokens that "
                f"{model} reads there, prompt and reply together"
            )


def check(plan: Plan, connection: Connection, wait: Waiter) -> None:
    """See that the engine offers what the plan asks of its models, and ask it for everything else
    that the plan needs.

    Raises:
        UsageError: it lacks some of it; all that is missing is named.
    """
    if wrong := refused(plan, connection.offers):
        raise UsageError(
            f"the engine '{plan.engine.name}' does not do with its models what the recipe asks",
            why="\n    ".join(wrong),
            hint="name another model, or a smaller number, at each of these options",
            code="engine-cannot",
        )
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
        code="engine-cannot",
    )
