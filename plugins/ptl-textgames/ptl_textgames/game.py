"""What games for two seats share: turns, opponents, and who won."""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import Field

from posttrain_recipes.plugin import (
    Dataset,
    DatasetConfig,
    Episode,
    Message,
    Record,
    Task,
    Turn,
)

Opponent = Literal["none", "random", "greedy", "perfect"]


class Game(Episode):
    """A game in progress. Player 0 moves first; the policy is player `policy`, or both."""

    def __init__(self, opponent: Opponent, policy: int, seed: int) -> None:
        self.opponent = opponent
        self.policy = policy
        self.rng = random.Random(seed)
        self.seats = 2 if opponent == "none" else 1
        self.player = 0
        self.winner: int | None = None
        self.over = False
        self.broken = False
        """Whether it ended by a reply of the policy that is no move."""
        self.moves: list[str] = []

    @abstractmethod
    def prompt(self) -> str:
        """What the player whose turn it is reads."""

    @abstractmethod
    def legal(self) -> Sequence[str]:
        """The moves that are open, as they are written."""

    @abstractmethod
    def play(self, move: str) -> None:
        """Make a legal move; sets `over` and `winner` where it ends the game."""

    @abstractmethod
    def winning(self) -> Sequence[str]:
        """The moves that win at once."""

    @abstractmethod
    def best(self) -> Sequence[str]:
        """The moves of a player that makes no mistake."""

    def begin(self) -> Game:
        """Have an opponent that moves first move."""
        self._answer()
        return self

    def turn(self) -> Turn | None:
        """Every turn tells all that matters."""
        if self.over:
            return None
        seat = self.player if self.seats == 2 else 0
        return Turn((Message("user", self.prompt()),), seat, fresh=True)

    def act(self, reply: str) -> Sequence[float]:
        """1 for winning, -1 for losing, 0 for a draw; a reply that is no move loses."""
        move = reply.strip()
        if move in self.legal():
            self.make(move)
            self._answer()
        else:
            self.moves.append("?")
            self.over, self.winner, self.broken = True, 1 - self.player, True
        players = (0, 1) if self.seats == 2 else (self.policy,)
        if not self.over or self.winner is None:
            return [0.0] * self.seats
        return [1.0 if player == self.winner else -1.0 for player in players]

    def make(self, move: str) -> None:
        """Make a legal move of whoever's turn it is."""
        self.moves.append(move)
        self.play(move)
        self.player = 1 - self.player

    def _answer(self) -> None:
        if self.opponent == "none" or self.over or self.player == self.policy:
            return
        moves = self.legal()
        if self.opponent == "greedy":
            moves = self.winning() or moves
        elif self.opponent == "perfect":
            moves = self.best()
        self.make(self.rng.choice(list(moves)))

    def metrics(self) -> Mapping[str, float]:
        """Whether the policy won, and did not lose (against an opponent); whether it kept rules."""
        legal = {"legal": float(not self.broken)}
        if self.seats == 2:
            return legal
        won, lost = self.winner == self.policy, self.winner == 1 - self.policy
        return {**legal, "success": float(won), "unbeaten": float(not lost)}


class GameConfig(DatasetConfig):
    """Options of every game."""

    opponent: Opponent = "none"
    """Who takes the other seat: nobody (the policy takes both), a player who moves by chance, one
    who wins at once where that is possible and else moves by chance, or one without mistakes."""
    episodes: int = Field(default=256, ge=1)
    """How many beginnings there are; against an opponent, each side moves first in turn."""
    seed: int = Field(default=0, ge=0)
    """Seeds the beginnings and the moves of an opponent."""


@dataclass(frozen=True, kw_only=True)
class GameTask(Task):
    """One beginning of a game."""

    higher_is_better: ClassVar[Mapping[str, bool | None]] = {"legal": True, "unbeaten": True}

    opponent: Opponent
    policy: int
    seed: int


class GameDataset(Dataset):
    """Beginnings of a game; a subclass says of which."""

    class Config(GameConfig):
        """Options of every game."""

    config: Config

    @abstractmethod
    def task(self, number: int, common: Mapping[str, object]) -> GameTask:
        """The task of that number, made with the fields that all games have."""

    def record_type(self) -> type[Record]:
        """Tasks."""
        return GameTask

    def digest(self) -> str:
        """The options say all of it."""
        return f"{self.name} 1 {self.config.model_dump_json()}"

    def load(self) -> Iterator[Record]:
        """One task for each beginning."""
        config = self.config
        for number in range(config.episodes):
            yield self.task(
                number,
                {
                    "opponent": config.opponent,
                    "policy": 0 if config.opponent == "none" else number % 2,
                    "seed": random.Random(f"{config.seed}:{number}").getrandbits(32),
                    "source": f"{self.name}:{config.seed}:{number}",
                },
            )
