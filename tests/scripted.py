"""A renderer of letters, and a policy that says what a script makes of the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from posttrain_recipes.plugin import Message, Task
from posttrain_recipes.training.rl.rollout import Group
from posttrain_recipes.training.rl.scoring import RolloutScorer
from posttrain_recipes.training.rl.sources import EpisodeSource, episodes
from posttrain_recipes.waiting import CancellableWaiter

END, USER, ASSISTANT = 0, 1, 2


def spell(text: str) -> list[int]:
    return [10 + ord(letter) for letter in text]


@dataclass
class Renderer:
    """A letter is a token; a turn is its role, its letters and an end."""

    stop: list[int] = field(default_factory=lambda: [END])
    rewrites: bool = False
    """Whether earlier turns of the assistant are left out, as a template does with thoughts."""

    def _turns(self, messages: Sequence[Message], keep: int = -1) -> list[int]:
        tokens = []
        for place, message in enumerate(messages):
            own = message.role == "assistant"
            hidden = self.rewrites and own and place != keep
            said = [] if hidden else spell(message.content)
            tokens += [ASSISTANT if own else USER, *said, END]
        return tokens

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        return [*self._turns(messages), ASSISTANT]

    def supervised(
        self, messages: Sequence[Message], train_on: str = "last"
    ) -> tuple[list[int], list[float]]:
        tokens = self._turns(messages, len(messages) - 1)
        return tokens, [0.0] * len(tokens)

    def raw(self, tokens: Sequence[int]) -> str:
        return self.parse(tokens)

    def parse(self, tokens: Sequence[int]) -> str:
        return "".join(chr(token - 10) for token in tokens if token != END).strip()


@dataclass(eq=False)
class Sampler:
    """Says what `script` makes of the prompt; keeps what it was asked."""

    script: Any
    asked: list[tuple[list[int], int, int]] = field(default_factory=list)
    said: dict[tuple[int, ...], list[float]] = field(default_factory=dict)
    """Prompts with what was said to them, and the log-probabilities of that."""

    def sample(self, prompt: Any, count: int, params: Any) -> Future[Any]:
        tokens = prompt.to_ints()
        self.asked.append((tokens, count, params.seed))
        sequences = []
        for index in range(count):
            said = self.script(tokens, index, params.seed)
            logprobs = [-0.1 * (i + 1) for i in range(len(said))]
            self.said[*tokens, *said] = logprobs
            sequences.append(SimpleNamespace(tokens=said, logprobs=logprobs))
        future: Future[Any] = Future()
        future.set_result(SimpleNamespace(sequences=sequences))
        return future

    def compute_logprobs(self, prompt: Any) -> Future[Any]:
        tokens = tuple(prompt.to_ints())
        read: list[float | None] = [None] * len(tokens)
        for said, logprobs in self.said.items():
            if tokens[: len(said)] == said:
                read[len(said) - len(logprobs) : len(said)] = logprobs
        future: Future[Any] = Future()
        future.set_result(read)
        return future


def wait(future: Future[Any]) -> Any:
    return future.result(10)


@dataclass
class Rolled:
    """Episodes of tasks, and what they are scored with."""

    source: EpisodeSource
    scorer: RolloutScorer

    @property
    def seats(self) -> int:
        return self.source.seats

    def roll(self, index: int, seed: int, sampler: Any) -> list[Group]:
        return [
            self.scorer.score(group, sampler) for group in self.source.sample(index, seed, sampler)
        ]


def source(method: Any, tasks: Sequence[Task]) -> Rolled:
    stage: Any = SimpleNamespace(
        name="s",
        seed=0,
        rewards=(),
        renderer=Renderer(),
        resolve=None,
        start=None,
        cache=None,
        exact=False,
    )
    waiter = CancellableWaiter()
    scorer = RolloutScorer(stage, method.config, waiter)
    return Rolled(episodes(tasks, stage, method.config, waiter, method.config.retries), scorer)
