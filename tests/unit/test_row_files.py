"""What a data file says is what is read, or the line that cannot be read is told."""

from __future__ import annotations

import bz2
import copy
import gzip
import json
import pickle
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from posttrain_recipes.conversion import as_row, final_answer
from posttrain_recipes.datasets.checking import check_file
from posttrain_recipes.datasets.jsonl import Jsonl
from posttrain_recipes.datasets.reading import read_rows
from posttrain_recipes.datasets.rows import RowError
from posttrain_recipes.errors import UsageError
from posttrain_recipes.plugin import Conversation, Prompt
from posttrain_recipes.training.text.examples import NothingToLearn, usable


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def load(path: Path, **options: Any) -> list[Any]:
    return list(Jsonl(Jsonl.Config(path=str(path), **options)).load())


def faults(path: Path) -> list[tuple[int, str]]:
    return [(fault.location.line, fault.message) for fault in check_file(path).faults]


# --- the final answer ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("1 + 1 = 2\n#### 2", "2"),
        ("1 + 1 = 2\r\n#### 1,200\r\n", "1,200"),
        ("#### 2", "2"),
        ("x\n#### 3 #### 4", "3 #### 4"),
        ("#### Step 1\nadd\n#### Step 2\nstop", None),
        ("#### Step 1\nadd\n#### 2", None),
        ("use #### as a rule", None),
        ("it is #### 2", None),
        ("#### 2\nand so on", None),
        ("text\n##### small heading", None),
    ],
)
def test_only_one_trailing_line_is_the_final_answer(text: str, answer: str | None) -> None:
    assert final_answer(text) == (text if answer is None else answer)


def test_headings_in_an_answer_are_kept(tmp_path: Path) -> None:
    text = "#### Step 1\nadd\n#### Step 2\nstop"
    path = written(tmp_path, "a.jsonl", json.dumps({"question": "how?", "answer": text}))
    (record,) = load(path)
    assert record.answer == text


# --- numbers -------------------------------------------------------------------------------------

LONG = "9" * 5000
BIG = "123456789012345678901234567890"
NUMBERS = [
    *("0.00001", "1e-05", "1.0", "1.50", "1E3", "1e400", "-2.5e400", "1e-400", "-0", "-0.0", "7"),
    *(BIG, "9" * 5000, "1e99999", "1e99999999999999999999", "0.1234567890123456789"),
]


@pytest.mark.parametrize("text", NUMBERS, ids=lambda text: text[:20])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_number_as_an_answer_keeps_its_text(tmp_path: Path, text: str, name: str) -> None:
    row = f'{{"question": "how much?", "answer": {text}, "more": [{{"of": {text}}}]}}'
    (record,) = load(written(tmp_path, name, row if name == "a.jsonl" else f"[{row}]"))
    assert record.answer == text
    (inner,) = record.metadata["more"]
    assert str(inner["of"]) == f"{inner['of']}" == text
    whole = json.loads(json.dumps(as_row(record)), parse_constant=pytest.fail)
    assert whole["answer"] == text


def test_numbers_beside_an_answer_stay_numbers(tmp_path: Path) -> None:
    row = '{"prompt": "a", "level": 1.0, "small": 0.00001, "large": 1e400, "none": -0, "n": 3}'
    (record,) = load(written(tmp_path, "a.jsonl", row))
    data = record.metadata
    assert data["level"] == 1
    assert data["level"] + 1 == 2.0
    assert data["small"] * 2 < 1
    assert data["large"] > 10**399
    assert data["none"] == 0
    assert type(data["n"]) is int
    assert isinstance(data["small"], float)
    assert json.loads(json.dumps(data), parse_constant=pytest.fail) == data
    for again in (pickle.loads(pickle.dumps(data)), copy.deepcopy(data)):
        assert again == data
        assert [str(value) for value in again.values()] == [str(v) for v in data.values()]


def test_a_number_is_no_text(tmp_path: Path) -> None:
    lines = [f'{{"prompt": {text}, "completion": "a"}}' for text in ("0.00001", "1e400", LONG)]
    assert faults(written(tmp_path, "a.jsonl", "\n".join(lines))) == [
        (line, "'prompt' is a number; it must be text or a list of messages") for line in (1, 2, 3)
    ]


@pytest.mark.parametrize("name", ["NaN", "Infinity", "-Infinity"])
def test_what_is_no_number_is_refused(tmp_path: Path, name: str) -> None:
    good, bad = '{"prompt": "a"}', f'{{"prompt": "b", "more": {{"x": [{name}]}}}}'
    told = f"has {name}, which is no number in JSON; leave it out or write null"
    assert faults(written(tmp_path, "a.jsonl", f"{good}\n{bad}\n")) == [(2, told)]
    array = written(tmp_path, "a.json", f'[{good},\n{bad},\n{{"prompt": "c"}}]')
    assert faults(array) == [(2, told)]
    assert check_file(array).records == 2


def test_numbers_of_parquet_are_written_as_people_do(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")

    table = pyarrow.table(
        {
            "question": ["a", "b", "c"],
            "answer": [0.00001, 72.0, 1e21],
            "narrow": pyarrow.array([0.1, 2.5, 1e-7], pyarrow.float32()),
            "exact": pyarrow.array([Decimal("1.50"), Decimal("2.00"), None]),
            "maybe": [1.0, float("nan"), None],
        }
    )
    path = tmp_path / "a.parquet"
    parquet.write_table(table, path)
    assert faults(path) == [(2, "'maybe' has nan, which is no number; leave it out or write null")]
    first, last = load(path, bad_rows="skip")
    assert (first.answer, last.answer) == ("0.00001", "1000000000000000000000")
    assert first.metadata["narrow"] == 0.1
    assert str(last.metadata["narrow"]) == "0.0000001"
    assert str(first.metadata["exact"]) == "1.50"
    json.dumps(as_row(first))


# --- what stands twice ---------------------------------------------------------------------------


def test_a_key_that_stands_twice_is_told(tmp_path: Path) -> None:
    rows = [
        '{"prompt": "a", "answer": "1"}',
        '{"prompt": "b", "answer": "1", "answer": "2"}',
        '{"prompt": "c", "answer": "1", "more": [{"x": 1, "y": 2, "x": 1}]}',
    ]
    told = [
        (n, f"has the key '{k}' twice in one object; keep one of them")
        for n, k in ((2, "answer"), (3, "x"))
    ]
    assert faults(written(tmp_path, "a.jsonl", "\n".join(rows))) == told
    assert faults(written(tmp_path, "a.json", "[" + ",\n".join(rows) + "]")) == told
    (alone,) = faults(written(tmp_path, "b.json", '{"data": [{"prompt": "a"}],\n"data": []}'))
    assert alone == (2, "has the key 'data' twice in one object; keep one of them")


@pytest.mark.parametrize(("name", "comma"), [("a.csv", ","), ("a.tsv", "\t")])
def test_a_column_that_stands_twice_is_told(tmp_path: Path, name: str, comma: str) -> None:
    text = "\ufeffprompt,answer,prompt\na,1,b\n".replace(",", comma)
    path = written(tmp_path, name, text)
    assert faults(path) == [(1, "has the column 'prompt' twice; rename one of them")]
    with pytest.raises(UsageError, match=rf"{name}:1  has the column 'prompt' twice"):
        load(path, bad_rows="skip")  # it is no row that could be left out


def test_a_parquet_column_that_stands_twice_is_told(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")

    table = pyarrow.Table.from_arrays([pyarrow.array(["a"])] * 2, names=["prompt", "prompt"])
    path = tmp_path / "a.parquet"
    parquet.write_table(table, path)
    assert faults(path) == [(0, "has the column 'prompt' twice; rename one of them")]


# --- files ---------------------------------------------------------------------------------------


def test_a_csv_field_may_be_long(tmp_path: Path) -> None:
    long = "word " * 40_000
    (record,) = load(written(tmp_path, "a.csv", f'prompt,answer\n"{long}",1\n'))
    assert record.messages[0].content == long


ROW = b'{"prompt": "a", "completion": "b"}\n'


ZSTD = b"\x28\xb5\x2f\xfd\0\1"
# Without the time of day, which would be part of the tests' names.
GZIPPED = gzip.compress(ROW, mtime=0)
UNPACK = "the file is zstd, which is not read; unpack it: zstd -d"
AS_TEXT = "save its rows as JSONL, CSV or parquet"


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.jsonl", GZIPPED, "the file is gzip; name it .gz"),
        ("a.csv", GZIPPED, "the file is gzip; name it .gz"),
        ("a.dat", GZIPPED, "the file is gzip; name it .gz"),
        ("a.parquet", GZIPPED, "the file is gzip; name it .gz"),
        ("a.jsonl", ZSTD, UNPACK),
        ("a.jsonl.zst", ZSTD, UNPACK),
        ("a.jsonl.gz", ZSTD, UNPACK),
        ("a.json", bz2.compress(ROW), "is bzip2, which is not read; unpack it: bzip2 -d"),
        ("a.csv", b"PK\x03\x04\x14\0\x06\0", "unpack it, or save its rows as CSV"),
        ("a.jsonl", b"PAR1\x15\x04\x15\0\0\0", "the file is parquet; name it .parquet"),
        ("a.jsonl", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", f"the file is binary, not text; {AS_TEXT}"),
        ("a.jsonl.gz", ROW, "is not gzip, though its name ends in .gz; name it a.jsonl"),
        (
            "a.jsonl.gz",
            gzip.compress(GZIPPED, mtime=0),
            "what is in the gzip is gzip; unpack it: gunzip",
        ),
        (
            "a.parquet.gz",
            gzip.compress(b"PAR1", mtime=0),
            "is parquet within gzip; unpack it: gunzip",
        ),
    ],
)
def test_a_file_under_another_name_is_told(
    tmp_path: Path, name: str, content: bytes, told: str
) -> None:
    path = written(tmp_path, name, content)
    ((line, said),) = faults(path)
    assert line == 0
    assert said.endswith(told)
    ((_, problem),) = Jsonl(Jsonl.Config(path=str(path))).problems()
    assert problem.endswith(told)
    with pytest.raises(UsageError):
        load(path, bad_rows="skip")


def test_utf32_is_told(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", ROW.decode().encode("utf-32"))
    assert faults(path) == [(0, "is UTF-32; save it as UTF-8: iconv -f UTF-32 -t UTF-8")]


def test_a_name_in_capitals_is_read(tmp_path: Path) -> None:
    assert len(load(written(tmp_path, "A.JSONL.GZ", gzip.compress(ROW)))) == 1


WRAPPED = '{"version": 1.0, "data": [%s\n{"prompt": "b", "level": 2}], "tags": ["x", "y"]}'


@pytest.mark.parametrize("pretty", ["", "\n"])
def test_the_list_of_one_object_is_read(tmp_path: Path, pretty: str) -> None:
    text = WRAPPED % ('{"prompt": "a", "level": 1.0},' + pretty)
    path = written(tmp_path, "a.json", "\ufeff" + pretty + text)
    first, second = load(path)
    assert [first.messages[0].content, second.messages[0].content] == ["a", "b"]
    line = 2 + 2 * len(pretty)
    assert second.source.endswith(f"a.json:{line}")
    assert isinstance(first, Prompt)
    assert str(first.metadata["level"]) == "1.0"


def test_faults_within_the_list_have_their_lines(tmp_path: Path) -> None:
    text = WRAPPED % '\n{"prompt": "a"},\n{"prompt": NaN},\n{"prompt": "c", "x": 1, "x": 2}, 5,'
    assert [line for line, _ in faults(written(tmp_path, "a.json", text))] == [3, 4, 4]


def test_several_lists_are_told(tmp_path: Path) -> None:
    text = '{"train": [{"prompt": "a"}],\n "test": [{"prompt": "b"}]}'
    (fault,) = faults(written(tmp_path, "a.json", text))
    assert fault[1] == (
        "is one object with several lists of objects ('train', 'test'); write each to a file of "
        "its own: jq .train"
    )


def test_one_object_may_be_one_row(tmp_path: Path) -> None:
    turns = '[{"role": "user", "content": "a"},\n {"role": "assistant", "content": "b"}]'
    (record,) = load(written(tmp_path, "a.json", f'{{"messages": {turns}, "n": 1}}'))
    assert isinstance(record, Conversation)
    (renamed,) = load(
        written(tmp_path, "b.json", f'{{\n"talk": {turns}}}'), columns={"messages": "talk"}
    )
    assert isinstance(renamed, Conversation)


def test_an_object_with_no_list_or_cut_short_is_told(tmp_path: Path) -> None:
    deep = '{"version": 1,\n "data": {"rows": [{"prompt": "a"}]}}'
    (fault,) = faults(written(tmp_path, "a.json", deep))
    assert fault[1].endswith("holds rows; write them a line each: jq -c '.data.rows[]'")
    (fault,) = faults(written(tmp_path, "b.json", '{"version": 1,\n "data": [{"prompt": "a"},'))
    assert fault == (2, "is not JSON: it breaks off after column 26")
    (fault,) = faults(written(tmp_path, "c.jsonl", '{"version": 1, "data": [{"prompt": "a"}]}'))
    assert "jq -c '.data[]'" in fault[1]


def test_more_after_an_array_is_told(tmp_path: Path) -> None:
    path = written(tmp_path, "a.json", '[{"prompt": "a"}]\n[{"prompt": "b"}]')
    assert faults(path) == [(2, "more follows the array; keep one array in a file")]


def test_an_object_a_line_is_read_a_line_at_a_time(tmp_path: Path) -> None:
    path = written(tmp_path, "a.json", ROW + b"\n" + ROW + b'{"prompt": }\n' + ROW)
    rows = list(read_rows(path))
    assert [line for line, _ in rows] == [1, 3, 4, 5]
    assert [line for line, row in rows if isinstance(row, RowError)] == [4]


# --- what is left out ----------------------------------------------------------------------------


def test_rows_that_are_left_out_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = written(tmp_path, "a.jsonl", ROW + b'{"prompt": "a", "prompt": "b"}\n' + b"no\n" * 11)
    assert len(load(path, bad_rows="skip")) == 1
    told = caplog.text
    assert "12 rows cannot be used and were left out" in told
    assert "a.jsonl:2  has the key 'prompt' twice" in told
    assert "a.jsonl:11  is not JSON" in told
    assert "a.jsonl:12" not in told


def test_records_that_truncation_leaves_nothing_of_are_left_out_and_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def make(number: int) -> int:
        if number % 2:
            raise NothingToLearn(f"a.jsonl:{number}: nothing is left")
        return number

    assert usable(make, range(4), truncate=True) == [0, 2]
    assert "a.jsonl:3: nothing is left; it is left out" in caplog.text
    with pytest.raises(NothingToLearn):
        usable(make, range(4), truncate=False)
    with pytest.raises(NothingToLearn):
        usable(make, [1, 3], truncate=True)
