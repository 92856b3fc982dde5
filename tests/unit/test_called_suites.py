"""Evals that call a suite with data of its own: planned, refused, told, and run as a program."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from posttrain_recipes import connecting
from posttrain_recipes.errors import PtlError, RecipeError
from posttrain_recipes.planning import costs, overlap, pricing
from posttrain_recipes.planning.reuse import Decision
from posttrain_recipes.plugin import Eval, EvalResult, OpenAIRoutes, PluginConfig, hookimpl
from posttrain_recipes.running import preflight, rendered, texts
from posttrain_recipes.training.sampling import harness
from posttrain_recipes.waiting import EngineWaiter, Interrupts
from tests.conftest import Install, Project

RECIPE = """
name: mine
model: ptl/tiny
stages:
  - name: sft
    dataset: {use: jsonl, path: chat.jsonl}
    method: {use: sft}
    eval: [{use: acme_suite, name: arc, file: task.txt}]
"""


class Suite(Eval):
    """Calls a suite."""

    name = "acme_suite"
    takes: ClassVar = ()

    class Config(PluginConfig):
        file: str = "task.txt"

    config: Config

    @property
    def suite(self) -> str:
        return f"acme's {self.config.file}"

    def digest(self) -> str:
        return (self.base_dir / self.config.file).read_text()

    def evaluate(self, context: Any) -> EvalResult:
        raise NotImplementedError


@hookimpl
def ptl_evals() -> list[type[Eval]]:
    return [Suite]


@pytest.fixture
def acme(install: Install, project: Project) -> Project:
    install("acme", "1", {"PTL_API": 1, "ptl_evals": ptl_evals})
    project.write("task.txt", "one")
    return project


# --- planned -------------------------------------------------------------------------------------


def test_it_needs_no_dataset_and_is_named_by_its_suite(acme: Project) -> None:
    [planned] = acme.plan(RECIPE).stages[0].evals
    assert planned.data.label == "acme's task.txt"
    assert planned.data.digest == "one"


def test_a_result_is_known_by_what_the_suite_reads(acme: Project) -> None:
    first = acme.plan(RECIPE).stages[0]
    assert acme.plan(RECIPE).stages[0].evals[0].fingerprint == first.evals[0].fingerprint
    acme.write("task.txt", "two")
    second = acme.plan(RECIPE).stages[0]
    assert second.evals[0].fingerprint != first.evals[0].fingerprint
    assert second.fingerprint == first.fingerprint
    with pytest.raises(PtlError, match="has changed since this run was planned"):
        first.check_held()


def test_a_dataset_of_the_recipe_is_refused(acme: Project) -> None:
    text = RECIPE.replace("file: task.txt", "dataset: {use: jsonl, path: chat.jsonl}")
    with pytest.raises(RecipeError) as caught:
        acme.plan(text)
    [fault] = caught.value.faults
    assert "calls a suite that has data of its own; remove it" in str(fault)


def test_that_it_may_ask_what_is_trained_on_is_told_once(acme: Project) -> None:
    text = RECIPE + RECIPE.partition("stages:\n")[2].replace("name: sft", "name: more").replace(
        "{use: acme_suite, name: arc, file: task.txt}", "arc"
    )
    [found] = overlap.find(acme.plan(text), overlap.VALIDATED_BYTES)
    assert isinstance(found, overlap.Unread)
    assert "whether it asks what is trained on is not known" in str(found)
    assert "acme's task.txt" in str(found)


def test_nothing_is_told_where_nothing_is_trained(acme: Project) -> None:
    text = "name: look\nmodel: ptl/tiny\nstages: [{name: a, eval: [{use: acme_suite}]}]\n"
    assert overlap.find(acme.plan(text), None) == []


def test_its_tokens_are_said_to_be_unknown(acme: Project) -> None:
    plan = acme.plan(RECIPE)
    estimator = costs.Estimator(plan, pricing.Prices({}, ""))
    estimate = estimator.stage(plan.stages[0], Decision("run", ""))
    assert estimate.unknown == ["evals"]


def test_nothing_looks_for_its_records(acme: Project) -> None:
    plan = acme.plan(RECIPE)
    assert [one for one in preflight.data(plan) if "eval" in str(one)] == []
    assert [use.name for use in texts._uses(plan.stages[0])] == ["sft"]
    text = "name: look\nmodel: ptl/tiny\nstages: [{name: a, eval: [{use: acme_suite}]}]\n"
    looked = acme.plan(text)
    [shown] = rendered.Looker(looked).stage(looked.stages[0], 3)
    assert shown.note == "the suite that it calls has data of its own: there is nothing to show"


# --- where it asks -------------------------------------------------------------------------------


class _Answers(BaseHTTPRequestHandler):
    status = 200
    asked: ClassVar[list[tuple[str, str]]] = []

    def do_GET(self) -> None:
        self.asked.append((self.path, self.headers["Authorization"]))
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@pytest.fixture
def server() -> Iterator[HTTPServer]:
    with HTTPServer(("127.0.0.1", 0), _Answers) as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        made.shutdown()
        thread.join()


@pytest.mark.parametrize(("status", "there"), [(200, True), (404, False), (401, False)])
def test_a_server_is_asked_whether_it_has_the_routes(
    server: HTTPServer, status: int, there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Answers, "status", status)
    monkeypatch.setattr(_Answers, "asked", [])
    routes = OpenAIRoutes(f"http://127.0.0.1:{server.server_port}/oai/api/v1", "tml-key")
    assert (connecting.answering(routes) is routes) == there
    assert _Answers.asked == [("/oai/api/v1/models", "Bearer tml-key")]


def test_a_server_that_is_not_there_has_none() -> None:
    assert connecting.answering(OpenAIRoutes("http://127.0.0.1:9/oai/api/v1", "k")) is None


def test_the_key_is_not_shown() -> None:
    assert "tml-secret" not in repr(OpenAIRoutes("http://here", "tml-secret"))


# --- the program ---------------------------------------------------------------------------------

WAIT = EngineWaiter()


def call(code: str, cwd: Path, **more: Any) -> str:
    return harness.call("the suite", [sys.executable, "-c", code], WAIT, cwd=cwd, **more)


def test_what_it_prints_is_returned(tmp_path: Path) -> None:
    code = "import os; print(os.getcwd(), os.environ['KEY'])"
    assert call(code, tmp_path, env={"KEY": "k"}).split() == [str(tmp_path.resolve()), "k"]


def test_what_it_prints_has_no_key(tmp_path: Path) -> None:
    code = "import os; print('401: no such key', os.environ['KEY'])"
    said = call(code, tmp_path, env={"KEY": "tml-key"}, secrets=["tml-key", ""])
    assert said == "401: no such key ***\n"


def test_a_failure_is_told_with_its_code_and_last_words_but_no_key(tmp_path: Path) -> None:
    code = (
        "import os, sys; sys.stderr.write('x' * 5000 + 'no such task ' + os.environ['KEY']); "
        "sys.exit(3)"
    )
    with pytest.raises(PtlError) as caught:
        call(code, tmp_path, env={"KEY": "tml-key"}, secrets=["tml-key"], hint="look there")
    error = caught.value
    assert error.what == "the suite ended with code 3"
    assert error.why is not None
    assert error.why.endswith("no such task ***")
    assert len(error.why) <= harness.TOLD
    assert error.hint == "look there"


def test_what_it_only_printed_is_told_too(tmp_path: Path) -> None:
    with pytest.raises(PtlError) as caught:
        call("import sys; print('no such task'); sys.exit(1)", tmp_path)
    assert caught.value.why == "no such task"


def test_a_signal_that_ended_it_is_named(tmp_path: Path) -> None:
    with pytest.raises(PtlError, match="was ended by SIGKILL"):
        call("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", tmp_path)


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(PtlError, match="the suite cannot be started"):
        harness.call("the suite", ["/no/such/program"], WAIT, cwd=tmp_path)


STUBBORN = """
import os, pathlib, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pathlib.Path("pids.tmp").write_text(f"{os.getpid()} {child.pid}")
os.rename("pids.tmp", "pids")
time.sleep(600)
"""


def test_ctrl_c_ends_it_and_what_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even a program that ignores being told to end."""
    monkeypatch.setattr(harness, "GRACE_S", 0.2)
    interrupts = Interrupts()

    def pressed() -> None:
        if (tmp_path / "pids").exists():
            interrupts.ask("Ctrl-C")

    wait = EngineWaiter(interrupts=interrupts, tick=pressed)
    with pytest.raises(KeyboardInterrupt):
        harness.call("the suite", [sys.executable, "-c", STUBBORN], wait, cwd=tmp_path)
    for pid in (tmp_path / "pids").read_text().split():
        assert _gone(int(pid))


def _gone(pid: int) -> bool:
    for _ in range(200):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.01)
    return False
