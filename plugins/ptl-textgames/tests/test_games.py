"""The games' rules, opponents and rewards."""

import itertools

import pytest
from ptl_textgames.game import Game, GameDataset
from ptl_textgames.guess import Guess, GuessGame
from ptl_textgames.legal import LegalMoves
from ptl_textgames.tictactoe import TicTacToe, TicTacToeGame, moves, value, won

from posttrain_recipes.plugin import Conversation, Task
from posttrain_recipes.testing import check_plugin


def first(dataset: GameDataset) -> Task:
    task = next(iter(dataset.load()))
    assert isinstance(task, Task)
    return task


def test_three_in_a_row_wins() -> None:
    assert won("XXX-OO---")
    assert won("O-XOX-X--")
    assert not won("XXOOOXXXO")


def test_nobody_has_to_lose() -> None:
    assert value("-" * 9) == 0


def test_the_values_are_those_of_playing_every_game() -> None:
    def slow(board: str) -> int:
        if won(board):
            return -1
        after = [board[:i] + mark(board) + board[i + 1 :] for i in range(9) if board[i] == "-"]
        return max((-slow(b) for b in after), default=0)

    def mark(board: str) -> str:
        return "XO"[board.count("X") != board.count("O")]

    for board in ("X---O----", "XOX-O--X-", "XO--X---O"):
        assert value(board) == slow(board)
        assert len(moves(board)) == board.count("-")


def test_self_play_gives_each_seat_its_own() -> None:
    game = TicTacToeGame("none", 0, 0)
    seats = []
    for move in "14253":
        turn = game.turn()
        assert turn is not None
        seats.append(turn.seat)
        rewards = game.act(move)
    assert seats == [0, 1, 0, 1, 0]
    assert rewards == [1.0, -1.0]
    assert game.turn() is None
    assert "X X X" in game.show()


@pytest.mark.parametrize("reply", ["10", "1", "none", "", " 2 and 3", "²"])
def test_a_reply_that_is_no_move_loses(reply: str) -> None:
    game = TicTacToeGame("none", 0, 0)
    game.act("1")
    assert game.act(reply) == [1.0, -1.0]
    assert game.metrics() == {"legal": 0.0}


def test_an_opponent_may_move_first() -> None:
    tasks = list(itertools.islice(TicTacToe(TicTacToe.Config(opponent="random")).load(), 2))
    boards = [task.start().turn().messages[0].content for task in tasks]  # type: ignore[attr-defined]
    assert "You are X" in boards[0]
    assert "You are O" in boards[1]


def test_the_perfect_opponent_never_loses() -> None:
    for seed in range(40):
        game: Game = TicTacToeGame("perfect", seed % 2, seed).begin()
        while game.turn() is not None:
            game.act(game.rng.choice(list(game.legal())))
        assert game.metrics()["success"] == 0.0


def test_the_greedy_opponent_takes_a_win_where_there_is_one() -> None:
    game = TicTacToeGame("greedy", 1, 0)
    game.board = "XX-OO----"
    assert game.winning() == ["3"]
    game.begin()
    assert game.winner == 0
    game = TicTacToeGame("greedy", 1, 0).begin()  # type: ignore[assignment]
    assert game.winning() == []
    assert len(game.moves) == 1


def test_a_number_is_sure_once_no_other_is_left() -> None:
    game = GuessGame("greedy", 0, 0, numbers=(4, 1), most=5)
    game.act("3")
    assert game.winning() == []
    game.act("5")
    assert game.winning() == ["4"]


def test_two_perfect_players_draw() -> None:
    game = TicTacToeGame("perfect", 0, 0)
    while game.turn() is not None:
        rewards = game.act(game.best()[0])
    assert rewards == [0.0]
    assert game.metrics()["unbeaten"] == 1.0


def test_an_opening_is_never_the_end() -> None:
    boards = set()
    for task in TicTacToe(TicTacToe.Config(opening=6, episodes=200)).load():
        assert isinstance(task, Task)
        game = task.start()
        assert isinstance(game, TicTacToeGame)
        assert game.turn() is not None
        assert game.player == len(game.moves) % 2
        boards.add(game.board)
    assert {board.count("-") for board in boards} == set(range(3, 10))


def test_a_task_begins_the_same_way_each_time() -> None:
    task = first(TicTacToe(TicTacToe.Config(opponent="random", seed=3)))
    assert task.start().act("5") == task.start().act("5")


def test_guesses_move_the_bounds() -> None:
    game = GuessGame("none", 0, 0, numbers=(4, 8), most=9)
    assert game.act("2") == [0.0, 0.0]
    assert game.prompt() == "A number from 1 to 9. Say one."
    assert game.act("9") == [0.0, 0.0]
    assert game.prompt() == "A number from 3 to 9. Say one."
    assert game.act("7") == [0.0, 0.0]
    assert game.prompt() == "A number from 1 to 8. Say one."
    assert game.act("8") == [-1.0, 1.0]


def test_the_best_guesses_need_the_fewest_on_average() -> None:
    def total(numbers: range, guess: int) -> int:
        """Guesses over all hidden numbers, the rest of them played without mistakes."""
        parts = [range(numbers[0], guess), range(guess + 1, numbers[-1] + 1)]
        return len(numbers) + sum(min(total(p, g) for g in p) for p in parts if p)

    for most in range(1, 9):
        game = GuessGame("none", 0, 0, numbers=(1, 1), most=most)
        totals = {str(g): total(range(1, most + 1), g) for g in range(1, most + 1)}
        assert game.best() == [g for g in totals if totals[g] == min(totals.values())]


def test_legal_moves_teach_the_rules() -> None:
    for game in ("tictactoe", "guess"):
        dataset = LegalMoves(LegalMoves.Config(game=game, count=50))
        records = list(dataset.load())
        assert len(records) == 50
        for record in records:
            assert isinstance(record, Conversation)
            asked, said = record.messages
            if game == "tictactoe":
                assert said.content in asked.content
            else:
                words = asked.content.replace(".", "").split()
                low, high = (int(word) for word in words if word.isdigit())
                assert low <= int(said.content) <= high


@pytest.mark.parametrize("name", ["tictactoe", "guess", "legal_moves"])
def test_the_datasets_conform(name: str) -> None:
    check_plugin("dataset", name, **({"count": 5} if name == "legal_moves" else {"episodes": 5}))


def test_both_games_are_listed() -> None:
    assert first(Guess(Guess.Config())).start().turn() is not None
