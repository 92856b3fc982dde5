"""What plugins are handed when they work: records, clients, and a place for their results."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar

from posttrain_recipes.errors import PtlError
from posttrain_recipes.options import LoraConfig, ModelRef
from posttrain_recipes.records import Checkpoint, EvalResult, Message, Record, Sample
from posttrain_recipes.waiting import in_thread

if TYPE_CHECKING:
    import numpy as np
    import tinker
    from numpy.typing import NDArray

T = TypeVar("T")


class Renderer(Protocol):
    """Turns messages into tokens and back, by the model's chat template."""

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Token ids (P,) that end where the assistant begins to write."""

    def supervised(
        self, messages: Sequence[Message], train_on: str = "last"
    ) -> tuple[list[int], list[float]]:
        """Token ids (N,) and their weights (N,): 1 where the assistant's words are learned, and
        what a message's own weight says where it has one.

        `train_on` is `last` (the last assistant message) or `all` (every one).
        """

    def parse(self, tokens: Sequence[int]) -> str:
        """The reply as text: without the tokens that end it, other special tokens, and the white
        space around it."""

    def raw(self, tokens: Sequence[int]) -> str:
        """The reply as it was written, special tokens and white space included, up to its end."""

    def written(self, text: str, *, ended: bool) -> list[int]:
        """Token ids of a reply with this text, as its model would write it; with `ended`, and the
        token that ends it. What looks like a control token in it is text."""

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
    samplers: tuple[str, ...] = ()
    """Samplers of earlier steps that a method which learns from older samples goes on with."""
    tokens: int = 0
    """What those steps took of a budget of tokens; 0 where there is none."""
    beside: dict[str, str] = field(default_factory=dict)
    """By name, the states of further adapters that the method trains (`Method.trains_beside`),
    their optimizers included, as they were after the same steps."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "samplers", tuple(self.samplers))  # a list, where read from JSON

    @property
    def saved(self) -> tuple[str, ...]:
        """The checkpoints that were saved for it, `samplers` left out: those are of other steps."""
        return (self.state_uri, self.sampler_uri, *self.beside.values())


class Waiter(Protocol):
    """Waits for the engine's answers; the runner provides one that notices a dead engine."""

    def __call__(self, future: tinker.APIFuture[T] | Future[T]) -> T:
        """The result of `future`. Raises `PtlError` where the engine failed or is gone."""


@dataclass(frozen=True)
class ServedModel:
    """Weights to sample from, with the renderer of their tokenizer."""

    checkpoint: Checkpoint
    renderer: Renderer
    sampler: tinker.SamplingClient
    identity: str = ""
    """What tells its answers from those of others: its weights, by what they are and not by where
    they lie, and how it is asked."""


class RewardLike(Protocol):
    """What a stage needs of a reward; `plugin.Reward` says what each means."""

    @property
    def label(self) -> str: ...

    @property
    def lock(self) -> AbstractContextManager[object]: ...

    def open(self, context: RewardContext) -> None: ...

    def score(self, samples: Sequence[Sample]) -> Sequence[float | None]: ...

    def feedback(self, samples: Sequence[Sample]) -> Sequence[str | None]: ...


def _resolves_nothing(ref: ModelRef) -> ServedModel:
    raise PtlError("no other model can be referred to here", code="bad-plugin")


@dataclass(frozen=True)
class OpenAIRoutes:
    """Where an engine answers as OpenAI's API does."""

    base_url: str
    """What `/chat/completions` and `/completions` follow, as `http://127.0.0.1:8765/oai/api/v1`."""
    api_key: str = field(repr=False)
    """Give it to a program by its environment: arguments are seen by others, and are logged."""


@dataclass(frozen=True)
class ServedWeights:
    """Weights as a program asks for them that knows OpenAI's routes and nothing of Tinker."""

    routes: OpenAIRoutes
    model: str
    """What a request says as its `model`: a sampler's `tinker://` path, or a base model."""
    tokenizer: str
    """Where the base model's tokenizer is: a directory, a GGUF file or an id on the hub."""


def _serves_nothing() -> ServedWeights:
    raise PtlError("nothing is served on OpenAI's routes here", code="bad-plugin")


@dataclass(frozen=True)
class LoraFactorPair:
    """What an adapter adds to one matrix of its base model, B A."""

    a: NDArray[np.float64]
    """A (rank, in)."""
    b: NDArray[np.float64]
    """B (out, rank), with the adapter's factor alpha / rank."""


@dataclass(frozen=True)
class LoraUpdate:
    """What an adapter adds to its base model, by the name of the matrix."""

    base_model: str
    layers: Mapping[str, LoraFactorPair]


class Adapters(Protocol):
    """Adapters as arrays, where an engine lets them be read and written. Both raise `PtlError`."""

    def read(self, uri: str) -> LoraUpdate:
        """What the checkpoint behind a `tinker://` path adds to its base model."""

    def write(self, name: str, update: LoraUpdate, like: str, step: int) -> Checkpoint:
        """Save factors, of one rank in all layers, as a checkpoint of a training run of its own;
        `like` is the path of one that trains the same layers."""


@dataclass(frozen=True)
class WatchedReply:
    """A reply of a step with what is known of its tokens, for people to look at (`ptl watch`)."""

    prompt: Sequence[int]
    """Token ids (P,) that it follows."""
    tokens: Sequence[int]
    """Its own token ids (T,); in an episode those of others in between too."""
    numbers: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    """By name, a number for each token (T,); None where there is none. Known by name and shown with
    words of their own: `advantage`; in nats `log_ratio` (log p/p_ref, to the reference),
    `reverse_kl` (log p/q, to the teacher) and `logprob`."""
    reward: float | None = None
    advantage: float | None = None
    """Of the reply as a whole."""
    ended: str = ""
    """What ended it: `stop`, or what cut it, as `max_tokens`. Empty: it was not written here."""
    label: str = ""
    """What it is among the others, as `chosen`."""
    answer: str = ""
    """The reference answer of its prompt, where there is one."""


ShowReplies = Callable[[int, Sequence[WatchedReply]], None]


def _shows_nobody(step: int, replies: Sequence[WatchedReply]) -> None:
    """Nobody watches. See `StageContext.watch`."""


def _keeps_nothing(name: str, content: str | bytes) -> None:
    """No place for files. See `EvalContext.artifact`."""


def _counts_nothing(read: int, written: int) -> None:
    """Nobody counts. See `EvalContext.spent`."""


class StageSink(Protocol):
    """Where a stage's numbers, checkpoints and records go; the runner provides it."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Metrics of optimizer step `step` (counted from 1)."""

    def due(self, step: int) -> bool:
        """Whether a checkpoint is wanted after step `step`, whatever the method itself asks for: it
        is to be evaluated, or the last one is long ago."""

    def checkpoint(self, resume: Resume) -> None:
        """A checkpoint that is saved on the engine; from now on a resumed stage starts here."""

    def review(self) -> bool:
        """Run the evals that are due on the last checkpoint. True where the stage ends with it.

        To be called when no step is under way: before the first, and after each checkpoint that
        was due.
        """

    def begin(self, total_steps: int) -> None:
        """How many optimizer steps (for a stage that makes data: batches) the stage will take.

        Said again where that turns out otherwise, before the last of them is logged.
        """

    def show(self, name: str, samples: Sequence[Sample], step: int) -> None:
        """Samples of optimizer step `step` for people to read, as `rollouts`."""

    def collect(self, records: Sequence[Record]) -> None:
        """Records of this step that later stages may train on, through `dataset: collected`."""

    def measured(self, name: str, when: Literal["before", "after"], result: EvalResult) -> None:
        """A measurement that is the method's own, for the table of results beside the evals'.

        For methods whose policy no eval can sample from, such as a table of values.
        """

    def artifact(self, name: str, text: str) -> None:
        """A file to look at, such as `episode.svg` or `board.md`; it goes to MLflow as well."""

    def note(self, text: str) -> None:
        """What a person looks for in the stage's result, such as instructions that were found: told
        now, and kept with the stage (`ptl show`, MLflow)."""


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
    rewards: Sequence[tuple[RewardLike, float]] = ()
    """Rewards with their weights."""
    resume: Resume | None = None
    """Set when an earlier run of this stage was interrupted."""
    resolve: Callable[[ModelRef], ServedModel] = _resolves_nothing
    """The weights that an option refers to. Raises `PtlError` where the engine lacks them."""
    cache: Path | None = None
    """A directory for what may be kept from run to run, as what a judge said."""
    exact: bool = False
    """Whether log-probabilities that come with samples are known to be those that are read."""
    ttl_s: int | None = None
    """Seconds that a service keeps a checkpoint of the stage; what the stage leaves is kept without
    end by the runner. None: until it is deleted, as on an engine that does not bill for it."""
    adapters: Adapters | None = None
    """Adapters as arrays, for a method that `reads_adapters`; None on an engine that takes none."""
    watch: ShowReplies = _shows_nobody
    """A few replies of an optimizer step (from 1) for `ptl watch`, which shows what is known of
    each token: `watch(step, replies)`. It may be called before the step is logged, and costs
    little: of more than four replies, and of more than 512 tokens, the others are left out."""

    def training_client(self, beside: str | None = None) -> tinker.TrainingClient:
        """A client that trains from `resume` (with its optimizer), or from `start` (fresh one).

        Args:
            beside: one of the method's `trains_beside`, to be had a client of its own; None: the
                policy. Where the stage starts from the base model its new adapter is of another
                seed.

        Raises:
            PtlError: the stage is resumed, and what it is resumed from has no such state.
        """
        resume, state, service = self.resume, self.start.state_uri, self.service
        saved = resume.beside if resume else {}
        if resume is not None and beside is not None and beside not in saved:
            raise PtlError(
                f"stage '{self.name}' cannot go on: its checkpoint has no state of '{beside}'",
                why="its method saved none with it",
                hint="it begins anew with another seed",
                code="bad-plugin",
            )

        def create() -> tinker.TrainingClient:
            if resume is not None:
                path = resume.state_uri if beside is None else saved[beside]
                return service.create_training_client_from_state_with_optimizer(path).result()
            if state is not None:
                return service.create_training_client_from_state(state).result()
            return service.create_lora_training_client(
                base_model=self.base_model,
                rank=self.lora.rank,
                seed=self.seed if beside is None else _seed(self.seed, beside),
                train_mlp=self.lora.train_mlp,
                train_attn=self.lora.train_attn,
                train_unembed=self.lora.train_unembed,
            ).result()

        return self.wait(in_thread(create))

    def sampling_client(self, checkpoint: Checkpoint) -> tinker.SamplingClient:
        """A client that samples from `checkpoint`."""
        return sampling_client(self.service, checkpoint, self.wait)


def _seed(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:4], "big") >> 1


def checkpoint_name(stage: str) -> str:
    """A stage's name in characters that every engine takes in the name of a checkpoint.

    Where much of it is lost, a digest keeps it apart from other names.
    """
    name = re.sub(r"[^A-Za-z0-9._-]", "_", stage)
    if len(name) <= 100 and re.fullmatch(r"[!-~]*", stage):
        return name
    return f"{name[:91]}-{hashlib.sha256(stage.encode()).hexdigest()[:8]}"


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


def untold(done: int, total: int, what: str) -> None:
    """Progress that nobody hears of. See `EvalContext.progress`."""


@dataclass(frozen=True)
class EvalContext:
    """Everything an eval is handed: records and a client that samples from the weights."""

    name: str
    seed: int
    records: Sequence[Record]
    renderer: Renderer
    sampler: tinker.SamplingClient
    wait: Waiter
    resolve: Callable[[ModelRef], ServedModel] = _resolves_nothing
    """The weights that an option refers to. Raises `PtlError` where the engine lacks them."""
    progress: Callable[[int, int, str], None] = untold
    """Says how far it is, as often as it likes: `progress(done, total, "replies")`. Without it
    people are told how many requests were answered."""
    served: Callable[[], ServedWeights] = _serves_nothing
    """The weights on OpenAI's routes, for programs that ask there (`training.harness` runs them).
    Raises `PtlError` where the engine has none."""
    artifact: Callable[[str, str | bytes], None] = _keeps_nothing
    """A file to look at, such as a log: `artifact("log.eval", content)`. It is kept beside the run,
    in `artifacts/STAGE/EVAL-WHEN/`, and in MLflow."""
    spent: Callable[[int, int], None] = _counts_nothing
    """Tokens that were read and written by other ways than `sampler`, as on those routes:
    `spent(read, written)`. They count as the run's, in its limits and costs."""


@dataclass(frozen=True)
class RewardContext:
    """What a reward that asks a model is handed before the first score."""

    seed: int
    renderer: Renderer
    """The renderer of the model that wrote the replies."""
    wait: Waiter
    resolve: Callable[[ModelRef], ServedModel] = _resolves_nothing
    """The weights that an option refers to. Raises `PtlError` where the engine lacks them."""
    cache: Path | None = None
    """A directory for what may be kept from run to run, as what a judge said."""


@dataclass(frozen=True)
class Offer:
    """What a server says of a model that it serves; None where it says nothing."""

    context: int | None = None
    """Tokens of a sequence, prompt and reply together."""
    trainable: bool | None = None
    sampleable: bool | None = None


@dataclass(frozen=True)
class Connection:
    """A live engine."""

    service: tinker.ServiceClient
    rest: tinker.RestClient
    alive: Callable[[], bool] = field(default=lambda: True)
    """False once the engine is known to be gone: its clients would wait for ever."""
    trouble: Callable[[], str | None] = field(default=lambda: None)
    """Why the engine does not answer just now; None while it does."""
    log_path: Path | None = None
    """The engine's own log, where it has one."""
    log_start: int = 0
    """Bytes of it that earlier engines wrote."""
    offers: Mapping[str, Offer] = field(default_factory=dict)
    """By base model, what the engine says of it; empty where it says nothing."""
    missing: Callable[[Collection[str]], Mapping[str, str]] = field(default=lambda names: {})
    """Those of these capabilities (`Plugin.needs`) that the engine lacks, each with how that
    showed. May take a minute."""
    adapters: Adapters | None = None
    """Adapters as arrays; None where the engine takes none back."""
    openai: Callable[[], OpenAIRoutes | None] = field(default=lambda: None)
    """Its OpenAI routes; None where it has none. May ask the engine."""
