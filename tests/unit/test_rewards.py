"""Built-in rewards: what they score, and what they say of a recipe before anything runs."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from posttrain_recipes import registry
from posttrain_recipes.errors import RecipeError
from posttrain_recipes.plugin import Reward, Sample
from posttrain_recipes.training.rl.scoring import scores_of
from posttrain_recipes.training.text.numbers import read_number
from tests.conftest import Project


def reward(name: str, base_dir: Path = Path(), **options: Any) -> Reward:
    cls = registry.load().get("reward", name).cls
    made = cls(cls.Config.model_validate(options), base_dir)
    assert isinstance(made, Reward)
    return made


def scores(made: Reward, *replies: str, **sample: Any) -> list[float | None]:
    return list(made.score([Sample(prompt=(), completion=reply, **sample) for reply in replies]))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,000", 1000.0),
        ("-3.5", -3.5),
        ("$2.50", 2.5),
        ("12%", 12.0),
        ("7.", 7.0),
        ("1/2", 0.5),
        (r"\frac{3}{4}", 0.75),
        ("1e3", 1000.0),
        ("1/0", None),
        ("seven", None),
        ("", None),
    ],
)
def test_numbers_as_people_write_them(text: str, value: float | None) -> None:
    found = read_number(text)
    assert (None if found is None else float(found.value)) == value


def test_numeric_looks_in_the_box_then_after_the_hashes_then_at_the_end() -> None:
    made = reward("numeric")
    replies = [r"First 3, so \boxed{\frac{84}{2}} #### 7", "1 + 41 = 42\n#### 42.", "It is 42 now"]
    assert scores(made, *replies, answer="42") == [1.0, 1.0, 1.0]
    assert scores(made, r"42 \boxed{41}", "#### 41 42x", "", answer="42") == [0.0, 0.0, 0.0]
    assert scores(made, "42", answer="6 * 7 = 42\n#### 42") == [1.0]
    assert scores(made, "42", answer=None) == [None]
    assert scores(made, "42", answer="many") == [None]


def test_numeric_has_a_tolerance() -> None:
    assert scores(reward("numeric", absolute=0.5), "41.6", "41.4", answer="42") == [1.0, 0.0]
    assert scores(reward("numeric", relative=0.01), "41.6", "41.4", answer="42") == [1.0, 0.0]
    assert scores(reward("numeric"), "42.0", "42.001", answer="42") == [1.0, 0.0]


def test_regex_matches_the_whole_or_a_part() -> None:
    assert scores(reward("regex", pattern=r"\d+"), "42", "42!", "") == [1.0, 0.0, 0.0]
    made = reward("regex", pattern="please", match="anywhere", ignore_case=True)
    assert scores(made, "Yes, PLEASE.", "no") == [1.0, 0.0]


def test_json_schema_accepts_a_fenced_block_and_nothing_beside() -> None:
    made = reward("json_schema", inline={"type": "object", "required": ["a"]}, parses=0.25)
    replies = ['{"a": 1}', '```json\n{"a": 1}\n```', '{"b": 1}', '{"a": 1} there', "[" * 10**5]
    assert scores(made, *replies) == [1.0, 1.0, 0.25, 0.0, 0.0]


def test_json_schema_is_read_from_a_file_whose_content_counts(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text('{"type": "array"}')
    made = reward("json_schema", tmp_path, path="s.json")
    assert list(made.problems()) == []
    assert scores(made, "[]", "{}") == [1.0, 0.0]
    before = made.digest()
    (tmp_path / "s.json").write_text('{"type": "object"}')
    assert made.digest() not in (None, before)
    (tmp_path / "s.json").write_text('{"type": 3}')
    [(option, message)] = reward("json_schema", tmp_path, path="s.json").problems()
    assert option == "path"
    assert "not a JSON Schema" in message
    [(_, message)] = reward("json_schema", tmp_path, path="none.json").problems()
    assert "cannot be read" in message


def test_length_falls_off_outside_of_its_bounds() -> None:
    made = reward("length", least=2, most=3, slack=1)
    assert scores(made, "a b", "a b c", "a", "a b c d", "a b c d e", "") == [1, 1, 0.5, 0.5, 0, 0]
    assert scores(reward("length", unit="characters", most=3), "abc", "abcd") == [1.0, 0.0]


def test_exact_match_and_boxes_with_braces() -> None:
    made = reward("exact_match", extract="boxed")
    assert scores(made, r"\boxed{\frac{1}{2}}", r"\boxed{1", "1", answer=r"\frac{1}{2}") == [
        1,
        0,
        0,
    ]


# --- a function of the user's ---------------------------------------------------------------------

MODULE = """\
from helper import SCALE

def score(sample, scale=1.0):
    return None if not sample.completion else len(sample.completion) * scale * SCALE

def many(samples):
    return [float(i) for i, _ in enumerate(samples)]

def strange(text):
    return 1.0

def strict(sample, key):
    return sample.metadata[key]
"""


@pytest.fixture
def beside(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(MODULE)
    (tmp_path / "helper.py").write_text("SCALE = 2")
    return tmp_path


def test_a_function_beside_the_recipe_scores(beside: Path) -> None:
    made = reward("function", beside, call="mine:score", arguments={"scale": 0.5})
    assert list(made.problems()) == []
    assert made.label == "score"
    assert scores(made, "abc", "") == [3.0, None]
    assert scores(reward("function", beside, call="mine:many"), "a", "b") == [0.0, 1.0]
    strict = reward("function", beside, call="mine:strict", arguments={"key": "level"})
    assert scores(strict, "a", metadata={"level": 4}) == [4]


SLOW = """\
import threading
RELEASE = threading.Event()

def score(sample):
    if sample.completion == "hang":
        RELEASE.wait(60)
    return 1.0

def other(sample):
    return score(sample)
"""


def test_calls_of_the_functions_of_a_module_do_not_overlap(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    (tmp_path / "free.py").write_text(SLOW)
    one, other, free = (
        reward("function", tmp_path, call=call)
        for call in ("slow:score", "slow:other", "free:score")
    )
    sample = Sample(prompt=(), completion="good")
    with ThreadPoolExecutor(1) as pool:
        with one.lock:
            assert scores_of(free, [sample]) == [1.0]
            waiting = pool.submit(scores_of, other, [sample])
            with pytest.raises(TimeoutError):
                waiting.result(timeout=0.1)
        assert waiting.result(timeout=60) == [1.0]


def test_a_call_that_hangs_is_given_up_and_the_next_one_begins(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    made = reward("function", tmp_path, call="slow:score", timeout=0.05)
    sample = Sample(prompt=(), completion="hang")
    try:
        with pytest.raises(RuntimeError, match="'score' took more than 0.05 s"):
            scores_of(made, [sample])
        good = Sample(prompt=(), completion="good")
        assert scores_of(made, [good]) == [1.0]
    finally:
        sys.modules[made._function.__module__].RELEASE.set()


def test_its_content_is_part_of_what_it_is(beside: Path) -> None:
    before = reward("function", beside, call="mine:score").digest()
    (beside / "mine.py").write_text(MODULE + "\n# more")
    assert reward("function", beside, call="mine:score").digest() not in (None, before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"call": "none:score"}, "there is no"),
        ({"call": "mine:nothing"}, "has no function 'nothing'; it has score, many"),
        ({"call": "mine:strange"}, "has to be 'sample'"),
        ({"call": "mine:score", "arguments": {"size": 1}}, "takes no argument 'size'"),
        ({"call": "mine:strict"}, "needs the argument 'key'"),
    ],
)
def test_a_function_that_cannot_be_called_is_found_without_running_it(
    beside: Path, options: dict[str, Any], message: str
) -> None:
    (beside / "mine.py").write_text(MODULE + "\nraise SystemExit\n")
    [(_, found)] = reward("function", beside, **options).problems()
    assert message in found


def test_a_file_that_is_not_python_is_told(beside: Path) -> None:
    (beside / "mine.py").write_text("def score(sample:")
    [(_, found)] = reward("function", beside, call="mine:score").problems()
    assert "is not Python" in found


RECIPE = """\
name: mine
model: ./model
stages:
  - name: rl
    dataset: {use: jsonl, path: questions.jsonl}
    method: {use: grpo}
    reward: {use: function, call: "REWARD"}
"""


def test_a_recipe_with_such_a_reward_is_checked_where_it_stands(project: Project) -> None:
    project.write("mine_rewards.py", "def score(sample):\n    return 1\n")
    fingerprint = project.plan(RECIPE.replace("REWARD", "mine_rewards:score")).fingerprint
    project.write("mine_rewards.py", "def score(sample):\n    return 2\n")
    assert project.plan(RECIPE.replace("REWARD", "mine_rewards:score")).fingerprint != fingerprint
    with pytest.raises(RecipeError) as caught:
        project.plan(RECIPE.replace("REWARD", "mine_rewards:scroe"))
    [fault] = caught.value.faults
    assert fault.key == "stages.rl.reward.call"
    assert "has no function 'scroe'" in fault.message
