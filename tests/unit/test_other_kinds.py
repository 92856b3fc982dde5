"""What is no file of records, and files that are what their names say."""

from __future__ import annotations

import csv
import json
import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from posttrain_recipes.datasets.checking import check_file
from posttrain_recipes.shown import field
from tests.conftest import Project, Ptl
from tests.unit.test_cli import finished, keep
from tests.unit.test_secrets_told import SHOWN


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("fifo.jsonl", "is a pipe"),
        ("to_fifo.jsonl", "is a pipe"),
        ("s.jsonl", "is a socket"),
        ("/dev/zero", "is a device"),
        ("/dev/null", "is a device"),
        ("model", "is a directory"),
        ("gone.jsonl", "is a link to nowhere.jsonl, which is not there"),
        ("loop.jsonl", "cannot be read: Too many levels of symbolic links"),
        ("a" * 300 + ".jsonl", "cannot be read: File name too long"),
        ("chat.jsonl/x.jsonl", "there is no file"),
        ("~nobody-of-that-name/x.jsonl", "there is no file"),
    ],
)
def test_what_is_no_file_is_told_by_what_it_is(
    ptl: Ptl, project: Project, name: str, told: str
) -> None:
    os.mkfifo("fifo.jsonl")
    Path("to_fifo.jsonl").symlink_to("fifo.jsonl")
    Path("gone.jsonl").symlink_to("nowhere.jsonl")
    Path("loop.jsonl").symlink_to("loop.jsonl")
    project.write("mine.yaml", SHOWN.replace("PATH", name))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("s.jsonl")
        for words in (("data", "check", name), ("validate", "mine.yaml")):
            said = ptl(*words)
            assert said.code == 2
            assert told in said.out
            assert told == "there is no file" or "there is no file" not in said.out


def test_a_link_to_a_file_is_one(project: Project) -> None:
    Path("link.jsonl").symlink_to("chat.jsonl")
    assert check_file(Path("link.jsonl")).records == 4


# --- files that a comparison is written to --------------------------------------------------------

FORMULA = '=HYPERLINK("http://x")'


@pytest.fixture
def two(project: Project) -> None:
    for number in (1, 2):
        record = finished()
        stage = record.stages[0]
        (measured,) = stage.after
        stage.after = [replace(measured, name=FORMULA), measured]
        record.id = f"demo-{number}"
        record.recipe = "demo"
        record.resolved = {"name": "demo", "seed": number, "stages": [{"name": "sft"}]}
        keep(project, record)


@pytest.mark.usefixtures("two")
@pytest.mark.parametrize(("name", "delimiter"), [("c.csv", ","), ("c.tsv", "\t"), ("C.CSV", ",")])
def test_a_comparison_as_a_table_of_values(ptl: Ptl, name: str, delimiter: str) -> None:
    said = ptl("compare", "demo-1", "demo-2", "-o", name)
    assert said.code == 0, said.err
    assert "options that differ are not in it" in said.out
    with Path(name).open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter=delimiter))
    assert {row["eval"] for row in rows} == {"held_out", f"'{FORMULA}"}
    of_second = [row for row in rows if row["way"] == "demo-2"]
    assert [(row["value"], row["count"]) for row in of_second] == [("0.75", "100")] * 2
    assert "<html" not in Path(name).read_text()
    cells = [cell for row in rows for cell in row.values()]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "@"))]


@pytest.mark.usefixtures("two")
def test_a_comparison_as_json_markdown_and_html(ptl: Ptl) -> None:
    for name in ("c.json", "c.md", "c.html", "c.htm"):
        assert ptl("compare", "demo-1", "demo-2", "-o", name).code == 0
    assert json.loads(Path("c.json").read_text())["runs"] == ["demo-1", "demo-2"]
    note = Path("c.md").read_text()
    assert "| demo-2 | 1 | 75.0% ±5.0 |" in note
    assert "| seed | 1 | 2 |" in note
    for name in ("c.html", "c.htm"):
        assert "<html" in Path(name).read_text()


@pytest.mark.usefixtures("two")
@pytest.mark.parametrize("name", ["c.txt", "c", "c.xlsx", "c.html.gz", ".csv"])
def test_a_file_that_would_not_be_what_its_name_says_is_refused(ptl: Ptl, name: str) -> None:
    for words, there in (
        (("compare", "demo-1", "demo-2"), ".html, .htm, .md, .csv, .tsv, .json"),
        (("report", "demo-1"), ".html, .htm, .md"),
    ):
        said = ptl(*words, "-o", name)
        assert said.code == 2
        assert f"there is {there}" in said.err
        assert not Path(name).exists()
    assert ptl("report", "demo-1", "-o", "r.csv").code == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("=1", "'=1"),
        (" @x", "'@x"),
        ("-x", "'-x"),
        ("-0.5", "-0.5"),
        ("a|b<c", "a|b<c"),
        ("a\nb\tc\x1b", "a\\nb\\tc\\u001b"),
        ("＝1", "'＝1"),
    ],
)
def test_a_field_is_no_formula_and_else_as_it_is(text: str, expected: str) -> None:
    assert field(text) == expected
