"""An eval that calls a program, which asks the weights on OpenAI's routes, in a whole run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import ClassVar

import pytest

import posttrain_recipes as ptl
from posttrain_recipes import store
from posttrain_recipes.errors import PtlError
from posttrain_recipes.plugin import (
    Estimate,
    Eval,
    EvalContext,
    EvalResult,
    PerRecord,
    PluginConfig,
    hookimpl,
)
from posttrain_recipes.running.events import Reporter
from posttrain_recipes.training import harness
from tests.conftest import Install, Project

PROGRAM = """
import json, os, sys, urllib.request
body = {"model": sys.argv[2], "messages": [{"role": "user", "content": "What is 2 + 3?"}],
        "max_tokens": 8, "temperature": 0}
asked = urllib.request.Request(sys.argv[1] + "/chat/completions", json.dumps(body).encode(),
    {"Content-Type": "application/json", "Authorization": "Bearer " + os.environ["SUITE_KEY"]})
with urllib.request.urlopen(asked) as answer:
    found = json.load(answer)
print(json.dumps({"reply": found["choices"][0]["message"]["content"], "usage": found["usage"]}))
"""
RECIPE = """
name: called
model: ptl/tiny
renderer: {template_kwargs: {reasoning_effort: low}}
stages:
  - name: sft
    dataset: {use: jsonl, path: chat.jsonl}
    method: {use: sft, max_steps: 1, batch_size: 2}
    eval: [{use: acme_suite, name: sums}]
"""
KEYS: list[str] = []
MODELS: list[str] = []


class Suite(Eval):
    """Calls a program that asks one question."""

    name = "acme_suite"
    takes: ClassVar = ()

    class Config(PluginConfig):
        """No options."""

    def evaluate(self, context: EvalContext) -> EvalResult:
        assert context.records == []
        served = context.served()
        KEYS.append(served.routes.api_key)
        MODELS.append(served.model)
        assert (Path(served.tokenizer) / "tokenizer.json").is_file()
        text = harness.call(
            "the suite",
            [sys.executable, "-c", PROGRAM, served.routes.base_url, served.model],
            context.wait,
            cwd=Path.cwd(),
            env={"SUITE_KEY": served.routes.api_key},
        )
        found = json.loads(text)
        context.artifact("log.json", text)
        context.artifact("log.eval", b"\x00binary")
        usage = found["usage"]
        context.spent(usage["prompt_tokens"], usage["completion_tokens"])
        right = float("5" in found["reply"])
        return EvalResult(
            {"right": Estimate(right, 0, 1, 1)}, scores={"right": PerRecord((right,))}
        )


@hookimpl
def ptl_evals() -> list[type[Eval]]:
    return [Suite]


class Warnings(Reporter):
    def __init__(self) -> None:
        self.told: list[str] = []

    def warning(self, text: str) -> None:
        self.told.append(text)


@pytest.mark.usefixtures("quick_engines")
def test_a_program_measures_the_weights_before_and_after(
    install: Install, project: Project
) -> None:
    install("acme", "1", {"PTL_API": 1, "ptl_evals": ptl_evals})
    project.write("called.yaml", RECIPE)
    KEYS.clear()
    MODELS.clear()
    heard = Warnings()
    result = ptl.run("called.yaml", home="home", reporter=heard)
    assert result.status == "finished"
    assert ["ptl/tiny", result["sft"].checkpoint.sampler_uri] == MODELS
    assert result["sft"].before["sums"]["right"].value == 1
    assert [text for text in heard.told if "'renderer:' is not applied" in text]

    run = Path("home") / "runs" / result.run_id
    for when in ("before", "after"):
        folder = run / "artifacts" / "sft" / f"sums-{when}"
        assert json.loads((folder / "log.json").read_text())["reply"]
        assert (folder / "log.eval").read_bytes() == b"\x00binary"
    record = store.read(run / "run.json")
    assert record is not None
    usage = record.stages[0].evaluation.usage
    assert usage.prefill > 0
    assert usage.sample > 0
    logged = Path("home/artifacts").rglob("log.eval")
    assert sorted(path.parent.name for path in logged) == ["sums-after", "sums-before"]
    holding = [
        str(path)
        for path in Path("home").rglob("*")
        if path.is_file() and any(key.encode() in path.read_bytes() for key in KEYS)
    ]
    assert holding == []


@pytest.mark.usefixtures("quick_engines")
def test_an_engine_without_the_routes_is_told(
    install: Install, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("posttrain_recipes.engines.OpenAIRoutes", lambda *_: None)
    install("acme", "1", {"PTL_API": 1, "ptl_evals": ptl_evals})
    project.write(
        "look.yaml", "name: look\nmodel: ptl/tiny\nstages: [{name: a, eval: [{use: acme_suite}]}]\n"
    )
    with pytest.raises(PtlError, match=r"the engine \(local\) has no OpenAI routes"):
        ptl.run("look.yaml", home="home")
