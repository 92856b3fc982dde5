"""Q-learning of the endgame: a method without a language model."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from posttrain_recipes.plugin import (
    Checkpoint,
    EvalResult,
    Method,
    PerRecord,
    PluginConfig,
    Record,
    StageContext,
    Task,
    UsageError,
)
from posttrain_recipes.training import mean, proportion
from ptl_chess.tasks import Mate, board_svg

if TYPE_CHECKING:
    from ptl_chess.endgame import Endgame

LOGGED = 50
"""Points on a learning curve."""


class ChessQLearning(Method):
    """Learns king and queen against king by Q-learning; no language model.

    When: to know what can be reached in the endgame, and how far from the optimum a policy is.
    When not: the states are too many for a table.
    """

    name = "chess_q_learning"
    takes: ClassVar[tuple[type[Record], ...]] = (Task,)
    loss = "(r + gamma * max_b Q(s', b) - Q(s, a)) ** 2, by its semi-gradient"
    paper = "Watkins and Dayan 1992, Q-learning, Machine Learning 8, 279-292"
    starts_over = True

    class Config(PluginConfig):
        """Options of Q-learning."""

        games: int = Field(default=60000, ge=1)
        """Games that are played to learn."""
        alpha: float = Field(default=0.5, gt=0, le=1)
        """Step size; smaller against a random defender."""
        gamma: float = Field(default=0.95, gt=0, lt=1)
        """Discount: below 1, so that an early mate is worth more than a late one."""
        epsilon: float = Field(default=0.1, ge=0, le=1)
        """The share of random moves, to which it falls from 1."""
        defender: Literal["best", "random"] = "best"
        """Whom it learns against."""

    config: Config

    def train(self, stage: StageContext) -> Checkpoint:
        """Learn, and play each of the stage's tasks once before and once after."""
        from ptl_chess.endgame import canonical, solve
        from ptl_chess.learning import greedy, learn, play

        config, game = self.config, solve()
        tasks = [task for task in stage.train if isinstance(task, Mate)]
        if len(tasks) != len(stage.train) or not tasks:
            raise UsageError(
                f"stage '{stage.name}' needs positions of the endgame",
                hint="write dataset: {use: kqk, positions: 200}",
            )
        starts = [game.number[canonical(task.position)] for task in tasks]
        values = [0.0] * len(game.black)

        def measured() -> EvalResult:
            chosen = greedy(game, values)
            played = [
                play(game, start, chosen, task.defender, random.Random(task.seed))
                for start, task in zip(starts, tasks, strict=True)
            ]
            mates = [one for one in played if one.mated]
            found = {"mate": proportion(len(mates), len(played))}
            # Games without a mate have no number of moves to it: where others mate after learning
            # than before, nothing is said of the change.
            scores = {
                "mate": PerRecord(tuple(float(one.mated) for one in played)),
                "moves": PerRecord(tuple(float(g.moves) if g.mated else None for g in played)),
                "excess": PerRecord(
                    tuple(float(g.moves - g.best) if g.mated else None for g in played)
                ),
            }
            if mates:
                found["moves"] = mean([float(one.moves) for one in mates])
                found["excess"] = mean([float(one.moves - one.best) for one in mates])
            good = {"mate": True, "moves": False, "excess": False}
            return EvalResult(found, higher_is_better=good, scores=scores)

        every = max(1, config.games // LOGGED)
        total = -(-config.games // every)
        stage.sink.begin(total)
        stage.sink.measured("q_learning", "before", measured())
        for step in range(1, total + 1):
            part = range((step - 1) * every, min(step * every, config.games))
            games = list(
                learn(
                    game,
                    values,
                    part,
                    config.games,
                    alpha=config.alpha,
                    gamma=config.gamma,
                    epsilon=config.epsilon,
                    defender=config.defender,
                    seed=stage.seed,
                )
            )
            mated = [one.moves for one in games if one.mated]
            curve = {"games/mate": len(mated) / len(games)}
            if mated:
                curve["games/moves"] = sum(mated) / len(mated)
            stage.sink.log(curve, step)
        stage.sink.measured("q_learning", "after", measured())
        stage.sink.artifact("game.html", _drawn(game, values, tasks[0]))
        return stage.start


def _drawn(game: Endgame, values: list[float], task: Mate) -> str:
    """One game against the best defender, a board for each position of white."""
    from ptl_chess.endgame import canonical
    from ptl_chess.learning import LIMIT, greedy

    chosen = greedy(game, values)
    position = game.number[canonical(task.position)]
    boards = []
    for _ in range(LIMIT):
        boards.append((board_svg(game.white[position]), game.white_distance[position]))
        after = chosen(position)
        if game.is_mate[after] or not game.after_black[after]:
            boards.append((board_svg(game.black[after]), 0))
            break
        position = game.reply(after)
        if position < 0:
            break
    figures = "".join(
        f"<figure>{svg}<figcaption>"
        f"{'mate' if not left else f'mate in {left} at best'}</figcaption></figure>"
        for svg, left in boards
    )
    style = "figure{display:inline-block;margin:8px;text-align:center;font-family:sans-serif}"
    return f"<!doctype html><meta charset=utf-8><style>{style}</style>{figures}\n"
