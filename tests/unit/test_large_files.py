"""Files of too many rows to be held: the same split and order as if they were, faults told with
their line as they are met, and memory that does not grow with the rows."""

from __future__ import annotations

import json
import logging
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from posttrain_recipes import models
from posttrain_recipes.datasets import jsonl
from posttrain_recipes.datasets.json_rows import json_line, json_lines
from posttrain_recipes.datasets.jsonl import Jsonl
from posttrain_recipes.datasets.line_index import LineIndex
from posttrain_recipes.errors import PtlError, UsageError
from posttrain_recipes.methods.dpo import DPO
from posttrain_recipes.methods.sft import SFT
from posttrain_recipes.options import ModelRef, RendererConfig
from posttrain_recipes.planning import asked, splits
from posttrain_recipes.planning.data import load_records, open_records
from posttrain_recipes.planning.plans import Data
from posttrain_recipes.plugin import Conversation, Dataset, Labelled, Prompt, Record, Resume
from posttrain_recipes.running import sampled, texts
from posttrain_recipes.running.reading import read_records
from posttrain_recipes.streamed import Streamed
from posttrain_recipes.training.loops.supervised import Order
from posttrain_recipes.training.text.chat_template import ChatRenderer, load_renderer
from posttrain_recipes.training.text.examples import Example, tokenize, usable
from tests.conftest import Project
from tests.unit import test_gradient as gradient

HELD = 20
BAD = {
    "no JSON": '{"messages": [',
    "an unknown role": '{"messages": [{"role": "who", "content": "a"}]}',
    "no reply": '{"messages": [{"role": "user", "content": "a"}]}',
    "another form": '{"prompt": "a", "chosen": "b", "rejected": "c"}',
    "no UTF-8": b'{"messages": "\xff"}',
}


@pytest.fixture(autouse=True)
def large(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(jsonl, "HELD", HELD)
    monkeypatch.setattr(jsonl, "_LEADING", 5)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    splits._known.clear()


@pytest.fixture(scope="module")
def renderer() -> ChatRenderer:
    return load_renderer(models.resolve("ptl/tiny"))


def row(asked: str, reply: str = "b") -> str:
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": reply}]
    return json.dumps({"messages": turns})


def rows(count: int) -> list[str | bytes]:
    """Every third question is asked twice."""
    return [row(f"a {number - (number % 3 == 1)}", f"b {number}") for number in range(count)]


def written(folder: Path, lines: Sequence[str | bytes], name: str = "a.jsonl") -> Path:
    path = folder / name
    path.write_bytes(
        b"".join((one if isinstance(one, bytes) else one.encode()) + b"\n" for one in lines)
    )
    return path


def data(path: Path, held_out: bool = False, **options: Any) -> Data:
    dataset = Jsonl(Jsonl.Config(path=str(path), **options))
    return Data(dataset, ("stages", 0, "dataset"), 0, held_out)


def streamed(*args: Any, **options: Any) -> Streamed[Record]:
    records = open_records(data(*args, **options), Conversation)
    assert isinstance(records, Streamed)
    return records


def sft(renderer: ChatRenderer, records: Sequence[Record], **options: Any) -> Sequence[Example]:
    """As the method makes examples of records."""

    def make(record: Record) -> Example:
        assert isinstance(record, Conversation)
        return tokenize(record.messages, renderer, max_length=60, source=record.source, **options)

    return usable(make, records, truncate=options.get("truncate", False))


# --- the same as a file that is held -------------------------------------------------------------


@pytest.mark.parametrize("held_out", [False, True])
@pytest.mark.parametrize(
    ("lines", "options"),
    [
        (rows(60), {}),
        (rows(60), {"test_size": 7}),
        (rows(60), {"limit": 31, "test_size": 4}),
        (["", *rows(40), "", "  ", *rows(20)[3:], ""], {"test_size": 9}),
        ([*rows(30), *BAD.values(), *rows(60)[30:]], {"test_size": 7, "bad_rows": "skip"}),
        ([*BAD.values(), *rows(50)], {"test_size": 7, "limit": 25, "bad_rows": "skip"}),
        ([row("a", f"b {n}") for n in range(40)], {"test_size": 7}),
        ([row("a")] * 40, {"test_size": 7}),
    ],
)
def test_the_split_is_that_of_a_file_that_is_held(
    lines: Sequence[str | bytes],
    options: dict[str, Any],
    held_out: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = written(tmp_path, lines)
    large = list(open_records(data(path, held_out, **options), Conversation))
    again = list(open_records(data(path, held_out, **options), Conversation))
    splits._known.clear()  # from the cache of another process
    kept = load_records(data(path, held_out, **options), Conversation)
    monkeypatch.setattr(jsonl, "HELD", 1 << 20)
    expected = load_records(data(path, held_out, **options), Conversation)
    assert large == again == kept == expected


def test_fields_that_are_not_used_are_told_wherever_they_first_stand(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def with_field(line: str | bytes, name: str) -> str:
        return json.dumps({**json.loads(line), name: 1})

    lines = rows(60)
    lines[1] = with_field(lines[1], "early")
    for place in (30, 31, 50):
        lines[place] = with_field(lines[place], "late" if place < 50 else "last")
    path = written(tmp_path, lines)
    records = streamed(path)
    assert told(caplog) == ["early"]
    assert len(list(records)) == len(list(records)) == 60
    assert told(caplog) == ["early", "late", "last"]


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [message.rpartition(" ")[2] for message in caplog.messages if "not used" in message]


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_each_row_has_the_line_that_it_stands_on(mark: bytes, tmp_path: Path) -> None:
    lines = ["", *rows(30), " \u00a0 ", *rows(3), "\t"]
    path = written(tmp_path, lines)
    path.write_bytes(mark + path.read_bytes())
    index = LineIndex(path)
    numbered = list(json_lines(path.read_bytes().removeprefix(mark).splitlines(keepends=True)))
    found = [(index.line(at), json_line(index.read(at))) for at in range(len(index))]
    assert [one for one in found if one[0] > 1] == [one for one in numbered if one[0] > 1]
    assert len(numbered) == 33


@pytest.mark.parametrize("shuffle", [True, False])
def test_training_sees_the_same_batches_in_the_same_order(shuffle: bool, tmp_path: Path) -> None:
    path = written(tmp_path, rows(50))
    large = Order(streamed(path), 8, 3, shuffle)
    held = Order(list(streamed(path)), 8, 3, shuffle)
    assert large.steps_per_epoch == held.steps_per_epoch == 7
    assert [large.batch(n) for n in range(21)] == [held.batch(n) for n in range(21)]


def test_what_can_be_held_and_what_is_no_json_lines_is_read_as_ever(tmp_path: Path) -> None:
    path = written(tmp_path, rows(HELD))
    assert isinstance(open_records(data(path), Conversation), list)
    path = written(tmp_path, rows(50))
    assert isinstance(open_records(data(path, limit=HELD), Conversation), list)
    array = tmp_path / "b.jsonl"
    array.write_text("[" + ",\n".join(map(str, rows(50))) + "]")
    with pytest.raises(UsageError, match=r"b\.jsonl:1  is a JSON array"):
        open_records(data(array), Conversation)


def test_records_of_another_type_are_handed_over_as_that(tmp_path: Path) -> None:
    path = written(tmp_path, rows(50))
    asked = open_records(data(path), Prompt)
    assert isinstance(asked, Streamed)
    assert all(isinstance(record, Prompt) for record in asked)
    pairs = [json.dumps({"prompt": f"a {n}", "chosen": "b", "rejected": "c"}) for n in range(30)]
    both = open_records(data(written(tmp_path, pairs)), Labelled)
    assert len(both) == 60


def test_a_method_that_holds_its_records_gets_all_of_them(
    tmp_path: Path, renderer: ChatRenderer
) -> None:
    path = written(tmp_path, rows(50))
    for user, kind in ((DPO(DPO.Config()), list), (SFT(SFT.Config()), Streamed)):
        read = read_records(data(path), Conversation, renderer, lambda stage: tmp_path, user)
        assert isinstance(read, kind)
        assert len(read) == 50


# --- what is wrong -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", BAD)
def test_a_row_that_cannot_be_used_is_told_with_its_line_when_it_is_met(
    kind: str, tmp_path: Path
) -> None:
    records = streamed(written(tmp_path, [*rows(33), BAD[kind], *rows(9)]))
    assert len(records.chosen(range(33))) == 33
    with pytest.raises(UsageError, match=r"a\.jsonl:34  .") as caught:
        records.chosen(range(32, 40))
    assert "ptl data check" in str(caught.value.hint)


def test_where_they_are_skipped_they_are_told_and_counted_once_and_batches_are_smaller(
    tmp_path: Path, renderer: ChatRenderer, caplog: pytest.LogCaptureFixture
) -> None:
    lines: list[str | bytes] = [*rows(30), *BAD.values(), row("a", "b " * 200), *rows(4)]
    found = streamed(written(tmp_path, lines), bad_rows="skip")
    order = Order(sft(renderer, found), 8, 0, shuffle=False)
    with caplog.at_level(logging.WARNING):
        sizes = [len(order.batch(step)) for step in range(10)]
    assert sizes == [8, 8, 8, 6, 4, 8, 8, 8, 6, 4]
    assert found.left_out == {30, 31, 32, 33, 34, 35}
    told = [r.getMessage() for r in caplog.records if "left out" in r.getMessage()]
    assert [text.partition("a.jsonl:")[2][:2] for text in told] == [
        str(line) for line in range(31, 37)
    ]
    assert "tokens are more than max_length=60" in told[-1]


def test_a_batch_of_which_nothing_is_left_is_the_next_row_that_can_be_used(tmp_path: Path) -> None:
    lines = [*rows(20), BAD["no JSON"], BAD["no reply"], *rows(2)]
    order = Order(streamed(written(tmp_path, lines), bad_rows="skip"), 1, 0, shuffle=False)
    assert [one.source[-3:] for one in order.batch(20)] == [":23"]
    lines = [*rows(1), *[BAD["no JSON"]] * 30]
    order = Order(streamed(written(tmp_path, lines), bad_rows="skip"), 3, 0, shuffle=False)
    assert [one.source[-2:] for one in order.batch(9)] == [":1"]


def test_a_file_of_nothing_that_can_be_used_ends_in_words(tmp_path: Path) -> None:
    records = streamed(written(tmp_path, rows(25)), bad_rows="skip")

    def refuse(record: Record) -> Record:
        raise UsageError(f"{record.source}: no")

    with pytest.raises(UsageError, match="none of the records can be used"):
        Order(records.map(refuse), 2, 0).batch(0)


def test_replies_past_the_length_are_left_out_where_the_method_truncates(
    tmp_path: Path, renderer: ChatRenderer
) -> None:
    path = written(tmp_path, [*rows(24), row("a " * 200), row("a")])
    examples = sft(renderer, streamed(path), truncate=True)
    assert isinstance(examples, Streamed)
    assert len(examples.chosen(range(26))) == 25
    assert examples.left_out == {24}


def test_a_split_tells_rows_that_cannot_be_used_before_anything_is_spent(tmp_path: Path) -> None:
    path = written(tmp_path, [*rows(30), BAD["no reply"]])
    with pytest.raises(UsageError, match=r"a\.jsonl:31  'messages' has no assistant message"):
        open_records(data(path, test_size=4), Conversation)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More rows than are held whatever a test says: other processes read them too."""
    lines: list[str | bytes] = [row(f"a {n - (n % 3 == 1)}", f"b {n}") for n in range(21_000)]
    lines[3000:3000] = BAD.values()
    lines[15_000] = json.dumps({**json.loads(lines[15_000]), "late": 1})
    lines[20_000] = BAD["no JSON"]
    return written(tmp_path_factory.mktemp("many"), lines)


@pytest.mark.parametrize("options", [{}, {"limit": 20_500}])
def test_several_processes_split_a_file_as_one_does_and_tell_as_much(
    many: Path,
    options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(asked, "cores", lambda: 3)
    reads, found, said = [], [], []
    for at_least in (1, 1 << 30):
        monkeypatch.setattr(asked, "MANY", at_least)
        splits._known.clear()
        caplog.clear()
        one = data(many, test_size=500, bad_rows="skip", **options)
        source = one.dataset.streamed()
        assert source is not None
        reads.append(splits._asked("key", one, source))
        found.append(splits._made(one, source.leaving_out(lambda error: True), reads[-1]))
        said.append([message for message in caplog.messages if "late" not in message])
    assert found[0] == found[1]
    assert found[0] is not None
    assert said[0] == said[1]
    assert sum("is left out" in message for message in said[0]) == len(BAD) + 1
    by_others, by_one = reads
    assert len(by_others) == options.get("limit", 21_005)
    assert by_others.count(asked.UNKNOWN) == len(BAD) + 2, "the late field is told by whoever asked"
    assert not by_one


def test_a_late_field_is_told_though_another_process_read_it(
    many: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(asked, "MANY", 1)
    jsonl.tell_unused.__globals__["_tell_unused"].cache_clear()
    open_records(data(many, test_size=500, bad_rows="skip"), Conversation)
    assert told(caplog) == ["late"]


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> list[asked.Reading]:
    """The readings that other processes begin from now on."""
    monkeypatch.setattr(asked, "MANY", 1)
    monkeypatch.setattr(asked, "cores", lambda: 2)
    begun: list[asked.Reading] = []
    real = asked.begin

    def begin(dataset: Dataset, count: int) -> asked.Reading | None:
        if (reading := real(dataset, count)) is not None:
            begun.append(reading)
        return reading

    monkeypatch.setattr(asked, "begin", begin)
    return begun


def ended(reading: asked.Reading) -> bool:
    return all(reader.poll() is not None for reader in reading._readers)


def good(folder: Path) -> Path:
    return written(folder, [row(f"a {n}", f"b {n}") for n in range(21_000)])


def test_a_file_that_is_read_ahead_is_split_by_that_reading(
    tmp_path: Path, readings: list[asked.Reading], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [data(good(tmp_path), held, test_size=500) for held in (False, True)]
    with splits.ahead(parts):
        records = [list(open_records(part, Conversation)) for part in parts]
    assert len(readings) == 1
    assert ended(readings[0])
    splits._known.clear()
    with splits.ahead(parts):  # the places are in the cache
        assert [list(open_records(part, Conversation)) for part in parts] == records
    assert len(readings) == 1
    monkeypatch.setattr(jsonl, "HELD", 1 << 20)
    assert [load_records(part, Conversation) for part in parts] == records


def test_a_reading_that_nobody_asks_for_ends_with_what_it_was_begun_for(
    tmp_path: Path, readings: list[asked.Reading]
) -> None:
    path = good(tmp_path)
    with pytest.raises(KeyError), splits.ahead([data(path), data(path, test_size=500)]):
        raise KeyError("the run failed")
    assert len(readings) == 1, "and a file that is not split is not read"
    assert ended(readings[0])


def test_a_file_that_is_gone_is_told_where_it_is_read(
    tmp_path: Path, readings: list[asked.Reading]
) -> None:
    path = good(tmp_path)
    gone = data(path, test_size=500)
    path.unlink()
    with splits.ahead([gone]), pytest.raises(PtlError):
        open_records(gone, Conversation)
    assert not readings


def test_runs_side_by_side_end_their_own_readings(
    tmp_path: Path, readings: list[asked.Reading]
) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    one, two = (data(good(tmp_path / name), test_size=n) for name, n in (("one", 5), ("two", 6)))
    with splits.ahead([one]):
        with splits.ahead([two]):
            pass
        assert list(map(ended, readings)) == [False, True]
        assert len(open_records(one, Conversation)) == 21_000 - 5
    assert len(readings) == 2


def test_a_file_edited_since_it_was_read_ahead_is_read_anew(
    tmp_path: Path, readings: list[asked.Reading]
) -> None:
    path = good(tmp_path)
    with splits.ahead([data(path, test_size=500)]):
        path.write_text("".join(row(f"c {n}") + "\n" for n in range(21_000)))
        held = open_records(data(path, True, test_size=500), Conversation)
    assert len(held) == 500
    assert all(question(record).startswith("c ") for record in held)
    assert len(readings) == 2
    assert all(map(ended, readings))


def question(record: Record) -> str:
    assert isinstance(record, Conversation)
    return record.messages[0].content


@pytest.mark.parametrize("fault", ["no address", "it fails", "it cannot be started"])
def test_where_no_other_process_can_read_it_this_one_does(
    fault: str, many: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asked, "MANY", 1)
    dataset = data(many, test_size=500, bad_rows="skip").dataset
    if fault == "no address":

        class Mine(Jsonl):
            pass

        dataset = Mine(dataset.config, dataset.base_dir)
    elif fault == "it fails":
        monkeypatch.setattr(asked.sys, "executable", "/bin/false")
    else:
        monkeypatch.setattr(asked.sys, "executable", "/nowhere")
    reading = asked.begin(dataset, 21_005)
    assert reading is None or not reading.digests(21_005)


def test_other_processes_import_nothing_of_the_working_directory(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asked, "MANY", 1)
    (tmp_path / "hashlib.py").write_text("raise SystemExit('mine')")
    monkeypatch.chdir(tmp_path)
    dataset = data(many, test_size=500, bad_rows="skip").dataset
    reading = asked.begin(dataset, 21_005)
    assert reading is not None
    assert len(reading.digests(21_005)) == 21_005


RECIPE = """\
name: demo
model: ptl/tiny
stages:
  - name: sft
    dataset: {use: jsonl, path: a.jsonl, bad_rows: POLICY}
    method: {use: sft, max_length: 60}
"""


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_a_sample_is_looked_at_before_the_first_step_and_all_of_its_faults_are_told(
    policy: str, project: Project, renderer: ChatRenderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampled, "LOOKED_AT", 14)
    monkeypatch.setattr(sampled, "LONGEST", 4)
    lines: list[str | bytes] = [row(f"a {n}") for n in range(100)]
    lines[10], lines[11], lines[90] = BAD["no reply"], BAD["no reply"], BAD["no JSON"]
    lines[55] = row("a", "b " * 100)
    written(project.path, lines)
    plan = project.plan(RECIPE.replace("POLICY", policy))

    def load(ref: str | ModelRef, options: RendererConfig | None = None) -> ChatRenderer:
        return renderer

    looked = texts.Texts(plan, load, whole=False)
    found = [one for one in looked.of(plan.stages) if one.verdict != "ok"]
    assert {one.verdict for one in found} == {"failed" if policy == "stop" else "warning"}
    told = "\n".join(one.message for one in found)
    assert "of 100 rows of a.jsonl were looked at, and 2 of these cannot be used" in told
    assert "a.jsonl:11  'messages' has no assistant" in told
    assert "a.jsonl:91  is not JSON" in told
    assert "a.jsonl:12" not in told
    assert ("a.jsonl:56" if policy == "stop" else "1 of the 4 longest of 100 records") in told
    [said] = looked.looked
    assert said.startswith("14 of 100 rows of a.jsonl were looked at before the first step")


# --- going on ------------------------------------------------------------------------------------


def trained(records: Streamed[Record], resume: int = 0) -> list[list[Any]]:
    engine = gradient.Engine()
    places = records.map(lambda record: int(record.source.rpartition(":")[2]))
    at = Resume(resume, "tinker://state", "tinker://sampler") if resume else None
    gradient.run(engine, places, resume=at, batch_size=3, epochs=2)
    return engine.batches


@pytest.mark.parametrize("done", [1, 7, 11])
def test_an_interrupted_stage_goes_on_with_the_batches_of_one_that_was_not(
    done: int, tmp_path: Path
) -> None:
    lines = [*rows(10), *BAD.values(), *rows(10)]
    path = written(tmp_path, lines)
    whole = trained(streamed(path, bad_rows="skip"))
    assert len(whole) == 2 * 9
    assert any(len(batch) < 3 for batch in whole)
    assert trained(streamed(path, bad_rows="skip"), done) == whole[done:]


# --- the index, and memory -----------------------------------------------------------------------


def test_a_file_that_is_another_one_is_indexed_again(tmp_path: Path) -> None:
    path = written(tmp_path, rows(40))
    before = streamed(path)
    other = tmp_path / "new"
    other.write_text("\n".join(row(f"new {n}") for n in range(30)))
    other.replace(path)
    assert len(streamed(path)) == 30
    assert len(before) == 40


def test_a_split_tells_of_all_rows_that_cannot_be_used(tmp_path: Path) -> None:
    lines: list[str | bytes] = [*rows(40)]
    for place in range(3, 30, 2):
        lines[place] = '{"no": "row"}'
    path = written(tmp_path, lines)
    with pytest.raises(UsageError) as caught:
        streamed(path, test_size=5)
    told = caught.value.what.replace(f"{tmp_path}/", "")
    assert told.startswith("14 of 40 rows of a.jsonl cannot be used:\n  a.jsonl:4  ")
    assert len(told.splitlines()) == 1 + 10 + 1
    assert "bad_rows: skip" in (caught.value.hint or "")


def test_a_split_of_another_size_than_was_asked_for_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = written(tmp_path, [*[row("same")] * 20, *[row("other")] * 20])
    for _ in range(2):
        streamed(path, test_size=4)
    assert caplog.text.count("has 20 records and not test_size=4: rows that ask the same") == 1


def test_a_file_that_is_edited_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, rows(40))
    records = streamed(path)
    with path.open("a") as file:
        file.write(row("more") + "\n")
    with pytest.raises(UsageError, match=r"a\.jsonl was edited while it was read"):
        records[3]
    assert len(streamed(path)) == 41


def linked(path: Path) -> None:
    path.with_name("backup").hardlink_to(path)


def protected(path: Path) -> None:
    path.chmod(0o400)


def replaced(path: Path) -> None:
    other = written(path.parent, rows(3), "other.jsonl")
    other.replace(path)


@pytest.mark.parametrize("touch", [linked, protected, replaced, Path.unlink])
def test_a_file_whose_rows_stay_as_they_were_is_read_to_its_end(
    touch: Callable[[Path], None], tmp_path: Path
) -> None:
    expected = list(streamed(written(tmp_path, rows(40), "b.jsonl")))
    path = written(tmp_path, rows(40))
    records = streamed(path)
    touch(path)
    assert [one.messages for one in records] == [one.messages for one in expected]


def spoil(path: Path) -> None:
    path.write_bytes(b"\xff" * 10)


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


@pytest.mark.parametrize("spoilt", [spoil, shorten, Path.unlink])
def test_a_split_in_the_cache_is_known_by_what_the_file_holds(
    spoilt: Callable[[Path], None], tmp_path: Path
) -> None:
    path = written(tmp_path, rows(40))
    expected = list(streamed(path, test_size=5))
    [kept] = (tmp_path / "cache" / "posttrain-recipes" / "splits").iterdir()
    spoilt(kept)
    splits._known.clear()
    assert list(streamed(path, test_size=5)) == expected
    written(tmp_path, [row(f"new {n}") for n in range(40)])
    splits._known.clear()
    assert all("new" in r.messages[0].content for r in streamed(path, test_size=5))  # type: ignore[attr-defined]


@pytest.mark.parametrize(("test_size", "bytes_a_row"), [(0, 20), (5, 80)])
def test_memory_does_not_grow_with_the_rows_beyond_the_index(
    test_size: int, bytes_a_row: int, tmp_path: Path
) -> None:
    peaks = []
    for count in (1500, 6500):  # both of more than a block that is read at once
        path = written(tmp_path, [row(f"a {n} " + "c" * 1000) for n in range(count)])
        jsonl._indexes.clear()
        tracemalloc.start()
        records = streamed(path, test_size=test_size)
        order = Order(records, 8, 0)
        for step in range(order.steps_per_epoch):
            order.batch(step)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 5000 * bytes_a_row


def test_fewer_rows_than_are_read_first_are_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonl, "_LEADING", 1000)
    assert len(list(streamed(written(tmp_path, rows(HELD + 1))))) == HELD + 1
