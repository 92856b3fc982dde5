"""What `ptl watch` reads and serves: the file of a stage, and the page's server."""

from __future__ import annotations

import http.client
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from posttrain_recipes import store, watchlog
from posttrain_recipes.cli.watch import watch
from posttrain_recipes.context import WatchedReply
from posttrain_recipes.planning.film import filmstrip
from posttrain_recipes.planning.plans import Filmstrip
from posttrain_recipes.records import Estimate, Message, Sample
from posttrain_recipes.running.events import Reporter, also
from posttrain_recipes.running.watched import StageWatch, pairs, token_texts
from posttrain_recipes.store import Measured, RunRecord, StageRecord, Store
from posttrain_recipes.watch import server
from posttrain_recipes.watch.feed import RunFeed
from posttrain_recipes.watchlog import WatchLog, WatchVersionError, read, tail, watch_path
from tests.conftest import Project

RECIPE = """\
name: mine
model: ./model
stages:
  - name: sft
    dataset: {use: jsonl, path: chat.jsonl}
    method: {use: sft}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return watch_path(tmp_path, "sft")


def log(path: Path, **more: Any) -> tuple[WatchLog, list[str]]:
    said: list[str] = []
    return WatchLog(path, said.append, **more), said


# --- the file ------------------------------------------------------------------------------------


def test_a_step_that_is_trained_again_is_read_as_it_was_the_last_time(path: Path) -> None:
    for loss in (2.0, 1.0):  # the second is a process that goes on
        made, said = log(path)
        assert made.add("step", step=1, metrics={"train/loss": loss, "nan": float("nan")})
        assert made.add("state", status="started")
        made.close()
    lines = read(path)
    assert [line["kind"] for line in lines] == ["header", "state", "step", "state"]
    assert lines[2]["metrics"] == {"train/loss": 1.0, "nan": None}
    assert lines[0]["version"] == watchlog.VERSION
    assert not said


def test_a_torn_line_is_passed_over_and_what_follows_is_read(path: Path) -> None:
    made, _ = log(path)
    made.add("step", step=1, metrics={})
    with path.open("ab") as file:
        file.write(b'{"kind": "step", "step": 2, "me')
    lines, offset = tail(path)
    assert [line.get("step") for line in lines] == [None, 1]
    again, _ = log(path)
    again.add("step", step=3, metrics={})
    lines, end = tail(path, offset)
    assert [line["step"] for line in lines] == [3]
    assert tail(path, end) == ([], end)


def test_a_line_without_what_its_kind_has_is_passed_over(path: Path) -> None:
    made, _ = log(path)
    made.add("step", step=1, metrics={})
    with path.open("ab") as file:
        for wrong in ('"step"', '"step", "step": "x", "metrics": {}', '"film", "step": 1'):
            file.write(f'{{"kind": {wrong}}}\n'.encode())
    assert [line["kind"] for line in read(path)] == ["header", "step"]


def test_a_later_version_is_refused_and_not_written_to(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_text('{"kind": "header", "version": 2}\n')
    with pytest.raises(WatchVersionError, match="sft/watch.jsonl has version 2"):
        read(path)
    made, said = log(path)
    assert not made.add("step", step=1, metrics={})
    assert not made.add("step", step=2, metrics={})
    assert len(said) == 1
    assert path.read_text().count("\n") == 1


def test_a_long_stage_is_thinned_evenly_and_says_so(path: Path) -> None:
    made, _ = log(path, budgets={"step": 4000})
    for step in range(1, 501):
        made.add("step", step / 500, step=step, metrics={"train/loss": 1.0})
    lines = read(path)[1:]
    kept = [line["step"] for line in lines]
    assert path.stat().st_size < 4200
    gaps = [b - a for a, b in zip(kept[8:], kept[9:], strict=False)]
    assert max(gaps) <= 12
    told = sum(line.get("left_out", 0) for line in lines)
    assert told == lines[-1]["step"] - len(lines)


def test_the_budget_holds_for_all_tries_together(path: Path) -> None:
    for _ in range(3):
        made, _ = log(path, budgets={"step": 1000})
        for step in range(1, 51):
            made.add("step", 1.0, step=step, metrics={})
        made.close()
    assert path.stat().st_size < 1100


def test_secrets_and_what_nobody_sees_are_not_written(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACME_TOKEN", "hunter22222")
    made, _ = log(path)
    made.add("film", step=0, replies=[{"reply": "hunter22222 \x1b[2J\u202e", "prompt": "x" * 5000}])
    text = path.read_text()
    assert "hunter" not in text
    (reply,) = read(path)[1]["replies"]
    assert reply["reply"] == "*** \\u001b[2J\\u202e"
    assert reply["prompt"].endswith("… (1,000 characters more)")


def test_a_full_disk_is_told_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", full)
    made, said = log(path)
    assert not made.add("step", step=1, metrics={})
    assert not made.add("step", step=2, metrics={})
    (text,) = said
    assert text.startswith("'ptl watch' shows no more of this stage: ")
    assert text.endswith("watch.jsonl cannot be written: No space left on device")


# --- what a stage writes -------------------------------------------------------------------------


class Bytes:
    """A renderer whose tokens are the bytes of UTF-8."""

    def decode(self, tokens: Any) -> str:
        return bytes(tokens).decode("utf-8", "replace")


def test_a_character_of_several_tokens_is_the_last_ones() -> None:
    tokens = list("né 中".encode())
    texts = token_texts(tokens, pairs(Bytes()))  # type: ignore[arg-type]
    assert texts == ["n", "", "é", " ", "", "", "中"]


def stage_watch(path: Path) -> tuple[StageWatch, list[str]]:
    made, said = log(path)
    serving = SimpleNamespace(renderer=lambda *_: Bytes())
    watching: Any = SimpleNamespace(serving=serving, warn=said.append)
    stage: Any = SimpleNamespace(name="sft", model="m", renderer=None)
    return StageWatch(watching, stage, StageRecord("sft", "f", "sft", total_steps=4), made), said


def test_replies_are_few_and_bounded_and_of_a_secret_no_token_is_shown(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACME_TOKEN", "hunter22222")
    watch, said = stage_watch(path)
    long = WatchedReply([65], [66] * 600, {"advantage": [0.5] * 600}, 1.0, 0.5, "max_tokens")
    secret = WatchedReply([65], list(b"hunter22222"), {}, 0.0)
    watch.replies(2, [long, secret, *[long] * 4])
    first, second, *more = read(path)[1]["rollouts"]
    assert (len(first["tokens"]), len(first["numbers"]["advantage"]), first["length"]) == (
        512,
        512,
        600,
    )
    assert (first["reward"], first["ended"], first["prompt"]) == (1.0, "max_tokens", "A")
    assert (second["tokens"], second["secret"]) == ([], True)
    assert (len(more), read(path)[1]["of"]) == (2, 6)
    assert not said


def test_what_a_plugin_hands_over_wrongly_is_told_and_ends_nothing(path: Path) -> None:
    watch, _ = stage_watch(path)
    watch.replies(1, [WatchedReply([65], [66], {"advantage": [0.5, 0.5]})])
    assert read(path)[1]["why"] == "ValueError: 2 numbers of 'advantage' for 1 tokens"


def test_two_reporters_do_not_hinder_each_other() -> None:
    heard: list[str] = []

    class Hears(Reporter):
        def note(self, text: str) -> None:
            heard.append(text)

    class Fails(Reporter):
        def note(self, text: str) -> None:
            raise RuntimeError

    also(Fails(), Hears()).note("a")
    also(Hears(), Fails()).note("b")
    assert heard == ["a", "b"]


# --- the recipe ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "billed", "found"),
    [
        (None, False, Filmstrip()),
        (None, True, None),
        (True, True, Filmstrip()),
        (False, False, None),
        ({"prompts": 2, "every": 10}, True, Filmstrip(2, 10)),
        ({"every": "auto", "max_tokens": 8}, False, Filmstrip(max_tokens=8)),
    ],
)
def test_what_a_recipe_asks_for(asked: Any, billed: bool, found: Filmstrip | None) -> None:
    assert filmstrip(asked, billed) == found


def test_when_prompts_are_answered() -> None:
    assert Filmstrip().steps(4) == []
    assert Filmstrip().steps(5) == [0, 1, 2, 3, 4, 5]
    assert Filmstrip().steps(80) == [0, 5, 10, 20, 32, 48, 64, 80]
    assert Filmstrip(every=2).steps(3) == [0, 2, 3]


def test_it_is_checked_and_no_fingerprint_depends_on_it(project: Project) -> None:
    plain = project.plan(RECIPE)
    for text in ("false", "{prompts: 1, every: 3}"):
        other = project.plan(f"{RECIPE}watch: {text}\n")
        assert other.fingerprint == plain.fingerprint
        assert other.watch != plain.watch
    for text, fault in (("{prompts: 0}", "watch.prompts"), ("5", "watch"), ("{film: 1}", "watch")):
        with pytest.raises(Exception, match=fault):
            project.plan(f"{RECIPE}watch: {text}\n")


# --- the server ----------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with a run of two stages, the second of which has no file of what it showed."""
    record = RunRecord(
        id="demo-1",
        recipe="demo",
        fingerprint="f",
        model="ptl/nano",
        engine="local",
        path="demo.yaml",
        preset=None,
        seed=0,
        resolved={"description": "a demo"},
        created="2026-01-02T03:04:05+00:00",
        status="finished",
        stages=[
            StageRecord("sft", "f1", "sft", {"start": "base"}, status="finished", total_steps=2),
            StageRecord("dpo", "f2", "dpo", {"start": "f1"}, status="finished", total_steps=9),
        ],
    )
    for when, value in (("before", 0.0), ("after", 1.0)):
        found = Measured("held", "exact_match", "e", "d", {"exact_match": Estimate(value, 0, 1, 1)})
        setattr(record.stages[1], when, [found])
    with Store(tmp_path).open(record) as directory:
        directory.save()
        for when, score in (("before", 0.0), ("after", 1.0)):
            said = Sample((Message("user", "2+2?"),), when, "4", {"exact_match": score})
            directory.save_samples("dpo", "held", when, (said,))
        made, _ = log(watch_path(directory.path, "sft"))
        made.add("step", step=1, total=2, metrics={"train/loss": 1.0})
    return tmp_path


def test_a_run_without_the_file_is_told_by_what_else_it_has(home: Path) -> None:
    feed = RunFeed(home, "demo-1")
    told = {name: data for name, data in feed.poll() if name == "run"}["run"]
    assert [(one["name"], one["from"]) for one in told["stages"]] == [("sft", []), ("dpo", ["sft"])]
    (lines,) = [
        data["lines"]
        for name, data in RunFeed(home, "demo-1").poll()
        if name == "lines" and data["stage"] == "dpo"
    ]
    frames = [line for line in lines if line["kind"] == "film"]
    assert [(f["step"], f["replies"][0]["right"]) for f in frames] == [(0, False), (9, True)]
    assert not list(feed.poll())


def test_a_feed_goes_on_from_its_cursor(home: Path) -> None:
    feed = RunFeed(home, "demo-1")
    list(feed.poll())
    made, _ = log(watch_path(home / "runs" / "demo-1", "sft"))
    made.add("step", step=2, total=2, metrics={})
    resumed = RunFeed.resumed(home, "demo-1", feed.cursor_text)
    assert [data["lines"][0]["step"] for name, data in resumed.poll() if name == "lines"] == [2]
    for wrong in ("", "{", "[1]", '{"sft": "x"}', '{"sft": Infinity}'):
        assert RunFeed.resumed(home, "demo-1", wrong).cursor == {}


def test_a_run_that_is_deleted_while_it_is_watched_is_told_once(home: Path) -> None:
    feed = RunFeed(home, "demo-1")
    list(feed.poll())
    shutil.rmtree(home / "runs" / "demo-1")
    ((name, told),) = feed.poll()
    assert (name, told["why"]) == ("refused", "demo-1 was deleted; this is what it had by then")
    assert not list(feed.poll())


def test_what_no_browser_reads_does_not_end_the_events() -> None:
    hostile = json.loads('{"half": "a\\ud800", "numbers": [NaN, 1e999, 0.5]}')
    data = server._event("lines", hostile, "{}").encode().decode().split("data: ")[1]

    def refused(word: str) -> Any:
        raise AssertionError(word)

    found = json.loads(data, parse_constant=refused)
    assert found["numbers"] == [None, None, 0.5]


@pytest.fixture
def page(home: Path) -> Iterator[tuple[int, str]]:
    """The port and the token of a server of the run."""
    sock = server.listening()
    made = server.server(home, "demo-1", "the-token", sock)
    made.install_signal_handlers = lambda: None
    thread = threading.Thread(target=made.run, kwargs={"sockets": [sock]}, daemon=True)
    thread.start()
    yield sock.getsockname()[1], "the-token"
    made.should_exit = True
    thread.join(10)
    assert not thread.is_alive()


def get(port: int, path: str, **headers: str) -> tuple[int, http.client.HTTPResponse]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", path, headers={k.replace("_", "-"): v for k, v in headers.items()})
    answer = connection.getresponse()
    return answer.status, answer


def test_only_who_has_the_token_and_asks_by_a_loopback_name_is_answered(
    page: tuple[int, str],
) -> None:
    port, token = page
    cookie = f"ptl_watch_{port}={token}"
    assert get(port, "/")[0] == 403
    assert get(port, "/?key=wrong")[0] == 403
    assert get(port, f"/events?key={token}")[0] == 403
    assert get(port, "/page.js", Cookie=f"ptl_watch_{port}=wrong")[0] == 403
    assert get(port, "/", Cookie=cookie, Host=f"evil.example:{port}")[0] == 403
    status, answer = get(port, f"/?key={token}")
    assert status == 200
    assert answer.headers["Set-Cookie"] == f"{cookie}; HttpOnly; SameSite=Strict; Path=/"
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    for name in ("page.js", "parts.js", "page.css"):
        assert get(port, f"/{name}", Cookie=cookie)[0] == 200
    assert get(port, "/server.py", Cookie=cookie)[0] == 404


def test_lines_that_are_appended_come_through(home: Path, page: tuple[int, str]) -> None:
    port, token = page
    _, answer = get(port, "/events", Cookie=f"ptl_watch_{port}={token}")

    def events() -> Iterator[tuple[str, Any]]:
        name = ""
        for raw in iter(answer.readline, b""):
            text = raw.decode().rstrip("\n")
            if text.startswith("event: "):
                name = text.removeprefix("event: ")
            elif text.startswith("data: "):
                yield name, json.loads(text.removeprefix("data: "))

    heard = events()
    assert next(heard)[1]["id"] == "demo-1"
    assert [next(heard)[1]["stage"] for _ in range(2)] == ["sft", "dpo"]
    assert next(heard)[0] == "ready"
    made, _ = log(watch_path(home / "runs" / "demo-1", "sft"))
    made.add("step", step=2, total=2, metrics={"train/loss": 0.5})
    name, told = next(heard)
    assert (name, told["lines"][0]["metrics"]) == ("lines", {"train/loss": 0.5})


def test_the_source_of_the_page_sets_text_alone() -> None:
    for name in server.KINDS:
        text = (server.STATIC / name).read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 350, name
        for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
            assert way not in text, name


def test_a_port_that_there_is_not_is_told() -> None:
    found = CliRunner().invoke(watch, ["--port", "99999"])
    assert found.exit_code == 2
    assert "99999 is not in the range" in found.output


def test_a_taken_port_is_told() -> None:
    with server.listening() as held:
        port = held.getsockname()[1]
        with pytest.raises(store.PtlError, match=f"cannot listen on 127.0.0.1:{port}"):
            server.listening(port)
