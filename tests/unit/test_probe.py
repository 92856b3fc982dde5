"""Asking an engine what it can do, and refusing a run that it cannot do."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
import tinker

from posttrain_recipes import engines, probe, registry
from posttrain_recipes.errors import PtlError, UsageError
from posttrain_recipes.planning import needs
from posttrain_recipes.plugin import Connection
from posttrain_recipes.probe import Check, UnsupportedError, running
from posttrain_recipes.waiting import EngineWaiter, explain, says_full
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


def test_a_check_that_was_given_up_asks_nothing_more(checks: dict[str, Check]) -> None:
    """It may be computing as its time is over, and would ask afterwards."""
    over, ended = threading.Event(), threading.Event()
    late: Future[int] = Future()

    def slow(bench: Any) -> None:
        over.wait()
        try:
            bench.wait(late)
        finally:
            ended.set()

    add(checks, "slow", slow)
    add(checks, "next", lambda _: None)
    found = probe.probe(NOBODY, NOBODY, "m", check_s=0.02)
    assert next(found).detail == "no answer within 0 s"
    over.set()
    assert ended.wait(10)
    assert late.cancelled()
    assert next(found).verdict == "yes"


def test_a_cold_server_has_time_for_its_first_checks(
    checks: dict[str, Check], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, float] = {}

    def run(check: Check, bench: Any, limit_s: float) -> probe.Outcome:
        given[check.name] = limit_s
        return probe.Outcome(check.name, "", "yes", seconds=250.0)

    monkeypatch.setattr(running, "_run", run)
    for name in ("train", "loss", "sample"):
        add(checks, name, lambda _: None)
    list(probe.probe(NOBODY, NOBODY, "m", check_s=60.0, within_s=120.0, startup_s=300.0))
    assert given["train"] == given["sample"] == 300.0
    assert given["loss"] == pytest.approx(60.0)  # what the first took is not of its time


def test_no_free_slot_is_told_as_that_and_not_as_a_lack(checks: dict[str, Check]) -> None:
    words = "Request failed: Maximum number of LoRA adapters (8) reached for self.request_id='1'"

    class Full:
        def create_lora_training_client(self, model: str, **options: Any) -> Any:
            future: Future[Any] = Future()
            future.set_exception(ValueError(words))
            return future

    add(checks, "train", lambda bench: bench.trainer())
    (found,) = probe.probe(Full(), NOBODY, "m")  # type: ignore[arg-type]
    assert (found.verdict, found.full) == ("untried", True)
    told = "the server has no free slot for an adapter: Maximum number of LoRA adapters (8) reached"
    assert found.detail == told


@pytest.mark.parametrize(
    ("words", "full"),
    [
        ("Maximum number of LoRA adapters (8) reached", True),
        ("no free slot: 4 of 4 adapters are in use", True),
        ("SkyRLTrainBackend already has a 'policy' model", True),
        ("the maximum number of tokens is 4096", False),
        ("model 'x' was not found", False),
    ],
)
def test_what_servers_say_when_they_are_full(words: str, full: bool) -> None:
    assert says_full(words) == full
    error = explain(tinker.TinkerError(words))
    assert ("no free slot" in str(error)) == full
    assert words in str(error)


OPTIONS = """
name: r
model: ./model
{lora}
stages:
  - name: one
    dataset: {{use: jsonl, path: chat.jsonl}}
    method: {{use: sft, batch_size: 2{method}}}
"""


@pytest.mark.parametrize(
    ("lora", "method", "wanted"),
    [
        ("", "", {"optimizer:grad_clip"}),
        ("", ", grad_clip: 0", set()),
        ("", ", grad_clip: 0, adam_beta2: 0.99", {"optimizer:betas"}),
        ("", ", grad_clip: 0, weight_decay: 0.1", {"optimizer:weight_decay"}),
        ("lora: {train_mlp: false}", ", grad_clip: 0", {"lora:parts"}),
        ("lora: {train_unembed: true}", ", grad_clip: 0", {"lora:parts"}),
    ],
)
def test_options_that_some_servers_ignore_are_asked_for(
    project: Project, lora: str, method: str, wanted: set[str]
) -> None:
    found = set(needs.of(project.plan(OPTIONS.format(lora=lora, method=method))))
    asked = {name for name in found if name.startswith("optimizer:") or name == "lora:parts"}
    assert asked == wanted


def test_samplers_that_training_overtakes_have_to_be_snapshots(project: Project) -> None:
    project.write("prompts.jsonl", '{"prompt": "a"}\n{"prompt": "b"}\n')
    for late in (0, 1):
        recipe = JUDGED.format(reward="length, least: 1", inner="length, least: 1")
        plan = project.plan(
            recipe.replace("batch_size: 2", f"batch_size: 2, max_staleness: {late}")
        )
        assert ("sample:snapshot" in needs.of(plan)) == bool(late)


def test_what_a_recipe_leaves_open_is_as_the_engine_has_it(project: Project) -> None:
    """It is told, and what the recipe says itself stays, to be refused."""
    for dialect, given, clip in (
        ("'0.25'", "", 0.0),
        ("'0.25'", ", grad_clip: 0.5", 0.5),
        ("current", "", 1.0),
    ):
        recipe = OPTIONS.format(lora="", method=given)
        engine = f"engine: {{use: server, base_url: 'http://127.0.0.1:1', dialect: {dialect}}}"
        plan = project.plan(f"{recipe}{engine}\n")
        method: Any = plan.stages[0].method
        assert method.config.grad_clip == clip
        told = "sft: grad_clip 0: the engine does nothing else" in plan.pins
        assert told == (clip == 0.0)


def test_an_untried_check_is_told_with_what_it_stands_on(
    checks: dict[str, Check], monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacks(_: Any) -> None:
        raise UnsupportedError("weights are lost")

    add(checks, "gradient", lacks)
    add(checks, "custom", lambda _: None, "gradient")
    add(checks, "deep", lambda _: None, "custom")
    found = engines._probed(connection({}), {"m": ""}, ["deep"], {}, 1.0, 4)
    assert found == {"deep": "needs custom: needs gradient: weights are lost"}


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
