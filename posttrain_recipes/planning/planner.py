"""Recipe -> Plan: plugins instantiated, each stage's inputs resolved and typed, fingerprints taken.

Building a plan finds every fault of a recipe that can be found without running it, and goes on
after each to find the next.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from posttrain_recipes.errors import Fault, RecipeError
from posttrain_recipes.language import expansion, validation
from posttrain_recipes.language.nodes import Key
from posttrain_recipes.language.recipe import Recipe, environment_names
from posttrain_recipes.options import AS_EVER, ModelRef, effective, references
from posttrain_recipes.planning import (
    auto,
    building,
    depends,
    ends,
    gates,
    handed,
    on_end,
    rates,
    registered,
    renderers,
    weights,
)
from posttrain_recipes.planning.building import Builder
from posttrain_recipes.planning.depends import Dependencies
from posttrain_recipes.planning.film import filmstrip
from posttrain_recipes.planning.hosted import check_rank
from posttrain_recipes.planning.plans import (
    BASE,
    Data,
    Limits,
    Plan,
    PlannedEval,
    PlannedStage,
    Resources,
)
from posttrain_recipes.plugin import (
    Dataset,
    Eval,
    LoraConfig,
    Method,
    Plugin,
    Record,
    RendererConfig,
    Reward,
    Task,
)
from posttrain_recipes.registry import Registry, suggest


def build(
    recipe: Recipe,
    registry: Registry,
    *,
    ask: bool = False,
    kept: Mapping[str, Mapping[str, float]] | None = None,
    home: str | Path | None = None,
) -> Plan:
    """The plan of a recipe. Raises RecipeError: everything that is wrong with the recipe, its
    cross-references and the presence and form of its data.

    Args:
        ask: ask the hub which commits its branches are now; otherwise the local cache tells.
        kept: by stage, the numbers that options which are `auto` had in a run of this recipe.
        home: where MLflow's registry is asked, along with the hub, if no server is named.
    """
    wrong = validation.structural_faults(recipe, registry)
    known = registered.settled(recipe, home) if ask and not wrong else registered.Settled(recipe)
    try:
        return _build(known, registry, wrong, ask, kept or {})
    except (TypeError, AttributeError, LookupError, ValueError):
        if not wrong:
            raise
        # What reads it expects the form that the schema asks for.
        raise RecipeError(building.unique(wrong)) from None
    except OSError as error:  # of a path that no system takes, as one that is too long
        path = str(error.filename or "a path")
        shown = path if len(path) <= 100 else f"{path[:100]}…"
        told = f"{shown} cannot be looked at: {error.strerror or error}"
        raise RecipeError(building.unique([*wrong, recipe.fault((), told)])) from None


def _build(
    known: registered.Settled,
    registry: Registry,
    wrong: Sequence[Fault],
    ask: bool,
    kept: Mapping[str, Mapping[str, float]],
) -> Plan:
    written = known.recipe
    recipe, origins, faults = expansion.expand(written)
    faults = [*wrong, *known.faults, *faults]
    builder = Builder(recipe, registry, faults, ask=ask, kept=kept, pins=dict(known.pins))
    if recipe is not written:
        # Once more with the values of the matrix where they will stand.
        builder.faults += validation.structural_faults(recipe, registry)
    builder.origins = origins
    data = recipe.data
    building.check_secrets(builder, data, ())
    if isinstance(model := data.get("model"), str):
        builder.model = model
        weights.check_model(builder, model, ("model",))
    engine = builder.engine = building.engine(builder, data.get("engine", "local"))
    on_end.check(data.get("on_end"), builder.fault)
    trackers = building.trackers(builder, data.get("trackers"))
    rates.settle(builder)
    stages = _stages(builder, data)
    if not builder.faults:
        builder.faults += gates.faults(recipe, origins, stages)
    if builder.faults or engine is None:
        raise RecipeError(building.unique(builder.faults))
    return Plan(
        name=data["name"],
        description=data.get("description", ""),
        model=data["model"],
        models=tuple(builder.models),
        engine=engine,
        stages=tuple(stages),
        resolved=auto.written_out(
            rates.resolved(written, engine, origins, stages), origins, stages
        ),
        limits=Limits(**data.get("limits", {})),
        origins=origins,
        pins=tuple(builder.pins),
        identities=builder.identities,
        watch=filmstrip(data.get("watch"), engine.billed),
        same_tokenizer=tuple(builder.same_tokenizer),
        named_models=tuple(builder.models.values()),
        named_checkpoints=tuple(builder.checkpoints),
        on_end=on_end.asked(data.get("on_end")),
        trackers=trackers,
        path=recipe.path,
        preset=recipe.preset,
        fingerprint=depends.digest(
            [data["name"], *[origin.until for origin in origins if origin.until]],
            *[(s.name, s.fingerprint, [(e.name, e.fingerprint) for e in s.evals]) for s in stages],
        ),
    )


# --- stages --------------------------------------------------------------------------------------


def _stages(builder: Builder, data: dict[str, Any]) -> list[PlannedStage]:
    specs = data.get("stages")
    stages: list[PlannedStage] = []
    if not isinstance(specs, list):
        return stages
    every = [s.get("name") for s in specs if isinstance(s, dict)]
    for index, spec in enumerate(specs):
        if not isinstance(spec, dict):
            continue
        name = spec.get("name")
        if isinstance(name, str):
            if name in builder.above:
                builder.fault(
                    ("stages", index, "name"),
                    f"two stages are named '{name}'; a stage's name is how others refer to it",
                )
            if name == BASE:
                builder.fault(
                    ("stages", index, "name"), "'base' means the recipe's model; pick another name"
                )
        stage = _stage(builder, data, spec, index, stages, every)
        if isinstance(name, str):
            builder.above[name] = stage
        if stage is not None:
            stages.append(stage)
    return stages


def _stage(
    builder: Builder,
    data: dict[str, Any],
    spec: dict[str, Any],
    index: int,
    before: list[PlannedStage],
    names: list[Any],
) -> PlannedStage | None:
    key: Key = ("stages", index)
    builder.index, builder.stage = index, str(spec.get("name", ""))
    seed = building.first_int(spec.get("seed"), data.get("seed"), 0)
    start = weights.start(builder, spec, index, names)
    parent = next((s for s in before if s.name == start), None)
    builder.model = _model(builder, data, spec, key, start, parent)
    lora = _lora(builder, data, spec, key, parent)
    builder.rank, builder.auto = (lora or LoraConfig()).rank, {}
    renderer = renderers.of_stage(builder, data, spec, key)
    builder.renderer = renderer or AS_EVER
    if renderer is not None and builder.model in builder.models:  # else it has faults of its own
        at: Key = (*key, "model") if "model" in spec else ("model",)
        renderers.check(builder, builder.model, renderer, at)
    method: Method | None = building.plugin(builder, "method", spec.get("method"), (*key, "method"))
    dataset = (
        building.dataset(builder, spec["dataset"], (*key, "dataset")) if "dataset" in spec else None
    )
    if method is not None:
        building.check_method(builder, method, spec, key)
    if "method" not in spec and not spec.get("eval"):
        builder.fault(
            key,
            "does nothing: give it a 'method:', or an 'eval:' to only evaluate",
            code="missing-key",
        )
    stage_data = None
    if dataset is not None:
        stage_data = _data(builder, dataset, (*key, "dataset"), seed, spec["dataset"])
    wants = None
    if method is not None and dataset is not None:
        wants = handed.over(builder, dataset, method, (*key, "dataset"))
        auto.resolve(builder, method, stage_data, wants)
    check_rank(builder, lora, spec, key, method, start)
    scored = _rewards(builder, spec, key, method, wants)
    if method is not None and scored and len(scored) == _count(spec["reward"]):  # all were built
        building.problems(builder, method.reward_problems([r for r, _ in scored]), (*key, "method"))
    evals = _evals(builder, spec, key, stage_data, renderer or AS_EVER)
    keep, stop = ends.ends(builder, spec, key, evals, method)
    if lora is None or renderer is None or builder.faults:
        return None
    known = Dependencies.of(
        {
            "start": builder.stage_identity(parent) if parent else start,
            "model": "" if parent else builder.model_identity(builder.model),
            "engine": builder.engine.basis if builder.engine else "",
            "seed": seed,
            "lora": effective(lora),
            "renderer": effective(renderer),
            "method": depends.of_plugin(method) if method else {},
            "dataset": stage_data.identity() if stage_data and method else {},
            "reward": [
                {**depends.of_plugin(reward), "weight": weight} for reward, weight in scored
            ],
            **ends.depends_on(evals, keep, stop),
        },
        environment_names(json.dumps(spec, default=str)),
    )
    plugins = [method, *(reward for reward, _ in scored), *(e.eval for e in evals)]
    plugins += [reward for plugin in plugins if plugin for reward in plugin.rewards.values()]
    sources = [stage_data, *(e.data for e in evals)]
    called: list[tuple[str, Plugin]] = [(f"reward '{reward.name}'", reward) for reward, _ in scored]
    called += [(f"method '{method.name}'", method)] if method else []
    called += [(f"eval '{e.name}'", e.eval) for e in evals]
    needs = {start} | {ref.stage for p in plugins if p for _, ref in references(p.config, ModelRef)}
    needs |= {name for source in sources if source for name in source.made_by}
    resources = Resources(**data.get("resources", {}) | spec.get("resources", {}))
    if why := resources.fault():
        builder.fault((*key, "resources") if "resources" in spec else ("resources",), why)
    return PlannedStage(
        name=spec["name"],
        index=index + 1,
        model=builder.model,
        start=start,
        seed=seed,
        lora=lora,
        method=method,
        data=stage_data if method else None,
        wants=wants,
        rewards=tuple(scored),
        evals=evals,
        renderer=renderer,
        keep=keep,
        stop=stop,
        fingerprint=known.fingerprint,
        inputs=known.inputs,
        resources=resources,
        needs=frozenset(name for name in needs if name in builder.above),
        planned=tuple((f"what {what} is made of", one, depends.held(one)) for what, one in called),
        written=spec.get("method", {}),
        auto=builder.auto,
    )


def _model(
    builder: Builder,
    data: dict[str, Any],
    spec: dict[str, Any],
    key: Key,
    start: str,
    parent: PlannedStage | None,
) -> str:
    """The base model of a stage: its own, its parent's or the recipe's."""
    own, inherited = spec.get("model"), parent.model if parent else str(data.get("model", ""))
    if not isinstance(own, str) or own == inherited:
        return inherited
    if start != BASE:
        builder.fault(
            (*key, "model"),
            f"starts from '{start}', which is of {inherited}; an adapter fits its own base model: "
            "remove this, or say 'init_from: base'",
        )
    else:
        weights.check_model(builder, own, (*key, "model"))
    return own


def _data(
    builder: Builder,
    dataset: Dataset,
    key: Key,
    seed: int,
    spec: dict[str, Any],
    *,
    held_out: bool = False,
) -> Data:
    stages = {name: builder.above.get(name) for name in building.reads(dataset)}
    made_by = {name: builder.stage_identity(stage) for name, stage in stages.items() if stage}
    planned = depends.held(dataset)
    names = tuple(environment_names(json.dumps(spec, default=str)))
    return Data(dataset, key, seed, held_out, spec.get("path"), made_by, planned, names)


def _lora(
    builder: Builder,
    data: dict[str, Any],
    spec: dict[str, Any],
    key: Key,
    parent: PlannedStage | None,
) -> LoraConfig | None:
    own = spec.get("lora")
    whole = {**(data.get("lora") or {}), **(own or {})} if isinstance(own, dict) else None
    try:
        default = LoraConfig.model_validate(data.get("lora") or {})
        lora = LoraConfig.model_validate(whole) if whole is not None else None
    except (ValidationError, TypeError):
        return None
    if parent is not None and lora is not None and lora != parent.lora:
        builder.fault(
            (*key, "lora"),
            f"starts from stage '{parent.name}', whose adapter has rank {parent.lora.rank}; "
            "an adapter keeps its shape: remove this, or say 'init_from: base'",
        )
    return lora or (parent.lora if parent else default)


def _rewards(
    builder: Builder,
    spec: dict[str, Any],
    key: Key,
    method: Method | None,
    wants: type[Record] | None,
) -> list[tuple[Reward, float]]:
    value = spec.get("reward")
    where: Key = (*key, "reward")
    if value is None:
        # An environment rewards by itself; what a dataset with a fault is, is not known.
        may_reward = wants is Task or (wants is None and "dataset" in spec)
        wanting = method is not None and method.takes_reward and method.needs_reward
        if method is not None and wanting and not may_reward:
            builder.fault(key, f"method '{method.name}' needs a 'reward:'", code="missing-key")
        return []
    if method is not None and not method.takes_reward:
        builder.fault(where, f"method '{method.name}' takes no reward; remove it", of_key=True)
    elif "method" not in spec:
        builder.fault(where, "a stage without a method takes no reward; remove it", of_key=True)
    many = isinstance(value, list)
    rewards = []
    for index, item in enumerate(value if many else [value]):
        item_key = (*where, index) if many else where
        made = building.plugin(builder, "reward", item, item_key, core=("weight",))
        if made:
            rewards.append((made, float(item.get("weight", 1.0))))
    return rewards


def _count(rewards: Any) -> int:
    """How many rewards a stage names."""
    return len(rewards) if isinstance(rewards, list) else 1


_NO_EVALS = "none stands above: write the eval itself here, {use: ..., name: ...}"


def _evals(
    builder: Builder,
    spec: dict[str, Any],
    key: Key,
    stage_data: Data | None,
    renderer: RendererConfig,
) -> tuple[PlannedEval, ...]:
    value = spec.get("eval")
    if not isinstance(value, list):
        return ()
    found: list[PlannedEval] = []
    own: set[str] = set()
    for index, item in enumerate(value):
        where: Key = (*key, "eval", index)
        if isinstance(item, str):
            if item in builder.evals:
                found.append(builder.evals[item])
            elif not _named_anywhere(builder, item):
                known = builder.registry.find("eval", item)
                near = suggest(item, sorted(builder.evals)) if builder.evals else _NO_EVALS
                near = f"write {{use: {item}}}" if known else near
                builder.fault(
                    where, f"no eval above is named '{item}'; {near}", code="unknown-name"
                )
            name = item
        else:
            planned = _eval(builder, item, where, stage_data, "dataset" in spec, renderer)
            name = planned.name if planned else ""
            if planned:
                found.append(planned)
                builder.evals[planned.name] = planned
        if name and name in own:
            builder.fault(where, f"two evals of this stage are named '{name}'; give one a 'name:'")
        own.add(name)
    return building.distinct(builder, found, (*key, "eval"))


def _named_anywhere(builder: Builder, name: str) -> bool:
    """Whether an eval above has that name but could not be planned: its own fault is enough."""
    if not builder.faults:
        return False
    for stage in builder.recipe.data.get("stages", []):
        for item in (stage.get("eval") or []) if isinstance(stage, dict) else []:
            if isinstance(item, dict) and item.get("name", item.get("use")) == name:
                return True
    return False


def _eval(
    builder: Builder,
    spec: Any,
    key: Key,
    stage_data: Data | None,
    has_dataset: bool,
    renderer: RendererConfig,
) -> PlannedEval | None:
    plugin: Eval | None = building.plugin(
        builder, "eval", spec, key, core=("name", "dataset", "every")
    )
    if plugin is None:
        return None
    name = spec.get("name", plugin.name)
    brought = building.own_data(builder, plugin, spec, key)
    if not plugin.takes:
        data = handed.to_suite(builder, plugin, spec, key)
    elif "dataset" in spec or "dataset" in brought:
        where: Key = (*key, "dataset") if "dataset" in spec else key
        dataset = brought.get("dataset")
        if "dataset" in spec:
            dataset = building.dataset(builder, spec["dataset"], where)
        if dataset is None:
            return None
        held_out = dataset.config.test_size > 0
        data = _data(builder, dataset, where, 0, spec.get("dataset", spec), held_out=held_out)
    elif stage_data is not None and stage_data.dataset.config.test_size > 0:
        data = replace(stage_data, held_out=True)
    elif stage_data is None and has_dataset:
        return None
    else:
        or_else = ", or hold some out with 'test_size:' in the stage's dataset"
        path = "a 'path:' or " if plugin.data_options else ""
        has_none = f"eval '{name}' has no data: give it {path}a 'dataset:'"
        builder.fault(key, has_none + (or_else if has_dataset else ""), code="missing-key")
        return None
    wants = handed.over(builder, data.dataset, plugin, key)
    auto.resolve(builder, plugin, data, wants)
    names = environment_names(json.dumps(builder.recipe.data["stages"][builder.index], default=str))
    asked = [depends.of_plugin(plugin), data.identity(), data.eval_seed, effective(renderer)]
    asked += [builder.engine.precision] if builder.engine and builder.engine.precision else []
    known = depends.usable(depends.without_environment(asked, names))
    every = building.first_int(spec.get("every"), 0) or None
    return PlannedEval(name, plugin, data, wants, depends.digest(*known), renderer, every)
