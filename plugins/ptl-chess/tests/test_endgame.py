"""The endgame against python-chess and against what is known of it."""

import random

import chess
import pytest
from ptl_chess.endgame import (
    NEVER,
    Position,
    black_moves,
    canonical,
    is_legal,
    solve,
    white_moves,
)

from posttrain_recipes.testing import check_plugin


def board(position: Position, turn: chess.Color) -> chess.Board:
    made = chess.Board(None)
    for square, symbol in zip(position, "KQk", strict=True):
        made.set_piece_at(square, chess.Piece.from_symbol(symbol))
    made.turn = turn
    return made


def squares(made: chess.Board) -> Position | None:
    queens = list(made.pieces(chess.QUEEN, chess.WHITE))
    king, other = made.king(chess.WHITE), made.king(chess.BLACK)
    assert king is not None
    assert other is not None
    return (king, queens[0], other) if queens else None


@pytest.mark.parametrize("white", [True, False])
def test_the_rules_are_those_of_chess(white: bool) -> None:
    draw = random.Random(0)
    seen = 0
    while seen < 2000:
        position = (draw.randrange(64), draw.randrange(64), draw.randrange(64))
        if len(set(position)) < 3:
            continue
        made = board(position, chess.WHITE if white else chess.BLACK)
        assert made.is_valid() == is_legal(position, white_to_move=white)
        if not made.is_valid():
            continue
        seen += 1
        expected = set()
        for move in made.legal_moves:
            made.push(move)
            expected.add(squares(made))
            made.pop()
        assert set(white_moves(position) if white else black_moves(position)) == expected


def test_reflections_are_one_position() -> None:
    assert canonical((0, 1, 63)) == canonical((7, 6, 56)) == canonical((0, 8, 63))
    assert canonical(canonical((12, 33, 50))) == canonical((12, 33, 50))


def test_the_longest_mate_is_ten() -> None:
    game = solve()
    won = [d for d in game.white_distance if d < NEVER]
    assert max(won) == 10
    assert len(won) == len(game.white)  # white to move always wins


def test_every_distance_is_one_more_than_the_best_after_it() -> None:
    game = solve()
    for position, distance in enumerate(game.white_distance):
        after = [game.black_distance[n] for n in game.after_white[position]]
        assert distance == 1 + min(after)
    for position, distance in enumerate(game.black_distance):
        moves = game.after_black[position]
        if game.is_mate[position]:
            assert distance == 0
        elif not moves or -1 in moves:
            assert distance == NEVER
        else:
            assert distance == max(game.white_distance[n] for n in moves)


def test_a_known_mate_in_one() -> None:
    game = solve()
    position = (chess.parse_square("f6"), chess.parse_square("g1"), chess.parse_square("h8"))
    assert game.white_distance[game.number[canonical(position)]] == 1


def test_the_dataset_conforms() -> None:
    check_plugin("dataset", "kqk", positions=5)


def test_the_method_can_be_read() -> None:
    check_plugin("method", "chess_q_learning", work=False)
