"""The public API for plugin authors. Nothing else in the package needs to be imported.

A plugin is a class with a `name`, a nested `Config(PluginConfig)` and one method; a hook returns
the class, and an entry point in the group `posttrain_recipes` names the module with the hook:

    from posttrain_recipes.plugin import PluginConfig, Reward, hookimpl

    PTL_API = 1  # the version of this API that it is written for

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

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

import pluggy
from pydantic import Field

from posttrain_recipes import options
from posttrain_recipes.base import Plugin, Reward
from posttrain_recipes.context import (
    Adapters,
    Connection,
    EvalContext,
    LoraFactorPair,
    LoraUpdate,
    Offer,
    OpenAIRoutes,
    Renderer,
    Resume,
    RewardContext,
    ServedModel,
    ServedWeights,
    StageContext,
    StageSink,
    Waiter,
    WatchedReply,
    checkpoint_name,
    sampling_client,
)
from posttrain_recipes.deprecation import Going, taken
from posttrain_recipes.driven import Branch, DrivenTask, Played, Policy, Reply
from posttrain_recipes.errors import PtlError, UsageError
from posttrain_recipes.learning_rate import Family
from posttrain_recipes.options import (
    Affects,
    AskedOf,
    DatasetRef,
    FromData,
    FromModel,
    LoraConfig,
    ModelRef,
    PluginConfig,
    RendererConfig,
    RewardRef,
    effective,
)
from posttrain_recipes.records import (
    Checkpoint,
    Conversation,
    Episode,
    Estimate,
    EvalResult,
    Labelled,
    Message,
    PerRecord,
    Preference,
    Prompt,
    Record,
    Rendered,
    Sample,
    StepMark,
    Task,
    Turn,
)
from posttrain_recipes.streamed import Streamed
from posttrain_recipes.trackers import (
    CheckpointLogged,
    EvalLogged,
    NoteLogged,
    RunEnded,
    RunStarted,
    SamplesLogged,
    StageEnded,
    StageStarted,
    StepMetrics,
    Tracker,
)
from posttrain_recipes.workload import CountTokens, Usage, Workload

__all__ = [
    "API_VERSION", "OLDEST_API_VERSION", "Adapters", "Affects", "AskedOf", "Branch",
    "Checkpoint", "CheckpointLogged", "Connection", "Conversation", "CountTokens", "DataMethod",
    "Dataset", "DatasetConfig", "DatasetRef", "DrivenTask", "Engine", "Episode", "Estimate",
    "Eval", "EvalContext", "EvalLogged", "EvalResult", "Family", "FromData", "FromModel",
    "Labelled", "LearningRate", "LoraConfig", "LoraFactorPair", "LoraUpdate", "Message",
    "Method", "ModelRef", "NoteLogged", "Offer", "OpenAIRoutes", "PerRecord", "Played",
    "Plugin", "PluginConfig", "Policy", "Preference", "Prompt", "PtlError", "Record",
    "Rendered", "Renderer", "RendererConfig", "Reply", "Resume", "Reward", "RewardContext",
    "RewardRef", "RunEnded", "RunStarted", "Sample", "SamplesLogged", "ServedModel",
    "ServedWeights", "StageContext", "StageEnded", "StageSink", "StageStarted", "StepMark",
    "StepMetrics", "Streamed", "Task", "Tracker", "Turn", "Usage", "UsageError", "Waiter",
    "WatchedReply", "Workload", "checkpoint_name", "effective", "hookimpl", "sampling_client",
]  # fmt: skip

GOING = {"NoEffect": Going("0.1", "write Affects.NOTHING")}
"""Names that were here, still work and are deprecated."""


def __getattr__(name: str) -> Any:
    return taken(__name__, name, GOING, lambda name: getattr(options, name))


API_VERSION = 1
"""The version of this module's API. A plugin module says `PTL_API = 1`; it is raised when a plugin
that worked would no longer."""
OLDEST_API_VERSION = 1
"""The oldest version whose plugins still work."""

LearningRate = options.LearningRate
"""The type of an option that is a peak learning rate: a number, or `auto`, for which a plan puts in
the number that fits the model and the method's family."""

hookimpl = pluggy.HookimplMarker("posttrain_recipes")
"""Marks a function of a plugin module as the implementation of a hook."""


# --- datasets ------------------------------------------------------------------------------------


class DatasetConfig(PluginConfig):
    """Options that every dataset has."""

    test_size: int = Field(default=0, ge=0)
    """Records held out of training for this stage's evals, chosen by a hash of what they ask."""
    limit: int | None = Field(default=None, ge=1)
    """Use at most this many records, the first ones."""


class Dataset(Plugin):
    """Where records come from."""

    class Config(DatasetConfig):
        """Options that every dataset has."""

    config: DatasetConfig
    sources: Mapping[str, Sequence[Dataset]] = {}
    """The datasets of its options that are a `DatasetRef`, by option; the planner fills it."""

    def reads(self) -> Sequence[str]:
        """Earlier stages whose made records it reads itself, not through `sources`."""
        return ()

    def bind(self, made: Callable[[str], Path], wants: type[Record]) -> None:
        """Called before `load`: where a stage's made records lie, and the type that is wanted.

        `made(stage)` is a directory with one JSONL file a record type, as `preference.jsonl`.
        """
        for parts in self.sources.values():
            for part in parts:
                part.bind(made, wants)

    def record_type(self) -> type[Record] | None:
        """The type of this dataset's records, cheaply and offline; None when only `load` knows."""
        return None

    def size(self) -> int | None:
        """How many records `load` yields, cheaply and offline; None when only `load` knows."""
        return None

    def streamed(self) -> Streamed[Record] | None:
        """The rows by their place, where they are too many to be held; None: `load` them.

        `limit` is not applied to them. It is asked after `bind`, and `load` yields the same records
        in the same order, but for those that cannot be used.
        """
        return None

    @abstractmethod
    def load(self) -> Iterable[Record]:
        """The records in a fixed order. Raises `UsageError` for data that cannot be read."""


class Method(Plugin):
    """Trains: records and a checkpoint in, a checkpoint out."""

    takes: ClassVar[tuple[type[Record], ...]]
    """Record types that it can train on; `()`: none, and its stage has no dataset."""
    takes_reward: ClassVar[bool] = False
    """Whether a stage with this method has a `reward`."""
    needs_reward: ClassVar[bool] = True
    """Where it takes one: whether it cannot do without."""
    makes: ClassVar[tuple[type[Record], ...]] = ()
    """Record types that it can leave for later stages, through `stage.sink.collect`."""
    loss: ClassVar[str] = ""
    """The loss as a formula, for `ptl explain`."""
    paper: ClassVar[str] = ""
    """Where it comes from, as `Rafailov et al. 2023, arXiv 2305.18290`."""

    family: ClassVar[Family] = Family.IMITATION
    """What it learns from, which tells the number of `learning_rate: auto`."""
    streams: ClassVar[bool] = False
    """Whether its records may be a `Streamed`, asked for one batch at a time; else all are held."""
    starts_over: ClassVar[bool] = False
    """Whether it takes seconds and saves no checkpoint, so that after a crash it starts over."""
    reads_adapters: ClassVar[bool] = False
    """Whether it works on adapters as arrays (`StageContext.adapters`), which Tinker's protocol has
    no way for: it is refused where the engine does not take them."""
    trains_beside: ClassVar[tuple[str, ...]] = ()
    """Names of further adapters that it trains beside its policy, such as a critic: each is got by
    `stage.training_client(name)`, saved with every checkpoint (`Resume.beside`), and counted in the
    memory that the plan tells."""
    writes: ClassVar[bool] = True
    """Whether what it trains writes replies; the weights of a reward model score them."""

    def collects(self) -> tuple[type[Record], ...]:
        """Record types that it does leave for later stages, with the options that it has."""
        return self.makes

    def check(self, records: Sequence[Record]) -> None:
        """Look at the records that a stage is to train on, before anything is spent: as `ptl
        preflight` does, as a run begins, and as `train` does for records that a stage made. Cheap;
        of data that are read as it trains these are the first ones.

        Raises:
            UsageError: it cannot train on them.
        """

    def reward_problems(self, rewards: Sequence[Reward]) -> Iterable[tuple[str, str]]:
        """What is wrong with its options beside the rewards of its stage, before anything runs, as
        `(option, message)`; cheap and offline. Not asked where the stage names none."""
        return ()

    def rendered(
        self, record: Record, renderers: Callable[[ModelRef | None], Renderer]
    ) -> Sequence[Rendered] | None:
        """What models read of a record, for `ptl data show`, which shows it to people.

        None: what is usual for records of its type. That is the conversation, with what
        `config.train_on` says learned; the prompt; both sides of a preference; a labelled reply.

        Args:
            renderers: the renderer of the weights that an option refers to; of None, the stage's.

        Raises `UsageError` where the record cannot be used.
        """
        return None

    def workload(
        self, sample: Sequence[Record], count: int, tokens: CountTokens
    ) -> Workload | None:
        """What training on `count` records will take; None: not known beforehand.

        Args:
            sample: some of the records, or all of them.
            tokens: counts the tokens of a conversation.
        """
        return None

    @abstractmethod
    def train(self, stage: StageContext) -> Checkpoint:
        """Train and return the checkpoint after the last step."""


class DataMethod(Method):
    """Makes records for later stages instead of weights; its checkpoint is where it started."""

    @abstractmethod
    def make(self, stage: StageContext, skip: int) -> Iterator[Sequence[Record]]:
        """Yield the records of each batch, from batch number `skip` on (batches made before).

        A batch depends on `stage` and its number alone, so that an interrupted stage goes on to
        the same records. Call `stage.sink.begin` with the number of batches first.
        """

    def train(self, stage: StageContext) -> Checkpoint:
        """The start, untrained."""
        return stage.start


# --- evals ---------------------------------------------------------------------------------------


class Eval(Plugin):
    """Measures a checkpoint on records that it was not trained on."""

    takes: ClassVar[tuple[type[Record], ...]]
    """Record types that it can evaluate on. `()`: the suite that it calls has data of its own,
    which nobody here reads; it is handed none, and `digest` is to tell them from others."""
    data_options: ClassVar[tuple[str, ...]] = ()
    """Options by which `own_data` chooses. Results are known by what the data hold, not by them."""
    undirected: ClassVar[frozenset[str]] = frozenset()
    """Metrics of `measures` of which neither direction is the better one: nothing is chosen by
    them."""
    sources: Mapping[str, Sequence[Dataset]] = {}
    """What `own_data` brings beside the records to evaluate on; the planner fills it."""

    @property
    def suite(self) -> str:
        """What it measures on, in messages and tables, where it takes no records."""
        return self.name

    def own_data(self) -> Mapping[str, DatasetRef]:
        """Datasets that it brings. `dataset` is what it evaluates on where the recipe names none;
        those of other names, such as examples, are in `sources` when it evaluates."""
        return {}

    def rendered(
        self, record: Record, renderers: Callable[[ModelRef | None], Renderer]
    ) -> Sequence[Rendered] | None:
        """What the model reads of a record, as a method's `rendered`."""
        return None

    def measures(self) -> Sequence[str]:
        """Names of its metrics, the main one first, so that bounds on them can be checked before
        anything runs; empty where only a run tells."""
        return ()

    def workload(
        self, sample: Sequence[Record], count: int, tokens: CountTokens
    ) -> Workload | None:
        """What evaluating on `count` records will take, as a method's `workload`."""
        return None

    @abstractmethod
    def evaluate(self, context: EvalContext) -> EvalResult:
        """Measure the weights behind `context.sampler`."""


# --- engines -------------------------------------------------------------------------------------


class Engine(Plugin):
    """Where Tinker clients come from."""

    billed: ClassVar[bool] = False
    """Whether its tokens cost what the table of prices says."""
    loads: ClassVar[bool] = False
    """Whether it loads models from where `models` of `connect` says; others serve their own."""
    precision: str = ""
    """The numbers that it computes in, where a recipe or `settle` says so and results depend on it;
    empty for those of the service, and for float32 on this machine."""

    @property
    def computes(self) -> str:
        """The same in words for people, who are told of float32 too."""
        return self.precision

    exact: ClassVar[bool] = False
    """Whether what it tells of a sample's log-probabilities is known to be what it reads of it."""
    open_options: Mapping[str, Any] = {}
    """What options of methods are on it where a recipe leaves them open; `settle` decides it."""
    takes_adapters: ClassVar[bool] = False
    """Whether adapters can be written to it as arrays (`Connection.adapters`)."""
    rank: int = 4
    """The rank of the adapters that it is tried with; that of the recipe, once there is one."""

    @property
    def beside(self) -> int:
        """How many stages' evals may be under way while later stages train: those of its option
        `evals_beside`, where it has one. 0: a stage is evaluated before what follows it begins."""
        return int(getattr(self.config, "evals_beside", 0))

    @property
    def basis(self) -> str:
        """What results depend on of it."""
        return f"{self.identity} {self.precision}".strip()

    def settled(self) -> Mapping[str, Any]:
        """Options that `settle` decided, as a recipe would have them: they are kept with a run."""
        return {}

    def settle(self, folder: Path | None, measure: bool) -> str | None:
        """Decide what its options leave open, before anything is planned.

        Args:
            folder: the directory of the recipe's model; None where it is not on this machine.
            measure: whether there is time for a second or two of it.

        Returns:
            What was decided and why, for the plan; None where there is nothing to say.
        """
        return None

    @property
    @abstractmethod
    def identity(self) -> str:
        """What tells this engine from others: a checkpoint is alive only on its own engine."""

    def lost(self, uri: str, data_dir: Path) -> str | None:
        """Why the checkpoint `uri` cannot be used, in words that follow "its checkpoint", such as
        "is gone"; None where it can be, or where only a connection can tell."""
        return None

    def stored(self, data_dir: Path) -> Mapping[str, int]:
        """Its checkpoints on this machine with their bytes, where it keeps them here."""
        return {}

    def discard(self, uri: str, data_dir: Path) -> bool:
        """Delete a checkpoint; False where only a connection can."""
        return False

    def files(self, uri: str, data_dir: Path) -> Sequence[Path]:
        """What a checkpoint is made of where the engine keeps it on this machine: its directory,
        then files beside it. Copied to the same places below another `data_dir`, they are the same
        checkpoint for an engine of that."""
        return ()

    def seconds(self, folder: Path, usage: Usage) -> float | None:
        """How long so many tokens of the model in `folder` take, before any were computed; None
        where only a run tells. May take some seconds at first."""
        return None

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
