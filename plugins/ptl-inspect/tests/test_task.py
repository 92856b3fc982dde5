"""The eval as a recipe has it, and how it calls Inspect; a stand-in for Inspect answers."""

import importlib.util
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ptl_inspect.task import InspectTask

import posttrain_recipes as ptl
from posttrain_recipes.errors import RecipeError
from posttrain_recipes.plugin import EvalContext, OpenAIRoutes, PtlError, ServedWeights
from posttrain_recipes.testing import check_plugin

HERE = Path(__file__).parent
RECIPE = HERE.parent / "recipes" / "sums.yaml"
KEY = "tml-a-secret-key"
STAND_IN = """
import json, os, pathlib, sys
here = pathlib.Path(__file__).parent
told = sys.argv[1:]
with (here / "called.jsonl").open("a") as file:
    file.write(json.dumps({"argv": told, "url": os.environ.get("PTL_BASE_URL"),
                           "key": os.environ.get("PTL_API_KEY"), "cwd": os.getcwd()}) + "\\n")
if "--task-config" in told:
    args = pathlib.Path(told[told.index("--task-config") + 1]).read_text()
    (here / "args.json").write_text(args)
if told[1].endswith("shim.py@sums"):
    (here / "shim.py").write_text(pathlib.Path(told[1].rpartition("@")[0]).read_text())
if os.environ.get("FAILS"):
    sys.exit("no such task, said " + os.environ["PTL_API_KEY"])
if told[0] == "eval":
    logs = pathlib.Path(told[told.index("--log-dir") + 1])
    logs.mkdir()
    for number in range(int(os.environ.get("LOGS", "1"))):
        (logs / f"{number}_mixed.eval").write_bytes(b"PK log")
else:
    print((here / "log.json").read_text())
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a package `inspect_ai` that writes down how it is called."""
    folder = tmp_path / "site" / "inspect_ai"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "__main__.py").write_text(STAND_IN)
    (folder / "log.json").write_text((HERE / "mixed.json").read_text())
    path = [str(folder.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))
    return folder


def called(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "called.jsonl").read_text().splitlines()]


def context(kept: dict[str, bytes], spent: list[tuple[int, int]]) -> EvalContext:
    served = ServedWeights(
        OpenAIRoutes("http://here/oai/api/v1", KEY), "tinker://run/sampler_weights/1", "DIR"
    )
    nobody: Any = SimpleNamespace()
    return EvalContext(
        name="mixed",
        seed=5,
        records=[],
        renderer=nobody,
        sampler=nobody,
        wait=lambda future: future.result(),
        served=lambda: served,
        artifact=lambda name, content: kept.update({name: content}),
        spent=lambda *tokens: spent.append(tokens),
    )


def made(**options: Any) -> InspectTask:
    return InspectTask(InspectTask.Config.model_validate(options), HERE.parent / "recipes")


def test_inspect_is_called_as_its_users_call_it(stand_in: Path) -> None:
    kept: dict[str, bytes] = {}
    spent: list[tuple[int, int]] = []
    options = {"task": "sums.py@sums", "args": {"count": 4}, "limit": 3, "max_tokens": 16}
    options["chat_template_kwargs"] = {"enable_thinking": False}
    result = made(**options).evaluate(context(kept, spent))
    run, dump = called(stand_in)
    assert run["argv"][:2] == ["eval", str((RECIPE.parent / "sums.py").resolve()) + "@sums"]
    given = dict(zip(run["argv"][2::2], run["argv"][3::2], strict=True))
    assert given["--model"] == "openai-api/ptl/tinker://run/sampler_weights/1"
    assert given["--limit"] == "3"
    assert given["--max-tokens"] == "16"
    assert given["--temperature"] == "0.0"
    assert given["--seed"] == "5"
    assert given["--max-connections"] == "8"
    assert json.loads(given["--extra-body"]) == {"chat_template_kwargs": {"enable_thinking": False}}
    assert "--epochs" not in given
    assert json.loads((stand_in / "args.json").read_text()) == {"count": 4}
    assert dump["argv"][:2] == ["log", "dump"]
    assert kept == {"0_mixed.eval": b"PK log"}
    assert len(spent) == 1
    assert result.metrics["includes/accuracy"].value == 0.5


def test_the_key_is_in_the_environment_alone(stand_in: Path) -> None:
    made(task="sums.py@sums").evaluate(context({}, []))
    for call in called(stand_in):
        assert call["key"] == KEY
        assert not [text for text in call["argv"] if KEY in text]
        assert not Path(call["cwd"]).exists()  # it worked in a folder of its own


def test_what_the_task_says_of_sampling_is_left_alone_where_asked(stand_in: Path) -> None:
    made(task="sums.py@sums", temperature=None).evaluate(context({}, []))
    assert "--temperature" not in called(stand_in)[0]["argv"]


def test_a_task_of_a_module(stand_in: Path) -> None:
    made(task="json.tool@sums").evaluate(context({}, []))
    assert "import_module('json.tool'), 'sums'" in (stand_in / "shim.py").read_text()
    made(task="json/sums").evaluate(context({}, []))
    assert called(stand_in)[2]["argv"][1] == "json/sums"


def test_a_failure_is_told_with_inspects_words_and_no_key(
    stand_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAILS", "1")
    with pytest.raises(PtlError, match="inspect ended with code 1") as caught:
        made(task="sums.py@sums").evaluate(context({}, []))
    assert caught.value.why == "no such task, said ***"
    assert "inspect eval sums.py@sums --model openai-api/ptl/" in (caught.value.hint or "")


def test_a_log_of_a_run_that_failed_is_kept(stand_in: Path) -> None:
    found = json.loads((stand_in / "log.json").read_text())
    (stand_in / "log.json").write_text(json.dumps({**found, "status": "error"}))
    kept: dict[str, bytes] = {}
    with pytest.raises(PtlError, match="status 'error'"):
        made(task="sums.py@sums").evaluate(context(kept, []))
    assert list(kept) == ["0_mixed.eval"]


def test_a_file_with_several_tasks_is_refused(
    stand_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGS", "2")
    with pytest.raises(PtlError, match="left 2 logs and not one") as caught:
        made(task="sums.py").evaluate(context({}, []))
    assert caught.value.hint == "write file.py@task or module@task"


@pytest.mark.parametrize(
    ("task", "fault"),
    [
        ("none.py@sums", "there is no file"),
        ("no_such_package@sums", "perhaps: pip install no-such-package"),
        ("no_such_package/sums", "no package no_such_package is installed here"),
        ("sums", "write file.py@task"),
        ("a b@sums", "write file.py@task"),
    ],
)
def test_a_task_that_is_not_there_is_told_before_anything_runs(task: str, fault: str) -> None:
    [(option, message)] = made(task=task).problems()
    assert option == "task"
    assert fault in message


def test_what_is_there_is_no_problem() -> None:
    for task in ("sums.py@sums", "sums.py", "json.tool@sums", "json/sums"):
        assert list(made(task=task).problems()) == []
    [(option, _)] = made(task="sums.py", reads=["none.jsonl"]).problems()
    assert option == "reads"


def test_a_result_is_known_by_what_the_task_is_and_reads(tmp_path: Path) -> None:
    (tmp_path / "task.py").write_text("one")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "rows.jsonl").write_text("1")

    def digest(**options: Any) -> str:
        config = InspectTask.Config.model_validate({"task": "task.py@a", **options})
        return InspectTask(config, tmp_path).digest()

    first, with_data = digest(), digest(reads=["data"])
    assert len({first, with_data, digest(task="task.py@b"), digest(args={"n": 1})}) == 4
    (tmp_path / "data" / "rows.jsonl").write_text("2")
    assert digest() == first
    assert digest(reads=["data"]) != with_data
    (tmp_path / "task.py").write_text("two")
    assert digest() != first


def test_the_recipe_is_one() -> None:
    if importlib.util.find_spec("inspect_ai") is None:
        with pytest.raises(RecipeError, match="inspect-ai"):
            ptl.validate(RECIPE)
        return
    [warning] = ptl.validate(RECIPE)
    assert "whether it asks what is trained on is not known" in warning


@pytest.mark.skipif(
    importlib.util.find_spec("inspect_ai") is None, reason="inspect-ai is not installed"
)
def test_it_can_be_read() -> None:
    check_plugin("eval", "inspect", task="json.tool@sums", work=False)
