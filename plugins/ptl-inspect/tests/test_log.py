"""Inspect's log, read as a result: `mixed.json` is the log of `mixed.py`, by Inspect 0.3.285."""

import copy
import json
import math
from pathlib import Path

import pytest
from ptl_inspect import log

from posttrain_recipes.plugin import Message, PtlError

TEXT = (Path(__file__).parent / "mixed.json").read_text()
LOG = log.parse(TEXT)


def test_every_number_is_the_one_that_inspect_reports() -> None:
    found = log.result(LOG, "mixed").metrics
    assert {name: one.value for name, one in found.items()} == {
        "includes/accuracy": 0.5,
        "graded/accuracy": 0.4375,
        "graded/middle": 0.5,
        "long/mean": 0.6750000000000002,
        "polite/mean": 0.25,
    }
    for name, one in found.items():
        assert one.count == 4
        assert name == "graded/middle" or one.low <= one.value <= one.high


def test_epochs_are_reduced_as_inspect_does_and_samples_keep_their_places() -> None:
    scores = log.result(LOG, "mixed").scores
    assert scores["graded/accuracy"].values == (1.0, 0.5, 0.25, 0.0)  # CC, IC, PN, II
    assert scores["long/mean"].values == (1.6, 0.8, 0.1, 0.2)
    assert scores["polite/mean"].values == (1.0, 0.0, 0.0, 0.0)
    shuffled = copy.deepcopy(dict(LOG))
    for reduction in shuffled["reductions"]:
        reduction["samples"].reverse()
    shuffled["samples"].reverse()
    again = log.result(shuffled, "mixed")
    assert again.scores == scores
    assert again.samples[0].answer == "7"
    assert again.samples[0].completion == "It is 7, please."


def test_what_is_no_mean_over_samples_has_no_interval() -> None:
    found = log.result(LOG, "mixed")
    assert math.isnan(found.metrics["graded/middle"].low)
    assert "graded/middle" not in found.scores


def test_where_all_samples_score_alike_a_median_is_still_none() -> None:
    alike = copy.deepcopy(dict(LOG))
    for one in alike["reductions"][1]["samples"]:
        one["value"] = 1.0
    graded = alike["results"]["scores"][1]["metrics"]
    graded["accuracy"]["value"] = graded["middle"]["value"] = 1.0
    found = log.result(alike, "mixed")
    assert found.metrics["graded/accuracy"].low < 1
    assert math.isnan(found.metrics["graded/middle"].low)


def test_a_sample_without_a_score_has_no_value() -> None:
    unscored = copy.deepcopy(dict(LOG))
    del unscored["reductions"][0]["samples"][1]
    unscored["results"]["scores"][0]["metrics"]["accuracy"]["value"] = 2 / 3
    found = log.result(unscored, "mixed")
    assert found.scores["includes/accuracy"].values == (1.0, None, 1.0, 0.0)
    assert found.metrics["includes/accuracy"].count == 3


def test_one_scorer_alone_names_its_metrics_shortly() -> None:
    alone = copy.deepcopy(dict(LOG))
    alone["results"]["scores"] = alone["results"]["scores"][:1]
    found = log.result(alone, "mixed")
    assert list(found.metrics) == ["accuracy"]
    assert found.higher_is_better == {"accuracy": True}


def test_prompts_and_replies_are_shown() -> None:
    samples = log.result(LOG, "mixed").samples
    assert len(samples) == 4
    assert samples[0].prompt == (Message("user", "What is 3 + 4?"),)
    assert [message.role for message in samples[3].prompt] == ["system", "user"]
    assert [sample.truncated for sample in samples] == [False, False, True, False]
    assert samples[1].scores["graded/accuracy"] == 0.5


@pytest.mark.parametrize(
    ("value", "number"),
    [("C", 1), ("I", 0), ("P", 0.5), ("N", 0), ("yes", 1), ("False", 0), ("0.25", 0.25),
     (True, 1), (3, 3), (2.5, 2.5), ("words", None), (math.nan, None), (None, None), ([1], None)],
)  # fmt: skip
def test_values_are_numbers_as_inspect_makes_them(value: object, number: float | None) -> None:
    assert log.number(value) == number


def test_logs_that_tell_of_no_result() -> None:
    failed = {**LOG, "status": "error", "error": {"message": "no such model"}}
    with pytest.raises(PtlError, match="inspect ended with status 'error'") as caught:
        log.parse(json.dumps(failed))
    assert caught.value.why == "no such model"
    with pytest.raises(PtlError, match="cannot be read"):
        log.parse("no log")
    with pytest.raises(PtlError, match="has no metric"):
        log.result({**LOG, "results": None}, "mixed")


def test_tokens_are_those_of_the_evaluated_model() -> None:
    used = {
        LOG["eval"]["model"]: {"input_tokens": 10, "output_tokens": 4},
        "openai/gpt-4o": {"input_tokens": 99, "output_tokens": 99},
    }
    assert log.usage({**LOG, "stats": {"model_usage": used}}) == (10, 4)


def test_what_is_missing_is_told_below_the_table() -> None:
    lacking = copy.deepcopy(dict(LOG))
    del lacking["reductions"][0]["samples"][1]
    lacking["results"]["scores"][0]["metrics"]["accuracy"]["value"] = math.nan
    assert log.result(lacking, "mixed").notes == (
        "Inspect has no score of includes for 1 of 4 samples: intervals and pairs are without "
        "them.",
        "Inspect reports includes/accuracy as nan: left out.",
    )
    assert not log.result(LOG, "mixed").notes


@pytest.mark.parametrize("part", ["samples", "eval"])
def test_a_log_of_another_form_is_told(part: str) -> None:
    with pytest.raises(PtlError, match="cannot be read"):
        log.result({name: value for name, value in LOG.items() if name != part}, "mixed")
    with pytest.raises(PtlError, match="cannot be read"):
        log.parse('{"status": "error", "error": "boom"}')
