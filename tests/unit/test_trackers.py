"""`trackers:` of a recipe: what may stand there, and that it changes nothing of what is trained."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from posttrain_recipes import registry, typed
from posttrain_recipes.errors import PtlError, RecipeError, UsageError
from posttrain_recipes.plugin import RunStarted, Tracker, hookimpl
from posttrain_recipes.reporting.reproduction import plan_again
from posttrain_recipes.running import hearing, preflight
from posttrain_recipes.running.runner import new_record
from posttrain_recipes.store import default_home
from tests.conftest import Install, Project, Ptl
from tests.hearing import Listening, Needing

RECIPE = """\
name: demo
model: ./model
stages:
  - name: sft
    dataset: {use: jsonl, path: chat.jsonl}
    method: {use: sft}
"""


class Keyed(Tracker):
    """Has no key, or cannot even say so."""

    name = "keyed"
    raises: Exception = UsageError("KEY is not set", hint="export KEY=...")

    def check(self) -> None:
        raise self.raises

    def run_started(self, run: RunStarted) -> None: ...


@hookimpl
def ptl_trackers() -> list[type[Tracker]]:
    return [Listening, Needing, Keyed]


@pytest.fixture
def installed(install: Install) -> Iterator[None]:
    typed.schema.cache_clear()
    install("ptl-listening", "1.2", {"ptl_trackers": ptl_trackers, "PTL_API": 1})
    yield
    typed.schema.cache_clear()


pytestmark = pytest.mark.usefixtures("installed")


def test_they_stand_by_name_or_with_options_and_change_no_fingerprint(project: Project) -> None:
    bare = project.plan(RECIPE)
    plan = project.plan(RECIPE + "trackers: [listening, {use: listening, project: x}]\n")
    assert [one.name for one in plan.trackers] == ["listening", "listening"]
    assert [one.config.project for one in plan.trackers] == ["sums", "x"]  # type: ignore[attr-defined]
    assert plan.fingerprint == bare.fingerprint
    assert plan.stages[0].fingerprint == bare.stages[0].fingerprint
    assert plan.resolved["trackers"] == ["listening", {"use": "listening", "project": "x"}]
    assert bare.trackers == ()


def test_a_run_that_others_reproduce_tells_nobody(project: Project) -> None:
    plan = project.plan(RECIPE + "trackers: [listening]\n")
    again = plan_again(new_record(plan, "demo-1"), registry.load())
    assert (again.trackers, again.fingerprint) == ((), plan.fingerprint)


@pytest.mark.parametrize(
    ("override", "projects"),
    [
        ("trackers=[]", []),
        ("trackers=[{use: listening, project: y}]", ["y"]),
        ("trackers.listening.project=z", ["z"]),
    ],
)
def test_a_command_can_change_them(project: Project, override: str, projects: list[str]) -> None:
    plan = project.plan(RECIPE + "trackers: [listening]\n", overrides=[override])
    assert [one.config.project for one in plan.trackers] == projects  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("[listning]", "unknown tracker \"listning\"; did you mean 'listening'?"),
        ("[{use: listning}]", "unknown tracker \"listning\"; did you mean 'listening'?"),
        ("[wandb]", "it is in a package that is not installed: pip install ptl-wandb"),
        ("[needing]", "needs no_such_module_here, not installed here; pip install 'no-such-pack"),
        ("[{use: listening, projct: x}]", "unknown option for tracker 'listening'; did you mean"),
        ("[{use: listening, project: 3}]", "must be text, not 3"),
        ("[{project: x}]", "needs 'use:', which names the tracker; there is: keyed, listening"),
        ("listening", 'must be a list, not "listening"; write [listening]'),
        ("false", "must be a list, not false; [] for none"),
        ("[{use: listening, project: '${env:NOT_SET_HERE}'}]", "NOT_SET_HERE is not set"),
    ],
)
def test_what_cannot_stand_there_is_refused(project: Project, value: str, told: str) -> None:
    with pytest.raises(RecipeError) as caught:
        project.plan(RECIPE + f"trackers: {value}\n")
    assert told in str(caught.value)
    assert "trackers" in str(caught.value)


def test_it_stands_at_the_top(project: Project) -> None:
    with pytest.raises(RecipeError, match="'trackers' stands at the top of a recipe"):
        project.plan(RECIPE + "    trackers: [listening]\n")


def test_a_missing_package_ends_the_command_with_2(ptl: Ptl, project: Project) -> None:
    project.write("mine.yaml", RECIPE + "trackers: [needing]\n")
    said = ptl("run", "mine.yaml")
    assert said.code == 2
    assert "pip install 'no-such-package>=2'" in said.err


def test_one_that_is_known_not_to_work_is_refused_before_anything_is_spent(
    project: Project, ptl: Ptl, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = project.plan(RECIPE + "trackers: [keyed]\n")
    found = {one.check: one for one in preflight.cheap(plan, default_home())}
    assert (found["trackers"].verdict, "KEY is not set") == (
        "failed",
        found["trackers"].message.split(";")[0],
    )
    said = ptl("run", "mine.yaml")
    assert said.code == 2
    assert "KEY is not set" in said.err
    assert not (default_home() / "runs").is_dir()
    monkeypatch.setattr(Keyed, "raises", ZeroDivisionError("1/0"))
    with pytest.raises(PtlError, match="tracker 'keyed' cannot say whether it works"):
        hearing.check(plan)


def test_commands_name_them(project: Project, ptl: Ptl) -> None:
    project.write("mine.yaml", RECIPE + "trackers: [listening]\n")
    assert "\ntrackers: listening, beside MLflow\n" in ptl("plan", "mine.yaml").out
    assert json.loads(ptl("plan", "mine.yaml", "--json").out)["trackers"] == ["listening"]
    assert "trackers:\n" in ptl("plugins", "list").out
    assert "listening, a tracker of ptl-listening 1.2" in ptl("explain", "listening").out
    assert "project: string" in ptl("plugins", "show", "listening").out
    assert ptl("plugins", "check", "listening").code == 0


def test_python_has_them_too(project: Project) -> None:
    assert typed.tracker.listening(project="x") == {"use": "listening", "project": "x"}
    recipe = typed.recipe(name="a", model="m", stages=[], trackers=["listening"])
    assert recipe["trackers"] == ["listening"]
