"""Nothing that others wrote reaches a terminal, a log or a page as a command to it.

Every command is given control characters wherever it shows something. The commands are those of
click's own tree, so that a new one without a case fails here.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import sys
import unicodedata
from collections.abc import Callable, Iterator
from typing import Any

import click
import pytest
from rich.console import Console

from posttrain_recipes import shown
from posttrain_recipes.cli import cli
from posttrain_recipes.errors import PtlError
from posttrain_recipes.inference import conversation
from posttrain_recipes.plugin import PluginConfig, Reward
from posttrain_recipes.progress import live as progress
from posttrain_recipes.progress import terminal
from posttrain_recipes.progress.streams import Lasting
from posttrain_recipes.records import Estimate, Message, Sample
from posttrain_recipes.reporting import report
from posttrain_recipes.reporting.comparing import Comparison
from posttrain_recipes.reporting.page import Pages
from posttrain_recipes.store import Measured, RunRecord, StageRecord, Store
from posttrain_recipes.tracking.mlruns import results_table, samples_table
from tests.conftest import Install, Project, Ptl, Said

NAME = (
    "\x1b[31mred\x1b]0;title\x07\x1b]8;;http-x\x1b\\\r\x9b2J\x85\x7f\u202eevil\u2066\u200b\ufeff"
    "\u2028\U000e0041[red]x[bold]y[link=http-x]z"
)
"""What a name, or a word of the command line, may hold."""
HOSTILE = NAME + "\x00\ud800"
"""What a text of data may hold."""
QUOTED = json.dumps(HOSTILE.replace("\ud800", "").replace("\x00", ""))


def assert_plain(*texts: str) -> None:
    for text in texts:
        assert shown.plain(text) == text
        for raw in ("\x1b", "\x9b", "\x07", "\r", "\u202e", "\u2066", "\u200b", "\x00"):
            assert raw not in text


# --- the one function ----------------------------------------------------------------------------


def test_every_character_that_is_not_seen_is_escaped() -> None:
    for code in range(0x110000):
        char = chr(code)
        hidden = unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp") and char not in "\n\t"
        if hidden:
            assert shown.plain(char) != char, hex(code)
            assert json.loads(f'"{shown.plain(char)}"') == char
    assert shown.plain("né 中 😀 a\nb\tc") == "né 中 😀 a\nb\tc"
    assert shown.line("a\nb\tc\x1b") == "a\\nb\\tc\\u001b"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *[(f"a{blank}b", f"a\\u{ord(blank):04x}b") for blank in "\u2800\u3164\u115f\u1160\uffa0"],
        *[(f"a{chr(code)}b", f"a\\u{code:04x}b") for code in range(0xFE00, 0xFE10)],
        ("\ufe0f", "\\ufe0f"),
        ("1\ufe0f", "1\\ufe0f"),
        ("1\ufe0f\u20e3 #\ufe0f\u20e3", "1\ufe0f\u20e3 #\ufe0f\u20e3"),
        ("❤\ufe0f ☎\ufe0e 🕵🏽\ufe0f ©\ufe0f", "❤\ufe0f ☎\ufe0e 🕵🏽\ufe0f ©\ufe0f"),
        ("❤\ufe0f\ufe0f\ufe0e", "❤\ufe0f\\ufe0f\\ufe0e"),
        ("❤\ufe01", "❤\\ufe01"),
        ("∩\ufe00 葛\ufe00", "∩\ufe00 葛\ufe00"),
        ("∩\ufe0f \ufe0f\u20e3", "∩\\ufe0f \\ufe0f\u20e3"),
    ],
)
def test_what_is_blank_or_selects_nothing_is_escaped(text: str, expected: str) -> None:
    assert shown.plain(text) == expected
    assert shown.plain(expected) == expected


def test_json_means_the_same() -> None:
    text = json.dumps({"a": HOSTILE, HOSTILE: [1, "\\", '"\n']}, ensure_ascii=False)
    assert_plain(shown.plain(text))
    assert json.loads(shown.plain(text)) == json.loads(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *[(mark + "cmd", f"'{mark}cmd") for mark in "=+@"],
        ("-1+cmd|'x'!A0", "'-1+cmd\\|'x'!A0"),
        ("\t=1", "'=1"),
        ("\r=1", "'=1"),
        ("  =1", "'=1"),
        ("＝1", "'＝1"),
        *[(number, number) for number in ("-0.5", "+3", "1e-4", "-1,000.5", "-3.1 ±2.0", "-")],
        ("a|b\nc`d<e>&[f]", "a\\|b<br>c\\`d&lt;e>&amp;\\[f]"),
        ("\\|", "\\\\\\|"),
    ],
)
def test_cells_are_neither_markup_nor_formulas(text: str, expected: str) -> None:
    assert shown.cell(text) == expected


def test_tables_that_mlflow_shows_are_cells() -> None:
    row = Sample((Message("user", "=cmd|`<b>"),), "-x\n|", "@a", {"=s": 1.0})
    table = samples_table([row])
    assert table.split("\n")[0] == "| Prompt | Reply | Expected | '=s |"
    assert table.split("\n")[2] == "| '=cmd\\|\\`&lt;b> | '-x<br>\\| | '@a | 1 |"
    assert "| '=n |" in results_table({"=n": {"before": Estimate(0.5, 0.4, 0.6, 10)}})


# --- every command -------------------------------------------------------------------------------


def record() -> RunRecord:
    found = Estimate(0.5, 0.4, 0.6, 10)
    stage = StageRecord(
        NAME.replace("/", ""),
        "f",
        "sft",
        {"method": {"config": {NAME: HOSTILE}}},
        status="finished",
        error=HOSTILE,
        total_steps=3,
        records=4,
        before=[Measured("held", "exact_match", "e", HOSTILE, {"exact_match": found, NAME: found})],
        after=[Measured("held", "exact_match", "e", HOSTILE, {"exact_match": found, NAME: found})],
    )
    return RunRecord(
        id="demo-1",
        recipe="demo",
        fingerprint="f",
        model=HOSTILE,
        engine=HOSTILE,
        path=f"{NAME}.yaml",
        preset=HOSTILE,
        seed=0,
        resolved={"description": HOSTILE, "name": HOSTILE},
        created="2026-01-02T03:04:05+00:00",
        stages=[stage],
        status="failed",
        error=HOSTILE,
    )


@pytest.fixture
def run(project: Project) -> RunRecord:
    made = record()
    asked = (Message("user", NAME),)
    with Store(project.path / ".ptl").open(made) as directory:
        # A surrogate is in no file, and in every record that a program makes.
        path = directory.path / "run.json"
        path.write_text(json.dumps({"format": 1, **_dumped(made)}))
        for when in ("before", "after"):
            directory.save_samples(made.stages[0].name, "held", when, (Sample(asked, NAME, NAME),))
    return made


def _dumped(made: RunRecord) -> dict[str, Any]:
    from posttrain_recipes import store

    return dict(json.loads(store.dump(made)))


class Loud(Reward):
    """Placeholder."""

    __doc__ = f"Loud {NAME}."
    name = "loud"

    class Config(PluginConfig):
        """Options."""

        volume: str = NAME
        __doc__ = NAME

    def score(self, samples: Any) -> Any:
        raise RuntimeError(NAME)


@pytest.fixture
def loud(install: Install) -> None:
    from posttrain_recipes.plugin import hookimpl

    @hookimpl
    def ptl_rewards() -> list[type[Reward]]:
        return [Loud]

    def broken() -> Any:
        raise RuntimeError(NAME)

    install("acme", NAME, {"ptl_rewards": ptl_rewards})
    install(f"broken{NAME}", "1", broken)


BAD = f"""\
name: mine
description: {QUOTED}
model: ./model
{QUOTED}: 1
stages:
  - name: {QUOTED}
    dataset: {{use: jsonl, path: {QUOTED}}}
    method: {{use: sft, {QUOTED}: {QUOTED}}}
"""
GOOD = f"""\
name: mine
description: {QUOTED}
model: ./model
stages:
  - name: sft
    dataset: {{use: jsonl, path: chat.jsonl, columns: {{prompt: {QUOTED}}}}}
    method: {{use: sft}}
"""
Case = Callable[[Ptl, Project], Iterator[Said]]


def recipes(command: str) -> Case:
    def tell(ptl: Ptl, project: Project) -> Iterator[Said]:
        project.write("bad.yaml", BAD)
        yield ptl(command, "bad.yaml")
        yield ptl(command, "bad.yaml", "--preset", NAME)
        yield ptl(command, "bad.yaml", "--set", f"{NAME}={NAME}")
        yield ptl(command, NAME)

    return tell


def words(*calls: tuple[str, ...]) -> Case:
    def tell(ptl: Ptl, project: Project) -> Iterator[Said]:
        for call in calls:
            yield ptl(*call)

    return tell


def plan(ptl: Ptl, project: Project) -> Iterator[Said]:
    yield from recipes("plan")(ptl, project)
    project.write("good.yaml", GOOD.replace(", columns: {prompt: " + QUOTED + "}", ""))
    said = ptl("plan", "good.yaml")
    assert said.code == 0
    yield said


def data_overlap(ptl: Ptl, project: Project) -> Iterator[Said]:
    row = json.dumps({"prompt": f"{HOSTILE} {' '.join(f'w{n}' for n in range(20))}"})
    project.write(f"{NAME}.jsonl", row + "\n")
    said = ptl("data", "overlap", f"{NAME}.jsonl", f"{NAME}.jsonl")
    assert said.code == 2
    yield said
    yield ptl("data", "overlap", NAME, f"{NAME}.jsonl", "--columns", f"prompt={NAME}")
    yield ptl("data", "overlap", f"{NAME}.jsonl", f"{NAME}.jsonl", "--json")


def data_check(ptl: Ptl, project: Project) -> Iterator[Said]:
    rows = [{"messages": [{"role": HOSTILE, "content": HOSTILE}]}, {HOSTILE: HOSTILE}, HOSTILE]
    project.write("bad.jsonl", "".join(json.dumps(row) + "\n" for row in rows) + "\x1b[0m\n")
    project.write("bad.csv", f"{NAME},{NAME}\n1,2\n")
    yield ptl("data", "check", "bad.jsonl", "bad.csv", NAME)
    yield ptl("data", "check", "bad.jsonl", "--columns", NAME)
    said = ptl("data", "check", "bad.jsonl", "--json")
    json.loads(said.out)
    yield said


def data_show(ptl: Ptl, project: Project) -> Iterator[Said]:
    hostile = HOSTILE.encode("utf-8", "ignore").decode()
    row = {"prompt": hostile, "completion": hostile}
    project.write("rows.jsonl", json.dumps(row) + "\n")
    stage = {
        "name": "s",
        "method": {"use": "sft"},
        "dataset": {"use": "jsonl", "path": "rows.jsonl"},
    }
    project.write("rows.yaml", json.dumps({"name": "r", "model": "ptl/tiny", "stages": [stage]}))
    yield ptl("data", "show", "rows.yaml", "--stage", NAME)
    said = ptl("data", "show", "rows.yaml", "--json")
    assert said.code == 0, said.err
    view = json.loads(said.out)["stages"][0]["records"][0]["views"][0]
    assert hostile in "".join(piece["text"] for piece in view["pieces"])
    yield said
    said = ptl("data", "show", "rows.yaml")
    assert said.code == 0
    yield said


def talk(ptl: Ptl, project: Project) -> Iterator[Said]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conversation.ChatClient, "first_model", lambda self: HOSTILE)
        patch.setattr(conversation.ChatClient, "stream", lambda self, body: iter(HOSTILE))
        yield ptl("chat", "--base-url", "http://127.0.0.1:1", "--prompt", NAME)
        lines = iter(["hello", "/reset"])

        def asked(prompt: str) -> str:
            with contextlib.suppress(StopIteration):
                return next(lines)
            raise EOFError

        patch.setattr("builtins.input", asked)
        patch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
        yield ptl("chat", "--base-url", "http://127.0.0.1:1")

        def refused(self: Any, body: Any) -> Any:
            raise PtlError(HOSTILE, why=HOSTILE)

        patch.setattr(conversation.ChatClient, "stream", refused)
        yield ptl("chat", "--base-url", "http://127.0.0.1:1", "--prompt", "x")
    yield ptl("chat", NAME, "--prompt", "x")
    yield ptl("chat", "--base-url", f"http-{NAME}", "--prompt", "x")


CASES: dict[str, Case] = {
    "init": words(("init", "--recipe", NAME), ("init", NAME)),
    "validate": recipes("validate"),
    "plan": plan,
    "preflight": recipes("preflight"),
    "lock": recipes("lock"),
    "run": recipes("run"),
    "runs": words(("runs",), ("runs", "--json")),
    "show": words(("show", "demo"), ("show", NAME), ("show", "demo", "--json")),
    "watch": words(("watch", NAME), ("watch", "--home", NAME), ("watch", "--port", NAME)),
    "report": words(("report", "demo"), ("report", NAME), ("report", "demo", "-o", f"{NAME}.html")),
    "compare": words(
        ("compare", "demo-1", "demo"), ("compare", NAME), ("compare", "demo", "--json")
    ),
    "promote": words(("promote", "demo", NAME), ("promote", NAME, "x")),
    "pack": words(("pack", "demo", "-o", f"{NAME}.zip"), ("pack", NAME)),
    "reproduce": words(("reproduce", "demo"), ("reproduce", NAME)),
    "sync": words(("sync", "--tracking-uri", f"http://{NAME}", "--home", NAME)),
    "prices": words(("prices", "--from", NAME), ("prices", "--refresh", "--from", f"file-{NAME}")),
    "gc": words(("gc",), ("gc", "--home", NAME), ("gc", "--keep-last", NAME)),
    "ui": words(("ui", "--home", NAME), ("ui", "--port", NAME)),
    "plugins list": words(("plugins", "list"), ("plugins", "list", "--json")),
    "plugins search": words(("plugins", "search", NAME), ("plugins", "search", "reward")),
    "plugins show": words(("plugins", "show", "loud"), ("plugins", "show", NAME)),
    "plugins check": words(("plugins", "check", "loud", "--read-only"), ("plugins", "check", NAME)),
    "plugins new": words(("plugins", "new", "reward", NAME), ("plugins", "new", NAME, "x")),
    "eval": words(
        ("eval", NAME, "--suite", "missing.txt"), ("eval", "ptl/tiny", "--suite", f"{NAME}.yaml")
    ),
    "explain": words(("explain", "loud"), ("explain", NAME)),
    "schema": words(("schema", "-o", f"missing.txt/{NAME}"), ("schema",)),
    "data check": data_check,
    "data overlap": data_overlap,
    "data show": data_show,
    "engines list": words(("engines", "list"), ("engines", NAME)),
    "engines check": words(
        ("engines", "check", "--only", NAME), ("engines", "check", "--base-url", f"http://{NAME}@x")
    ),
    "serve": words(("serve", "--host", NAME), ("serve", "--token", NAME, "--port", "0")),
    "chat": talk,
    "export": words(
        ("export", NAME, "out"), ("export", "ptl/tiny", NAME), ("export", "x", "--push", NAME)
    ),
    "deploy": words(("deploy", NAME, "--modal"), ("deploy", "x", "--modal", "--gpu", NAME)),
}


def every_command(group: click.Group, above: str = "") -> Iterator[str]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from every_command(command, f"{above}{name} ")
        else:
            yield f"{above}{name}"


@pytest.mark.usefixtures("run", "loud")
@pytest.mark.parametrize("name", every_command(cli))
def test_every_command_shows_what_it_is_given_as_it_is(
    ptl: Ptl, project: Project, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.delenv("TINKER_BASE_URL", raising=False)
    project.write("missing.txt", "")
    said = list(CASES[name](ptl, project))
    for one in said:
        assert_plain(one.out, one.err)
    told = "".join(one.out + one.err for one in said)
    escaped = any(mark in told for mark in ("\\u001b", "\\x1b", "***"))
    assert escaped or name in ("engines list", "gc", "serve"), told
    assert "[red]x[bold]y" in told or "\\u001b" not in told


@pytest.mark.usefixtures("run")
def test_json_is_exact(ptl: Ptl, project: Project) -> None:
    shown_ = json.loads(ptl("show", "demo", "--json").out)
    assert (shown_["model"], shown_["error"]) == (HOSTILE, HOSTILE)
    assert json.loads(ptl("runs", "--json").out)[0]["stages"][0]["name"] == NAME.replace("/", "")
    project.write("bad.yaml", BAD)
    told = json.loads(ptl("validate", "bad.yaml", "--json").out)
    assert any(NAME in fault["key"] for fault in told[0]["faults"])


# --- pages, progress, logs -----------------------------------------------------------------------


def test_pages_are_plain(project: Project, run: RunRecord) -> None:
    home = project.path / ".ptl"
    pages = Pages(home, run)
    html, text = pages.html(), pages.markdown()
    assert_plain(html, text, report.markdown(run), Comparison(home, [run, run]).html())
    assert "http-x" in html


def test_a_page_in_markdown_is_no_html_and_no_formula(project: Project, run: RunRecord) -> None:
    run.error = run.stages[0].error = "first\n<script>x</script>"
    run.model = "m`<script>x</script>`"
    run.stages[0].after[0].name = run.stages[0].before[0].name = "=cmd|<img>\nx"
    run.resolved["description"] = "# <script>"
    for text in (Pages(project.path / ".ptl", run).markdown(), report.markdown(run)):
        outside = "".join(text.split("`")[::2])
        assert "<script" not in outside
        assert "<img" not in outside
        assert "| '=cmd\\|&lt;img><br>x |" in text


def test_progress_in_a_terminal_is_plain(monkeypatch: pytest.MonkeyPatch, run: RunRecord) -> None:
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", terminal.Guarded(out))
    live = progress.Live(Lasting(sys.stdout))
    assert isinstance(live.console, Console)
    live.doing(HOSTILE)
    live.warning(HOSTILE)
    live.line(HOSTILE)
    live.stage_failed(type("S", (), {"index": 1, "name": NAME})(), run.stages[0])  # type: ignore[arg-type]
    live.table(run)
    live.close()
    said = out.getvalue()
    assert "[red]x[bold]y[link=http-x]z" in said.replace("\n", "")
    assert_plain(said)


def test_a_log_is_plain() -> None:
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(shown.PlainFormatter("%(message)s"))
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        note = logging.LogRecord("x", 40, "", 0, "%s", (HOSTILE,), sys.exc_info())
    handler.emit(note)
    assert_plain(out.getvalue())
    assert "ValueError" in out.getvalue()


def test_a_stream_that_cannot_encode_a_character_shows_its_number() -> None:
    below = io.BytesIO()
    stream = terminal.Guarded(io.TextIOWrapper(below, "ascii"))
    stream.write("né 中\x1b")
    stream.flush()
    assert below.getvalue() == b"n\\xe9 \\u4e2d\\u001b"
    assert not hasattr(stream, "buffer")


def test_styles_are_ours_and_the_text_is_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal.Guarded(out))
    terminal.styled(f"a{NAME}", fg="red")
    assert out.getvalue().startswith("\x1b[31ma\\u001b[31mred")
    assert out.getvalue().count("\x1b") == 2
