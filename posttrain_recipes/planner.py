"""Recipe -> Plan: plugins instantiated, hand-offs resolved and typed, fingerprints taken.

Building a plan finds every fault of a recipe that can be found without running it, and goes on
after each to find the next.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import ValidationError

from posttrain_recipes import models, schema
from posttrain_recipes.conversion import can_become
from posttrain_recipes.errors import Fault, MissingExtraError, RecipeError, UsageError
from posttrain_recipes.plan import (
    BASE,
    Data,
    Plan,
    PlannedEval,
    PlannedStage,
    digest,
    local_model,
    model_identity,
)
from posttrain_recipes.plugin import Dataset, Engine, Eval, LoraConfig, Method, Record, Reward
from posttrain_recipes.recipe import Key, Recipe, environment_names, expand_environment
from posttrain_recipes.registry import Entry, Registry, suggest

_SECRET = re.compile(r"(api[_-]?key|secret|password|passwd|credential)|(^|[_-])token$", re.I)


@dataclass
class _Builder:
    recipe: Recipe
    registry: Registry
    faults: list[Fault] = field(default_factory=list)
    evals: dict[str, PlannedEval] = field(default_factory=dict)
    engine: Engine | None = None

    def fault(self, key: Key, message: str, *, of_key: bool = False) -> None:
        self.faults.append(self.recipe.fault(key, message, of_key=of_key))


def build(recipe: Recipe, registry: Registry) -> Plan:
    """The plan of a recipe.

    Raises:
        RecipeError: everything that is wrong with the recipe, its cross-references and the
            presence and form of its data.
    """
    builder = _Builder(recipe, registry, schema.structural_faults(recipe, registry))
    data = recipe.data
    _check_secrets(builder, data, ())
    _check_model(recipe, builder)
    engine = builder.engine = _engine(builder, data.get("engine", "local"))
    stages = _stages(builder, data)
    if builder.faults or engine is None:
        raise RecipeError(_unique(builder.faults))
    return Plan(
        name=data["name"],
        description=data.get("description", ""),
        model=data["model"],
        engine=engine,
        stages=tuple(stages),
        resolved=data,
        path=recipe.path,
        preset=recipe.preset,
        fingerprint=digest(
            [data["name"]], *[(s.fingerprint, [e.fingerprint for e in s.evals]) for s in stages]
        ),
    )


def _unique(faults: list[Fault]) -> list[Fault]:
    return list({(f.location, f.key, f.message): f for f in faults}.values())


def _check_secrets(builder: _Builder, value: Any, key: Key) -> None:
    items: Iterator[tuple[str | int, Any]] = iter(())
    if isinstance(value, dict):
        items = iter(value.items())
    elif isinstance(value, list):
        items = iter(enumerate(value))
    for part, inner in items:
        secret = isinstance(part, str) and _SECRET.search(part) and isinstance(inner, str)
        if secret and not environment_names(inner):
            name = re.sub(r"\W", "_", str(part)).upper()
            builder.fault(
                (*key, part),
                f"looks like a secret in plain text; write ${{env:{name}}} and export {name}",
            )
        _check_secrets(builder, inner, (*key, part))


def _check_model(recipe: Recipe, builder: _Builder) -> None:
    model = recipe.data.get("model")
    if not isinstance(model, str):
        return
    if model.startswith("ptl/") and model not in models.BUNDLED:
        near = suggest(model, list(models.BUNDLED))
        builder.fault(("model",), f"unknown bundled model '{model}'; {near}")
    if (
        models.is_path(model)
        and not (local_model(model, recipe.base_dir) / "config.json").is_file()
    ):
        builder.fault(("model",), "there is no model directory with a config.json here")


# --- plugins -------------------------------------------------------------------------------------


def _plugin(
    builder: _Builder, kind: str, spec: Any, key: Key, core: tuple[str, ...] = ()
) -> tuple[Any, Entry] | None:
    """The plugin that `spec` names with its options, or None after noting why not."""
    if not isinstance(spec, dict) or not isinstance(spec.get("use"), str):
        return None
    entry = builder.registry.find(kind, spec["use"])
    if entry is None:
        return None
    try:
        entry.require()
    except MissingExtraError as error:
        builder.fault((*key, "use"), f"{error.what}; {error.hint}")
        return None
    options = {k: v for k, v in spec.items() if k != "use" and k not in core}
    try:
        # An engine reads its key when it connects: a recipe can be checked without one.
        known = options if kind == "engine" else expand_environment(options)
        config = entry.config.model_validate(known)
    except UsageError as error:
        builder.fault(key, f"{error.what}; {error.hint}")
        return None
    except ValidationError as error:
        # Forms are the schema's to judge; what it let pass are the plugin's own rules.
        judged = bool(builder.faults)
        for problem in error.errors():
            if not judged or problem["type"] in ("value_error", "assertion_error"):
                message = problem["msg"].removeprefix("Value error, ")
                builder.fault((*key, *problem["loc"]), message)
        return None
    return entry.cls(config, builder.recipe.base_dir), entry


def _engine(builder: _Builder, spec: Any) -> Engine | None:
    made = _plugin(builder, "engine", {"use": spec} if isinstance(spec, str) else spec, ("engine",))
    return made[0] if made else None


def _dataset(builder: _Builder, spec: Any, key: Key) -> Dataset | None:
    made = _plugin(builder, "dataset", spec, key)
    if made is None:
        return None
    dataset: Dataset = made[0]
    problems = list(dataset.problems())
    for option, message in problems:
        builder.fault((*key, option), message)
    return None if problems else dataset


# --- stages --------------------------------------------------------------------------------------


def _stages(builder: _Builder, data: dict[str, Any]) -> list[PlannedStage]:
    specs = data.get("stages")
    stages: list[PlannedStage] = []
    known: dict[str, int] = {}
    if not isinstance(specs, list):
        return stages
    every = [s.get("name") for s in specs if isinstance(s, dict)]
    for index, spec in enumerate(specs):
        if not isinstance(spec, dict):
            continue
        name = spec.get("name")
        if isinstance(name, str):
            if name in known:
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
            known[name] = index
        if stage is not None:
            stages.append(stage)
    return stages


def _stage(
    builder: _Builder,
    data: dict[str, Any],
    spec: dict[str, Any],
    index: int,
    before: list[PlannedStage],
    names: list[Any],
) -> PlannedStage | None:
    key: Key = ("stages", index)
    seed = _first_int(spec.get("seed"), data.get("seed"), 0)
    start = _start(builder, spec, index, names)
    parent = next((s for s in before if s.name == start), None)
    lora = _lora(builder, data, spec, key, parent)
    made = _plugin(builder, "method", spec.get("method"), (*key, "method"))
    method: Method | None = made[0] if made else None
    dataset = _dataset(builder, spec["dataset"], (*key, "dataset")) if "dataset" in spec else None
    if method is not None and "dataset" not in spec:
        builder.fault(key, f"method '{method.name}' needs a 'dataset:' to train on")
    if "method" not in spec and not spec.get("eval"):
        builder.fault(key, "does nothing: give it a 'method:', or an 'eval:' to only evaluate")
    stage_data = None
    if dataset is not None:
        stage_data = Data(dataset, (*key, "dataset"), seed, written=spec["dataset"].get("path"))
    wants = None
    if method is not None and dataset is not None:
        wants = _handed_over(builder, dataset, method, (*key, "dataset"))
    scored = _rewards(builder, spec, key, method)
    evals = _evals(builder, spec, key, stage_data)
    if lora is None or builder.faults:
        return None
    fingerprint = digest(
        ["stage", 1, parent.fingerprint if parent else start],
        model_identity(data["model"], builder.recipe.base_dir) if parent is None else "",
        [seed, lora.model_dump(mode="json"), builder.engine.identity if builder.engine else ""],
        made[1].identity(made[0]) if made else [],
        stage_data.identity() if stage_data and method else [],
        [[entry.identity(reward), weight] for reward, entry, weight in scored],
    )
    return PlannedStage(
        name=spec["name"],
        index=index + 1,
        start=start,
        seed=seed,
        lora=lora,
        method=method,
        data=stage_data if method else None,
        wants=wants,
        rewards=tuple((reward, weight) for reward, _, weight in scored),
        evals=evals,
        fingerprint=fingerprint,
        written=spec.get("method", {}),
    )


def _first_int(*values: Any) -> int:
    """The first whole number; `1e3` is one, as it is to the schema."""
    numbers = (v for v in values if isinstance(v, int | float) and not isinstance(v, bool))
    return next(int(number) for number in numbers if number == number // 1)


def _start(builder: _Builder, spec: dict[str, Any], index: int, names: list[Any]) -> str:
    key: Key = ("stages", index)
    earlier = [n for n in names[:index] if isinstance(n, str)]
    start = spec.get("init_from")
    if not isinstance(start, str):
        return earlier[-1] if earlier else BASE
    if start == BASE or start in earlier:
        return start
    where: Key = (*key, "init_from")
    if start.startswith("tinker://"):
        if start.count("/") != 4 or "/weights/" not in start:
            builder.fault(
                where,
                "is not a training state; it reads tinker://RUN/weights/NAME"
                + (" (sampler_weights cannot be trained)" if "sampler" in start else ""),
            )
        return start
    if start == spec.get("name"):
        builder.fault(where, "a stage cannot start from itself")
    elif start in names:
        builder.fault(where, f"stage '{start}' comes later; a stage starts from one above it")
    else:
        builder.fault(where, f"unknown stage '{start}'; {suggest(start, [BASE, *earlier])}")
    return BASE


def _lora(
    builder: _Builder,
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


def _handed_over(
    builder: _Builder, dataset: Dataset, consumer: Method | Eval, key: Key
) -> type[Record]:
    """The type that the dataset's records are handed to `consumer` as."""
    have = dataset.record_type()
    if have is None:
        return consumer.takes[0]
    wanted = can_become(have, consumer.takes)
    if wanted is None:
        kind = "method" if isinstance(consumer, Method) else "eval"
        takes = " or ".join(f"{t.__name__} records" for t in consumer.takes)
        builder.fault(
            key,
            f"has {have.__name__} records, and {kind} '{consumer.name}' takes {takes}; "
            f"{_example(consumer.takes[0])}",
        )
        return consumer.takes[0]
    return wanted


_FIELDS = {
    "Conversation": "'messages', or 'prompt' and 'completion'",
    "Prompt": "'prompt' and 'answer', or 'question' and 'answer'",
    "Preference": "'prompt', 'chosen' and 'rejected'",
    "Labelled": "'prompt', 'completion' and 'label'",
}


def _example(record_type: type[Record]) -> str:
    return f"those have the fields {_FIELDS.get(record_type.__name__, record_type.__name__)}"


def _rewards(
    builder: _Builder, spec: dict[str, Any], key: Key, method: Method | None
) -> list[tuple[Reward, Entry, float]]:
    value = spec.get("reward")
    where: Key = (*key, "reward")
    if value is None:
        if method is not None and method.takes_reward:
            builder.fault(key, f"method '{method.name}' needs a 'reward:'")
        return []
    if method is not None and not method.takes_reward:
        builder.fault(where, f"method '{method.name}' takes no reward; remove it", of_key=True)
    elif "method" not in spec:
        builder.fault(where, "a stage without a method takes no reward; remove it", of_key=True)
    many = isinstance(value, list)
    rewards = []
    for index, item in enumerate(value if many else [value]):
        item_key = (*where, index) if many else where
        made = _plugin(builder, "reward", item, item_key, core=("weight",))
        if made:
            rewards.append((*made, float(item.get("weight", 1.0))))
    return rewards


def _evals(
    builder: _Builder, spec: dict[str, Any], key: Key, stage_data: Data | None
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
                near = f"write {{use: {item}}}" if known else suggest(item, sorted(builder.evals))
                builder.fault(where, f"no eval above is named '{item}'; {near}")
            name = item
        else:
            planned = _eval(builder, item, where, stage_data, "dataset" in spec)
            name = planned.name if planned else ""
            if planned:
                found.append(planned)
                builder.evals[planned.name] = planned
        if name and name in own:
            builder.fault(where, f"two evals of this stage are named '{name}'; give one a 'name:'")
        own.add(name)
    return tuple(found)


def _named_anywhere(builder: _Builder, name: str) -> bool:
    """Whether an eval above has that name but could not be planned: its own fault is enough."""
    if not builder.faults:
        return False
    for stage in builder.recipe.data.get("stages", []):
        for item in (stage.get("eval") or []) if isinstance(stage, dict) else []:
            if isinstance(item, dict) and item.get("name", item.get("use")) == name:
                return True
    return False


def _eval(
    builder: _Builder, spec: Any, key: Key, stage_data: Data | None, has_dataset: bool
) -> PlannedEval | None:
    made = _plugin(builder, "eval", spec, key, core=("name", "dataset"))
    if made is None:
        return None
    plugin, entry = made
    name = spec.get("name", plugin.name)
    if "dataset" in spec:
        dataset = _dataset(builder, spec["dataset"], (*key, "dataset"))
        if dataset is None:
            return None
        path = spec["dataset"].get("path")
        held_out = dataset.config.test_size > 0
        data = Data(dataset, (*key, "dataset"), 0, held_out, written=path)
    elif stage_data is not None and stage_data.dataset.config.test_size > 0:
        data = replace(stage_data, held_out=True)
    elif stage_data is None and has_dataset:
        return None
    else:
        builder.fault(
            key,
            f"eval '{name}' has no data: give it a 'dataset:'"
            + (
                ", or hold some out with 'test_size:' in the stage's dataset" if has_dataset else ""
            ),
        )
        return None
    wants = _handed_over(builder, data.dataset, plugin, key)
    identity = digest(entry.identity(plugin), data.identity())
    return PlannedEval(name, plugin, data, wants, identity)
