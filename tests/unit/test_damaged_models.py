"""Models whose files are damaged, or do not fit together: refused with what is wrong, whoever loads
them, and never trained or exported with weights that are not there."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from posttrain_recipes import pretrained
from posttrain_recipes.engine.model.base import BaseModel
from posttrain_recipes.engine.wire import RequestError
from posttrain_recipes.errors import PtlError
from posttrain_recipes.exporting import merged
from posttrain_recipes.models import BUNDLED

WEIGHTS = "model.safetensors"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copytree(BUNDLED["ptl/nano"], tmp_path / "model"))


def cut(size: int) -> Callable[[Path], None]:
    return lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:size])


def config(**values: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **values}))

    return edit


def without(name: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        kept = load_file(folder / WEIGHTS)
        assert kept.pop(name) is not None
        save_file(kept, folder / WEIGHTS, {"format": "pt"})

    return edit


CASES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "cut short": (cut(100_000), "incomplete metadata"),
    "empty": (cut(0), "header too small"),
    "another width": (config(vocab_size=2000), r"embed_tokens.weight has the shape \(1024, 96\)"),
    "a layer is missing": (without("model.layers.2.mlp.up_proj.weight"), "lacks weights"),
    "its head is missing": (config(tie_word_embeddings=False), "lacks weights"),
    "no layer is as it says": (config(num_hidden_layers=6), "num_hidden_layers"),
    "gone": (shutil.rmtree, "there is no model in"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_model_that_is_not_whole_is_refused(model: Path, name: str) -> None:
    spoil, why = CASES[name]
    spoil(model)
    with pytest.raises(PtlError) as caught:
        pretrained.load_model(str(model), torch.float32)
    said = str(caught.value)
    assert str(model) in said
    assert re.search(why, said)
    assert caught.value.hint


@pytest.mark.parametrize("name", ["cut short", "a layer is missing", "gone"])
def test_the_engine_says_so(model: Path, name: str) -> None:
    CASES[name][0](model)
    with pytest.raises(RequestError, match="cannot load base model 'mine'") as caught:
        BaseModel("mine", str(model), torch.device("cpu"))
    assert caught.value.status == 404


def test_a_tied_head_is_no_weight_that_is_missing(model: Path) -> None:
    assert "lm_head.weight" not in load_file(model / WEIGHTS)
    assert pretrained.load_model(str(model), torch.float32) is not None


# --- with an adapter -----------------------------------------------------------------------------


@pytest.fixture
def adapter(model: Path, tmp_path: Path) -> Path:
    from peft import LoraConfig, get_peft_model

    base = pretrained.load_model(str(model), torch.float32)
    made = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"]))
    made.peft_config["default"].base_model_name_or_path = str(model)
    made.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize("name", ["cut short", "another width", "gone"])
def test_a_merge_tells_what_is_wrong_with_the_base(model: Path, adapter: Path, name: str) -> None:
    CASES[name][0](model)
    with pytest.raises(PtlError) as caught:
        merged.load(adapter)
    assert str(model) in str(caught.value)


def test_a_base_that_is_another_model_now_is_told(model: Path, adapter: Path) -> None:
    shutil.rmtree(model)
    shutil.copytree(BUNDLED["ptl/tiny"], model)
    with pytest.raises(PtlError, match="cannot be added to the base model") as caught:
        merged.load(adapter)
    assert "size mismatch" in (caught.value.why or "")


@pytest.mark.parametrize(
    "odd", [{"temperature": 0.6, "top_p": 0.9}, {"do_sample": False, "top_k": 5}, {}]
)
def test_how_a_base_is_sampled_from_is_kept_as_it_is(
    model: Path, adapter: Path, tmp_path: Path, odd: dict[str, Any]
) -> None:
    """transformers writes no config that it finds fault with, as those of many models are."""
    file = model / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **odd}))
    merged.merge(adapter, tmp_path / "out", None)
    kept = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert {**kept, "eos_token_id": 2, **odd} == kept
    assert pretrained.load_model(str(tmp_path / "out"), torch.float32).generation_config is not None


@pytest.mark.parametrize("text", ["{", "{}", "[]"])
def test_an_adapter_that_names_no_base_is_told(adapter: Path, text: str) -> None:
    (adapter / "adapter_config.json").write_text(text)
    with pytest.raises(PtlError, match="names no base model"):
        merged.load(adapter)
