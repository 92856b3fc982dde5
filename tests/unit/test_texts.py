"""Tokenizers that lose text, ends that differ, records that are too long: told before a run."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

import posttrain_recipes as ptl
from posttrain_recipes.errors import UsageError
from posttrain_recipes.methods.sft import SFT
from posttrain_recipes.models import BUNDLED
from posttrain_recipes.options import RendererConfig
from posttrain_recipes.planning.plans import Plan, model_location
from posttrain_recipes.running import texts
from posttrain_recipes.running.findings import PreflightFinding
from posttrain_recipes.running.texts import Texts
from posttrain_recipes.training.text import soundness
from posttrain_recipes.training.text.chat_template import ChatRenderer, load_renderer
from tests.conftest import ROOT, Project, Ptl

RECIPE = """\
name: demo
model: MODEL
stages:
  - name: sft
    dataset: {use: jsonl, path: chat.jsonl}
    method: {use: sft, max_length: 64}
    eval: [{use: nll, dataset: {use: jsonl, path: chat.jsonl}}]
"""
Edit = Callable[[dict[str, Any]], None]


@lru_cache
def loaded(location: str) -> ChatRenderer:
    return load_renderer(location)


def load(model: str, options: RendererConfig) -> ChatRenderer:
    return loaded(model_location(model, Path.cwd()))


def copied(project: Project, **edits: Edit) -> Path:
    """A copy of a bundled model in the project, files of JSON edited."""
    folder = project.path / "broken"
    shutil.copytree(BUNDLED["ptl/nano"], folder, ignore=shutil.ignore_patterns("*.safetensors"))
    for name, edit in edits.items():
        path = folder / f"{name}.json"
        held = json.loads(path.read_text())
        edit(held)
        path.write_text(json.dumps(held))
    return folder


def found(project: Project, model: str = "./broken") -> list[PreflightFinding]:
    plan = project.plan(RECIPE.replace("MODEL", model))
    return list(Texts(plan, load).of(plan.stages))


def told(findings: list[PreflightFinding]) -> list[PreflightFinding]:
    return [finding for finding in findings if finding.verdict != "ok"]


# --- what tokenizers keep ------------------------------------------------------------------------


def spaces_are_unknown(tokenizer: dict[str, Any]) -> None:
    """As of a model that was converted with the vocabulary of one kind and the rules of another."""
    tokenizer["pre_tokenizer"] = None
    tokenizer["model"]["unk_token"] = "<|endoftext|>"


def spaces_vanish(tokenizer: dict[str, Any]) -> None:
    tokenizer["pre_tokenizer"] = None


def spaces_are_marks(tokenizer: dict[str, Any]) -> None:
    tokenizer["decoder"] = None


def replaced(pattern: str, by: str) -> Edit:
    def edit(tokenizer: dict[str, Any]) -> None:
        tokenizer["normalizer"] = {
            "type": "Replace",
            "pattern": {"Regex": pattern},
            "content": by,
        }

    return edit


BROKEN: dict[str, tuple[Edit, str, str]] = {
    "spaces are unknown": (spaces_are_unknown, "spaces", "failed"),
    "spaces vanish": (spaces_vanish, "spaces", "failed"),
    "spaces are marks": (spaces_are_marks, "spaces", "failed"),
    "lines are joined": (replaced(r"\n", " "), "line breaks", "failed"),
    "digits vanish": (replaced("[0-9]", ""), "digits", "failed"),
    "digits are all one": (replaced("[0-9]", "0"), "digits", "failed"),
    "a letter is lost": (replaced("q", ""), "letters", "failed"),
    "accents are lost": (replaced("[éïñöß]", "?"), "accents", "warning"),
    "all is lower case": (
        lambda tokenizer: tokenizer.update(normalizer={"type": "Lowercase"}),
        "capital letters",
        "warning",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_tokenizer_that_loses_text_is_named(project: Project, name: str) -> None:
    edit, what, verdict = BROKEN[name]
    folder = copied(project, tokenizer=edit)
    first = told(found(project))[0]
    assert (first.check, first.verdict) == ("tokenizer of ./broken", verdict)
    assert str(folder) in first.message
    assert f"{what}: " in first.message
    assert " becomes " in first.message


def test_a_run_is_refused_with_a_tokenizer_that_loses_spaces(project: Project) -> None:
    folder = copied(project, tokenizer=spaces_are_unknown)
    project.write("chat.jsonl", chat("a {b}: {c} {", "d e"))  # no form of a format
    plan = project.plan(RECIPE.replace("MODEL", "./broken"))
    warned: list[str] = []
    with pytest.raises(UsageError, match="does not keep spaces: .*<|endoftext|>") as caught:
        texts.check(plan, plan.stages, load, warned.append)
    assert str(folder) in caught.value.what
    assert "copy the tokenizer's files" in (caught.value.hint or "")


def test_text_of_the_data_that_is_lost_is_told_with_its_line(project: Project) -> None:
    copied(project, tokenizer=replaced("[你好]", ""))
    project.write("chat.jsonl", chat("1+1?", "2") + chat("你好 is a {greeting}", "yes"))
    [first, *_] = told(found(project))
    assert (first.check, first.verdict) == ("text of sft", "warning")
    assert first.message.startswith("chat.jsonl:2: the tokenizer of ./broken loses a part of this")
    assert "'你', '好' lost" in first.message
    assert "(1 of the first 2 records)" in first.message


def test_other_forms_of_the_same_text_are_no_loss() -> None:
    def again(text: str) -> str:  # normalizes, cleans spaces up and puts one before, as some do
        import unicodedata

        return " " + unicodedata.normalize("NFKC", text).replace(" ,", ",").replace("  ", " ")

    for text in ("ﬁne , and ½ of it", "cafe\u0301", "a  b\r\nc", " leading"):
        assert soundness.keeps_text(again, (), text) is None, text


# --- weights ---------------------------------------------------------------------------------


def test_layers_that_the_config_does_not_name_are_told(project: Project) -> None:
    fewer = {"num_hidden_layers": 3, "layer_types": ["full_attention"] * 3}
    folder = copied(project, config=lambda held: held.update(fewer))
    shutil.copy(BUNDLED["ptl/nano"] / "model.safetensors", folder)
    [finding] = told(found(project))
    assert (finding.check, finding.verdict) == ("weights of ./broken", "warning")
    assert "names 3 layers, and its weights have 4" in finding.message
    (folder / "model.safetensors").write_bytes(b"\xff" * 20)  # told when it is loaded
    assert told(found(project)) == []


# --- ends ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["config", "generation_config"])
def test_files_that_differ_on_the_end_are_told(project: Project, name: str) -> None:
    copied(project, **{name: lambda held: held.update(eos_token_id=0)})
    [finding] = told(found(project))
    assert (finding.check, finding.verdict) == ("end of a reply of ./broken", "warning")
    assert "the tokenizer has 2 ('<|im_end|>')" in finding.message
    assert f"{name}.json has 0 ('<|endoftext|>')" in finding.message


def test_files_that_name_more_ends_agree(project: Project) -> None:
    copied(project, generation_config=lambda held: held.update(eos_token_id=[2, 0]))
    assert told(found(project)) == []


@pytest.mark.parametrize("named", [[2, 0, 9999], 9999])
def test_an_end_that_no_token_of_the_model_is_is_told(project: Project, named: Any) -> None:
    copied(project, generation_config=lambda held: held.update(eos_token_id=named))
    [finding] = told(found(project))
    assert (finding.check, finding.verdict) == ("end of a reply of ./broken", "warning")
    assert "generation_config.json of" in finding.message
    assert "names 9999 as the end of a sequence" in finding.message
    assert "embedding ends at 1023" in finding.message


def test_another_end_of_the_tokenizer_is_told(project: Project) -> None:
    copied(project, tokenizer_config=lambda held: held.update(eos_token="<|endoftext|>"))
    [finding] = told(found(project))
    assert "the tokenizer has 0 ('<|endoftext|>'), config.json has 2 ('<|im_end|>')" in (
        finding.message
    )


def test_an_end_that_the_model_does_not_have_is_refused(project: Project) -> None:
    copied(project, tokenizer_config=lambda held: held.update(eos_token="</s>"))
    first = told(found(project))[0]
    assert first.verdict == "failed"
    assert "eos_token '</s>' is token 1024, and the model's embedding ends at 1023" in first.message


TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}[over]{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def test_a_template_whose_end_stops_nothing_is_told(project: Project) -> None:
    folder = copied(project)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    findings = told(found(project))
    assert [finding.check for finding in findings][:1] == ["chat template of sft"]
    assert "ends a reply with no token; '<|im_end|>' is learned after the last one" in (
        findings[0].message
    )


def test_replies_that_nothing_ends_are_told(project: Project) -> None:
    folder = copied(
        project,
        tokenizer_config=lambda held: held.pop("eos_token"),
        config=lambda held: held.pop("eos_token_id"),
        generation_config=lambda held: held.pop("eos_token_id"),
    )
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    findings = told(found(project))
    assert [f.check for f in findings[:2]] == [
        "end of a reply of ./broken",
        "end of replies of sft",
    ]
    assert "no token ends a reply" in findings[0].message
    assert "it never learns to stop" in findings[1].message


# --- lengths -------------------------------------------------------------------------------------


def chat(question: str, answer: str) -> str:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": turns}, ensure_ascii=False) + "\n"


LONG = chat("1+1?", "2") * 3 + chat("say it", "word " * 100) + chat("again", "word " * 200)


@pytest.mark.parametrize("whole", [True, False])
def test_the_first_record_that_is_too_long_is_named(project: Project, whole: bool) -> None:
    project.write("chat.jsonl", LONG)
    plan = project.plan(RECIPE.replace("MODEL", "ptl/nano"))
    [finding] = told(list(Texts(plan, load, whole=whole).of(plan.stages)))
    assert (finding.check, finding.verdict) == ("length of sft", "failed")
    assert finding.message.startswith("chat.jsonl:4: ")
    assert "tokens are more than max_length=64" in finding.message
    with pytest.raises(UsageError, match=r"chat.jsonl:4: \d+ tokens are more than max_length=64"):
        texts.check(plan, plan.stages, load, lambda text: None)


def test_what_is_cut_or_left_out_is_not_too_long(project: Project) -> None:
    project.write("chat.jsonl", LONG)
    for change in ("method.truncate=true", "dataset.bad_rows=skip"):
        plan = project.plan(RECIPE.replace("MODEL", "ptl/nano"), overrides=[f"stages.sft.{change}"])
        assert {f.verdict for f in Texts(plan, load).of(plan.stages)} <= {"ok", "warning"}, change


@pytest.mark.parametrize("whole", [True, False])
def test_the_context_of_the_model_bounds_records_too(project: Project, whole: bool) -> None:
    copied(project, config=lambda held: held.update(max_position_embeddings=48))
    project.write("chat.jsonl", LONG)
    plan = project.plan(
        RECIPE.replace("MODEL", "./broken"), overrides=["stages.sft.method.max_length=4096"]
    )
    first = told(list(Texts(plan, load, whole=whole).of(plan.stages)))[0]
    assert first.message.startswith("chat.jsonl:4: ")
    assert "are more than the model's context of 48" in first.message


@pytest.mark.parametrize("whole", [True, False])
def test_a_pair_is_too_long_with_the_question_about_it(project: Project, whole: bool) -> None:
    project.write("pairs.jsonl", json.dumps({"prompt": "a", "chosen": "b " * 90, "rejected": "c"}))
    plan = project.plan(
        "name: demo\nmodel: ptl/nano\nstages:\n"
        "  - {name: rm, dataset: {use: jsonl, path: pairs.jsonl},"
        " method: {use: reward_model, max_length: 100}}\n"
    )
    first = told(list(Texts(plan, load, whole=whole).of(plan.stages)))[0]
    assert first.message.startswith("pairs.jsonl:1 (chosen): ")


def test_of_very_many_records_the_longest_are_tokenized(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts, "MOST", 2)
    project.write("chat.jsonl", LONG)
    plan = project.plan(RECIPE.replace("MODEL", "ptl/nano").replace("64", "4096"))
    [length, _] = [f for f in Texts(plan, load).of(plan.stages) if f.check.startswith("length")]
    assert length.message.startswith("the 2 longest of 5 records, the longest of ")


# --- no false alarms -----------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_recipes_have_nothing_to_tell(recipe: Path) -> None:
    plan: Plan = ptl.plan(recipe, overrides=["model=ptl/nano"])  # tiny has the same tokenizer
    known = {name: loaded(model_location(name, plan.path.parent)) for name in plan.models}
    looked = Texts(plan, lambda name, options: known[name], whole=False)
    assert told(list(looked.of(plan.stages))) == []
    assert set(looked.first) <= set(plan.models)


def test_the_bundled_models_have_one_tokenizer() -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert len({(folder / name).read_text() for folder in BUNDLED.values()}) == 1, name


@pytest.mark.parametrize("whole", [True, False])
def test_what_a_plugin_s_own_code_raises_stops_no_check(
    project: Project, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    def rendered(*of: Any) -> None:
        raise KeyError("nothing here")

    monkeypatch.setattr(SFT, "rendered", rendered)
    plan = project.plan(RECIPE.replace("MODEL", "ptl/nano"))
    assert told(list(Texts(plan, load, whole).of(plan.stages))) == []


def test_what_is_not_looked_at_offline_is_said(project: Project, ptl: Ptl) -> None:
    project.write("mine.yaml", RECIPE.replace("MODEL", "ptl/nano"))
    said = ptl("preflight", "mine.yaml", "--offline")
    assert said.code == 0
    assert "not looked at with --offline: what tokenizers keep, how long records are" in said.out


# --- records that a method cannot train on -------------------------------------------------------

PROMPTS = """\
name: demo
model: ptl/nano
stages:
  - name: first
    dataset: {use: jsonl, path: chat.jsonl}
    method: {use: sft, max_length: 64}
  - name: second
    dataset: {use: jsonl, path: prompts.jsonl}
    METHOD
"""
TEACHER = "teacher: {stage: first}"
GEPA = """method: {use: gepa, proposals: [a], selection: %d, test: 1}
    reward: {use: numeric}"""


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("method: {use: prompt_distill}", "prompts.jsonl:1: has no system message to learn"),
        (f"method: {{use: gkd, {TEACHER}}}", "prompts.jsonl:1: it is a prompt without a reply"),
        (
            GEPA % 2,
            "3 prompts leave none to reflect on: 'selection' and 'test' take 3 of them",
        ),
        ("method: {use: prompt_distill, system: Be brief.}", None),
        (f"method: {{use: gkd, {TEACHER}, others: teacher}}", None),
        (f"method: {{use: gkd, {TEACHER}, student_share: 1}}", None),
        (
            GEPA % 1,
            None,
        ),
    ],
)
def test_records_that_a_method_cannot_use_are_told_as_a_run_begins(
    project: Project, method: str, said: str | None
) -> None:
    if importlib.util.find_spec("gepa") is None and "gepa" in method:
        pytest.skip("gepa is not installed")
    rows = [{"prompt": f"{n} + 1 =", "answer": str(n + 1)} for n in range(3)]
    project.write("prompts.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    plan = project.plan(PROMPTS.replace("METHOD", method))
    if said is None:
        texts.check(plan, plan.stages, load, pytest.fail)
        return
    with pytest.raises(UsageError, match=f"second: {re.escape(said)}"):
        texts.check(plan, plan.stages, load, pytest.fail)
    failed = [one for one in Texts(plan, load).of(plan.stages) if one.verdict == "failed"]
    assert [one.check for one in failed] == ["records of second"]
