"""Tic-tac-toe: three in a row on a board of nine squares."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import Field

from posttrain_recipes.plugin import Episode
from ptl_textgames.game import Game, GameConfig, GameDataset, GameTask, Opponent

LINES = (
    (0, 1, 2),
    (3, 4, 5),
    (6, 7, 8),
    (0, 3, 6),
    (1, 4, 7),
    (2, 5, 8),
    (0, 4, 8),
    (2, 4, 6),
)


def won(board: str) -> bool:
    """Whether somebody has three in a row on `board`: nine of `X`, `O` and `-`."""
    return any(board[a] == board[b] == board[c] != "-" for a, b, c in LINES)


@cache
def value(board: str) -> int:
    """What `board` is worth to the player whose turn it is: 1 won, 0 drawn, -1 lost (minimax)."""
    if won(board):
        return -1
    if "-" not in board:
        return 0
    return max(-value(after) for _, after in moves(board))


@cache
def moves(board: str) -> tuple[tuple[int, str], ...]:
    """The open squares with the board after each move; X moves where both have as many."""
    mark = "X" if board.count("X") == board.count("O") else "O"
    return tuple(
        (square, board[:square] + mark + board[square + 1 :])
        for square in range(9)
        if board[square] == "-"
    )


def told(board: str) -> str:
    """The board as the player reads it: open squares have their numbers."""
    shown = [str(i + 1) if cell == "-" else cell for i, cell in enumerate(board)]
    mark = "X" if board.count("X") == board.count("O") else "O"
    rows = "\n".join("".join(shown[i : i + 3]) for i in (0, 3, 6))
    return f"{rows}\nYou are {mark}."


class TicTacToeGame(Game):
    """A game of tic-tac-toe in progress."""

    def __init__(self, opponent: Opponent, policy: int, seed: int) -> None:
        super().__init__(opponent, policy, seed)
        self.board = "-" * 9

    def prompt(self) -> str:
        """The board."""
        return told(self.board)

    def legal(self) -> Sequence[str]:
        """The open squares."""
        return [str(square + 1) for square, _ in moves(self.board)]

    def play(self, move: str) -> None:
        """Mark a square."""
        self.board = dict(moves(self.board))[int(move) - 1]
        if won(self.board):
            self.over, self.winner = True, self.player
        self.over = self.over or "-" not in self.board

    def winning(self) -> Sequence[str]:
        """The squares that make three in a row."""
        return [str(square + 1) for square, after in moves(self.board) if won(after)]

    def best(self) -> Sequence[str]:
        """The moves that keep what the position is worth."""
        worth = value(self.board)
        return [str(s + 1) for s, after in moves(self.board) if -value(after) == worth]

    def show(self) -> str:
        """The last board."""
        rows = "\n".join(" ".join(self.board[i : i + 3]) for i in (0, 3, 6))
        return f"```\n{rows}\n```\nmoves: {' '.join(self.moves)}"


@dataclass(frozen=True, kw_only=True)
class TicTacToeTask(GameTask):
    """A game of tic-tac-toe."""

    opening: tuple[str, ...] = ()
    """Moves that are made before it begins."""

    def start(self) -> Episode:
        """Begin it; an opponent that moves first has moved."""
        game = TicTacToeGame(self.opponent, self.policy, self.seed)
        for move in self.opening:
            game.make(move)
        return game.begin()


class TicTacToe(GameDataset):
    """Games of tic-tac-toe: three in a row wins, and nobody has to lose."""

    name = "tictactoe"

    class Config(GameConfig):
        """Options of tic-tac-toe."""

        opening: int = Field(default=0, ge=0, le=6)
        """At most so many moves by chance before the players begin, so that they meet positions
        which neither would come to."""

    config: Config

    def task(self, number: int, common: Mapping[str, Any]) -> GameTask:
        """From the empty board, or from what the opening left."""
        draw = random.Random(f"{self.config.seed}:{number}:opening")
        game, opening = TicTacToeGame("none", 0, 0), []
        for _ in range(draw.randint(0, self.config.opening)):
            going_on = [move for move in game.legal() if move not in game.winning()]
            if not going_on:
                break
            opening.append(draw.choice(going_on))
            game.make(opening[-1])
        return TicTacToeTask(opening=tuple(opening), **common)
