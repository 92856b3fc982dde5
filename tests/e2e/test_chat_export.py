"""A checkpoint, talked to with `ptl chat` and taken away with `ptl export`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tinker
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from tinker import types

from posttrain_recipes import models
from posttrain_recipes.cli.chat import chat
from posttrain_recipes.cli.export import export
from posttrain_recipes.engine import launch
from posttrain_recipes.exporting.merged import merge as _merge

NANO = "ptl/nano"
IDS = [5, 6, 7, 8, 9, 10, 11]
WAIT_S = 60.0


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def trained(home: Path) -> tuple[str, np.ndarray]:
    """A checkpoint that says 'yes yes', and the log-probabilities it gives to IDS."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(models.resolve(NANO))
    ask = [{"role": "user", "content": "Well?"}]
    ids = tokenizer.apply_chat_template(ask, add_generation_prompt=True, return_dict=False)
    tokens = [*ids, *tokenizer.encode("yes yes"), tokenizer.eos_token_id]
    weights = [0.0] * (len(ids) - 1) + [1.0] * (len(tokens) - len(ids))
    datum = types.Datum(
        types.ModelInput.from_ints(tokens[:-1]), {"target_tokens": tokens[1:], "weights": weights}
    )
    with (
        launch.start({NANO: models.resolve(NANO)}, home / "engine", home / "log") as engine,
        tinker.ServiceClient(base_url=engine.base_url, api_key=engine.api_key) as service,
    ):
        client = service.create_lora_training_client(NANO, rank=8, seed=0).result()
        for _ in range(15):
            client.forward_backward([datum], "cross_entropy")
            client.optim_step(types.AdamParams(learning_rate=2e-2)).result(WAIT_S)
        probe = types.Datum(types.ModelInput.from_ints(IDS[:-1]), {"target_tokens": IDS[1:]})
        out = client.forward([probe], "cross_entropy").result(WAIT_S).loss_fn_outputs[0]
        path = client.save_weights_for_sampler("final").result(WAIT_S).path
    return path, out["logprobs"].to_numpy()


def logprobs(model: Callable[..., object]) -> np.ndarray:
    with torch.no_grad():
        logits = model(torch.tensor([IDS[:-1]])).logits[0]  # type: ignore[attr-defined]
    found = logits.log_softmax(-1).gather(-1, torch.tensor(IDS[1:])[:, None])[:, 0]
    return found.numpy()


@pytest.mark.parametrize("on_head", [True, False])
def test_a_merged_model_is_tied_and_of_the_dtype_of_its_base(tmp_path: Path, on_head: bool) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    base = models.resolve(NANO)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    layers = ["q_proj", *(["lm_head"] if on_head else [])]
    made = get_peft_model(model, LoraConfig(r=2, target_modules=layers, init_lora_weights=False))
    made.peft_config["default"].base_model_name_or_path = str(base)
    made.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    for name, dtype in (("own", None), ("full", "float32")):
        _merge(tmp_path / "adapter", tmp_path / name, dtype)
        config = AutoConfig.from_pretrained(tmp_path / name)
        assert config.tie_word_embeddings is not on_head
        kept = load_file(tmp_path / name / "model.safetensors")
        assert ("lm_head.weight" in kept) is on_head
        want = torch.float32 if dtype else AutoConfig.from_pretrained(base).dtype
        assert {one.dtype for one in kept.values()} == {want}


def test_chat_starts_an_engine_on_the_runs_home(home: Path, trained: tuple[str, object]) -> None:
    words = [trained[0], "-p", "Well?", "--temperature", "0", "--home", str(home)]
    result = CliRunner().invoke(chat, words)
    assert (result.exit_code, result.stdout) == (0, "yes yes\n"), result.exception


def test_an_exported_adapter_and_a_merged_model_give_the_engines_logits(
    home: Path, trained: tuple[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    path, want = trained
    for name, more in {
        "adapter": [], "merged": ["--merge", "--dtype", "float32"], "half": ["--merge"]
    }.items():  # fmt: skip
        out = str(tmp_path / name)
        result = CliRunner().invoke(export, [path, out, *more, "--home", str(home)])
        assert result.exit_code == 0, result.exception
    base = AutoModelForCausalLM.from_pretrained(models.resolve(NANO), dtype=torch.float32)
    assert base.config.tie_word_embeddings  # the hard case: the adapter reaches the output layer
    before = logprobs(base)
    np.testing.assert_allclose(
        logprobs(PeftModel.from_pretrained(base, tmp_path / "adapter")), want, atol=1e-4
    )
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    np.testing.assert_allclose(logprobs(merged), want, atol=1e-4)
    assert np.abs(before - want).max() > 0.1
    half = AutoModelForCausalLM.from_pretrained(tmp_path / "half")
    assert half.dtype == torch.bfloat16
    np.testing.assert_allclose(logprobs(half.float()), want, atol=0.1)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert tokenizer.chat_template
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter", "half", "merged"]
