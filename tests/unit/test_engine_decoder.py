"""The engine's own decoder against transformers, over its passes and what they leave out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as t

from posttrain_recipes.engine.generate.batcher import sample
from posttrain_recipes.engine.model import base as model_base
from posttrain_recipes.engine.model import precision
from posttrain_recipes.engine.model.base import BaseModel, new_adapter
from posttrain_recipes.engine.model.decoder import Decoder
from posttrain_recipes.engine.model.lora import Adapter
from posttrain_recipes.engine.model.packing import Packing, wide_dtype
from posttrain_recipes.engine.train.forward_backward import forward_backward
from posttrain_recipes.engine.wire import (
    AdapterConfig,
    Datum,
    ForwardBackwardResult,
    RequestError,
)
from tests.device import base_model, close, near, noise, on_cpu
from tests.sampling import sample_request

VOCAB = 60
SIZE = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48}
SIZE |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0}
LLAMA3 |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 32}


def build(kind: str) -> Any:
    torch.manual_seed(0)
    models = {
        "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**SIZE, rope_parameters=LLAMA3)),
        "qwen2": lambda: t.Qwen2ForCausalLM(t.Qwen2Config(**SIZE)),  # biases
        "qwen3": lambda: t.Qwen3ForCausalLM(t.Qwen3Config(**SIZE, head_dim=16)),  # norms of heads
        "mistral": lambda: t.MistralForCausalLM(t.MistralConfig(**SIZE, sliding_window=None)),
        "window": lambda: t.MistralForCausalLM(t.MistralConfig(**SIZE, sliding_window=8)),
        "gemma2": lambda: t.Gemma2ForCausalLM(t.Gemma2Config(**SIZE, head_dim=8)),
        "granite": lambda: t.GraniteForCausalLM(t.GraniteConfig(**SIZE, logits_scaling=4.0)),
        "olmo2": lambda: t.Olmo2ForCausalLM(t.Olmo2Config(**SIZE)),  # normalizes after
        "gpt2": lambda: t.GPT2LMHeadModel(
            t.GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4)
        ),
    }
    model = models[kind]()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return model


def load(kind: str, folder: Path) -> BaseModel:
    build(kind).save_pretrained(folder)
    return base_model(folder, kind)


def adapted(base: BaseModel, **config: Any) -> Adapter:
    adapter = new_adapter(base, AdapterConfig(**{"rank": 3, "seed": 0, **config}))
    with torch.no_grad():
        adapter.flat.add_(0.02 * noise(adapter.flat, 1))
    return adapter


def data(sizes: tuple[int, ...]) -> list[Datum]:
    rng = np.random.default_rng(0)
    out = []
    for size in sizes:
        ids = rng.integers(0, VOCAB, size + 1)
        weights = rng.normal(size=size).astype(np.float32)
        weights[: size // 2] = 0.0  # a prompt
        out.append(Datum(ids[:-1], {"target_tokens": ids[1:], "weights": weights}))
    return out


def run(base: BaseModel, adapter: Adapter, items: list[Datum]) -> ForwardBackwardResult:
    adapter.grad.zero_()
    return forward_backward(base, adapter, items, "cross_entropy", {}, False)


def compare(base: BaseModel, adapter: Adapter, items: list[Datum]) -> None:
    assert base.decoder is not None
    mine, grad = run(base, adapter, items), adapter.grad.clone()
    kept, base.decoder = base.decoder, None
    theirs = run(base, adapter, items)
    base.decoder = kept
    for a, b in zip(mine.logprobs, theirs.logprobs, strict=True):
        np.testing.assert_allclose(a, b, atol=near(2e-4))
    scale = float(adapter.grad.abs().max())
    torch.testing.assert_close(grad / scale, adapter.grad / scale, atol=near(2e-4), rtol=0.0)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "mistral"])
def test_packed_passes_give_what_transformers_gives(tmp_path: Path, kind: str) -> None:
    base = load(kind, tmp_path)
    compare(base, adapted(base), data((30, 31, 33, 29, 64)))  # merged: more tokens than hidden
    compare(base, adapted(base), data((7, 2)))  # not merged
    compare(base, adapted(base, train_mlp=False), data((40,) * 4))  # one length: no padding
    compare(base, adapted(base, train_attn=False, train_unembed=False), data((100, 5, 50, 5, 1)))


@pytest.mark.parametrize("kind", ["window", "gemma2", "granite", "olmo2", "gpt2"])
def test_other_models_stay_with_transformers(tmp_path: Path, kind: str) -> None:
    assert load(kind, tmp_path).decoder is None


@pytest.mark.parametrize(("share", "agrees"), [(0.03, True), (0.3, False)])
def test_rounding_of_bfloat16_is_not_taken_for_another_architecture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float, agrees: bool
) -> None:
    """As large as in 24 layers and more, where single logits are far off."""
    model = build("qwen3").to(torch.bfloat16)
    forward = model.forward

    def rounded(*args: Any, **options: Any) -> Any:
        out = forward(*args, **options)
        off = torch.zeros_like(out.logits)
        off[..., 0] = 1.0  # all of the difference in one logit of each token
        out.logits = out.logits + off * (share * out.logits.norm() / off.norm())
        return out

    monkeypatch.setattr(model, "forward", rounded)
    assert (Decoder.of(model) is not None) == agrees


def test_little_memory_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = load("qwen3", tmp_path)
    adapter, items = adapted(base), data((90, 80, 70, 20, 10, 100))
    plenty, grad = run(base, adapter, items), adapter.grad.clone()
    monkeypatch.setitem(
        model_base.LOGITS_BUDGET, base.kind, 1
    )  # logits are computed twice, in parts
    monkeypatch.setitem(
        model_base.ACTIVATIONS_BUDGET, base.kind, 100_000
    )  # a sequence or two at a time
    monkeypatch.setattr(model_base, "MIN_PASS", 1)
    assert sum(len(share) for share in base.shares([90, 80, 70, 20, 10, 100])) > 3
    little = run(base, adapter, items)
    for a, b in zip(plenty.logprobs, little.logprobs, strict=True):
        np.testing.assert_allclose(a, b, atol=near(1e-5))
    close(adapter.grad, grad)


def test_threads_change_the_result_by_rounding_alone_and_always_the_same_way(
    tmp_path: Path,
) -> None:
    base = load("qwen3", tmp_path)
    adapter, items = adapted(base), data((90, 80, 70, 100))
    base.threads = 3
    grads = []
    for _ in range(3):
        run(base, adapter, items)
        grads.append(adapter.grad.clone())
    assert torch.equal(grads[0], grads[1])
    assert torch.equal(grads[0], grads[2])
    base.threads = 1
    run(base, adapter, items)
    close(adapter.grad, grads[0])


def test_an_adapter_that_changes_is_merged_again(tmp_path: Path) -> None:
    base = load("qwen3", tmp_path)
    first, second = adapted(base), adapted(base, seed=5)
    items = data((60, 60))
    before = run(base, first, items).logprobs[0]
    other = run(base, second, items).logprobs[0]
    assert np.abs(before - other).max() > 1e-3
    np.testing.assert_array_equal(run(base, first, items).logprobs[0], before)
    with torch.no_grad():
        first.flat.mul_(1.5)
    assert np.abs(run(base, first, items).logprobs[0] - before).max() > 1e-3


@on_cpu
def test_sampling_multiplies_by_packed_weights_and_training_by_plain_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "PACKED", 1)
    monkeypatch.setattr(precision, "onednn_leads", lambda: True)
    monkeypatch.setattr(precision, "onednn_multiplies_bfloat16", lambda: True)
    for dtype in (torch.float32, torch.bfloat16):
        build("qwen3").to(dtype).save_pretrained(tmp_path)
        base = base_model(tmp_path, "packed", dtype=dtype)
        adapter = adapted(base)
        asked = [
            sample_request([3, index], n=2, max_tokens=12, temperature=0.0, stop=[])
            for index in range(5)
        ]
        weights = [base.sampling_weights(adapter.snapshot()), base.sampling_weights(None)]
        for found in weights:
            blocks = [by for layer in found.layers for by in layer[:4]]
            assert all(by.weight.is_mkldnn for by in (*blocks, found.head))
        plain = base.training_weights(adapter, 1)
        assert not plain.layers[0].qkv.weight.is_mkldnn
        if dtype == torch.bfloat16:  # no adapter is merged: one copy is everybody's
            other = base.sampling_weights(adapted(base, seed=5).snapshot())
            assert other.layers[0].qkv.weight is weights[1].layers[0].qkv.weight
        snapshot = adapter.snapshot()
        mine = sample(base, snapshot, asked)
        with monkeypatch.context() as patch:
            patch.setattr(model_base, "COPY_LIMIT", 0)  # as for a large model
            large = base_model(tmp_path, "large", dtype=dtype)
            assert not large.sampling_weights(None).layers[0].qkv.weight.is_mkldnn
            theirs = sample(large, snapshot, asked)
        tolerance = 1e-4 if dtype == torch.float32 else 0.05
        for one, two in zip(mine, theirs, strict=True):
            assert not isinstance(one, RequestError)
            assert not isinstance(two, RequestError)
            for a, b in zip(one.sequences, two.sequences, strict=True):
                np.testing.assert_allclose(a.logprobs[0], b.logprobs[0], atol=tolerance)


def test_bfloat16_as_on_a_gpu(tmp_path: Path) -> None:
    base = load("qwen3", tmp_path)
    adapter, items = adapted(base), data((40, 30, 50))
    exact, grad = run(base, adapter, items), adapter.grad.clone()
    build("qwen3").to(torch.bfloat16).save_pretrained(tmp_path)
    half = base_model(tmp_path, "half", dtype=torch.bfloat16)
    assert half.decoder is not None
    rough = run(half, adapter, items)
    for a, b in zip(exact.logprobs, rough.logprobs, strict=True):
        np.testing.assert_allclose(a, b, atol=0.1)
    cosine = torch.nn.functional.cosine_similarity(grad, adapter.grad, dim=0)
    assert float(cosine) > 0.99


def test_recomputed_layers_give_the_same_gradient_to_the_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = load("qwen3", tmp_path)
    assert base.decoder is not None
    items, found, again = data((40, 30, 50)), [], []
    plain = Decoder.recomputed

    def recomputed(self: Decoder, tokens: int, budget: int) -> int:
        again.append(plain(self, tokens, budget))
        return again[-1]

    monkeypatch.setattr(Decoder, "recomputed", recomputed)
    for budget in (1 << 30, 0):
        monkeypatch.setattr(BaseModel, "activation_budget", lambda self, passes, b=budget: b)
        adapter = adapted(base)
        logprobs = run(base, adapter, items).logprobs
        found.append([torch.from_numpy(np.concatenate(logprobs)), adapter.grad])
    assert set(again) == {0, len(base.decoder.layers)}
    for whole, part in zip(*found, strict=True):
        assert torch.equal(whole, part)


def test_as_many_layers_are_kept_as_the_budget_holds(tmp_path: Path) -> None:
    decoder = load("qwen3", tmp_path).decoder
    assert decoder is not None
    decoder.layers = decoder.layers * 10
    tokens, layers = 100, len(decoder.layers)
    one = tokens * decoder.kept_per_token()
    wide = torch.finfo(wide_dtype(decoder.embedding)).bits // 8
    inputs = tokens * layers * decoder.hidden * wide
    assert decoder.recomputed(tokens, layers * one) == 0
    for budget in (inputs + one, inputs + 7 * one, layers * one - 1):
        again = decoder.recomputed(tokens, budget)
        held = (layers - again + 1) * one + again * inputs / layers
        assert 0 < again <= layers
        assert held <= budget
        assert held + one > budget - inputs / layers, "one more would not have been within it"
    assert decoder.recomputed(tokens, 0) == layers


@on_cpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_kept_of_a_token_is_what_is_counted(tmp_path: Path, dtype: torch.dtype) -> None:
    for kind in ("llama", "qwen3"):
        build(kind).save_pretrained(tmp_path / kind)
        base = BaseModel(kind, str(tmp_path / kind), torch.device("cpu"), dtype)
        decoder = base.decoder
        assert decoder is not None
        kept: list[Any] = []
        packing = Packing([64], base.device)
        decoder.forward(
            decoder.weights(None, False),
            torch.arange(64, device=base.device) % VOCAB,
            packing,
            kept,
        )
        saved, attended = kept[0]
        tensors = [x for x in saved if x is not None]
        tensors += [x for parts, out in attended for x in (*parts, out)]
        own = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}
        assert sum(own.values()) / 64 == pytest.approx(decoder.kept_per_token(), rel=0.1), kind


def test_bfloat16_samples_with_the_probabilities_that_it_trains_on(tmp_path: Path) -> None:
    """Within 0.02 nats a token: importance ratios of RL are of their difference."""
    build("qwen3").to(torch.bfloat16).save_pretrained(tmp_path)
    base = BaseModel("half", str(tmp_path), torch.device("cpu"), torch.bfloat16)
    assert base.decoder is not None
    assert base.decoder.head.weight.dtype == torch.float32
    adapter = adapted(base)
    prompt = np.arange(1, 9)
    asked = sample_request(prompt.tolist(), n=8, max_tokens=24, seed=1, stop=[])
    [found] = sample(base, adapter.snapshot(), [asked])
    assert not isinstance(found, RequestError)
    for sequence in found.sequences:
        whole = np.concatenate([prompt, sequence.tokens]).astype(np.int64)
        datum = Datum(whole[:-1], {"target_tokens": whole[1:]})
        trained = run(base, adapter, [datum]).logprobs[0][prompt.size - 1 :]
        assert np.abs(trained - sequence.logprobs).mean() < 0.02
