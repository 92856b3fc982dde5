"""Ways of naming recipes, data, models and functions that people try, and what they are told."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from posttrain_recipes import models
from posttrain_recipes.cli.validate import validate as command
from posttrain_recipes.datasets.huggingface import HuggingFace
from posttrain_recipes.datasets.jsonl import Jsonl
from posttrain_recipes.errors import PtlError, UsageError
from posttrain_recipes.plugin import Sample
from posttrain_recipes.records import Message
from posttrain_recipes.rewards.function import Function
from posttrain_recipes.tracking.tracker import MlflowTracker
from posttrain_recipes.training.text.chat_template import ChatRenderer, load_renderer
from posttrain_recipes.training.text.examples import tokenize

RECIPE = """
name: r
model: {model}
stages:
  - name: one
    dataset: {{use: jsonl, path: a.jsonl}}
    method: {{use: sft}}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    (tmp_path / "r.yaml").write_text(RECIPE.format(model="ptl/tiny"))
    return tmp_path


def validate(*words: str, stdin: str | None = None) -> Any:
    return CliRunner().invoke(command, [*words], input=stdin, standalone_mode=False)


# --- where a recipe comes from -------------------------------------------------------------------


def test_a_recipe_through_standard_input(folder: Path) -> None:
    text = (folder / "r.yaml").read_text()
    for _ in range(2):
        assert validate("-", stdin=text).output == "-: ok\n"
    wrong = validate("-", stdin=text.replace("sft", "stf"))
    assert wrong.return_value == 2
    assert "-:7:19  stages.one.method" in wrong.output


def test_a_recipe_that_is_missing_is_looked_for_among_recipes(folder: Path) -> None:
    (folder / "recipes.yaml").write_text("services: {db: {image: postgres}}\n")
    told = str(validate("recipe.yaml").output)
    assert "r.yaml" in told.replace("recipe.yaml", "")
    assert "recipes.yaml" not in told
    assert "'ptl init --recipe sft_then_dpo' writes" in validate("recipes/sft_then_dpo.yaml").output


def test_a_recipe_through_a_pipe(folder: Path) -> None:
    """As the shell's `<(...)` makes one, which can be read once."""
    reading, writing = os.pipe()
    os.write(writing, (folder / "r.yaml").read_bytes())
    os.close(writing)
    try:
        done = validate(f"/dev/fd/{reading}")
        assert done.output == f"/dev/fd/{reading}: ok\n"
    finally:
        os.close(reading)


def test_a_recipe_that_is_linked_to_lies_where_it_lies(folder: Path) -> None:
    (folder / "elsewhere").mkdir()
    (folder / "base.yaml").write_text((folder / "r.yaml").read_text())
    (folder / "r.yaml").write_text("extends: base.yaml\n")
    link = folder / "elsewhere" / "link.yaml"
    link.symlink_to(folder / "r.yaml")
    done = validate(str(link))
    assert done.return_value == 0, done.output


def test_a_link_in_a_circle_is_told(folder: Path) -> None:
    (folder / "a.yaml").symlink_to(folder / "b.yaml")
    (folder / "b.yaml").symlink_to(folder / "a.yaml")
    done = validate("a.yaml")
    assert done.return_value == 2
    assert "cannot read a.yaml" in done.output


# --- data ----------------------------------------------------------------------------------------


def test_what_save_to_disk_wrote_is_loaded(folder: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}]
    one = datasets.Dataset.from_list(rows)
    one.save_to_disk(folder / "one")
    datasets.DatasetDict({"train": one.select([0]), "test": one}).save_to_disk(folder / "two")

    def load(path: str, **options: Any) -> list[Any]:
        return list(HuggingFace(HuggingFace.Config(path=path, **options), folder).load())

    assert len(load("one")) == 2
    assert len(load("two")) == 1
    assert [r.messages[0].content for r in load("two", split="test")] == ["a", "c"]
    with pytest.raises(UsageError, match="no split 'tset'") as caught:
        load("two", split="tset")
    assert caught.value.hint == "there is: train, test"
    with pytest.raises(UsageError, match="has no splits"):
        load("one", split="test")
    with pytest.raises(UsageError, match="no part can be named"):
        load("one", split="train[:1]")
    with pytest.raises(UsageError, match="keeps no 'revision'"):
        load("one", revision="main")
    ((_, told),) = Jsonl(Jsonl.Config(path="one"), folder).problems()
    assert told == "'one' was written by save_to_disk; load it with 'use: huggingface'"


# --- models --------------------------------------------------------------------------------------


@pytest.fixture
def model(folder: Path) -> Path:
    shutil.copytree(models.BUNDLED["ptl/nano"], folder / "model")
    return folder / "model"


def test_a_model_without_a_tokenizer(folder: Path, model: Path) -> None:
    for file in model.glob("tokenizer*"):
        file.unlink()
    (folder / "r.yaml").write_text(RECIPE.format(model="./model"))
    done = validate("r.yaml")
    assert done.return_value == 2
    assert "r.yaml:3:8  model\n  there is no tokenizer in this directory; copy" in done.output
    with pytest.raises(PtlError, match="there is no tokenizer in"):
        load_renderer(str(model))


def test_a_tokenizer_with_more_tokens_than_the_model_has(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "vocab_size": 300}))
    renderer = load_renderer(str(model))
    tokens = renderer._tokenizer.encode("Hello world, how are you?", add_special_tokens=False)
    assert max(tokens) >= 300
    said = (Message("user", "Hello world, how are you?"), Message("assistant", "a"))
    with pytest.raises(UsageError, match=r"f:7: .*the model's embedding ends at 299"):
        tokenize(said, renderer, max_length=100, source="f:7")


def test_a_record_that_is_longer_than_the_model_reads(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    short = {**config, "max_position_embeddings": 32}
    (model / "config.json").write_text(json.dumps(short))
    renderer: ChatRenderer = load_renderer(str(model))
    said = (Message("user", "Hi."), Message("assistant", "word " * 40))
    with pytest.raises(UsageError, match=r"f:7: \d+ tokens are more than the model"):
        tokenize(said, renderer, max_length=1000, source="f:7")
    cut = tokenize(said, renderer, max_length=32, truncate=True, source="f:7")
    assert len(cut.tokens) == 32
    with pytest.raises(UsageError, match="leave no room for a reply in the model's context of 32"):
        renderer.prompt((Message("user", "word " * 40),))


# --- functions and tracking ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("async def score(sample):\n    return len(sample.completion)\n", [1, 2]),
        ("async def score(samples):\n    return [0.5 for _ in samples]\n", [0.5, 0.5]),
    ],
)
def test_an_async_reward(folder: Path, code: str, expected: list[float]) -> None:
    (folder / "mine.py").write_text(code)
    reward = Function(Function.Config(call="mine:score"), folder)
    assert list(reward.problems()) == []
    replies = [Sample(prompt=(), completion=text) for text in ("a", "bb")]
    assert list(reward.score(replies)) == expected


def test_async_rewards_of_a_group_run_at_the_same_time(folder: Path) -> None:
    """Each waits until all have begun."""
    (folder / "together.py").write_text(
        "import asyncio\nbegan = []\n"
        "async def score(sample):\n"
        "    began.append(sample)\n"
        "    while len(began) < 3:\n"
        "        await asyncio.sleep(0)\n"
        "    return 1.0\n"
    )
    reward = Function(Function.Config(call="together:score", timeout=20), folder)
    replies = [Sample(prompt=(), completion=str(i)) for i in range(3)]
    assert list(reward.score(replies)) == [1.0] * 3
    assert asyncio.iscoroutinefunction(reward._function)


def test_an_async_reward_that_fails_is_a_reward_that_fails(folder: Path) -> None:
    (folder / "bad.py").write_text("async def score(sample):\n    raise ValueError('no')\n")
    reward = Function(Function.Config(call="bad:score"), folder)
    with pytest.raises(ValueError, match="no"):
        reward.score([Sample(prompt=(), completion="a")])


@pytest.mark.parametrize("uri", ["file:///tmp/runs", "./mlruns"])
def test_a_directory_as_the_store_of_mlflow(
    folder: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from posttrain_recipes.tracking import mlstore

    def refuse(home: Path, experiment: str) -> Any:
        raise RuntimeError("The filesystem tracking backend is in maintenance mode ...")

    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setattr(mlstore, "open_store", refuse)
    tracker = MlflowTracker(folder, experiment="e")
    assert tracker.store() is None
    (told,) = tracker.problems
    assert "so that nothing is tracked" in told
    assert "sqlite:///PATH/mlflow.db" in told


def test_what_comes_after_a_run_names_mlflow_where_it_was_tracked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from posttrain_recipes.progress import lines as progress

    monkeypatch.setattr(progress, "groups", lambda record: [])
    shown = [
        any("ptl ui" in line for line in progress._after(SimpleNamespace(id="a-1", tracking_id=i)))  # type: ignore[arg-type]
        for i in ("x", None)
    ]
    assert shown == [True, False]


# --- addresses -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("engine", "reward"),
    [
        ("{use: server, base_url: 'http://me:hunter2@host:8000'}", ""),
        ("{use: tinker, base_url: 'https://hunter2@host'}", ""),
        ("local", "{use: judge, endpoint: {base_url: 'https://me:hunter2@host/v1', model: m}}"),
    ],
)
def test_a_password_in_an_address_is_refused_and_not_shown(
    folder: Path, engine: str, reward: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINKER_API_KEY", "tml-x")
    (folder / "p.jsonl").write_text('{"prompt": "a"}\n')
    text = RECIPE.format(model="ptl/tiny") + f"engine: {engine}\n"
    if reward:
        text = text.replace("a.jsonl", "p.jsonl").replace("use: sft", "use: grpo")
        text = text.replace("    method:", f"    reward: {reward}\n    method:")
    (folder / "r.yaml").write_text(text)
    done = validate("r.yaml")
    assert done.return_value == 2, done.output
    assert "has a user or a password in it" in done.output
    assert "base_url" in done.output
    assert "hunter2" not in done.output
