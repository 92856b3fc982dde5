"""Methods of distillation through the real SDK and engine, for two steps each."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

import posttrain_recipes as ptl
from posttrain_recipes.errors import PtlError
from tests import engine_model

pytestmark = pytest.mark.usefixtures("quick_engines")

RULE = """\
def score(sample):
    return float(sample.completion == sample.answer)

def say(sample):
    return None if sample.completion == sample.answer else "Reply with the answer alone."
"""
DATA = Path(__file__).resolve().parents[2] / "recipes" / "data"


def trained(tmp_path: Path, method: str, data: str = "chat", more: str = "") -> ptl.Result:
    """What a stage of two steps came to."""
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "name: pupil\nmodel: ptl/nano\nlora: {rank: 4}\nstages:\n  - name: learn\n"
        f"    dataset: {{use: jsonl, path: {DATA}/{data}.jsonl, limit: 8}}\n"
        f"    method: {{{method}, learning_rate: 1e-3, batch_size: 4, max_tokens: 12}}\n{more}"
    )
    result = ptl.run(path, home=tmp_path / "home")
    assert result.record.stages[0].total_steps == 2
    return result


def found(result: ptl.Result) -> dict[str, list[float]]:
    """Each metric, step by step."""
    return {name: rows["value"].tolist() for name, rows in result.curves.groupby("metric")}


@pytest.mark.parametrize("others", ["data", "teacher"])
def test_gkd_mixes_who_writes(tmp_path: Path, others: str) -> None:
    method = f"use: gkd, teacher: {{model: ptl/tiny}}, others: {others}, top_k: 8"
    metrics = found(trained(tmp_path, method))
    assert 0 < sum(metrics["completions/student_share"]) < 2
    assert all(0 < value < 1 for value in metrics["train/loss"])


def test_gkd_says_that_prompts_have_no_replies(tmp_path: Path) -> None:
    with pytest.raises(PtlError, match="a prompt without a reply to learn from"):
        trained(tmp_path, "use: gkd, teacher: {model: ptl/tiny}", data="requests")


def test_sdpo_learns_from_what_a_function_says(tmp_path: Path) -> None:
    (tmp_path / "rule.py").write_text(RULE)
    reward = '    reward: {use: function, call: "rule:score", feedback: "rule:say"}\n'
    metrics = found(trained(tmp_path, "use: sdpo, group_size: 2", more=reward))
    assert all(value > 0.5 for value in metrics["feedback/learned_share"])
    assert all(value > 0 for value in metrics["train/loss"])


def test_a_teacher_of_another_tokenizer_reads_text(tmp_path: Path) -> None:
    """Of bytes: each token of the student's is a span."""
    folder = engine_model.build(tmp_path / "bytes")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|end|>", model_max_length=128
    )
    fast.chat_template = (
        "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}a:{% endif %}"
    )
    fast.save_pretrained(folder)
    method = "use: distill_on_policy, teacher: {model: ./bytes}, max_length: 120"
    with pytest.raises(PtlError, match="or set 'align: spans'"):
        trained(tmp_path, method)
    metrics = found(trained(tmp_path, f"{method}, align: spans"))
    assert metrics["align/tokens_per_span"] == [1.0, 1.0]
    assert all(value < 0.2 for value in metrics["align/unread_share"])
    assert all(value > 0.5 for value in metrics["kl"])
