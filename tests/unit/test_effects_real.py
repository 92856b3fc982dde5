"""What recipes show on a real model: when a claim holds, and what is run again."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from posttrain_recipes.errors import PtlError
from posttrain_recipes.language import recipe as recipes
from posttrain_recipes.planning.gates import Bound, Subject
from posttrain_recipes.records import Estimate, PerRecord, Sample
from posttrain_recipes.reporting import scores
from posttrain_recipes.rewards.regex import Regex
from posttrain_recipes.store import Measured, RunRecord, StageRecord
from tests import benchmark_module
from tests.presets import preset_names

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def benchmark() -> Any:
    return benchmark_module.load("effects")


@pytest.fixture
def real(benchmark: Any) -> Any:
    return benchmark.effects_real


def seed(before: float, after: float, p: float | None, bound: str = "> 20%") -> dict[str, Any]:
    return {
        "weights": "abc",
        "recipe": "def",
        "dtype": "bfloat16",
        "minutes": 3.04,
        "core_minutes": 5.0,
        "effects": [
            {
                "stage": "sft",
                "subject": "held_out change",
                "bound": bound,
                "metric": "exact_match",
                "before": before,
                "after": after,
                "p": p,
                "records": 100,
            }
        ],
    }


def verdicts(real: Any, *found: dict[str, Any]) -> list[str]:
    seeds = {str(number): one for number, one in enumerate(found)}
    return [row.split("|")[-2].strip() for row in real.rows("demo", seeds, [0, 1])]


@pytest.mark.parametrize(
    ("p", "after", "bound", "verdict"),
    [
        (0.0099, 0.7, "> 20%", "yes"),
        (0.01, 0.7, "> 20%", "**no**"),  # not told apart from the start
        (None, 0.7, "> 20%", "**no**"),  # no paired test
        (0.001, 0.5, "> 20%", "**no**"),  # misses the bound
        (0.5, 0.35, "> -10%", "yes"),  # a limit on what may be lost
        (0.001, 0.2, "> -10%", "**no**"),
    ],
)
def test_each_seed_keeps_the_bound_and_is_told_from_its_start(
    real: Any, p: float | None, after: float, bound: str, verdict: str
) -> None:
    good = seed(0.4, 0.8, 1e-9, bound)
    assert verdicts(real, good, seed(0.4, after, p, bound)) == [verdict]


def test_a_claim_over_some_of_the_seeds_is_pending_and_one_that_failed_has_failed(
    real: Any,
) -> None:
    assert verdicts(real, seed(0.4, 0.8, 1e-9)) == ["pending (1 of 2 seeds)"]
    assert verdicts(real, seed(0.4, 0.5, 1e-9)) == ["**no**"]


def test_the_page_has_what_failed_and_what_is_pending_and_names_the_weights(real: Any) -> None:
    found = {
        "demo": {"0": seed(0.4, 0.8, 1e-9), "1": seed(0.4, 0.45, 0.3)},
        "half": {"1": seed(0.4, 0.8, 1e-9)},
    }
    text = "{weights}\n{command}\n{table}\n{pending}"
    page = real.section(found, [0, 1], text, ["demo", "half", "none"])
    assert "`abc` in bfloat16" in page
    assert (
        "| `demo`, small | held_out after sft (n = 100) | change > 20% | 40.0% | 80.0%, 45.0% "
        "| < 0.001, 0.300 | 5.0, 5.0 | **no** |" in page
    )
    assert "Not finished yet: `half`, `none`." in page
    assert f"    {real.COMMAND} --continue half none\n" in page
    assert "pending" not in real.section(found, [1], text, ["demo", "half"])


def test_stages_of_one_start_are_compared_on_the_records_of_an_eval_of_both(
    real: Any, tmp_path: Path
) -> None:
    bound = {"held_out change": "> -8%"}
    resolved = {
        "stages": [
            {"name": "first", "expect": bound},
            {"name": "second", "expect": bound},
            {"name": "replay", "init_from": "first", "expect": bound},
        ]
    }
    made = record(tmp_path, resolved, {"first": 8, "second": 4, "replay": 7})
    found = [real.tested(made, one) for one in real.beside(made, resolved)]
    assert [(one["stage"], one["subject"]) for one in found] == [
        ("replay", "held_out beside second")
    ]
    assert (found[0]["before"], found[0]["after"], found[0]["p"]) == (0.2, 0.35, 0.25)
    rows = list(
        real.rows("demo", {"0": {"core_minutes": 1.0, "effects": [], "beside": found}}, [0])
    )
    assert rows == [
        "| `demo`, small | held_out after replay (n = 20) | none: beside second "
        "| 20.0% | 35.0% | 0.250 |  | - |"
    ]


def test_weights_are_known_by_their_files_and_of_the_hub_by_name(real: Any, tmp_path: Path) -> None:
    assert real.weights("HuggingFaceTB/SmolLM2-135M-Instruct").startswith("HuggingFaceTB/")
    (tmp_path / "model.safetensors").write_bytes(b"one")
    one = real.weights(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"two")
    assert one != real.weights(str(tmp_path))


# --- running -------------------------------------------------------------------------------------

RESOLVED: dict[str, Any] = {
    "model": "DIR",
    "stages": [{"name": "sft", "expect": {"held_out change": "> 20%"}}],
}


def record(
    home: Path, resolved: dict[str, Any] | None = None, right: dict[str, int] | None = None
) -> RunRecord:
    """A run of which 4 of 20 records were right before, and so many after each stage, with the
    scores of all."""

    def measured(stage: str, when: str, count: int) -> Measured:
        values = PerRecord(tuple(float(i < count) for i in range(20)))
        path = scores.path(home / "demo-1", stage, "held_out", when)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"exact_match": vars(values)}))
        estimate = Estimate(count / 20, 0.0, 1.0, 20)
        return Measured("held_out", "exact_match", "eval", "data", {"exact_match": estimate})

    stages = [
        StageRecord(
            name, name, "sft", before=[measured(name, "before", 4)],
            after=[measured(name, "after", count)],
        )
        for name, count in (right or {"sft": 16}).items()
    ]  # fmt: skip
    return RunRecord(
        "demo-1", "demo", "", "DIR", "local", "", "small", 0, resolved or RESOLVED, "", stages,
        seconds=90.0, home=home,
    )  # fmt: skip


@dataclass
class Runs:
    """In the place of `api`: which seeds were run."""

    home: Path
    resolved: dict[str, Any] = field(default_factory=lambda: dict(RESOLVED))
    asked: list[tuple[str, str]] = field(default_factory=list)

    def plan(self, path: Path, *, preset: str, overrides: list[str]) -> Any:
        engine = SimpleNamespace(precision="bfloat16")
        return SimpleNamespace(resolved=self.resolved, model="DIR", engine=engine)

    def run(self, path: Path, *, preset: str, overrides: list[str], home: Path) -> Any:
        self.asked.append((path.stem, overrides[-1]))
        return SimpleNamespace(record=record(self.home))


@pytest.fixture
def runs(benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    made = Runs(tmp_path / "runs")
    monkeypatch.setattr(benchmark.effects_real, "api", made)
    for name in ("KEPT", "PAGE"):
        monkeypatch.setattr(benchmark, name, tmp_path / name)
    monkeypatch.setattr(benchmark, "PAGES", tmp_path / "pages")
    monkeypatch.setattr(benchmark, "small_recipes", lambda: {"dpo": ROOT / "recipes/dpo.yaml"})
    monkeypatch.setattr(sys, "argv", ["effects.py", "--preset", "small", "--seeds", "0", "1"])
    return made


def go(benchmark: Any, monkeypatch: pytest.MonkeyPatch, *more: str) -> int:
    monkeypatch.setattr(sys, "argv", [*sys.argv, *more])
    with pytest.raises(SystemExit) as done:
        benchmark.main()
    return int(done.value.code or 0)


def test_a_seed_is_kept_with_its_paired_test(benchmark: Any, runs: Runs, monkeypatch: Any) -> None:
    assert go(benchmark, monkeypatch) == 0
    one = json.loads(benchmark.KEPT.read_text())["small"]["dpo"]["1"]
    (effect,) = one["effects"]
    assert (effect["before"], effect["after"], effect["records"]) == (0.2, 0.8, 20)
    assert effect["p"] == pytest.approx(2 * 0.5**12)  # McNemar's exact test: 12 gained, none lost
    assert (one["dtype"], one["minutes"]) == ("bfloat16", 1.5)
    assert "| `dpo`, small | held_out after sft (n = 20) |" in benchmark.PAGE.read_text()


def test_continue_leaves_what_is_there_and_runs_the_rest(
    benchmark: Any, runs: Runs, monkeypatch: Any, capsys: Any
) -> None:
    benchmark.KEPT.write_text(json.dumps({"kto": {"seeds": [0], "effects": []}}))
    go(benchmark, monkeypatch, "--seeds", "1")
    go(benchmark, monkeypatch, "--seeds", "0", "1", "--continue")
    assert runs.asked == [("dpo", "seed=1"), ("dpo", "seed=0")]
    assert "dpo, small, seed 1: there already, not run" in capsys.readouterr().out
    assert json.loads(benchmark.KEPT.read_text())["kto"] == {"seeds": [0], "effects": []}


def test_without_continue_everything_is_run(benchmark: Any, runs: Runs, monkeypatch: Any) -> None:
    go(benchmark, monkeypatch)
    go(benchmark, monkeypatch)
    assert runs.asked == [("dpo", "seed=0"), ("dpo", "seed=1")] * 2


def test_continue_runs_again_what_another_recipe_found(
    benchmark: Any, runs: Runs, monkeypatch: Any, capsys: Any
) -> None:
    go(benchmark, monkeypatch, "--seeds", "0")
    runs.resolved = {**RESOLVED, "lora": {"rank": 8}}
    go(benchmark, monkeypatch, "--seeds", "0", "--continue")
    assert len(runs.asked) == 2
    assert "of another recipe or other weights, run again" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("ends", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "stopped; the same command with --continue goes on"),
        (PtlError("no memory", hint="get some"), None, "no memory\n  next: get some\nwhat was"),
    ],
    ids=["stopped", "failed"],
)
def test_what_was_found_before_the_end_is_kept(
    benchmark: Any, runs: Runs, monkeypatch: Any, capsys: Any, ends: Any, code: Any, said: str
) -> None:
    def run(path: Path, *, overrides: list[str], **more: Any) -> Any:
        if overrides[-1] == "seed=1":
            raise ends
        return SimpleNamespace(record=record(runs.home))

    monkeypatch.setattr(runs, "run", run)
    with pytest.raises(SystemExit) as done:
        benchmark.main()
    assert said in (str(done.value.code) if code is None else capsys.readouterr().err)
    assert done.value.code == code or code is None
    assert list(json.loads(benchmark.KEPT.read_text())["small"]["dpo"]) == ["0"]
    assert "pending (1 of 3 seeds)" in benchmark.PAGE.read_text()


def test_the_first_seed_of_all_recipes_comes_before_the_second_of_any(
    benchmark: Any, runs: Runs, monkeypatch: Any
) -> None:
    both = {name: ROOT / f"recipes/{name}.yaml" for name in ("dpo", "continual")}
    monkeypatch.setattr(benchmark, "small_recipes", lambda: both)
    go(benchmark, monkeypatch)
    assert [f"{name} {seed}" for name, seed in runs.asked] == [
        "dpo seed=0",
        "continual seed=0",
        "dpo seed=1",
        "continual seed=1",
    ]


# --- the presets ---------------------------------------------------------------------------------

SMALL = [
    path for path in sorted((ROOT / "recipes").glob("*.yaml")) if "small" in preset_names(path)
]


def test_six_recipes_have_the_preset() -> None:
    assert [path.stem for path in SMALL] == [
        "constitutional_safety",
        "continual",
        "dpo",
        "prompt_distill",
        "sft_gsm8k",
        "sft_then_rl",
    ]


@pytest.mark.parametrize("path", SMALL, ids=lambda path: path.stem)
def test_small_is_of_the_hub_and_claims_what_it_measures(benchmark: Any, path: Path) -> None:
    data = recipes.load(path, preset="small").data
    assert data["model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert data.get("engine", "local") == "local"
    claims = list(benchmark.claims(data))
    assert claims
    for _, subject, bound in claims:
        assert Subject.parse(subject)
        assert Bound.parse(bound)


@pytest.mark.parametrize(
    ("reply", "right"),
    [
        ("She has 2+3 = <<2+3=5>>5 eggs.\n#### 5", True),
        ("Half is 8/2 = <<8/2=4>>4.\nSo 4 + 1,000 = <<4+1000=1004>>1,004.\n#### 1,004", True),
        ("She has 5 eggs.\n#### 5", False),  # no step is marked
        ("2+3 = <<2+3=5>>5 #### 5", False),  # not on a line of its own
        ("2+3 = <<2+3=5>>5\n#### 5\nShe is happy.", False),
        ("2+3 = <<2+3=5>>5\n\n#### 5", False),  # an empty line
        ("#### 5", False),
        ("", False),
    ],
)
def test_the_form_of_gsm8k_is_a_strict_rule(reply: str, right: bool) -> None:
    assert scored(rule("sft_gsm8k", "form"), reply) == right


@pytest.mark.parametrize(
    ("reply", "right"),
    [
        ("Je ne suis pas le bonjour.", True),
        ("Bien sûr, vous pouvez prendre\nles clefs dans une heure.", True),
        ("I'm sorry for any confusion. Can you call me about the rope?", False),
        ("The pass is for des moines.", False),
        ("", False),
    ],
)
def test_the_rule_tells_french_from_english(reply: str, right: bool) -> None:
    assert scored(rule("prompt_distill", "french"), reply) == right


def rule(recipe: str, name: str) -> dict[str, Any]:
    data = recipes.load(ROOT / "recipes" / f"{recipe}.yaml", preset="small").data
    (found,) = (e for s in data["stages"] for e in s["eval"] if e["name"] == name)
    return dict(found["reward"])


def scored(options: dict[str, Any], reply: str) -> bool:
    config = Regex.Config(**{name: value for name, value in options.items() if name != "use"})
    (score,) = Regex(config, ROOT).score([Sample(prompt=(), completion=reply)])
    return score == 1
