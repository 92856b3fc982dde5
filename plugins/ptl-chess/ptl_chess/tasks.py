"""Positions that white can win: tasks, in which a language model plays white, and legal moves."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from pydantic import Field, model_validator

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
from ptl_chess.endgame import Position

RULES = "Mate the black king. Say a move, such as d1d7."


@dataclass(frozen=True, kw_only=True)
class Mate(Task):
    """A position with white to move, and how it is played on."""

    higher_is_better: ClassVar[Mapping[str, bool | None]] = {
        "mate": True,
        "legal": True,
        "excess": False,
    }

    position: Position
    seed: int
    defender: Literal["best", "random"] = "best"
    show_squares: bool = False
    show_moves: bool = False
    illegal: float = -1.0
    progress: float = 0.0
    max_moves: int = 20

    def told(self, position: Position) -> str:
        """What white reads of a position."""
        lines = [fen(position)]
        if self.show_squares:
            lines.append(squares(position))
        if self.show_moves:
            lines.append(f"moves: {' '.join(sorted(white_words(position)))}")
        return "\n".join(lines)

    def start(self) -> Episode:
        """The game from this position."""
        return MateEpisode(self)


@dataclass
class MateEpisode(Episode):
    """A game in which a language model plays white."""

    task: Mate
    moves: int = field(default=0, init=False)
    legal: int = field(default=0, init=False)
    mated: bool = field(default=False, init=False)
    over: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.position = self.task.position
        self.best = _distance(self.position)
        self.draw = random.Random(self.task.seed)

    def turn(self) -> Turn | None:
        """The position as FEN; the rules come with the first turn."""
        if self.over:
            return None
        told = self.task.told(self.position)
        if not self.moves:
            told = f"{RULES}\n{told}"
        return Turn((Message("user", told),))

    def act(self, reply: str) -> Sequence[float]:
        """Play the move; one that is not legal ends the game."""
        from ptl_chess import endgame

        self.moves += 1
        after = white_words(self.position).get(_move(reply))
        if after is None:
            self.over = True
            return [self.task.illegal]
        self.legal += 1
        replies = list(endgame.black_moves(after))
        king, queen, other = after
        if not replies:
            self.over = True
            self.mated = endgame.attacked(other, king, queen)
            self.position = after
            return [1.0 if self.mated else 0.0]
        left = _distance(self.position)
        answer = _defend(replies, self.task.defender, self.draw)
        if answer is None:
            self.over = True
            return [0.0]
        self.position = answer
        self.over = self.moves >= self.task.max_moves
        return [self.task.progress * (left - _distance(answer))]

    def metrics(self) -> dict[str, float]:
        """Whether it mated, in how many moves beyond the best, and the share of legal moves."""
        found = {"mate": float(self.mated), "legal": self.legal / max(1, self.moves)}
        return {**found, "excess": float(self.moves - self.best)} if self.mated else found

    def show(self) -> str:
        """The last position as a drawing."""
        return board_svg(self.position)


def _defend(
    replies: Sequence[Position | None], defender: str, draw: random.Random
) -> Position | None:
    if defender == "random":
        return draw.choice(list(replies))
    return max(replies, key=lambda p: float("inf") if p is None else _distance(p))


def _distance(position: Position) -> int:
    from ptl_chess.endgame import canonical, solve

    game = solve()
    return game.white_distance[game.number[canonical(position)]]


def white_words(position: Position) -> dict[str, Position]:
    """White's legal moves as they are written (`d1d7`), with the positions after them."""
    import chess

    from ptl_chess.endgame import white_moves

    found = {}
    for after in white_moves(position):
        piece = 0 if after[0] != position[0] else 1
        move = chess.square_name(position[piece]) + chess.square_name(after[piece])
        found[move] = after
    return found


def _move(reply: str) -> str:
    words = [word.strip(".,;:!?*`\"'()+#").lower() for word in reply.split()]
    moves = [word.replace("-", "") for word in words]
    return next((m for m in moves if len(m) == 4 and m[0] in "abcdefgh" and m[1].isdigit()), "")


def fen(position: Position) -> str:
    """The position in Forsyth-Edwards notation, white to move."""
    return str(_board(position).fen()).removesuffix(" - - 0 1")


def squares(position: Position) -> str:
    """The pieces with their squares, such as `Kf6 Qg1 kh8`."""
    import chess

    return " ".join(
        letter + chess.square_name(square) for letter, square in zip("KQk", position, strict=True)
    )


def board_svg(position: Position) -> str:
    """The position as a drawing."""
    import chess.svg

    return str(chess.svg.board(_board(position), size=320))


def _board(position: Position):  # type: ignore[no-untyped-def]  # chess is imported when it works
    import chess

    board = chess.Board(None)
    king, queen, other = position
    board.set_piece_at(king, chess.Piece.from_symbol("K"))
    board.set_piece_at(queen, chess.Piece.from_symbol("Q"))
    board.set_piece_at(other, chess.Piece.from_symbol("k"))
    return board


class PositionConfig(DatasetConfig):
    """Options of the positions."""

    positions: int = Field(default=200, ge=1)
    """Positions in the data set; with `test_size` some of them are held out."""
    seed: int = Field(default=0, ge=0)
    """Which positions they are."""
    min_distance: int = Field(default=1, ge=1, le=10)
    """Only positions that are mate in at least this many moves."""
    max_distance: int = Field(default=10, ge=1, le=10)
    """Only positions that are mate in at most this many moves."""
    show_squares: bool = False
    """Tell the squares of the pieces beside the FEN, which a small model does not count in."""
    show_moves: bool = False
    """Tell the legal moves with each position (masking); otherwise an illegal one costs."""

    @model_validator(mode="after")
    def _bounds(self) -> PositionConfig:
        if self.max_distance < self.min_distance:
            raise ValueError("'max_distance' is less than 'min_distance'")
        return self


def _positions(config: PositionConfig) -> Iterator[Position]:
    """Different positions where there are enough."""
    from ptl_chess.endgame import solve

    game = solve()
    low, high = config.min_distance, config.max_distance
    near = [n for n, d in enumerate(game.white_distance) if low <= d <= high]
    random.Random(config.seed).shuffle(near)
    for index in range(config.positions):
        yield game.white[near[index % len(near)]]


class KQK(Dataset):
    """King and queen against king: positions that white, to move, can win."""

    name = "kqk"

    class Config(PositionConfig):
        """Options of the endgame."""

        defender: Literal["best", "random"] = "best"
        """How black plays: as long as it can, or by chance."""
        illegal: float = -1.0
        """The reward of an illegal move, which ends the game; mate is worth 1, a draw 0."""
        progress: float = 0.0
        """The reward of each move by which the mate comes nearer, as the exact table has it."""
        max_moves: int = Field(default=20, ge=1)
        """Moves after which a game of a language model is a draw."""

    config: Config

    def record_type(self) -> type[Record]:
        """Tasks."""
        return Mate

    def digest(self) -> str:
        """The options say all of it."""
        return f"kqk 1 {self.config.model_dump_json()}"

    def load(self) -> Iterator[Record]:
        """The tasks: different positions where there are enough."""
        config = self.config
        for index, position in enumerate(_positions(config)):
            yield Mate(
                position=position,
                seed=config.seed + index,
                defender=config.defender,
                show_squares=config.show_squares,
                show_moves=config.show_moves,
                illegal=config.illegal,
                progress=config.progress,
                max_moves=config.max_moves,
                source=f"kqk:{config.seed}:{index}",
            )


class KQKMoves(Dataset):
    """Positions of the endgame, each with one of its legal moves by chance: the rules, no skill."""

    name = "kqk_moves"

    class Config(PositionConfig):
        """Options of the positions."""

    config: Config

    def record_type(self) -> type[Record]:
        """Conversations."""
        return Conversation

    def digest(self) -> str:
        """The options say all of it."""
        return f"kqk_moves 1 {self.config.model_dump_json()}"

    def load(self) -> Iterator[Record]:
        """A conversation for each position."""
        config = self.config
        for index, position in enumerate(_positions(config)):
            draw = random.Random(f"{config.seed}:{index}")
            task = Mate(
                position=position,
                seed=0,
                show_squares=config.show_squares,
                show_moves=config.show_moves,
            )
            yield Conversation(
                messages=(
                    Message("user", f"{RULES}\n{task.told(position)}"),
                    Message("assistant", draw.choice(sorted(white_words(position)))),
                ),
                source=f"kqk_moves:{config.seed}:{index}",
            )
