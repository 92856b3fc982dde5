"""Names of weights that a service gives, made those of PEFT: as they are, or by tinker-cookbook."""

from __future__ import annotations

import json
import sys
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from posttrain_recipes import models
from posttrain_recipes.errors import MissingExtraError, PtlError
from posttrain_recipes.exporting import download

NANO = str(models.resolve("ptl/nano"))
PLAIN = "base_model.model.model.layers.0.self_attn.q_proj"


def adapter(folder: Path, *names: str, width: int = 96) -> Path:
    made = folder / "adapter"
    made.mkdir()
    tensors = {}
    for name in names:
        tensors[f"{name}.lora_A.weight"] = np.ones((2, width), np.float32)
        tensors[f"{name}.lora_B.weight"] = np.ones((width, 2), np.float32)
    save_file(tensors, made / "adapter_model.safetensors")
    config = {"r": 2, "lora_alpha": 32, "base_model_name_or_path": "/elsewhere"}
    (made / "adapter_config.json").write_text(json.dumps(config))
    return made


@pytest.mark.parametrize("base", [NANO, "Qwen/Qwen3-8B"])
def test_names_that_are_pefts_stay(tmp_path: Path, base: str) -> None:
    made = adapter(tmp_path, PLAIN, "base_model.model.lm_head")
    download.as_peft(made, base)
    assert f"{PLAIN}.lora_A.weight" in load_file(made / "adapter_model.safetensors")
    assert json.loads((made / "adapter_config.json").read_text())["base_model_name_or_path"] == base


ODD = [
    "base_model.model.model.layers.0.mlp.experts.w1",
    "base_model.model.model.unembed_tokens",
    "base_model.model.model.layers.0.linear_attn.in_proj_qkv",
]


@pytest.mark.parametrize("name", ODD)
def test_other_names_need_tinker_cookbook(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tinker_cookbook", None)
    made = adapter(tmp_path, PLAIN, name)
    with pytest.raises(MissingExtraError, match="needs tinker-cookbook"):
        download.as_peft(made, "Qwen/Qwen3.6-35B-A3B")


def test_a_layer_that_the_base_lacks_is_another_name(tmp_path: Path) -> None:
    made = adapter(tmp_path, PLAIN.replace("layers", "language_model.layers"))
    with pytest.raises(PtlError, match=r"has no model\.language_model\.layers\.0\.self_attn"):
        download.as_peft(made, NANO)


def test_what_tinker_cookbook_cannot_name_is_told(tmp_path: Path) -> None:
    made = adapter(tmp_path, "base_model.model.nobody.knows")
    (made / "adapter_config.json").write_text("{}")
    with pytest.raises(PtlError, match="tinker-cookbook cannot make a PEFT adapter"):
        download.as_peft(made, NANO)


def test_tinker_cookbook_names_them(tmp_path: Path) -> None:
    made = adapter(tmp_path, PLAIN, "base_model.model.model.unembed_tokens")
    base = tmp_path / "base"
    base.mkdir()
    names = "model.layers.0.self_attn.q_proj", "model.embed_tokens", "lm_head"
    save_file(
        {f"{name}.weight": np.ones((96, 96), np.float32) for name in names},
        base / "model.safetensors",
    )
    (base / "config.json").write_text(
        json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]})
    )
    download.as_peft(made, str(base))
    found = load_file(made / "adapter_model.safetensors")
    assert "base_model.model.lm_head.lora_A.weight" in found
    assert f"{PLAIN}.lora_B.weight" in found
    assert not [file for file in tmp_path.iterdir() if file.name.startswith("ptl-peft-")]


def done(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "a/../../evil", "."])
def test_a_file_outside_of_the_checkpoint_is_refused(tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    urls = SimpleNamespace(urls={name: "http://127.0.0.1:1/"})
    rest = SimpleNamespace(get_external_weights_urls=lambda uri: done(urls))
    with pytest.raises(PtlError, match="outside of the checkpoint"):
        download._fetch(rest, "tinker://a/external_weights/b", out, lambda future: future.result())
    assert not list(out.iterdir())
