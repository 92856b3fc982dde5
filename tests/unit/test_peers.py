"""The comparison with other tools: its page is what was kept, its files can be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from posttrain_recipes import api
from tests import benchmark_module

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "benchmarks" / "peers"


@pytest.fixture(scope="module")
def page() -> Any:
    return benchmark_module.load("peers_page")


def test_the_page_says_what_was_kept(page: Any) -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.filled(text, page.load()) == text, "run 'python benchmarks/peers.py --page'"


def test_lines_and_values_that_were_kept_are_those_of_the_files(page: Any) -> None:
    tools = benchmark_module.load("peers").TOOLS
    for setting, runs in page.load()["runs"].items():
        for name, run in runs.items():
            files = [CONFIGS / setting / file for file in (tools[name].config, *tools[name].extra)]
            assert run["lines"] == sum(map(page.lines, files)), (setting, name)
            assert run["values"] == sum(map(page.values, files)), (setting, name)


@pytest.mark.parametrize(
    "path", sorted(CONFIGS.glob("*/*")), ids=lambda p: f"{p.parent.name}/{p.name}"
)
def test_a_file_of_a_tool_can_be_read(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        compile(text, path.name, "exec")
    elif path.suffix == ".json":
        assert json.loads(text)
    else:
        assert isinstance(yaml.safe_load(text), dict)


@pytest.mark.parametrize("setting", ["equal", "recommended"])
def test_the_recipe_of_this_package_is_valid(
    setting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from posttrain_recipes.models import BUNDLED

    recipe = tmp_path / "ptl.yaml"
    recipe.write_text((CONFIGS / setting / "ptl.yaml").read_text(encoding="utf-8"), "utf-8")
    (tmp_path / "model").symlink_to(BUNDLED["ptl/nano"])
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text(
        json.dumps({"prompt": "1 + 1 =", "completion": "2"}) + "\n", "utf-8"
    )
    monkeypatch.chdir(tmp_path)
    assert [stage.name for stage in api.plan(recipe).stages] == ["sft"]


def test_lines_leave_out_blank_ones_comments_and_docstrings(page: Any, tmp_path: Path) -> None:
    code, config = tmp_path / "a.py", tmp_path / "a.yaml"
    code.write_text('"""What it is,\nin two lines."""\n\n# why\nprint(f(a=1, b=2))\n', "utf-8")
    config.write_text("# how\na: 1\n\nb: {c: [2, 3], d: x}\n", "utf-8")
    assert (page.lines(code), page.values(code)) == (1, 2)
    assert (page.lines(config), page.values(config)) == (2, 4)


def test_what_a_peer_does_better_is_listed(page: Any) -> None:
    def run(right: str, nll: float, seconds: float, lines: int) -> dict[str, Any]:
        shaky = [nll + 0.01 * (i % 3) for i in range(len(right))]
        return {
            "right": right, "nll": shaky, "seconds": [seconds], "loop": [seconds - 1],
            "lines": lines, "values": 9,
        }  # fmt: skip

    ours, better = run("0" * 30 + "1" * 10, 1.0, 50.0, 9), run("1" * 40, 0.5, 40.0, 12)
    better["nll"][0] += 0.1
    kept = {"runs": {"equal": {"ptl": ours, "trl": better, "axolotl": {"failed": "no"}}}}
    told = page.ahead(kept, "equal").splitlines()
    assert [line.split(":")[0] for line in told] == ["- TRL"] * 4
    assert "75.0 points more" in told[0]
    assert "nats lower" in told[1]
    assert "40 s to an adapter, ours 50 s" in told[2]
    failed, unknown = page.missing(kept, "equal").splitlines()
    assert failed == "- axolotl: `no`"
    assert unknown.startswith("- Not measured yet: `equal/llamafactory`, `equal/cookbook`")
