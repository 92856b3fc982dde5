"""What a plan is going to take: counted where it can be, bounded where not, priced by a table."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from posttrain_recipes.errors import UsageError
from posttrain_recipes.models import BUNDLED
from posttrain_recipes.planning import costs, pricing, tokens
from posttrain_recipes.planning.reuse import Decision, Scope, decisions
from posttrain_recipes.records import Message
from posttrain_recipes.running.runner import new_record
from posttrain_recipes.store import Estimated, Measured, RunRecord, Spent
from posttrain_recipes.training.text.chat_template import load_renderer
from posttrain_recipes.workload import Usage
from tests.conftest import Project

RECIPE = """\
name: demo
model: ptl/tiny
stages:
  - name: sft
    dataset: {use: jsonl, path: chat.jsonl, test_size: 1}
    method: {use: sft, batch_size: 2, epochs: 3}
    eval: [{use: nll}]
  - name: dpo
    dataset: {use: jsonl, path: pairs.jsonl}
    method: {use: dpo, batch_size: 3}
    eval: [nll]
"""


def estimates(
    project: Project, text: str = RECIPE, *runs: RunRecord, whole: bool = False
) -> dict[str, Estimated | None]:
    plan = project.plan(text)
    prices = pricing.load(project.path)
    estimator = costs.Estimator(plan, prices, runs, whole)
    decided = list(decisions(plan, Scope(), runs, project.path))
    return {stage.name: estimate for stage, _, estimate in estimator.stages(decided)}


# --- tokens --------------------------------------------------------------------------------------

SPOKEN = (
    (Message("user", "1+1?"),),
    (Message("user", "1+1?"), Message("assistant", "2")),
    (Message("system", "Be kind."), Message("user", "hi\n é"), Message("assistant", "hello!")),
)


@pytest.mark.parametrize("model", BUNDLED)
def test_tokens_are_counted_as_transformers_counts_them(model: str) -> None:
    folder = str(BUNDLED[model])
    count, renderer = tokens.counter(folder), load_renderer(folder)
    assert count is not None
    for messages in SPOKEN:
        asked = messages[-1].role == "user"
        ids = renderer.prompt(messages) if asked else renderer.supervised(messages)[0]
        assert count(messages) == len(ids)


def test_a_tokenizer_that_is_not_here_counts_nothing(tmp_path: Path) -> None:
    assert tokens.counter(str(tmp_path)) is None
    assert tokens.counter("nobody/has-this") is None
    (tmp_path / "tokenizer.json").write_text("{}")
    assert tokens.counter(str(tmp_path)) is None


def test_a_model_of_the_hub_is_found_where_it_was_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--some--model" / "snapshots" / "abc"
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(BUNDLED["ptl/nano"])
    assert tokens.counter("some/model") is not None


def test_a_budget_of_tokens_bounds_what_is_ahead(project: Project) -> None:
    text = RECIPE.split("  - name: dpo")[0].replace("    eval: [{use: nll}]\n", "")
    whole = estimates(project, text)["sft"]
    assert whole
    budget = whole.tokens // 2
    bound = estimates(project, text.replace("epochs: 3", f"epochs: 3, token_budget: {budget}"))
    assert bound["sft"]
    assert (bound["sft"].tokens, bound["sft"].exact) == (budget, False)
    assert bound["sft"].steps == math.ceil(whole.steps * budget / whole.tokens) < whole.steps
    ample = estimates(project, text.replace("epochs: 3", f"epochs: 3, token_budget: {10**9}"))
    assert ample["sft"] == whole


# --- estimates -----------------------------------------------------------------------------------


def test_a_gradient_stage_is_counted_exactly(project: Project) -> None:
    renderer = load_renderer(str(BUNDLED["ptl/tiny"]))
    ask, yes, no = (
        Message("user", "hi"),
        Message("assistant", "hello"),
        Message("assistant", "what"),
    )
    chat = len(renderer.supervised((Message("user", "1+1?"), Message("assistant", "2")))[0])
    pair = sum(len(renderer.supervised((ask, reply))[0]) for reply in (yes, no))
    found = estimates(project)
    sft, dpo = found["sft"], found["dpo"]
    assert sft is not None
    assert dpo is not None
    # Three records, three epochs, the last token of each is not read; the test record is read
    # whole, before and after.
    assert (sft.steps, sft.tokens) == (6, 9 * (chat - 1) + 2 * chat)
    assert (sft.exact, sft.at_most) == (True, False)
    # Four pairs: trained, read by the loss and by the reference; nll once more, after.
    assert (dpo.steps, dpo.tokens) == (2, 4 * (2 * (pair - 2) + pair) + chat)
    assert dpo.unknown == []


def test_max_steps_and_length_bound_the_count(project: Project) -> None:
    longer = estimates(project, RECIPE.replace("epochs: 3", "epochs: 3, max_steps: 2"))["sft"]
    shorter = estimates(project, RECIPE.replace("epochs: 3", "max_steps: 2, max_length: 2"))["sft"]
    assert longer is not None
    assert shorter is not None
    assert shorter.steps == longer.steps == 2
    assert shorter.tokens < longer.tokens


def test_sampling_is_bounded(project: Project) -> None:
    text = RECIPE.replace(
        "[nll]",
        "[{use: exact_match, max_tokens: 7, dataset: {use: jsonl, path: questions.jsonl}}]",
    )
    dpo = estimates(project, text)["dpo"]
    assert dpo is not None
    assert dpo.at_most
    assert costs.describe(dpo, billed=False).startswith("2 steps, at most ")


def test_large_data_are_sampled_and_it_says_so(project: Project) -> None:
    row = {"messages": [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]}
    project.write("chat.jsonl", (json.dumps(row) + "\n") * 1500)
    about, counted = estimates(project)["sft"], estimates(project, whole=True)["sft"]
    assert about is not None
    assert counted is not None
    assert (about.exact, counted.exact) == (False, True)
    assert about.tokens == counted.tokens, "all records are alike"
    assert "about" in costs.describe(about, billed=False)


def test_what_nothing_is_known_of_is_named(project: Project, monkeypatch: Any) -> None:
    from posttrain_recipes.methods.sft import SFT

    monkeypatch.setattr(SFT, "workload", lambda *_: None)
    sft = estimates(project)["sft"]
    assert sft is not None
    assert sft.unknown == ["training"]
    assert "28 tokens, training not counted" in costs.describe(sft, billed=True)


def test_time_is_from_what_the_engine_did_before(project: Project) -> None:
    plan = project.plan(RECIPE)
    record = new_record(plan, "demo-1")
    assert all(e is not None and e.seconds is None for e in estimates(project).values())
    for kept in record.stages:
        kept.training, kept.evaluation = Spent(10.0, train=100), Spent(1.0, prefill=100)
    changed = RECIPE.replace("epochs: 3", "epochs: 4")
    found = estimates(project, changed, record)["sft"]
    assert found is not None
    assert found.seconds is not None
    evals = 2 * (found.tokens + 12) // 14
    assert math.isclose(found.seconds, 0.1 * (found.tokens - evals) + 0.01 * evals)


def test_a_bound_is_expected_to_be_used_as_far_as_it_was_before(project: Project) -> None:
    text = RECIPE.replace(
        "[nll]",
        "[{use: exact_match, max_tokens: 70, dataset: {use: jsonl, path: questions.jsonl}}]",
    )
    record = new_record(project.plan(text), "demo-1")
    for kept in record.stages:
        kept.training, kept.evaluation = Spent(1.0, train=100), Spent(1.0, prefill=100)
    plain = estimates(project, text, record)["dpo"]
    for kept in record.stages:
        kept.status, kept.estimate = "finished", Estimated(tokens=1000, at_most=True)
    found = estimates(project, text, record)["dpo"]
    assert found is not None
    assert plain is not None
    assert found.at_most
    assert found.tokens == plain.tokens, "a bound stays one"
    assert found.seconds is not None
    assert plain.seconds is not None
    assert found.seconds < 0.5 * plain.seconds, "a fifth was used of the bound on the eval"


def test_what_a_stage_above_measured_is_not_ahead(project: Project) -> None:
    plan = project.plan(RECIPE)
    sft, dpo = plan.stages
    record = new_record(plan, "demo-1")
    kept = record.stages[0]
    kept.status = "finished"

    def ahead(*known: str) -> int:
        kept.after = [Measured("nll", "nll", name, "", {}) for name in known]
        decided = [(sft, Decision("reuse", "", record, kept)), (dpo, Decision("run", ""))]
        estimator = costs.Estimator(plan, pricing.load(project.path))
        found = [estimate for _, _, estimate in estimator.stages(decided)]
        assert found[1] is not None
        return found[1].tokens

    assert ahead(dpo.evals[0].fingerprint) < ahead("another")


def test_a_resumed_stage_has_its_other_steps_ahead(project: Project) -> None:
    plan = project.plan(RECIPE)
    whole = costs.Estimator(plan, pricing.load(project.path)).stage(
        plan.stages[0], Decision("run", "")
    )
    rest = costs.Estimator(plan, pricing.load(project.path)).stage(
        plan.stages[0], Decision("resume", "", done=2)
    )
    assert (whole.steps, rest.steps) == (6, 4)


def test_what_is_reused_takes_nothing_and_what_is_resumed_the_rest(project: Project) -> None:
    from posttrain_recipes.plugin import Resume
    from posttrain_recipes.store import StageRecord

    plan = project.plan(RECIPE)
    estimator = costs.Estimator(plan, pricing.load(project.path))
    kept = StageRecord("sft", "", "sft", resume=Resume(3, "a", "b"))
    half = estimator.stage(plan.stages[0], Decision("resume", "", None, kept))
    whole = costs.Estimator(plan, pricing.load(project.path)).stage(
        plan.stages[0], Decision("run", "")
    )
    assert half.tokens < whole.tokens
    both = [(plan.stages[0], Decision("reuse", ""))]
    assert list(estimator.stages(both)) == [(*both[0], None)]


# --- prices --------------------------------------------------------------------------------------


def test_the_shipped_table_is_dated_and_prices_what_the_recipes_train(tmp_path: Path) -> None:
    prices = pricing.load(tmp_path)
    assert prices.note.startswith("prices of 20")
    price = prices.of("Qwen/Qwen3-8B")
    assert price.usd(Usage(1_000_000, 1_000_000, 1_000_000)) == pytest.approx(0.44 + 0.195 + 0.6)
    assert prices.of("nobody/knows").usd(Usage(train=1)) is None
    assert prices.of("nobody/knows").usd(Usage()) == 0


def test_a_price_that_is_missing_matters_where_it_is_needed(tmp_path: Path) -> None:
    price = pricing.load(tmp_path).of("Qwen/Qwen3.5-9B")
    assert price.usd(Usage(prefill=1_000_000)) == pytest.approx(0.66)
    assert price.usd(Usage(train=1)) is None


TABLE = "date: 2026-01-02\nsource: mine\nmodels: {Qwen/Qwen3-8B: {train: 9}, x: {sample: 1}}\n"


def test_a_table_of_ones_own_goes_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "prices.yaml").write_text(TABLE)
    prices = pricing.load(tmp_path)
    assert prices.of("Qwen/Qwen3-8B").train == 9
    assert prices.of("x").sample == 1
    assert prices.of("openai/gpt-oss-20b").train is not None
    assert "2026-01-02" in prices.note
    monkeypatch.setenv("PTL_PRICES", str(tmp_path / "other.yaml"))
    with pytest.raises(UsageError, match="cannot be read"):
        pricing.load(tmp_path)


@pytest.mark.parametrize("text", ["models: [", "date: 1", TABLE.replace("train: 9", "train: -9")])
def test_a_table_that_is_wrong_is_said_so(tmp_path: Path, text: str) -> None:
    (tmp_path / "prices.yaml").write_text(text)
    with pytest.raises(UsageError, match="is not as it should be"):
        pricing.load(tmp_path)


def test_money_is_written_as_people_read_it() -> None:
    assert [pricing.show_usd(x) for x in (0, 0.0042, 0.5, 1234.5)] == [
        "$0.00",
        "$0.0042",
        "$0.50",
        "$1,234.50",
    ]
