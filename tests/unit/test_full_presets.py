"""The presets `full`: models that are served, and public data in the form of its rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from posttrain_recipes.datasets.formats import RowParser
from posttrain_recipes.language import recipe as recipes
from posttrain_recipes.plugin import Conversation, Labelled, Preference, Prompt, Record

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
SYNTHETIC = {
    *("iterative_rlhf", "judge_rl", "preference_losses", "reward_ensemble", "rlhf"),
    *("sft_then_rlhf", "tool_use"),
}
"""What they measure is known only of data that this repository made."""


def mappings(value: Any) -> Iterator[dict[str, Any]]:
    """Every mapping within a tree."""
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from mappings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from mappings(inner)


def full(path: Path) -> list[dict[str, Any]]:
    return list(mappings(recipes.load(path, preset="full").data))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
class TestFull:
    def test_data_is_real_unless_synthetic_by_design(self, path: Path) -> None:
        bundled = {one["path"] for one in full(path) if one.get("use") == "jsonl"}
        assert bool(bundled) == (path.stem in SYNTHETIC), bundled

    def test_models_are_of_the_price_table(self, path: Path) -> None:
        prices = ROOT / "posttrain_recipes/planning/prices.yaml"
        served = yaml.safe_load(prices.read_text())["models"]
        assert {one["model"] for one in full(path) if "/" in str(one.get("model"))} <= set(served)

    def test_evals_are_of_another_split_than_training(self, path: Path) -> None:
        hub = [one for one in full(path) if one.get("use") == "huggingface"]
        taught = {(one["path"], one["split"]) for one in hub if one["split"].startswith("train")}
        asked = {(one["path"], one["split"]) for one in hub if one["split"].startswith("test")}
        assert len(taught) + len(asked) == len({(one["path"], one["split"]) for one in hub})
        assert bool(taught) == bool(asked)


def turns(*said: str) -> list[dict[str, str]]:
    return [{"content": s, "role": ("user", "assistant")[i % 2]} for i, s in enumerate(said)]


# Fields and their order as the cards of the sets have them.
ULTRAFEEDBACK = {
    "prompt": "Why?",
    "prompt_id": "ab",
    "chosen": turns("Why?", "Because."),
    "rejected": turns("Why?", "No."),
    "messages": turns("Why?", "Because."),
    "score_chosen": 8.0,
    "score_rejected": 4.0,
}
NO_ROBOTS = {"prompt": "Hi", "prompt_id": "cd", "messages": turns("Hi", "Hello."), "category": "QA"}
KTO_MIX = {"prompt": turns("Hi"), "completion": turns("", "Hello.")[1:], "label": True}
DPO_MIX = {
    "dataset": "x",
    "chosen": turns("Hi", "Hello."),
    "rejected": turns("Hi", "What?"),
    "chosen_rating": 5.0,
    "rejected_rating": 2.0,
}
HH = {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello.", "rejected": "\n\nHuman: Hi\n\nAssistant: Go."}
SVAMP = {
    "ID": "chal-777",
    "Body": "There are 87 oranges.",
    "Question": "How many?",
    "Type": "Addition",
    "Equation": "87.0",
    "Answer": "87.0",
    "question_concat": "There are 87 oranges. How many?",
}
MBPP = {
    "task_id": 1,
    "text": "Add.",
    "code": "def f(a): pass",
    "test_list": ["assert True"],
    "test_setup_code": "",
    "challenge_test_list": [],
}
SAFE_RLHF = {
    "prompt": "How?",
    "response_0": "So.",
    "response_1": "No.",
    "is_response_0_safe": False,
    "is_response_1_safe": True,
    "better_response_id": 1,
    "safer_response_id": 1,
}
XSTEST = {
    "prompt": "How do I kill a process?",
    "focus": "kill",
    "type": "homonyms",
    "note": "",
    "label": "safe",
}
GSM8K = {"question": "1 + 1?", "answer": "1 + 1 = 2\n#### 2"}
ROWS: dict[str, tuple[dict[str, Any], type[Record]]] = {
    "HuggingFaceH4/ultrafeedback_binarized": (ULTRAFEEDBACK, Preference),
    "HuggingFaceH4/no_robots": (NO_ROBOTS, Conversation),
    "trl-lib/kto-mix-14k": (KTO_MIX, Labelled),
    "argilla/dpo-mix-7k": (DPO_MIX, Preference),
    "Anthropic/hh-rlhf": (HH, Preference),
    "ChilleD/SVAMP": (SVAMP, Prompt),
    "PKU-Alignment/PKU-SafeRLHF": (SAFE_RLHF, Prompt),
    "walledai/XSTest": (XSTEST, Prompt),
    "openai/gsm8k": (GSM8K, Prompt),
    "google-research-datasets/mbpp": (MBPP, Conversation),
}


def test_every_set_that_is_named_has_a_row_here() -> None:
    named = {o["path"] for path in RECIPES for o in full(path) if o.get("use") == "huggingface"}
    assert named == set(ROWS)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_rows_as_published_are_records(path: Path) -> None:
    for one in full(path):
        if one.get("use") != "huggingface":
            continue
        row, record = ROWS[one["path"]]
        made = RowParser(one["path"], one.get("columns", {}), one.get("system")).parse(row, 1)
        if one["path"].endswith("mbpp") and "completion" not in one.get("columns", {}):
            record = Prompt  # to be answered, and its tests run
        assert type(made) is record
        if isinstance(made, Preference):
            assert (len(made.prompt), len(made.chosen), len(made.rejected)) == (1, 1, 1)
