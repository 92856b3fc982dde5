"""With lm-eval itself, where it is installed: the eval finds what `lm_eval` does by hand."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval")

import posttrain_recipes as ptl
from posttrain_recipes import models
from posttrain_recipes.engine import launch

RECIPES = Path(__file__).parents[1] / "recipes"
LOOK = """
name: look
model: ptl/nano
stages:
  - name: look
    eval:
      - use: lm_eval
        name: choice
        tasks: [sums_mc]
        include_path: TASKS
        max_length: 256
        num_fewshot: 1
      - {use: lm_eval, name: reply, tasks: [sums_gen], include_path: TASKS, chat: true}
"""


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def by_hand(folder: Path) -> dict[str, Any]:
    """What `lm_eval` reports of ptl/nano, served."""
    nano = str(models.resolve("ptl/nano"))
    found: dict[str, Any] = {}
    with launch.start({"ptl/nano": nano}, folder / "data", folder / "log") as engine:
        url = f"{engine.base_url}/oai/api/v1"
        for task, model, args, more in (
            (
                "sums_mc",
                "local-completions",
                {"base_url": f"{url}/completions", "tokenizer": nano, "max_length": 256},
                ["--num_fewshot", "1"],
            ),
            (
                "sums_gen",
                "local-chat-completions",
                {"base_url": f"{url}/chat/completions"},
                ["--apply_chat_template", "--gen_kwargs", "temperature=0"],
            ),
        ):
            subprocess.run(
                [sys.executable, "-m", "lm_eval", "run", "--model", model,
                 "--model_args", json.dumps({"model": "ptl/nano", **args}), "--tasks", task,
                 "--include_path", "tasks", "--output_path", str(folder / task), *more],
                env={**os.environ, "OPENAI_API_KEY": engine.api_key},
                cwd=RECIPES, check=True, timeout=300,
            )  # fmt: skip
            (file,) = (folder / task).rglob("results_*.json")
            found[task] = json.loads(file.read_text())["results"][task]
    return found


def test_it_finds_what_lm_eval_finds_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = by_hand(tmp_path)
    recipe = tmp_path / "look.yaml"
    recipe.write_text(LOOK.replace("TASKS", str(RECIPES / "tasks")))
    (tmp_path / "tasks").symlink_to(RECIPES / "tasks")  # the tasks name their data from here
    found = ptl.run(recipe, home=tmp_path / "home")["look"].before
    for metric in ("acc", "acc_norm"):
        assert found["choice"][metric].value == told["sums_mc"][f"{metric},none"]
        assert found["choice"][metric].count == 20
    assert found["reply"]["exact_match"].value == told["sums_gen"]["exact_match,last_number"]


def test_the_recipe_runs_and_keeps_files_without_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys: list[str] = []
    start = launch.EngineProcess

    def remember(*args: object, **more: object) -> launch.EngineProcess:
        made = start(*args, **more)  # type: ignore[arg-type]
        keys.append(made.api_key)
        return made

    monkeypatch.setattr(launch, "EngineProcess", remember)
    result = ptl.run(RECIPES / "sums.yaml", preset="tiny", home=tmp_path / "home")
    assert result["sft"].after["choice"]["acc"].count == 4
    folder = tmp_path / "home" / "runs" / result.run_id / "artifacts" / "sft"
    assert len(list(folder.glob("*/results_*.json"))) == 4
    assert keys
    files = [path for path in (tmp_path / "home").rglob("*") if path.is_file()]
    assert not [str(path) for path in files if keys[0].encode() in path.read_bytes()]
