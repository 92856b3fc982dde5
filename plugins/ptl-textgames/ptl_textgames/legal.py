"""Legal moves as conversations: a base model learns the rules before it learns to win."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from posttrain_recipes.plugin import (
    Conversation,
    Dataset,
    DatasetConfig,
    Message,
    Record,
)
from ptl_textgames.game import Game
from ptl_textgames.guess import GuessGame
from ptl_textgames.tictactoe import TicTacToeGame


class LegalMoves(Dataset):
    """Positions of games by chance, each with one of its legal moves: the rules and no skill."""

    name = "legal_moves"

    class Config(DatasetConfig):
        """Options of the positions."""

        game: Literal["tictactoe", "guess"] = "tictactoe"
        """Which game."""
        count: int = Field(default=2000, ge=1)
        """How many positions there are."""
        most: int = Field(default=15, ge=2, le=99)
        """The largest number of the guessing game."""
        seed: int = Field(default=0, ge=0)
        """Which positions and moves they are."""

    config: Config

    def record_type(self) -> type[Record]:
        """Conversations."""
        return Conversation

    def digest(self) -> str:
        """The options say all of it."""
        return f"legal_moves 1 {self.config.model_dump_json()}"

    def load(self) -> Iterator[Record]:
        """Every position of one game by chance after another."""
        draw = random.Random(self.config.seed)
        made = 0
        while True:
            game = self._game(draw)
            while not game.over:
                move = draw.choice(list(game.legal()))
                words = (Message("user", game.prompt()), Message("assistant", move))
                yield Conversation(messages=words, source=f"legal_moves:{made}")
                made += 1
                if made == self.config.count:
                    return
                game.act(move)

    def _game(self, draw: random.Random) -> Game:
        if self.config.game == "tictactoe":
            return TicTacToeGame("none", 0, 0)
        most = self.config.most
        numbers = (draw.randint(1, most), draw.randint(1, most))
        return GuessGame("none", 0, 0, numbers=numbers, most=most)
