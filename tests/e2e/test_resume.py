"""Killed at any instant, a run goes on to the very result of one that nobody disturbed.

Twenty moments, drawn by a fixed seed from everything that happens in a run, for every method in
one recipe: the runner by SIGKILL, SIGTERM and SIGINT, and the engine by SIGKILL.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

import posttrain_recipes as ptl
from posttrain_recipes import engines
from posttrain_recipes.engine import launch
from posttrain_recipes.errors import PtlError
from posttrain_recipes.running import collect
from posttrain_recipes.running.events import Reporter
from posttrain_recipes.store import RunRecord, Store
from tests import adapters, engine_model, forks
from tests.e2e import kills
from tests.e2e.kills import Point

POINTS = 16
ENGINE_POINTS = 4
"""Of these, how many kill the engine: each costs the start of another."""

STAGES = {
    "sft": """
    dataset: {use: jsonl, path: chat.jsonl, test_size: 4}
    method: {use: sft, learning_rate: 1e-2, batch_size: 4, epochs: 2, max_steps: 7, save_every: 2}
    eval: [{use: nll, every: 3}]""",
    "dpo": """
    dataset: {use: jsonl, path: pairs.jsonl}
    method: {use: dpo, learning_rate: 5e-3, batch_size: 4, max_steps: 5, save_every: 2}
    keep: {best: tone}
    eval:
      - {use: preference_accuracy, name: tone, every: 2,
         dataset: {use: jsonl, path: pairs.jsonl, limit: 4}}
      - nll""",
    "grpo": """
    dataset: {use: jsonl, path: sums.jsonl}
    method: {use: grpo, learning_rate: 5e-3, batch_size: 3, group_size: 4, max_tokens: 4,
             max_steps: 5, save_every: 1}
    reward: {use: length, unit: characters, least: 4, slack: 4}
    eval:
      - {use: exact_match, name: sums, every: 1, max_tokens: 4,
         dataset: {use: jsonl, path: sums.jsonl, limit: 4}}
    stop: {after: 3 evals without gain}""",
}
"""Every method that has to resume exactly, in the order in which one recipe runs them."""

TEMPLATE = (
    "{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)


@dataclass(frozen=True)
class Lab:
    """A recipe, an engine that outlives runs of it, and an undisturbed run to compare with."""

    folder: Path
    environment: dict[str, str]
    expected: RunRecord
    moments: int

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def recipe(self) -> Path:
        return self.folder / "recipe.yaml"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("lab")
    model = engine_model.build(folder / "model")
    config = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": TEMPLATE}))
    chat = [
        {"prompt": f"{a}+{b}?", "completion": str(a + b)} for a in range(1, 7) for b in range(4)
    ]
    pairs = [{"prompt": r["prompt"], "chosen": r["completion"], "rejected": "no"} for r in chat]
    sums = [{"prompt": r["prompt"], "answer": r["completion"]} for r in chat]
    for name, rows in (("chat", chat), ("pairs", pairs), ("sums", sums)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (folder / "home").mkdir()
    with (
        forks.engines(),
        pytest.MonkeyPatch.context() as patch,
        launch.start({"./model": str(model)}, folder / "served", folder / "engine.log") as engine,
    ):
        stages = "".join(f"\n  - name: {name}{text}" for name, text in STAGES.items())
        (folder / "recipe.yaml").write_text(
            "name: killed\nmodel: ./model\nlora: {rank: 4}\nseed: 3\n"
            f"engine: {{use: server, base_url: '{engine.base_url}', api_key: '${{env:LAB_KEY}}'}}\n"
            f"stages:{stages}\n"
        )
        environment = {"LAB_KEY": engine.api_key}
        patch.setenv("LAB_KEY", engine.api_key)
        patch.setattr(engines, "_probed", kills.lacks_nothing)
        heard: list[str] = []
        listening = kills.hearing(heard.append)
        result = ptl.run(folder / "recipe.yaml", home=folder / "home", reporter=listening)
        yield Lab(folder, environment, result.record, len(heard))


def points(moments: int) -> list[Point]:
    """Moments all over a run: boundaries exactly, and instants between them."""
    rng = random.Random(16)
    spread = [moments * (i + rng.random()) / POINTS for i in range(POINTS)]
    signals = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
    runner = [
        Point(int(at), rng.choice((0.0, rng.uniform(0.001, 0.05))), signals[i % 3])
        for i, at in enumerate(spread)
    ]
    for i in rng.sample(range(1, POINTS), ENGINE_POINTS):
        runner[i] = Point(max(1, runner[i].moment), runner[i].delay, signal.SIGKILL, engine=True)
    return runner


def adapter(lab: Lab, uri: str) -> dict[str, torch.Tensor]:
    place = adapters.folder_of(uri)
    roots = (lab.folder / "served", lab.home / "engine")
    root = next(root for root in roots if (root / place).is_dir())
    assert json.loads((root / place / "checkpoint.json").read_text())["step"] > 0
    return adapters.adapter(root, uri)


def assert_same(lab: Lab, record: RunRecord) -> None:
    """The same weights and evals to float noise, every batch once, every step once in MLflow."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{lab.home / 'mlflow.db'}")
    assert record.status == "finished"
    for mine, theirs in zip(record.stages, lab.expected.stages, strict=True):
        assert (mine.total_steps, mine.tokens) == (theirs.total_steps, theirs.tokens)
        assert mine.checkpoint is not None
        assert theirs.checkpoint is not None
        assert mine.checkpoint.step == theirs.checkpoint.step
        assert (mine.notes, mine.ended) == (theirs.notes, theirs.ended)
        ours = adapter(lab, mine.checkpoint.sampler_uri or "")
        other = adapter(lab, theirs.checkpoint.sampler_uri or "")
        assert ours.keys() == other.keys()
        for name, tensor in ours.items():
            assert (tensor - other[name]).abs().max().item() < 1e-5, name
        for when in ("before", "during", "after"):
            for a, b in zip(getattr(mine, when), getattr(theirs, when), strict=True):
                assert a.step == b.step
                for metric, estimate in a.metrics.items():
                    assert estimate.value == pytest.approx(b.metrics[metric].value, abs=1e-4)
        history, undisturbed = (
            [(m.step, m.value) for m in client.get_metric_history(run, "train/loss")]
            for run in (mine.tracking_id, theirs.tracking_id)
        )
        assert [step for step, _ in history] == list(range(1, mine.total_steps + 1))
        for (_, value), (_, reference) in zip(history, undisturbed, strict=True):
            assert value == pytest.approx(reference, abs=1e-4)


def test_each_stage_trains_something_that_could_come_out_otherwise(lab: Lab) -> None:
    ends = [s.checkpoint.sampler_uri or "" for s in lab.expected.stages if s.checkpoint]
    weights = [adapter(lab, uri) for uri in ends]
    for before, after in itertools.pairwise(weights):
        moved = max((after[name] - before[name]).abs().max().item() for name in before)
        assert moved > 1e-3


def test_evals_decide_what_a_stage_leaves_and_when_it_ends(lab: Lab) -> None:
    sft, dpo, grpo = lab.expected.stages
    assert [m.step for m in sft.during] == [3, 6]
    assert [m.step for m in dpo.during if m.name == "tone"] == [2, 4, 5]
    assert dpo.checkpoint
    assert dpo.checkpoint.step < dpo.total_steps == 5
    assert grpo.ended
    assert grpo.total_steps == 3
    assert grpo.notes == ["ended at step 3 of 5: 3 evals without gain of sums"]


@pytest.mark.usefixtures("quick_engines")
def test_a_stage_that_its_evals_ended_stays_ended_where_the_run_was_stopped_then(lab: Lab) -> None:
    class Stops(Reporter):
        def note(self, text: str) -> None:
            if text.startswith("ended at step"):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ptl.run(lab.recipe, home=lab.home, fresh=True, reporter=Stops())
    assert Store(lab.home).runs()[-1].stages[-1].ended
    assert_same(lab, ptl.run(lab.recipe, home=lab.home).record)


@pytest.mark.usefixtures("quick_engines")
@pytest.mark.parametrize(
    "index",
    [i if i % 8 == 0 else pytest.param(i, marks=pytest.mark.nightly) for i in range(POINTS)],
)
def test_a_run_that_was_killed_anywhere_ends_in_the_same_result(lab: Lab, index: int) -> None:
    point = points(lab.moments)[index]
    if point.engine:
        kill_engine(lab, point)
    else:
        arguments = (str(lab.recipe), str(lab.home), lab.environment, point)
        process = forks.context().Process(target=kills.drive, args=arguments)
        process.start()
        process.join(120)
        assert process.exitcode in (-signal.SIGKILL, 0, 130, -point.number), point
    overrides = ["engine=local"] if point.engine else []
    stopped = Store(lab.home).runs()[-1]
    result = ptl.run(lab.recipe, home=lab.home, overrides=overrides)
    assert result.run_id == stopped.id, f"{point}: the same run goes on"
    assert [s.status for s in result.record.stages] == ["finished"] * len(STAGES), point
    try:
        assert_same(lab, result.record)
    except AssertionError as error:
        raise AssertionError(f"{point}: {error}") from error


def kill_engine(lab: Lab, point: Point) -> None:
    def strike() -> None:
        engine = forks.Forked.started[-1]
        assert str(lab.home / "engine") in engine.command
        assert engine.poll() is None
        engine.kill()

    with pytest.raises(PtlError, match="the engine ended"):
        ptl.run(
            lab.recipe,
            home=lab.home,
            overrides=["engine=local"],
            fresh=True,
            reporter=kills.at(point, strike),
        )


def test_a_second_run_is_told_who_holds_the_first(lab: Lab) -> None:
    told: list[str] = []

    class Second(Reporter):
        def step(self, number: int, total: int, metrics: object) -> None:
            if not told:
                with pytest.raises(
                    PtlError, match=f"being worked on by process {os.getpid()} "
                ) as e:
                    ptl.run(lab.recipe, home=lab.home, overrides=["seed=9"])
                told.append(str(e.value))

    ptl.run(lab.recipe, home=lab.home, overrides=["seed=9"], until="sft", reporter=Second())
    assert "--fresh" in told[0]
    assert ptl.run(lab.recipe, home=lab.home, overrides=["seed=9"]).status == "finished"


def test_a_bound_stops_a_run_before_it_is_passed_and_it_goes_on(lab: Lab) -> None:
    sft = lab.expected.stages[0]
    used = sft.spent.usage.tokens
    assert sft.estimate is not None
    assert (sft.estimate.tokens, sft.estimate.exact) == (used, True), "counted before it ran"
    bound = sft.evaluation.prefill // 2 + sft.training.train * 3 // 4
    overrides = [f"limits.max_tokens={bound}"]
    with pytest.raises(PtlError, match=f"stopped: limits.max_tokens is {bound}") as caught:
        ptl.run(lab.recipe, home=lab.home, overrides=overrides, fresh=True)
    assert caught.value.exit_code == 4
    assert "sft kept up to step" in (caught.value.why or "")
    stopped = Store(lab.home).runs()[-1]
    assert stopped.status == "stopped"
    assert 0 < stopped.stages[0].spent.usage.tokens <= bound
    with pytest.raises(PtlError, match="stopped"):
        ptl.run(lab.recipe, home=lab.home, overrides=overrides)
    result = ptl.run(lab.recipe, home=lab.home)
    assert result.run_id == stopped.id
    assert_same(lab, result.record)
    assert result.record.stages[0].spent.usage == sft.spent.usage, "nothing was done twice"


def test_mlflow_names_what_stages_ended_in_and_gc_leaves_it(lab: Lab) -> None:
    tracked = collect.tracked_uris(lab.home)
    ends = [stage.checkpoint for stage in lab.expected.stages]
    assert {end.state_uri for end in ends if end} <= tracked
    assert {end.sampler_uri for end in ends if end} <= tracked
    forgotten = [replace(s, checkpoint=None, resume=None) for s in lab.expected.stages]
    for stage in forgotten:
        stage.superseded = sorted(tracked)
    run = replace(lab.expected, stages=forgotten)
    assert collect.find([run], {}, tracked) == [], "MLflow's word is enough"
    assert collect.find([run], {}, set()) != []
