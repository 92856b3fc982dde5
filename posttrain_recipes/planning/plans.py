"""The plan of a recipe: its stages with their plugins, start weights and fingerprints.

`planner.build` makes a plan out of a recipe; what it holds can be run without looking at the
recipe again.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posttrain_recipes import content, models
from posttrain_recipes.errors import Location
from posttrain_recipes.ggufs import is_gguf
from posttrain_recipes.language.flat import Origin
from posttrain_recipes.language.nodes import Key
from posttrain_recipes.options import AS_EVER, ModelRef, references
from posttrain_recipes.planning import depends
from posttrain_recipes.planning.on_end import OnEnd
from posttrain_recipes.plugin import (
    Dataset,
    Engine,
    Eval,
    LoraConfig,
    Method,
    Plugin,
    Record,
    RendererConfig,
    Reward,
    Tracker,
)

BASE = "base"
"""What `init_from` says for the recipe's model, untrained."""


@dataclass(frozen=True)
class Data:
    """A dataset, or the part of it that is held out for evals."""

    dataset: Dataset
    key: Key
    eval_seed: int
    """What an eval on it samples with; the split goes by content alone."""
    held_out: bool = False
    """True: the test split; False: the rest (all of it where `test_size` is 0)."""
    written: str | None = None
    """Its path as the recipe has it: `${env:NAME}` is not expanded in what is shown and kept."""
    made_by: Mapping[str, Any] = field(default_factory=dict)
    """The stages whose made records it reads, with what tells those from others."""
    planned: tuple[str | None, ...] | None = None
    """What its files held when it was planned; None: not looked at."""
    environment: tuple[str, ...] = ()
    """The environment variables that stand in its options."""

    @property
    def label(self) -> str:
        """A name for messages: its path, if it has one."""
        name = self.written or _label(self.dataset)
        return f"{name} (test split)" if self.held_out else name

    @property
    def digest(self) -> str:
        """A hash of the content; of its name and options if the content is not known."""
        held = depends.without_environment(self.dataset.digest(), self.environment)
        return held or depends.digest(self.identity())

    def identity(self) -> dict[str, Any]:
        """What tells its records from others': content where it can be known, else options."""
        found = {
            **depends.of_plugin(self.dataset),
            "made": list(self.made_by.values()),
            "held_out": self.held_out,
        }
        return dict(depends.without_environment(found, self.environment))


def _label(dataset: Dataset) -> str:
    """Its path; the stages that it reads; or what it is made of."""
    if stages := dataset.reads():
        return f"records of {', '.join(stages)}"
    parts = [Path(_label(part)).name for inner in dataset.sources.values() for part in inner]
    if parts:
        return f"{dataset.name} of {' and '.join(parts)}"
    return str(getattr(dataset.config, "path", dataset.name))


@dataclass(frozen=True)
class Yardstick:
    """The metric by which checkpoints of a stage are compared while it trains."""

    eval: str
    """The eval's name."""
    metric: str | None = None
    """None: the eval's main metric."""

    def __str__(self) -> str:
        return f"{self.eval}/{self.metric}" if self.metric else self.eval


@dataclass(frozen=True)
class Stop:
    """The end of a stage before its last step."""

    yardstick: Yardstick
    patience: int
    """Evals in a row without a gain that end it."""

    def __str__(self) -> str:
        evals = f"{self.patience} evals" if self.patience > 1 else "1 eval"
        return f"{evals} without gain of {self.yardstick}"


MOST_MEMORY_GB = 1e6
"""What is asked above that is a slip; Ray counts bytes in 64 bits and takes it for nothing."""


@dataclass(frozen=True)
class Resources:
    """What a stage asks of the node of a cluster that it runs on."""

    cpus: float = 1
    gpus: float = 0
    memory_gb: float | None = None

    def __str__(self) -> str:
        parts = [f"{self.cpus:g} CPU{'' if self.cpus == 1 else 's'}"]
        parts += [f"{self.gpus:g} GPU{'' if self.gpus == 1 else 's'}"] if self.gpus else []
        parts += [f"{self.memory_gb:g} GB of memory"] if self.memory_gb else []
        return " and ".join(parts)

    def fault(self) -> str | None:
        """Why no cluster could ever give that; None where one could."""
        if self.gpus > 1 and self.gpus % 1:
            return f"gpus: a whole number, or a part of one, not {self.gpus:g}"
        for name, value in (("cpus", self.cpus), ("gpus", self.gpus)):
            if round(value, 4) != value:
                return f"{name}: at most four decimals, not {value:g}"
        if (self.memory_gb or 0) > MOST_MEMORY_GB:
            return f"memory_gb: in 10^9 bytes, and no node has {self.memory_gb:,.0f} of them"
        return None


@dataclass(frozen=True)
class PlannedEval:
    """An eval with its name and its data."""

    name: str
    eval: Eval
    data: Data
    wants: type[Record]
    fingerprint: str
    """Equal for two evals that would find the same on the same weights."""
    renderer: RendererConfig = AS_EVER
    """How the model is asked."""
    every: int | None = None
    """Steps of training between two times that it is run; None: before and after alone."""


@dataclass(frozen=True)
class PlannedStage:
    """One stage, ready to run."""

    name: str
    index: int
    """Its place in the recipe, from 1."""
    model: str
    """The base model."""
    start: str
    """`base`, the name of an earlier stage, or a `tinker://` state."""
    seed: int
    lora: LoraConfig
    method: Method | None
    data: Data | None
    wants: type[Record] | None
    """The record type that `data` is handed over as."""
    rewards: tuple[tuple[Reward, float], ...]
    evals: tuple[PlannedEval, ...]
    fingerprint: str
    """Equal for two stages that would train the same weights."""
    inputs: Mapping[str, Any]
    """What the fingerprint is a hash of, as plain values: two of them tell what changed."""
    renderer: RendererConfig = AS_EVER
    """How its conversations are rendered."""
    keep: Yardstick | None = None
    """What tells the best of its checkpoints, which is its result; None: that is the last."""
    stop: Stop | None = None
    resources: Resources = Resources()
    needs: frozenset[str] = frozenset()
    """Earlier stages whose weights or records it uses, the one it starts from among them."""
    planned: tuple[tuple[str, Plugin, tuple[str | None, ...]], ...] = ()
    """Its method, rewards and evals as messages call them, with what their files held when it was
    planned."""
    written: Mapping[str, Any] = field(default_factory=dict)
    """The method's options as the recipe has them, `${env:NAME}` not expanded."""
    auto: Mapping[str, str] = field(default_factory=dict)
    """Options of the method that are `auto` in the recipe, with what their numbers follow from."""

    def check_held(self) -> None:
        """Refuse what was edited since it was planned; datasets are looked at as they are read.

        Raises:
            UsageError: the files of a method, reward or eval hold something else.
        """
        for what, plugin, planned in self.planned:
            depends.check_held(what, plugin, planned)


@dataclass(frozen=True)
class Limits:
    """Budget of one run, over all its attempts; None means no limit."""

    max_cost_usd: float | None = None
    max_hours: float | None = None
    max_tokens: int | None = None


@dataclass(frozen=True)
class Filmstrip:
    """The prompts that are answered again and again while a stage trains, for `ptl watch`."""

    prompts: int = 3
    every: int | None = None
    """Steps between two times; None: as `steps` spreads them."""
    max_tokens: int = 64

    def steps(self, total: int) -> list[int]:
        """After which of `total` steps they are answered: the start (0), the end, and in between,
        where `every` is not given, about six times, more often at first, when most changes. Then a
        stage of fewer than five steps has none, not even of its start."""
        if self.every is not None:
            return sorted({0, *range(self.every, total, self.every), total})
        if total < FEWEST_STEPS:
            return []
        return sorted({0, *(max(1, round(total * part)) for part in SPREAD), total})


FEWEST_STEPS = 5
SPREAD = (1 / 16, 1 / 8, 1 / 4, 2 / 5, 3 / 5, 4 / 5)


@dataclass(frozen=True)
class SameTokenizer:
    """A model that must have the same tokenizer as a stage's model, to be checked once the engine
    is up: no file on this machine tells."""

    model: str
    """The base model of the stage."""
    other: str
    """What its option names: another base model, or a checkpoint, whose base the engine knows."""
    location: Location
    key: str
    """The option, as `stages.student.method.teacher`."""
    instead: str = ""
    """What else the recipe may do."""


@dataclass(frozen=True)
class NamedWeights:
    """A base model or a checkpoint, where the recipe names it."""

    name: str
    location: Location
    key: str
    """The option, as `stages.student.method.teacher`."""
    stage: str = ""
    """Whose option it is; "" for a base model, which may be of several."""
    samples: bool = False
    """Whether it is sampled from alone; otherwise a stage of it trains on."""


@dataclass(frozen=True)
class Plan:
    """A recipe that can be run."""

    name: str
    description: str
    model: str
    """The recipe's base model; a stage may have another."""
    models: tuple[str, ...]
    """Every base model that a stage trains or an option refers to."""
    engine: Engine
    stages: tuple[PlannedStage, ...]
    resolved: dict[str, Any]
    """The resolved recipe, with numbers for `auto`; environment variables and secrets are not
    expanded in it."""
    path: Path
    preset: str | None
    fingerprint: str
    """Equal for two plans of one recipe whose runs would give the same results."""
    limits: Limits = Limits()
    origins: tuple[Origin, ...] = ()
    """By stage: where in loops, comparisons and matrix it comes from."""
    pins: tuple[str, ...] = ()
    """What names on the hub were found to stand for, in words."""
    identities: Mapping[str, str] = field(default_factory=dict)
    """What tells the base models from others, as it was when they were planned."""
    watch: Filmstrip | None = None
    """What `watch:` asks for; None: nothing is answered again. No fingerprint depends on it."""
    same_tokenizer: tuple[SameTokenizer, ...] = ()
    """What a run has to look at before it spends anything."""
    named_models: tuple[NamedWeights, ...] = ()
    """Where each of `models` is named first."""
    named_checkpoints: tuple[NamedWeights, ...] = ()
    """Every `tinker://` address in it."""
    on_end: OnEnd | None = None
    """Whom it tells how it ended. No fingerprint depends on it."""
    trackers: tuple[Tracker, ...] = ()
    """Who hears of it beside MLflow. No fingerprint depends on them."""

    def __repr__(self) -> str:
        # Of everything in it the stages are what a person asks for; `ptl plan` says the rest.
        preset = f", preset {self.preset}" if self.preset else ""
        first, more = [stage.name for stage in self.stages[:8]], len(self.stages) - 8
        stages = " -> ".join(first) + (f" -> {more} more" if more > 0 else "")
        return f"Plan({self.name}: {self.model} on engine {self.engine.name}{preset}; {stages})"

    def template_of(self, model: str) -> RendererConfig:
        """The chat template that a base model is first used with: options with nothing else."""
        for stage in self.stages:
            if stage.model == model:
                return RendererConfig(chat_template=stage.renderer.chat_template)
        for stage in self.stages:
            plugins: list[Any] = [stage.method, *(e.eval for e in stage.evals)]
            plugins += [reward for reward, _ in stage.rewards]
            plugins += [inner for one in plugins if one for inner in one.rewards.values()]
            for plugin in plugins:
                for _, ref in references(plugin.config, ModelRef) if plugin else ():
                    if ref.model == model and ref.renderer is not None:
                        return RendererConfig(chat_template=ref.renderer.chat_template)
        return AS_EVER

    def check_models(self) -> None:
        """Refuse models whose files were edited before the engine read them.

        Raises:
            UsageError: one is not what was planned with.
        """
        for name, planned in self.identities.items():
            now = model_identity(name, self.path.parent)
            if now not in (name, planned):  # by name alone: it is the hub's, or the engine's
                raise depends.changed(f"the model {name}")


# --- models and identity -------------------------------------------------------------------------


def local_model(name: str, base_dir: Path) -> Path:
    """The directory or GGUF file of a model that is given as a path."""
    return (base_dir / Path(os.path.expanduser(name))).resolve()


def model_location(model: str, base_dir: Path) -> str:
    """Where the weights of a model are: a directory, a GGUF file or a hub id."""
    if models.is_path(model):
        return str(local_model(model, base_dir))
    return models.resolve(model)


def model_identity(model: str, base_dir: Path) -> str:
    """The identity of a base model: a hash of the content of a local one, the name of a hub's."""
    if models.is_path(model):
        folder = local_model(model, base_dir)
    else:
        folder = Path(models.resolve(model))
        if not folder.is_dir():
            return model
    if is_gguf(model):
        return depends.digest([content.file_digest(folder)])
    parts: list[Any] = []
    for path in sorted(folder.glob("*")):
        if path.suffix in (".json", ".safetensors", ".bin", ".jinja", ".model", ".txt"):
            parts.append([path.name, content.file_digest(path)])
    return depends.digest(parts)
