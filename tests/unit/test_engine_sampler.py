"""Generation against transformers' own, distributions against theory, seeds, stops, scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from posttrain_recipes.engine.generate import sampler
from posttrain_recipes.engine.generate.batcher import sample
from posttrain_recipes.engine.generate.sampler import pick
from posttrain_recipes.engine.model.base import BaseModel, new_adapter
from posttrain_recipes.engine.model.lora import Snapshot
from posttrain_recipes.engine.train.forward_backward import forward_backward
from posttrain_recipes.engine.wire import (
    AdapterConfig,
    Datum,
    RequestError,
    SampleRequest,
    SampleResult,
    TensorData,
)
from tests.device import DEVICE, base_model, exact, near, noise
from tests.engine_model import EOS, VOCAB, build
from tests.sampling import adapted, ids, model, run, sample_request, tokens


@pytest.fixture(scope="module", params=["decoder", "transformers"])
def base(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> BaseModel:
    return model(tmp_path_factory.mktemp("model"), request.param)


@pytest.fixture(scope="module")
def snapshot(base: BaseModel) -> Snapshot:
    return adapted(base)


def targets(table: Any, sparse: bool = False) -> dict[str, Any]:
    """`target_prompt_logprobs` as the SDK puts it into a request."""
    import tinker

    ids = torch.tensor(table)
    make = tinker.TensorData.from_torch_sparse if sparse else tinker.TensorData.from_torch
    data = make(ids, pad_value=-1) if sparse else make(ids)  # type: ignore[call-arg]
    parts = {"data": np.asarray(data.data).tolist(), "dtype": data.dtype, "shape": data.shape}
    parts["sparse_crow_indices"] = data.sparse_crow_indices
    parts["sparse_col_indices"] = data.sparse_col_indices
    return {"target_prompt_logprobs": TensorData(**parts)}


def logprobs_of(base: BaseModel, prompt: list[int]) -> torch.Tensor:
    """(tokens, V) after each token of a prompt, by transformers."""
    logits = base.model(torch.tensor([prompt], device=base.device)).logits[0]
    return logits.float().log_softmax(-1).cpu()


@exact
def test_greedy_is_what_transformers_generates(base: BaseModel) -> None:
    prompts = [ids(n, n) for n in (3, 20, 7, 20, 1)]
    got = run(base, None, *(sample_request(p, temperature=0) for p in prompts))
    for prompt, result in zip(prompts, got, strict=True):
        out = base.model.generate(
            torch.tensor([prompt], device=base.device),
            do_sample=False,
            max_new_tokens=12,
            eos_token_id=None,
        )
        assert tokens(result) == out[0, len(prompt) :].tolist()


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0, 1.5])
def test_logprobs_agree_with_the_training_forward(
    base: BaseModel, snapshot: Snapshot, temperature: float
) -> None:
    adapter = new_adapter(base, AdapterConfig(rank=4, seed=0))
    adapter.load(snapshot, None)
    prompts = [ids(n, n) for n in (5, 33, 12)]
    requests = [
        sample_request(p, 2, {"prompt_logprobs": True}, temperature=temperature, seed=1)
        for p in prompts
    ]
    for prompt, result in zip(prompts, run(base, snapshot, *requests), strict=True):
        for sequence in result.sequences:
            whole = np.array(prompt + sequence.tokens.tolist())
            datum = Datum(whole[:-1], {"target_tokens": whole[1:]})
            out = forward_backward(base, adapter, [datum], "cross_entropy", {}, True)
            assert result.prompt_logprobs is not None
            sampled = np.concatenate([result.prompt_logprobs[1:], sequence.logprobs])
            np.testing.assert_allclose(sampled, out.logprobs[0], atol=near(1e-4))


@exact
def test_a_merged_adapter_samples_as_the_low_rank_one(base: BaseModel, snapshot: Snapshot) -> None:
    token_ids = torch.tensor([ids(30, 0)], device=base.device)
    logits = []
    for view in (snapshot.factors(), snapshot.merge(base.targets)):
        with base.using(view), torch.no_grad():
            logits.append(base.model(token_ids).logits)
    torch.testing.assert_close(logits[0], logits[1], rtol=near(1e-4), atol=near(1e-4))


@exact
def test_a_seeded_sample_does_not_depend_on_its_company(base: BaseModel) -> None:
    mine = sample_request(ids(9, 1), 3, seed=42)
    (alone,) = run(base, None, mine)
    others = [sample_request(ids(n, n), n, seed=n) for n in (2, 5, 30)]
    crowded = run(base, None, *others, mine)[-1]
    more = run(base, None, sample_request(ids(9, 1), 5, seed=42))[0]
    for i in range(3):
        assert tokens(alone, i) == tokens(crowded, i) == tokens(more, i)
    assert len({tuple(tokens(alone, i)) for i in range(3)}) == 3
    assert tokens(run(base, None, sample_request(ids(9, 1), seed=43))[0]) != tokens(alone)


@exact
def test_a_sequence_that_ends_first_leaves_the_others_as_they_are(base: BaseModel) -> None:
    """It stays in the batch for a while, at the end of its room in the KV cache."""
    asked = [sample_request(ids(30, 1), seed=1, max_tokens=12, stop=[])]
    asked += [sample_request(ids(2, n), seed=n, max_tokens=40, stop=[]) for n in range(9)]
    for one, found in zip(asked, run(base, None, *asked), strict=True):
        assert tokens(found) == tokens(run(base, None, one)[0])


def test_unseeded_samples_differ(base: BaseModel) -> None:
    request = sample_request(ids(9, 1))
    assert tokens(run(base, None, request)[0]) != tokens(run(base, None, request)[0])


@exact
def test_sequences_of_one_batch_end_when_they_end(base: BaseModel) -> None:
    lengths = [1, 17, 3, 9, 2]
    requests = [sample_request(ids(n + 2, n), max_tokens=n, temperature=0) for n in lengths]
    got = run(base, None, *requests)
    assert [len(tokens(r)) for r in got] == lengths
    for request, result in zip(requests, got, strict=True):
        assert tokens(result) == tokens(run(base, None, request)[0])


def test_stops(base: BaseModel) -> None:
    def greedy(**params: Any) -> SampleResult:
        return run(base, None, sample_request(ids(6, 3), temperature=0, **params))[0]

    free = tokens(greedy())
    assert not greedy().sequences[0].stopped
    cut = greedy(stop=[free[4]])
    end = free.index(free[4]) + 1
    assert tokens(cut) == free[:end]  # the token that ended it stays
    assert cut.sequences[0].stopped
    text = base.tokenizer.decode(free[:4])
    by_text = greedy(stop=text[-2:])
    assert base.tokenizer.decode(tokens(by_text)).endswith(text[-2:])
    assert len(tokens(by_text)) <= 4


def test_eos_ends_a_sequence_unless_stop_is_empty(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    (free,) = run(base, None, sample_request(ids(6, 3), temperature=0))
    third = tokens(free)[2]
    monkeypatch.setattr(base.model.generation_config, "eos_token_id", [third, EOS])
    (ended,) = run(base, None, sample_request(ids(6, 3), temperature=0, stop=None))
    assert tokens(ended) == tokens(free)[: tokens(free).index(third) + 1]
    assert ended.sequences[0].stopped
    (again,) = run(base, None, sample_request(ids(6, 3), temperature=0, stop=[]))
    assert tokens(again) == tokens(free)


@exact
def test_scores_of_a_prompt(base: BaseModel) -> None:
    prompt = ids(10, 4)
    with torch.no_grad():
        want = logprobs_of(base, prompt)
    wishes = {"prompt_logprobs": True, "topk_prompt_logprobs": 3, "topk_sample_logprobs": 2}
    for max_tokens in (1, 4):
        (got,) = run(base, None, sample_request(prompt, 2, wishes, max_tokens=max_tokens))
        assert got.prompt_logprobs is not None
        assert got.prompt_topk is not None
        assert np.isnan(got.prompt_logprobs[0])
        np.testing.assert_allclose(
            got.prompt_logprobs[1:], want[range(9), prompt[1:]], atol=near(1e-5)
        )
        top = want[:-1].topk(3)
        np.testing.assert_array_equal(got.prompt_topk.ids[1:], top.indices)
        np.testing.assert_allclose(got.prompt_topk.logprobs[1:], top.values, atol=near(1e-5))
        assert got.prompt_topk.ids[0].tolist() == [0, 0, 0]
        assert all(len(s.tokens) == max_tokens for s in got.sequences)
        first = got.sequences[0].topk
        assert first is not None
        np.testing.assert_allclose(first.logprobs[0], want[-1].topk(2).values, atol=near(1e-5))
    (tail,) = run(
        base, None, sample_request(prompt, 1, {**wishes, "prompt_logprobs_last_n": 3}, max_tokens=1)
    )
    assert tail.prompt_logprobs is not None
    assert np.isnan(tail.prompt_logprobs).sum() == 7


def test_named_targets_are_scored_in_the_layout_they_came_in(base: BaseModel) -> None:
    prompt = ids(10, 4)
    with torch.no_grad():
        want = logprobs_of(base, prompt)
    table = np.full((9, 12), -1)
    table[2, 5], table[7, 0], table[7, 1] = 17, 3, 255
    for sparse in (False, True):
        (got,) = run(base, None, sample_request(prompt, 1, targets(table, sparse), max_tokens=1))
        response = decoded(got)
        found = response.target_prompt_logprobs
        assert (found.sparse_crow_indices is not None) == sparse
        dense = found.to_numpy()
        assert dense.shape == (9, 12)
        for row, column in ((2, 5), (7, 0), (7, 1)):
            right = float(want[row, table[row, column]])
            assert dense[row, column] == pytest.approx(right, abs=near(1e-5))
        assert np.count_nonzero(dense) == 3


def test_alternatives_are_drawn_at_every_position(base: BaseModel) -> None:
    prompt, wishes = ids(6, 4), {"prompt_alt_tokens_k": 50}
    with torch.no_grad():
        want = logprobs_of(base, prompt)
    results = [
        decoded(
            run(base, None, sample_request(prompt, 1, wishes, max_tokens=1, seed=s, temperature=t))[
                0
            ]
        )
        for s, t in ((1, 1.0), (1, 1.0), (2, 1.0), (1, 0.0))
    ]
    drawn, logprobs = ([getattr(r.prompt_alt_tokens, name).to_numpy() for r in results]
                       for name in ("tokens", "logprobs"))  # fmt: skip
    assert drawn[0].shape == logprobs[0].shape == (5, 50)
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (drawn[0] != drawn[2]).any()
    assert all(len(set(row)) > 1 for row in drawn[0].tolist())
    assert (drawn[3] == want[:-1].argmax(-1).numpy()[:, None]).all()
    np.testing.assert_allclose(
        logprobs[0], np.take_along_axis(want[:-1].numpy(), drawn[0], -1), atol=near(1e-5)
    )


def decoded(result: SampleResult) -> Any:
    """As the SDK reads it."""
    from tinker.proto.response_conv import deserialize_sample_response

    return deserialize_sample_response(result.encode()[0])


def test_a_prompt_of_one_token_has_nothing_to_score(base: BaseModel) -> None:
    (got,) = run(base, None, sample_request([5], 1, {"prompt_logprobs": True}, max_tokens=1))
    assert got.prompt_logprobs is not None
    assert np.isnan(got.prompt_logprobs).all()


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, -1, 1.0), (0.5, -1, 1.0), (1.0, 3, 1.0), (2.0, -1, 0.6)],
)
def test_tokens_are_drawn_from_the_distribution_asked_for(
    temperature: float, top_k: int, top_p: float
) -> None:
    draws, logits = 20_000, torch.randn(8, generator=torch.Generator().manual_seed(0)) * 1.5
    probs = np.exp(logits.numpy().astype(float) / temperature)
    probs /= probs.sum()
    order = np.argsort(-probs)
    keep = order[: top_k if top_k > 0 else None]
    kept = probs[keep] / probs[keep].sum()
    keep = keep[np.cumsum(kept) - kept < top_p]
    want = np.zeros(8)
    want[keep] = probs[keep] / probs[keep].sum()
    uniform = np.random.default_rng(0).random(draws)
    chosen, logprobs = pick(
        logits.to(DEVICE).expand(draws, -1),
        [temperature] * draws, [top_k] * draws, [top_p] * draws,
        uniform.tolist(),
    )  # fmt: skip
    seen = np.bincount(chosen, minlength=8)
    assert not seen[want == 0].any()
    expected = want * draws
    chi2 = ((seen - expected)[want > 0] ** 2 / expected[want > 0]).sum()
    assert chi2 < 30  # 7 degrees of freedom: one seed in ten thousand
    assert logprobs[0] == pytest.approx(float(logits.log_softmax(-1)[chosen[0]]), abs=1e-5)


def test_rows_of_a_batch_keep_their_own_settings() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0]] * 3, device=DEVICE)
    chosen, _ = pick(logits, [0.0, 1.0, 1.0], [-1, 1, -1], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0])
    assert chosen == [2, 2, 0]


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (sample_request([]), "empty"),
        (sample_request([1, VOCAB]), "vocabulary"),
        (sample_request([1], max_tokens=0), "max_tokens"),
        (sample_request([1] * 100, max_tokens=100), r"100 \+ 100 > 128"),
        (sample_request([1], temperature=-1.0), "temperature"),
        (sample_request([1], temperature=float("nan")), "temperature"),
        (sample_request([1], top_p=0.0), "top_p"),
        (sample_request([1], stop=[""]), "stop"),
        (sample_request([1], 0), "num_samples"),
        (sample_request([1], 1, {"prompt_alt_tokens_k": -1}), "prompt_alt_tokens_k"),
        (sample_request([1, 2], 1, targets([[1], [1]])), "1 rows"),
        (sample_request([1, 2], 1, targets([[-1]])), "names no token"),
        (sample_request([1, 2], 1, targets([[VOCAB]])), "vocabulary"),
    ],
)
def test_a_request_at_fault_does_not_spoil_the_batch(
    base: BaseModel, bad: SampleRequest, says: str
) -> None:
    good, refused = sample(base, None, [sample_request(ids(4, 0), temperature=0), bad])
    assert isinstance(good, SampleResult)
    with pytest.raises(RequestError, match=says):
        raise refused  # type: ignore[misc]


def test_a_prompt_as_long_as_the_context_can_be_scored(base: BaseModel) -> None:
    (got,) = run(
        base, None, sample_request(ids(128, 0), 1, {"prompt_logprobs": True}, max_tokens=1)
    )
    assert got.prompt_logprobs is not None
    assert np.isfinite(got.prompt_logprobs[1:]).all()


def test_bfloat16_samples_prompts_of_different_lengths(tmp_path: Path) -> None:
    base = base_model(build(tmp_path), dtype=torch.bfloat16)
    assert base.decoder is not None
    adapter = new_adapter(base, AdapterConfig(rank=4, seed=0))
    prompts = [ids(n, n) for n in (5, 33, 12)]
    results = run(base, None, *(sample_request(p, seed=1) for p in prompts))
    for prompt, result in zip(prompts, results, strict=True):
        whole = np.array(prompt + tokens(result))
        datum = Datum(whole[:-1], {"target_tokens": whole[1:]})
        out = forward_backward(base, adapter, [datum], "cross_entropy", {}, True)
        scored = out.logprobs[0][len(prompt) - 1 :]
        np.testing.assert_allclose(result.sequences[0].logprobs, scored, atol=0.25)


def small(kind: str) -> Any:
    import transformers as t

    if kind == "gpt2":  # Conv1D layers, learned positions
        return t.GPT2LMHeadModel(t.GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4))
    size = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2}
    if kind == "mamba":  # no keys and values at all
        return t.MambaForCausalLM(t.MambaConfig(**size, state_size=8))
    size |= {"intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    if kind == "mistral":  # a sliding window
        return t.MistralForCausalLM(t.MistralConfig(**size, sliding_window=8))
    layers = ["conv", "full_attention"]  # states that cannot be rearranged
    return t.Lfm2ForCausalLM(t.Lfm2Config(**size, layer_types=layers))


@exact
@pytest.mark.parametrize("kind", ["gpt2", "mamba", "mistral", "lfm2"])
def test_other_architectures(tmp_path: Path, kind: str) -> None:
    torch.manual_seed(0)
    small(kind).save_pretrained(tmp_path)
    base = base_model(tmp_path, kind)
    adapter = new_adapter(base, AdapterConfig(rank=2, seed=0))
    with torch.no_grad():
        adapter.flat.add_(noise(adapter.flat, 0))
    prompts = [ids(n, n) for n in (12, 3, 12, 7)]
    requests = [sample_request(p, 2, max_tokens=10, temperature=0) for p in prompts]
    for prompt, result in zip(prompts, run(base, adapter.snapshot(), *requests), strict=True):
        whole = np.array(prompt + tokens(result))
        best = np.zeros(len(whole) - 1, int)
        with base.using(adapter.layers), torch.no_grad():
            best[:] = logprobs_of(base, whole[:-1].tolist()).argmax(-1)
        assert tokens(result, 0) == tokens(result, 1) == best[len(prompt) - 1 :].tolist()
        out = forward_backward(
            base, adapter, [Datum(whole[:-1], {"target_tokens": whole[1:]})], "cross_entropy", {},
            False,
        )  # fmt: skip
        np.testing.assert_allclose(
            result.sequences[0].logprobs, out.logprobs[0][len(prompt) - 1 :], atol=near(1e-3)
        )
    assert adapter.grad.any()


@pytest.mark.parametrize("vocab", [5, 128, 129, 300, 1024])
def test_the_cumulated_mass_is_inverted_token_by_token(vocab: int) -> None:
    draw = torch.Generator().manual_seed(vocab)
    mass = torch.rand(64, vocab, generator=draw)
    mass[torch.rand(64, vocab, generator=draw) < 0.7] = 0.0
    mass[:, vocab // 2] = 0.1
    exact = mass.double().cumsum(-1)
    for share in (0.0, 0.3, 0.999, 1.0):
        draws = torch.full((64, 1), share)
        found = sampler._invert(mass, draws)
        assert (mass.gather(-1, found) > 0).all(), "no token without mass is drawn"
        upto, before = exact.gather(-1, found), exact.gather(-1, found) - mass.gather(-1, found)
        at = share * exact[:, -1:]
        assert (before <= at + 1e-4).all()
        assert (at <= upto + 1e-4).all()
