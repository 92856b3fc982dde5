"""Nim with one heap: a game small enough for a tiny model to learn by playing."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from posttrain_recipes.plugin import Dataset, DatasetConfig, Episode, Message, Record, Task, Turn

TAKE = 3
"""Sticks that may be taken at once."""


class Nim(Dataset):
    """The game of Nim: sticks are taken in turn, one to three; who takes the last one wins.

    An environment: 1 for winning, -1 for losing, -2 for a reply that is no move. With
    `opponent: none` the policy takes both seats (self_play); otherwise the environment plays the
    other one. Who can leave a multiple of four wins against anybody.
    """

    name = "nim"

    class Config(DatasetConfig):
        """Options of the game."""

        opponent: Literal["none", "random", "perfect"] = "none"
        """Who takes the other seat: nobody (the policy does), a player who takes any number, or
        one who makes no mistake."""
        episodes: int = Field(default=256, ge=1)
        """How many beginnings there are."""
        least: int = Field(default=5, ge=1)
        """The fewest sticks at the beginning."""
        most: int = Field(default=15, ge=1, le=99)
        """The most sticks at the beginning."""
        seed: int = Field(default=0, ge=0)
        """Seeds the beginnings and the moves of a random opponent."""

        @model_validator(mode="after")
        def _bounds(self) -> Nim.Config:
            if self.most < self.least:
                raise ValueError("'most' is less than 'least'")
            return self

    config: Config

    def record_type(self) -> type[Record]:
        """Tasks."""
        return Task

    def load(self) -> Iterator[Record]:
        """One task for each beginning; against an opponent, each seat begins in turn."""
        config = self.config
        for number in range(config.episodes):
            rng = random.Random(f"{config.seed}:{number}")
            yield NimTask(
                source=f"nim:{number}",
                sticks=rng.randint(config.least, config.most),
                opponent=config.opponent,
                begins=config.opponent == "none" or number % 2 == 0,
                seed=rng.getrandbits(32),
            )


@dataclass(frozen=True, kw_only=True)
class NimTask(Task):
    """One beginning of the game."""

    higher_is_better: ClassVar[Mapping[str, bool | None]] = {"legal": True}

    sticks: int
    opponent: str
    begins: bool
    """Whether the policy moves first."""
    seed: int

    def start(self) -> Episode:
        """Begin it; an opponent that moves first has moved."""
        game = NimGame(self.sticks, self.opponent, random.Random(self.seed))
        if not self.begins:
            game.answer()
        return game


@dataclass
class NimGame(Episode):
    """A game in progress."""

    sticks: int
    opponent: str
    rng: random.Random
    player: int = 0
    """Whose turn it is."""
    winner: int | None = None
    mistake: bool = False
    """Whether a seat of the policy lost by a reply that is no move."""
    moves: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.seats = 2 if self.opponent == "none" else 1

    def turn(self) -> Turn | None:
        """The sticks that are left; every turn tells all that matters."""
        if self.winner is not None:
            return None
        text = (
            f"There are {self.sticks} sticks in a box. Who takes out the last one wins. "
            "How many do you take out: 1, 2 or 3?"
        )
        return Turn((Message("user", text),), self.player if self.seats == 2 else 0)

    def act(self, reply: str) -> Sequence[float]:
        """1 for winning and -1 for losing; -2 for a reply that is no move, which ends the game."""
        self.take(int(reply) if reply.strip().isascii() and reply.strip().isdigit() else 0)
        if self.winner is None and self.seats == 1:
            self.answer()
        if self.winner is None:
            return [0.0] * self.seats
        won, lost = (0.0, -2.0) if self.mistake else (1.0, -1.0)
        return [won if seat == self.winner else lost for seat in range(self.seats)]

    def take(self, count: int) -> None:
        """The player whose turn it is takes so many."""
        self.moves.append(str(count))
        if not 1 <= count <= min(TAKE, self.sticks):
            self.winner, self.mistake = 1 - self.player, True
            return
        self.sticks -= count
        if self.sticks == 0:
            self.winner = self.player
        self.player = 1 - self.player

    def answer(self) -> None:
        """The opponent moves."""
        most = min(TAKE, self.sticks)
        best = self.sticks % (TAKE + 1)
        self.player = 1
        self.take(best if self.opponent == "perfect" and best else self.rng.randint(1, most))

    def metrics(self) -> Mapping[str, float]:
        """Whether the policy won (against an opponent), and whether its moves were moves."""
        won = {"success": float(self.winner == 0)} if self.seats == 1 else {}
        return {**won, "legal": float(not self.mistake)}

    def show(self) -> str:
        """The moves."""
        return f"moves: {' '.join(self.moves)}"
