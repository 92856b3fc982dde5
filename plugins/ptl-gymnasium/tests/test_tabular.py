"""Tables of values: the update, the discretization, what is learned."""

import gymnasium
import numpy as np
import pytest
from ptl_gymnasium.methods import _result
from ptl_gymnasium.tabular import (
    QTable,
    Schedule,
    discretizer,
    learn,
    play,
    random_episodes,
)


def test_the_update_is_watkins() -> None:
    table = QTable(actions=2, alpha=0.5, gamma=0.9)
    table.row("b")[:] = [1.0, 3.0]
    table.row("a")[:] = [0.0, 2.0]
    error = table.update("a", 1, reward=1.0, after="b")
    assert error == pytest.approx(1.0 + 0.9 * 3.0 - 2.0)
    assert table.row("a")[1] == pytest.approx(2.0 + 0.5 * error)


def test_an_end_is_worth_nothing_more() -> None:
    table = QTable(actions=2, alpha=1.0, gamma=0.9)
    table.update("a", 0, reward=-1.0, after=None)
    assert table.row("a")[0] == -1.0


def test_a_falling_step_size_is_the_mean_of_what_was_seen() -> None:
    table = QTable(actions=1, alpha=None)
    draw = np.random.default_rng(0)
    for reward in draw.normal(3.0, 1.0, 4000):
        table.update("a", 0, float(reward), None)
    assert table.row("a")[0] == pytest.approx(3.0, abs=0.15)


def test_exploration_falls_and_stays() -> None:
    schedule = Schedule(start=1.0, end=0.1, decay=0.5)
    assert [round(schedule.epsilon(n, 10), 2) for n in (0, 1, 5, 9)] == [1.0, 0.82, 0.1, 0.1]


def test_cartpole_is_cut_into_intervals() -> None:
    to_state = discretizer(gymnasium.make("CartPole-v1"))
    assert to_state([0.0, 0.0, -0.2, -5.0])[2:] == (0, 0)
    assert to_state([0.0, 0.0, 0.2, 5.0])[2:] == (8, 11)


def test_other_continuous_worlds_are_refused() -> None:
    with pytest.raises(ValueError, match="no table can hold"):
        discretizer(gymnasium.make("MountainCar-v0"))


def test_chance_keeps_the_pole_up_for_about_22_steps() -> None:
    episodes = list(random_episodes(gymnasium.make("CartPole-v1"), 400, seed=0))
    assert np.mean([e.length for e in episodes]) == pytest.approx(22, abs=2)


def test_learning_in_two_parts_is_learning_in_one() -> None:
    env = gymnasium.make("FrozenLake-v1")
    whole, parts = QTable(4, None), QTable(4, None)
    list(learn(env, whole, range(300), 300, Schedule(), seed=1))
    for part in (range(100), range(100, 300)):
        list(learn(env, parts, part, 300, Schedule(), seed=1))
    assert whole.values.keys() == parts.values.keys()
    for state, row in whole.values.items():
        np.testing.assert_array_equal(row, parts.values[state])


def test_the_cliff_is_walked_along_by_the_shortest_way() -> None:
    env = gymnasium.make("CliffWalking-v1", max_episode_steps=200)
    table = QTable(4, alpha=0.5)
    list(learn(env, table, range(500), 500, Schedule(), seed=0))
    assert play(env, table.greedy, discretizer(env), seed=7).reward == -13


def test_more_reward_is_better_and_a_longer_episode_neither_way() -> None:
    """Length +23 on FrozenLake is no good by itself: there it takes longer to the goal."""
    episodes = list(random_episodes(gymnasium.make("FrozenLake-v1"), 20, seed=0))
    found = _result(episodes)
    assert found.higher_is_better == {"return": True, "length": None}
    assert found.scores["return"].values == tuple(one.reward for one in episodes)
    assert found.scores["length"].values == tuple(float(one.length) for one in episodes)
