"""Items: two parts that share nothing, found again exactly, in the shares that are asked for."""

import ast
import itertools
import json
from collections import Counter
from pathlib import Path

import ptl_reasoning_gym
import pytest
from ptl_reasoning_gym import library
from ptl_reasoning_gym.datasets import ITEM, ReasoningGym, item_of
from ptl_reasoning_gym.items import SEEDS, STRIDE, Source, Stream, first_seed, part_of

from posttrain_recipes.plugin import Prompt, UsageError


def dataset(**options: object) -> ReasoningGym:
    return ReasoningGym(ReasoningGym.Config.model_validate(options))


def loaded(**options: object) -> list[Prompt]:
    return list(dataset(**options).load())


def question(prompt: Prompt) -> str:
    found = item_of(prompt.metadata)
    assert found is not None
    return str(found[0].entry()["question"])


def seed_of(prompt: Prompt) -> int:
    kept = json.loads(prompt.metadata[ITEM])
    return int(kept["seed"]) + int(kept["index"])


@pytest.mark.parametrize("task", ["gcd", "chain_sum", "coin_flip", "acre", "letter_counting"])
def test_what_is_held_out_shares_neither_seeds_nor_questions_with_training(task: str) -> None:
    level = {} if task == "acre" else {"level": 0}
    train = [
        prompt
        for seed in (0, 1, SEEDS // 2 - 1)
        for prompt in loaded(task=task, size=400, seed=seed, **level)
    ]
    held = loaded(task=task, size=100, seed=0, part="held_out", **level)
    assert held
    assert not {question(p) for p in train} & {question(p) for p in held}
    assert not {seed_of(p) for p in train} & {seed_of(p) for p in held}
    assert len({question(p) for p in held}) == len(held), "every held-out question counts once"


def test_seeds_of_all_parts_lie_apart() -> None:
    """The library counts up from a seed: 500 items of seed 0 and of seed 1 share 499."""
    firsts = [first_seed(part, seed) for part in ("train", "held_out") for seed in range(SEEDS)]
    assert all(b - a >= STRIDE for a, b in itertools.pairwise(sorted(firsts)))
    assert max(firsts) + STRIDE <= 2**32
    zero, one = loaded(task="gcd", size=50), loaded(task="gcd", size=50, seed=1)
    assert not {seed_of(p) for p in zero} & {seed_of(p) for p in one}


def test_a_quarter_of_all_questions_is_held_out_whatever_the_white_space() -> None:
    parts = Counter(part_of(f"What is {n} + {n}?") for n in range(4000))
    assert 0.22 < parts["held_out"] / 4000 < 0.28
    assert part_of("What  is\n1?") == part_of("What is 1?")


def test_a_task_with_few_questions_has_fewer_held_out_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    small = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    held = loaded(task="chain_sum", config=small, size=300, part="held_out")
    assert 20 < len(held) < 80, "of 200 sums and differences"
    assert f"{len(held)} held_out items of" in caplog.text
    assert "whose question belongs to training" in caplog.text
    assert "it has no more questions" in caplog.text


def test_an_item_is_found_again_exactly() -> None:
    (prompt,) = loaded(task="acre", size=1, part="held_out", seed=3)
    again = json.loads(json.dumps(dict(prompt.metadata)))
    library.instance.cache_clear()
    library._entry.cache_clear()
    found = item_of(again)
    assert found is not None
    item, form = found
    assert form == "tag"
    assert prompt.answer == f"<answer>{item.entry()['answer']}</answer>"
    assert prompt.messages[0].content.startswith(item.entry()["question"])


def test_loading_twice_is_the_same_and_limit_takes_the_first() -> None:
    whole = loaded(task="gcd", size=40)
    assert whole == loaded(task="gcd", size=40)
    assert whole[:7] == loaded(task="gcd", size=40, limit=7)


def test_several_tasks_have_their_shares() -> None:
    tasks = [{"task": "gcd", "weight": 3}, {"task": "lcm", "level": [0, 2]}]
    records = loaded(tasks=tasks, size=80)
    assert Counter(r.metadata["task"] for r in records) == {"gcd": 60, "lcm": 20}
    assert Counter(r.metadata.get("level") for r in records) == {None: 60, 0: 10, 2: 10}
    assert {r.metadata["task"] for r in records[:8]} == {"gcd", "lcm"}, "interleaved"


def test_config_goes_before_the_level() -> None:
    stream = Stream(
        Source("chain_sum", 3, json.dumps({"max_digits": 6, "min_digits": 6})), "train", 0
    )
    item, _ = next(iter(stream))
    made = library.instance(item.task, item.level, item.config, item.seed)
    plain = library.instance("chain_sum", 3, "{}", 0)
    assert (made.config.min_digits, made.config.max_terms) == (6, plain.config.max_terms)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"task": "course_shedule"}, "did you mean 'course_schedule'"),
        ({"task": "gcd", "config": {"max_valu": 9}}, "did you mean 'max_value'"),
        ({"task": "gcd", "config": {"seed": 9}}, "an option of the dataset"),
        ({"task": "gcd", "level": 9}, "has levels 0 to 3, not 9"),
        ({"task": "acre", "level": 0}, "has no levels"),
        ({"task": "gcd", "level": [0, -1]}, "counted from 0"),
        ({"task": "game_of_life_halting"}, "takes any answer for right"),
        ({"task": "composite"}, "under 'tasks'"),
        ({"tasks": [{"task": "gcd"}, {"task": "lcn"}]}, "[1] task: reasoning-gym has no task"),
    ],
)
def test_what_is_wrong_is_told_before_anything_runs(options: dict[str, object], told: str) -> None:
    assert any(told in message for _, message in dataset(**options).problems())


def test_options_that_the_task_refuses_are_told_with_its_words() -> None:
    with pytest.raises(UsageError, match="cannot make 'caesar_cipher' at level 3") as refused:
        loaded(task="caesar_cipher", level=3)
    assert "rotation" in str(refused.value.why)
    with pytest.raises(UsageError, match="cannot make 'gcd'"):
        loaded(task="gcd", config={"min_value": 9, "max_value": 3})


@pytest.mark.parametrize(
    "options",
    [{}, {"task": "gcd", "tasks": [{"task": "lcm"}]}, {"tasks": [{"task": "lcm"}], "level": 1}],
)
def test_one_task_or_several(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="'tasks'"):
        dataset(**options)


def test_the_table_is_what_the_library_has() -> None:
    """Written by `python -m ptl_reasoning_gym.survey --write`."""
    from reasoning_gym.factory import CURRICULA, DATASETS

    table = library.table()
    assert set(DATASETS) <= set(table) | {"composite"}
    for task, one in table.items():
        if task != "composite":
            assert library.describe(task).items() <= one.items(), task
    assert sum(one["levels"] > 0 for one in table.values()) <= len(CURRICULA)


def test_no_module_imports_the_library_before_it_is_needed() -> None:
    """sympy takes most of a second, and every command of ptl imports every plugin."""
    for path in Path(ptl_reasoning_gym.__file__).parent.glob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                assert "reasoning_gym.factory" not in ast.unparse(node), path
                assert not ast.unparse(node).startswith(("import sympy", "import numpy")), path


def test_held_out_items_ask_nothing_twice_whatever_levels_they_are_of() -> None:
    tasks = [{"task": "coin_flip", "config": {"max_trials": most}} for most in (6, 7)]
    asked = [question(one) for one in loaded(tasks=tasks, size=14, part="held_out")]
    assert len(set(asked)) == len(asked) > 1


@pytest.mark.parametrize(
    "options",
    [
        {"task": "gcd", "level": [0, 1, 0]},
        {"tasks": [{"task": "gcd"}, {"task": "lcm"}, {"task": "gcd", "weight": 2}]},
        {"tasks": [{"task": "gcd", "level": 1}, {"task": "gcd", "level": [0, 1]}]},
    ],
)
def test_the_same_items_are_not_taken_twice(options: dict[str, object]) -> None:
    assert [place for place, _ in dataset(**options).problems()] == [
        "tasks" if "tasks" in options else "level"
    ]


def test_a_task_without_a_single_item_is_told(caplog: pytest.LogCaptureFixture) -> None:
    loaded(tasks=[{"task": "gcd", "weight": 0.01}, {"task": "lcm", "level": 0}], size=20)
    assert "gcd: none of the 20 train items is of it" in caplog.text
    assert "lcm" not in caplog.text


def test_a_wrong_type_of_an_option_is_told_with_the_tasks_words() -> None:
    with pytest.raises(UsageError, match="cannot make 'gcd'"):
        loaded(task="gcd", config={"max_value": 20.5})
