"""The public API for plugin authors. Nothing else in the package needs to be imported.

A plugin is a class with a `name`, a nested `Config(PluginConfig)` and one method; a hook returns
the class, and an entry point in the group `posttrain_recipes` names the module with the hook:

    from posttrain_recipes.plugin import PluginConfig, Prompt, Reward, Sample, hookimpl

    class Brevity(Reward):
        '''One over the number of words.'''

        name = "brevity"

        class Config(PluginConfig):
            floor: int = 1
            '''Replies shorter than this many words all score the same.'''

        config: Config

        def score(self, samples):
            return [1 / max(self.config.floor, len(s.completion.split())) for s in samples]

    @hookimpl
    def ptl_rewards():
        return [Brevity]

The class is what a recipe names with `use:`; every other key of that mapping is its `Config`.
Importing a plugin must stay light: import torch, tinker and the like inside the method that needs
them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol, TypeVar

import pluggy
from pydantic import BaseModel, ConfigDict, Field

from posttrain_recipes.errors import PtlError, UsageError
from posttrain_recipes.records import (
    Checkpoint,
    Conversation,
    Estimate,
    EvalResult,
    Labelled,
    Message,
    Preference,
    Prompt,
    Record,
    Sample,
)
from posttrain_recipes.waiting import in_thread

if TYPE_CHECKING:
    import tinker

T = TypeVar("T")

__all__ = [
    "Checkpoint",
    "Connection",
    "Conversation",
    "Dataset",
    "DatasetConfig",
    "Engine",
    "Estimate",
    "Eval",
    "EvalContext",
    "EvalResult",
    "Labelled",
    "LoraConfig",
    "Message",
    "Method",
    "Plugin",
    "PluginConfig",
    "Preference",
    "Prompt",
    "PtlError",
    "Record",
    "Renderer",
    "Resume",
    "Reward",
    "Sample",
    "StageContext",
    "StageSink",
    "UsageError",
    "Waiter",
    "hookimpl",
]

hookimpl = pluggy.HookimplMarker("posttrain_recipes")
"""Marks a function of a plugin module as the implementation of a hook."""


class PluginConfig(BaseModel):
    """The options of a plugin. A string under a field is its description."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=()
    )


class Plugin(ABC):
    """What datasets, methods, rewards, evals and engines have in common.

    Its docstring is what `ptl explain` and the JSON Schema show; the first line is the summary.
    """

    name: ClassVar[str]
    """What a recipe says after `use:`."""
    requires: ClassVar[tuple[str, ...]] = ()
    """Modules that this plugin imports when it works and the base install lacks."""
    extra: ClassVar[str | None] = None
    """What to `pip install` for `requires`, as `posttrain-recipes[gsm]`."""

    class Config(PluginConfig):
        """No options."""

    config: PluginConfig

    def __init__(self, config: PluginConfig, base_dir: Path = Path()) -> None:
        """`base_dir` is the recipe's directory, which relative paths start from."""
        self.config = config
        self.base_dir = base_dir


# --- datasets ------------------------------------------------------------------------------------


class DatasetConfig(PluginConfig):
    """Options that every dataset has."""

    test_size: int = Field(default=0, ge=0)
    """Records held out of training for this stage's evals, chosen by the seed."""
    limit: int | None = Field(default=None, ge=1)
    """Use at most this many records, the first ones."""


class Dataset(Plugin):
    """Where records come from."""

    class Config(DatasetConfig):
        """Options that every dataset has."""

    config: DatasetConfig

    def problems(self) -> Iterable[tuple[str, str]]:
        """What is wrong before anything runs, as `(option, message)`; cheap and offline."""
        return ()

    def record_type(self) -> type[Record] | None:
        """The type of this dataset's records, cheaply and offline; None when only `load` knows."""
        return None

    def digest(self) -> str | None:
        """A hash of the content, cheaply and offline; None when it cannot be known.

        Stages are reused only while it stays the same.
        """
        return None

    @abstractmethod
    def load(self) -> Iterable[Record]:
        """The records in a fixed order. Raises `UsageError` for data that cannot be read."""


# --- rewards -------------------------------------------------------------------------------------


class Reward(Plugin):
    """Scores replies."""

    @abstractmethod
    def score(self, samples: Sequence[Sample]) -> Sequence[float | None]:
        """One score for each sample, in order; None abstains."""


# --- what a stage is handed ----------------------------------------------------------------------


class LoraConfig(PluginConfig):
    """The low-rank adapter that is trained (Hu et al. 2021, arXiv 2106.09685); alpha is 32."""

    rank: int = Field(default=16, ge=1, le=512)
    """Rank of the adapter's matrices."""
    train_mlp: bool = True
    """Adapt the MLP layers."""
    train_attn: bool = True
    """Adapt the attention layers."""
    train_unembed: bool = False
    """Adapt the output embedding."""


class Renderer(Protocol):
    """Turns messages into tokens and back, by the model's chat template."""

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Token ids (P,) that end where the assistant begins to write."""

    def supervised(
        self, messages: Sequence[Message], train_on: str = "last"
    ) -> tuple[list[int], list[float]]:
        """Token ids (N,) and their 0/1 weights (N,): 1 where the assistant's words are learned.

        `train_on` is `last` (the last assistant message) or `all` (every one).
        """

    def parse(self, tokens: Sequence[int]) -> str:
        """The reply as text, without the tokens that end it."""

    @property
    def stop(self) -> list[int]:
        """Token ids that end a reply."""

    def decode(self, tokens: Sequence[int]) -> str:
        """Token ids (N,) as text, special tokens included."""


@dataclass(frozen=True)
class Resume:
    """Where an interrupted stage goes on: its state after `step` optimizer steps."""

    step: int
    state_uri: str
    sampler_uri: str


class Waiter(Protocol):
    """Waits for the engine's answers; the runner provides one that notices a dead engine."""

    def __call__(self, future: tinker.APIFuture[T] | Future[T]) -> T:
        """The result of `future`. Raises `PtlError` where the engine failed or is gone."""


class StageSink(Protocol):
    """Where a stage's numbers and checkpoints go; the runner provides it."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Metrics of optimizer step `step` (counted from 1)."""

    def checkpoint(self, resume: Resume) -> None:
        """A checkpoint that is saved on the engine; from now on a resumed stage starts here."""

    def begin(self, total_steps: int) -> None:
        """How many optimizer steps the stage will take."""


@dataclass(frozen=True)
class StageContext:
    """Everything a method is handed: records, clients and a place for its results."""

    name: str
    seed: int
    base_model: str
    """The model's name as the engine knows it."""
    start: Checkpoint
    """Where the stage begins; also the fixed reference of methods that need one."""
    lora: LoraConfig
    train: Sequence[Record]
    renderer: Renderer
    service: tinker.ServiceClient
    sink: StageSink
    wait: Waiter
    rewards: Sequence[tuple[Reward, float]] = ()
    """Rewards with their weights."""
    resume: Resume | None = None
    """Set when an earlier run of this stage was interrupted."""

    def training_client(self) -> tinker.TrainingClient:
        """A client that trains from `resume` (with its optimizer), or from `start` (fresh one)."""
        resume, state, service = self.resume, self.start.state_uri, self.service

        def create() -> tinker.TrainingClient:
            if resume is not None:
                path = resume.state_uri
                return service.create_training_client_from_state_with_optimizer(path).result()
            if state is not None:
                return service.create_training_client_from_state(state).result()
            return service.create_lora_training_client(
                base_model=self.base_model,
                rank=self.lora.rank,
                seed=self.seed,
                train_mlp=self.lora.train_mlp,
                train_attn=self.lora.train_attn,
                train_unembed=self.lora.train_unembed,
            ).result()

        return self.wait(in_thread(create))

    def sampling_client(self, checkpoint: Checkpoint) -> tinker.SamplingClient:
        """A client that samples from `checkpoint`."""
        return sampling_client(self.service, checkpoint, self.wait)


def sampling_client(
    service: tinker.ServiceClient, checkpoint: Checkpoint, wait: Waiter
) -> tinker.SamplingClient:
    """A client of `service` that samples from `checkpoint`."""
    where = (
        {"model_path": checkpoint.sampler_uri}
        if checkpoint.sampler_uri is not None
        else {"base_model": checkpoint.base_model}
    )
    return wait(in_thread(lambda: service.create_sampling_client(**where).result()))


class Method(Plugin):
    """Trains: records and a checkpoint in, a checkpoint out."""

    takes: ClassVar[tuple[type[Record], ...]]
    """Record types that it can train on."""
    takes_reward: ClassVar[bool] = False
    """Whether a stage with this method has a `reward`."""
    loss: ClassVar[str] = ""
    """The loss as a formula, for `ptl explain`."""
    paper: ClassVar[str] = ""
    """Where it comes from, as `Rafailov et al. 2023, arXiv 2305.18290`."""

    @abstractmethod
    def train(self, stage: StageContext) -> Checkpoint:
        """Train and return the checkpoint after the last step."""


# --- evals ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EvalContext:
    """Everything an eval is handed: records and a client that samples from the weights."""

    name: str
    seed: int
    records: Sequence[Record]
    renderer: Renderer
    sampler: tinker.SamplingClient
    wait: Waiter


class Eval(Plugin):
    """Measures a checkpoint on records that it was not trained on."""

    takes: ClassVar[tuple[type[Record], ...]]
    """Record types that it can evaluate on."""

    @abstractmethod
    def evaluate(self, context: EvalContext) -> EvalResult:
        """Measure the weights behind `context.sampler`."""


# --- engines -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Connection:
    """A live engine."""

    service: tinker.ServiceClient
    rest: tinker.RestClient
    alive: Callable[[], bool] = field(default=lambda: True)
    """False once the engine is known to be gone: its clients would wait for ever."""
    log_path: Path | None = None
    """The engine's own log, where it has one."""


class Engine(Plugin):
    """Where Tinker clients come from."""

    @property
    @abstractmethod
    def identity(self) -> str:
        """What tells this engine from others: a checkpoint is alive only on its own engine."""

    @abstractmethod
    def connect(
        self, models: Mapping[str, str], data_dir: Path, log_path: Path
    ) -> AbstractContextManager[Connection]:
        """Clients of this engine for as long as the context lasts.

        Args:
            models: names that recipes use -> where the weights are (a directory or a hub id).
            data_dir: where an engine of this machine keeps checkpoints.
            log_path: where an engine of this machine writes its log.

        Raises:
            PtlError: the engine cannot be reached or started.
        """
