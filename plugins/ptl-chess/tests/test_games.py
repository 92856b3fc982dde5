"""Games: of a table of values, and of a language model."""

import random
from pathlib import Path

import chess
import pytest
from ptl_chess.endgame import solve
from ptl_chess.learning import greedy, learn, play, won_positions
from ptl_chess.tasks import KQK, KQKMoves, Mate, board_svg, fen

import posttrain_recipes as ptl
from posttrain_recipes.plugin import Conversation
from posttrain_recipes.reporting import report
from posttrain_recipes.testing import check_plugin

RECIPES = Path(__file__).parents[1] / "recipes"
ONE = (chess.parse_square("f6"), chess.parse_square("g1"), chess.parse_square("h8"))


def test_the_exact_table_mates_in_the_shortest_way() -> None:
    game = solve()
    best = [-float(d) for d in game.black_distance]
    for start in random.Random(0).sample(won_positions(game), 50):
        played = play(game, start, greedy(game, best), "best", random.Random(0))
        assert played.mated
        assert played.moves == played.best == game.white_distance[start]


def test_learning_in_two_parts_is_learning_in_one() -> None:
    game = solve()
    how = {"alpha": 0.5, "gamma": 0.95, "epsilon": 0.1, "defender": "random", "seed": 3}
    whole, parts = [0.0] * len(game.black), [0.0] * len(game.black)
    list(learn(game, whole, range(200), 200, **how))  # type: ignore[arg-type]
    for part in (range(70), range(70, 200)):
        list(learn(game, parts, part, 200, **how))  # type: ignore[arg-type]
    assert whole == parts


def test_q_learning_mates_nearly_always_and_nearly_as_fast_as_can_be(tmp_path: Path) -> None:
    result = ptl.run(
        RECIPES / "kqk.yaml",
        home=tmp_path,
        overrides=["stages.best.method.games=40000", "stages.random.method.games=20000"],
    )
    before, after = result["best"].before["q_learning"], result["best"].after["q_learning"]
    assert before["mate"].high < 0.2
    assert after["mate"].low > 0.9
    assert after["excess"].value < 2.0
    assert result["random"].after["q_learning"]["mate"].low > 0.9
    verdicts = {(row.stage, row.metric): row.verdict for row in report.rows(result.record)}
    assert verdicts["best", "mate"] == "better"
    assert verdicts["best", "moves"] == verdicts["best", "excess"] == "", "of other games"
    drawn = tmp_path / "runs" / result.run_id / "artifacts" / "best" / "game.html"
    assert drawn.read_text().count("<svg") > 1


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_recipe_runs(path: Path, tmp_path: Path) -> None:
    assert ptl.run(path, preset="tiny", home=tmp_path).status == "finished"


def mate(**more: object) -> Mate:
    return Mate(position=ONE, seed=0, **more)  # type: ignore[arg-type]


def test_a_language_model_mates() -> None:
    episode = mate().start()
    turn = episode.turn()
    assert turn is not None
    assert turn.messages[0].content.endswith("7k/8/5K2/8/8/8/8/6Q1 w")
    assert episode.act("I play g1-g7, mate!") == [1.0]
    assert episode.turn() is None
    assert episode.metrics() == {"mate": 1.0, "legal": 1.0, "excess": 0.0}
    assert episode.show().startswith("<svg")


def test_an_illegal_move_ends_it() -> None:
    episode = mate(illegal=-2.0).start()
    assert episode.act("g1b5") == [-2.0]
    assert episode.turn() is None
    assert episode.metrics()["legal"] == 0.0


def test_a_stalemate_is_a_draw() -> None:
    squares = tuple(chess.parse_square(name) for name in ("f7", "g1", "h8"))
    position = (squares[0], squares[1], squares[2])
    episode = Mate(position=position, seed=0).start()
    assert episode.act("g1g6") == [0.0]
    assert episode.metrics()["mate"] == 0.0


def test_moves_are_told_where_that_is_asked_for() -> None:
    turn = mate(show_moves=True).start().turn()
    assert turn is not None
    moves = turn.messages[0].content.splitlines()[-1].removeprefix("moves: ").split()
    board = chess.Board(None)
    for square, symbol in zip(ONE, "KQk", strict=True):
        board.set_piece_at(square, chess.Piece.from_symbol(symbol))
    assert sorted(moves) == sorted(move.uci() for move in board.legal_moves)


def test_the_squares_are_told_where_that_is_asked_for() -> None:
    turn = mate(show_squares=True).start().turn()
    assert turn is not None
    assert turn.messages[0].content.endswith("6Q1 w\nKf6 Qg1 kh8")


def test_the_moves_to_imitate_are_legal_and_various() -> None:
    config = KQKMoves.Config(positions=40, min_distance=4)
    said = set()
    for record in KQKMoves(config).load():
        assert isinstance(record, Conversation)
        asked, told = (message.content for message in record.messages)
        board = chess.Board(f"{asked.splitlines()[1]} - - 0 1")
        assert chess.Move.from_uci(told) in board.legal_moves
        said.add(told)
    assert len(said) > 20


def test_only_positions_of_the_distance_that_is_asked_for() -> None:
    config = KQK.Config(positions=30, min_distance=2, max_distance=3)
    found = {_distance(task) for task in KQK(config).load() if isinstance(task, Mate)}
    assert found == {2, 3}


@pytest.mark.parametrize("name", ["kqk", "kqk_moves"])
def test_the_datasets_conform(name: str) -> None:
    check_plugin("dataset", name, positions=5)


def test_coming_nearer_may_be_worth_something() -> None:
    dataset = KQK(KQK.Config(positions=30, progress=0.1, seed=4))
    game = solve()
    from ptl_chess.endgame import canonical
    from ptl_chess.tasks import white_words

    task = next(t for t in dataset.load() if isinstance(t, Mate) and _distance(t) > 2)
    words = white_words(task.position)
    best = min(words, key=lambda w: _after(game, words[w]))
    assert task.start().act(best) == [0.1]
    assert canonical(task.position) == task.position


def _distance(task: Mate) -> int:
    from ptl_chess.endgame import canonical

    game = solve()
    return game.white_distance[game.number[canonical(task.position)]]


def _after(game: object, position: tuple[int, int, int]) -> int:
    from ptl_chess.endgame import NEVER, black_moves, canonical

    solved = solve()
    replies = list(black_moves(position))
    if not replies or None in replies:
        return NEVER
    return max(solved.white_distance[solved.number[canonical(p)]] for p in replies if p)


def test_the_board_is_drawn() -> None:
    assert fen(ONE) == "7k/8/5K2/8/8/8/8/6Q1 w"
    assert board_svg(ONE).startswith("<svg")
