"""Runs on a double of hosted Tinker: what comes with samples is noisy and repeats itself, requests
are turned away, answers are lost. Every preset `full`, with a bundled model and rows of ours in the
places of what it names."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pytest
import tinker
import yaml

from posttrain_recipes import api, models, registry
from posttrain_recipes.errors import PtlError
from posttrain_recipes.language import recipe as recipes
from posttrain_recipes.store import Store
from tests.conftest import ROOT
from tests.e2e.hosted_double import double, rest_of, service_of
from tests.unit.test_full_presets import RECIPES, ROWS, mappings

CI = {"grpo_arithmetic"}
"""The others take minutes together: .ci/nightly runs them."""
SERVED = sorted(
    yaml.safe_load((ROOT / "posttrain_recipes/planning/prices.yaml").read_text())["models"]
)
UNTAUGHT = {"constitutional", "distill_reasoning", "iterative_rlhf", "rlaif"}
"""Recipes a stage of which keeps what a model of 8B writes: of the bundled one it keeps nothing."""
SMALL = {
    "batch_size": 4,
    "group_size": 4,
    "max_tokens": 8,
    "max_length": 512,
    "max_steps": 2,
    "test_size": 4,
}
"""Options of methods and evals, whose `full` are those of hours."""


@pytest.fixture(scope="module")
def hosted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    offered = [f"--model={name}={models.resolve('ptl/nano')}" for name in SERVED]
    home = tmp_path_factory.mktemp("hosted")
    with double(home, *offered, "--sample-only=openai/gpt-oss-120b") as exported:
        yield exported


@pytest.fixture
def service(hosted: dict[str, str]) -> Iterator[tinker.ServiceClient]:
    with service_of(hosted) as service:
        yield service


# --- what it does --------------------------------------------------------------------------------


@pytest.mark.nightly
def test_what_comes_with_samples_is_noisy_and_repeats_itself(service: tinker.ServiceClient) -> None:
    sampler = service.create_sampling_client(base_model="Qwen/Qwen3-8B").result()
    prompt = [5, 6, 7]
    params = tinker.SamplingParams(max_tokens=64, seed=3, stop=[])
    drawn = sampler.sample(tinker.ModelInput.from_ints(prompt), 8, params).result().sequences
    said = [tuple(one.tokens) for one in drawn]
    assert said[0::2] == said[1::2]
    assert len(set(said)) == 4
    gaps: list[float] = []
    for one in drawn[::2]:
        asked = tinker.ModelInput.from_ints([*prompt, *one.tokens])
        read = sampler.compute_logprobs(asked).result()[len(prompt) :]
        gaps += [told - value for told, value in zip(one.logprobs or (), read, strict=True)]
    assert 0.04 < (sum(gap * gap for gap in gaps) / len(gaps)) ** 0.5 < 0.06
    free = tinker.SamplingParams(max_tokens=64, stop=[])
    others = sampler.sample(tinker.ModelInput.from_ints(prompt), 8, free).result().sequences
    assert len({tuple(one.tokens) for one in others}) == 8


@pytest.mark.parametrize(
    ("model", "rank", "words"),
    [
        ("Qwen/Qwen3-8B", 12, "no power of two"),
        ("Qwen/Qwen3-8B", 256, "exceeds max LoRA rank 128"),
        ("openai/gpt-oss-120b", 8, "can be sampled from, and not be trained"),
    ],
)
def test_what_it_does_not_train_it_refuses(
    model: str, rank: int, words: str, service: tinker.ServiceClient
) -> None:
    with pytest.raises(tinker.TinkerError, match=words):
        service.create_lora_training_client(model, rank=rank).result()


def test_it_says_which_models_are_trained(hosted: dict[str, str]) -> None:
    told = rest_of(hosted).get_server_capabilities().result().supported_models
    assert {one.model_name for one in told if not one.trainable} == {"openai/gpt-oss-120b"}
    assert {one.model_name for one in told} == set(SERVED)


# --- runs ----------------------------------------------------------------------------------------


def rows(path: str) -> list[dict[str, Any]]:
    """Rows in the form of a data set of the hub, each with a text of its own."""

    def varied(value: Any, number: int) -> Any:
        if isinstance(value, str):
            return f"{value} {number}" if value and not value.replace(".", "").isdigit() else value
        if isinstance(value, list):
            return [varied(one, number) for one in value]
        if isinstance(value, dict):
            return {k: v if k == "role" else varied(v, number) for k, v in value.items()}
        return value

    row, _ = ROWS[path]
    return [varied(row, number) for number in range(24)]


def options_of(method: str) -> Collection[str]:
    return registry.load().get("method", method).config.model_fields


def stand_in(name: str, folder: Path, hosted: dict[str, str]) -> Path:
    """The preset `full` of a recipe, small."""
    held = recipes.load(ROOT / "recipes" / f"{name}.yaml", preset="full").data
    for file in (ROOT / "recipes").glob("*.py"):
        (folder / file.name).write_bytes(file.read_bytes())
    budgets = set[str]()
    for one in mappings(held):
        if isinstance(one.get("budget"), dict) and "steps" in one["budget"]:
            one["budget"]["steps"] = 2
            budgets |= {stage["name"] for stage in mappings(one) if "method" in stage}
    for one in mappings(held):
        if one.get("use") == "huggingface":
            test = "test" in str(one.get("split"))
            file = folder / f"{one['path'].replace('/', '-')}-{'test' if test else 'train'}.jsonl"
            lines = rows(one["path"])[16:] if test else rows(one["path"])[:16]
            file.write_text("".join(json.dumps(row) + "\n" for row in lines))
            kept = {k: v for k, v in one.items() if k in ("columns", "system")}
            one.clear()
            one.update(use="jsonl", path=str(file), **kept)
        elif one.get("use") == "jsonl":
            one["path"] = str(ROOT / "recipes" / one["path"])
            one["limit"] = 16
        for option, value in SMALL.items():
            if isinstance(one.get(option), int):
                one[option] = min(one[option], value)
        method = one.get("method")
        compared = one.get("name") in budgets
        if isinstance(method, dict) and "max_steps" in options_of(method["use"]) and not compared:
            method["max_steps"] = 2
        if "repeat" in one:
            one["repeat"] = 1
        for word in ("expect", "limits", "presets", "extends"):
            one.pop(word, None)
    held["engine"] = {"use": "tinker", "base_url": hosted["TINKER_BASE_URL"]}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(held, sort_keys=False))
    return path


@pytest.mark.nightly
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(path.stem, marks=() if path.stem in CI else pytest.mark.nightly)
        for path in RECIPES
    ],
)
def test_a_full_preset_runs_for_two_steps(
    name: str, hosted: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for served in SERVED:  # a tokenizer is read from where the model's name leads
        (tmp_path / served).parent.mkdir(exist_ok=True)
        with contextlib.suppress(FileExistsError):
            (tmp_path / served).symlink_to(models.resolve("ptl/nano"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TINKER_API_KEY", hosted["TINKER_API_KEY"])
    with pytest.raises(PtlError) if name in UNTAUGHT else contextlib.nullcontext():
        api.run(stand_in(name, tmp_path, hosted), home=tmp_path / "home")
    (record,) = Store(tmp_path / "home").runs()
    if name in UNTAUGHT:
        assert re.search(r"stage .* left no \w+ records in", str(record.error))
    else:
        assert record.status == "finished", record.error
