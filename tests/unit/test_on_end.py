"""Whom a run tells of its end: a command, a webhook, and what happens where that fails."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from posttrain_recipes.errors import PtlError, RecipeError, UsageError
from posttrain_recipes.planning.plans import Plan
from posttrain_recipes.running import preflight, telling
from posttrain_recipes.running.events import Reporter
from posttrain_recipes.running.runner import new_record
from posttrain_recipes.shown import redact
from posttrain_recipes.store import Store, default_home, dump
from posttrain_recipes.waiting import EngineLostError
from tests.conftest import Project, Ptl

RECIPE = """\
name: demo
model: ./model
stages:
  - name: sft
    dataset: {use: jsonl, path: chat.jsonl}
    method: {use: sft}
"""
KEEPS = """\
import json, os, sys
told = {name: os.environ.get(name) for name in ("PTL_RUN_ID", "PTL_STATUS", "PTL_EXIT_CODE")}
json.dump([json.load(sys.stdin), told, sys.argv[1:]], open("told.json", "w"))
"""
TOKEN = "s3cret-0123456789"


class Warned(Reporter):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warning(self, text: str) -> None:
        self.warnings.append(text)


def end(plan: Plan, error: BaseException | None = None, status: str = "finished") -> Any:
    """The record of a run that ended so, and what was warned of."""
    kept, heard = Store(default_home()), Warned()
    record = new_record(plan, kept.next_id(plan.name))
    record.status = status
    with kept.open(record) as directory:
        telling.tell(plan, directory, error, heard)
    (there,) = [run for run in kept.runs() if run.id == record.id]
    return there, heard.warnings


def python(*words: str) -> str:
    return RECIPE + f"on_end: {{command: {json.dumps([sys.executable, *words])}, timeout: 20}}\n"


@pytest.mark.parametrize(
    ("error", "status", "number", "code"),
    [
        (None, "finished", 0, None),
        (PtlError("it broke", why="so"), "failed", 1, "failed"),
        (PtlError("stopped", code="limit-reached"), "limit-reached", 4, "limit-reached"),
        (EngineLostError("gone"), "engine-lost", 5, "engine-gone"),
        (KeyboardInterrupt(), "interrupted", 130, None),
        (ZeroDivisionError("1/0"), "failed", 1, "failed"),
    ],
)
def test_a_command_reads_how_it_ended(
    project: Project, error: BaseException | None, status: str, number: int, code: str | None
) -> None:
    project.write("keeps.py", KEEPS)
    record, warnings = end(project.plan(python("keeps.py", "a b; $HOME")), error)
    assert (warnings, record.told, record.untold) == ([], status, None)
    told, variables, words = json.loads(Path("told.json").read_text())
    assert (told["v"], told["run"], told["status"]) == (1, record.id, status)
    assert (told["exit_code"], told["code"]) == (number, code)
    assert told["text"].startswith(f"{record.id}: {status}")
    assert [stage["name"] for stage in told["stages"]] == ["sft"]
    assert list(variables.values()) == [record.id, status, str(number)]
    assert words == ["a b; $HOME"], "no shell reads them"


def test_a_gate_that_does_not_hold_is_its_own_end(project: Project) -> None:
    project.write("keeps.py", KEEPS)
    measures = "    eval: [{use: nll, name: held_out, dataset: {use: jsonl, path: chat.jsonl}}]\n"
    text = python("keeps.py").replace(
        "on_end:", f"{measures}expect: {{held_out: '>= 0.5'}}\non_end:"
    )
    plan = project.plan(text)
    record, _ = end(plan)
    told = json.loads(Path("told.json").read_text())[0]
    assert (record.told, told["exit_code"]) == ("gate-failed", 3)
    assert "was not measured, expected >= 0.5" in told["error"]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["-c", "import sys; print('no such channel'); sys.exit(7)"], "ended with 7 and said: no"),
        (["-c", "import time; time.sleep(60)"], "it took more than 0.2 s, and was ended"),
    ],
)
def test_a_command_that_fails_is_told_and_fails_nothing(
    project: Project, ptl: Ptl, words: list[str], why: str
) -> None:
    timeout = "0.2" if "more than" in why else "20"
    plan = project.plan(python(*words).replace("timeout: 20", f"timeout: {timeout}"))
    record, (warning,) = end(plan)
    assert why in warning
    assert (record.status, record.told) == ("finished", "")
    assert why in record.untold
    assert why in ptl("show", record.id).out


def test_a_program_that_is_not_there_is_told(project: Project) -> None:
    _, (warning,) = end(project.plan(RECIPE + "on_end: {command: [./not-there]}\n"))
    assert "the command ./not-there was not told that the run is finished: No such" in warning


def test_an_end_that_nobody_was_told_of_is_told_by_the_next_try(project: Project) -> None:
    plan = project.plan(RECIPE + "on_end: {command: ['false']}\n")
    record, _ = end(plan)
    project.write("keeps.py", KEEPS)
    mended = project.plan(python("keeps.py"))
    assert mended.fingerprint == plan.fingerprint, "whom it tells changes no result"
    telling.tell_late(mended, Store(default_home()), record, Warned())
    assert (record.told, record.untold) == ("finished", None)
    Path("told.json").unlink()
    telling.tell_late(mended, Store(default_home()), record, Warned())
    assert not Path("told.json").exists(), "once is enough"


# --- webhooks ------------------------------------------------------------------------------------


@contextmanager
def listening(answers: int, location: str = "") -> Iterator[tuple[str, list[Any]]]:
    """A server that keeps what it is sent: its address, and that."""
    got: list[Any] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            got.append((self.path, dict(self.headers), json.loads(body)))
            self.send_response(answers)
            if location:
                self.send_header("Location", location)
            self.end_headers()

        do_GET = do_POST

        def log_message(self, *args: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Hook)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", got
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


HOOK = RECIPE + (
    "on_end: {webhook: '${env:WHERE}', headers: {Authorization: 'Bearer ${env:WHO}'}, timeout: 5}\n"
)


def test_a_webhook_gets_the_result_and_nobody_else_its_key(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = project.plan(HOOK)
    monkeypatch.setenv("WHO", TOKEN)
    with listening(200) as (address, got):
        monkeypatch.setenv("WHERE", f"{address}/hook/{TOKEN}")
        telling.check(plan)
        record, warnings = end(plan, PtlError("it broke"))
    ((path, headers, body),) = got
    assert (path, headers["Authorization"]) == (f"/hook/{TOKEN}", f"Bearer {TOKEN}")
    assert (body["status"], body["error"], body["run"]) == ("failed", "it broke", record.id)
    assert warnings == []
    assert TOKEN not in dump(record) + repr(plan) + json.dumps(plan.resolved)
    assert "${env:WHERE}" in json.dumps(plan.resolved)


@pytest.mark.parametrize(
    ("answers", "location", "why"),
    [
        (404, "", "it answered 404"),
        (302, "/elsewhere", "it answered 302, another address, which is not followed"),
        (0, "", "it cannot be reached (Connection refused)"),
    ],
)
def test_a_webhook_that_fails_is_told_without_its_address(
    project: Project, monkeypatch: pytest.MonkeyPatch, answers: int, location: str, why: str
) -> None:
    monkeypatch.setenv("WHO", "x")
    with listening(answers or 200, location) as (address, got):
        if answers:
            monkeypatch.setenv("WHERE", f"{address}/{TOKEN}")
            record, (warning,) = end(project.plan(HOOK))
            assert [path for path, _, _ in got] == [f"/{TOKEN}"]
    if not answers:
        monkeypatch.setenv("WHERE", f"{address}/{TOKEN}")
        record, (warning,) = end(project.plan(HOOK))
    assert f"the webhook ${{env:WHERE}} was not told that the run is finished: {why}" in warning
    assert TOKEN not in warning + dump(record)


def test_a_header_that_no_request_can_carry_is_told_without_it(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHO", f"{TOKEN}\nmore")
    monkeypatch.setenv("WHERE", "http://127.0.0.1:9/")
    _, (warning,) = end(project.plan(HOOK))
    assert "was not told" in warning
    assert TOKEN not in redact(warning, {})


# --- what is refused before anything runs --------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("true", "is false, or either 'command: [PROGRAM, ...]'"),
        ("./told.sh", "write {command: [./told.sh]}"),
        ("{timeout: 3}", "either 'command: [PROGRAM, ...]' or 'webhook: https://...'"),
        ("{command: [x], webhook: 'https://a.example'}", "either 'command:"),
        ("{command: [x], headers: {A: b}}", "belongs to a 'webhook:'"),
        ("{command: x}", "list"),
        ("{webhook: 'http://a.example/x'}", "readable by all between; use https://"),
        ("{webhook: 'ftp://a.example/x'}", "no address of the web"),
        (
            "{webhook: 'https://hooks.example/T0/x9Zk2Lq8Rr71Vb3Nn0QwErTy'}",
            "${env:NAME} and export NAME",
        ),
        (
            "{webhook: 'https://a.example', headers: {Authorization: Bearer abc}}",
            "${env:NAME} and export NAME",
        ),
        ("{webhook: 'https://a.example', headers: {'X Y': abc}}", "no name of a header"),
        ("{webhook: 'https://a.example', timeout: 0}", "timeout"),
    ],
)
def test_what_is_wrong_with_it_is_told_with_its_place(
    project: Project, value: str, told: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        project.plan(RECIPE + f"on_end: {value}\n")
    assert told in str(caught.value)
    assert "mine.yaml:7:" in str(caught.value)


@pytest.mark.parametrize(
    ("variables", "told"),
    [({}, "WHERE is not set"), ({"WHERE": "http://a.example", "WHO": "x"}, "readable by all")],
)
def test_what_the_environment_lacks_is_told_before_anything_is_spent(
    project: Project, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], told: str
) -> None:
    plan = project.plan(HOOK)  # which needs none of it
    for name, text in variables.items():
        monkeypatch.setenv(name, text)
    with pytest.raises(UsageError, match=told):
        telling.check(plan)
    found = {finding.check: finding for finding in preflight.cheap(plan, project.path)}
    assert (found["on_end"].verdict, told in found["on_end"].message) == ("failed", True)


@pytest.mark.parametrize(
    ("override", "label"),
    [
        ("on_end=false", None),
        ("on_end={webhook: 'https://a.example'}", "the webhook at a.example"),
        ("on_end.timeout=60", "the command ./told.sh"),
    ],
)
def test_another_recipe_or_command_line_may_change_it(
    project: Project, override: str, label: str | None
) -> None:
    text = RECIPE + "on_end: {command: [./told.sh]}\n"
    whom = project.plan(text, overrides=[override]).on_end
    assert (whom and whom.label) == label


def test_in_a_stage_it_is_told_where_it_belongs(project: Project) -> None:
    with pytest.raises(RecipeError, match="stands at the top of a recipe"):
        project.plan(RECIPE + "    on_end: {command: [x]}\n")


def test_a_plan_says_whom(ptl: Ptl, project: Project) -> None:
    project.write("mine.yaml", RECIPE + "on_end: {webhook: 'https://a.example/runs'}\n")
    assert "on_end: the webhook at a.example is told how it ended" in ptl("plan", "mine.yaml").out
