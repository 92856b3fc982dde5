"""`learning_rate: auto` is a number from the plan on: by hidden size, family and rank."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from posttrain_recipes import hub, registry, store
from posttrain_recipes.errors import RecipeError
from posttrain_recipes.language import recipe as recipes
from posttrain_recipes.learning_rate import BASE, Family, automatic
from posttrain_recipes.methods.grpo import GRPO
from posttrain_recipes.planning import planner, rates
from posttrain_recipes.plugin import DataMethod
from posttrain_recipes.reporting import report, reproduction
from posttrain_recipes.reporting.comparing import Comparison
from posttrain_recipes.running.runner import new_record
from posttrain_recipes.store import Store
from posttrain_recipes.testing import flipping
from posttrain_recipes.testing.findings import placeholder
from posttrain_recipes.training import supervised
from tests.conftest import Project, Ptl

RECIPE = """\
name: mine
model: {model}
stages:
  - name: sft
    dataset: {{use: jsonl, path: chat.jsonl}}
    method: {{use: sft{sft}}}
  - name: dpo
    dataset: {{use: jsonl, path: pairs.jsonl}}
    method:
      use: dpo{dpo}
  - name: rl
    dataset: {{use: jsonl, path: questions.jsonl}}
    method: {{use: grpo, max_tokens: 8{rl}}}
    reward: {{use: exact_match}}
"""
NUMBERS = (0.0014, 0.00079, 0.00079)
"""Of ptl/tiny, whose hidden size is 192."""


def recipe(model: str = "ptl/tiny", sft: str = "", dpo: str = "", rl: str = "") -> str:
    return RECIPE.format(model=model, sft=sft, dpo=dpo, rl=rl)


def numbers(plan: Any) -> tuple[Any, ...]:
    return tuple(stage.method.config.learning_rate for stage in plan.stages)


# --- the rule ------------------------------------------------------------------------------------


def test_it_lies_between_the_two_published_fits() -> None:
    for hidden in (96, 576, 2000, 4096, 8192):
        llama, qwen = (5e-4 * (2000 / hidden) ** e for e in (0.781, 0.0775))
        found = automatic(hidden, Family.IMITATION, 16)
        assert 0.97 * min(llama, qwen) <= found <= 1.03 * max(llama, qwen)
        assert found == pytest.approx((llama * qwen) ** 0.5, rel=0.05)
    assert automatic(2000, Family.IMITATION, 16) == 5e-4


def test_preference_and_rl_are_a_tenth_at_8b_a_third_at_135m_and_the_rank_changes_nothing() -> None:
    for hidden, part in ((4096, 0.1), (576, 0.31)):
        imitation = automatic(hidden, Family.IMITATION, 16)
        for family in (Family.PREFERENCE, Family.RL):
            assert automatic(hidden, family, 16) == pytest.approx(part * imitation, rel=0.02)
        assert {automatic(hidden, Family.RL, rank) for rank in (1, 16, 512)} == {
            automatic(hidden, Family.RL, 32)
        }


def test_a_wider_model_has_a_lower_rate() -> None:
    for family in Family:
        assert automatic(48, family, 16) == automatic(48, Family.IMITATION, 16)
        found = [automatic(hidden, family, 16) for hidden in (64, 96, 192, 576, 4096, 8192)]
        assert found == sorted(found, reverse=True)
        assert len(set(found)) == len(found)


def test_the_family_of_every_built_in_is_the_one_of_the_docs() -> None:
    page = (Path(__file__).parents[2] / "docs/methods/README.md").read_text(encoding="utf-8")
    for name, entry in registry.load().entries["method"].items():
        trains = rates.options(entry.config) and not issubclass(entry.cls, DataMethod)
        if entry.distribution == "posttrain-recipes" and trains:
            (row,) = [r for r in page.splitlines() if r.startswith("| ") and f"`{name}`:" in r]
            assert row.split("|")[1].strip() == entry.cls.family, name


# --- a number from the plan on -------------------------------------------------------------------


def test_it_is_the_default_of_every_method_and_a_number_everywhere(project: Project) -> None:
    plan = project.plan(recipe())
    assert numbers(plan) == NUMBERS
    record = new_record(plan, "mine-1")
    for stage, kept, rate in zip(plan.stages, record.stages, NUMBERS, strict=True):
        assert stage.inputs["method"]["config"]["learning_rate"] == rate
        assert kept.inputs["method"]["config"]["learning_rate"] == rate
        assert kept.numbers == {"learning_rate": rate}
        params = report.stage_params(stage)
        assert params["learning_rate"] == rate
        assert params["learning_rate_from"].startswith("auto: ")
        assert "hidden size 192, rank 16" in params["learning_rate_from"]
    written = [stage["method"]["learning_rate"] for stage in record.resolved["stages"]]
    assert written == list(NUMBERS)


def test_the_word_and_the_number_are_one_stage(project: Project) -> None:
    left_out = project.plan(recipe())
    said = project.plan(recipe(sft=", learning_rate: auto", dpo="\n      learning_rate: auto"))
    named = project.plan(
        recipe(
            sft=", learning_rate: 1.4e-3",
            dpo="\n      learning_rate: 7.9e-4",
            rl=", learning_rate: 7.9e-4",
        )
    )
    assert left_out.fingerprint == said.fingerprint == named.fingerprint
    assert [s.fingerprint for s in left_out.stages] == [s.fingerprint for s in named.stages]
    assert not any(stage.auto for stage in named.stages)
    assert all(stage.auto for stage in left_out.stages)


def test_set_can_say_auto_and_a_number(project: Project) -> None:
    text = recipe(sft=", learning_rate: 1e-2")
    way = "stages.sft.method.learning_rate"
    assert numbers(project.plan(text))[0] == 1e-2
    assert numbers(project.plan(text, overrides=[f"{way}=auto"]))[0] == NUMBERS[0]
    assert numbers(project.plan(recipe(), overrides=[f"{way}=3e-3"]))[0] == 3e-3


def test_it_is_of_the_model_that_the_stage_trains(project: Project) -> None:
    text = recipe().replace(
        "  - name: dpo\n", "  - name: dpo\n    model: ptl/nano\n    init_from: base\n"
    )
    assert numbers(project.plan(text))[1:] == (0.0016, 0.0016)  # rl starts from dpo
    state = "tinker://run/weights/sft-000001"
    text = recipe().replace("  - name: dpo\n", f"  - name: dpo\n    init_from: {state}\n")
    assert numbers(project.plan(text)) == NUMBERS


def test_every_branch_and_seed_has_the_same(project: Project) -> None:
    plan = project.plan(
        """
name: mine
model: ptl/tiny
stages:
  - name: both
    compare:
      - {name: a, method: {use: dpo, beta: 0.1}, dataset: {use: jsonl, path: pairs.jsonl}}
      - {name: b, method: {use: simpo}, dataset: {use: jsonl, path: pairs.jsonl}}
    seeds: [0, 1]
"""
    )
    assert numbers(plan) == (0.00079,) * 4
    branches = plan.resolved["stages"][0]["compare"]
    assert [branch["method"]["learning_rate"] for branch in branches] == [0.00079, 0.00079]


def test_a_matrix_has_auto_among_numbers(project: Project) -> None:
    text = recipe() + "matrix:\n  stages.sft.method.learning_rate: [auto, 1.0e-2]\n"
    plan = project.plan(text)
    by_name = {
        stage.name: stage.method.config.learning_rate for stage in plan.stages if stage.method
    }
    assert by_name["sft@learning_rate=auto"] == NUMBERS[0]
    assert by_name["sft@learning_rate=0.01"] == 1e-2
    assert plan.resolved["matrix"] == {"stages.sft.method.learning_rate": ["auto", 1e-2]}
    assert "learning_rate" not in plan.resolved["stages"][0]["method"]
    record = new_record(plan, "mine-1")
    assert record.stage("sft@learning_rate=auto").numbers == {"learning_rate": NUMBERS[0]}
    assert record.stage("sft@learning_rate=0.01").numbers == {}


def test_a_matrix_of_models_keeps_the_word_and_a_number_for_each(project: Project) -> None:
    plan = project.plan(recipe() + "matrix:\n  model: [ptl/tiny, ptl/nano]\n")
    assert {s.method.config.learning_rate for s in plan.stages if s.method} == {
        0.0014, 0.00079, 0.0018, 0.0016,
    }  # fmt: skip
    assert "learning_rate" not in plan.resolved["stages"][0]["method"]


def test_a_run_is_planned_again_with_the_numbers_that_it_had(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    for more in ("", "matrix:\n  model: [ptl/tiny, ptl/nano]\n"):
        plan = project.plan(recipe() + more)
        record = new_record(plan, "mine-1")
        with monkeypatch.context() as later:
            later.setattr(rates, "automatic", lambda *_: 0.5)
            assert numbers(project.plan(recipe() + more))[0] == 0.5
            again = reproduction.plan_again(record, registry.load())
        assert numbers(again) == numbers(plan)
        assert again.fingerprint == plan.fingerprint


# --- where nothing tells -------------------------------------------------------------------------


def faults(project: Project, text: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        project.plan(text)
    return [str(fault) for fault in caught.value.faults]


@pytest.mark.parametrize("engine", ["local", "tinker", "{use: server, base_url: http://x}"])
def test_without_a_config_the_plan_asks_for_a_number(
    engine: str, project: Project, users_cache: Path
) -> None:
    text = recipe(model="acme/model", dpo="\n      learning_rate: auto", rl=", learning_rate: 1e-4")
    found = faults(project, f"engine: {engine}\n{text}")
    assert len(found) == 2
    assert "mine.yaml:7:" in found[0]
    assert "mine.yaml:12:22" in found[1]
    for one, rate in zip(found, (0.00037, 3.7e-05), strict=True):
        assert "no config.json of acme/model is on this machine" in one
        assert f"write a number, as 'learning_rate: {rate:g}'" in one
    named = text.replace("learning_rate: auto", "learning_rate: 1e-4")
    named = named.replace("{use: sft}", "{use: sft, learning_rate: 1e-4}")
    assert numbers(project.plan(f"engine: {engine}\n{named}")) == (1e-4,) * 3


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (b"[1]", "it is no mapping"),
        (b"{", "it is no JSON"),
        (b"", "it is no JSON"),
        (b"\xff\xfe{\x00}\x00", "it is no text in UTF-8"),
    ],
)
def test_a_config_that_cannot_be_read_is_told_as_that(
    config: bytes, why: str, project: Project
) -> None:
    (project.path / "model" / "config.json").write_bytes(config)
    found = faults(project, recipe(model="./model"))
    assert len(found) == 3
    assert all(f"./model: its config.json cannot be read: {why}" in one for one in found)
    assert not any("write a number" in one for one in found)


@pytest.mark.parametrize("config", ["{}", '{"hidden_size": "64"}'])
def test_a_config_that_tells_no_size_is_told_of(config: str, project: Project) -> None:
    project.write("model/config.json", config)
    found = faults(project, recipe(model="./model"))
    assert len(found) == 3
    assert all("the config.json of ./model tells no hidden_size" in one for one in found)


def test_a_gguf_file_that_is_damaged_is_told_as_that(project: Project) -> None:
    pytest.importorskip("gguf")
    (project.path / "model.gguf").write_bytes(b"GGUF" + bytes(50))
    found = faults(project, recipe(model="./model.gguf"))
    assert len(found) == 3
    assert all("model.gguf cannot be read as GGUF" in one for one in found)
    assert not any("config.json" in one for one in found)


def test_a_model_that_is_not_there_has_one_fault(project: Project) -> None:
    (one,) = faults(project, recipe(model="./nowhere"))
    assert "there is no model directory" in one


def cached(cache: Path, name: str, commit: str, hidden: int, *, main: bool) -> None:
    folder = cache / "huggingface/hub" / f"models--{name.replace('/', '--')}"
    there = folder / "snapshots" / commit
    there.mkdir(parents=True)
    (there / "config.json").write_text(json.dumps({"text_config": {"hidden_size": hidden}}))
    if main:
        (folder / "refs").mkdir()
        (folder / "refs/main").write_text(commit)


@pytest.mark.parametrize("engine", ["local", "tinker"])
def test_a_config_of_the_hub_s_cache_tells(
    engine: str, project: Project, users_cache: Path
) -> None:
    cached(users_cache, "acme/model", "a" * 40, 2000, main=True)
    cached(users_cache, "acme/model", "b" * 40, 96, main=False)
    plan = project.plan(f"engine: {engine}\n" + recipe(model="acme/model"))
    assert numbers(plan) == (5e-4, 7.6e-5, 7.6e-5)


def test_the_hub_is_asked_for_it_by_a_plan_alone(
    project: Project, monkeypatch: pytest.MonkeyPatch, users_cache: Path
) -> None:
    asked: list[str] = []

    def fetch(name: str) -> None:
        asked.append(name)
        if len(asked) == 1:
            cached(users_cache, name, "a" * 40, 2000, main=True)

    monkeypatch.setattr(hub, "fetch_config", fetch)
    monkeypatch.setattr(hub, "_of_hub", lambda *a: None)
    read = project.load(recipe(model="acme/model"))
    with pytest.raises(RecipeError, match="'ptl plan' and 'ptl run' ask the hub for it"):
        planner.build(read, registry.load())
    assert not asked
    plan = planner.build(read, registry.load(), ask=True)
    assert asked == ["acme/model"]
    assert numbers(plan) == (5e-4, 7.6e-5, 7.6e-5)


def test_models_that_are_served_are_known_without_a_config(
    project: Project, users_cache: Path
) -> None:
    plan = project.plan("engine: tinker\n" + recipe(model="Qwen/Qwen3-8B"))
    assert numbers(plan) == (0.00037, 3.7e-05, 3.7e-05)
    variant = project.plan("engine: tinker\n" + recipe(model="Qwen/Qwen3-8B:peft:262144"))
    assert numbers(variant) == numbers(plan)


def test_the_sizes_of_served_models_are_the_cookbook_s() -> None:
    utils = pytest.importorskip("tinker_cookbook.hyperparam_utils")
    for name, hidden in rates.SERVED.items():
        assert utils._get_hidden_size(name) == hidden


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml")))
def test_full_presets_are_auto_and_toys_name_a_number(path: Path, users_cache: Path) -> None:
    full = planner.build(recipes.load(path, preset="full"), registry.load())
    for stage in full.stages:
        trains = stage.method is not None and rates.options(type(stage.method.config))
        assert bool(stage.auto) == bool(trains), stage.name
    toy = planner.build(recipes.load(path), registry.load())
    assert not any(stage.auto for stage in toy.stages)


# --- methods -------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", ["fast", "null", "true", "[1]", '"1e-3"'])
def test_what_is_neither_is_told_what_it_may_be(wrong: str, project: Project) -> None:
    (one,) = faults(project, recipe(sft=f", learning_rate: {wrong}"))
    assert "must be a number, not " in one
    assert one.endswith("; or write auto")


def test_a_number_that_is_none_is_told_of(project: Project) -> None:
    (one,) = faults(project, recipe(sft=", learning_rate: -1"))
    assert "must be more than 0, not -1" in one


PLUGIN = """
from posttrain_recipes.plugin import *
from posttrain_recipes.training import supervised
from pydantic import model_validator

PTL_API = 1


class Plain(Method):
    \"\"\"Of a number.\"\"\"
    name = "plain"
    takes = (Conversation,)
    class Config(supervised.GradientConfig):
        learning_rate: float = 3e-4
    config: Config
    def train(self, stage): ...


class Own(Method):
    \"\"\"Of a family that it names.\"\"\"
    name = "own"
    takes = (Conversation,)
    family = Family.RL
    class Config(supervised.GradientConfig):
        @model_validator(mode="after")
        def _small(self):
            if self.learning_rate > 1:
                raise ValueError("too much")
            return self
    config: Config
    def train(self, stage): ...


class Without(Method):
    \"\"\"That takes no steps.\"\"\"
    name = "without"
    takes = (Conversation,)
    class Config(PluginConfig):
        pass
    config: Config
    def train(self, stage): ...
"""


def test_a_stranger_s_method_has_its_own_number_or_family() -> None:
    found: dict[str, Any] = {"__name__": "stranger"}
    exec(compile(PLUGIN, "stranger.py", "exec"), found)
    given = {name: found[name] for name in ("Plain", "Own", "Without")}
    assert rates.options(given["Plain"].Config) == []
    assert given["Plain"].Config().learning_rate == 3e-4
    assert rates.options(given["Own"].Config) == ["learning_rate"]
    assert rates.options(given["Without"].Config) == []
    assert given["Plain"].family is Family.IMITATION
    assert given["Own"].family is Family.RL


def test_options_that_are_made_by_hand_have_a_number_too() -> None:
    assert supervised.GradientConfig().peak == BASE
    assert GRPO.Config().peak == BASE
    assert supervised.GradientConfig(learning_rate=2e-3).peak == 2e-3


# --- where it is shown ---------------------------------------------------------------------------


def test_plan_explain_and_the_schema_tell_both(project: Project, ptl: Ptl) -> None:
    project.write("mine.yaml", recipe())
    said = ptl("plan", "mine.yaml").out
    assert "sft: learning_rate 0.0014: auto, by imitation, hidden size 192, rank 16" in said
    planned = json.loads(ptl("plan", "mine.yaml", "--json").out)["stages"]
    assert [stage["auto"]["learning_rate"]["value"] for stage in planned] == list(NUMBERS)
    explained = " ".join(ptl("explain", "dpo").out.split())
    assert (
        "auto learning_rate, of the family preference: 7.6e-05 at a hidden size of 2000"
        in explained
    )
    assert 'learning_rate: number | auto [default "auto"]' in explained
    schema = json.loads(ptl("schema").out)
    option = schema["$defs"]["method.sft"]["properties"]["learning_rate"]
    assert option["default"] == "auto"
    assert [choice.get("const", choice.get("type")) for choice in option["anyOf"]] == [
        "number", "auto",
    ]  # fmt: skip


def test_a_comparison_of_runs_says_which_number_was_auto(project: Project) -> None:
    one = new_record(project.plan(recipe()), "mine-1")
    other = new_record(project.plan(recipe(sft=", learning_rate: 1e-2")), "mine-2")
    same = new_record(project.plan(recipe(sft=", learning_rate: 1.4e-3")), "mine-3")
    rows = Comparison(project.path, [one, other]).differing
    assert ("stages.sft.method.learning_rate", "0.0014 (auto)", "0.01") in rows
    assert not Comparison(project.path, [one, same]).differing


def test_a_check_of_plugins_has_a_number_for_auto_and_changes_it() -> None:
    found: dict[str, Any] = {"__name__": "stranger"}
    exec(compile(PLUGIN, "stranger.py", "exec"), found)
    for name in ("Own", "Plain"):
        entry = SimpleNamespace(cls=found[name], config=found[name].Config, kind="method")
        given = placeholder({}, entry)  # type: ignore[arg-type]
        made = entry.config.model_validate(given)
        assert isinstance(made.learning_rate, float)
        assert "learning_rate" in [option for option, _, _ in flipping.flips(made)]


def test_ptl_show_tells_both_and_a_run_of_before_is_read(project: Project, ptl: Ptl) -> None:
    record = new_record(project.plan(recipe(sft=", learning_rate: 1e-2")), "mine-1")
    kept = Store(project.path / ".ptl").path("mine-1") / "run.json"
    kept.parent.mkdir(parents=True)
    kept.write_text(store.dump(record))
    said = ptl("show", "mine-1").out
    assert said.count("learning_rate ") == 2
    assert "learning_rate 0.00079 (auto: preference, hidden size 192, rank 16)" in said
    older = json.loads(kept.read_text())
    for stage in older["stages"]:
        del stage["auto"]
    kept.write_text(json.dumps(older))
    assert "learning_rate " not in ptl("show", "mine-1").out
