"""Rows of every form become the records that they mean, from every kind of file."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain_recipes.conversion import convert
from posttrain_recipes.datasets import ptl_datasets
from posttrain_recipes.datasets.formats import FIELDS, FORMATS, RowParser
from posttrain_recipes.datasets.huggingface import HuggingFace
from posttrain_recipes.datasets.jsonl import Jsonl
from posttrain_recipes.errors import PtlError, UsageError
from posttrain_recipes.plugin import (
    Conversation,
    Labelled,
    Message,
    Preference,
    Prompt,
    Record,
)
from tests import memory

DATA = Path(__file__).parents[1] / "fixtures" / "data"
GOOD = DATA / "good"


def user(text: str) -> Message:
    return Message("user", text)


def assistant(text: str) -> Message:
    return Message("assistant", text)


BRIEF = Message("system", "Be brief.")


def jsonl(path: Path | str, base: Path = GOOD, **options: Any) -> Jsonl:
    return Jsonl(Jsonl.Config(path=str(path), **options), base)


def load(path: Path | str, **options: Any) -> list[Record]:
    return list(jsonl(path, **options).load())


def contents(records: list[Record]) -> list[Any]:
    """What records say, without where they were read."""
    from dataclasses import asdict

    return [(type(r), {k: v for k, v in asdict(r).items() if k != "source"}) for r in records]


# --- forms ---------------------------------------------------------------------------------------

EXPECTED: dict[str, list[Record]] = {
    "messages.jsonl": [
        Conversation(messages=(BRIEF, user("Hi."), assistant("Hello."))),
        Conversation(messages=(user("One?"), user("Two?"), assistant("Three."))),
    ],
    "prompt_completion.jsonl": [
        Conversation(messages=(user("Hi."), assistant("Hello."))),
        Conversation(messages=(BRIEF, user("Bye?"), assistant("Bye."))),
    ],
    "prompt_response.jsonl": [Conversation(messages=(user("Hi."), assistant("Hello.")))],
    "alpaca.jsonl": [
        Conversation(messages=(user("Add.\n\n1 2"), assistant("3"))),
        Conversation(messages=(user("Greet."), assistant("Hello."))),
        Conversation(messages=(user("Greet again."), assistant("Hello again."))),
    ],
    "sharegpt.jsonl": [Conversation(messages=(BRIEF, user("Hi."), assistant("Hello.")))],
    "preference.jsonl": [
        Preference(
            prompt=(user("Hi."),), chosen=(assistant("Hello."),), rejected=(assistant("What?"),)
        ),
        # The prompt is repeated in front of the replies, as some published data does.
        Preference(
            prompt=(user("Bye."),), chosen=(assistant("Goodbye."),), rejected=(assistant("Go."),)
        ),
    ],
    "preference_whole.jsonl": [
        Preference(
            prompt=(user("Hi."),), chosen=(assistant("Hello."),), rejected=(assistant("What?"),)
        )
    ],
    "preference_hh.jsonl": [
        Preference(
            prompt=(user("Hi."), assistant("Hello. And?"), user("Help me.")),
            chosen=(assistant("Gladly."),),
            rejected=(assistant("No."),),
        )
    ],
    "labelled.jsonl": [
        Labelled(prompt=(user("Hi."),), completion=(assistant("Hello."),), label=True),
        Labelled(prompt=(user("Hi."),), completion=(assistant("What?"),), label=False),
    ],
    "prompt_answer.jsonl": [
        Prompt(messages=(user("2 + 2 ="),), answer="4", metadata={"level": 1}),
        Prompt(messages=(user("The capital of France?"),), answer="Paris", metadata={"level": 2}),
    ],
    "prompt.jsonl": [Prompt(messages=(user("Write a poem."),), metadata={"topic": "rain"})],
    "array.json": [
        Conversation(messages=(user("a"), assistant("b"))),
        Conversation(messages=(user("c"), assistant("d"))),
    ],
    "table.csv": [
        Conversation(messages=(user("a, b"), assistant("c\r\nd"))),
        Conversation(messages=(user("e"), assistant('"f"'))),
    ],
    "labels.tsv": [
        Labelled(prompt=(user("a"),), completion=(assistant("b"),), label=True),
        Labelled(prompt=(user("a"),), completion=(assistant("c"),), label=False),
    ],
    "windows.jsonl": [
        Conversation(messages=(user("Hi."), assistant("Hello."))),
        Conversation(messages=(user("a"), assistant("b"))),
    ],
    "lines.jsonl.gz": [Conversation(messages=(user("a"), assistant("b")))],
}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_form_is_told_by_its_fields(name: str) -> None:
    dataset = jsonl(name)
    assert list(dataset.problems()) == []
    assert contents(list(dataset.load())) == contents(EXPECTED[name])
    assert dataset.record_type() is type(EXPECTED[name][0])


def test_every_form_has_a_fixture() -> None:
    seen = set()
    for path in GOOD.iterdir():
        if path.suffix == ".jsonl" and path.name != "renamed.jsonl":
            parser = RowParser(path.name)
            parser.parse(json.loads(path.read_text("utf-8-sig").splitlines()[0]), 1)
            seen.add(parser.form)
    labelled = {form for form in FORMATS if form.record is Labelled}
    for form in labelled:
        row = {"prompt": "a", "response": "b", "completion": "b", "instruction": "a", "output": "b"}
        whole = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        known = {**row, "label": False, "messages": whole, "conversations": whole}
        assert form.make({name: known[name] for name in form.fields}, "") == Labelled(
            prompt=(user("a"),), completion=(assistant("b"),), label=False
        )
    over = {
        form for form in FORMATS if {"chosen"} < set(form.fields) and "prompt" not in form.fields
    }
    assert seen | labelled | over == set(FORMATS)  # those over a conversation: test_row_fields.py


def test_gsm8k_as_published_serves_rewards_and_imitation() -> None:
    prompt, second = load("gsm8k.jsonl")
    assert isinstance(prompt, Prompt)
    assert isinstance(second, Prompt)
    assert (prompt.answer, second.answer) == ("72", "1,200")
    whole = json.loads((GOOD / "gsm8k.jsonl").read_text().splitlines()[0])["answer"]
    imitated = convert(prompt, Conversation)
    assert imitated == Conversation(
        source=prompt.source, messages=(*prompt.messages, assistant(whole))
    )
    assert convert(imitated, Prompt) == prompt


@pytest.mark.skipif("PTL_GSM8K" not in os.environ, reason="PTL_GSM8K names no directory")
def test_the_real_gsm8k_loads() -> None:
    path = Path(os.environ["PTL_GSM8K"]) / "gsm8k_train.jsonl"
    records = load(path)
    assert len(records) == 7473
    assert all(isinstance(r, Prompt) and r.answer and "#" not in r.answer for r in records)


def test_source_names_the_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a.jsonl").write_text('{"prompt": "a"}\n\n{"prompt": "b"}\n')
    records = list(jsonl("a.jsonl", tmp_path / "d").load())
    assert [record.source for record in records] == ["d/a.jsonl:1", "d/a.jsonl:3"]
    table = [record.source.rpartition(":")[2] for record in load("table.csv")]
    assert table == ["2", "4"]  # a quoted value may run over lines


words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)


@given(prompt=words, answer=words.filter(lambda text: "####" not in text))
def test_whatever_is_written_is_read_back(prompt: str, answer: str) -> None:
    row = json.loads(json.dumps({"prompt": prompt, "completion": answer}))
    expected = Conversation(source="f:1", messages=(user(prompt), assistant(answer)))
    assert RowParser("f").parse(row, 1) == expected
    row = json.loads(json.dumps({"question": prompt, "answer": answer}))
    record = convert(RowParser("f").parse(row, 1), Conversation)
    assert record == expected


# --- options -------------------------------------------------------------------------------------


def test_columns_map_other_names() -> None:
    columns = {"prompt": "problem", "answer": "solution"}
    (record,) = load("renamed.jsonl", columns=columns)
    assert contents([record]) == contents(
        [Prompt(messages=(user("1 + 1"),), answer="2", metadata={"id": 5})]
    )
    assert jsonl("renamed.jsonl", columns=columns).record_type() is Prompt


def test_system_goes_in_front_of_records_that_have_none() -> None:
    conversations = load("prompt_completion.jsonl", system="Be kind.")
    kind = Message("system", "Be kind.")
    assert [r.messages[0] for r in conversations if isinstance(r, Conversation)] == [kind, BRIEF]
    for name in ("preference.jsonl", "labelled.jsonl"):
        for record in load(name, system="Be kind."):
            assert isinstance(record, Preference | Labelled)
            assert record.prompt[0] == kind


def test_limit_stops_before_a_bad_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\noops\n')
    assert len(list(jsonl("a.jsonl", tmp_path, limit=2).load())) == 2


def test_a_bad_line_stops_with_its_place_and_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_text('{"q": "a"}\n{"q": 3}\n')
    with pytest.raises(UsageError) as caught:
        list(jsonl("a.jsonl", tmp_path, columns={"prompt": "q"}).load())
    assert str(caught.value) == (
        "a.jsonl:2  'prompt' is a number; it must be text or a list of messages\n"
        "  next: `ptl data check a.jsonl --columns prompt=q` lists all of it"
    )


def test_bad_rows_can_be_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.jsonl").write_text('oops\n{"prompt": "a"}\n{"prompt": ""}\n{"prompt": "b"}\n')
    dataset = jsonl("a.jsonl", tmp_path, bad_rows="skip")
    assert list(dataset.problems()) == []
    assert len(list(dataset.load())) == 2
    assert "2 rows cannot be used and were left out" in caplog.text


def test_digest_is_of_the_content(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text('{"prompt": "a"}\n')
    first = jsonl("a.jsonl", tmp_path).digest()
    assert first is not None
    assert jsonl("b.jsonl", tmp_path).digest() == first
    (tmp_path / "b.jsonl").write_text('{"prompt": "b"}\n')
    assert jsonl("b.jsonl", tmp_path).digest() != first
    assert jsonl("c.jsonl", tmp_path).digest() is None


PROBLEMS: list[tuple[str, dict[str, Any], str, str]] = [
    (
        "mesages.jsonl",
        {},
        "path",
        "there is no file 'mesages.jsonl'; did you mean 'messages.jsonl'?",
    ),
    ("no/where.jsonl", {}, "path", "there is no file 'no/where.jsonl', nor its directory no"),
    *(
        (
            pattern,
            {},
            "path",
            f"'{pattern}' is a pattern, and names no file; name one, several as the parts of a "
            "'mix' data set, or write them into one file",
        )
        for pattern in ("*.jsonl", "nowhere/part-?.jsonl", "[a-z]*.jsonl.gz")
    ),
    ("../good", {}, "path", "'../good' is a directory; name a file in it"),
    (
        "../broken/unknown_suffix.txt",
        {},
        "path",
        "cannot tell the format of 'unknown_suffix.txt'; add 'format: jsonl'",
    ),
    ("../broken/empty.jsonl", {}, "path", "../broken/empty.jsonl has no records"),
    (
        "../broken/misspelt_first.jsonl",
        {},
        "path",
        "../broken/misspelt_first.jsonl:1  has no 'prompt'; did you mean 'promt'? rename it, "
        "or map it in columns",
    ),
    (
        "renamed.jsonl",
        {"columns": {"promt": "problem"}},
        "columns",
        "unknown field 'promt'; did you mean 'prompt'?",
    ),
    (
        "renamed.jsonl",
        {"columns": {"prompt": "question"}},
        "columns",
        "renamed.jsonl:1  has no 'question', which columns gives as 'prompt'; "
        "there is: problem, solution, id",
    ),
]


@pytest.mark.parametrize(("path", "options", "option", "message"), PROBLEMS)
def test_problems_are_found_before_a_run(
    path: str,
    options: dict[str, Any],
    option: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(GOOD)
    dataset = jsonl(path, **options)
    ((found_option, found),) = dataset.problems()
    found = found.replace(str(GOOD.parent), "..").replace(str(GOOD / "no"), "no")
    assert (found_option, found) == (option, message)
    assert dataset.record_type() is None


def test_an_explicit_format_wins_over_the_suffix() -> None:
    dataset = jsonl("../broken/unknown_suffix.txt", format="jsonl")
    assert list(dataset.problems()) == []
    assert dataset.record_type() is Prompt
    assert len(list(dataset.load())) == 1


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [json.loads(line) for line in (GOOD / "messages.jsonl").read_text().splitlines()]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    dataset = jsonl("a.parquet", tmp_path)
    assert list(dataset.problems()) == []
    assert contents(list(dataset.load())) == contents(load("messages.jsonl"))


def test_loading_streams(tmp_path: Path) -> None:
    """Memory does not grow with the number of rows."""
    code = """
from pathlib import Path
from posttrain_recipes.datasets.jsonl import Jsonl
read = lambda path: sum(1 for _ in Jsonl(Jsonl.Config(path=str(path)), Path(".")).load())
"""
    few, many = memory.peaks(code, rows=(500, 10_000), folder=tmp_path)
    assert many < 1.5 * few + 50_000


# --- Hugging Face --------------------------------------------------------------------------------


def hub(path: str, base: Path = GOOD, **options: Any) -> HuggingFace:
    return HuggingFace(HuggingFace.Config(path=path, **options), base)


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that `datasets` can load, and nothing else."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    folder = tmp_path / "data"
    folder.mkdir()
    shutil.copy(GOOD / "messages.jsonl", folder / "train.jsonl")
    return folder


@pytest.mark.parametrize("streaming", [False, True])
def test_a_local_directory_loads(offline: Path, streaming: bool) -> None:
    dataset = hub("data", offline.parent, streaming=streaming)
    assert list(dataset.problems()) == []
    assert dataset.record_type() is None
    records = list(dataset.load())
    assert contents(records) == contents(load("messages.jsonl"))
    assert records[1].source == "data/train:2"
    assert len(list(hub("data", offline.parent, streaming=streaming, limit=1).load())) == 1


def test_an_absent_split_is_told(offline: Path) -> None:
    with pytest.raises(PtlError) as caught:
        list(hub("data", offline.parent, split="tests").load())
    assert caught.value.what == "cannot load the dataset data (split tests)"
    assert "Unknown split" in (caught.value.why or "")
    assert caught.value.hint == "check 'split:' and 'name:' against the dataset's page"


def test_no_network_is_told(offline: Path) -> None:
    with pytest.raises(PtlError) as caught:
        list(hub("nobody/nothing", offline.parent).load())
    assert caught.value.what == "cannot load the dataset nobody/nothing (split train)"
    assert caught.value.hint == (
        "check the network and HF_HUB_OFFLINE, or download it and name the directory"
    )


def test_a_bad_row_of_the_hub_is_told(offline: Path) -> None:
    (offline / "train.jsonl").write_text('{"prompt": "a"}\n{"prompt": ""}\n')
    with pytest.raises(UsageError) as caught:
        list(hub("data", offline.parent).load())
    assert caught.value.what == "data/train:2  'prompt' is empty; write it, or remove the line"
    assert len(list(hub("data", offline.parent, bad_rows="skip").load())) == 1


def test_hub_digest_only_of_what_cannot_change(offline: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    assert hub("openai/gsm8k", name="main").digest() is None
    assert hub("openai/gsm8k", revision="main").digest() is None
    pinned = hub("openai/gsm8k", name="main", revision=commit)
    assert pinned.digest() == f"openai/gsm8k@{commit}/main/train"
    local = hub("data", offline.parent)
    before = local.digest()
    (offline / "train.jsonl").write_text('{"prompt": "a"}\n')
    assert before != local.digest()


def test_hub_problems_need_no_network() -> None:
    assert list(hub("openai/gsm8k", columns={"prompts": "q"}).problems()) == [
        ("columns", "unknown field 'prompts'; did you mean 'prompt'?")
    ]
    assert list(hub("./nowhere").problems()) == [("path", "there is no directory './nowhere'")]


# --- the package ---------------------------------------------------------------------------------


def test_the_hook_returns_the_datasets() -> None:
    names = list(ptl_datasets())
    assert names[:2] == ["jsonl", "huggingface"]
    assert len(names) == len(set(names))


def test_fields_are_named_once() -> None:
    assert len(FIELDS) == len(set(FIELDS))
    assert "input" in FIELDS


def test_importing_stays_light() -> None:
    heavy = "{'torch', 'transformers', 'datasets', 'pyarrow', 'tinker', 'mlflow'}"
    modules = sorted(where.partition(":")[0] for where in ptl_datasets().values())
    code = f"import sys, {', '.join(modules)}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
