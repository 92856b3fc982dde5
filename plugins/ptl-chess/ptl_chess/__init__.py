"""King and queen against king for posttrain_recipes.

A dataset of tasks, `kqk`: positions that white can win, played in words by a language model, with
an exact table of the best moves; and `kqk_moves`, legal moves by chance to imitate. A method
without a language model: `chess_q_learning`.
"""

from __future__ import annotations

from posttrain_recipes.plugin import Dataset, Method, hookimpl
from ptl_chess.methods import ChessQLearning
from ptl_chess.tasks import KQK, KQKMoves

PTL_API = 1


@hookimpl
def ptl_datasets() -> list[type[Dataset]]:
    """The datasets of this package."""
    return [KQK, KQKMoves]


@hookimpl
def ptl_methods() -> list[type[Method]]:
    """The methods of this package."""
    return [ChessQLearning]
