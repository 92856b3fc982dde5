"""What can be known to go wrong is said before anything is spent."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from posttrain_recipes.engines import Local
from posttrain_recipes.errors import PtlError, UsageError
from posttrain_recipes.plugin import Engine, Method, Offer, Prompt, Reward, Sample, hookimpl
from posttrain_recipes.running import preflight
from posttrain_recipes.running.runner import run
from posttrain_recipes.tracking.mlstore import import_mlflow
from tests.conftest import Install, Project

RECIPE = """\
name: demo
model: ptl/nano
engine: ENGINE
stages:
  - name: sft
    dataset: {use: jsonl, path: chat.jsonl, test_size: 1}
    method: {use: sft}
    eval: [{use: nll}]
"""
RL = """\
name: demo
model: ptl/nano
stages:
  - name: rl
    dataset: {use: jsonl, path: questions.jsonl}
    method: {use: acme_reinforce}
    reward: {use: REWARD}
"""


class Reinforce(Method):
    """Takes a reward."""

    name = "acme_reinforce"
    takes: ClassVar = (Prompt,)
    takes_reward = True

    def train(self, stage: Any) -> Any:
        raise NotImplementedError


class Generous(Reward):
    """Pays for anything."""

    name = "acme_generous"

    def score(self, samples: Sequence[Sample]) -> list[float]:
        return [0.5] * len(samples)


class Exact(Reward):
    """Pays for the answer."""

    name = "acme_exact"

    def score(self, samples: Sequence[Sample]) -> list[float]:
        return [float(s.completion == s.answer) for s in samples]


class Brittle(Reward):
    """Raises where there is nothing to score."""

    name = "acme_brittle"

    def score(self, samples: Sequence[Sample]) -> list[float]:
        return [float(s.completion.split()[0] == s.answer) for s in samples]


class Judge(Generous):
    """Asks a model."""

    name = "acme_judge"

    def open(self, context: Any) -> None:
        raise AssertionError("nothing is spent")


@pytest.fixture
def rl(install: Install) -> None:
    install(
        "acme",
        "1",
        {
            "ptl_methods": hookimpl(lambda: [Reinforce], specname="ptl_methods"),
            "ptl_rewards": hookimpl(
                lambda: [Generous, Exact, Brittle, Judge], specname="ptl_rewards"
            ),
        },
    )


def rewards(project: Project, name: str) -> list[preflight.PreflightFinding]:
    return list(preflight.rewards(project.plan(RL.replace("REWARD", name))))


def test_a_reward_that_pays_for_nothing_is_told(project: Project, rl: None) -> None:
    found = rewards(project, "acme_generous")
    assert {finding.verdict for finding in found} == {"warning"}
    assert found[0].message == "pays 0.50 for an empty answer, and 0.50 for the reference answer"


def test_a_reward_that_knows_the_answer_is_well(project: Project, rl: None) -> None:
    [finding] = rewards(project, "acme_exact")
    assert finding.verdict == "ok"
    assert finding.message.endswith("the reference answer gets 1.00")


def test_a_reward_that_raises_is_told(project: Project, rl: None) -> None:
    [finding] = rewards(project, "acme_brittle")
    assert finding.verdict == "failed"
    assert "raises IndexError" in finding.message


def test_a_reward_that_asks_a_model_is_not_tried(project: Project, rl: None) -> None:
    [finding] = rewards(project, "acme_judge")
    assert (finding.verdict, finding.message[:12]) == ("skipped", "asks a model")


# --- data, disk, sdk -----------------------------------------------------------------------------


def test_all_of_the_data_are_read(project: Project) -> None:
    plan = project.plan(RECIPE.replace("ENGINE", "local"))
    assert [(f.check, f.verdict) for f in preflight.data(plan)] == [
        ("data of sft", "ok"),
        ("data of sft, eval nll", "ok"),
    ]
    path = project.path / "chat.jsonl"
    path.write_text(path.read_text() + "{}\n")
    assert {f.verdict for f in preflight.data(plan)} == {"failed"}


def test_a_test_split_that_leaves_nothing_ends_a_run_before_an_engine_is_started(
    project: Project,
) -> None:
    plan = project.plan(RECIPE.replace("ENGINE", "local").replace("test_size: 1", "test_size: 4"))
    with pytest.raises(UsageError, match="has 4 records, too few for test_size=4"):
        run(plan, project.path / "home")
    import_mlflow()  # the run began it in the background: no later test runs beside it


def test_little_space_is_told(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = project.plan(RECIPE.replace("ENGINE", "local"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=5 << 20))
    found = {f.check: f for f in preflight.cheap(plan, project.path / "a" / "b")}
    assert found["disk"].verdict == "warning"
    assert "0.0 GB free" in found["disk"].message
    assert found["sdk"].verdict == "ok"


@pytest.mark.parametrize("version", ["0.37.2", "1.0.0"])
def test_another_sdk_is_told(
    project: Project, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    plan = project.plan(RECIPE.replace("ENGINE", "local"))
    monkeypatch.setattr(preflight, "metadata", SimpleNamespace(version=lambda _: version))
    assert {f.check: f.verdict for f in preflight.cheap(plan, project.path)}["sdk"] == "warning"


# --- the engine ----------------------------------------------------------------------------------


class Shut(Engine):
    """Refuses everybody."""

    name = "shut"
    identity = "shut"

    @contextmanager
    def connect(self, models: Mapping[str, str], data_dir: Path, log_path: Path) -> Any:
        raise PtlError("the engine refused the API key", why="401", hint="check TINKER_API_KEY")
        yield


def test_an_engine_that_refuses_is_told(project: Project, install: Install) -> None:
    install("acme", "1", {"ptl_engines": hookimpl(lambda: [Shut], specname="ptl_engines")})
    [finding] = preflight.engine(project.plan(RECIPE.replace("ENGINE", "shut")), project.path)
    assert finding.verdict == "failed"
    assert finding.message == "the engine refused the API key: 401"
    assert finding.hint == "check TINKER_API_KEY"


@pytest.mark.parametrize(("offers", "told"), [({}, False), ({"ptl/nano": Offer()}, True)])
def test_only_an_engine_that_lists_its_models_is_said_to_serve_one(
    project: Project, monkeypatch: pytest.MonkeyPatch, offers: dict[str, Offer], told: bool
) -> None:
    connection = SimpleNamespace(alive=lambda: True, offers=offers)
    monkeypatch.setattr(Local, "connect", lambda *_: nullcontext(connection))
    monkeypatch.setattr(preflight, "Serving", lambda *_: SimpleNamespace())
    plan = project.plan(RECIPE.replace("ENGINE", "local"))
    first = next(iter(preflight.engine(plan, project.path)))
    assert first.verdict == "ok"
    assert ("serves ptl/nano" in first.message) == told


SCORED = """\
name: demo
model: ptl/nano
stages:
  - name: dpo
    dataset: {use: jsonl, path: pairs.jsonl}
    method: {use: dpo}
  - name: rm
    init_from: base
    dataset: {use: jsonl, path: pairs.jsonl}
    method: {use: reward_model}
  - name: soup
    init_from: base
    method: {use: merge, of: [{stage: rm}, {stage: rm}]}
  - name: rl
    init_from: base
    dataset: {use: jsonl, path: questions.jsonl}
    method: {use: grpo}
    reward: {use: reward_model, model: MODEL}
    eval:
      - use: mean_reward
        reward: {use: reward_model, model: MODEL}
        dataset: {use: jsonl, path: questions.jsonl}
"""


@pytest.mark.parametrize(
    ("model", "count"),
    [
        ("{stage: dpo}", 2),
        ("[{stage: rm}, {stage: dpo}]", 2),
        ("{stage: rm}", 0),
        ("{stage: soup}", 0),
        ("{stage: base}", 0),
    ],
)
def test_scores_of_weights_that_write_are_warned_of(
    project: Project, model: str, count: int
) -> None:
    plan = project.plan(SCORED.replace("MODEL", model))
    found = [one for one in preflight.cheap(plan, project.path) if "reward" in one.check]
    assert [one.verdict for one in found] == ["warning"] * count
    assert all("stage 'dpo' (dpo) trains weights that write" in one.message for one in found)
