"""Prompts with tools: which calls are run, what comes of them, and what is refused."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from posttrain_recipes.datasets.jsonl import Jsonl
from posttrain_recipes.datasets.tools import Tools
from posttrain_recipes.errors import RecipeError
from posttrain_recipes.methods.grpo import GRPO
from posttrain_recipes.plugin import Dataset, Episode, Message, Sample, Turn
from posttrain_recipes.rewards.exact_match import ExactMatchReward
from posttrain_recipes.training.rl.episodes import EpisodeLimits, Play
from posttrain_recipes.training.text.chat_template import load_renderer
from tests.conftest import ROOT, Project
from tests.scripted import END, Sampler, source, spell

MINE = """
import threading


def double(text):
    '''Twice a number.'''
    return 2 * int(text)


async def greet(name: str, times: int = 1):
    return "hello " * times + name


def stuck(text):
    threading.Event().wait(60)


def long(text):
    return "x" * 5000


def two(a, b):
    return a
"""


@pytest.fixture
def beside(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "q.jsonl").write_text('{"prompt": "Twice 21?", "answer": "42"}\n')
    return tmp_path


def made(beside: Path, *tools: str, data: Mapping[str, Any] | None = None, **options: Any) -> Tools:
    jsonl = {"use": "jsonl", "path": "q.jsonl", **(data or {})}
    whole = {
        "data": jsonl,
        "tools": [f"mine:{name}" for name in tools],
        "reward": {"use": "exact_match"},
        "format": "tag",
        "describe": False,
        **options,
    }
    dataset = Tools(Tools.Config.model_validate(whole), beside)
    inner = {key: value for key, value in jsonl.items() if key != "use"}
    parts: list[Dataset] = [Jsonl(Jsonl.Config.model_validate(inner), beside)]
    dataset.sources = {"data": parts}
    dataset.rewards = {"reward": ExactMatchReward(ExactMatchReward.Config())}
    return dataset


def begin(beside: Path, *tools: str, **options: Any) -> Episode:
    (task,) = made(beside, *tools, **options).load()
    return task.start()  # type: ignore[attr-defined]


def told(episode: Episode) -> list[str]:
    turn = episode.turn()
    assert turn
    assert {message.role for message in turn.messages} == {"tool"}
    return [message.content for message in turn.messages]


def test_a_tool_is_called_and_the_answer_rewarded(beside: Path) -> None:
    episode = begin(beside, "double")
    assert episode.turn() == Turn((Message("user", "Twice 21?"),))
    assert episode.act("Let me see: <double>21</double>") == [0.0]
    assert told(episode) == ["42"]
    assert episode.act("42") == [1.0]
    assert episode.turn() is None
    assert episode.metrics() == {"tool_calls": 1.0, "tool_errors": 0.0, "exact_match": 1.0}


def test_the_answer_may_come_at_once(beside: Path) -> None:
    episode = begin(beside, "double")
    assert episode.act("<triple>14</triple>") == [0.0]
    assert episode.turn() is None
    assert episode.metrics()["tool_calls"] == 0


def call(tool: str, **arguments: Any) -> str:
    said = json.dumps({"name": tool, "arguments": arguments})
    return f"<tool_call>\n{said}\n</tool_call>"


def test_calls_as_json_are_checked_against_the_function(beside: Path) -> None:
    episode = begin(beside, "greet", "double", format="json", max_calls=9)
    episode.act(call("greet", name="Ada", times=2) + call("double", text="4"))
    assert told(episode) == ["hello hello Ada", "8"]
    assert episode.metrics()["tool_errors"] == 0
    for reply, error in (
        (call("greet", name="Ada", times="many"), "error: times: Input should be a valid integer"),
        (call("greet"), "error: name: Missing required argument"),
        (call("shout", name="Ada"), "error: there is no 'shout'; there is greet, double"),
        ("<tool_call>{oops</tool_call>", 'error: a call reads {"name": "...", "arguments"'),
        ('<tool_call>["double"]</tool_call>', "error: a call reads"),
    ):
        assert episode.act(reply) == [0.0]
        assert told(episode)[0].startswith(error)
    assert episode.metrics() == {"tool_calls": 7.0, "tool_errors": 5.0}


def test_a_tool_that_fails_is_late_or_says_too_much(beside: Path) -> None:
    episode = begin(beside, "double", "stuck", "long", timeout=0.05, max_result=10, max_calls=3)
    episode.act("<double>x</double>")
    assert told(episode) == ["error: inv"]
    episode.act("<stuck></stuck>")
    assert told(episode) == ["error: 'stuck' took longer than 0.05 s"]
    episode.act("<long></long>")
    assert told(episode) == ["x" * 10]
    assert episode.metrics()["tool_errors"] == 2


def test_calls_are_bounded(beside: Path) -> None:
    one = "<double>1</double>"
    episode = begin(beside, "double", max_calls=2)
    episode.act(one)
    episode.act(one)
    assert episode.act(one) == [0.0]
    assert episode.turn() is None, "it counts as the answer"
    assert begin(beside, "double", max_calls=2).act(3 * one) == [0.0]


def test_the_model_is_told_of_its_tools(beside: Path) -> None:
    turn = begin(beside, "double", describe=True).turn()
    assert turn
    assert turn.messages[0] == Message(
        "system", "You can call these tools:\n<double>...</double>: Twice a number."
    )
    turn = begin(beside, "greet", describe=True, format="json").turn()
    assert turn
    system = turn.messages[0].content
    assert '"name": "greet"' in system
    assert '"times": {"default": 1, "title": "Times", "type": "integer"}' in system
    assert turn.messages[1].content == "Twice 21?"


def test_what_a_tool_says_is_not_learned(beside: Path) -> None:
    """Only the policy's own tokens; the conversation stays one sequence."""
    renderer = load_renderer(str(ROOT / "posttrain_recipes" / "models" / "tiny"))
    task = next(iter(made(beside, "double").load()))
    play = Play.of(task, renderer, EpisodeLimits(4, 64, 1.0))  # type: ignore[arg-type]
    for reply in ("<double>21</double>", "42"):
        tokens = [*renderer._tokenizer.encode(reply), *renderer.stop[:1]]
        play.say(play.prompt(), tokens, [-0.5] * len(tokens))
    [segment] = play.players[0].segments
    own = [t for t, sampled in zip(segment.tokens, segment.sampled, strict=True) if sampled]
    assert renderer.decode(own).count("42") == 1
    assert renderer.decode(segment.tokens).count("42") == 2
    assert "tool\n42" in renderer.decode(segment.tokens)


RECIPE = """\
name: mine
model: ./model
stages:
  - name: rl
    dataset: {use: tools, data: {use: jsonl, path: questions.jsonl}, tools: [TOOL], reward: REWARD}
    method: {use: grpo}
"""


@pytest.mark.parametrize(
    ("tool", "reward", "key", "message"),
    [
        ('"mine:dbl"', "{use: exact_match}", "tools", "mine.py has no function 'dbl'"),
        ('"mine:double", "mine:double"', "{use: exact_match}", "tools", "two tools are called"),
        ('"mine:double"', "{use: judge}", "reward", "'judge' asks a model"),
        ('"mine:double"', "{use: exact_match, extract: a}", "reward.extract", "must be one of"),
    ],
)
def test_faults_are_found_before_anything_runs(
    project: Project, tool: str, reward: str, key: str, message: str
) -> None:
    project.write("mine.py", MINE)
    with pytest.raises(RecipeError) as caught:
        project.plan(RECIPE.replace("TOOL", tool).replace("REWARD", reward))
    told = [f"{fault.key} {fault.message}" for fault in caught.value.faults]
    assert any(f"stages.rl.dataset.{key}" in one and message in one for one in told), told


def test_a_tag_holds_one_text(beside: Path) -> None:
    [(key, told)] = made(beside, "two").problems()
    assert (key, told) == ("tools", "'two' has to take one text, or say 'format: json'")
    assert not list(made(beside, "two", format="json").problems())


def test_a_changed_tool_is_another_environment(project: Project) -> None:
    recipe = RECIPE.replace("TOOL", '"mine:double"').replace("REWARD", "{use: exact_match}")
    project.write("mine.py", MINE)
    before = project.plan(recipe).fingerprint
    assert project.plan(recipe).fingerprint == before
    project.write("mine.py", MINE.replace("2 *", "3 *"))
    assert project.plan(recipe).fingerprint != before


def test_a_changed_reward_is_another_environment(project: Project) -> None:
    project.write("mine.py", MINE)
    project.write("judged.py", "def score(sample):\n    return 1\n")
    reward = '{use: function, call: "judged:score"}'
    recipe = RECIPE.replace("TOOL", '"mine:double"').replace("REWARD", reward)
    before = project.plan(recipe).fingerprint
    project.write("judged.py", "def score(sample):\n    return 2\n")
    assert project.plan(recipe).fingerprint != before


def test_a_reward_that_abstains_leaves_the_episode_without_one(beside: Path) -> None:
    (beside / "q.jsonl").write_text('{"prompt": "Twice 21?"}\n')
    episode = begin(beside, "double")
    assert episode.act("<double>21</double>") == [0.0]
    assert episode.act("42") == [None]
    assert episode.turn() is None
    assert episode.metrics() == {"tool_calls": 1.0, "tool_errors": 0.0}


@pytest.mark.parametrize(
    ("answer", "options", "counts"),
    [
        ("", {}, {"abstained": 4}),
        (', "answer": "42"', {}, {"failed": 4, "retried": 8}),
        (', "answer": "42"', {"retries": 0, "reward_timeout": 0.05}, {"timed_out": 4}),
    ],
)
def test_a_reward_without_an_answer_is_counted_as_in_rl_on_prompts(
    beside: Path, answer: str, options: dict[str, Any], counts: dict[str, int]
) -> None:
    class Fails(ExactMatchReward):
        def score(self, samples: Sequence[Sample]) -> list[float | None]:
            if all(sample.answer is None for sample in samples):
                return super().score(samples)
            if options:
                threading.Event().wait(60)
            raise LookupError("no such grader")

    (beside / "q.jsonl").write_text(f'{{"prompt": "Twice 21?"{answer}}}\n')
    dataset = made(beside, "double")
    dataset.rewards = {"reward": Fails(ExactMatchReward.Config())}
    rolled = source(GRPO(GRPO.Config(group_size=4, **options)), list(dataset.load()))  # type: ignore[arg-type]
    sampler = Sampler(lambda tokens, index, seed: [*spell("42"), END])
    [group] = rolled.roll(0, 1, sampler)  # type: ignore[arg-type]
    assert group.rewards == []
    assert {name: count for name, count in group.counts.items() if count} == counts


def test_a_reward_that_hangs_once_does_not_keep_the_other_episodes_waiting(beside: Path) -> None:
    """One call at a time: the one that hangs gives its place up when its time is over."""
    hung = threading.Event()
    one_at_a_time = threading.Lock()

    class Hangs(ExactMatchReward):
        @property
        def lock(self) -> AbstractContextManager[object]:
            return one_at_a_time

        def score(self, samples: Sequence[Sample]) -> list[float | None]:
            if not hung.is_set():
                hung.set()
                threading.Event().wait(60)
            return super().score(samples)

    dataset = made(beside, "double")
    dataset.rewards = {"reward": Hangs(ExactMatchReward.Config())}
    config = GRPO.Config(group_size=4, reward_timeout=0.2, retries=5)
    rolled = source(GRPO(config), list(dataset.load()))  # type: ignore[arg-type]
    sampler = Sampler(lambda tokens, index, seed: [*spell("42"), END])
    [group] = rolled.roll(0, 1, sampler)  # type: ignore[arg-type]
    assert group.rewards == [1.0] * 4
    assert group.counts["retried"] > 0
    assert len(sampler.asked) == 1
