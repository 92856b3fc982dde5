"""King and queen against king: every position, every move, and the known optimum.

A position is three squares (white king, white queen, black king), numbered as in python-chess: a1
is 0, h8 is 63. Reflections of the board do not matter in an endgame without pawns, so of the eight
reflections of a position one stands for all (`canonical`): the 18,081 that are left with white to
move are a table that is solved in seconds, by retrograde analysis.

    distance(white to move) = 1 + min over moves of distance(black to move)
    distance(black to move) = max over moves of distance(white to move), 0 where it is mate

in white moves; black is not mated where it takes the queen or is stalemated. The longest is 10
(Ströhlein 1970).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache

Position = tuple[int, int, int]
"""White king, white queen, black king."""

NEVER = 10_000
"""The distance of a position that is not won."""
_STEPS = tuple((x, y) for x in (-1, 0, 1) for y in (-1, 0, 1) if x or y)


def _board() -> tuple[list[tuple[int, ...]], list[tuple[tuple[int, ...], ...]]]:
    kings: list[tuple[int, ...]] = []
    rays: list[tuple[tuple[int, ...], ...]] = []
    for square in range(64):
        row, column = divmod(square, 8)
        found = []
        for down, across in _STEPS:
            ray, r, c = [], row + down, column + across
            while 0 <= r < 8 and 0 <= c < 8:
                ray.append(8 * r + c)
                r, c = r + down, c + across
            found.append(tuple(ray))
        kings.append(tuple(ray[0] for ray in found if ray))
        rays.append(tuple(ray for ray in found if ray))
    return kings, rays


KING, RAYS = _board()


def _reflections() -> list[tuple[int, ...]]:
    made = []
    for swap in (False, True):
        for up in (False, True):
            for across in (False, True):
                squares = []
                for square in range(64):
                    row, column = divmod(square, 8)
                    row, column = 7 - row if up else row, 7 - column if across else column
                    squares.append(8 * column + row if swap else 8 * row + column)
                made.append(tuple(squares))
    return made


_REFLECTIONS = _reflections()


@cache
def canonical(position: Position) -> Position:
    """The least of the eight reflections of a position, the black king counting first."""
    king, queen, other = position
    c, a, b = min((m[other], m[king], m[queen]) for m in _REFLECTIONS)
    return a, b, c


def attacked(square: int, king: int, queen: int) -> bool:
    """Whether white attacks `square`, its king shielding what lies behind it."""
    if square in KING[king]:
        return True
    for ray in RAYS[queen]:
        for passed in ray:
            if passed == square:
                return True
            if passed == king:
                break
    return False


def is_legal(position: Position, *, white_to_move: bool) -> bool:
    """Whether a position can stand on the board."""
    king, queen, other = position
    if len({king, queen, other}) < 3 or other in KING[king]:
        return False
    return not white_to_move or not attacked(other, king, queen)


def white_moves(position: Position) -> Iterator[Position]:
    """The positions after each legal move of white, black to move."""
    king, queen, other = position
    for target in KING[king]:
        if target not in (queen, other) and other not in KING[target]:
            yield target, queen, other
    for ray in RAYS[queen]:
        for target in ray:
            if target in (king, other):
                break
            yield king, target, other


def black_moves(position: Position) -> Iterator[Position | None]:
    """The positions after each legal move of black; None where it takes the queen."""
    king, queen, other = position
    for target in KING[other]:
        if target == queen:
            if queen not in KING[king]:
                yield None
        elif target not in KING[king] and target != king and not attacked(target, king, queen):
            yield king, queen, target


@dataclass
class Endgame:
    """Every position up to reflection, as numbers, with the moves between them."""

    white: list[Position] = field(default_factory=list)
    """Positions with white to move."""
    black: list[Position] = field(default_factory=list)
    """Positions with black to move."""
    after_white: list[list[int]] = field(default_factory=list)
    """For each of `white`, the numbers in `black` that white can move to."""
    after_black: list[list[int]] = field(default_factory=list)
    """For each of `black`, the numbers in `white` that black can move to; -1 takes the queen."""
    white_distance: list[int] = field(default_factory=list)
    black_distance: list[int] = field(default_factory=list)
    is_mate: list[bool] = field(default_factory=list)
    """For each of `black`, whether it is mated."""
    number: dict[Position, int] = field(default_factory=dict)
    """Of each of `white`."""

    def reply(self, position: int) -> int:
        """The best defender's move in `black[position]`: it takes the queen, or lasts longest."""
        moves = self.after_black[position]
        return max(moves, key=lambda m: NEVER + 1 if m < 0 else self.white_distance[m])


@cache
def solve() -> Endgame:
    """The endgame with its distances to mate; computed once, in a few seconds."""
    game = Endgame()
    black_number: dict[Position, int] = {}
    every = [
        (a, b, c)
        for c in range(64)
        for a in range(64)
        for b in range(64)
        if canonical((a, b, c)) == (a, b, c)
    ]
    for position in every:
        if is_legal(position, white_to_move=True):
            game.number[position] = len(game.white)
            game.white.append(position)
        if is_legal(position, white_to_move=False):
            black_number[position] = len(game.black)
            game.black.append(position)
    game.after_white = [
        sorted({black_number[canonical(p)] for p in white_moves(position)})
        for position in game.white
    ]
    game.after_black = [
        sorted({-1 if p is None else game.number[canonical(p)] for p in black_moves(position)})
        for position in game.black
    ]
    game.is_mate = [
        not moves and attacked(position[2], position[0], position[1])
        for position, moves in zip(game.black, game.after_black, strict=True)
    ]
    _distances(game)
    return game


def _distances(game: Endgame) -> None:
    game.white_distance = [NEVER] * len(game.white)
    game.black_distance = [NEVER] * len(game.black)
    to_black: list[list[int]] = [[] for _ in game.black]
    to_white: list[list[int]] = [[] for _ in game.white]
    for start, moves in enumerate(game.after_white):
        for move in moves:
            to_black[move].append(start)
    for start, moves in enumerate(game.after_black):
        for move in moves:
            if move >= 0:
                to_white[move].append(start)
    open_moves = [len(moves) for moves in game.after_black]
    todo = deque(n for n, mate in enumerate(game.is_mate) if mate)
    for number in todo:
        game.black_distance[number] = 0
    while todo:
        lost = todo.popleft()
        for won in to_black[lost]:
            if game.white_distance[won] < NEVER:
                continue
            game.white_distance[won] = game.black_distance[lost] + 1
            for before in to_white[won]:
                open_moves[before] -= 1
                if open_moves[before] == 0:
                    game.black_distance[before] = game.white_distance[won]
                    todo.append(before)
