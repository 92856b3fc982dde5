"""GGUF files: what is written is what the model was, for llama.cpp, transformers and ptl."""

from __future__ import annotations

import builtins
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from posttrain_recipes import ggufs, pretrained
from posttrain_recipes.errors import MissingExtraError, PtlError
from posttrain_recipes.exporting import gguf, gguf_model
from posttrain_recipes.exporting.gguf_tokens import Words
from posttrain_recipes.options import AS_EVER, RendererConfig
from tests import exported

pytest.importorskip("gguf")
ARCHITECTURES: Mapping[str, Mapping[str, Any]] = {
    "llama": {},
    "llama-biased": {"attention_bias": True, "mlp_bias": True},
    "qwen2": {},
    "qwen3": {},
}


def made(name: str, **more: Any) -> Any:
    return exported.model(name.partition("-")[0], **{**ARCHITECTURES[name], **more})


def write(folder: Path, model: Any, kind: gguf_model.Kind = "f32", **how: Any) -> Path:
    tokenizer = how.pop("tokenizer", None) or exported.tokenizer()
    gguf.write_model(model, tokenizer, folder, kind, "small", how.pop("renderer", AS_EVER))
    return folder / gguf.FILE


def read(file: Path) -> dict[str, np.ndarray]:
    from gguf import GGUFReader, dequantize

    tensors = GGUFReader(str(file)).tensors
    return {one.name: dequantize(one.data, one.tensor_type) for one in tensors}


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("tied", [True, False])
def test_a_written_model_comes_back_weight_by_weight(tmp_path: Path, name: str, tied: bool) -> None:
    model = made(name, tied=tied)
    file = write(tmp_path, model)
    assert ("output.weight" in read(file)) is not tied
    back = pretrained.load_model(str(file), torch.float32)
    want, found = model.state_dict(), back.state_dict()
    assert set(want) == set(found)
    for key, weight in want.items():
        torch.testing.assert_close(found[key], weight, rtol=0, atol=0, msg=key)
    ids = torch.tensor([[5, 6, 7, 8, 9, 250]])
    with torch.no_grad():
        torch.testing.assert_close(back(ids).logits, model(ids).logits, rtol=0, atol=1e-5)
    assert back.config.tie_word_embeddings is tied
    assert back.config.eos_token_id == 2


@pytest.mark.parametrize("names", [("default", "tool_use"), ("default",)])
def test_several_templates_are_written_by_their_names(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    tokenizer = exported.tokenizer()
    own = tokenizer.chat_template
    templates = {name: f"{own}{{# {name} #}}" for name in names}
    tokenizer.chat_template = dict(templates)
    file = write(tmp_path, made("llama"), tokenizer=tokenizer)
    told = ggufs.metadata(str(file))
    assert told["tokenizer.chat_template"] == templates["default"]
    back = ggufs.tokenizer(str(file)).chat_template
    assert (back if isinstance(back, dict) else {"default": back}) == templates
    assert "TEMPLATE" in (tmp_path / "Modelfile").read_text()


def test_llamas_rows_turn_in_pairs_and_others_in_halves(tmp_path: Path) -> None:
    """llama.cpp rotates rows 2 i and 2 i + 1 of a head of Llama, others i and i + size / 2."""
    for name, size in (("llama", 16), ("qwen2", 16), ("qwen3", 32)):
        model = made(name)
        (tmp_path / name).mkdir()
        tensors = read(write(tmp_path / name, model))
        for part, heads in (("q", 4), ("k", 2)):
            weight = model.state_dict()[f"model.layers.1.self_attn.{part}_proj.weight"].numpy()
            kept = tensors[f"blk.1.attn_{part}.weight"]
            for head in range(heads):
                for row in range(size):
                    source = row // 2 + (row % 2) * size // 2 if name == "llama" else row
                    np.testing.assert_array_equal(
                        kept[head * size + row], weight[head * size + source]
                    )


@pytest.mark.parametrize(("kind", "worst"), [("f16", 2**-11), ("q8_0", (0.5 + 127 * 2**-11) / 127)])
def test_small_numbers_are_near_and_norms_exact(
    tmp_path: Path, kind: gguf_model.Kind, worst: float
) -> None:
    model = made("llama", intermediate_size=80)  # rows of 80 fill no blocks of 32
    tensors = read(write(tmp_path, model, kind))
    state = model.state_dict()
    for gg, name in (
        ("token_embd.weight", "model.embed_tokens.weight"),
        ("blk.0.ffn_up.weight", "model.layers.0.mlp.up_proj.weight"),
        ("blk.0.ffn_down.weight", "model.layers.0.mlp.down_proj.weight"),
    ):
        want = state[name].numpy()
        largest = np.abs(want).max(axis=1, keepdims=True)
        assert (np.abs(tensors[gg] - want) <= 1.001 * worst * largest).all()
        assert not np.array_equal(tensors[gg], want)
    norm = state["model.layers.0.input_layernorm.weight"].numpy()
    np.testing.assert_array_equal(tensors["blk.0.attn_norm.weight"], norm)
    kinds = {t: ggufs.metadata(str(tmp_path / gguf.FILE))[t] for t in ("general.file_type",)}
    assert kinds == {"general.file_type": {"f16": 1, "q8_0": 7}[kind]}


def test_the_file_says_what_the_model_and_its_tokenizer_are(tmp_path: Path) -> None:
    tokenizer = exported.tokenizer()
    told = ggufs.metadata(str(write(tmp_path, made("qwen3"), tokenizer=tokenizer)))
    want = {
        "general.architecture": "qwen3", "general.name": "small", "qwen3.block_count": 2,
        "qwen3.context_length": 256, "qwen3.embedding_length": 64, "qwen3.vocab_size": 304,
        "qwen3.feed_forward_length": 96, "qwen3.attention.head_count": 4,
        "qwen3.attention.head_count_kv": 2, "qwen3.attention.key_length": 32,
        "qwen3.attention.value_length": 32, "qwen3.rope.dimension_count": 32,
        "qwen3.rope.freq_base": 10000.0, "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 0, "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": exported.CHATML,
    }  # fmt: skip
    assert {key: told.get(key) for key in want} == want
    tokens, types = told["tokenizer.ggml.tokens"], told["tokenizer.ggml.token_type"]
    assert len(tokens) == len(types) == 304, "a token for each row of the embedding"
    ids = tokenizer.get_vocab()
    assert all(tokens[number] == token for token, number in ids.items())
    assert types[:4] == [3, 3, 3, 1]
    assert types[len(ids)] == 5
    assert tokens[-1] == "[PAD303]"
    assert set(told["tokenizer.ggml.merges"]) <= {f"{a} {b}" for a in tokens for b in tokens}


def test_the_tokenizer_comes_back_with_and_without_its_own_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = exported.tokenizer()
    file = str(write(tmp_path, made("llama"), tokenizer=tokenizer))
    text = "<|im_start|>user\nIt's  12 cats,\tnaïve 你好 <|im_end|>\n"
    for whole in (True, False):
        if not whole:
            told = {k: v for k, v in ggufs.metadata(file).items() if k != ggufs.HUGGING_FACE}
            monkeypatch.setattr(ggufs, "metadata", lambda location, told=told: told)
        back = pretrained.load_tokenizer(file)
        assert back(text).input_ids == tokenizer(text).input_ids
        assert back.decode(back(text).input_ids) == text
        assert (back.eos_token, back.eos_token_id) == ("<|im_end|>", 2)
        assert back.chat_template == exported.CHATML
        assert back.added_tokens_decoder[1].special
    other = {**told, "tokenizer.ggml.pre": "tekken"}
    monkeypatch.setattr(ggufs, "metadata", lambda location: other)
    with pytest.raises(PtlError, match="cannot be loaded") as caught:
        pretrained.load_tokenizer(file)
    assert "'tekken'" in str(caught.value)


def test_rules_that_split_text_are_found_by_what_they_do() -> None:
    from tokenizers import Regex, pre_tokenizers

    for name, splits in ggufs.SPLITS.items():
        own = exported.tokenizer(pre=ggufs.pre_tokenizer(splits))
        words = Words.of(own, 400)
        assert not words.notes, name
    digits = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    assert Words.of(exported.tokenizer(pre=digits), 400).notes == ()
    odd = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("[aeiou]"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    other = exported.tokenizer()
    other._tokenizer.pre_tokenizer = odd
    (note,) = Words.of(other, 400).notes
    assert re.search(r"the nearest, \d+ of \d+ sample texts become other tokens", note)


def test_tokens_without_a_row_are_left_out_and_told(tmp_path: Path) -> None:
    tokenizer = exported.tokenizer()
    tokenizer.add_tokens(["<extra>"])
    number = tokenizer.convert_tokens_to_ids("<extra>")
    told = gguf.write_model(
        made("llama", vocab_size=number), tokenizer, tmp_path, "f16", "small", AS_EVER
    )
    assert told == ["1 tokens without a row in the embedding left out: <extra>"]
    assert told[0] in (tmp_path / "Modelfile").read_text()
    assert len(ggufs.metadata(str(tmp_path / gguf.FILE))["tokenizer.ggml.tokens"]) == number


def test_scaled_positions_are_those_of_transformers() -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    }  # fmt: skip
    config = LlamaConfig(**exported.SMALL, head_dim=128, rope_parameters=rope)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 500000.0 ** -(np.arange(0, 128, 2) / 128)
    factors = gguf_model.rope_factors(config)
    assert factors is not None
    np.testing.assert_allclose(plain / factors, scaled.numpy(), rtol=1e-5)
    assert factors[0] == 1.0
    assert factors[-1] == 8.0


def test_scaled_positions_make_no_base_model_that_would_be_another(tmp_path: Path) -> None:
    rope = {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
    }  # fmt: skip
    file = write(tmp_path, made("llama", rope_parameters=rope))
    assert read(file)["rope_freqs.weight"].shape == (8,)
    with pytest.raises(PtlError, match="cannot be a base model") as caught:
        pretrained.load_model(str(file), torch.float32)
    assert "rope_freqs.weight" in str(caught.value)


@pytest.mark.parametrize(
    ("arch", "config", "says"),
    [
        ("gpt2", {}, "a gpt2 model is not written as GGUF"),
        ("mistral", {}, "a mistral model is not written as GGUF"),
        ("qwen2", {"use_sliding_window": True}, "its attention slides a window"),
        ("llama", {"hidden_act": "gelu"}, "its activation is 'gelu'"),
        ("qwen2", {"head_dim": 32}, "not as wide together"),
        ("qwen3", {"attention_bias": True}, "no place for its model.layers.0.self_attn"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}},
            "its rope scaling is 'yarn'",
        ),
    ],
)  # fmt: skip
def test_what_has_no_form_in_gguf_is_refused(
    tmp_path: Path, arch: str, config: dict[str, Any], says: str
) -> None:
    model = exported.model(arch, **config)
    with pytest.raises(PtlError) as caught:
        write(tmp_path, model)
    assert says in str(caught.value)


def test_a_tokenizer_of_another_kind_is_refused(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words: Any = Tokenizer(models.WordLevel({"a": 0, "<e>": 1}, unk_token="a"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    other = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<e>")
    with pytest.raises(PtlError) as caught:
        write(tmp_path, made("llama"), tokenizer=other)
    assert "byte-level BPE" in str(caught.value)


def test_a_weight_that_float16_cannot_hold_is_told(tmp_path: Path) -> None:
    model = made("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = 1e6
    with pytest.raises(PtlError, match=r"a weight of blk.0.ffn_up.weight is too large"):
        write(tmp_path, model, "f16")


def test_without_the_package_its_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path, model := made("llama"))
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "gguf":
            raise ImportError(name)
        return real(name, *rest)

    ggufs._metadata.cache_clear()
    monkeypatch.setattr(builtins, "__import__", without)
    for call in (lambda: ggufs.metadata(str(file)), lambda: write(tmp_path, model)):
        with pytest.raises(MissingExtraError) as caught:
            call()
        assert "pip install 'posttrain-recipes[gguf]'" in str(caught.value)


def test_the_template_of_training_goes_with_the_file(tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}[{{ m.role }}] {{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}[assistant] {% endif %}"
    )
    file = write(tmp_path, made("llama"), renderer=RendererConfig(chat_template=template))
    assert ggufs.metadata(str(file))["tokenizer.chat_template"] == template
    words = (tmp_path / "Modelfile").read_text()
    assert "[user] {{ .Content }}<|im_end|>" in words
    assert 'PARAMETER stop "<|im_end|>"' in words


PROMPTS = [f"{how} {what}?" for how in ("What is", "Who has", "Where's the", "Is it 12 or")
           for what in ("a cat", "the garden", "mat 3", "naïve", "2 + 2")]  # fmt: skip
NEAR = 1e-3
"""How near the two best logits lie where llama.cpp may take the other one."""


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("kind", ["f32", "f16"])
def test_llama_cpp_says_what_the_engine_says(
    tmp_path: Path, name: str, kind: gguf_model.Kind
) -> None:
    """Greedy, 64 tokens for each of 20 prompts; the engine has the weights that the file has.

    llama.cpp rounds what goes into a product with float16 weights to float16, too: so does the
    model that it is compared with.
    """
    llama_cpp = pytest.importorskip("llama_cpp")
    file = write(tmp_path, made(name), kind)
    model = pretrained.load_model(str(file), torch.float32)
    if kind == "f16":
        for layer in model.modules():
            if isinstance(layer, torch.nn.Linear):
                layer.register_forward_pre_hook(lambda layer, given: (given[0].half().float(),))
    tokenizer = pretrained.load_tokenizer(str(file))
    theirs = llama_cpp.Llama(
        str(file), n_ctx=256, n_threads=1, n_threads_batch=1, verbose=False, type_k=0, type_v=0
    )
    apart = []
    for prompt in PROMPTS:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
        ids = tokenizer(text).input_ids
        assert theirs.tokenize(text.encode(), add_bos=False, special=True) == ids
        ours, gaps = _engine(model, ids, 64)
        said = _llama(llama_cpp, theirs, ids, 64)
        where = next((i for i, (a, b) in enumerate(zip(ours, said, strict=False)) if a != b), None)
        if where is not None:
            apart.append(gaps[where])
    assert all(gap <= NEAR for gap in apart), apart


def _engine(model: Any, ids: list[int], count: int) -> tuple[list[int], list[float]]:
    said: list[int] = []
    gaps: list[float] = []
    past, now = None, torch.tensor([ids])
    with torch.no_grad():
        while len(said) < count and 2 not in said:
            out = model(now, past_key_values=past, use_cache=True)
            past, best = out.past_key_values, out.logits[0, -1].topk(2)
            said.append(int(best.indices[0]))
            gaps.append(float(best.values[0] - best.values[1]))
            now = torch.tensor([said[-1:]])
    return said, gaps


def _llama(llama_cpp: Any, theirs: Any, ids: list[int], count: int) -> list[int]:
    said: list[int] = []
    theirs.reset()
    theirs.eval(ids)
    while len(said) < count and 2 not in said:
        logits = llama_cpp.llama_get_logits_ith(theirs.ctx, -1)
        said.append(int(np.ctypeslib.as_array(logits, shape=(theirs.n_vocab(),)).argmax()))
        theirs.eval(said[-1:])
    return said
