"""The table of effects: what recipes claim, found over seeds, and when a claim holds."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from posttrain_recipes.planning import gates
from posttrain_recipes.records import Estimate
from posttrain_recipes.store import Measured, RunRecord, StageRecord
from tests import benchmark_module

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def benchmark() -> Any:
    return benchmark_module.load("effects")


def measured(name: str, value: float) -> Measured:
    estimate = Estimate(value, value - 0.01, value + 0.01, 100)
    return Measured(name, "exact_match", name, "data", {"exact_match": estimate}, {})


def stage(name: str, before: float, after: float, *, evals: str = "held_out") -> StageRecord:
    made = StageRecord(name, name, "sft")
    made.before, made.after = [measured(evals, before)], [measured(evals, after)]
    return made


def record(stages: list[StageRecord], resolved: dict[str, Any]) -> RunRecord:
    return RunRecord(
        id="demo-1",
        recipe="demo",
        fingerprint="",
        model="ptl/tiny",
        engine="local",
        path="demo.yaml",
        preset=None,
        seed=0,
        resolved=resolved,
        created="",
        stages=stages,
        version="0",
    )


WRITTEN = {
    "stages": [
        {"name": "sft", "expect": {"held_out change": "> 20%"}},
        {"name": "dpo"},
    ],
    "expect": {"held_out": ">= 80%"},
}
RESOLVED = {**WRITTEN, "matrix": {"seed": [0, 1]}}


def seeds(first: float, second: float) -> RunRecord:
    """Two seeds of sft and dpo; sft moves held_out to 0.7 and dpo to the given values."""
    return record(
        [
            stage("sft@seed=0", 0.4, 0.7),
            stage("dpo@seed=0", 0.7, first),
            stage("sft@seed=1", 0.4, 0.71),
            stage("dpo@seed=1", 0.71, second),
        ],
        RESOLVED,
    )


def test_a_claim_of_the_recipe_is_of_the_whole_way_and_one_of_a_stage_of_the_stage(
    benchmark: Any,
) -> None:
    found = {e.stage: e for e in benchmark.effects(seeds(0.9, 0.85), WRITTEN)}
    assert set(found) == {"sft", "dpo"}
    assert (found["sft"].before, found["sft"].after) == ([0.4, 0.4], [0.7, 0.71])
    assert (found["dpo"].before, found["dpo"].after) == ([0.4, 0.4], [0.9, 0.85])
    assert found["dpo"].spread == pytest.approx(0.05)
    assert all(effect.holds for effect in found.values())


@pytest.mark.parametrize(
    ("bound", "before", "after", "holds"),
    [
        ("> 20%", [0.4, 0.4], [0.7, 0.75], True),
        ("> 20%", [0.4, 0.4], [0.7, 0.55], False),  # one seed misses the bound
        ("> 5%", [0.4, 0.4], [0.5, 0.7], False),  # moved by less than the seeds differ
        ("< -0.1", [0.4, 0.4], [0.2, 0.25], True),
        ("< -0.1", [0.4, 0.4], [0.6, 0.6], False),
        ("> -10%", [0.9, 0.9], [0.81, 0.89], True),  # no more than that is lost
        ("> -10%", [0.9, 0.9], [0.79, 0.89], False),
    ],
)
def test_a_claim_holds_where_every_seed_moves_by_more_than_the_spread(
    benchmark: Any, bound: str, before: list[float], after: list[float], holds: bool
) -> None:
    made = benchmark.Effect("sft", "held_out change", bound, "exact_match", before, after)
    assert made.holds is holds


def test_branches_of_comparisons_and_stages_of_loops_claim_too(benchmark: Any) -> None:
    bound = {"held_out": "> 1"}
    holder = {
        "stages": [
            {"name": "arms", "compare": [{"name": "a"}, {"name": "b", "expect": bound}]},
            {"name": "rounds", "stages": [{"name": "c", "expect": bound}]},
        ]
    }
    assert list(benchmark.claims(holder)) == [("b", "held_out", "> 1"), ("c", "held_out", "> 1")]


def test_a_comparison_with_seeds_of_its_own_gets_these(benchmark: Any) -> None:
    comparison = {"stages": [{"name": "arms", "compare": [{"name": "a"}], "seeds": [0, 1, 2]}]}
    assert benchmark.over_seeds(comparison, [3, 4]) == ["stages.arms.seeds=[3, 4]"]
    assert benchmark.over_seeds(WRITTEN, [3, 4]) == ["matrix={seed: [3, 4]}"]
    assert benchmark.over_seeds(WRITTEN, [3]) == ["seed=3"]


def test_the_table_shows_shares_in_percent_and_what_fails(benchmark: Any) -> None:
    found = [vars(e) for e in benchmark.effects(seeds(0.9, 0.75), WRITTEN)]
    made = benchmark.table({"demo": {"seeds": [0, 1], "effects": found}}, ["demo", "other"])
    assert made.splitlines()[2:] == [
        "| `demo` | held_out after sft | change > 20% | 40.0% | 70.0%, 71.0% | 1.0% | yes |",
        "| `demo` | held_out after dpo | >= 80% | 40.0% | 90.0%, 75.0% | 15.0% | **no** |",
    ]
    assert benchmark.table({}, ["demo"]) is None


def test_a_page_shows_a_table_a_drawing_and_the_command_that_makes_both(
    benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "PLOTS", tmp_path)
    found = [vars(e) for e in benchmark.effects(seeds(0.9, 0.75), WRITTEN)]
    rule = {**found[0], "subject": "rule change", "metric": "mean_reward"}
    kept = {"demo": {"seeds": [0, 1], "effects": [*found, found[0], rule]}}
    text = benchmark.shown(kept, "sft", "demo other")
    assert "![Before and after, by seed](../effects/sft.svg)" in text
    assert "    python benchmarks/effects.py demo other" in text
    drawn = (tmp_path / "sft.svg").read_text(encoding="utf-8")
    assert re.findall(r">(demo: [^<]*)<", drawn) == [
        "demo: held_out after sft",
        "demo: held_out after dpo",
        "demo: rule after sft",
    ]
    assert list(tmp_path.iterdir()) == [tmp_path / "sft.svg"]
    assert benchmark.shown({}, "sft", "demo") is None


def test_a_recipe_is_run_once_for_all_seeds_and_keeps_what_it_found(
    benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def run(path: Path, *, overrides: list[str], home: Path) -> Any:
        asked.append((path.stem, overrides, home))
        return SimpleNamespace(record=record([stage("kto@seed=0", 0.6, 0.9, evals="tone")], {}))

    monkeypatch.setattr(benchmark.api, "run", run)
    monkeypatch.setattr(gates, "starts_of", lambda resolved: {"kto@seed=0": "base"})
    made = benchmark.run(ROOT / "recipes" / "kto.yaml", [0, 1, 2], tmp_path)
    assert asked == [("kto", ["matrix={seed: [0, 1, 2]}"], tmp_path)]
    assert made["seeds"] == [0, 1, 2]
    assert [(e["subject"], e["after"]) for e in made["effects"]] == [("tone change", [0.9])]
    monkeypatch.setattr(benchmark.api, "plan", lambda path: SimpleNamespace(resolved={}))
    assert benchmark.run(ROOT / "recipes" / "kto.yaml", [0], tmp_path) is None
    assert len(asked) == 1


def test_continue_leaves_out_recipes_that_are_there_with_these_seeds(
    benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []

    def run(path: Path, seeds: list[int], home: Path) -> dict[str, Any]:
        ran.append(path.stem)
        return {"seeds": seeds, "effects": []}

    monkeypatch.setattr(benchmark, "run", run)
    for name in ("KEPT", "PAGE", "PAGES"):
        monkeypatch.setattr(benchmark, name, tmp_path / name)
    real = {"dpo": {"0": {"weights": "a", "dtype": "b", "core_minutes": 1.0, "effects": []}}}
    benchmark.KEPT.write_text(json.dumps({"small": real}))

    def go(*words: str) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["effects.py", *words])
        with pytest.raises(SystemExit):
            benchmark.main()
        return ran

    assert go("dpo", "kto") == ["dpo", "kto"]
    assert go("dpo", "kto", "sft", "--continue") == ["dpo", "kto", "sft"]
    assert go("dpo", "--seeds", "7", "--continue") == ["dpo", "kto", "sft", "dpo"]
    assert json.loads(benchmark.KEPT.read_text())["small"] == real
