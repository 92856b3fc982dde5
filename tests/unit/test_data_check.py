"""Every fault of a data file is told in words that a person can act on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from posttrain_recipes.cli.data import data
from posttrain_recipes.datasets import checking
from posttrain_recipes.datasets.checking import Lengths, check_file
from posttrain_recipes.datasets.jsonl import Jsonl
from posttrain_recipes.errors import UsageError
from posttrain_recipes.options import RendererConfig
from posttrain_recipes.plugin import Conversation, Message, Prompt
from posttrain_recipes.records import Messages
from tests import memory
from tests.conftest import Project, Ptl

DATA = Path(__file__).parents[1] / "fixtures" / "data"
BROKEN = DATA / "broken"
GOOD = DATA / "good"

NO_VERDICT = (
    "write true (good) or false (bad), or leave the field out where it is no verdict on the reply"
)
EXPECTED: dict[str, list[tuple[int, str]]] = {
    "array.json": [
        (3, "has no 'completion'; add it"),
        (4, 'is text, not an object; a record reads {"field": "value", ...}'),
        (5, "is not JSON: did not expect '\"' at column 18"),
    ],
    "array.jsonl": [(1, "is a JSON array; name the file .json to have it read whole")],
    "array_open.json": [(3, "the array is never closed; was the file cut short?")],
    "bad_json.jsonl": [
        (2, "is not JSON: did not expect '}' at column 15"),
        (3, "is not JSON: single quotes at column 2; write double quotes"),
        (4, "is not JSON: a comma before the closing bracket at column 34"),
        (5, "is not JSON: more follows the object at column 17; write one object a line"),
        (6, "is not JSON: a raw control character at column 14; write \\n or \\t"),
    ],
    "bad_label.jsonl": [
        (2, f"'label' is a number; {NO_VERDICT}"),
        (3, f"'label' is text; {NO_VERDICT}"),
    ],
    "chosen_alone.jsonl": [(1, "has 'chosen' but no 'rejected'; add it")],
    "columns.csv": [
        (3, "columns: 1 here, 2 in the header; add what is missing"),
        (6, "columns: 3 here, 2 in the header; quote a value that has ',' in it"),
    ],
    "cut_short.jsonl": [(2, "is not JSON: it breaks off after column 45")],
    "dolly.jsonl": [
        (1, "has no 'output'; add it, or map one of these in columns: context, response")
    ],
    "duplicates.jsonl": [
        (3, "repeats line 1; remove one of them"),
        (4, "repeats line 2; remove one of them"),
    ],
    "empty.jsonl": [(0, "has no records")],
    "empty_content.jsonl": [
        (2, "messages[0].content is empty; write it, or remove the line"),
        (3, "messages[1].content is empty; write it, or remove the line"),
        (4, "'messages' has no messages; write them, or remove the line"),
    ],
    "late_system.jsonl": [(2, "messages[1] is a system message; move it to the front")],
    "latin1.csv": [
        (
            3,
            "byte 2 (0xfc) is not UTF-8; save the file as UTF-8, perhaps: iconv -f latin1 -t UTF-8",
        )
    ],
    "latin1.jsonl": [
        (
            2,
            "byte 38 (0xfc) is not UTF-8; save the file as UTF-8, perhaps: "
            "iconv -f latin1 -t UTF-8",
        )
    ],
    "missing_field.jsonl": [
        (2, "has no 'completion'; add it"),
        (
            3,
            "has no 'completion'; did you mean 'completoin'? rename it, or map it in columns",
        ),
        (4, "has no 'prompt'; add it"),
    ],
    "misspelt_answer.jsonl": [(1, "has 'anwser'; did you mean 'answer'? rename it")],
    "misspelt_first.jsonl": [
        (1, "has no 'prompt'; did you mean 'promt'? rename it, or map it in columns")
    ],
    "mixed.jsonl": [
        (
            2,
            "is prompt/completion, but the file is messages since line 1; keep one form in a file",
        ),
        (
            3,
            "is prompt/chosen/rejected, but the file is messages since line 1; "
            "keep one form in a file",
        ),
    ],
    "no_assistant.jsonl": [
        (
            2,
            "'messages' has no assistant message; add the reply to learn, or name the field "
            "'prompt' if there is none",
        ),
        (
            3,
            "'messages' ends with the user; add the assistant's reply, or remove what follows "
            "the last one",
        ),
    ],
    "no_final_answer.jsonl": [
        (2, "'answer' has nothing after '####'; write the final answer there"),
        (3, "'answer' is null; it must be text"),
    ],
    "no_form.jsonl": [
        (
            1,
            "is in no known form (its fields: 'text', 'id'); say what they are, as "
            "'columns: {prompt: question, response: reply}' (in 'ptl data check' --columns "
            "prompt=question), or use "
            "prompt/chosen/rejected, messages, conversations, instruction/output, "
            "prompt/completion, prompt/response, question/answer, prompt/answer, prompt",
        )
    ],
    "not_an_object.jsonl": [
        (2, 'is a number, not an object; a record reads {"field": "value", ...}'),
        (3, 'is null, not an object; a record reads {"field": "value", ...}'),
        (4, 'is text, not an object; a record reads {"field": "value", ...}'),
        (5, 'is a boolean, not an object; a record reads {"field": "value", ...}'),
        (6, 'is a list, not an object; a record reads {"field": "value", ...}'),
    ],
    "nul.jsonl": [
        (2, "has a NUL byte at byte 15; the file is damaged, or not text: remove the line")
    ],
    "preference_parts_early.jsonl": [
        (
            1,
            "'chosen' and 'rejected' differ before the reply; they must be the same conversation "
            "up to an assistant message",
        )
    ],
    "preference_text.jsonl": [
        (
            1,
            "'chosen' is text and there is no 'prompt'; add 'prompt', or write whole "
            "conversations as lists of messages",
        )
    ],
    "pretty_printed.jsonl": [(1, "breaks off after '{'; write each object on one line: jq -c")],
    "prompt_answered.jsonl": [
        (1, "'prompt' ends with the assistant; it must end where a reply is wanted")
    ],
    "quote.csv": [(3, "is not CSV: unexpected end of data; is a quote not closed or not doubled?")],
    "reply_by_user.jsonl": [
        (
            1,
            "'completion' begins with the user; it must be the assistant's reply, or repeat "
            "'prompt' exactly before it",
        )
    ],
    "same_preference.jsonl": [
        (2, "'chosen' and 'rejected' are the same; there is nothing to prefer")
    ],
    "surrogate.jsonl": [
        (
            1,
            "'completion' has half of a surrogate pair (U+D83D); write the whole character",
        )
    ],
    "unknown_role.jsonl": [
        (2, "messages[1]: unknown role 'assitant'; did you mean 'assistant'?"),
        (3, "messages[0]: unknown role 'bot'; the roles are system, user, assistant, tool"),
        (3, "messages[1]: unknown role (a number); the roles are system, user, assistant, tool"),
    ],
    "unknown_suffix.txt": [
        (
            0,
            "cannot tell its format by its name; name it .jsonl, .ndjson, .json, .csv, .tsv, "
            ".parquet, or give its format",
        )
    ],
    "utf16.jsonl": [(0, "is UTF-16; save it as UTF-8: iconv -f UTF-16 -t UTF-8")],
    "wrong_types.jsonl": [
        (2, "messages[0].content is a number; it must be text"),
        (2, "messages[1].content is null; it must be text"),
        (3, 'messages[0] is text; a message is {"role": ..., "content": ...}'),
        (4, "'messages' is text; it must be a list of messages"),
        (5, "'messages' is null; it must be a list of messages"),
        (6, "messages[0] has no 'content'; add it"),
        (7, "messages[0].content[0] is of type 'image_url'; only text can be trained on"),
    ],
}

# Their words, or the line, are a library's and differ between its versions.
OTHERS = {"cut.jsonl.gz", "not.parquet"}


def found(name: str) -> list[tuple[int, str]]:
    return [(f.location.line, f.message) for f in check_file(BROKEN / name).faults]


def ptl_data(*arguments: object) -> Result:
    return CliRunner().invoke(data, ["check", *map(str, arguments)], prog_name="ptl data")


# --- faults --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXPECTED)
def test_each_fault_is_told(name: str) -> None:
    assert found(name) == EXPECTED[name]


def test_every_broken_file_is_expected() -> None:
    assert {path.name for path in BROKEN.iterdir()} == set(EXPECTED) | OTHERS


def test_a_cut_archive_is_told() -> None:
    ((_, message),) = found("cut.jsonl.gz")
    assert message == "the file breaks off or is damaged from here on; copy it again"


def test_what_is_no_parquet_is_told() -> None:
    pytest.importorskip("pyarrow")
    ((line, message),) = found("not.parquet")
    assert line == 0
    assert message.startswith("is not a parquet file that can be read: ")


@pytest.mark.parametrize("name", sorted(set(EXPECTED) | OTHERS))
def test_loading_refuses_what_checking_finds(name: str) -> None:
    if name == "duplicates.jsonl":  # worth a look, and no hindrance to training
        return
    dataset = Jsonl(Jsonl.Config(path=str(BROKEN / name)))
    with pytest.raises(UsageError) as caught:
        list(dataset.load())
    assert "ptl data check" in (caught.value.hint or "")


@pytest.mark.parametrize("path", sorted(GOOD.iterdir()), ids=lambda path: path.name)
def test_good_files_have_no_fault(path: Path) -> None:
    columns = {"prompt": "problem", "answer": "solution"} if path.name == "renamed.jsonl" else {}
    report = check_file(path, columns=columns)
    assert report.faults == []
    assert report.ok
    assert report.record_type is not None


def test_a_missing_file_is_told_with_its_neighbour() -> None:
    report = check_file(GOOD / "mesages.jsonl")
    assert not report.ok
    assert report.faults[0].message.endswith(f"did you mean '{GOOD / 'messages.jsonl'}'?")


def test_over_long_records_are_told(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [{"prompt": "a", "completion": "b" * 300_000}, {"prompt": "a b c", "completion": "d"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    ((line, message),) = ((f.location.line, f.message) for f in check_file(path).faults)
    assert line == 1
    assert message == (
        "is 300,001 characters long, over 200,000; shorten it, or count its tokens with a "
        "model's tokenizer"
    )

    def words(messages: Messages) -> int:
        return sum(len(message.content.split()) for message in messages)

    report = check_file(path, max_tokens=3, count_tokens=words)
    assert [(f.location.line, f.message) for f in report.faults] == [
        (2, "is 4 tokens long, over 3; shorten or split it")
    ]
    assert report.tokens is not None
    assert report.tokens.as_dict() == {"min": 2, "mean": 3.0, "median": 2, "p95": 4, "max": 4}


def test_a_template_that_refuses_is_a_fault(tmp_path: Path) -> None:
    def refuse(messages: Messages) -> int:
        raise UsageError("the chat template refuses this", why="no system messages")

    report = check_file(GOOD / "prompt.jsonl", count_tokens=refuse)
    assert [f.message for f in report.faults] == [
        "the chat template refuses this (no system messages)"
    ]


def test_wrong_calls_are_refused() -> None:
    with pytest.raises(UsageError, match="a limit in tokens needs a tokenizer"):
        check_file(GOOD / "prompt.jsonl", max_tokens=3)
    with pytest.raises(UsageError, match="unknown field 'promt'; did you mean 'prompt'"):
        check_file(GOOD / "prompt.jsonl", columns={"promt": "q"})


def test_faults_are_capped_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("oops\n" * 3000)
    report = check_file(path)
    assert (len(report.faults), report.fault_count, report.bad_lines) == (1000, 3000, 3000)


def test_what_does_not_count_as_a_repeat(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    row = {"prompt": "a", "completion": "b", "label": True}
    path.write_text("".join(json.dumps({**row, "label": value}) + "\n" for value in (True, False)))
    assert check_file(path).ok
    path.write_text('{"prompt": "a", "target": 1}\n{"prompt": "a", "target": 2}\n')
    assert check_file(path).ok


@pytest.mark.parametrize("line", ["[" * 100_000, '{"a": ' * 100_000, '{"prompt": ' + "9" * 5000])
def test_hostile_json_is_a_fault(tmp_path: Path, line: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "a"}\n' + line + "\n")
    ((at, message),) = ((f.location.line, f.message) for f in check_file(path).faults)
    assert at == 2
    assert message.startswith("is not JSON")


def test_a_json_file_may_have_an_object_a_line(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for blank in ("", "\n"):
        path.write_text(blank + '{"prompt": "a"}\n{"prompt": "b"}\n')
        assert check_file(path).records == 2


def test_many_records_are_told_apart() -> None:
    seen = checking._Seen()
    values = [(n * 0x9E3779B97F4A7C15) % 2**64 for n in range(1, 20_001)]
    assert all(seen.line_of(value, line) is None for line, value in enumerate(values, 1))
    assert [seen.line_of(value, 0) for value in values] == list(range(1, 20_001))


def test_quantiles() -> None:
    lengths = Lengths()
    for length in range(1, 101):
        lengths.add(length)
    assert lengths.as_dict() == {"min": 1, "mean": 50.5, "median": 50, "p95": 95, "max": 100}
    assert Lengths().as_dict() == {"min": 0, "mean": 0.0, "median": 0, "p95": 0, "max": 0}


def test_checking_streams(tmp_path: Path) -> None:
    """A record costs no more than its place in the table of hashes: 72 bytes at most."""
    code = """
from posttrain_recipes.datasets.checking import check_file
read = lambda path: check_file(path).records
"""
    few, many = memory.peaks(code, rows=(500, 10_000), folder=tmp_path)
    assert many - few < 10_000 * 72


# --- the command ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(BROKEN.iterdir()), ids=lambda path: path.name)
def test_the_command_exits_with_2_and_no_traceback(path: Path) -> None:
    result = ptl_data(path)
    assert result.exit_code == 2
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    assert str(path.name) in result.output


def test_the_command_prints_place_message_and_summary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(DATA)
    result = ptl_data("broken/duplicates.jsonl", "good/gsm8k.jsonl")
    assert result.exit_code == 2
    assert result.output == (
        "broken/duplicates.jsonl:3  repeats line 1; remove one of them\n"
        "broken/duplicates.jsonl:4  repeats line 2; remove one of them\n"
        "broken/duplicates.jsonl: 2 bad lines, 4 records, messages -> Conversation\n"
        "  not used    id (1)\n"
        "  characters  min 2  mean 5.5  median 2  p95 9  max 9\n"
        "good/gsm8k.jsonl: ok, 2 records, question/answer (GSM8K) -> Prompt\n"
        "  characters  min 108  mean 131.5  median 108  p95 155  max 155\n"
        "help: ptl explain bad-row\n"
    )


def test_the_command_is_content_with_good_files() -> None:
    result = ptl_data(*(p for p in sorted(GOOD.iterdir()) if p.name != "renamed.jsonl"))
    assert result.exit_code == 0
    columns = ("--columns", "prompt=problem", "--columns", "answer=solution")
    assert ptl_data(GOOD / "renamed.jsonl", *columns).exit_code == 0


def test_the_command_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(DATA)
    result = ptl_data("broken/late_system.jsonl", "--json")
    assert result.exit_code == 2
    assert json.loads(result.output) == {
        "ok": False,
        "files": [
            {
                "file": "broken/late_system.jsonl",
                "ok": False,
                "format": "messages",
                "record_type": "Conversation",
                "records": 1,
                "bad_lines": 1,
                "fault_count": 1,
                "faults": [
                    {"line": 2, "message": "messages[1] is a system message; move it to the front"}
                ],
                "unused_fields": {},
                "characters": {"min": 9, "mean": 9.0, "median": 9, "p95": 9, "max": 9},
                "tokens": None,
            }
        ],
    }


def test_the_command_limits_what_it_prints() -> None:
    result = ptl_data(BROKEN / "bad_json.jsonl", "--limit-faults", 2)
    assert result.output.count("is not JSON") == 2
    assert "and 3 more; --limit-faults shows more" in result.output


def test_the_command_takes_a_format() -> None:
    result = ptl_data(BROKEN / "unknown_suffix.txt", "--format", "jsonl")
    assert (result.exit_code, result.output.count("ok, 1 record,")) == (0, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Missing argument 'FILES...'"),
        (("a", "--max-tokens", "3"), "--max-tokens needs --model, whose tokenizer counts"),
        (("a", "--columns", "prompt"), "'prompt' must read OURS=THEIRS, as prompt=question"),
        (("a", "--columns", "promt=q"), "unknown field 'promt'; did you mean 'prompt'?"),
        (("nowhere.jsonl",), "there is no file 'nowhere.jsonl'"),
    ],
)
def test_the_command_refuses_wrong_use(arguments: tuple[str, ...], message: str) -> None:
    result = ptl_data(*arguments)
    assert result.exit_code == 2
    assert message in result.output


def test_the_command_counts_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    class Words:
        """A renderer whose tokens are words."""

        def prompt(self, messages: Messages) -> list[int]:
            return [0] * sum(len(m.content.split()) for m in messages)

        def supervised(self, messages: Messages) -> tuple[list[int], list[float]]:
            return self.prompt(messages), []

    loaded: list[str] = []

    def load_renderer(location: str, options: RendererConfig) -> Words:
        loaded.append(location)
        assert options.thinking == "off"
        return Words()

    monkeypatch.setattr(
        "posttrain_recipes.training.text.chat_template.load_renderer", load_renderer
    )
    result = ptl_data(GOOD / "messages.jsonl", "--model", "some/model", "--max-tokens", 3)
    assert loaded == ["some/model"]
    assert result.exit_code == 2
    assert "messages.jsonl:1  is 4 tokens long, over 3; shorten or split it" in result.output
    assert "  tokens      min 3  mean 3.5  median 3  p95 4  max 4" in result.output
    assert ptl_data(GOOD / "prompt.jsonl", "--model", "some/model").exit_code == 0
    absent = ptl_data(GOOD / "prompt.jsonl", "--model", "./nowhere")
    assert str(absent.exception) == "there is no model directory ./nowhere"


def test_an_answer_counts_towards_the_length(tmp_path: Path) -> None:
    """The working before `####` is what an imitating method trains on."""
    measured: list[Messages] = []

    def count(messages: Messages) -> int:
        measured.append(messages)
        return 1

    check_file(GOOD / "gsm8k.jsonl", count_tokens=count)
    assert measured[0][-1].role == "assistant"
    assert measured[0][-1].content.endswith("#### 72")
    assert isinstance(measured[0][0], Message)


def test_record_type_follows_the_form() -> None:
    assert check_file(GOOD / "messages.jsonl").record_type is Conversation
    assert check_file(GOOD / "gsm8k.jsonl").record_type is Prompt
    assert check_file(BROKEN / "no_form.jsonl").record_type is None


def test_one_cause_is_told_once_with_its_lines(ptl: Ptl, project: Project) -> None:
    project.write("qa.jsonl", '{"q": "a", "a": "b"}\n' * 30)
    said = ptl("data", "check", "qa.jsonl")
    assert said.code == 2
    assert said.out.count("is in no known form") == 1
    assert "  so are lines 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 19 more\n" in said.out
    assert "30 bad lines" in said.out
