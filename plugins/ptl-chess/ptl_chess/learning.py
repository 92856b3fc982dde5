"""Q-learning of king and queen against king, and how well a policy plays it.

    Q(s, a) <- Q(s, a) + alpha * (r + gamma * max_b Q(s', b) - Q(s, a))

Watkins and Dayan 1992, Machine Learning 8. What white's move leads to is known before black
replies, so a pair (s, a) is kept as the position after it: `values[n]` belongs to the n-th position
with black to move, and moves that lead to the same position (up to reflection) share what is
learned (afterstates; Sutton and Barto 2018, section 6.8). Mate is worth 1, a draw 0, and gamma < 1
makes an early mate worth more than a late one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from ptl_chess.endgame import NEVER, Endgame

Defender = Literal["best", "random"]
LIMIT = 30
"""White moves after which a game is given up as a draw."""


@dataclass(frozen=True)
class Game:
    """How a game ended."""

    mated: bool
    moves: int
    """White moves played."""
    best: int
    """White moves to mate from its first position, played by both sides at their best."""


def defend(game: Endgame, position: int, defender: Defender, draw: random.Random) -> int:
    """Black's reply in `game.black[position]`: a number in `game.white`, or -1 for the queen."""
    return game.reply(position) if defender == "best" else draw.choice(game.after_black[position])


def play(
    game: Endgame,
    start: int,
    choose: Callable[[int], int],
    defender: Defender,
    draw: random.Random,
) -> Game:
    """One game from `game.white[start]`, white's moves chosen by `choose`."""
    position = start
    for moves in range(1, LIMIT + 1):
        after = choose(position)
        if game.is_mate[after]:
            return Game(True, moves, game.white_distance[start])
        if not game.after_black[after]:
            return Game(False, moves, game.white_distance[start])
        position = defend(game, after, defender, draw)
        if position < 0:
            return Game(False, moves, game.white_distance[start])
    return Game(False, LIMIT, game.white_distance[start])


def won_positions(game: Endgame) -> list[int]:
    """The numbers of the positions that white, to move, can win."""
    return [n for n, distance in enumerate(game.white_distance) if distance < NEVER]


def greedy(game: Endgame, values: Sequence[float]) -> Callable[[int], int]:
    """White's policy that moves to the position of the highest value."""
    return lambda position: max(game.after_white[position], key=values.__getitem__)


def learn(
    game: Endgame,
    values: list[float],
    episodes: range,
    total: int,
    *,
    alpha: float,
    gamma: float,
    epsilon: float,
    defender: Defender,
    seed: int,
) -> Iterator[Game]:
    """Q-learning from random won positions; `values` is changed in place.

    The share of random moves falls from 1 to `epsilon` over the first half of the `total` games.
    Each game draws from its own number, so that learning can be taken up in the middle.
    """
    starts = won_positions(game)
    after_white, mate = game.after_white, game.is_mate
    for number in episodes:
        draw = random.Random(f"{seed}:{number}")
        share = max(epsilon, 1 - (1 - epsilon) * 2 * number / max(1, total))
        position = start = draw.choice(starts)
        mated = False
        moves = 0
        while moves < LIMIT:
            moves += 1
            options = after_white[position]
            explores = draw.random() < share
            after = draw.choice(options) if explores else max(options, key=values.__getitem__)
            mated = mate[after]
            if mated:
                target, position = 1.0, -1
            elif not game.after_black[after]:
                target, position = 0.0, -1
            else:
                position = defend(game, after, defender, draw)
                best = (
                    max((values[n] for n in after_white[position]), default=0.0)
                    if position >= 0
                    else 0.0
                )
                target = gamma * best
            values[after] += alpha * (target - values[after])
            if position < 0:
                break
        yield Game(mated, moves, game.white_distance[start])
