"""`renderer: {chat_template: ...}`: in place of the model's own template, by name or a file."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from posttrain_recipes.errors import RecipeError
from posttrain_recipes.inference.target import find
from posttrain_recipes.models import BUNDLED
from posttrain_recipes.options import ModelRef, RendererConfig, asked, effective, references
from posttrain_recipes.planning import renderers, tokens
from posttrain_recipes.planning.plans import PlannedStage
from posttrain_recipes.plugin import Checkpoint, Message
from posttrain_recipes.running.rendered import Looker, renderers_of
from posttrain_recipes.running.runner import new_record
from posttrain_recipes.store import Store
from posttrain_recipes.training.text.chat_template import load_renderer
from posttrain_recipes.training.text.templates import NAMED
from tests.conftest import Project, Ptl

RECIPE = """\
name: demo
model: MODEL
renderer: RENDERER
stages:
  - name: sft
    dataset: {use: jsonl, path: chat.jsonl}
    method: {use: sft}
"""
TAUGHT = """\
name: demo
model: ./base
renderer: {chat_template: chatml}
stages:
  - name: taught
    dataset: {use: jsonl, path: chat.jsonl}
    method: {use: distill_on_policy, max_tokens: 8, teacher: TEACHER}
"""
SAID = (
    Message("system", "Be brief."),
    Message("user", "1+1?"),
    Message("assistant", "2"),
    Message("user", "And now?"),
    Message("assistant", "3"),
)
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"


@pytest.fixture
def base(project: Project) -> Path:
    """A base model: no chat template anywhere."""
    folder = project.path / "base"
    shutil.copytree(BUNDLED["ptl/nano"], folder)
    (folder / "chat_template.jinja").unlink()
    return folder


def stage(project: Project, renderer: str, model: str = "./base") -> PlannedStage:
    text = RECIPE.replace("MODEL", model).replace("RENDERER", renderer)
    return project.plan(text).stages[0]


def fault(project: Project, text: str) -> str:
    with pytest.raises(RecipeError) as caught:
        project.plan(text)
    return str(caught.value)


# --- rendered ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMED)
def test_tokens_are_those_of_transformers_with_that_template(
    project: Project, base: Path, name: str
) -> None:
    options = stage(project, f"{{chat_template: {name}}}").renderer
    renderer = load_renderer(str(base), options)
    tokenizer = AutoTokenizer.from_pretrained(base)
    source = NAMED[name].read_text()
    asked_of: Any = [message.as_dict() for message in SAID[:-1]]
    wanted = tokenizer.apply_chat_template(
        asked_of, chat_template=source, add_generation_prompt=True, return_dict=False
    )
    assert renderer.prompt(SAID[:-1]) == wanted
    learned, weights = renderer.supervised(SAID)
    assert learned[: len(wanted)] == wanted
    assert renderer.decode(learned[len(wanted) :]).startswith("3")
    assert learned[-1] in renderer.stop
    assert weights == [0.0] * len(wanted) + [1.0] * (len(learned) - len(wanted))
    whole = tokenizer.apply_chat_template(
        [message.as_dict() for message in SAID], chat_template=source, tokenize=False
    )
    said = "".join(m.content for m in SAID)
    assert all(part in whole for part in ("Be brief.", "1+1?", "And now?")), said
    assert "https://" in source


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("chatml", "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"),
        (
            "llama3",
            "<|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        ("zephyr", "<|user|>\nhi<|im_end|>\n<|assistant|>\n"),
        ("alpaca", "### Instruction:\nhi\n\n### Response:\n"),
    ],
)
def test_what_the_named_ones_write(base: Path, name: str, text: str) -> None:
    renderer = load_renderer(str(base), RendererConfig(chat_template=NAMED[name].read_text()))
    assert renderer.check([Message("user", "hi")]) == text


def test_a_file_is_relative_to_the_recipe(project: Project, base: Path) -> None:
    project.write("templates/mine.jinja", TEMPLATE)
    found = stage(project, "{chat_template: templates/mine.jinja, thinking: on}")
    assert found.renderer.chat_template == TEMPLATE
    assert found.renderer.thinking == "on"
    assert load_renderer(str(base), found.renderer).check([Message("user", "hi")]) == (
        "<|im_start|>hi<|im_end|>"
    )


def test_a_stage_may_have_its_own(project: Project, base: Path) -> None:
    project.write("mine.jinja", TEMPLATE)
    text = RECIPE.replace("MODEL", "./base").replace("RENDERER", "{chat_template: chatml}")
    plan = project.plan(text + "    renderer: {chat_template: mine.jinja}\n")
    assert plan.stages[0].renderer.chat_template == TEMPLATE


# --- known by what it says -----------------------------------------------------------------------


def test_a_stage_is_known_by_what_the_file_holds(project: Project, base: Path) -> None:
    project.write("mine.jinja", TEMPLATE)
    first = stage(project, "{chat_template: mine.jinja}")
    project.write("other/same.jinja", TEMPLATE)
    same = stage(project, "{chat_template: other/same.jinja}")
    project.write("mine.jinja", TEMPLATE.replace("start", "end"))
    changed = stage(project, "{chat_template: mine.jinja}")
    assert first.fingerprint == same.fingerprint != changed.fingerprint


def test_what_was_trained_without_one_is_known_as_before(project: Project) -> None:
    plain = {"thinking": "off", "template_kwargs": {}}
    assert effective(RendererConfig()) == plain
    assert dict(stage(project, "{}", "ptl/nano").inputs["renderer"]) == plain


def test_a_teacher_is_known_by_how_it_is_asked(project: Project, base: Path) -> None:
    def known(teacher: str) -> str:
        return project.plan(TAUGHT.replace("TEACHER", teacher)).stages[0].fingerprint

    project.write("mine.jinja", TEMPLATE)
    plain = known("{model: ./base}")
    named = known("{model: ./base, renderer: {chat_template: mine.jinja}}")
    project.write("mine.jinja", TEMPLATE + "x")
    assert len({plain, named, known("{model: ./base, renderer: {chat_template: mine.jinja}}")}) == 3


# --- models that are named -----------------------------------------------------------------------


def test_models_of_the_same_base_inherit_it(project: Project, base: Path) -> None:
    chatml = NAMED["chatml"].read_text()
    own = RendererConfig(thinking="on")
    ours = RendererConfig(chat_template=chatml)
    assert asked(None, ours, same=True) == ours
    assert asked(None, ours, same=False) == RendererConfig()
    assert asked(own, ours, same=True) == RendererConfig(thinking="on", chat_template=chatml)
    assert asked(own, ours, same=False) == own
    theirs = RendererConfig(chat_template=TEMPLATE)
    assert asked(theirs, ours, same=True) == theirs

    plan = project.plan(TAUGHT.replace("TEACHER", "{stage: base}"))
    heard: list[RendererConfig] = []

    def load(model: str, options: RendererConfig) -> Any:
        heard.append(options)
        return load_renderer(str(base), options)

    [taught] = plan.stages
    assert taught.method is not None
    [(_, ref)] = references(taught.method.config, ModelRef)
    renderers_of(plan, taught, load)(ref)
    assert heard[0].chat_template == chatml
    assert plan.template_of("./base").chat_template == chatml


def test_a_named_model_has_its_own(project: Project, base: Path) -> None:
    project.write("mine.jinja", TEMPLATE)
    shutil.copytree(base, project.path / "other")
    teacher = "{model: ./other, renderer: {chat_template: mine.jinja}}"
    plan = project.plan(TAUGHT.replace("TEACHER", teacher))
    assert plan.stages[0].method is not None
    [(_, ref)] = references(plan.stages[0].method.config, ModelRef)
    assert ref.renderer is not None
    assert ref.renderer.chat_template == TEMPLATE
    assert plan.template_of("./other").chat_template == TEMPLATE


# --- faults --------------------------------------------------------------------------------------


def test_a_base_model_without_a_template_is_a_fault(project: Project, base: Path, ptl: Ptl) -> None:
    text = RECIPE.replace("MODEL", "./base").replace("renderer: RENDERER\n", "")
    project.write("bare.yaml", text)
    said = ptl("validate", "bare.yaml")
    assert said.code == 2
    assert "bare.yaml:2:8  model\n" in said.err + said.out
    assert "'./base' has no chat template (a base model?)" in said.err + said.out
    assert "{chat_template: alpaca|chatml|llama3|zephyr|FILE.jinja}" in said.err + said.out


@pytest.mark.parametrize(
    "there",
    [
        ("chat_template.jinja", TEMPLATE),
        ("tokenizer_config.json", json.dumps({"chat_template": TEMPLATE})),
        ("chat_template.json", json.dumps({"chat_template": TEMPLATE})),
    ],
    ids=lambda one: one[0],
)
def test_a_template_is_found_where_models_keep_it(
    project: Project, base: Path, there: tuple[str, str]
) -> None:
    (base / there[0]).write_text(there[1])
    assert stage(project, "{}").renderer == RendererConfig()


def test_a_named_model_without_a_template_is_a_fault(project: Project, base: Path) -> None:
    text = TAUGHT.replace("./base", "ptl/nano").replace("TEACHER", "{model: ./base}")
    told = fault(project, text)
    assert "stages.taught.method.teacher.model" in told
    assert "'./base' has no chat template" in told
    plain = TAUGHT.replace("renderer: {chat_template: chatml}\n", "")
    assert "mine.yaml:2:8  model\n" in fault(project, plain.replace("TEACHER", "{stage: base}"))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("chatmi", "unknown chat template 'chatmi'; did you mean 'chatml'?"),
        ("none.jinja", "there is no file"),
        ("folder", "cannot be read"),
        ("broken.jinja", "broken.jinja:2: jinja cannot read this template: "),
        ("empty.jinja", "empty.jinja is empty"),
        ("binary.jinja", "cannot be read"),
        ("''", "chat_template"),
        ("3", "chat_template"),
    ],
)
def test_templates_that_cannot_be_used_are_faults(
    project: Project, base: Path, given: str, told: str
) -> None:
    (project.path / "folder").mkdir()
    project.write("broken.jinja", "fine\n{% for m in messages %}{{ m.content }}")
    project.write("empty.jinja", " \n")
    (project.path / "binary.jinja").write_bytes(b"\xff\xfe\x00")
    renderer = f"{{chat_template: {given}}}"
    text = RECIPE.replace("MODEL", "./base").replace("RENDERER", renderer)
    found = fault(project, text)
    assert told in found
    assert "mine.yaml:3:" in found
    assert "has no chat template" not in found
    teacher = f"{{model: ./base, renderer: {renderer}}}"
    assert told in fault(project, TAUGHT.replace("TEACHER", teacher))


def test_a_template_with_marks_for_training_can_be_read(project: Project, base: Path) -> None:
    marked = TEMPLATE.replace(
        "{{ m.content }}", "{% generation %}{{ m.content }}{% endgeneration %}"
    )
    project.write("mine.jinja", marked)
    found = stage(project, "{chat_template: mine.jinja}")
    renderer = load_renderer(str(base), found.renderer)
    count = tokens.counter(str(base), found.renderer.chat_template)
    assert count is not None
    assert count(SAID[1:3]) == renderer.length(SAID[1:3])


# --- where it is used ----------------------------------------------------------------------------


def test_what_is_shown_and_chatted_with_has_the_template_of_the_stage(
    project: Project, base: Path
) -> None:
    text = RECIPE.replace("MODEL", "./base").replace("RENDERER", "{chat_template: alpaca}")
    plan = project.plan(text)
    [shown] = Looker(plan).stage(plan.stages[0], 1)
    text_shown = "".join(piece.text for piece in shown.records[0].views[0].pieces)
    assert text_shown.startswith("### Instruction:\n1+1?\n\n### Response:\n2")

    store = Store(project.path / "home")
    record = new_record(plan, "demo-1")
    record.stages[0].checkpoint = Checkpoint("./base", None, "tinker://r/sampler_weights/a")
    with store.open(record) as directory:
        directory.save()
    found = find("demo-1", project.path / "home")
    assert found.renderer.chat_template == NAMED["alpaca"].read_text()


@pytest.mark.parametrize("kind", ["pipe", "device", "long"])
def test_what_has_no_end_is_no_template(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "x.jinja"
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "device":
        place.symlink_to("/dev/zero")
    else:
        place.write_text("a" * (renderers.LONGEST + 1))
    with pytest.raises(renderers.TemplateError, match=r"(is no file|is no chat template)"):
        renderers.read("x.jinja", tmp_path)
