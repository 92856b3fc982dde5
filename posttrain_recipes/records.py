"""What flows between datasets, methods, evals and the tracker. All of it is frozen and plain.

A dataset yields one of the record types (`Conversation`, `Prompt`, `Preference`, `Labelled`,
`Task`), a method turns a `Checkpoint` and records into a `Checkpoint`, an eval turns a checkpoint
and records into an `EvalResult`.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[str, ...] = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class ToolCall:
    """A call of a tool that the assistant asks for."""

    name: str
    arguments: str
    """Its arguments, the text of a JSON object."""
    id: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The call as OpenAI writes it, but for the arguments, which chat templates want read."""
        function = {"name": self.name, "arguments": json.loads(self.arguments)}
        known = {"id": self.id} if self.id else {}
        return {**known, "type": "function", "function": function}


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str
    reasoning: str = ""
    """What the assistant thought before it replied, where that is told apart."""
    tool_calls: tuple[ToolCall, ...] = ()
    """What the assistant asks tools for."""
    tool_call_id: str = ""
    """Of a tool's answer: the `id` of the call that it answers."""
    name: str = ""
    """Of a tool's answer: the tool."""
    weight: float | None = None
    """What the loss of each of this turn's tokens is multiplied by, at least 0; None: as the
    method's options say. Only turns of the assistant and of tools have one."""
    tools: tuple[str, ...] = ()
    """On the first message of a conversation: the tools that may be called, each the text of a
    JSON object, as the `tools` of OpenAI's requests hold them."""

    def as_dict(self) -> dict[str, Any]:
        """The turn as chat templates and OpenAI's requests take it; what is not there is left out.

        `weight` and `tools` are no part of it: they are of the conversation, not of its text.
        """
        turn: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.reasoning:
            turn["reasoning_content"] = self.reasoning
        if self.tool_calls:
            turn["tool_calls"] = [call.as_dict() for call in self.tool_calls]
        if self.tool_call_id:
            turn["tool_call_id"] = self.tool_call_id
        if self.name:
            turn["name"] = self.name
        return turn


def message_from(turn: Mapping[str, Any]) -> Message:
    """The message that `Message.as_dict` wrote."""
    calls = tuple(
        ToolCall(
            call["function"]["name"],
            json.dumps(call["function"]["arguments"], ensure_ascii=False),
            call.get("id", ""),
        )
        for call in turn.get("tool_calls", ())
    )
    return Message(
        role=turn["role"],
        content=turn["content"],
        reasoning=turn.get("reasoning_content", ""),
        tool_calls=calls,
        tool_call_id=turn.get("tool_call_id", ""),
        name=turn.get("name", ""),
    )


def tools_of(messages: Sequence[Message]) -> list[Any]:
    """The tools that may be called in a conversation, as a chat template takes them."""
    return [json.loads(tool) for message in messages for tool in message.tools]


Messages = tuple[Message, ...]


@dataclass(frozen=True, kw_only=True)
class Record:
    """What all record types share."""

    source: str = ""
    """Where it was read, as `data/chat.jsonl:12`: errors name it."""


@dataclass(frozen=True, kw_only=True)
class Conversation(Record):
    """A conversation to imitate; its last message is the assistant's."""

    messages: Messages


@dataclass(frozen=True, kw_only=True)
class Prompt(Record):
    """A conversation that waits for the assistant, with what is needed to judge the reply."""

    messages: Messages
    answer: str | None = None
    """The reference answer, where there is one."""
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """The record's other fields, as they stood in the data: rewards read them."""


@dataclass(frozen=True, kw_only=True)
class Preference(Record):
    """Two replies to one prompt; people (or a judge) preferred `chosen`."""

    prompt: Messages
    chosen: Messages
    rejected: Messages


@dataclass(frozen=True, kw_only=True)
class Labelled(Record):
    """One reply to a prompt with a verdict of its own (unpaired preference data)."""

    prompt: Messages
    completion: Messages
    label: bool


@dataclass(frozen=True)
class Turn:
    """What the seat whose turn it is gets to read before it writes."""

    messages: Messages
    """What it is told since it last wrote: the whole prompt at first, then the world's answer
    (`user`) or a tool's (`tool`)."""
    seat: int = 0
    fresh: bool = False
    """Whether this turn tells all that matters (a Markov state): the seat reads it alone and not
    what was said before, which costs fewer tokens and leaves a reply as it was without history."""


class Episode(ABC):
    """A course of an environment: turns are read and replies are written until it is over."""

    seats: int = 1
    """How many play; each has a conversation and rewards of its own."""
    truncated: bool = False
    """Whether the reply that `act` is handed was cut at the limit of tokens; set before each."""
    time_limit: float | None = None
    """Seconds that `act` may take before the episode is given up; None: as long as it likes. Set
    before each. What it holds then, such as a lock, is its own to let go."""

    @abstractmethod
    def turn(self) -> Turn | None:
        """Whose turn it is and what that seat is told; None once the episode is over."""

    @abstractmethod
    def act(self, reply: str) -> Sequence[float | None]:
        """Take the reply of the seat whose turn it is; returns what every seat gets for it.

        None abstains: the seat has no reward for this episode, and learns nothing from it. A reply
        that makes no sense is the environment's to answer, never an exception: with a message that
        says so, a cost, or the end of the episode. What it raises all the same, a lost connection
        say, has the episode begun again and told the same replies; see `retries` and
        `on_reward_error` of the method.
        """

    def metrics(self) -> Mapping[str, float]:
        """What is worth knowing of the episode beside its rewards, once it is over: `success`."""
        return {}

    def show(self) -> str:
        """The episode for a person to look at, as Markdown, where its turns do not tell all."""
        return ""


@dataclass(frozen=True, kw_only=True)
class Task(Record, ABC):
    """One beginning of an environment. A dataset of tasks is what other libraries call one.

    A subclass has what the beginning depends on, such as a seed, as its fields.
    """

    higher_is_better: ClassVar[Mapping[str, bool | None]] = {}
    """What is good of the metrics that its episodes tell: True where more is, False where less is,
    None (as for one that is not named) where neither is. Of `success` and the return more is."""
    concurrent: ClassVar[bool] = False
    """Whether episodes of one group may be begun and may `act` at the same time, in threads: for
    environments that wait for something, such as tools. One episode does one thing at a time."""

    @abstractmethod
    def start(self) -> Episode:
        """Begin it, each time in the same way: a group of rollouts is one task begun often."""


RECORD_TYPES: tuple[type[Record], ...] = (Conversation, Prompt, Preference, Labelled, Task)


@dataclass(frozen=True)
class Checkpoint:
    """Weights that a stage can start from or be sampled from.

    `state_uri` restores training (weights and optimizer), `sampler_uri` samples; both are None for
    a base model that no stage has trained.
    """

    base_model: str
    state_uri: str | None = None
    sampler_uri: str | None = None
    step: int = 0

    @property
    def is_base(self) -> bool:
        """Whether these are the base model's own weights."""
        return self.state_uri is None


@dataclass(frozen=True)
class Rendered:
    """What a model reads of a record, in its tokens."""

    tokens: Sequence[int]
    """Token ids (N,)."""
    weights: Sequence[float] = ()
    """What each of them weighs in the loss (N,); empty: a prompt, to which a reply is sampled."""
    messages: Messages = ()
    """What was rendered: what else the text has in it, the chat template added."""
    what: str = ""
    """Which part of the record it is, or who reads it: `chosen`, `the teacher reads`."""
    note: str = ""
    """What else is to be known of it, as that it was cut."""


@dataclass(frozen=True)
class Sample:
    """What a model wrote, for a person to read or a reward to score."""

    prompt: Messages
    completion: str
    """The reply as text: without the token that ends it, other special tokens, and the white space
    around it."""
    answer: str | None = None
    scores: Mapping[str, float] = field(default_factory=dict, hash=False)
    truncated: bool = False
    """Whether the reply ended at the token limit rather than by a stop token."""
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """The prompt's other fields, for rewards; not kept with the samples of a run."""
    raw: str = ""
    """The reply as the model wrote it: special tokens and white space included, without the token
    that ends it. Empty where that is not known."""


@dataclass(frozen=True)
class StepMark:
    """What a step of a reply is worth."""

    end: int
    """Characters of the `completion` up to the end of the step."""
    reward: float


@dataclass(frozen=True)
class Estimate:
    """A mean over `count` records with its 95% confidence interval."""

    value: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class PerRecord:
    """What a metric is the mean of: one value for each record, in the order of the records.

    Two evaluations on the same records are compared by these, in pairs: what is hard about a record
    is so both times, and only what changed is left.
    """

    values: tuple[float | None, ...]
    """None where a record has no value."""
    weights: tuple[float, ...] = ()
    """What each value is a sum over, such as its tokens: the metric is sum(values) / sum(weights).
    Empty: every record counts once."""
    abstained: bool = False
    """Whether a record without a value is one on which a judge abstained: it is left out on both
    sides. Otherwise those with a value are records of a kind, such as the games that were won, and
    nothing is said of a mean over others before than after."""

    @classmethod
    def at(
        cls,
        places: Sequence[int],
        values: Sequence[float],
        count: int,
        weights: Sequence[float] = (),
    ) -> PerRecord:
        """The values, and weights if there are any, of the records at `places` of `count`; the
        others have none."""
        found = dict(zip(places, values, strict=True))
        weighs = dict(zip(places, weights, strict=True)) if weights else {}
        return cls(
            tuple(found.get(place) for place in range(count)),
            tuple(weighs.get(place, 0.0) for place in range(count)) if weights else (),
        )


@dataclass(frozen=True)
class EvalResult:
    """What an eval found: estimates by metric name, and samples to look at."""

    metrics: Mapping[str, Estimate]
    samples: tuple[Sample, ...] = ()
    higher_is_better: Mapping[str, bool | None] = field(default_factory=dict, hash=False)
    """By metric name: True where more is better, False where less is, None where neither is. The
    main metric is better when higher if it is not named here, any other one neither way."""
    scores: Mapping[str, PerRecord] = field(default_factory=dict, hash=False)
    """By metric name, for a test of before and after in pairs. For a metric that is not named here,
    the scores of the samples are taken where every sample has one."""
    notes: tuple[str, ...] = ()
    """What has to be known to read the numbers, such as what they leave out: sentences that stand
    below every table that has them."""
    tested: bool = True
    """Whether changes of its metrics are tested. False for what is there to be read: it has no
    verdict, and the p values of the rest are not adjusted for it."""
