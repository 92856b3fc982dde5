"""A guessing game: each seat looks for a hidden number of its own; who names it first wins.

Each hears whether its guess was too low or too high, as the bounds that are left. One number for
both would be no contest: what a guess shows helps the other as much, and a player without mistakes
would win 54 of 100 games against one who guesses by chance.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import Field

from posttrain_recipes.plugin import Episode
from ptl_textgames.game import Game, GameConfig, GameDataset, GameTask, Opponent


class GuessGame(Game):
    """A guessing game in progress."""

    def __init__(
        self, opponent: Opponent, policy: int, seed: int, *, numbers: tuple[int, int], most: int
    ) -> None:
        super().__init__(opponent, policy, seed)
        self.numbers = numbers
        self.bounds = [(1, most), (1, most)]

    def prompt(self) -> str:
        """What the player knows of its number."""
        low, high = self.bounds[self.player]
        return f"A number from {low} to {high}. Say one."

    def legal(self) -> Sequence[str]:
        """The numbers that it may still be."""
        low, high = self.bounds[self.player]
        return [str(number) for number in range(low, high + 1)]

    def play(self, move: str) -> None:
        """Guess; the bounds move towards the number."""
        guessed, number = int(move), self.numbers[self.player]
        low, high = self.bounds[self.player]
        if guessed == number:
            self.over, self.winner = True, self.player
        elif guessed < number:
            self.bounds[self.player] = (guessed + 1, high)
        else:
            self.bounds[self.player] = (low, guessed - 1)

    def winning(self) -> Sequence[str]:
        """The number, once no other is left."""
        low, high = self.bounds[self.player]
        return [str(low)] if low == high else []

    def best(self) -> Sequence[str]:
        """The guesses after which the fewest are still needed on average: those near the middle."""
        low, high = self.bounds[self.player]
        needed = [_needed(high - low + 1, place) for place in range(high - low + 1)]
        return [str(low + i) for i, guesses in enumerate(needed) if guesses == min(needed)]

    def show(self) -> str:
        """The numbers and the guesses."""
        return f"numbers: {self.numbers[0]}, {self.numbers[1]}; guesses: {' '.join(self.moves)}"


def _needed(size: int, place: int) -> int:
    """`size` times the guesses that are needed on average, the first one being the `place`-th."""
    return size + _fewest(place) + _fewest(size - place - 1)


@cache
def _fewest(size: int) -> int:
    return min((_needed(size, place) for place in range(size)), default=0)


@dataclass(frozen=True, kw_only=True)
class GuessTask(GameTask):
    """Two hidden numbers."""

    numbers: tuple[int, int]
    most: int

    def start(self) -> Episode:
        """Begin it; an opponent that moves first has moved."""
        return GuessGame(
            self.opponent, self.policy, self.seed, numbers=self.numbers, most=self.most
        ).begin()


class Guess(GameDataset):
    """Races of guessing: higher, lower, and who names its own number first wins."""

    name = "guess"

    class Config(GameConfig):
        """Options of the guessing game."""

        most: int = Field(default=15, ge=2, le=99)
        """The largest number; the smallest is 1."""

    config: Config

    def task(self, number: int, common: Mapping[str, Any]) -> GameTask:
        """Two numbers drawn by the seed."""
        draw = random.Random(f"{self.config.seed}:{number}:hidden")
        hidden = (draw.randint(1, self.config.most), draw.randint(1, self.config.most))
        return GuessTask(numbers=hidden, most=self.config.most, **common)
