"""A guessing game: both seats guess the same hidden number in turn, and who names it wins."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from posttrain_recipes.plugin import Episode
from ptl_textgames.game import Game, GameConfig, GameDataset, GameTask, Opponent


class GuessGame(Game):
    """A guessing game in progress: everybody hears what a guess has shown."""

    def __init__(
        self, opponent: Opponent, policy: int, seed: int, *, number: int, most: int
    ) -> None:
        super().__init__(opponent, policy, seed)
        self.number = number
        self.low, self.high = 1, most

    def prompt(self) -> str:
        """What is known of the number."""
        return f"A number from {self.low} to {self.high}. Say one."

    def legal(self) -> Sequence[str]:
        """The numbers that it may still be."""
        return [str(number) for number in range(self.low, self.high + 1)]

    def play(self, move: str) -> None:
        """Guess; the bounds move towards the number."""
        guessed = int(move)
        if guessed == self.number:
            self.over, self.winner = True, self.player
        elif guessed < self.number:
            self.low = guessed + 1
        else:
            self.high = guessed - 1

    def winning(self) -> Sequence[str]:
        """The number, once no other is left."""
        return self.legal() if self.low == self.high else []

    def best(self) -> Sequence[str]:
        """The guesses that win with the highest probability."""
        size = self.high - self.low + 1
        chances = [_chance(size, place) for place in range(size)]
        return [str(self.low + i) for i, chance in enumerate(chances) if chance == max(chances)]

    def show(self) -> str:
        """The number and the guesses."""
        return f"number: {self.number}; guesses: {' '.join(self.moves)}"


_WINS: dict[int, float] = {0: 0.0}


def _chance(size: int, place: int) -> float:
    """The probability of winning with a guess that leaves `place` of `size` numbers below it.

    A wrong guess hands the turn to the other player, who then wins with that player's probability.
    """
    below, above = place, size - place - 1
    lost = (below * _wins(below) + above * _wins(above)) / size
    return 1 - lost


def _wins(size: int) -> float:
    """The probability of winning, to move among `size` numbers, both at their best."""
    if size not in _WINS:
        _WINS[size] = max(_chance(size, place) for place in range(size))
    return _WINS[size]


@dataclass(frozen=True, kw_only=True)
class GuessTask(GameTask):
    """A hidden number."""

    number: int
    most: int

    def start(self) -> Episode:
        """Begin it; an opponent that moves first has moved."""
        return GuessGame(
            self.opponent, self.policy, self.seed, number=self.number, most=self.most
        ).begin()


class Guess(GameDataset):
    """Games of guessing a hidden number in turn: higher, lower, and who names it wins."""

    name = "guess"

    class Config(GameConfig):
        """Options of the guessing game."""

        most: int = Field(default=9, ge=2, le=99)
        """The largest number; the smallest is 1."""

    config: Config

    def task(self, number: int, common: Mapping[str, Any]) -> GameTask:
        """A number drawn by the seed."""
        hidden = random.Random(f"{self.config.seed}:{number}:hidden").randint(1, self.config.most)
        return GuessTask(number=hidden, most=self.config.most, **common)
