"""The eval as a recipe has it, and how it calls lm-eval; a stand-in for lm-eval answers."""

import importlib.util
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ptl_lm_eval.tasks import LmEval

import posttrain_recipes as ptl
from posttrain_recipes import models
from posttrain_recipes.errors import RecipeError
from posttrain_recipes.plugin import EvalContext, OpenAIRoutes, PtlError, ServedWeights
from posttrain_recipes.testing import check_plugin

HERE = Path(__file__).parent
RECIPE = HERE.parent / "recipes" / "sums.yaml"
KEY = "tml-a-secret-key"
STAND_IN = """
import json, os, pathlib, shutil, sys
here = pathlib.Path(__file__).parent
told = sys.argv[1:]
(here / "called.json").write_text(json.dumps(
    {"argv": told, "key": os.environ.get("OPENAI_API_KEY"), "cwd": os.getcwd()}))
if os.environ.get("FAILS"):
    sys.exit("no such task, said " + os.environ["OPENAI_API_KEY"])
out = pathlib.Path(told[told.index("--output_path") + 1]) / "model"
shutil.copytree(here / "recorded", out)
if os.environ.get("TELLS"):
    found = out / "results_recorded.json"
    said = {**json.loads(found.read_text()), "asked_with": os.environ["OPENAI_API_KEY"]}
    found.write_text(json.dumps(said))
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a package `lm_eval` that writes down how it is called."""
    folder = tmp_path / "site" / "lm_eval"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "__main__.py").write_text(STAND_IN)
    (folder / "recorded").symlink_to(HERE / "recorded")
    path = [str(folder.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))
    return folder


def called(folder: Path) -> Any:
    return json.loads((folder / "called.json").read_text())


def given(folder: Path) -> dict[str, Any]:
    argv = called(folder)["argv"]
    return {
        name: argv[place + 1] if place + 1 < len(argv) else None
        for place, name in enumerate(argv)
        if name.startswith("--")
    }


def context(kept: dict[str, str], spent: list[tuple[int, int]]) -> EvalContext:
    served = ServedWeights(
        OpenAIRoutes("http://here/oai/api/v1", KEY),
        "tinker://run/sampler_weights/1",
        models.resolve("ptl/tiny"),
    )
    nobody: Any = SimpleNamespace()
    return EvalContext(
        name="sums",
        seed=5,
        records=[],
        renderer=nobody,
        sampler=nobody,
        wait=lambda future: future.result(),
        served=lambda: served,
        artifact=lambda name, content: kept.update({name: content}),
        spent=lambda *tokens: spent.append(tokens),
    )


def made(**options: Any) -> LmEval:
    config = {"tasks": ["sums_both", "sums_words"], **options}
    return LmEval(LmEval.Config.model_validate(config), RECIPE.parent)


def test_lm_eval_is_called_as_its_users_call_it(stand_in: Path) -> None:
    kept: dict[str, str] = {}
    spent: list[tuple[int, int]] = []
    options = {"num_fewshot": 2, "limit": 3, "include_path": "tasks", "max_length": 250}
    result = made(**options).evaluate(context(kept, spent))
    found = given(stand_in)
    assert called(stand_in)["argv"][0] == "run"
    assert found["--model"] == "local-completions"
    assert json.loads(found["--model_args"]) == {
        "model": "tinker://run/sampler_weights/1",
        "base_url": "http://here/oai/api/v1/completions",
        "num_concurrent": 8,
        "seed": 5,
        "tokenizer": models.resolve("ptl/tiny"),
        "tokenized_requests": True,
        "max_length": 250,
    }
    argv = called(stand_in)["argv"]
    assert argv[argv.index("--tasks") + 1 : argv.index("--tasks") + 3] == [
        "sums_both",
        "sums_words",
    ]
    assert found["--num_fewshot"] == "2"
    assert found["--limit"] == "3"
    assert found["--include_path"] == str(RECIPE.parent.resolve() / "tasks")
    assert json.loads(found["--gen_kwargs"]) == {"temperature": 0.0, "do_sample": False}
    assert "--confirm_run_unsafe_code" not in found
    assert "--apply_chat_template" not in found
    assert sorted(kept) == [
        "results_recorded.json",
        "samples_sums_gen_recorded.jsonl",
        "samples_sums_mc_recorded.jsonl",
        "samples_sums_words_recorded.jsonl",
    ]
    assert spent[0][0] > 0
    assert result.metrics["sums_mc/acc"].value == 1.0
    assert len(result.scores["sums_mc/acc"].values) == 4


def test_a_conversation_is_asked_where_the_recipe_says_so(stand_in: Path) -> None:
    made(chat=True, chat_template_kwargs={"enable_thinking": False}, max_tokens=9).evaluate(
        context({}, [])
    )
    found = given(stand_in)
    assert found["--model"] == "local-chat-completions"
    asked = json.loads(found["--model_args"])
    assert asked["base_url"] == "http://here/oai/api/v1/chat/completions"
    assert "tokenizer" not in asked
    assert "--apply_chat_template" in found
    assert json.loads(found["--gen_kwargs"]) == {
        "temperature": 0.0,
        "do_sample": False,
        "max_gen_toks": 9,
        "chat_template_kwargs": {"enable_thinking": False},
    }


def test_the_key_is_in_the_environment_alone(stand_in: Path) -> None:
    made().evaluate(context({}, []))
    assert called(stand_in)["key"] == KEY
    assert not [text for text in called(stand_in)["argv"] if KEY in text]
    assert called(stand_in)["cwd"] == str(RECIPE.parent.resolve())


def test_what_the_task_says_of_sampling_is_left_alone_where_asked(stand_in: Path) -> None:
    made(temperature=None).evaluate(context({}, []))
    assert "--gen_kwargs" not in given(stand_in)


def test_a_failure_is_told_with_lm_evals_words_and_no_key(
    stand_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAILS", "1")
    with pytest.raises(PtlError, match="lm_eval ended with code 1") as caught:
        made().evaluate(context({}, []))
    assert caught.value.why == "no such task, said ***"
    with pytest.raises(PtlError) as caught:
        made(chat=True).evaluate(context({}, []))
    assert "cannot be asked with 'chat: true'" in (caught.value.hint or "")


def test_what_is_not_there_is_told_before_anything_runs() -> None:
    wrong = {
        "include_path": "none",
        "reads": ["none.jsonl"],
        "tasks": ["a,b"],
        "chat_template_kwargs": {"a": 1},
    }
    for option, value in wrong.items():
        assert [name for name, _ in made(**{option: value}).problems()] == [option]
    assert list(made(include_path="tasks", reads=["sums.jsonl"]).problems()) == []


def test_a_result_is_known_by_what_the_tasks_are_and_read(tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "a.yaml").write_text("one")
    (tmp_path / "rows.jsonl").write_text("1")

    def digest(**options: Any) -> str:
        config = {"tasks": ["a"], "include_path": "tasks", **options}
        return LmEval(LmEval.Config.model_validate(config), tmp_path).digest()

    first, with_data = digest(), digest(reads=["rows.jsonl"])
    assert len({first, with_data, digest(tasks=["b"]), digest(include_path=None)}) == 4
    (tmp_path / "rows.jsonl").write_text("2")
    assert digest() == first
    assert digest(reads=["rows.jsonl"]) != with_data
    (tmp_path / "tasks" / "a.yaml").write_text("two")
    assert digest() != first


def test_the_recipe_is_one() -> None:
    if importlib.util.find_spec("lm_eval") is None:
        with pytest.raises(RecipeError, match="lm-eval"):
            ptl.validate(RECIPE)
        return
    warnings = ptl.validate(RECIPE)
    assert len(warnings) == 2
    assert "whether it asks what is trained on is not known" in warnings[0]


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed")
def test_it_can_be_read() -> None:
    check_plugin("eval", "lm_eval", tasks=["sums"], work=False)


def test_a_key_that_lm_eval_writes_down_is_not_kept(
    stand_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TELLS", "1")
    kept: dict[str, str] = {}
    made().evaluate(context(kept, []))
    assert json.loads(kept["results_recorded.json"])["asked_with"] == "***"
