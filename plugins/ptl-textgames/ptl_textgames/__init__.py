"""Games for two seats, told in words: tic-tac-toe and a guessing game.

Datasets of tasks: `tictactoe` and `guess`; one policy takes both seats (`self_play`), or an
opponent takes one of them. `legal_moves` is a dataset of conversations that teach the rules alone.
"""

from __future__ import annotations

from posttrain_recipes.plugin import Dataset, hookimpl
from ptl_textgames.guess import Guess
from ptl_textgames.legal import LegalMoves
from ptl_textgames.tictactoe import TicTacToe

PTL_API = 1


@hookimpl
def ptl_datasets() -> list[type[Dataset]]:
    """The datasets of this package."""
    return [TicTacToe, Guess, LegalMoves]
