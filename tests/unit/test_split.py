"""A test split goes by what records ask: not by a seed, the order, a reply or a copy."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest

from posttrain_recipes.datasets.nim import NimTask
from posttrain_recipes.planning.data import held_out, load_records
from posttrain_recipes.planning.depends import digest
from posttrain_recipes.planning.plans import Data
from posttrain_recipes.planning.questions import content_of, question_of, questions_of
from posttrain_recipes.plugin import (
    Conversation,
    Episode,
    Labelled,
    Message,
    Preference,
    Prompt,
    Record,
    Task,
)
from posttrain_recipes.records import ToolCall
from tests.conftest import Project

RECIPE = """\
name: demo
model: ./model
seed: SEED
stages:
  - name: sft
    dataset: {use: jsonl, path: rows.jsonl, test_size: 100}
    method: {use: sft}
    eval: [{use: nll}]
"""


def chat(*said: str, system: str = "", source: str = "") -> Conversation:
    roles = ("user", "assistant") * len(said)
    turns = [Message(role, text) for role, text in zip(roles, said, strict=False)]  # type: ignore[arg-type]
    return Conversation(
        messages=(*([Message("system", system)] if system else []), *turns), source=source
    )


def rows(count: int) -> list[Conversation]:
    return [chat(f"What is {n} + 1?", str(n + 1), source=f"f:{n}") for n in range(count)]


def asked(records: Sequence[Record], places: set[int]) -> set[str | None]:
    return {question_of(records[place]) for place in places}


def written(records: Sequence[Conversation]) -> str:
    return "".join(
        json.dumps({"messages": [m.as_dict() for m in record.messages]}) + "\n"
        for record in records
    )


# --- whatever the seed and the order -------------------------------------------------------------


def test_no_seed_trains_on_what_another_is_tested_on(project: Project) -> None:
    project.write("rows.jsonl", written(rows(1000)))
    tested, trained = [], []
    for seed in range(10):
        [stage] = project.plan(RECIPE.replace("SEED", str(seed))).stages
        assert stage.data is not None
        tested.append({r.source for r in load_records(stage.evals[0].data, Conversation)})
        trained.append({r.source for r in load_records(stage.data, Conversation)})
    assert all(part == tested[0] for part in tested)
    assert (len(tested[0]), len(trained[0])) == (100, 900)
    assert not tested[0] & set.union(*trained)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_order_of_the_file_changes_nothing(seed: int) -> None:
    records = rows(300)
    shuffled = random.Random(seed).sample(records, len(records))
    assert asked(shuffled, held_out(shuffled, 50)) == asked(records, held_out(records, 50))


def test_rows_more_or_less_move_few_others() -> None:
    records = rows(1100)
    before = asked(records[:1000], held_out(records[:1000], 100))
    after = asked(records, held_out(records, 100))
    stayed = before & after
    assert 80 <= len(stayed) < 100, "a tenth more rows, and about a tenth of the split"
    assert asked(records[1:1000], held_out(records[1:1000], 100)) >= before - {
        question_of(records[0])
    }


def test_a_smaller_test_split_is_part_of_a_larger_one() -> None:
    records = rows(300)
    assert held_out(records, 20) < held_out(records, 60)


# --- one question on one side --------------------------------------------------------------------

SAME: Mapping[str, Callable[[str, int], Record]] = {
    "a copy": lambda text, _: chat(text, "yes"),
    "another reply": lambda text, n: chat(text, f"reply {n}"),
    "another system prompt": lambda text, n: chat(text, "yes", system=f"You are {n}."),
    "other spaces": lambda text, n: chat(text.replace(" ", " " * (n + 1)) + "\n" * n, "yes"),
    "later turns": lambda text, n: chat(text, "yes", *(["and?", "no"] * n)),
    "pairs of other replies": lambda text, n: Preference(
        prompt=(Message("user", text),),
        chosen=(Message("assistant", f"good {n}"),),
        rejected=(Message("assistant", f"bad {n}"),),
    ),
    "a good and a bad reply": lambda text, n: Labelled(
        prompt=(Message("user", text),),
        completion=(Message("assistant", f"reply {n}"),),
        label=n % 2 == 0,
    ),
    "other answers and fields": lambda text, n: Prompt(
        messages=(Message("user", text),), answer=str(n), metadata={"level": n}
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_rows_with_one_question_stay_on_one_side(name: str) -> None:
    records = [SAME[name](f"What is {n} + 1?", copy) for copy in range(3) for n in range(40)]
    test = held_out(records, 30)
    kept = asked(records, set(range(len(records))) - test)
    assert len(test) == 30
    assert len(asked(records, test)) == 10
    assert not asked(records, test) & kept


def test_records_that_ask_the_same_count_and_are_fewer_where_they_do_not_add_up() -> None:
    pairs = [chat(f"q {n}", reply) for n in range(20) for reply in "ab"]
    assert len(held_out(pairs, 5)) == 4
    assert len(held_out([*pairs, chat("alone", "a")], 5)) == 5


def test_where_every_question_is_asked_more_often_one_of_them_is_held_out() -> None:
    records = [chat("one", str(n)) for n in range(9)] + [chat("two", str(n)) for n in range(5)]
    assert held_out(records, 3) == set(range(9, 14))


def test_where_all_ask_the_same_the_content_decides_and_copies_stay_together() -> None:
    records = [chat("Go on.", f"text {n % 30}") for n in range(60)]
    test = held_out(records, 10)
    replies = {records[place].messages[-1].content for place in test}
    assert (len(test), len(replies)) == (10, 5)
    assert len(held_out([chat("same", "reply")] * 4, 1)) == 1


def test_examples_before_a_prompt_do_not_make_one_question_of_all() -> None:
    shots = (Message("user", "1+1?"), Message("assistant", "2"))
    records = [Prompt(messages=(*shots, Message("user", f"{n}+1?"))) for n in range(20)]
    assert len(asked(records, set(range(20)))) == 20


# --- environments --------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Inner(Task):
    """A task around a prompt, with what only code knows."""

    prompt: Prompt | None = None
    box: Any = None
    level: int = 0

    def start(self) -> Episode:
        raise NotImplementedError


def test_tasks_are_split_by_what_they_begin_with() -> None:
    games = [
        NimTask(sticks=n % 7, opponent="random", begins=True, seed=n, source=f"nim:{n}")
        for n in range(100)
    ]
    backwards = games[::-1]
    first = {games[place].seed for place in held_out(games, 20)}
    assert first == {backwards[place].seed for place in held_out(backwards, 20)}
    assert content_of(games[3]) == content_of(replace(games[3], source="elsewhere"))


def test_a_task_around_a_prompt_asks_what_the_prompt_asks() -> None:
    prompt = Prompt(messages=(Message("user", "1+1?"),), answer="2")
    assert question_of(Inner(prompt=prompt, box=object())) == question_of(prompt)
    assert question_of(prompt) == question_of(chat("1+1?", "2"))


def test_tasks_of_unknown_content_are_split_by_their_place() -> None:
    made = [Inner(box=object(), level=1) for _ in range(30)]
    again = [Inner(box=object(), level=1) for _ in range(30)]
    assert question_of(made[0]) is None
    assert held_out(made, 7) == held_out(again, 7)
    assert len(held_out(made, 7)) == 7


def test_a_conversation_asks_before_each_reply() -> None:
    first, second = questions_of(chat("a", "b", "c", "d"))
    assert first == question_of(chat("a", "x"))
    assert second == question_of(
        Prompt(messages=(Message("user", "a"), Message("assistant", "b"), Message("user", "c")))
    )


# --- through a recipe ----------------------------------------------------------------------------


def test_both_replies_of_a_pair_are_on_one_side(project: Project) -> None:
    project.write(
        "pairs.jsonl",
        "".join(
            json.dumps({"prompt": f"q {n % 25}", "chosen": f"good {n}", "rejected": f"bad {n}"})
            + "\n"
            for n in range(50)
        ),
    )
    text = (
        "name: demo\nmodel: ./model\nstages:\n"
        "  - name: kto\n"
        "    dataset: {use: jsonl, path: pairs.jsonl, test_size: 10}\n"
        "    method: {use: kto}\n"
        "    eval: [{use: preference_accuracy}]\n"
    )
    [stage] = project.plan(text).stages
    assert isinstance(stage.data, Data)
    train = load_records(stage.data, Labelled)
    test = load_records(stage.evals[0].data, Preference)
    assert (len(train), len(test)) == (80, 10)
    assert not {question_of(r) for r in train} & {question_of(r) for r in test}


def test_the_split_is_no_part_of_what_a_seed_changes(project: Project) -> None:
    project.write("rows.jsonl", written(rows(200)))
    first, second = (project.plan(RECIPE.replace("SEED", s)).stages[0] for s in "01")
    assert first.data is not None
    assert second.data is not None
    assert first.data.identity() == second.data.identity()
    assert first.fingerprint != second.fingerprint
    assert first.evals[0].fingerprint != second.evals[0].fingerprint, "it samples with the seed"


@pytest.mark.parametrize("said", ["a", '"q\\ \n\t x', "é\u2028 \x7f \x01", "\U0001f600  x", ""])
def test_a_question_is_the_digest_of_its_turns_as_plain_values(said: str) -> None:
    call = ToolCall("add", '{"a": 1}', "x")
    messages = (
        Message("system", "left out"),
        Message("user", said),
        Message("assistant", said, tool_calls=(call,)),
        Message("tool", said, name="add", tool_call_id="x"),
    )
    text = " ".join(said.split())
    turns = [["user", text, None], ["assistant", text, [call.as_dict()]], ["tool", text, None]]
    assert question_of(Prompt(messages=messages)) == digest(turns)
