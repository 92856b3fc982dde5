"""Lines of events: their schema, what is left out of them, and files that cannot be written."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from posttrain_recipes.errors import PtlError
from posttrain_recipes.language import schema as schemas
from posttrain_recipes.plugin import Resume
from posttrain_recipes.progress.event_log import EventLine, EventLog, open_events
from posttrain_recipes.progress.event_schema import ALL, AT_AN_END, EVENTS, event_schema
from posttrain_recipes.records import Checkpoint, Estimate
from posttrain_recipes.running import outcomes
from posttrain_recipes.running.events import Reporter, SamplingProgress, Stall
from posttrain_recipes.running.runner import new_record
from posttrain_recipes.store import Estimated, StageRecord
from tests.conftest import ROOT, Project, Ptl

RECIPE = """\
name: demo
model: ./model
stages:
  - name: sft
    dataset: {use: jsonl, path: chat.jsonl}
    method: {use: sft}
    eval: [{use: nll, dataset: {use: jsonl, path: chat.jsonl}}]
"""


def lines(path: Path = Path("events.jsonl")) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def check(events: list[dict[str, Any]]) -> None:
    """Each is of the schema, and has no key that is not in the table."""
    validator = Draft202012Validator(event_schema())
    for event in events:
        validator.validate(event)
        fields = {key for key, _, _ in (*ALL, *EVENTS[event["event"]][1])}
        more = {key for key, _, _ in AT_AN_END} if event["event"] == "ended" else set()
        assert set(event) <= fields | more | {"lost"}


def test_the_committed_schema_is_what_the_code_generates() -> None:
    committed = (ROOT / "schemas" / "events.schema.json").read_text(encoding="utf-8")
    assert committed == schemas.dump(event_schema()), (
        "run: ptl schema --events -o schemas/events.schema.json"
    )


def test_every_event_is_written_and_has_the_form_of_the_schema(project: Project) -> None:
    plan = project.plan(RECIPE)
    (stage,) = plan.stages
    record = new_record(plan, "demo-1")
    kept = StageRecord("sft", "f", "sft", checkpoint=Checkpoint("./model", "tinker://a", None))
    result: Any = SimpleNamespace(metrics={"nll": Estimate(1.0, float("nan"), 1.5, 3)})
    log = EventLog(open_events(Path("events.jsonl"), print), clock=lambda: 0.0)
    log.ended(outcomes.of_error(PtlError("it never began")))
    log.run_started(plan, record, False)
    log.estimated(plan, Estimated(steps=3, tokens=40), "prices")
    log.doing("starting the engine")
    for _ in range(3):
        log.sampling(SamplingProgress("evaluating nll", 1, 2, "replies", 3, 2, 10, 20, 0.5))
    log.stage_started(stage, kept, 1)
    log.stage_reused(stage, kept)
    log.training(stage, 0, 3)
    log.step(1, 3, {"train/loss": 0.5, "reward/mean": float("inf")})
    log.made(stage, 1)
    log.saved(Resume(1, "tinker://a", "tinker://b"))
    log.evaluated(stage, stage.evals[0], "step 1", result)
    for told in (log.stage_trained, log.stage_finished, log.stage_failed, log.stage_skipped):
        told(stage, kept)
    log.note("n")
    log.warning("w")
    log.stalled(Stall("sft", 60.0, 1.0, "it stands still"))
    log.run_finished(record)
    log.ended(outcomes.of_record(record))
    log.close()
    found = lines()
    check(found)
    assert {event["event"] for event in found} == set(EVENTS)
    heard = {name for name in vars(Reporter) if not name.startswith("_")}
    # An eval that begins is written as what is under way.
    assert heard - {"run_finished", "evaluating"} == set(EVENTS) - {"ended"}, (
        "a new event has to be written too"
    )
    assert sum(event["event"] == "sampling" for event in found) == 1, "every 5 s"
    by_name = {event["event"]: event for event in found}
    assert (found[0]["run"], found[0]["exit_code"], by_name["step"]["run"]) == (None, 1, "demo-1")
    assert by_name["step"]["metrics"] == {"train/loss": 0.5, "reward/mean": None}
    assert by_name["saved"]["stage"] == "sft"
    assert by_name["evaluated"]["metrics"]["nll"]["low"] is None


def test_a_line_holds_no_secret_and_nothing_that_moves_a_cursor(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_TOKEN", "hunter2-hunter2")
    log = EventLog(open_events(Path("events.jsonl"), print))
    log.warning("key hunter2-hunter2 \x1b[2J\u2028 https://me:pass@host/")
    log.close()
    text = Path("events.jsonl").read_text()
    assert "hunter2" not in text
    assert "pass" not in text
    assert text.isascii()
    assert text.isprintable() or text.count("\n") == 1


def test_a_full_disk_is_told_once_and_loses_no_more_than_it_has_to(project: Project) -> None:
    said: list[str] = []
    full = open_events(Path("/dev/full"), said.append)
    assert [full.write("{}"), full.write("{}")] == [False, False]
    assert said == [
        "warning: events cannot be written to /dev/full (No space left on device); the run goes on"
    ]
    assert full.lost == 2
    there = os.open("events.jsonl", os.O_WRONLY | os.O_CREAT)
    os.dup2(there, full._descriptor)  # there is space again
    log = EventLog(full)
    log.note("a")
    log.note("b")
    assert [event.get("lost") for event in lines()] == [2, None]


def test_a_pipe_that_nobody_reads_ends_nothing() -> None:
    said: list[str] = []
    ours, theirs = os.pipe()
    os.close(ours)
    out = EventLine(theirs, "standard output", said.append)
    assert [out.write("{}"), out.write("{}")] == [False, False]
    assert len(said) == 1


def test_what_is_there_is_kept_and_a_torn_line_is_ended(project: Project) -> None:
    project.write("events.jsonl", '{"v": 1}\n{"v": 1, "ev')
    out = open_events(Path("events.jsonl"), print)
    out.write("{}")
    out.write("{}")
    assert Path("events.jsonl").read_text().split("\n") == [
        '{"v": 1}',
        '{"v": 1, "ev',
        *2 * ["{}"],
        "",
    ]


# --- the command line ----------------------------------------------------------------------------


def test_a_fault_of_the_recipe_is_an_end_too(ptl: Ptl, project: Project) -> None:
    project.write("mine.yaml", "name: x\nmodel: ./model\nstages: [{name: a, evl: 1}]\n")
    said = ptl("run", "mine.yaml", "--events", "events.jsonl")
    assert said.code == 2
    (event,) = lines()
    check([event])
    assert (event["status"], event["exit_code"], event["code"]) == ("refused", 2, "missing-key")


def test_standard_output_is_for_events_alone(ptl: Ptl, project: Project, install: Any) -> None:
    def noisy() -> Any:
        print("hello")
        os.write(1, b"from below\n")
        raise ImportError("no")

    install("noisy", "1", noisy)
    project.write("mine.yaml", "name: x\nmodel: ./model\nstages: [{name: a, evl: 1}]\n")
    said = ptl("run", "mine.yaml", "--events", "-")
    assert said.code == 2
    assert [json.loads(line)["event"] for line in said.out.splitlines()] == ["ended"]
    assert "unknown key" in said.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--events", "-", "--json"), "both write to standard output"),
        (("--events", "no/such/events.jsonl"), "No such file or directory"),
        (("--events", "pipe"), "a pipe that nobody reads"),
    ],
)
def test_events_that_cannot_be_written_are_refused_at_once(
    ptl: Ptl, project: Project, words: tuple[str, ...], told: str
) -> None:
    os.mkfifo("pipe")
    project.write("mine.yaml", RECIPE)
    said = ptl("run", "mine.yaml", *words)
    assert said.code == 2
    assert told in said.err
    assert not Path(".ptl").exists()
