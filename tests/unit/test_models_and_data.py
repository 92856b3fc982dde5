"""The bundled models load and have room to learn; the recipes' data keeps its splits apart."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest

from posttrain_recipes.models import BUNDLED, resolve

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "recipes" / "data"
sys.path.insert(0, str(ROOT / "tools"))

import families  # noqa: E402
import gsm8k_excerpt  # noqa: E402
import make_recipe_data  # noqa: E402
from families import unseen  # noqa: E402
from families.sums import sum_key  # noqa: E402
from families.tone import CURT, POLITE  # noqa: E402
from families.words import DAYS, PLACES, THINGS  # noqa: E402

TRAINING = (
    "chat",
    "noisy",
    "preferences",
    "arithmetic",
    "sums",
    "thumbs",
    "formal",
    "kind_replies",
    "tool_calls",
    "calculations",
    "programs",
    "reversed",
)
HELD_OUT = (
    "held_out",
    "preferences_held_out",
    "arithmetic_held_out",
    "sums_held_out",
    "everyday_held_out",
    "formal_held_out",
    "requests_held_out",
    "calculations_held_out",
    "programs_held_out",
    "reversed_held_out",
)
NEW_FORMS = ("sums_new_forms", "preferences_new_requests", "preferences_new_forms")
"""Asked in forms that no training file has."""


def read(name: str) -> list[dict]:
    return [
        json.loads(line)
        for line in (DATA / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    ]


def prompt_of(row: dict) -> str:
    if "messages" in row:
        return str(row["messages"][0]["content"])
    return str(next(row[name] for name in ("prompt", "question", "text") if name in row))


@pytest.fixture(scope="module")
def stream() -> list[families.Document]:
    """A good sample of what the models were pretrained on."""
    return list(islice(families.documents(seed=0), 40_000))


# --------------------------------------------------------------------------------------------- data


@pytest.mark.parametrize("name", sorted(make_recipe_data.FILES))
def test_the_committed_data_is_what_the_script_writes(name: str) -> None:
    assert read(name) == [row for _, row in make_recipe_data.rows_of(name)]


@pytest.mark.parametrize("name", TRAINING + HELD_OUT)
def test_the_data_lies_in_its_split(name: str) -> None:
    expected = "held_out" if name in HELD_OUT else "recipe"
    keys = [key for key, _ in make_recipe_data.rows_of(name)]
    assert {families.split_of(key) for key in keys} == {expected}


def test_pretraining_recipes_and_measurement_share_no_problem(
    stream: list[families.Document],
) -> None:
    pretrained = {key for doc in stream for key in doc.keys}
    trained = {key for name in TRAINING for key, _ in make_recipe_data.rows_of(name)}
    measured = {key for name in HELD_OUT for key, _ in make_recipe_data.rows_of(name)}
    assert len(pretrained) > 10_000
    assert not pretrained & trained
    assert not pretrained & measured
    assert not trained & measured


def test_no_committed_prompt_was_pretrained_on(stream: list[families.Document]) -> None:
    asked = {text for doc in stream for role, text in doc.turns if role == "user"}
    for name in TRAINING + HELD_OUT:
        assert not asked & {prompt_of(row) for row in read(name)}


def test_the_held_out_prompts_are_in_no_training_file() -> None:
    trained = {prompt_of(row) for name in TRAINING for row in read(name)}
    assert not trained & {prompt_of(row) for name in HELD_OUT for row in read(name)}


WORDS = re.compile(rf"\d+|\b({'|'.join((*THINGS, *PLACES, *DAYS))})\b")


def form(text: str) -> str:
    """A text without its numbers, things, places and days."""
    return WORDS.sub("~", text)


def replies(name: str) -> str:
    return "\n".join(row[side] for row in read(name) for side in ("chosen", "rejected"))


def test_new_forms_are_asked_in_no_form_of_training_or_pretraining(
    stream: list[families.Document],
) -> None:
    known = {form(text) for doc in stream for role, text in doc.turns if role == "user"}
    known |= {form(prompt_of(row)) for name in (*TRAINING, "requests") for row in read(name)}
    for name, forms in zip(NEW_FORMS, (14, 10, 10), strict=True):
        asked = {form(prompt_of(row)) for row in read(name)}
        assert len(asked) >= forms
        assert not asked & known, name
    assert {form(prompt_of(row)) for row in read("sums_held_out")} <= known, "those share them"
    assert {form(prompt_of(row)) for row in read("preferences_held_out")} <= known


def test_new_sums_are_of_the_held_out_split() -> None:
    keys = [key for key, _ in make_recipe_data.rows_of("sums_new_forms")]
    assert {families.split_of(key) for key in keys} == {"held_out"}


def test_new_replies_have_no_phrase_of_training_and_those_to_new_requests_no_other(
    stream: list[families.Document],
) -> None:
    known = "\n".join(text for doc in stream for _, text in doc.turns) + replies("preferences")
    known += replies("formal")
    for phrase in (text for tone in (unseen.POLITE, unseen.CURT) for part in tone for text in part):
        assert phrase not in known
        assert phrase in replies("preferences_new_forms")
        assert phrase not in replies("preferences_new_requests")
    for phrase in (text for tone in (POLITE, CURT) for part in tone for text in part):
        assert phrase in replies("preferences_new_requests")
        assert phrase not in replies("preferences_new_forms")


def test_commuted_reversed_and_reasked_problems_share_a_key() -> None:
    assert sum_key(7, "+", 12) == sum_key(12, "+", 7)
    assert sum_key(12, "-", 7) != sum_key(7, "-", 12)
    rng = random.Random(3)
    for _ in range(200):
        problem = families.draw("reversing", "held_out", rng)
        assert problem.key == "rev:" + min(problem.answer, problem.key.removeprefix("rev:"))


@pytest.mark.parametrize("family", families.VERIFIABLE)
def test_a_problem_is_well_formed(family: str) -> None:
    rng = random.Random(1)
    for _ in range(300):
        problem = families.draw(family, "held_out", rng)
        assert problem.question
        assert problem.answer
        assert problem.wrong != problem.answer
        assert problem.worked.endswith(problem.answer)
        if family == "json":
            assert isinstance(json.loads(problem.answer), dict)


@pytest.mark.parametrize(
    ("polite", "rude"), [(POLITE, CURT), (unseen.POLITE, unseen.CURT)], ids=["tone", "unseen"]
)
def test_the_two_tones_are_as_long_and_as_many(
    polite: tuple[tuple[str, ...], ...], rude: tuple[tuple[str, ...], ...]
) -> None:
    for kind, curt in zip(polite, rude, strict=True):
        assert len(kind) == len(curt)
        assert abs(sum(len(t.split()) for t in kind) - sum(len(t.split()) for t in curt)) <= 3


def test_the_excerpt_of_gsm8k_is_the_first_short_rows() -> None:
    long = gsm8k_excerpt.LONGEST
    rows = [{"question": "q" * size, "answer": str(size)} for size in (long, 10, long - 3, 20)]
    lines = [*(json.dumps({**row, "other": 1}) for row in rows), ""]
    assert gsm8k_excerpt.excerpt(lines, 2) == [rows[1], rows[2]]
    with pytest.raises(ValueError, match="3 rows have at most 400 characters; 4 are needed"):
        gsm8k_excerpt.excerpt(lines, 4)


def test_the_excerpt_of_gsm8k_is_as_told_and_asks_nothing_twice() -> None:
    asked: set[str] = set()
    for name, (_, count) in gsm8k_excerpt.FILES.items():
        rows = read(name)
        assert rows == gsm8k_excerpt.excerpt([json.dumps(row) for row in rows], count)
        asked |= {row["question"] for row in rows}
    assert len(asked) == sum(count for _, count in gsm8k_excerpt.FILES.values())
    assert "Copyright (c) 2021 OpenAI" in (DATA / "gsm8k.LICENSE.txt").read_text()


def test_the_data_is_small() -> None:
    assert sum(path.stat().st_size for path in DATA.glob("*.jsonl")) < 3_400_000


# ------------------------------------------------------------------------------------------- models


def test_naming_a_model_loads_no_framework() -> None:
    code = (
        "import sys, posttrain_recipes.models; print({'torch', 'transformers'} & set(sys.modules))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert out.stdout.strip() == "set()"


def test_resolve_leaves_other_names_alone() -> None:
    assert resolve("ptl/tiny") == str(BUNDLED["ptl/tiny"])
    assert resolve("Qwen/Qwen3-8B") == "Qwen/Qwen3-8B"


def test_the_models_are_small() -> None:
    files = [p for d in BUNDLED.values() for p in d.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) < 8_000_000


@pytest.mark.parametrize("name", sorted(BUNDLED))
def test_the_tokenizer_takes_any_text(name: str) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(resolve(name))
    for text in (
        "What is 12 + 34?",
        "Grüße, 你好 \u0000 👋\n\t",
        '{"name": "Anna"}',
        "  two  spaces ",
    ):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode("1234567890")) == 10
    assert len(tokenizer.encode("BANANA")) == 6
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token == "<|endoftext|>"
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    whole = tokenizer.apply_chat_template(turns, tokenize=False)
    assert whole == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyo<|im_end|>\n"
    opened = tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
    assert opened == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.encode(whole).count(tokenizer.eos_token_id) == 2


def test_both_models_share_a_tokenizer() -> None:
    assert len({(d / "tokenizer.json").read_bytes() for d in BUNDLED.values()}) == 1


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("name", "least", "most"), [("ptl/tiny", 2_000_000, 3_000_000), ("ptl/nano", 300_000, 700_000)]
)
def test_a_model_knows_more_than_it_shows(name: str, least: int, most: int) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(resolve(name), padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(resolve(name), dtype=torch.float32)
    assert least < model.num_parameters() < most
    assert model.config.tie_word_embeddings
    rows = read("held_out")
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": row["prompt"]}], tokenize=False, add_generation_prompt=True
        )
        for row in rows
    ]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        said = model.generate(**batch, max_new_tokens=40, do_sample=False)
    replies = tokenizer.batch_decode(
        said[:, batch["input_ids"].shape[1] :], skip_special_tokens=True
    )
    strict = sum(r == row["answer"] for r, row in zip(replies, rows, strict=True)) / len(rows)
    loose = sum(row["answer"] in r for r, row in zip(replies, rows, strict=True)) / len(rows)
    assert 0.15 < strict < 0.65
    assert loose > strict
