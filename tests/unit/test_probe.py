"""Asking an engine what it can do, and refusing a run that it cannot do."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

from posttrain_recipes import probe, registry
from posttrain_recipes.errors import PtlError, UsageError
from posttrain_recipes.planning import needs
from posttrain_recipes.plugin import Connection
from posttrain_recipes.probe import Check, UnsupportedError, running
from posttrain_recipes.waiting import EngineWaiter
from tests.conftest import Project

NOBODY: Any = SimpleNamespace()


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> dict[str, Check]:
    found: dict[str, Check] = {}
    monkeypatch.setattr(running, "CHECKS", found)
    return found


def add(checks: dict[str, Check], name: str, run: Callable[[Any], Any], *requires: str) -> None:
    checks[name] = Check(name, name, run, requires)


def verdicts(**options: Any) -> dict[str, tuple[str, str]]:
    found = probe.probe(NOBODY, NOBODY, "m", **options)
    return {one.name: (one.verdict, one.detail) for one in found}


def test_every_check_comes_after_what_it_requires() -> None:
    seen: set[str] = set()
    for check in probe.CHECKS.values():
        assert seen.issuperset(check.requires), check.name
        seen.add(check.name)
    assert seen > set(probe.EMBEDDED_LACKS)


def test_what_a_check_says_is_told(checks: dict[str, Check]) -> None:
    def lacks(_: Any) -> None:
        raise UnsupportedError("no such thing")

    def breaks(_: Any) -> None:
        raise ValueError("teapot")

    add(checks, "a", lambda _: "well")
    add(checks, "b", lacks, "a")
    add(checks, "c", lambda _: None, "b")
    add(checks, "d", breaks)
    assert verdicts() == {
        "a": ("yes", "well"),
        "b": ("no", "no such thing"),
        "c": ("untried", "needs b"),
        "d": ("no", "ValueError: teapot"),
    }
    assert list(verdicts(names=["c"])) == ["a", "b", "c"]


def test_a_server_that_hangs_is_not_waited_for(checks: dict[str, Check]) -> None:
    never = threading.Event()
    for name in "abcd":
        add(checks, name, lambda _: never.wait())
    found = verdicts(check_s=0.02)
    never.set()
    assert [verdict for verdict, _ in found.values()] == ["no", "no", "untried", "untried"]
    assert found["a"][1] == "no answer within 0 s"


def test_a_check_that_gives_up_leaves_nothing_behind_that_polls(checks: dict[str, Check]) -> None:
    asked: dict[str, list[Future[int]]] = {"hangs": [], "fails": []}

    def hangs(bench: Any) -> None:
        asked["hangs"] += [Future(), Future()]
        bench.wait_all(*asked["hangs"])

    def fails(bench: Any) -> None:
        asked["fails"] += [Future(), Future()]
        asked["fails"][0].set_exception(ValueError("refused"))
        bench.wait_all(*asked["fails"])

    add(checks, "hangs", hangs)
    add(checks, "fails", fails)
    found = verdicts(check_s=0.02)
    assert found["fails"] == ("no", "ValueError: refused")
    assert [one.cancelled() for one in asked["hangs"]] == [True, True]
    assert [one.cancelled() for one in asked["fails"]] == [False, True]


def test_an_unknown_capability_is_an_error() -> None:
    with pytest.raises(PtlError, match="no capability 'loss:teapot'"):
        probe.with_requirements(["loss:teapot"])


def test_built_in_plugins_need_what_can_be_checked() -> None:
    entries = [entry for entry in registry.load() if hasattr(entry.cls, "needs")]
    assert entries
    for entry in entries:
        if isinstance(entry.cls.needs, tuple):
            probe.with_requirements(entry.cls.needs)


RECIPE = """
name: r
model: ./model
stages:
  - name: polite
    dataset: {use: jsonl, path: pairs.jsonl}
    method: {use: dpo, batch_size: 2}
"""


def connection(missing: Any) -> Connection:
    return Connection(NOBODY, NOBODY, missing=missing)


def test_a_recipe_is_refused_with_all_that_its_engine_lacks(project: Project) -> None:
    plan = project.plan(RECIPE)
    asked: list[str] = []

    def missing(names: Any) -> dict[str, str]:
        asked.extend(names)
        return {"custom_loss": "no such thing", "train": "no answer within 60 s"}

    with pytest.raises(UsageError) as raised:
        needs.check(plan, connection(missing), EngineWaiter())
    assert {"train", "custom_loss", "prompt_logprobs", "save:sampler"} <= set(asked)
    text = str(raised.value)
    assert "the engine 'local' cannot do what the recipe needs: custom_loss, train" in text
    assert "custom_loss, for method 'dpo' of stage 'polite': no such thing" in text
    assert "train, for stage 'polite': no answer within 60 s" in text


JUDGED = """
name: r
model: ./model
stages:
  - name: rl
    dataset: {{use: jsonl, path: prompts.jsonl}}
    method: {{use: grpo, batch_size: 2}}
    reward: {{use: {reward}}}
    eval:
      - use: mean_reward
        reward: {{use: {inner}}}
        dataset: {{use: jsonl, path: prompts.jsonl}}
"""


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ("judge", {"sample:top_logprobs", "prompt_logprobs"}),
        ("reward_model, model: {model: ./model}", {"sample:top_logprobs", "prompt_logprobs"}),
        ("pairwise, score: text", {"sample"}),
        ("rubric, criteria: [{text: kind}], score: text", {"sample"}),
        ("judge, endpoint: {base_url: 'http://h/v1', model: m}", set()),
        ("length, least: 1", set()),
    ],
)
def test_what_a_judge_needs_is_asked_for_in_rewards_and_in_those_of_evals(
    project: Project, options: str, wanted: set[str]
) -> None:
    project.write("prompts.jsonl", '{"prompt": "a"}\n{"prompt": "b"}\n')
    name = options.partition(",")[0]
    for recipe, who in (
        (JUDGED.format(reward=options, inner="length, least: 1"), f"reward '{name}' of stage 'rl'"),
        (JUDGED.format(reward="length, least: 1", inner=options), f"reward '{name}' of stage 'rl'"),
    ):
        found = needs.of(project.plan(recipe))
        assert {need for need, by in found.items() if who in by} == wanted


def test_a_recipe_runs_where_nothing_is_missing(project: Project) -> None:
    needs.check(project.plan(RECIPE), connection(lambda names: {}), EngineWaiter())
