"""Made records on disk: whole batches, files a type, and reading them back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from posttrain_recipes.conversion import as_row
from posttrain_recipes.datasets.collected import Collected
from posttrain_recipes.errors import PtlError
from posttrain_recipes.plugin import (
    Conversation,
    Labelled,
    Message,
    Preference,
    Prompt,
    Record,
    UsageError,
)
from posttrain_recipes.running.making import Made

ASKED = (Message("system", "be kind"), Message("user", "hi\u2028there"))
GOOD, BAD = (Message("assistant", "hello"),), (Message("assistant", "what"),)
TALK = Conversation(messages=(*ASKED, *GOOD))
PAIR = Preference(prompt=ASKED, chosen=GOOD, rejected=BAD)
EVERY = [
    TALK,
    PAIR,
    Labelled(prompt=ASKED, completion=GOOD, label=False),
    Prompt(messages=ASKED, answer="4", metadata={"level": 2, "answer": "2 + 2 = 4\n#### 4"}),
]


def read(folder: Path, wants: type[Record], limit: int | None = None) -> list[Record]:
    dataset = Collected(Collected.Config(stage="maker", limit=limit))
    dataset.bind(lambda stage: folder if stage == "maker" else Path("nowhere"), wants)
    return list(dataset.load())


@pytest.mark.parametrize("record", EVERY, ids=lambda r: type(r).__name__)
def test_a_record_is_read_back_as_it_was(record: Record, tmp_path: Path) -> None:
    made = Made(tmp_path / "made")
    made.write(1, [record])
    made.finish({})
    (again,) = read(made.path, type(record))
    assert as_row(again) == as_row(record)
    assert type(again) is type(record)
    assert f"{type(record).__name__.lower()}.jsonl:1" in again.source


def test_records_of_several_types_are_told_apart_and_in_order(tmp_path: Path) -> None:
    made = Made(tmp_path)
    other = Conversation(messages=(*ASKED, *BAD))
    made.write(1, [TALK, PAIR])
    made.write(2, [other])
    assert made.finish({"seed": 3}) == {"conversation": 2, "preference": 1}
    assert [r.messages for r in read(tmp_path, Conversation)] == [TALK.messages, other.messages]
    assert [type(r) for r in read(tmp_path, Preference)] == [Preference]
    assert len(read(tmp_path, Prompt)) == 2, "a conversation can be a prompt"
    assert len(read(tmp_path, Conversation, limit=1)) == 1
    told = json.loads((tmp_path / "provenance.json").read_text())
    assert told["seed"] == 3
    assert told["files"]["conversation.jsonl"]["records"] == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "conversation.jsonl",
        "preference.jsonl",
        "provenance.json",
    ]


def test_it_goes_on_after_the_last_whole_batch(tmp_path: Path) -> None:
    made = Made(tmp_path)
    assert made.batches == 0
    for number in range(1, 12):
        made.write(number, [TALK])
    (tmp_path / "batches" / ".000012.jsonl.abc").write_text('["conversation", {"mess')
    assert Made(tmp_path).batches == 11
    assert not made.complete
    assert made.finish({}) == {"conversation": 11}
    assert made.complete


def test_steps_that_are_done_again_leave_nothing_twice(tmp_path: Path) -> None:
    made = Made(tmp_path)
    for step in (2, 4, 6):
        made.write(step, [TALK])
    made.forget_after(4)
    assert made.batches == 4
    made.write(6, [PAIR])
    assert made.finish({}) == {"conversation": 2, "preference": 1}


def test_an_end_that_was_cut_short_is_done_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Made(tmp_path)
    made.write(1, [TALK, PAIR])

    def fail(*args: object) -> None:
        raise OSError("no space")

    with monkeypatch.context() as patch:
        patch.setattr("posttrain_recipes.running.making.os.fsync", fail)
        with pytest.raises(PtlError, match="cannot be written"):
            made.finish({})
    assert not made.complete
    assert [p.name for p in tmp_path.iterdir()] == ["batches"]
    assert made.finish({}) == {"conversation": 1, "preference": 1}


def test_a_stage_without_such_records_is_named(tmp_path: Path) -> None:
    made = Made(tmp_path)
    made.write(1, [TALK])
    made.finish({})
    with pytest.raises(UsageError, match="stage 'maker' left no Preference") as caught:
        read(tmp_path, Preference)
    assert caught.value.why == "it left Conversation records"
