"""What lm-eval wrote, read as a result: `recorded/` is of `tasks/`, by lm-eval 0.4.13 itself.

    ptl serve --model ptl/tiny
    OPENAI_API_KEY=... lm_eval run --model local-completions --model_args \
        '{"model": "ptl/tiny", "base_url": "http://127.0.0.1:8765/oai/api/v1/completions",
          "tokenizer": "DIR", "tokenized_requests": true, "max_length": 250}' \
        --tasks sums_both sums_words --include_path tasks --log_samples --output_path recorded

with the parts of results.json that are about the machine left out.
"""

import json
import math
from pathlib import Path

import pytest
from ptl_lm_eval import results

from posttrain_recipes.plugin import Message, PtlError

RECORDED = Path(__file__).parent / "recorded"
RESULTS = (RECORDED / "results_recorded.json").read_text()
SAMPLES = {
    path.stem.removeprefix("samples_").removesuffix("_recorded"): path.read_text()
    for path in RECORDED.glob("samples_*.jsonl")
}


@pytest.fixture
def told() -> results.Told:
    return results.parse(RESULTS, SAMPLES)


def changed(task: str, place: int, **values: object) -> results.Told:
    """What was recorded, with one row of a task otherwise."""
    rows = [json.loads(line) for line in SAMPLES[task].splitlines()]
    rows[place].update(values)
    text = "\n".join(json.dumps(row) for row in rows)
    return results.parse(RESULTS, {**SAMPLES, task: text})


def test_every_number_is_the_one_that_lm_eval_reports(told: results.Told) -> None:
    found = results.result(told, "sums").metrics
    reported = json.loads(RESULTS)["results"]
    assert {name: one.value for name, one in found.items()} == {
        "sums_both/acc": json.loads(RESULTS)["groups"]["sums_both"]["acc,none"],
        "sums_mc/acc": reported["sums_mc"]["acc,none"],
        "sums_mc/acc_norm": reported["sums_mc"]["acc_norm,none"],
        "sums_gen/exact_match/last_number": reported["sums_gen"]["exact_match,last_number"],
        "sums_gen/exact_match/whole": reported["sums_gen"]["exact_match,whole"],
        "sums_words/word_perplexity": reported["sums_words"]["word_perplexity,none"],
    }
    for name, one in found.items():
        if name != "sums_words/word_perplexity":
            assert one.low <= one.value <= one.high
            assert one.count == 4


def test_documents_keep_their_places(told: results.Told) -> None:
    """So that before and after are compared document by document."""
    rows = [json.loads(line) for line in SAMPLES["sums_mc"].splitlines()]
    found = json.loads(RESULTS)
    for task in ("sums_mc", "sums_both"):
        found["results"][task]["acc,none"] = 0.75
    rows[2]["acc"] = 0.0
    shuffled = "\n".join(json.dumps(row) for row in reversed(rows))
    made = results.parse(json.dumps(found), {**SAMPLES, "sums_mc": shuffled})
    scores = results.result(made, "sums").scores
    assert scores["sums_mc/acc"].values == (1.0, 1.0, 0.0, 1.0)
    assert scores["sums_both/acc"].values == (1.0, 1.0, 0.0, 1.0)


def test_what_is_no_mean_over_documents_has_no_interval(told: results.Told) -> None:
    found = results.result(told, "sums")
    perplexity = found.metrics["sums_words/word_perplexity"]
    assert math.isnan(perplexity.low)
    assert math.isnan(perplexity.high)
    assert "sums_words/word_perplexity" not in found.scores
    # Rows that do not add up to what is reported are no reason for an interval either.
    other = results.result(changed("sums_mc", 0, acc=0.0), "sums")
    assert other.metrics["sums_mc/acc"].value == 1.0
    assert math.isnan(other.metrics["sums_mc/acc"].low)
    assert "sums_mc/acc" not in other.scores


def test_directions_are_lm_evals(told: results.Told) -> None:
    better = results.result(told, "sums").higher_is_better
    assert better["sums_mc/acc"] is True
    assert better["sums_words/word_perplexity"] is False


def test_one_task_alone_names_its_metrics_shortly(told: results.Told) -> None:
    found = json.loads(RESULTS)
    alone = {"results": {"sums_mc": found["results"]["sums_mc"]}}
    made = results.parse(json.dumps(alone), {"sums_mc": SAMPLES["sums_mc"]})
    assert list(results.result(made, "sums").metrics) == ["acc", "acc_norm"]


def test_prompts_and_replies_are_shown(told: results.Told) -> None:
    samples = results.result(told, "sums").samples
    assert len(samples) == 12
    [likeliest] = [s for s in samples if s.completion == " The answer is 5."]
    assert likeliest.prompt == (Message("user", "What is 2 + 3?"),)
    assert likeliest.scores == {"sums_mc/acc": 1.0, "sums_mc/acc_norm": 1.0}
    written = [s for s in samples if s.answer == "5" and "sums_gen/exact_match/whole" in s.scores]
    assert len(written) == 1


def test_a_conversation_is_shown_as_one() -> None:
    asked = json.dumps(
        [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi"}]
    )
    made = changed(
        "sums_gen", 0, arguments={"gen_args_0": {"arg_0": [asked], "arg_1": {"until": []}}}
    )
    shown = results.result(made, "sums").samples
    assert (Message("system", "Be short."), Message("user", "Hi")) in [s.prompt for s in shown]


def test_files_of_another_form_are_told() -> None:
    with pytest.raises(PtlError, match="lm-eval's results cannot be read"):
        results.parse("{}", {})
    with pytest.raises(PtlError, match="lm-eval's results cannot be read"):
        results.parse(RESULTS, {"sums_mc": "{}"})
    with pytest.raises(PtlError, match="lm-eval reported no number"):
        results.result(results.parse('{"results": {"a": {"alias": "a"}}}', {}), "sums")


def test_tokens_are_counted_in_what_is_kept(told: results.Told) -> None:
    from posttrain_recipes import models

    read, written = results.usage(told, models.resolve("ptl/tiny"))
    assert read > 4 * 3 * 5
    assert written >= 0
    assert results.usage(told, "/no/such/tokenizer") == (0, 0)


@pytest.mark.parametrize("value", [math.nan, None, "N/A"])
def test_a_number_that_is_none_is_told_below_the_table(value: object) -> None:
    reported = json.loads(RESULTS)
    reported["results"]["sums_mc"]["acc,none"] = value
    found = results.result(results.parse(json.dumps(reported), SAMPLES), "sums")
    assert "sums_mc/acc" not in found.metrics
    assert found.notes == (f"lm-eval reports acc of sums_mc as {value}: left out.",)


def test_documents_without_samples_are_told() -> None:
    kept = "\n".join(SAMPLES["sums_mc"].splitlines()[1:])
    for text, count in (("", 0), (kept, 3)):
        told = results.parse(RESULTS, {**SAMPLES, "sums_mc": text})
        [note] = results.result(told, "sums").notes
        assert f"samples of {count} of the 4 documents of sums_mc" in note
    assert not results.result(results.parse(RESULTS, SAMPLES), "sums").notes


@pytest.mark.parametrize("values", [{"resps": []}, {"arguments": {}}, {"filter": 3, "resps": None}])
def test_samples_of_another_form_are_told(values: dict[str, object]) -> None:
    with pytest.raises(PtlError, match="cannot be read"):
        results.result(changed("sums_gen", 0, **values), "sums")
    with pytest.raises(PtlError, match="cannot be read"):
        results.parse('{"results": null}', SAMPLES)
