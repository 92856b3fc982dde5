"""Instantiates the plugins that a recipe names, with references to other stages resolved."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pydantic import ValidationError

from posttrain_recipes import hub
from posttrain_recipes.errors import Fault, MissingExtraError, PtlError, UsageError, said_by
from posttrain_recipes.language.flat import Origin
from posttrain_recipes.language.nodes import Key
from posttrain_recipes.language.recipe import Recipe, environment_names, expand_environment
from posttrain_recipes.models.registered import is_registered
from posttrain_recipes.options import (
    AS_EVER,
    DatasetRef,
    ModelRef,
    RendererConfig,
    RewardRef,
    is_key,
    references,
)
from posttrain_recipes.planning import hosted, rates, renderers, weights
from posttrain_recipes.planning.plans import (
    NamedWeights,
    PlannedEval,
    PlannedStage,
    SameTokenizer,
    model_identity,
)
from posttrain_recipes.plugin import Dataset, Engine, Eval, Method, Tracker
from posttrain_recipes.registry import OWN, Entry, Registry
from posttrain_recipes.shown import redact


@dataclass
class Builder:
    """A plan in the making: what is known so far, and what is wrong."""

    recipe: Recipe
    registry: Registry
    faults: list[Fault] = field(default_factory=list)
    evals: dict[str, PlannedEval] = field(default_factory=dict)
    engine: Engine | None = None
    origins: tuple[Origin, ...] = ()
    """By stage of the flat recipe: what it comes from."""
    above: dict[str, PlannedStage | None] = field(default_factory=dict)
    """Stages above the present one; None where one has faults of its own."""
    model: str = ""
    """The base model of the present stage."""
    rank: int = 0
    """Of its adapter."""
    renderer: RendererConfig = AS_EVER
    """How it is asked."""
    auto: dict[str, str] = field(default_factory=dict)
    """Options of its method that are `auto`, with what their numbers follow from."""
    kept: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """By stage: the numbers that its options had in the run that is planned again."""
    models: dict[str, NamedWeights] = field(default_factory=dict)
    """Every base model that the plan needs, in order, where it is named first."""
    checkpoints: list[NamedWeights] = field(default_factory=list)
    """Every checkpoint that it names."""
    index: int = 0
    """The place of the present stage in the flat recipe, from 0."""
    stage: str = ""
    """Its name."""
    ask: bool = False
    """Whether the hub may be asked what a branch stands for now."""
    pins: dict[str, None] = field(default_factory=dict)
    """What was looked up, in words, in order."""
    answers: dict[str, tuple[int | None, str]] = field(default_factory=dict)
    """By data: what `planning.auto` found of its answers."""
    same_tokenizer: list[SameTokenizer] = field(default_factory=list)
    """What has to have the tokenizer of a stage's model, and may not: a run looks again."""

    def fault(
        self, key: Key, message: str, *, of_key: bool = False, code: str = "wrong-value"
    ) -> None:
        """Note what is wrong at `key`."""
        self.faults.append(self.recipe.fault(key, message, of_key=of_key, code=code))

    def need(self, model: str, key: Key) -> None:
        """Keep a base model among those that are needed."""
        if model not in self.models:
            self.models[model] = self.place(model, key)

    def place(self, name: str, key: Key, stage: str = "", *, samples: bool = False) -> NamedWeights:
        """Weights that are named at `key`."""
        at = self.recipe.fault(key, "")
        return NamedWeights(name, at.location, at.key, stage, samples)

    @cached_property
    def _identities(self) -> dict[str, str]:
        return {}

    def model_identity(self, model: str) -> str:
        """What tells a base model from others; its files are read once."""
        if model not in self._identities:
            loads = self.engine is None or self.engine.loads
            found = model_identity(model, self.recipe.base_dir)
            if (
                loads and found == model and not is_registered(model)
            ):  # not on this machine, so it comes from the hub
                revision = hub.revision("model", model, None, ask=self.ask)
                self.pins[f"{model}: {revision}"] = None
                found = f"{model}@{revision.commit}" if revision.commit else model
            self._identities[model] = found
        return self._identities[model]

    @property
    def identities(self) -> dict[str, str]:
        """Of the base models that were asked for."""
        return dict(self._identities)

    def stage_identity(self, stage: PlannedStage) -> Any:
        """What tells the weights and records that a stage above leaves from others: a loop that may
        end early leaves those of one of several rounds, by what its evals find."""
        made, here = self.origins[stage.index - 1], self.origins[self.index]
        if not made.until or made.loop == here.loop:
            return stage.fingerprint
        judged = [
            [planned.name, planned.fingerprint]
            for other in self.above.values()
            if other and self.origins[other.index - 1].loop == made.loop
            for planned in other.evals
        ]
        return [stage.fingerprint, [list(one) for one in made.until], judged]

    @cached_property
    def _differences(self) -> dict[str, str | None]:
        return {}

    def difference(self, theirs: str) -> str | None:
        """How a model's tokenizer differs from that of the present stage's model, "" if it does
        not; None if no file on this machine tells. Files are read once, as large ones take a
        second."""
        pair = f"{self.model} {theirs}"
        if pair not in self._differences:
            self._differences[pair] = weights.difference_of(
                self.model, theirs, self.recipe.base_dir
            )
        return self._differences[pair]


def plugin(builder: Builder, kind: str, spec: Any, key: Key, core: tuple[str, ...] = ()) -> Any:
    """The plugin that `spec` names with its options, or None after noting why not."""
    if not isinstance(spec, dict) or not isinstance(spec.get("use"), str):
        return None
    entry = builder.registry.find(kind, spec["use"])
    if entry is None:
        return None
    try:
        entry.require()
    except MissingExtraError as error:
        builder.fault((*key, "use"), f"{error.what}; {error.hint}", code=error.code)
        return None
    try:
        return _made(builder, entry, spec, key, core)
    except (PtlError, OSError, ImportError):
        raise
    except (Exception, SystemExit) as error:
        if entry.distribution == OWN:
            raise
        why = redact(f"{type(error).__name__}: {said_by(error)}")
        message = f"{kind} '{entry.name}' of {entry.distribution} fails with these options: {why}"
        builder.fault((*key, "use"), message, code="bad-plugin")
        return None


def _made(builder: Builder, entry: Entry, spec: Any, key: Key, core: tuple[str, ...]) -> Any:
    kind = entry.kind
    options = {k: v for k, v in spec.items() if k != "use" and k not in core}
    try:
        # An engine reads its key when it connects: a recipe can be checked without one.
        known = options if kind == "engine" else expand_environment(options)
        if kind == "method":
            known = rates.filled(builder, entry.cls, entry.config, known, key)
        config = entry.config.model_validate(known)
    except UsageError as error:
        builder.fault(key, f"{error.what}; {error.hint}", code=error.code)
        return None
    except ValidationError as error:
        # Forms are the schema's to judge; what it let pass are the plugin's own rules.
        judged = bool(builder.faults)
        for problem in error.errors():
            if not judged or problem["type"] in ("value_error", "assertion_error"):
                message = problem["msg"].removeprefix("Value error, ")
                builder.fault((*key, *problem["loc"]), message)
        return None
    config = renderers.in_options(builder, config, key)
    made = entry.cls(config, builder.recipe.base_dir)
    made.origin = entry.origin
    for path, ref in references(config, ModelRef):
        weights.check_reference(builder, made, ref, path, key)
    if meant := {path: weights.meant(builder, ref) for path, ref in references(config, ModelRef)}:
        named = {".".join(map(str, path)): identity for path, identity in meant.items()}
        made.origin = {**made.origin, "models": named}
    if (told := made.pin(ask=builder.ask)) is not None:
        builder.pins[told] = None
    inner = {
        ".".join(map(str, path)): plugin(builder, "reward", ref.model_dump(), (*key, *path))
        for path, ref in references(config, RewardRef)
    }
    made.rewards = {path: found for path, found in inner.items() if found}
    if kind != "engine":
        hosted.check_options(builder, config, key)
    if kind != "dataset":  # which may still lack its sources
        problems(builder, made.problems(), key)
    return made


def problems(builder: Builder, told: Iterable[tuple[str, str]], key: Key) -> None:
    """Note what a plugin says of its options, as `(option, message)`."""
    try:
        for option, message in told:
            code = "no-such-file" if "there is no file" in message else "wrong-value"
            builder.fault((*key, option), message, code=code)
    except OSError as error:  # of a path that no system takes
        builder.fault(key, f"cannot be looked at: {error.strerror or error}")


def distinct(builder: Builder, evals: Sequence[PlannedEval], key: Key) -> tuple[PlannedEval, ...]:
    """The evals of a stage, of which no two may measure the same: what one found is known by what
    it measured, and the second would have no result."""
    first: dict[str, str] = {}
    for planned in evals:
        other = first.setdefault(planned.fingerprint, planned.name)
        if other != planned.name:
            told = f"evals '{other}' and '{planned.name}' measure the same, on the same records"
            builder.fault(key, f"{told}; remove one")
    return tuple(evals)


def engine(builder: Builder, spec: Any) -> Engine | None:
    """The engine that a recipe names, or None after noting why not."""
    made: Engine | None = plugin(
        builder, "engine", {"use": spec} if isinstance(spec, str) else spec, ("engine",)
    )
    return made


def trackers(builder: Builder, value: Any) -> tuple[Tracker, ...]:
    """The trackers that a recipe names; of one that cannot be made it is noted why."""
    found = []
    for index, item in enumerate(value if isinstance(value, list) else ()):
        spec = {"use": item} if isinstance(item, str) else item
        made: Tracker | None = plugin(builder, "tracker", spec, ("trackers", index))
        found += [made] if made is not None else []
    return tuple(found)


def dataset(builder: Builder, spec: Any, key: Key) -> Dataset | None:
    """The dataset that `spec` names, with those inside it, or None after noting why not."""
    made: Dataset | None = plugin(builder, "dataset", spec, key)
    if made is None:
        return None
    before = len(builder.faults)
    sources: dict[str, list[Dataset]] = {}
    for path, ref in references(made.config, DatasetRef):
        part = dataset(builder, ref.model_dump(), (*key, *path))
        if part is not None:
            sources.setdefault(str(path[0]), []).append(part)
    made.sources = sources
    problems(builder, made.problems(), key)
    for name in made.reads():
        _check_reads(builder, name, (*key, "stage"))
    return made if len(builder.faults) == before else None


def own_data(
    builder: Builder, made: Eval, spec: Mapping[str, Any], key: Key
) -> dict[str, Dataset | None]:
    """The datasets that an eval brings, None for one with a fault; those beside its records become
    its `sources`. It brings no `dataset` where the recipe names one."""
    refs = dict(made.own_data())
    if "dataset" in spec:
        refs.pop("dataset", None)
        for option in made.data_options:
            if option in spec:
                message = "says what it is measured on, and so does 'dataset:'; remove one of them"
                builder.fault((*key, option), message)
    found = {
        name: dataset(builder, ref.model_dump(), key if name == "dataset" else (*key, name))
        for name, ref in refs.items()
    }
    made.sources = {name: [part] for name, part in found.items() if part and name != "dataset"}
    return found


def check_method(builder: Builder, method: Method, spec: Mapping[str, Any], key: Key) -> None:
    """Note a dataset that a method lacks, or does not take, and what the engine cannot do."""
    if method.takes and "dataset" not in spec:
        builder.fault(
            key, f"method '{method.name}' needs a 'dataset:' to train on", code="missing-key"
        )
    if not method.takes and "dataset" in spec:
        builder.fault(
            (*key, "dataset"), f"method '{method.name}' takes no dataset; remove it", of_key=True
        )
    engine = builder.engine
    if method.reads_adapters and engine is not None and not engine.takes_adapters:
        builder.fault(
            (*key, "method"),
            f"method '{method.name}' writes an adapter, and Tinker's protocol has no upload: the "
            f"engine '{engine.name}' takes none back. Take 'engine: local', or 'ptl export' each "
            "of the adapters and merge them there (PEFT's add_weighted_adapter)",
        )
    if method.reads_adapters:
        weights.check_adapters(builder, method, (*key, "method"))


def reads(made: Dataset) -> list[str]:
    """The stages whose made records a dataset reads, itself or through its sources."""
    inner = [name for parts in made.sources.values() for part in parts for name in reads(part)]
    return list(dict.fromkeys([*made.reads(), *inner]))


def _check_reads(builder: Builder, name: str, key: Key) -> None:
    if not weights.check_earlier(builder, name, key):
        return
    stage = builder.above[name]
    if stage is not None and not (stage.method and stage.method.collects()):
        makers = [n for n, s in builder.above.items() if s and s.method and s.method.collects()]
        could = stage.method is not None and bool(stage.method.makes)
        builder.fault(
            key,
            f"stage '{name}' makes no records"
            + (
                f"; {', '.join(makers)} does"
                if makers
                else "; it does with the option 'collect' of its method"
                if could
                else "; a stage such as teacher_samples does"
            ),
        )


def check_secrets(builder: Builder, value: Any, key: Key) -> None:
    """Note every key, and every address with a password, that stands in a recipe in plain text."""
    told = isinstance(value, str) and {"@", "="} & set(value) and not environment_names(value)
    if told and redact(value, {}) != value:
        builder.fault(
            key,
            "has an address with a user, a password or a key in it, which would stand in files "
            "and logs; "
            "leave it out, or write ${env:NAME}",
        )
    items: Iterator[tuple[str | int, Any]] = iter(())
    if isinstance(value, dict):
        items = iter(value.items())
    elif isinstance(value, list):
        items = iter(enumerate(value))
    for part, inner in items:
        secret = isinstance(part, str) and is_key(part) and isinstance(inner, str)
        if secret and not environment_names(inner):
            name = re.sub(r"\W", "_", str(part)).upper()
            builder.fault(
                (*key, part),
                f"looks like a secret in plain text; write ${{env:{name}}} and export {name}",
            )
        check_secrets(builder, inner, (*key, part))


def first_int(*values: Any) -> int:
    """The first whole number; `1e3` is one, as it is to the schema."""
    numbers = (v for v in values if isinstance(v, int | float) and not isinstance(v, bool))
    return next(int(number) for number in numbers if number == number // 1)


def unique(faults: list[Fault]) -> list[Fault]:
    """Each fault once."""
    return list({(f.location, f.key, f.message): f for f in faults}.values())
