"""Plans: where a stage starts, and what its records are handed over as."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import field_validator

from posttrain_recipes import api
from posttrain_recipes.errors import RecipeError
from posttrain_recipes.planning.data import load_records
from posttrain_recipes.planning.plans import Plan
from posttrain_recipes.plugin import Method, PluginConfig, hookimpl
from posttrain_recipes.records import Conversation, Labelled, Message, Preference, Prompt
from posttrain_recipes.reporting import report
from tests.conftest import CHAT, Install, Project

RECIPE = """\
name: demo
description: Two stages.
model: ./model
seed: 0
stages:
  - name: sft
    dataset: {use: jsonl, path: chat.jsonl, test_size: 1}
    method: {use: sft, learning_rate: 1e-3}
    eval: [{use: nll}]
  - name: dpo
    dataset: {use: jsonl, path: pairs.jsonl}
    method: {use: dpo, beta: 0.1}
    eval: [nll]
"""


def prints(plan: Plan) -> dict[str, str]:
    return {stage.name: stage.fingerprint for stage in plan.stages}


def faults(project: Project, text: str, **kwargs: Any) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        project.plan(text, **kwargs)
    return [f"{fault.key}: {fault.message}" for fault in caught.value.faults]


# --- starts --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        ("", "sft"),
        ("    init_from: sft\n", "sft"),
        ("    init_from: base\n", "base"),
        ("    init_from: tinker://a:train:0/weights/x\n", "tinker://a:train:0/weights/x"),
    ],
)
def test_a_stage_starts_from(project: Project, start: str, expected: str) -> None:
    plan = project.plan(RECIPE.replace("  - name: dpo\n", f"  - name: dpo\n{start}"))
    assert [stage.start for stage in plan.stages] == ["base", expected]


def test_a_third_stage_starts_from_the_second(project: Project) -> None:
    third = "  - name: more\n    eval: [nll]\n"
    assert project.plan(RECIPE + third).stages[2].start == "dpo"


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ("tinker://a/weights", "is not a training state; it reads tinker://RUN/weights/NAME"),
        (
            "tinker://a:train:0/sampler_weights/x",
            "is not a training state; it reads tinker://RUN/weights/NAME "
            "(sampler_weights cannot be trained)",
        ),
        ("sf", "unknown stage 'sf'; did you mean 'sft'?"),
        ("bse", "unknown stage 'bse'; did you mean 'base'?"),
    ],
)
def test_a_start_that_there_is_not(project: Project, start: str, message: str) -> None:
    text = RECIPE.replace("  - name: dpo\n", f"  - name: dpo\n    init_from: {start}\n")
    assert faults(project, text) == [f"stages.dpo.init_from: {message}"]


# --- adapters ------------------------------------------------------------------------------------


def ranks(plan: Plan) -> list[int]:
    return [stage.lora.rank for stage in plan.stages]


def test_the_adapters_rank_is_the_recipes_the_stages_or_its_starts(project: Project) -> None:
    own = RECIPE.replace("  - name: sft\n", "  - name: sft\n    lora: {rank: 4}\n")
    whole = RECIPE.replace("seed: 0", "seed: 0\nlora: {rank: 8, train_mlp: false}")
    assert ranks(project.plan(RECIPE)) == [16, 16]
    assert ranks(project.plan(whole)) == [8, 8]
    assert ranks(project.plan(own)) == [4, 4]
    both = whole.replace("  - name: sft\n", "  - name: sft\n    lora: {rank: 4}\n")
    stages = project.plan(both).stages
    assert [(s.lora.rank, s.lora.train_mlp) for s in stages] == [(4, False), (4, False)]


def test_a_stage_from_base_may_have_another_rank(project: Project) -> None:
    extra = "    init_from: base\n    lora: {rank: 4}\n"
    text = RECIPE.replace("  - name: dpo\n", f"  - name: dpo\n{extra}")
    assert ranks(project.plan(text)) == [16, 4]


def test_a_stage_from_a_stage_keeps_its_rank(project: Project) -> None:
    text = RECIPE.replace("  - name: dpo\n", "  - name: dpo\n    lora: {rank: 4}\n")
    assert faults(project, text) == [
        "stages.dpo.lora: starts from stage 'sft', whose adapter has rank 16; "
        "an adapter keeps its shape: remove this, or say 'init_from: base'"
    ]
    same = RECIPE.replace("  - name: dpo\n", "  - name: dpo\n    lora: {rank: 16}\n")
    assert ranks(project.plan(same)) == [16, 16]


# --- evals ---------------------------------------------------------------------------------------


def test_an_eval_by_name_keeps_the_records_of_the_stage_that_defines_it(project: Project) -> None:
    sft, dpo = project.plan(RECIPE).stages
    assert dpo.evals == sft.evals
    assert (dpo.evals[0].data.label, dpo.evals[0].data.held_out) == (
        "chat.jsonl (test split)",
        True,
    )
    reseeded = RECIPE.replace("  - name: dpo\n", "  - name: dpo\n    seed: 5\n")
    assert project.plan(reseeded).stages[1].evals[0].fingerprint == sft.evals[0].fingerprint


def test_the_split_leaves_no_record_in_both_parts(project: Project) -> None:
    lines = [CHAT.replace("1+1?", f"1+{i}?") for i in range(10)]
    project.write("chat.jsonl", "".join(lines))
    stage = project.plan(RECIPE.replace("test_size: 1", "test_size: 3")).stages[0]
    assert stage.data is not None
    train = [r.source for r in load_records(stage.data, Conversation)]
    test = [r.source for r in load_records(stage.evals[0].data, Conversation)]
    assert (len(train), len(test)) == (7, 3)
    assert sorted(train + test) == sorted(f"chat.jsonl:{i}" for i in range(1, 11))
    assert train == sorted(train, key=lambda s: int(s.split(":")[1]))


def test_an_eval_with_its_own_data_takes_all_of_it_or_its_test_split(project: Project) -> None:
    own = RECIPE.replace("{use: nll}", "{use: nll, dataset: {use: jsonl, path: chat.jsonl}}")
    data = project.plan(own).stages[0].evals[0].data
    assert (data.label, data.held_out, len(load_records(data, Conversation))) == (
        "chat.jsonl",
        False,
        4,
    )
    held = own.replace("path: chat.jsonl}}", "path: chat.jsonl, test_size: 3}}")
    data = project.plan(held).stages[0].evals[0].data
    assert (data.held_out, len(load_records(data, Conversation))) == (True, 3)


def test_an_eval_sees_the_same_records_whatever_the_recipes_seed(project: Project) -> None:
    held = "{use: nll, dataset: {use: jsonl, path: chat.jsonl, test_size: 2}}"
    text = RECIPE.replace("{use: nll}", held)
    first = project.plan(text).stages[0].evals[0]
    second = project.plan(text.replace("seed: 0", "seed: 9")).stages[0].evals[0]
    assert first.fingerprint == second.fingerprint


def test_a_stage_may_only_evaluate(project: Project) -> None:
    text = (
        "name: demo\nmodel: ./model\nstages:\n"
        "  - name: look\n"
        "    eval: [{use: nll, dataset: {use: jsonl, path: chat.jsonl}}]\n"
    )
    [stage] = project.plan(text).stages
    assert (stage.method, stage.data, stage.wants) == (None, None, None)
    assert [e.name for e in stage.evals] == ["nll"]
    assert stage.start == "base"


def test_what_a_stage_that_only_evaluates_has_no_part_in_what_it_is_known_by(
    project: Project,
) -> None:
    text = (
        "name: demo\nmodel: ./model\nstages:\n"
        "  - name: look\n"
        "    dataset: {use: jsonl, path: chat.jsonl, test_size: 1}\n"
        "    eval: [{use: nll}]\n"
    )
    before = prints(project.plan(text))
    project.write("chat.jsonl", CHAT * 9)
    assert prints(project.plan(text)) == before


# --- records -------------------------------------------------------------------------------------

QUESTIONS = """\
name: demo
model: ./model
stages:
  - name: sft
    dataset: {use: jsonl, path: questions.jsonl, test_size: 1}
    method: {use: sft}
    eval: [{use: exact_match, extract: hashes}, {use: nll}]
"""


def test_questions_and_answers_serve_training_and_evals_alike(project: Project) -> None:
    [stage] = project.plan(QUESTIONS).stages
    assert stage.data is not None
    assert stage.wants is Conversation
    assert [e.wants for e in stage.evals] == [Prompt, Conversation]
    record = load_records(stage.data, Conversation)[0]
    assert isinstance(record, Conversation)
    assert record.messages == (
        Message("user", "2+2?"),
        Message("assistant", "two and two\n#### 4"),
    )
    prompt = load_records(stage.evals[0].data, Prompt)[0]
    assert isinstance(prompt, Prompt)
    assert (prompt.messages, prompt.answer) == ((Message("user", "2+2?"),), "4")


def test_a_conversation_can_be_asked_and_its_reply_is_the_answer(project: Project) -> None:
    text = QUESTIONS.replace("questions.jsonl", "chat.jsonl")
    prompt = load_records(project.plan(text).stages[0].evals[0].data, Prompt)[0]
    assert isinstance(prompt, Prompt)
    assert (prompt.messages, prompt.answer) == ((Message("user", "1+1?"),), "2")


def test_pairs_are_pairs(project: Project) -> None:
    stage = project.plan(RECIPE).stages[1]
    assert stage.data is not None
    [record, *_] = load_records(stage.data, Preference)
    assert isinstance(record, Preference)
    assert record.chosen == (Message("assistant", "hello"),)
    assert record.rejected == (Message("assistant", "what"),)


def test_pairs_serve_as_replies_with_a_verdict_each(project: Project) -> None:
    """`limit` counts the pairs, and each becomes two."""
    text = RECIPE[: RECIPE.index("  - name: sft")] + (
        "  - name: kto\n    dataset: {use: jsonl, path: pairs.jsonl, limit: 2}\n"
        "    method: {use: kto}\n"
    )
    [stage] = project.plan(text).stages
    assert stage.data is not None
    assert stage.wants is Labelled
    records = load_records(stage.data, Labelled)
    assert [(r.completion[0].content, r.label, r.source) for r in records] == [
        ("hello", True, "pairs.jsonl:1 (chosen)"),
        ("what", False, "pairs.jsonl:1 (rejected)"),
        ("hello", True, "pairs.jsonl:2 (chosen)"),
        ("what", False, "pairs.jsonl:2 (rejected)"),
    ]
    assert {r.prompt for r in records} == {(Message("user", "hi"),)}


def test_pairs_cannot_be_imitated(project: Project) -> None:
    text = QUESTIONS.replace("questions.jsonl", "pairs.jsonl")
    assert [fault.split(":")[0] for fault in faults(project, text)] == [
        "stages.sft.dataset",
        "stages.sft.eval[0]",
        "stages.sft.eval[1]",
    ]


# --- secrets -------------------------------------------------------------------------------------

SERVER = "seed: 0\nengine: {use: server, base_url: http://x, api_key: KEY}"


def test_a_key_is_named_and_never_read(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "tml-very-secret")
    plan = project.plan(RECIPE.replace("seed: 0", SERVER.replace("KEY", "'${env:MY_KEY}'")))
    assert "tml-very-secret" not in repr(plan)
    assert "api_key: ${env:MY_KEY}" in report.resolved_yaml(plan.resolved)


def test_a_key_may_be_checked_where_it_is_not_set(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    project.plan(RECIPE.replace("seed: 0", SERVER.replace("KEY", "'${env:MY_KEY}'")))


def test_the_key_changes_no_stage(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    text = RECIPE.replace("seed: 0", SERVER.replace("KEY", "'${env:MY_KEY}'"))
    assert prints(project.plan(text)) == prints(project.plan(text.replace("MY_KEY", "OTHER")))


def test_a_key_in_plain_text_is_refused_wherever_it_stands(project: Project) -> None:
    text = RECIPE.replace("seed: 0", SERVER.replace("KEY", "tml-abc"))
    assert faults(project, text) == [
        "engine.api_key: looks like a secret in plain text; write ${env:API_KEY} and export API_KEY"
    ]
    assert "tml-abc" not in "".join(faults(project, text))


class Judged(Method):
    """A method with a key of its own."""

    name = "judged"
    takes = (Conversation,)

    class Config(PluginConfig):
        """Options."""

        api_key: str = ""
        """The judge's key."""
        rate: float = 0.5
        """A number."""

    def train(self, stage: Any) -> Any:
        raise NotImplementedError


def test_what_the_environment_holds_is_neither_shown_nor_tracked(
    project: Project, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE", "tml-very-secret")
    monkeypatch.setenv("FILE", "chat.jsonl")
    install("acme", "1.0", {"ptl_methods": hookimpl(lambda: [Judged], specname="ptl_methods")})
    [stage] = project.plan(
        "name: demo\nmodel: ./model\nstages:\n"
        "  - name: s\n"
        "    dataset: {use: jsonl, path: '${env:FILE}', test_size: 1}\n"
        "    method: {use: judged, api_key: '${env:JUDGE}'}\n"
        "    eval: [{use: nll}, {use: nll, name: n, dataset: {use: jsonl, path: '${env:FILE}'}}]\n"
    ).stages
    assert isinstance(stage.method, Judged)
    assert stage.method.config.api_key == "tml-very-secret"  # type: ignore[attr-defined]
    params = report.stage_params(stage)
    assert (params["api_key"], params["rate"]) == ("${env:JUDGE}", 0.5)
    assert stage.data is not None
    labels = [stage.data.label, *(e.data.label for e in stage.evals)]
    assert labels == ["${env:FILE}", "${env:FILE} (test split)", "${env:FILE}"]


# --- odd values ----------------------------------------------------------------------------------


def test_a_seed_written_as_a_float_is_that_seed(project: Project) -> None:
    plan = project.plan(RECIPE.replace("seed: 0", "seed: 1e3"))
    assert [stage.seed for stage in plan.stages] == [1000, 1000]


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan"])
def test_a_number_without_an_end_is_a_fault(project: Project, value: str) -> None:
    found = faults(project, RECIPE.replace("1e-3", value))
    assert "stages.sft.method.learning_rate: must be a number that is finite" in found


def test_a_plugins_own_rule_is_placed_and_in_its_words(project: Project, install: Install) -> None:
    class Fussy(Judged):
        """A method with a rule that no schema can tell."""

        class Config(PluginConfig):
            """Options."""

            rate: float = 0.5
            """A number."""

            @field_validator("rate")
            @classmethod
            def half(cls, rate: float) -> float:
                if rate != 0.5:
                    raise ValueError("must be one half")
                return rate

    install("acme", "1.0", {"ptl_methods": hookimpl(lambda: [Fussy], specname="ptl_methods")})
    text = RECIPE.replace("{use: sft, learning_rate: 1e-3}", "{use: judged, rate: 0.4}")
    assert faults(project, text) == ["stages.sft.method.rate: must be one half"]


def test_an_eval_that_is_no_name_yet_is_answered_with_how_to_write_it(project: Project) -> None:
    assert faults(project, RECIPE.replace("    eval: [{use: nll}]\n", "")) == [
        "stages.dpo.eval[0]: no eval above is named 'nll'; write {use: nll}"
    ]


# --- models --------------------------------------------------------------------------------------


def test_a_model_directory_without_a_config_is_a_fault(project: Project) -> None:
    (project.path / "model" / "config.json").unlink()
    assert faults(project, RECIPE) == ["model: there is no model directory with a config.json here"]


def test_a_models_path_starts_from_the_recipe(
    project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    project.write("mine.yaml", RECIPE)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    before = prints(project.plan(RECIPE))
    monkeypatch.chdir(elsewhere)
    assert prints(api.plan(Path("../mine.yaml"))) == before


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("alpha: 16", "'alpha' is nothing that Tinker's protocol carries"),
        ("lora_alpha: 16", "change learning_rate"),
        ("dropout: 0.1", "Against overfitting"),
        ("use_dora: true", "a rank and the layers it is on"),
        ("target_modules: [q_proj]", "train_attn, train_mlp and train_unembed choose them"),
        ("r: 8", "'r' is called 'rank' here"),
    ],
)
def test_what_an_adapter_cannot_have_is_refused_with_the_reason(
    project: Project, given: str, told: str
) -> None:
    for text in (
        RECIPE.replace("seed: 0\n", f"seed: 0\nlora: {{{given}}}\n"),
        RECIPE.replace("    dataset:", f"    lora: {{{given}}}\n    dataset:", 1),
    ):
        assert any(told in fault for fault in faults(project, text)), faults(project, text)
