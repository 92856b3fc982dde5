"""Files of models that are not as they should be: told by name and cause, and no traceback."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from posttrain_recipes.engine.model import base
from posttrain_recipes.errors import PtlError, UsageError
from posttrain_recipes.models import BUNDLED
from posttrain_recipes.options import RendererConfig
from posttrain_recipes.planning import tokens
from posttrain_recipes.planning.plans import model_location
from posttrain_recipes.pretrained import load_tokenizer, token_ids
from posttrain_recipes.running import firstlook, texts
from posttrain_recipes.running.findings import PreflightFinding
from posttrain_recipes.running.serving import Serving
from posttrain_recipes.running.texts import Texts
from posttrain_recipes.training.text import model_files
from posttrain_recipes.training.text.chat_template import ChatRenderer, load_renderer
from tests.conftest import Project

RECIPE = """\
name: demo
model: ./broken
stages:
  - name: sft
    dataset: {use: jsonl, path: chat.jsonl}
    method: {use: sft, max_length: 64, learning_rate: 1e-3}
"""
TEMPLATE = (BUNDLED["ptl/nano"] / "chat_template.jinja").read_text()
NO_PROMPT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
)


@pytest.fixture
def broken(project: Project) -> Path:
    folder = project.path / "broken"
    shutil.copytree(BUNDLED["ptl/nano"], folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return folder


def edit(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def loader() -> Callable[[str, RendererConfig], ChatRenderer]:
    """As a run has it: a renderer is loaded once."""
    known: dict[str, ChatRenderer] = {}

    def load(model: str, options: RendererConfig) -> ChatRenderer:
        if model not in known:
            known[model] = load_renderer(model_location(model, Path.cwd()), options)
        return known[model]

    return load


def told(project: Project) -> list[PreflightFinding]:
    plan = project.plan(RECIPE)
    return [one for one in Texts(plan, loader()).of(plan.stages) if one.verdict != "ok"]


# --- ends ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("named", "ids"),
    [
        (2, [2]), ([2, 0], [2, 0]), (None, []), ([], []), ("2", []), (-1, []), (2.0, []),
        (True, []), ({"a": 1}, []), ([0, None, [2], "x", -3, 1], [0, 1]),
    ],
)  # fmt: skip
def test_what_is_no_token_id_is_none(named: Any, ids: list[int]) -> None:
    assert token_ids(named) == ids


@pytest.mark.parametrize("named", ["2", -1, 2.0, {"a": 1}, [2, [0]], [2, None]])
def test_an_end_that_is_no_token_id_is_told_with_its_file(
    project: Project, broken: Path, named: Any
) -> None:
    edit(broken / "generation_config.json", eos_token_id=named)
    [finding] = told(project)
    assert (finding.check, finding.verdict) == ("end of a reply of ./broken", "warning")
    assert "generation_config.json" in finding.message
    assert json.dumps(named) in finding.message
    assert "'<|im_end|>'" in (finding.hint or "")


@pytest.mark.parametrize("named", [None, [], 2, [2]])
def test_a_file_that_names_no_end_has_no_fault(project: Project, broken: Path, named: Any) -> None:
    edit(broken / "generation_config.json", eos_token_id=named)
    assert told(project) == []


def test_the_engine_takes_ends_that_are_token_ids() -> None:
    class Configs:
        eos_token_id: Any = {"a": 1}

    class Model:
        generation_config = Configs()
        config = type("Config", (), {"eos_token_id": [2, None]})()

    held = base.BaseModel.__new__(base.BaseModel)
    held.model = Model()
    held._tokenizer = type("Tokenizer", (), {"eos_token_id": 0})()
    assert held.eos_ids() == {0, 2}


# --- limits --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "context", "vocabulary"),
    [
        ({"max_position_embeddings": 99}, 99, 1024),
        ({"max_position_embeddings": None, "n_positions": 77}, 77, 1024),
        ({"max_position_embeddings": -1, "vocab_size": 0}, None, None),
        ({"max_position_embeddings": "9", "vocab_size": [1]}, None, None),
        ({"text_config": [1], "max_position_embeddings": 99}, 99, 1024),
        ({"text_config": {"max_position_embeddings": 55}}, 55, 1024),
    ],
)
def test_what_a_model_can_read_by_its_config(
    broken: Path, values: dict[str, Any], context: int | None, vocabulary: int | None
) -> None:
    edit(broken / "config.json", **values)
    assert model_files.limits(str(broken)) == model_files.ModelLimits(vocabulary, context)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_a_file_that_is_nested_without_end_says_nothing(broken: Path, name: str) -> None:
    (broken / name).write_text("[" * 100_000)
    assert model_files.ends_by_file(str(broken))[name] == []


# --- what cannot be loaded -----------------------------------------------------------------------


def test_why_a_tokenizer_cannot_be_loaded_is_told(project: Project, broken: Path) -> None:
    edit(broken / "config.json", vocab_size="1024")
    [finding] = told(project)
    assert "Field 'vocab_size' expected int, got str" in finding.message
    assert "network" not in (finding.hint or "")
    plan = project.plan(RECIPE)
    with pytest.raises(UsageError, match="expected int, got str"):
        texts.check(plan, plan.stages, loader(), lambda said: None)


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{% for m in messages %}{{ m.content }", "line 1: "),
        ("\n\n{{ messages[ }}", "line 3: "),
        ([{"name": "rag", "template": TEMPLATE}], "it is several (rag), and none is named"),
        (3, "it is 3, not text"),
    ],
)
def test_a_template_of_the_model_that_is_none_is_told_with_the_model(
    project: Project, broken: Path, template: Any, why: str
) -> None:
    (broken / "chat_template.jinja").unlink()
    edit(broken / "tokenizer_config.json", chat_template=template)
    [finding] = told(project)
    assert (finding.check, finding.verdict) == ("tokenizer of ./broken", "failed")
    assert f"the chat template of {broken} cannot be used: {why}" in finding.message
    assert "chat_template: chatml" in (finding.hint or "")


def test_a_template_that_refuses_plain_conversations_stops_no_check(
    project: Project, broken: Path
) -> None:
    (broken / "chat_template.jinja").write_text("{{ raise_exception('tools only') }}")
    [finding] = told(project)
    assert (finding.check, finding.verdict) == ("length of sft", "failed")
    assert finding.message.startswith("chat.jsonl:1: ")
    assert "tools only" in finding.message


def test_a_template_without_a_generation_prompt_is_told(project: Project, broken: Path) -> None:
    (broken / "chat_template.jinja").write_text(NO_PROMPT)
    [finding] = told(project)
    assert "no generation prompt: '<|im_start|>assistant\\n' is learned" in finding.message


@pytest.mark.parametrize(("engine", "verdict"), [("local", "failed"), ("server", "warning")])
def test_why_a_base_model_could_not_read_the_data_is_told(
    project: Project, engine: str, verdict: str
) -> None:
    class NoWeights:
        def renderer(self, model: str) -> Any:
            raise PtlError(
                "the engine could not do it", why="the weights are cut", hint="copy them"
            )

    where = "{use: server, base_url: 'http://x'}" if engine == "server" else engine
    text = RECIPE.replace("./broken", "ptl/nano") + "    eval: [{use: nll}]\n"
    text = text.replace("chat.jsonl}", "chat.jsonl, test_size: 1}")
    plan = project.plan(f"engine: {where}\n{text}")
    found = firstlook.look(plan, cast(Serving, NoWeights()), "ptl/nano", [[1, 2, 3]])
    assert found is not None
    assert (found.verdict, found.hint) == (verdict, "copy them")
    assert found.message == "not looked at: the engine could not do it: the weights are cut"


@pytest.mark.parametrize(
    ("share", "verdict", "said"),
    [
        (0.45, "ok", "nats a token"),  # bare sums, by a model that reads them
        (0.68, "warning", "reads the data hardly better than a guess"),  # a tokenizer of another
        (0.99, "warning", "reads the data no better than a guess"),
    ],
)
def test_a_model_that_hardly_reads_the_data_is_told(
    project: Project, monkeypatch: pytest.MonkeyPatch, share: float, verdict: str, said: str
) -> None:
    plan = project.plan(RECIPE.replace("./broken", "ptl/nano"))
    serving = SimpleNamespace(renderer=lambda _: SimpleNamespace(rows=50_000))
    monkeypatch.setattr(firstlook, "_nll", lambda *_: (share * math.log(50_000), 500))
    found = firstlook.look(plan, cast(Serving, serving), "./mine", [[1, 2, 3]])
    assert found is not None
    assert found.verdict == verdict
    assert said in found.message


# --- where templates are kept --------------------------------------------------------------------


def test_a_template_of_a_processor_is_used(broken: Path) -> None:
    (broken / "chat_template.jinja").unlink()
    (broken / "chat_template.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    assert load_tokenizer(str(broken)).chat_template == TEMPLATE
    assert load_renderer(str(broken)).stop == [2]
    assert tokens.counter(str(broken)) is not None


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("chat_template.jinja", " \n"),
        ("chat_template.json", "{}"),
        ("additional_chat_templates/rag.jinja", TEMPLATE),
    ],
)
def test_a_file_that_holds_no_template_for_all_is_none(
    project: Project, broken: Path, file: str, text: str
) -> None:
    (broken / "chat_template.jinja").unlink()
    (broken / file).parent.mkdir(exist_ok=True)
    (broken / file).write_text(text)
    with pytest.raises(PtlError, match=r"'\./broken' has no chat template"):
        project.plan(RECIPE)
