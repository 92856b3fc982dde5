"""With Inspect itself, where it is installed: the eval finds what `inspect eval` does by hand."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("inspect_ai")

import posttrain_recipes as ptl
from posttrain_recipes import models
from posttrain_recipes.engine import launch

RECIPES = Path(__file__).parents[1] / "recipes"
LOOK = """
name: look
model: ptl/nano
stages:
  - name: look
    eval: [{use: inspect, name: sums, task: TASK, max_tokens: 32}]
"""


def by_hand(folder: Path) -> dict[str, float]:
    """What `inspect eval` reports of ptl/nano, served."""
    nano = models.resolve("ptl/nano")
    with launch.start({"ptl/nano": nano}, folder / "data", folder / "log") as engine:
        subprocess.run(
            [sys.executable, "-m", "inspect_ai", "eval", str(RECIPES / "sums.py@sums"),
             "--model", "openai-api/ptl/ptl/nano", "--temperature", "0", "--max-tokens", "32",
             "--display", "none", "--log-dir", str(folder / "logs"), "--log-format", "json"],
            env={**os.environ, "PTL_BASE_URL": f"{engine.base_url}/oai/api/v1",
                 "PTL_API_KEY": engine.api_key, "NO_PROXY": "127.0.0.1"},
            check=True, timeout=300,
        )  # fmt: skip
    (file,) = (folder / "logs").glob("*.json")
    (score,) = json.loads(file.read_text())["results"]["scores"]
    return {name: metric["value"] for name, metric in score["metrics"].items()}


def test_it_finds_what_inspect_finds_by_hand(tmp_path: Path) -> None:
    recipe = tmp_path / "look.yaml"
    recipe.write_text(LOOK.replace("TASK", str(RECIPES / "sums.py@sums")))
    found = ptl.run(recipe, home=tmp_path / "home")["look"].before["sums"]
    told = by_hand(tmp_path)
    assert found["accuracy"].value == told["accuracy"]
    assert found["accuracy"].count == 20
    assert set(found) == {"accuracy"}


def test_the_recipe_runs_and_keeps_logs_without_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys: list[str] = []
    start = launch.EngineProcess

    def remember(*args: object, **more: object) -> launch.EngineProcess:
        made = start(*args, **more)  # type: ignore[arg-type]
        keys.append(made.api_key)
        return made

    monkeypatch.setattr(launch, "EngineProcess", remember)
    result = ptl.run(RECIPES / "sums.yaml", preset="tiny", home=tmp_path)
    assert result["sft"].after["sums"]["accuracy"].count == 4
    folder = tmp_path / "runs" / result.run_id / "artifacts" / "sft"
    logs = sorted(folder.glob("*/*.eval"))
    assert [path.parent.name for path in logs] == ["sums-after", "sums-before"]
    assert keys
    dump = [sys.executable, "-m", "inspect_ai", "log", "dump"]
    texts = [subprocess.check_output([*dump, str(path)]) for path in logs]
    texts += [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not [text for text in texts if keys[0].encode() in text]
