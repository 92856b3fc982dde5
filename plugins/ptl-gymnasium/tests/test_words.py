"""Environments told in words."""

import gymnasium
import pytest
from ptl_gymnasium import words
from ptl_gymnasium.tasks import Gymnasium, GymnasiumPlay, GymTask

from posttrain_recipes.plugin import Conversation, Turn
from posttrain_recipes.testing import check_plugin


def lake(**more: object) -> GymTask:
    options = (("is_slippery", False),)
    return GymTask(env_id="FrozenLake-v1", seed=0, options=options, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", words.KNOWN)
def test_every_known_environment_can_be_played_in_words(name: str) -> None:
    if name not in gymnasium.registry:
        name = next(n for n in gymnasium.registry if n.startswith(name.split("-")[0]))
    task = GymTask(env_id=name, seed=3, max_turns=10)
    episode = task.start()
    said = words.telling(task.make()).actions
    turns = 0
    while (turn := episode.turn()) is not None:
        assert turn.messages[0].content
        (reward,) = episode.act(f"I say {said[turns % len(said)]}!")
        assert isinstance(reward, float)
        turns += 1
    assert 1 <= turns <= 10
    assert episode.metrics()["legal"] == 1.0


def test_the_lake_is_crossed() -> None:
    episode = lake().start()
    first = episode.turn()
    assert isinstance(first, Turn)
    assert first.messages[0].content.endswith("@FFF\nFHFH\nFFFH\nHFFG")
    rewards = [episode.act(word)[0] for word in ["down", "down", "right", "right", "down", "right"]]
    assert rewards == [0, 0, 0, 0, 0, 1]
    assert episode.turn() is None
    assert episode.metrics()["success"] == 1.0


def test_a_reply_without_an_action_ends_it() -> None:
    episode = lake(illegal=-0.5).start()
    assert episode.act("I would rather not.") == [-0.5]
    assert episode.turn() is None
    assert episode.metrics()["legal"] == 0.0


def test_an_episode_is_cut_off() -> None:
    episode = lake(max_turns=2).start()
    episode.act("left")
    episode.act("left")
    assert episode.turn() is None


def test_one_task_begins_the_same_way_each_time() -> None:
    task = GymTask(env_id="Blackjack-v1", seed=5)
    assert task.start().turn() == task.start().turn()


def test_the_last_action_that_is_named_counts() -> None:
    telling = words.telling(gymnasium.make("FrozenLake-v1"))
    assert telling.action("not left, RIGHT.") == 2
    assert telling.action("upright") is None


def test_an_unknown_environment_is_told() -> None:
    dataset = Gymnasium(Gymnasium.Config(env="FrozenLak-v1"))
    ((option, told),) = dataset.problems()
    assert option == "env"
    assert "no environment 'FrozenLak-v1'" in told


def test_play_by_chance_names_every_action_and_nothing_else() -> None:
    config = GymnasiumPlay.Config(env="FrozenLake-v1", episodes=20)
    said = []
    for record in GymnasiumPlay(config).load():
        assert isinstance(record, Conversation)
        roles = [message.role for message in record.messages]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        said += [message.content for message in record.messages[1::2]]
    assert set(said) == {"left", "down", "right", "up"}


@pytest.mark.parametrize("name", ["gymnasium", "gymnasium_play"])
def test_the_datasets_conform(name: str) -> None:
    check_plugin("dataset", name, episodes=5)
