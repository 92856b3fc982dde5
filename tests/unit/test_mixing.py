"""Mixes and curricula."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from posttrain_recipes.datasets.curriculum import Curriculum
from posttrain_recipes.datasets.mix import Mix, interleave
from posttrain_recipes.errors import RecipeError
from posttrain_recipes.plugin import Dataset, Message, Preference, Prompt, Record, UsageError
from posttrain_recipes.training.loops.supervised import Order
from tests.conftest import Project


class Listed(Dataset):
    """Prompts a0, a1, ... of a letter."""

    name = "listed"

    def __init__(self, letter: str, count: int, kind: type[Record] = Prompt) -> None:
        super().__init__(self.Config())
        self.letter, self.count, self.kind = letter, count, kind

    def record_type(self) -> type[Record]:
        return self.kind

    def load(self) -> Iterator[Record]:
        for n in range(self.count):
            yield Prompt(messages=(Message("user", f"{self.letter}{n}"),), metadata={"level": -n})


def said(records: Sequence[Record]) -> list[str]:
    return [r.messages[0].content for r in records if isinstance(r, Prompt)]


def mixed(parts: Sequence[Dataset], **options: Any) -> list[str]:
    made = Mix(Mix.Config(parts=[{"use": "listed"}] * len(parts), **options))
    made.sources = {"parts": parts}
    return said(list(made.load()))


def test_without_weights_all_of_every_part_comes_once_and_evenly() -> None:
    found = mixed([Listed("a", 8), Listed("b", 4)])
    assert sorted(found) == sorted([f"a{n}" for n in range(8)] + [f"b{n}" for n in range(4)])
    for begin in range(0, 12, 3):
        assert Counter(text[0] for text in found[begin : begin + 3]) == {"a": 2, "b": 1}
    assert [text for text in found if text[0] == "a"] == [f"a{n}" for n in range(8)]


def test_with_weights_it_ends_where_a_part_does_and_none_comes_twice() -> None:
    found = mixed([Listed("a", 100), Listed("b", 3)], weights=[4, 1])
    counts = Counter(text[0] for text in found)
    assert counts["b"] == 3
    assert 12 <= counts["a"] <= 16
    assert len(set(found)) == len(found)


def test_with_a_size_parts_begin_again() -> None:
    found = mixed([Listed("a", 100), Listed("b", 2)], weights=[1, 1], size=10)
    assert Counter(found)["b0"] == 3
    assert len(found) == 10


def test_the_shares_hold_at_every_point() -> None:
    weights = [0.7, 0.2, 0.1]
    had = [0, 0, 0]
    turns: Any = interleave([[None] * 500] * 3, weights, 300)  # type: ignore[list-item]
    for n, (place, _) in enumerate(turns, 1):
        had[place] += 1
        assert all(abs(h - n * w) < 1 + 1e-9 for h, w in zip(had, weights, strict=True))


def test_an_empty_part_ends_it() -> None:
    assert mixed([Listed("a", 3), Listed("b", 0)], weights=[1, 1]) == ["a0"]


def test_a_mix_is_called_by_what_it_is_made_of(project: Project) -> None:
    (stage,) = project.plan(MIXED.replace("PATH", "chat.jsonl")).stages
    assert stage.data is not None
    assert stage.data.label == "mix of chat.jsonl and chat.jsonl"


def test_weights_are_one_for_each_part_and_positive() -> None:
    with pytest.raises(ValidationError, match="1 weights for 2 parts"):
        mixed([Listed("a", 1), Listed("b", 1)], weights=[1])
    with pytest.raises(ValidationError, match="above 0"):
        mixed([Listed("a", 1), Listed("b", 1)], weights=[1, 0])


def test_parts_of_other_types_are_named() -> None:
    made = Mix(Mix.Config(parts=[{"use": "listed"}] * 2))
    made.sources = {"parts": [Listed("a", 1), Listed("b", 1, Preference)]}
    ((option, problem),) = made.problems()
    assert option == "parts"
    assert "Preference records and 'listed' has Prompt records" in problem


MIXED = """\
name: mixed
model: ./model
stages:
  - name: sft
    dataset:
      use: mix
      weights: [1, 3]
      parts:
        - {use: jsonl, path: chat.jsonl}
        - {use: jsonl, path: PATH}
    method: {use: sft}
"""


def test_in_a_recipe_parts_are_checked_in_their_place_and_are_of_the_fingerprint(
    project: Project,
) -> None:
    project.write("more.jsonl", (project.path / "chat.jsonl").read_text() * 2)
    plan = project.plan(MIXED.replace("PATH", "more.jsonl"))
    other = project.plan(MIXED.replace("PATH", "more.jsonl").replace("[1, 3]", "[1, 2]"))
    same = project.plan(MIXED.replace("PATH", "chat.jsonl"))
    assert len({p.stages[0].fingerprint for p in (plan, other, same)}) == 3
    with pytest.raises(RecipeError) as caught:
        project.plan(MIXED.replace("PATH", "mroe.jsonl"))
    (fault,) = caught.value.faults
    assert fault.key == "stages.sft.dataset.parts[1].path"
    assert "did you mean 'more.jsonl'?" in fault.message


# --- curriculum ----------------------------------------------------------------------------------


def sorted_by(data: Dataset, **options: Any) -> list[Record]:
    made = Curriculum(Curriculum.Config(data={"use": "listed"}, **options), Path())
    made.sources = {"data": [data]}
    return list(made.load())


def test_a_curriculum_goes_from_small_to_large() -> None:
    assert said(sorted_by(Listed("a", 4), by="level")) == ["a3", "a2", "a1", "a0"]
    assert said(sorted_by(Listed("a", 4), by="level", descending=True))[0] == "a0"
    assert said(sorted_by(Listed("a", 4), by="level", minimum=-2, maximum=-1)) == ["a2", "a1"]


def test_by_length_equals_stay_in_order() -> None:
    assert said(sorted_by(Listed("a", 12)))[:3] == ["a0", "a1", "a2"]
    assert said(sorted_by(Listed("a", 12)))[-2:] == ["a10", "a11"]


def test_a_field_that_is_not_there_is_named() -> None:
    with pytest.raises(UsageError, match="'hardness' is not there"):
        sorted_by(Listed("a", 2), by="hardness")
    with pytest.raises(UsageError, match="within minimum and maximum"):
        sorted_by(Listed("a", 2), by="level", minimum=5)


def test_the_order_of_the_data_is_kept_where_it_is_asked_for() -> None:
    order = Order(list(range(6)), 2, seed=0, shuffle=False)
    assert [order.batch(step) for step in range(4)] == [[0, 1], [2, 3], [4, 5], [0, 1]]
