"""What hosted Tinker refuses late is told before anything is spent: ranks, numbers of likeliest
tokens, models, lengths."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from posttrain_recipes import registry
from posttrain_recipes.connecting import offers
from posttrain_recipes.engine.core import hosted as double
from posttrain_recipes.errors import RecipeError, UsageError
from posttrain_recipes.planning import hosted, needs
from posttrain_recipes.planning.plans import Plan
from posttrain_recipes.plugin import (
    AskedOf,
    Connection,
    Conversation,
    Eval,
    ModelRef,
    Offer,
    PluginConfig,
    Reward,
    hookimpl,
)
from posttrain_recipes.running import texts
from posttrain_recipes.running.serving import Serving
from tests.conftest import Install, Project

RECIPE = """\
name: demo
model: MODEL
engine: tinker
lora: {rank: RANK}
stages:
  - name: sft
    dataset: {use: jsonl, path: chat.jsonl}
    method: {use: sft, learning_rate: 1e-4}
"""
EXPERTS = "Qwen/Qwen3.6-35B-A3B"
DISTILL = """\
name: demo
model: ptl/nano
engine: ENGINE
stages:
  - name: small
    dataset: {use: jsonl, path: chat.jsonl, limit: 4}
    method: {use: distill_off_policy, teacher: {model: ptl/tiny}, learning_rate: 1e-4, top_k: 21}
"""


def faults(project: Project, text: str) -> list[str]:
    try:
        project.plan(text)
    except RecipeError as error:
        return [f"{fault.key}: {fault.message}" for fault in error.faults]
    return []


def test_the_bounds_are_those_of_the_double() -> None:
    assert (hosted.RANK, hosted.RANK_OF_EXPERTS) == (double.RANK, double.RANK_OF_EXPERTS)
    assert hosted.LIKELIEST == double.MOST_LIKELY


# --- ranks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "rank", "words"),
    [
        ("Qwen/Qwen3-8B", 12, "12 would be refused when the stage begins: write 8"),
        ("Qwen/Qwen3-8B", 256, "up to 128; 256 would be refused when the stage begins: write 128"),
        ("Qwen/Qwen3-8B", 128, ""),
        ("Qwen/Qwen3-8B", 1, ""),
        (EXPERTS, 64, "a mixture of experts, with a rank that is a power of two, up to 32"),
        (EXPERTS, 32, ""),
        ("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", 64, "a mixture of experts"),
        ("deepseek-ai/DeepSeek-V3.1", 64, "a mixture of experts"),
    ],
)
def test_a_rank_that_is_refused_late(project: Project, model: str, rank: int, words: str) -> None:
    found = faults(project, RECIPE.replace("MODEL", model).replace("RANK", str(rank)))
    assert len(found) == bool(words)
    assert all(one.startswith("lora.rank: hosted Tinker") and words in one for one in found)


def test_a_config_tells_experts_whatever_the_name(project: Project) -> None:
    project.write("lab/mix/config.json", json.dumps({"hidden_size": 8, "num_local_experts": 4}))
    text = RECIPE.replace("MODEL", "lab/mix").replace("RANK", "64")
    assert "up to 32; 64" in faults(project, text)[0]
    project.write("lab/mix/config.json", json.dumps({"hidden_size": 8}))
    assert not faults(project, text)


@pytest.mark.parametrize("engine", ["local", "{use: server, base_url: 'http://x'}"])
def test_other_engines_train_any_rank(project: Project, engine: str) -> None:
    text = RECIPE.replace("MODEL", "ptl/nano").replace("RANK", "12")
    assert not faults(project, text.replace("engine: tinker", f"engine: {engine}"))


def test_a_rank_is_told_where_it_is_written_and_once(project: Project) -> None:
    more = "  - name: more\n    dataset: {use: jsonl, path: chat.jsonl}\n    method: {use: sft}\n"
    text = RECIPE.replace("MODEL", "Qwen/Qwen3-8B").replace("RANK", "8")
    other = f"{text}{more}    init_from: base\n    lora: {{rank: 24}}\n"
    assert [one.partition(":")[0] for one in faults(project, other)] == ["stages.more.lora.rank"]
    assert len(faults(project, text.replace("rank: 8", "rank: 24") + more)) == 1


@pytest.mark.parametrize(
    "stage",
    [
        "    eval: [{use: nll, dataset: {use: jsonl, path: chat.jsonl}}]\n",
        "    init_from: tinker://a:train:0/weights/x\n"
        "    dataset: {use: jsonl, path: chat.jsonl}\n    method: {use: sft}\n",
    ],
)
def test_a_stage_that_makes_no_adapter_has_no_rank(project: Project, stage: str) -> None:
    head = RECIPE.replace("MODEL", "Qwen/Qwen3-8B").replace("RANK", "12").partition("stages:")[0]
    assert not faults(project, f"{head}stages:\n  - name: one\n{stage}")


# --- likeliest tokens ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("engine", "top_k", "count"), [("tinker", 21, 1), ("tinker", 20, 0), ("local", 21, 0)]
)
def test_more_of_the_likeliest_tokens_than_are_told(
    project: Project, engine: str, top_k: int, count: int
) -> None:
    text = DISTILL.replace("ENGINE", engine).replace("top_k: 21", f"top_k: {top_k}")
    found = [one for one in faults(project, text) if "top_k" in one]
    assert len(found) == count
    assert all(one.startswith("stages.small.method.top_k: ") for one in found)


def test_every_option_of_the_likeliest_tokens_is_marked() -> None:
    found = {}
    known = registry.load()
    for entry in (known.get("method", name) for name in known.names("method")):
        info = entry.config.model_fields.get("top_k")
        if info is not None:
            found[entry.name] = AskedOf.LIKELIEST in info.metadata
    taught = ("sdft", "sdpo")
    assert found == dict.fromkeys(("distill_off_policy", "gkd", "prompt_distill", *taught), True)


# --- renderers -----------------------------------------------------------------------------------

OWN = ["openai/gpt-oss-20b", "moonshotai/Kimi-K2.6", "thinkingmachines/Inkling-Small"]


@pytest.mark.parametrize("model", [*OWN, "openai/gpt-oss-120b:peft:131072"])
def test_a_model_that_needs_a_renderer_of_its_own(project: Project, model: str) -> None:
    text = RECIPE.replace("MODEL", model).replace("RANK", "8")
    [found] = faults(project, text)
    assert found.startswith(f"model: '{model}' needs a renderer of its own")
    project.write("own.jinja", "{{ messages[0].content }}")
    assert not faults(project, text + "renderer: {chat_template: own.jinja}\n")


@pytest.mark.parametrize("model", OWN)
def test_a_teacher_that_needs_a_renderer_of_its_own(project: Project, model: str) -> None:
    text = DISTILL.replace("ENGINE", "tinker").replace("21", "20").replace("ptl/tiny", model)
    assert [one.partition(":")[0] for one in faults(project, text) if "renderer" in one] == [
        "stages.small.method.teacher.model"
    ]


# --- what the service offers ---------------------------------------------------------------------


class Asks(Eval):
    """Samples."""

    name = "acme_asks"
    takes: ClassVar = (Conversation,)
    needs = ("sample",)

    class Config(PluginConfig):
        max_tokens: int = 8

    def evaluate(self, context: Any) -> Any:
        raise NotImplementedError


class Judges(Reward):
    """Asks a model."""

    name = "acme_judges"
    needs = ("sample",)

    class Config(PluginConfig):
        judge: ModelRef

    def score(self, samples: Any) -> Any:
        raise NotImplementedError


@pytest.fixture
def plan(project: Project, install: Install) -> Plan:
    hooks = {
        "ptl_evals": hookimpl(lambda: [Asks], specname="ptl_evals"),
        "ptl_rewards": hookimpl(lambda: [Judges], specname="ptl_rewards"),
    }
    install("acme", "1", hooks)
    project.write("questions.jsonl", '{"prompt": "2+2?", "answer": "4"}\n' * 4)
    return project.plan(
        "name: demo\nmodel: ptl/nano\nstages:\n"
        "  - name: one\n    dataset: {use: jsonl, path: chat.jsonl, test_size: 1}\n"
        "    method: {use: sft, max_length: 64}\n    eval: [{use: acme_asks}]\n"
        "  - name: two\n    dataset: {use: jsonl, path: questions.jsonl}\n"
        "    method: {use: grpo, max_tokens: 32}\n"
        "    reward: {use: acme_judges, judge: {model: ptl/tiny}}\n"
    )


ALL = {"ptl/nano": Offer(64, True, True), "ptl/tiny": Offer(64, True, True)}
NANO, TINY = "ptl/nano", "ptl/tiny"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, []),
        ({TINY: Offer(64, False, True)}, []),
        ({NANO: Offer()}, []),
        ({NANO: Offer(64, False, True)}, ["stages.one.model: ", "stages.two.model: "]),
        ({NANO: Offer(64, True, False)}, ["stages.one.eval.acme_asks: ", "stages.two.method: "]),
        ({TINY: Offer(64, True, False)}, ["stages.two.reward.acme_judges.judge: "]),
        ({NANO: Offer(63, True, True)}, ["stages.one.method.max_length: 64"]),
        (
            {NANO: Offer(32, True, True)},
            ["stages.one.method.max_length: 64", "stages.two.method.max_tokens: 32"],
        ),
    ],
)
def test_what_a_model_is_not_offered_for(
    plan: Plan, change: dict[str, Offer], expected: list[str]
) -> None:
    found = needs.refused(plan, {**ALL, **change})
    assert len(found) == len(expected), found
    assert all(one.startswith(begins) for one, begins in zip(found, expected, strict=True))


def test_it_is_refused_before_the_engine_is_asked_for_anything(plan: Plan) -> None:
    served = [
        SimpleNamespace(
            model_name="ptl/nano", max_context_length=64, trainable=False, sampleable=True
        )
    ]
    nobody: Any = None
    connection = Connection(nobody, nobody, offers=offers(served))
    with pytest.raises(UsageError, match="does not do with its models") as caught:
        needs.check(plan, connection, nobody)
    assert "stages.one.model: ptl/nano is not trained there" in str(caught.value)


def test_a_prompt_that_leaves_no_room_for_its_reply(plan: Plan, project: Project) -> None:
    nobody: Any = None
    connection = Connection(nobody, nobody, offers={"ptl/nano": Offer(44, True, True)})
    serving = Serving(plan, connection, nobody, project.path)
    assert serving.renderer("ptl/nano").context == 44
    stage = plan.stages[1]
    assert texts.check(plan, [stage], serving.renderer, print).first
    project.write("questions.jsonl", '{"prompt": "%s", "answer": "4"}\n' % ("a b c " * 5))
    plan = project.plan((project.path / "mine.yaml").read_text())
    with pytest.raises(UsageError, match="reply of max_tokens=32 are more than the 44") as caught:
        texts.check(plan, [plan.stages[1]], serving.renderer, print)
    assert "lower 'max_tokens' of two" in str(caught.value)
