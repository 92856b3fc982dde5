"""Episodes of several turns and seats, over a chat template that grows and one that does not."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import ClassVar

import pytest

from posttrain_recipes.datasets.nim import Nim, NimGame, NimTask
from posttrain_recipes.errors import UsageError
from posttrain_recipes.evals.episodes import Episodes as EpisodesEval
from posttrain_recipes.methods.grpo import GRPO
from posttrain_recipes.methods.self_play import SelfPlay
from posttrain_recipes.plugin import Episode, EvalContext, Message, Task, Turn
from posttrain_recipes.training.rl.episodes import EpisodeLimits, play
from posttrain_recipes.training.rl.sources import episodes
from tests.scripted import ASSISTANT, END, USER, Renderer, Sampler, source, spell, wait

LIMITS = EpisodeLimits(max_turns=6, max_tokens=4, temperature=1.0)


@dataclass
class Echo(Episode):
    """Answers `a`, `aa`, ... and ends after three replies, or at the reply x."""

    count: int = 0
    over: bool = False

    def turn(self) -> Turn | None:
        if self.over:
            return None
        role = "user" if self.count == 0 else "tool"
        return Turn((Message(role, "a" * (self.count + 1)),))

    def act(self, reply: str) -> Sequence[float]:
        self.count += 1
        self.over = self.count == 3 or reply == "x"
        return [float(len(reply))]

    def metrics(self) -> dict[str, float]:
        return {"success": float(self.count == 3), **({"rests": 0.0} if self.count == 3 else {})}


@dataclass(frozen=True, kw_only=True)
class EchoTask(Task):
    higher_is_better: ClassVar[Mapping[str, bool | None]] = {"rests": False}

    def start(self) -> Episode:
        return Echo()


def test_what_the_policy_wrote_is_kept_token_by_token() -> None:
    """The reply `b b` is parsed as `b b` and would be rendered with no space at its end."""
    sampler = Sampler(lambda tokens, index, seed: [*spell("b "), END])
    [one] = play([EchoTask()], 1, sampler, Renderer(), wait, LIMITS)  # type: ignore[arg-type]
    [segment] = one.players[0].segments
    reply = [*spell("b "), END]
    assert segment.tokens == [
        *(USER, *spell("a"), END, ASSISTANT, *reply),
        *(USER, *spell("aa"), END, ASSISTANT, *reply),
        *(USER, *spell("aaa"), END, ASSISTANT, *reply),
    ]
    own = [t for t, mine in zip(segment.tokens, segment.sampled, strict=True) if mine]
    assert own == reply * 3
    assert segment.own(segment.logprobs) == pytest.approx([-0.1, -0.2, -0.3] * 3)
    assert sum(segment.logprobs) == pytest.approx(-1.8)
    assert one.players[0].reward == 3.0
    assert one.turns == 3
    assert not one.sample(0).truncated


def test_a_reply_that_was_cut_is_ended_without_being_learned() -> None:
    sampler = Sampler(lambda tokens, index, seed: spell("bcd"))
    [one] = play([EchoTask()], 1, sampler, Renderer(), wait, LIMITS)  # type: ignore[arg-type]
    [segment] = one.players[0].segments
    first = [USER, *spell("a"), END, ASSISTANT, *spell("bcd"), END, USER]
    assert segment.tokens[: len(first)] == first
    assert not segment.sampled[len(first) - 2]
    assert one.sample(0).truncated


def test_where_the_template_rewrites_each_reply_is_a_sequence_of_its_own() -> None:
    sampler = Sampler(lambda tokens, index, seed: [*spell("b"), END])
    renderer = Renderer(rewrites=True)
    [one] = play([EchoTask()], 1, sampler, renderer, wait, LIMITS)  # type: ignore[arg-type]
    segments = one.players[0].segments
    assert [sum(segment.sampled) for segment in segments] == [2, 2, 2]
    assert [segment.tokens[:-2] for segment in segments] == [asked for asked, _, _ in sampler.asked]


@dataclass
class Forgetful(Echo):
    """The same, every turn of which is to be read alone."""

    def turn(self) -> Turn | None:
        turn = super().turn()
        return turn and replace(turn, fresh=True)


class ForgetfulTask(EchoTask):
    def start(self) -> Episode:
        return Forgetful()


def test_a_fresh_turn_is_read_alone_and_shown_with_the_others() -> None:
    sampler = Sampler(lambda tokens, index, seed: [*spell("b"), END])
    [one] = play([ForgetfulTask()], 1, sampler, Renderer(), wait, LIMITS)  # type: ignore[arg-type]
    asked = [[USER, *spell(told), END, ASSISTANT] for told in ("a", "aa", "aaa")]
    assert [tokens for tokens, _, _ in sampler.asked] == asked
    assert [segment.tokens for segment in one.players[0].segments] == [
        [*prompt, *spell("b"), END] for prompt in asked
    ]
    assert one.sample(0).completion == "b\n[tool] aa\nb\n[tool] aaa\nb"


def test_episodes_that_say_the_same_are_one_request() -> None:
    def script(tokens: list[int], index: int, seed: int) -> list[int]:
        return [*spell("x" if index == 0 else "b"), END]

    sampler = Sampler(script)
    plays = play([EchoTask()] * 4, 1, sampler, Renderer(), wait, LIMITS)  # type: ignore[arg-type]
    assert [count for _, count, _ in sampler.asked] == [4, 3, 2]
    assert len({seed for _, _, seed in sampler.asked}) == 3
    assert [one.turns for one in plays] == [1, 2, 3, 3]


def test_an_episode_that_goes_on_is_cut() -> None:
    sampler = Sampler(lambda tokens, index, seed: [*spell("b"), END])
    limits = EpisodeLimits(max_turns=2, max_tokens=4, temperature=1.0)
    [one] = play([EchoTask()], 1, sampler, Renderer(), wait, limits)  # type: ignore[arg-type]
    assert one.turns == 2
    assert one.unfinished
    assert one.sample(0).truncated


# --- groups --------------------------------------------------------------------------------------


def test_a_group_is_one_task_begun_often_with_a_group_for_each_seat() -> None:
    """Sticks 4: whoever moves first loses against one who leaves multiples of four."""
    task = NimTask(sticks=4, opponent="none", begins=True, seed=0)
    rng = random.Random(0)
    sampler = Sampler(lambda tokens, index, seed: [*spell(str(rng.randint(1, 3))), END])
    made = source(SelfPlay(SelfPlay.Config(group_size=6)), [task])
    first, second = made.roll(0, 3, sampler)  # type: ignore[arg-type]
    assert len(first.rollouts) == 6
    assert len(second.rollouts) <= 6  # one that never had a turn is left out
    assert set(first.rewards) <= {1.0, -1.0}
    assert {"return", "legal"} <= first.rollouts[0].parts.keys()


def test_self_play_needs_two_seats_and_an_environment_no_rewards() -> None:
    one = NimTask(sticks=4, opponent="random", begins=True, seed=0)
    assert source(GRPO(GRPO.Config()), [one]).seats == 1
    assert (
        source(GRPO(GRPO.Config()), [NimTask(sticks=4, opponent="none", begins=True, seed=0)]).seats
        == 2
    )
    stage = SimpleNamespace(name="s", rewards=[1], renderer=None)
    with pytest.raises(UsageError, match="rewards by itself"):
        episodes([one], stage, GRPO.Config(), None, 0)  # type: ignore[arg-type]


def test_the_eval_tells_returns_and_what_the_episodes_tell() -> None:
    sampler = Sampler(lambda tokens, index, seed: [*spell("x" if index else "bb"), END])
    context = EvalContext(
        name="e",
        seed=0,
        records=[EchoTask()] * 4,
        renderer=Renderer(),  # type: ignore[arg-type]
        sampler=sampler,  # type: ignore[arg-type]
        wait=wait,
    )
    result = EpisodesEval(EpisodesEval.Config()).evaluate(context)
    # One goes on with bb to the end; of the three that said x at once, none does.
    assert result.metrics["success"].value == 0.25
    assert result.metrics["return"].value == pytest.approx((6 + 1 + 1 + 1) / 4)
    assert result.metrics["turns"].value == pytest.approx((3 + 1 + 1 + 1) / 4)
    assert result.higher_is_better == {
        "success": True,
        "return": True,
        "turns": None,
        "rests": False,
    }
    assert result.scores["turns"].values == (3.0, 1.0, 1.0, 1.0)
    assert not result.scores["rests"].abstained, "of others before than after"
    assert result.scores["return"].abstained
    assert list(result.metrics)[:2] == ["success", "return"]
    assert "[tool] aa" in result.samples[0].completion


# --- nim -----------------------------------------------------------------------------------------


def game(sticks: int, opponent: str = "none") -> NimGame:
    return NimGame(sticks, opponent, random.Random(0))


def test_who_takes_the_last_stick_wins() -> None:
    played = game(4)
    assert [played.act("3"), played.act(" 1 ")] == [[0.0, 0.0], [-1.0, 1.0]]
    assert played.turn() is None


@pytest.mark.parametrize("reply", ["4", "0", "-1", "two", "", "1.", "٣", "3"])
def test_a_reply_that_is_no_move_costs_more_than_losing_and_is_nobodys_win(reply: str) -> None:
    played = game(2)
    assert played.act(reply) == [-2.0, 0.0]
    assert played.metrics() == {"legal": 0.0}


def test_a_perfect_opponent_wins_from_every_place_but_multiples_of_four() -> None:
    for sticks in range(1, 16):
        played = game(sticks, "perfect")
        played.player = 1
        played.answer()
        left = played.sticks
        assert (left % 4 == 0) == (sticks % 4 != 0)


def test_a_perfect_player_beats_everybody_from_there() -> None:
    for sticks in (5, 6, 7, 9, 15):
        for opponent in ("random", "perfect"):
            played, rewards = game(sticks, opponent), [0.0]
            while played.turn() is not None:
                rewards = list(played.act(str(played.sticks % 4 or 1)))
            assert rewards == [1.0]
            assert played.metrics()["success"] == 1.0


def test_tasks_are_the_same_each_time_and_seats_take_turns_to_begin() -> None:
    options = {"opponent": "random", "episodes": 20, "least": 5, "most": 9}
    first, second = (list(Nim(Nim.Config(**options)).load()) for _ in range(2))  # type: ignore[arg-type]
    assert first == second
    assert [t.begins for t in first] == [True, False] * 10  # type: ignore[attr-defined]
    assert {t.sticks for t in first} == {5, 6, 7, 8, 9}  # type: ignore[attr-defined]
    other = list(Nim(Nim.Config(seed=1, **options)).load())  # type: ignore[arg-type]
    assert other != first
