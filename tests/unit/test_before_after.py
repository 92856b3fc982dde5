"""What is said of before and after: the same in every table, by the scores of each record."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from posttrain_recipes import store
from posttrain_recipes.context import untold
from posttrain_recipes.evals.nll import NLL
from posttrain_recipes.evals.preference import PreferenceAccuracy
from posttrain_recipes.plugin import Conversation, Eval, EvalContext, Message, Preference
from posttrain_recipes.progress.lines import Lines
from posttrain_recipes.records import EvalResult, PerRecord, Sample
from posttrain_recipes.reporting import comparisons, report, scores
from posttrain_recipes.reporting.comparing import Comparison
from posttrain_recipes.reporting.page import Pages
from posttrain_recipes.store import RunRecord, StageRecord, Store
from posttrain_recipes.tracking.mlruns import results_table
from posttrain_recipes.training.intervals import mean, proportion
from tests.conftest import Project, Ptl, flat
from tests.scripted import ASSISTANT, END, Renderer, spell, wait


def share(name: str, hits: Sequence[float], **more: Any) -> EvalResult:
    return EvalResult(
        {name: proportion(sum(hits), len(hits))}, scores={name: PerRecord(tuple(hits))}, **more
    )


def average(name: str, values: Sequence[float | None], **more: Any) -> EvalResult:
    known = [value for value in values if value is not None]
    return EvalResult({name: mean(known)}, scores={name: PerRecord(tuple(values))}, **more)


def flipped(gained: int, lost: int, right: int, count: int) -> tuple[list[float], list[float]]:
    """Hits before and after."""
    rest = count - gained - lost - right
    return (
        [0.0] * gained + [1.0] * lost + [1.0] * right + [0.0] * rest,
        [1.0] * gained + [0.0] * lost + [1.0] * right + [0.0] * rest,
    )


Found = Mapping[str, tuple[EvalResult, EvalResult]]


def run(home: Path, found: Found, keep: bool = True, run_id: str = "demo-1") -> RunRecord:
    """A run of one stage whose evals, named as their plugins are, found this before and after."""
    stage = StageRecord("sft", "f1", "sft", status="finished", total_steps=3)
    record = RunRecord(
        run_id, "demo", "f0", "m", "local", "mine.yaml", None, 0, {}, "2026-01-01", [stage],
        "finished",
    )  # fmt: skip
    with Store(home).open(record) as directory:
        for name, results in found.items():
            for when, result in zip(("before", "after"), results, strict=True):
                if keep:
                    scores.keep(directory, "sft", name, when, result)
                kept = store.measured(name, name, f"eval {name}", "data", result)
                getattr(stage, when).append(kept)
        directory.save()
    return record


def said(record: RunRecord) -> dict[str, str]:
    return {row.label: row.verdict for row in report.rows(record)}


@pytest.fixture
def home(project: Project) -> Path:
    return project.path / ".ptl"


WORSE = flipped(12, 28, 51, 200)  # 39.5 -> 31.5%, p = .017 in pairs
BETTER = flipped(19, 1, 61, 200)  # 31 -> 40%, p = .00004


def test_every_table_says_the_same(home: Path, ptl: Ptl) -> None:
    before, after = WORSE
    name = "exact_match"
    record = run(home, {name: (share(name, before), share(name, after))})
    (row,) = report.rows(record)
    assert (row.verdict, row.p) == ("worse", pytest.approx(0.01659, abs=1e-5))
    shown = r"39\.5% ±6\.7\W+31\.5% ±6\.4\W+-8\.0 ±6\.3"
    out = io.StringIO()
    Lines(out).table(record)
    pages = Pages(home, record)
    html = re.sub(r"<svg.*?</svg>|<[^>]+>", " ", pages.html(), flags=re.DOTALL)
    for text in (
        ptl("show", "demo-1").out, out.getvalue(), pages.markdown(), report.markdown(record), html,
    ):  # fmt: skip
        assert re.search(shown + r"\W+(0\.017\W+)?worse", text), text
        assert "A change is tested in pairs" in flat(text)
    (told,) = json.loads(ptl("show", "demo-1", "--json").out)["table"]
    assert (told["verdict"], told["p"]) == ("worse", pytest.approx(row.p))
    again = run(home, {name: (share(name, before), share(name, before))}, run_id="demo-2")
    ((_, (table,)),) = Comparison(home, [again, record]).sections
    assert table.cells[1].against == row.tested, "compare tests the same pairs in the same way"


def test_what_is_there_to_be_read_has_no_verdict_and_costs_the_rest_nothing(home: Path) -> None:
    before, after = WORSE
    judged = share("exact_match", before), share("exact_match", after)
    seen = tuple(replace(share("words", values), tested=False) for values in WORSE)
    record = run(home, {"exact_match": judged, "words": (seen[0], seen[1])})
    alone, read = report.rows(record)
    assert (alone.verdict, alone.p) == ("worse", pytest.approx(0.01659, abs=1e-5))
    assert (read.verdict, read.tested) == ("", None)
    assert "Replies to read, not tested: words." in report.notes([alone, read])
    again = run(home, {"exact_match": judged, "words": (seen[0], seen[1])}, run_id="demo-2")
    (_, tables), *_ = Comparison(home, [again, record]).sections
    assert [t.cells[1].against is None for t in tables] == [False, True]


def test_a_share_of_none_or_of_all_has_its_interval_to_one_side(home: Path) -> None:
    none, every = share("exact_match", [0.0] * 8), share("exact_match", [1.0] * 8)
    (row,) = report.rows(run(home, {"exact_match": (none, every)}))
    assert row.before
    assert row.after
    # Wilson: z^2 / (n + z^2) for n = 8.
    assert report.show(row.before, True) == "0.0% +32.4"
    assert report.show(row.after, True) == "100.0% -32.4"
    assert any("goes one way" in text for text in report.notes([row]))


def test_evals_of_one_run_are_adjusted_for_each_other(home: Path) -> None:
    before, after = flipped(12, 28, 51, 200)
    results = share("a", before), share("a", after)
    alone = run(home, {"a": results})
    assert said(alone) == {"a": "worse"}
    assert "adjusted" not in " ".join(report.notes(report.rows(alone)))
    others = {
        name: (share(name, before), share(name, [*after[:-1], 1.0])) for name in ("b", "c", "d")
    }
    found = report.rows(run(home, {"a": results, **others}, run_id="demo-2"))
    assert [row.verdict for row in found] == ["same"] * 4
    assert found[0].p == pytest.approx(4 * 0.01659, abs=1e-4)
    assert "adjusted for the 4 tests of this table (Holm)" in " ".join(report.notes(found))


@pytest.mark.parametrize("good", [True, False, None])
def test_a_metric_is_better_the_way_that_it_declares(home: Path, good: bool | None) -> None:
    before, after = BETTER
    declared = {"higher_is_better": {"x": good}}
    record = run(home, {"x": (share("x", before, **declared), share("x", after, **declared))})
    assert said(record) == {"x": {True: "better", False: "worse", None: "changed"}[good]}
    assert said(Store(home).find("demo-1")) == said(record)


def test_of_what_declares_nothing_the_main_metric_is_better_when_higher(home: Path) -> None:
    before, after = BETTER

    def both(hits: list[float]) -> EvalResult:
        found = [share(name, hits) for name in ("first", "second")]
        return EvalResult(
            {name: e for one in found for name, e in one.metrics.items()},
            scores={name: e for one in found for name, e in one.scores.items()},
        )

    assert said(run(home, {"mine": (both(before), both(after))})) == {
        "mine first": "better",
        "mine second": "changed",
    }


def test_a_mean_over_those_that_succeeded_has_no_verdict(home: Path, ptl: Ptl) -> None:
    """King and queen against king: 3.4 moves over the few that mated, then 6.6 over all."""
    before = average("moves", [3.0, 4.0, *[None] * 98], higher_is_better={"moves": False})
    after = average("moves", [6.0, 7.0] * 50, higher_is_better={"moves": False})
    record = run(home, {"moves": (before, after)})
    assert said(record) == {"moves": ""}
    text = ptl("show", "demo-1").out
    assert "No verdict (not the same records before and after): moves." in flat(text)
    assert "+3" not in text
    assert said(run(home, {"moves": (before, after)}, keep=False, run_id="demo-2")) == {"moves": ""}


def test_one_record_has_no_verdict_and_no_interval_of_no_width(home: Path, ptl: Ptl) -> None:
    run(home, {"x": (average("x", [1.0]), average("x", [9.0]))})
    text = ptl("show", "demo-1").out
    assert re.search(r"1\.000 +9\.000 +\+8\.000 *\n", text), text
    assert "No verdict (fewer than two records): x." in text


def test_a_run_that_kept_no_scores_is_said_to_be_unpaired(home: Path, ptl: Ptl) -> None:
    before, after = WORSE
    strong = flipped(60, 0, 40, 200)
    found = {
        "a": (share("a", before), share("a", after)),
        "b": (share("b", strong[0]), share("b", strong[1])),
    }
    record = run(home, found, keep=False)
    assert said(record) == {"a": "same", "b": "better"}
    for text in (ptl("show", "demo-1").out, Pages(home, record).html(), report.markdown(record)):
        assert "A change is tested unpaired." in flat(text)
        assert "Unpaired, which sees less, because the run kept no scores by record: a, b." in flat(
            text
        )


def test_only_one_side_with_scores_is_unpaired_too(home: Path) -> None:
    """A stage that an older version began, and this one ended."""
    before, after = WORSE
    record = run(home, {"a": (share("a", before), share("a", after))})
    scores.path(home / "runs" / "demo-1", "sft", "a", "before").unlink()
    (row,) = report.rows(record)
    assert row.tested
    assert not row.tested.paired


def test_samples_of_an_older_run_are_enough(home: Path) -> None:
    before, after = WORSE
    record = run(home, {"a": (share("a", before), share("a", after))}, keep=False)
    with Store(home).open(record) as directory:
        for when, hits in (("before", before), ("after", after)):
            found = [Sample((Message("user", "?"),), "", None, {"a": hit}) for hit in hits]
            directory.save_samples("sft", "a", when, tuple(found))
    assert said(record) == {"a": "worse"}


def test_older_runs_are_read_with_the_direction_that_they_had(home: Path) -> None:
    before, after = BETTER
    found = {name: (share(name, before), share(name, after)) for name in ("a", "b")}
    record = run(home, found)
    path = home / "runs" / "demo-1" / "run.json"
    data = json.loads(path.read_text())
    for when in ("before", "after"):
        for measured in data["stages"][0][when]:
            measured["higher_is_better"] = {"b": False} if measured["name"] == "b" else {}
    path.write_text(json.dumps(data))
    assert said(Store(home).find("demo-1")) == {"a": "better", "b": "worse"}
    assert "home" not in data
    assert record.home == home / "runs"


def test_a_reused_stage_has_the_scores_of_the_run_that_it_came_from(home: Path) -> None:
    before, after = WORSE
    run(home, {"a": (share("a", before), share("a", after))}, run_id="older-1")
    record = run(home, {"new": (share("a", before), share("a", after))}, keep=False)
    stage = record.stages[0]
    stage.reused_from, stage.name = "older-1", "renamed"
    for measured in (*stage.before, *stage.after):
        measured.fingerprint = "eval a"
    assert said(record) == {"new a": "worse"}


def test_where_a_judge_abstained_it_is_told(home: Path) -> None:
    values = [[0.1 * i, *[None] * (i == 0)][-1] for i in range(12)]
    later = [None if v is None else v + 1 + 0.1 * (i % 2) for i, v in enumerate(values)]
    later[5] = None

    def judged(found: list[float | None]) -> EvalResult:
        made = average("x", found)
        return EvalResult(made.metrics, scores={"x": PerRecord(tuple(found), abstained=True)})

    record = run(home, {"x": (judged(values), judged(later))})
    assert said(record) == {"x": "better"}
    assert "x: tested on 10 records; 1 have no value before or after." in report.notes(
        report.rows(record)
    )


def test_compare_says_that_seeds_were_not_sampled(home: Path, ptl: Ptl) -> None:
    before, after = WORSE
    for name, hits in (("demo-1", before), ("demo-2", after), ("demo-3", after)):
        run(home, {"a": (share("a", before), share("a", hits))}, run_id=name)
    text = ptl("compare", "demo-1", "demo-2").out
    assert "Seeds were not sampled: training again with another seed may change more" in flat(text)
    assert "demo-1 *" in text
    tied = ptl("compare", "demo-2", "demo-3").out
    assert not re.search(r"demo-\d \*", tied), "two that are shown alike have no star"
    assert "* best" not in tied
    for words in (("show", "demo-1"), ("compare", "demo-1", "demo-2")):
        assert "NaN" not in ptl(*words, "--json").out
    out = home / "page.html"
    ptl("compare", "demo-1", "demo-2", "-o", str(out))
    assert "Seeds were not sampled" in flat(out.read_text())


def test_the_tests_of_a_comparison_are_adjusted_for_each_other(home: Path) -> None:
    before, after = WORSE
    runs = [
        run(home, {n: (share(n, before), share(n, hits)) for n in "abc"}, run_id=f"demo-{number}")
        for number, hits in ((1, before), (2, after))
    ]
    ((_, tables),) = Comparison(home, runs).sections
    assert [table.cells[1].adjusted for table in tables] == [
        pytest.approx(3 * 0.01659, abs=1e-4)
    ] * 3


def test_what_was_not_measured_on_the_same_records_is_not_compared(home: Path) -> None:
    """Nor has it a best: a method's own measurement is on the data of its stage."""
    before, after = WORSE
    runs = []
    for number, hits in ((1, before), (2, after)):
        record = run(home, {"a": (share("a", before), share("a", hits))}, run_id=f"demo-{number}")
        record.stages[0].after[0].fingerprint = "own:a"
        runs.append(record)
    for data, tested in (("one", True), ("other", False)):
        for record, used in zip(runs, ("one", data), strict=True):
            record.stages[0].inputs = {"dataset": {"digest": used}}
        ((_, (table,)),) = Comparison(home, runs).sections
        assert (table.cells[1].against is not None) == tested
        assert table.best == ("demo-1" if tested else "")
        said = "Not tested (another eval or other records): a of demo-2."
        assert (said in comparisons.notes([table])) != tested


# --- what evals keep -----------------------------------------------------------------------------


class Scored(Renderer):
    """A renderer of letters that learns what the assistant said last."""

    def supervised(
        self, messages: Sequence[Message], train_on: str = "last"
    ) -> tuple[list[int], list[float]]:
        tokens, _ = super().supervised(messages)
        start = len(tokens) - 1 - tokens[::-1].index(ASSISTANT)
        weights = [float(i > start and t != END) for i, t in enumerate(tokens)]
        return tokens, weights


class Letters:
    """log p of the letter a is -1, of any other -3."""

    def compute_logprobs(self, prompt: Any) -> Future[list[float | None]]:
        future: Future[list[float | None]] = Future()
        tokens = prompt.to_ints()
        future.set_result([None, *(-1.0 if [t] == spell("a") else -3.0 for t in tokens[1:])])
        return future


def evaluate(made: Eval, records: Sequence[Any]) -> EvalResult:
    context: Any = SimpleNamespace(
        records=records,
        renderer=Scored(),
        sampler=Letters(),
        wait=wait,
        seed=0,
        name="e",
        progress=untold,
    )
    assert set(vars(context)) <= set(EvalContext.__dataclass_fields__)
    return made.evaluate(context)


def asked(text: str) -> tuple[Message, ...]:
    return (Message("user", text),)


def answer(text: str) -> tuple[Message, ...]:
    return (Message("assistant", text),)


def test_nll_keeps_the_loss_and_the_tokens_of_every_record() -> None:
    """Also of one of which nothing is left within the length: the others keep their places."""
    texts = [("q", "aab"), ("far too long a question", "a"), ("q", "bb")]
    records = [Conversation(messages=(*asked(q), *answer(a))) for q, a in texts]
    result = evaluate(NLL(NLL.Config(max_length=12)), records)
    assert result.metrics["nll"].value == pytest.approx(11 / 5)
    assert result.scores == {"nll": PerRecord((5.0, None, 6.0), (3.0, 0.0, 2.0))}
    assert result.higher_is_better == {"nll": False}


def test_preference_accuracy_keeps_what_it_found_of_every_pair() -> None:
    replies = [("a", "b"), ("b", "a"), ("b", "b"), ("aab", "b")]
    records = [
        Preference(prompt=asked("q"), chosen=answer(c), rejected=answer(r)) for c, r in replies
    ]
    result = evaluate(PreferenceAccuracy(PreferenceAccuracy.Config()), records)
    assert result.scores["preference_accuracy"].values == (1.0, 0.0, 0.5, 1.0)
    assert result.scores["margin"].values == pytest.approx((2.0, -2.0, 0.0, 3 - 5 / 3))
    assert result.higher_is_better == {"preference_accuracy": True, "margin": True}
    assert result.metrics["preference_accuracy"].value == 0.625


def test_what_is_not_a_metric_is_not_kept_and_nan_is_read_again(home: Path) -> None:
    result = EvalResult(
        {"x": mean([1.0, math.nan])},
        scores={"x": PerRecord((1.0, math.nan)), "other": PerRecord((1.0,))},
    )
    record = run(home, {"x": (result, result)})
    kept = scores.load(record, record.stages[0], record.stages[0].after[0], "after")
    assert list(kept) == ["x"]
    assert said(record) == {"x": ""}


def test_the_same_reply_is_better_by_the_metric_that_decides(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by the sum with what else was counted."""
    make: Callable[[float, float], Sample] = lambda right, turns: Sample(  # noqa: E731
        asked("?"), f"{right}", None, {"turns": turns, "success": right}
    )
    metrics = {"success": proportion(1, 2), "turns": mean([1.0, 9.0])}
    results = tuple(
        EvalResult(metrics, (make(*one), make(*one)), {"success": True, "turns": None})
        for one in ((1.0, 1.0), (0.0, 9.0))
    )
    record = run(home, {"play": (results[0], results[1])})
    html = Pages(home, record).html()
    assert 'class="reply worse"' in html
    assert 'class="reply better"' not in html


def test_the_page_of_a_stage_in_mlflow_shows_no_interval_that_is_not_known() -> None:
    table = results_table({"x": {"before": mean([1.0]), "after": mean([1.0, 2.0])}})
    assert "| x | **1** | **1.5** [-4.85, 7.85] |" in table
