"""Environments of tinker-cookbook as ours: what is told, what is rewarded, what is refused."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import pytest

from posttrain_recipes import registry
from posttrain_recipes.datasets.cookbook import Cookbook
from posttrain_recipes.errors import RecipeError, UsageError
from posttrain_recipes.plugin import Episode, Message, Turn
from posttrain_recipes.testing.environments import environment_checks
from tests.conftest import Project

pytest.importorskip("tinker_cookbook")

MINE = """
from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from tinker_cookbook.renderers import get_text_content
from tinker_cookbook.rl.message_env import EnvFromMessageEnv, MessageEnv, MessageStepResult
from tinker_cookbook.rl.types import EnvGroupBuilder
from tinker_cookbook.tool_use import build_agent_tool_env, simple_tool_result, tool


@dataclass
class Count(MessageEnv):
    start: int
    said: int = 0
    forgets: bool = False

    async def initial_observation(self):
        self.messages = [{"role": "user", "content": f"Begin at {self.start}."}]
        return self.messages

    async def step(self, message):
        right = get_text_content(message) == str(self.start + self.said)
        self.said += 1
        told = {"role": "user", "content": "Go on."}
        if self.forgets:
            self.messages = [told]
        else:
            self.messages += [message, told]
        return MessageStepResult(
            float(right), self.said == 3, self.messages, {"right": float(right)}
        )


def counts(many=2, forgets=False):
    return [partial(Count, 5 * n, forgets=forgets) for n in range(many)]


async def waits(many):
    return counts(many)


class Groups(EnvGroupBuilder):
    def __init__(self, size, renderer=None):
        self.size, self.renderer = size, renderer

    async def make_envs(self):
        return [EnvFromMessageEnv(self.renderer, Count(7)) for _ in range(self.size)]


def groups(renderer, size):
    return [Groups(size, renderer)]


class Compares(Groups):
    async def compute_group_rewards(self, trajectories, envs):
        return [(1.0, {})]


class CleansUp(Groups):
    async def cleanup(self):
        pass


def compares():
    return [Compares(1)]


def cleans_up():
    return [CleansUp(1)]


def begun():
    return [Count(1)]


def nothing():
    return 3


def fails():
    raise LookupError("no such file")


@tool
async def add(a: int, b: int):
    '''Add two numbers.'''
    return simple_tool_result(str(a + b))


async def graded(history):
    return float(history[-1]["content"] == "5"), {"messages": float(len(history))}


def agents(renderer):
    system = renderer.create_conversation_prefix_with_tools([add.to_spec()], "Use the tool.")
    asked = [*system, {"role": "user", "content": "2 + 3?"}]
    return [lambda: build_agent_tool_env(renderer, [add], asked, graded, max_turns=3)]


def pictures():
    class Picture(Count):
        async def initial_observation(self):
            return [{"role": "user", "content": [{"type": "image", "image": "x.png"}]}]

    return [partial(Picture, 1)]
"""


@pytest.fixture
def beside(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(MINE)
    return tmp_path


def episodes(beside: Path, call: str, **arguments: Any) -> list[Episode]:
    config = Cookbook.Config(call=f"mine:{call}", arguments=arguments)
    return [task.start() for task in Cookbook(config, beside).load()]  # type: ignore[attr-defined]


def user(text: str) -> Turn:
    return Turn((Message("user", text),))


def test_a_message_environment_is_told_from_and_rewards(beside: Path) -> None:
    first, second = episodes(beside, "counts")
    assert second.turn() == user("Begin at 5.")
    assert first.turn() == user("Begin at 0.")
    assert first.act("0") == [1.0]
    assert first.turn() == user("Go on.")
    assert first.act("7") == [0.0]
    assert first.act("2") == [1.0]
    assert first.turn() is None
    assert first.metrics() == {"right": pytest.approx(2 / 3)}
    assert second.act("5") == [1.0]


def test_a_rewritten_conversation_is_read_afresh(beside: Path) -> None:
    episode = episodes(beside, "counts", forgets=True)[0]
    episode.act("0")
    assert episode.turn() == Turn((Message("user", "Go on."),), fresh=True)


def test_a_reply_that_was_cut_ends_it_as_in_the_cookbook(beside: Path) -> None:
    episode = episodes(beside, "counts")[0]
    episode.truncated = True
    assert episode.act("0") == [-0.1]
    assert episode.turn() is None
    assert episode.metrics() == {"max_tokens_reached": 1.0, "stop/max_tokens": 1.0}


@pytest.mark.parametrize(("call", "given"), [("waits", {"many": 3}), ("groups", {"size": 1})])
def test_what_a_function_may_return(beside: Path, call: str, given: dict[str, Any]) -> None:
    for episode in episodes(beside, call, **given):
        assert str(episode.turn()).count("Begin at") == 1


def test_the_cookbooks_tools_are_called(beside: Path) -> None:
    (episode,) = episodes(beside, "agents")
    began = episode.turn()
    assert began
    assert [message.role for message in began.messages] == ["system", "user"]
    assert '"name": "add"' in began.messages[0].content
    call = '<tool_call>\n{"name": "add", "arguments": {"a": 2, "b": 3}}\n</tool_call>'
    assert episode.act(call) == [0.0]
    assert episode.turn() == Turn((Message("tool", "5"),))
    assert episode.act("5") == [1.0]
    assert episode.turn() is None
    assert episode.metrics()["messages"] == 5  # system, question, call, result, answer


@pytest.mark.parametrize(
    ("call", "given", "told"),
    [
        ("groups", {"size": 2}, "makes groups of 2 environments"),
        ("compares", {}, "Compares compares the episodes of a group"),
        ("cleans_up", {}, "CleansUp cleans up after a group"),
        ("begun", {}, "it returns Count objects"),
        ("nothing", {}, "it returns a int"),
        ("fails", {}, "'fails' makes no environments"),
        ("pictures", {}, "a part of type 'image'; ptl reads text alone"),
    ],
)
def test_what_cannot_be_played_is_refused(
    beside: Path, call: str, given: dict[str, Any], told: str
) -> None:
    with pytest.raises(UsageError) as caught:
        episodes(beside, call, **given)
    assert told in caught.value.what


def test_a_module_that_cannot_be_imported_is_named(beside: Path) -> None:
    (beside / "mine.py").write_text("import no_such_module\n\n\ndef counts():\n    pass\n")
    with pytest.raises(UsageError, match="mine.py cannot be imported") as caught:
        episodes(beside, "counts")
    assert caught.value.why == "ModuleNotFoundError: No module named 'no_such_module'"


def test_an_installed_recipe_is_played_by_name(tmp_path: Path) -> None:
    config = Cookbook.Config(
        call="tinker_cookbook.recipes.multiplayer_rl.guess_number.env:GuessNumberDatasetBuilder",
        arguments={
            "renderer_name": "ptl",
            "model_name": "ptl",
            "batch_size": 8,
            "train_group_size": 1,
            "test_group_size": 1,
        },
        split="test",
    )
    made = Cookbook(config, tmp_path)
    assert not list(made.problems())
    assert str(made.digest()).endswith(importlib.metadata.version("tinker-cookbook"))
    tasks = list(made.load())
    assert len(tasks) == 103
    episode = tasks[0].start()  # type: ignore[attr-defined]
    low, high = 0, 1024
    while episode.turn():
        middle = (low + high) // 2
        reward = episode.act(f"Guess: {middle}")
        if turn := episode.turn():
            low, high = (middle, high) if "low" in turn.messages[0].content else (low, middle)
    assert reward == [1.0]


def test_it_holds_what_every_environment_has_to(beside: Path) -> None:
    class Beside(Cookbook):
        def __init__(self, config: Any, base_dir: Path = beside) -> None:
            super().__init__(config, base_dir)

    entry = registry.Entry("dataset", Beside, "posttrain-recipes", "0")
    found = environment_checks(entry, {"call": "mine:counts"})
    assert len(found) == 3
    assert {one.check: one.told for one in found if not one.passed} == {}


RECIPE = """\
name: mine
model: ./model
stages:
  - name: rl
    dataset: {use: cookbook, call: "CALL"}
    method: {use: grpo, max_steps: 2}
"""


@pytest.mark.parametrize(
    ("call", "key", "told"),
    [
        ("mine:conts", "call", "mine.py has no function 'conts'"),
        ("yours:counts", "call", "no module 'yours' is installed"),
        ("mine", "call", "reads module:function"),
        ("mine:waits", "arguments", "'waits' needs the argument 'many'"),
    ],
)
def test_faults_are_found_before_anything_runs(
    project: Project, call: str, key: str, told: str
) -> None:
    (project.path / "mine.py").write_text(MINE)
    with pytest.raises(RecipeError) as caught:
        project.plan(RECIPE.replace("CALL", call))
    [fault] = caught.value.faults
    assert fault.key == f"stages.rl.dataset.{key}"
    assert told in fault.message


def test_without_the_cookbook_the_recipe_is_told_what_to_install(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project.path / "mine.py").write_text(MINE)
    monkeypatch.setattr(registry, "_installed", lambda module: module != "tinker_cookbook")
    with pytest.raises(RecipeError) as caught:
        project.plan(RECIPE.replace("CALL", "mine:counts"))
    [fault] = caught.value.faults
    assert fault.message == (
        "dataset 'cookbook' needs tinker_cookbook, not installed here; "
        "pip install 'posttrain-recipes[cookbook]'"
    )
