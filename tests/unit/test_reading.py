"""Records are looked at with the model's template before they are used: told all at once, or left
out where the data set says so."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from posttrain_recipes import models
from posttrain_recipes.datasets.jsonl import Jsonl
from posttrain_recipes.errors import UsageError
from posttrain_recipes.methods.kto import KTO
from posttrain_recipes.methods.sft import SFT
from posttrain_recipes.planning.plans import Data
from posttrain_recipes.plugin import Conversation, Prompt, Record
from posttrain_recipes.running.reading import read_records
from posttrain_recipes.training.text.chat_template import ChatRenderer, load_renderer

TOOL = {"type": "function", "function": {"name": "weather"}}
LOST = r"leaves out the tool 'weather'"


@pytest.fixture(scope="module")
def renderer() -> ChatRenderer:
    return load_renderer(models.resolve("ptl/tiny"))


def read(
    folder: Path,
    rows: list[dict[str, Any]],
    renderer: ChatRenderer,
    wants: type[Record],
    user: Any,
    **options: Any,
) -> list[Record]:
    path = folder / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = Data(Jsonl(Jsonl.Config(path=str(path), **options)), ("stages", 0, "dataset"), 0)
    return read_records(data, wants, renderer, lambda stage: folder, user)


def asked(text: str, **more: Any) -> dict[str, Any]:
    return {"prompt": text, "answer": "b", **more}


def said(*replies: str, **more: Any) -> dict[str, Any]:
    turns: list[dict[str, str]] = []
    for reply in replies:
        turns += [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": reply}]
    return {"messages": turns, **more}


def test_prompts_that_the_template_cannot_show_are_told_all_at_once(
    tmp_path: Path, renderer: ChatRenderer
) -> None:
    rows = [asked("a", tools=[TOOL]), asked("b"), asked("c", tools=[TOOL])]
    with pytest.raises(UsageError, match="2 of 3 records of .* cannot be used") as caught:
        read(tmp_path, rows, renderer, Prompt, SFT(SFT.Config()))
    assert "a.jsonl:1: " in caught.value.what
    assert "a.jsonl:3: " in caught.value.what
    assert "bad_rows: skip" in (caught.value.hint or "")


@pytest.mark.parametrize("wants", [Prompt, Conversation])
def test_they_are_left_out_where_the_data_set_says_so(
    tmp_path: Path, renderer: ChatRenderer, wants: Any, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [asked("a", tools=[TOOL]), asked("b")]
    with caplog.at_level(logging.WARNING):
        (kept,) = read(tmp_path, rows, renderer, wants, SFT(SFT.Config()), bad_rows="skip")
    assert kept.source.endswith("a.jsonl:2")
    assert "1 of 2 records cannot be used and were left out" in caplog.text
    assert "a.jsonl:1: the model's chat template leaves out the tool 'weather'" in caplog.text
    with pytest.raises(UsageError, match=LOST):
        read(tmp_path, rows[:1], renderer, wants, SFT(SFT.Config()), bad_rows="skip")


def test_what_is_too_long_is_left_out_too(tmp_path: Path, renderer: ChatRenderer) -> None:
    rows = [said("a " * 200), said("b")]
    short = SFT(SFT.Config(max_length=64))
    (kept,) = read(tmp_path, rows, renderer, Conversation, short, bad_rows="skip")
    assert kept.source.endswith("a.jsonl:2")
    cut = SFT(SFT.Config(max_length=64, truncate=True))
    assert len(read(tmp_path, rows, renderer, Conversation, cut, bad_rows="skip")) == 2
    assert len(read(tmp_path, rows, renderer, Conversation, short)) == 2  # the method tells


def test_records_are_looked_at_as_the_method_learns_them(
    tmp_path: Path, renderer: ChatRenderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With every reply learned, one that cannot be is found."""
    looked: list[str] = []
    real = renderer.supervised

    def supervised(messages: Any, train_on: str = "last") -> Any:
        looked.append(train_on)
        return real(messages, train_on)

    monkeypatch.setattr(renderer, "supervised", supervised)
    for train_on in ("last", "all"):
        method = SFT(SFT.Config(train_on=train_on))  # type: ignore[arg-type]
        read(tmp_path, [said("a", "b")], renderer, Conversation, method, bad_rows="skip")
    assert looked == ["last", "all"]


def test_a_reply_that_kto_borrows_is_cut_and_no_reason_to_stop(
    renderer: ChatRenderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from types import SimpleNamespace

    from posttrain_recipes.plugin import Labelled, Message
    from posttrain_recipes.training.preference import completions

    def record(prompt: str, reply: str, label: bool) -> Labelled:
        asks, says = (Message("user", prompt),), (Message("assistant", reply),)
        return Labelled(prompt=asks, completion=says, label=label, source=prompt[:4])

    records = [record("long " * 12, "a", True), record("b", "word " * 12, False)]
    kept: list[Any] = []
    monkeypatch.setattr(
        completions, "train", lambda stage, config, items, loss, reference: kept.extend(items)
    )
    lengths = [len(renderer.supervised((*r.prompt, *r.completion))[0]) for r in records]
    stage: Any = SimpleNamespace(train=records, seed=0, renderer=renderer)
    KTO(KTO.Config(max_length=max(lengths) + 2)).train(stage)
    assert len(kept) == 2
    assert all(len(e.tokens) <= max(lengths) + 2 for item in kept for e in item.examples)
