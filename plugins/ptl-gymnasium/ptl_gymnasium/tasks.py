"""Gymnasium environments as datasets: tasks, each begun with a seed, and episodes by chance."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from posttrain_recipes.plugin import (
    Conversation,
    Dataset,
    DatasetConfig,
    Episode,
    Message,
    Record,
    Task,
    Turn,
)
from ptl_gymnasium import words

if TYPE_CHECKING:
    import gymnasium


@dataclass(frozen=True, kw_only=True)
class GymTask(Task):
    """An environment, begun with a seed."""

    higher_is_better: ClassVar[Mapping[str, bool | None]] = {"legal": True}

    env_id: str
    seed: int
    options: tuple[tuple[str, Any], ...] = ()
    """What `gymnasium.make` is given beside the name."""
    max_turns: int = 50
    illegal: float = -1.0
    """The reward of a reply that names no action; it ends the episode."""

    def make(self) -> gymnasium.Env[Any, Any]:
        """The environment itself, for methods that need no words."""
        import gymnasium

        return gymnasium.make(self.env_id, **dict(self.options))

    def start(self) -> Episode:
        """The environment told in words."""
        return TextEpisode(self)


@dataclass
class TextEpisode(Episode):
    """An episode in which a language model reads observations and writes actions."""

    task: GymTask
    total: float = field(default=0.0, init=False)
    turns: int = field(default=0, init=False)
    over: bool = field(default=False, init=False)
    named: int = field(default=0, init=False)
    """Replies that named an action."""

    def __post_init__(self) -> None:
        self.env = self.task.make()
        self.telling = words.telling(self.env)
        seen, _ = self.env.reset(seed=self.task.seed)
        self.told = f"{self.telling.rules}\n{self.telling.observation(seen)}"

    def turn(self) -> Turn | None:
        """What the environment shows; the rules come with the first turn."""
        return None if self.over else Turn((Message("user", self.told),))

    def act(self, reply: str) -> Sequence[float]:
        """Take the action that the reply names; a reply that names none ends the episode."""
        self.turns += 1
        action = self.telling.action(reply)
        if action is None:
            self.over, self.total = True, self.total + self.task.illegal
            return [self.task.illegal]
        self.named += 1
        seen, reward, ended, cut, _ = self.env.step(action)
        self.over = ended or cut or self.turns >= self.task.max_turns
        self.told = self.telling.observation(seen)
        self.total += float(reward)
        return [float(reward)]

    def metrics(self) -> dict[str, float]:
        """The share of replies that named an action, and whether the episode paid."""
        return {
            "legal": self.named / max(1, self.turns),
            "success": float(self.total > 0),
            "turns": float(self.turns),
        }


class EnvironmentConfig(DatasetConfig):
    """Options of an environment."""

    env: str = "FrozenLake-v1"
    """The id: FrozenLake-v1, CliffWalking-v1, Taxi-v3, Blackjack-v1 or CartPole-v1."""
    options: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """What gymnasium.make is given beside the id, as {is_slippery: false}."""
    episodes: int = Field(default=200, ge=1)
    """Episodes in the data set; with `test_size` some of them are held out."""
    seed: int = Field(default=0, ge=0)
    """The seed of the first episode; the others count up from it."""
    max_turns: int = Field(default=50, ge=1)
    """Actions after which an episode in words is cut off."""


class Environment(Dataset):
    """A Gymnasium environment, begun with many seeds."""

    class Config(EnvironmentConfig):
        """Options of an environment."""

    config: Config

    def problems(self) -> list[tuple[str, str]]:
        """An id that Gymnasium does not have, or observations that cannot be told."""
        import gymnasium

        if self.config.env not in gymnasium.registry:
            near = ", ".join(words.KNOWN)
            return [("env", f"Gymnasium has no environment '{self.config.env}'; try {near}")]
        try:
            words.telling(gymnasium.make(self.config.env, **self.config.options))
        except (TypeError, ValueError) as error:
            return [("env", str(error))]
        return []

    def digest(self) -> str:
        """The environment's id, options and seeds: they say all of it."""
        import gymnasium

        return f"{self.name} {gymnasium.__version__} {self.config.model_dump_json()}"

    def tasks(self, illegal: float) -> Iterator[GymTask]:
        """The tasks, in the order of their seeds."""
        config = self.config
        for number in range(config.episodes):
            yield GymTask(
                env_id=config.env,
                seed=config.seed + number,
                options=tuple(sorted(config.options.items())),
                max_turns=config.max_turns,
                illegal=illegal,
                source=f"{config.env}:{config.seed + number}",
            )


class Gymnasium(Environment):
    """Episodes of a Gymnasium environment, each begun with a seed of its own."""

    name = "gymnasium"

    class Config(EnvironmentConfig):
        """Options of the environment."""

        illegal: float = -1.0
        """The reward of a reply that names no action; it ends the episode."""

    config: Config

    def record_type(self) -> type[Record]:
        """Tasks."""
        return GymTask

    def load(self) -> Iterator[Record]:
        """The tasks, in the order of their seeds."""
        yield from self.tasks(self.config.illegal)


class GymnasiumPlay(Environment):
    """Episodes played by chance, as conversations: the words of the actions and no skill."""

    name = "gymnasium_play"

    def record_type(self) -> type[Record]:
        """Conversations."""
        return Conversation

    def load(self) -> Iterator[Record]:
        """An episode each, in the order of their seeds."""
        for task in self.tasks(illegal=0.0):
            draw = random.Random(task.seed)
            episode = TextEpisode(task)
            messages: list[Message] = []
            while (turn := episode.turn()) is not None:
                said = draw.choice(episode.telling.actions)
                messages += [*turn.messages, Message("assistant", said)]
                episode.act(said)
            yield Conversation(messages=tuple(messages), source=task.source)
