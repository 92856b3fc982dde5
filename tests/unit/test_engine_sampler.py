"""Generation against transformers' own, distributions against theory, seeds, stops, scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from posttrain_recipes.engine import lanes, prompts
from posttrain_recipes.engine.backend import BaseModel, new_adapter
from posttrain_recipes.engine.generation import Feed, sample, serve
from posttrain_recipes.engine.lora import Snapshot
from posttrain_recipes.engine.passes import forward_backward
from posttrain_recipes.engine.sampler import pick
from posttrain_recipes.engine.wire import (
    Chunk,
    Datum,
    LoraConfig,
    Prompt,
    RequestError,
    Sample,
    SampleResult,
    SamplingParams,
    TensorData,
)
from tests.engine_model import EOS, VOCAB, build


@pytest.fixture(scope="module", params=["decoder", "transformers"])
def base(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> BaseModel:
    folder = build(tmp_path_factory.mktemp("model"))
    base = BaseModel("test", str(folder), torch.device("cpu"))
    assert base.decoder is not None
    if request.param == "transformers":
        base.decoder = None
    return base


@pytest.fixture(scope="module")
def snapshot(base: BaseModel) -> Snapshot:
    adapter = new_adapter(base, LoraConfig(rank=4, seed=0))
    noise = torch.randn(adapter.flat.shape, generator=torch.Generator().manual_seed(3))
    adapter.flat.add_(0.05 * noise)
    return adapter.snapshot()


def ids(length: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, 256, length).tolist()


def ask(
    prompt: list[int], n: int = 1, request: dict[str, Any] | None = None, **params: Any
) -> Sample:
    params = {"max_tokens": 12, "stop": [], **params}
    chunks = [Chunk(tokens=prompt)]
    return Sample("s", 0, Prompt(chunks), SamplingParams(**params), n, **(request or {}))


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


def run(base: BaseModel, snapshot: Snapshot | None, *asks: Sample) -> list[SampleResult]:
    results = sample(base, snapshot, asks)
    assert all(isinstance(r, SampleResult) for r in results), results
    return results  # type: ignore[return-value]


def tokens(result: SampleResult, i: int = 0) -> list[int]:
    return result.sequences[i].tokens.tolist()


def test_greedy_is_what_transformers_generates(base: BaseModel) -> None:
    prompts = [ids(n, n) for n in (3, 20, 7, 20, 1)]
    got = run(base, None, *(ask(p, temperature=0) for p in prompts))
    for prompt, result in zip(prompts, got, strict=True):
        out = base.model.generate(
            torch.tensor([prompt]), do_sample=False, max_new_tokens=12, eos_token_id=None
        )
        assert tokens(result) == out[0, len(prompt) :].tolist()


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0, 1.5])
def test_logprobs_agree_with_the_training_forward(
    base: BaseModel, snapshot: Snapshot, temperature: float
) -> None:
    adapter = new_adapter(base, LoraConfig(rank=4, seed=0))
    adapter.load(snapshot, None)
    prompts = [ids(n, n) for n in (5, 33, 12)]
    asks = [ask(p, 2, {"prompt_logprobs": True}, temperature=temperature, seed=1) for p in prompts]
    for prompt, result in zip(prompts, run(base, snapshot, *asks), strict=True):
        for sequence in result.sequences:
            whole = np.array(prompt + sequence.tokens.tolist())
            datum = Datum(whole[:-1], {"target_tokens": whole[1:]})
            out = forward_backward(base, adapter, [datum], "cross_entropy", {}, True)
            assert result.prompt_logprobs is not None
            sampled = np.concatenate([result.prompt_logprobs[1:], sequence.logprobs])
            np.testing.assert_allclose(sampled, out.logprobs[0], atol=1e-4)


def test_a_merged_adapter_samples_as_the_low_rank_one(base: BaseModel, snapshot: Snapshot) -> None:
    token_ids = torch.tensor([ids(30, 0)])
    logits = []
    for view in (snapshot.low(), snapshot.merge(base.targets)):
        with base.using(view), torch.no_grad():
            logits.append(base.model(token_ids).logits)
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-4, atol=1e-4)


def test_a_seeded_sample_does_not_depend_on_its_company(base: BaseModel) -> None:
    mine = ask(ids(9, 1), 3, seed=42)
    (alone,) = run(base, None, mine)
    others = [ask(ids(n, n), n, seed=n) for n in (2, 5, 30)]
    crowded = run(base, None, *others, mine)[-1]
    more = run(base, None, ask(ids(9, 1), 5, seed=42))[0]
    for i in range(3):
        assert tokens(alone, i) == tokens(crowded, i) == tokens(more, i)
    assert len({tuple(tokens(alone, i)) for i in range(3)}) == 3
    assert tokens(run(base, None, ask(ids(9, 1), seed=43))[0]) != tokens(alone)


def test_unseeded_samples_differ(base: BaseModel) -> None:
    request = ask(ids(9, 1))
    assert tokens(run(base, None, request)[0]) != tokens(run(base, None, request)[0])


def test_sequences_of_one_batch_end_when_they_end(base: BaseModel) -> None:
    lengths = [1, 17, 3, 9, 2]
    asks = [ask(ids(n + 2, n), max_tokens=n, temperature=0) for n in lengths]
    got = run(base, None, *asks)
    assert [len(tokens(r)) for r in got] == lengths
    for request, result in zip(asks, got, strict=True):
        assert tokens(result) == tokens(run(base, None, request)[0])


class Trickle(Feed):
    """Gives one request at a time, a few tokens apart."""

    def __init__(self, requests: list[Sample], slowly: bool) -> None:
        self.left, self.calls, self.slowly = list(enumerate(requests)), 0, slowly
        self.results: dict[int, Any] = {}
        self.order: list[int] = []

    def take(self) -> list[tuple[Any, Sample]]:
        every = 3 if self.slowly else 1
        due = self.calls % every == 0 and self.left
        self.calls += 1
        return [self.left.pop(0)] if due else []

    def answer(self, ticket: Any, result: Any) -> None:
        self.results[ticket] = result
        self.order.append(ticket)


def test_requests_may_join_a_running_batch(base: BaseModel, snapshot: Snapshot) -> None:
    lengths = [(9, 40), (30, 4), (2, 50), (17, 9), (1, 30), (40, 20)]
    asks = [ask(ids(n, n), 2, max_tokens=m, seed=n) for n, m in lengths]
    feed = Trickle(asks, slowly=base.decoder is None)  # one that looks after every token
    with torch.no_grad():
        serve(base, snapshot, feed)
    assert feed.order[0] == 1  # the short request was answered while the long ones went on
    for index, request in enumerate(asks):
        (alone,) = run(base, snapshot, request)
        for i in range(2):
            assert tokens(feed.results[index], i) == tokens(alone, i)
            np.testing.assert_allclose(
                feed.results[index].sequences[i].logprobs, alone.sequences[i].logprobs, atol=1e-4
            )


class OneByOne(Trickle):
    """Gives one request at a time, the next a moment later."""

    def __init__(self, requests: list[Sample]) -> None:
        super().__init__(requests, slowly=False)

    def wait(self, seconds: float) -> bool:
        assert 0 < seconds < 0.1
        return bool(self.left)


def test_requests_that_are_sent_together_are_read_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = BaseModel("test", str(build(tmp_path)), torch.device("cpu"))
    joined: list[int] = []
    join = lanes.Lanes.join
    monkeypatch.setattr(
        lanes.Lanes, "join", lambda self, rows: (joined.append(len(rows)), join(self, rows))[1]
    )
    asks = [ask(ids(n, n), 2, max_tokens=6, seed=n) for n in (4, 9, 30)]
    feed = OneByOne(asks)
    with torch.no_grad():
        serve(base, None, feed)
    assert joined == [6]
    for index, request in enumerate(asks):
        (alone,) = run(base, None, request)
        assert tokens(feed.results[index]) == tokens(alone)


class Cancelling(Feed):
    """Gives all requests at once, and cancels some of them when it is asked again."""

    def __init__(self, requests: list[Sample], cancelled: set[int]) -> None:
        self.left, self.cancelled = list(enumerate(requests)), cancelled
        self.results: dict[int, Any] = {}

    def take(self) -> list[tuple[Any, Sample]]:
        taken, self.left = self.left, []
        return taken

    def dropped(self) -> list[Any]:
        return [] if self.left else sorted(self.cancelled - self.results.keys())

    def answer(self, ticket: Any, result: Any) -> None:
        self.results[ticket] = result


@pytest.mark.parametrize("cancelled", [{0, 1, 2, 3}, {4, 5}, {0, 2, 4, 5, 6, 7}])
def test_cancelled_requests_leave_and_the_others_go_on(
    base: BaseModel, cancelled: set[int]
) -> None:
    asks = [ask(ids(5 + n, n), 2, max_tokens=40, seed=n) for n in range(8)]
    feed = Cancelling(asks, cancelled)
    with torch.no_grad():
        serve(base, None, feed)
    for index in set(range(8)) - cancelled:
        (alone,) = run(base, None, asks[index])
        assert tokens(feed.results[index]) == tokens(alone)


def noted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each text has that is read from now on."""
    read: list[int] = []
    prefill = prompts.Prompts._prefill

    def counted(self: Any, texts: Any, start: Any) -> Any:
        read.extend(text.size for text in texts)
        return prefill(self, texts, start)

    monkeypatch.setattr(prompts.Prompts, "_prefill", counted)
    return read


def test_a_prompt_is_read_once_however_many_continue_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = BaseModel("test", str(build(tmp_path)), torch.device("cpu"))
    read = noted(monkeypatch)
    long, short = ids(60, 1), ids(5, 2)
    asks = [ask(long, 16, seed=1, max_tokens=30), *(ask(short, seed=n) for n in range(6))]
    asks += [ask(ids(n, n), seed=n) for n in (4, 9)]
    together = run(base, None, *asks)
    assert sorted(read) == [4, 5, 9, 60]
    for request, result in zip(asks, together, strict=True):
        (alone,) = run(base, None, request)
        for i, sequence in enumerate(alone.sequences):
            assert tokens(result, i) == sequence.tokens.tolist()
    (first,) = run(base, None, ask(long, 1, seed=1, max_tokens=30))  # not shared: its own buffers
    assert tokens(first) == tokens(together[0])


def test_what_prompts_begin_with_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = BaseModel("test", str(build(tmp_path)), torch.device("cpu"))
    base.threads = 2
    monkeypatch.setattr(lanes, "LANE_ROWS", 3)  # two lanes
    task, other = ids(50, 1), ids(40, 2)
    texts = [[*task, *ids(n, n)] for n in (3, 8, 5, 5, 11)] + [[*other, *ids(6, 6)], ids(9, 9)]
    asks = [ask(text, 1 + n % 2, seed=n, max_tokens=12) for n, text in enumerate(texts)]
    asks.append(ask(texts[0], 6, seed=20, max_tokens=30))  # enough rows to share all of it
    alone = [run(base, None, request)[0] for request in asks]
    read = noted(monkeypatch)
    together = run(base, None, *asks)
    assert sorted(read) == [3, 5, 8, 9, 11, 46, 50]  # two of 5 are the same text
    for mine, its in zip(together, alone, strict=True):
        for i, sequence in enumerate(its.sequences):
            assert tokens(mine, i) == sequence.tokens.tolist()
            np.testing.assert_allclose(mine.sequences[i].logprobs, sequence.logprobs, atol=1e-4)
    read.clear()
    feed = Trickle([*asks[:5], ask([*task, *ids(4, 4)], seed=3, max_tokens=4)], slowly=False)
    feed.left, later = feed.left[:5], feed.left[5:]
    first = feed.take

    def take() -> list[tuple[Any, Sample]]:  # five at once, the last when they are under way
        if feed.calls == 0:
            feed.calls, taken, feed.left = 1, feed.left, later
            return taken
        return first()

    monkeypatch.setattr(feed, "take", take)
    with torch.no_grad():
        serve(base, None, feed)
    assert sorted(read) == [3, 4, 5, 8, 11, 50]
    (last,) = run(base, None, ask([*task, *ids(4, 4)], seed=3, max_tokens=4))
    assert tokens(feed.results[5]) == tokens(last)


@pytest.mark.parametrize(
    ("texts", "groups"),
    [
        (["aaab", "aaac", "aaad", "aaae"], [(3, 4)]),
        (["aaa", "aaab", "aaac", "aaad"], [(2, 4)]),  # something has to follow in each
        (["aaab", "aaac", "aaad"], [(0, 3)]),  # too few
        (["aaab", "aaac", "aaad", "aaae", "abbb", "abbc", "abbd", "abbe"], [(3, 4), (3, 4)]),
        (["ab", "bc", "cd"], [(0, 1)] * 3),
    ],
)
def test_texts_are_grouped_by_what_they_begin_with(
    monkeypatch: pytest.MonkeyPatch, texts: list[str], groups: list[tuple[int, int]]
) -> None:
    monkeypatch.setattr(prompts, "SHARED_TOKENS", 2)
    found = prompts.alike([np.array([ord(c) for c in text]) for text in reversed(texts)])
    assert [(shared, len(group)) for shared, group in found] == groups


def test_stops(base: BaseModel) -> None:
    def greedy(**params: Any) -> SampleResult:
        return run(base, None, ask(ids(6, 3), temperature=0, **params))[0]

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
    (free,) = run(base, None, ask(ids(6, 3), temperature=0))
    third = tokens(free)[2]
    monkeypatch.setattr(base.model.generation_config, "eos_token_id", [third, EOS])
    (ended,) = run(base, None, ask(ids(6, 3), temperature=0, stop=None))
    assert tokens(ended) == tokens(free)[: tokens(free).index(third) + 1]
    assert ended.sequences[0].stopped
    (again,) = run(base, None, ask(ids(6, 3), temperature=0, stop=[]))
    assert tokens(again) == tokens(free)


def test_scores_of_a_prompt(base: BaseModel) -> None:
    prompt = ids(10, 4)
    with torch.no_grad():
        logits = base.model(torch.tensor([prompt])).logits[0]
    want = logits.log_softmax(-1)
    wishes = {"prompt_logprobs": True, "topk_prompt_logprobs": 3, "topk_sample_logprobs": 2}
    for max_tokens in (1, 4):
        (got,) = run(base, None, ask(prompt, 2, wishes, max_tokens=max_tokens))
        assert got.prompt_logprobs is not None
        assert got.prompt_topk is not None
        assert np.isnan(got.prompt_logprobs[0])
        np.testing.assert_allclose(got.prompt_logprobs[1:], want[range(9), prompt[1:]], atol=1e-5)
        top = want[:-1].topk(3)
        np.testing.assert_array_equal(got.prompt_topk.ids[1:], top.indices)
        np.testing.assert_allclose(got.prompt_topk.logprobs[1:], top.values, atol=1e-5)
        assert got.prompt_topk.ids[0].tolist() == [0, 0, 0]
        assert all(len(s.tokens) == max_tokens for s in got.sequences)
        first = got.sequences[0].topk
        assert first is not None
        np.testing.assert_allclose(first.logprobs[0], want[-1].topk(2).values, atol=1e-5)
    (tail,) = run(base, None, ask(prompt, 1, {**wishes, "prompt_logprobs_last_n": 3}, max_tokens=1))
    assert tail.prompt_logprobs is not None
    assert np.isnan(tail.prompt_logprobs).sum() == 7


def test_named_targets_are_scored_in_the_layout_they_came_in(base: BaseModel) -> None:
    prompt = ids(10, 4)
    with torch.no_grad():
        want = base.model(torch.tensor([prompt])).logits[0].log_softmax(-1)
    table = np.full((9, 12), -1)
    table[2, 5], table[7, 0], table[7, 1] = 17, 3, 255
    for sparse in (False, True):
        (got,) = run(base, None, ask(prompt, 1, targets(table, sparse), max_tokens=1))
        response = decoded(got)
        found = response.target_prompt_logprobs
        assert (found.sparse_crow_indices is not None) == sparse
        dense = found.to_numpy()
        assert dense.shape == (9, 12)
        for row, column in ((2, 5), (7, 0), (7, 1)):
            right = float(want[row, table[row, column]])
            assert dense[row, column] == pytest.approx(right, abs=1e-5)
        assert np.count_nonzero(dense) == 3


def test_alternatives_are_drawn_at_every_position(base: BaseModel) -> None:
    prompt, wishes = ids(6, 4), {"prompt_alt_tokens_k": 50}
    with torch.no_grad():
        want = base.model(torch.tensor([prompt])).logits[0].log_softmax(-1)
    results = [
        decoded(run(base, None, ask(prompt, 1, wishes, max_tokens=1, seed=s, temperature=t))[0])
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
        logprobs[0], np.take_along_axis(want[:-1].numpy(), drawn[0], -1), atol=1e-5
    )


def decoded(result: SampleResult) -> Any:
    """As the SDK reads it."""
    from tinker.proto.response_conv import deserialize_sample_response

    return deserialize_sample_response(result.encode()[0])


def test_a_prompt_of_one_token_has_nothing_to_score(base: BaseModel) -> None:
    (got,) = run(base, None, ask([5], 1, {"prompt_logprobs": True}, max_tokens=1))
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
        logits.expand(draws, -1), [temperature] * draws, [top_k] * draws, [top_p] * draws,
        uniform.tolist(),
    )  # fmt: skip
    seen = np.bincount(chosen, minlength=8)
    assert not seen[want == 0].any()
    expected = want * draws
    chi2 = ((seen - expected)[want > 0] ** 2 / expected[want > 0]).sum()
    assert chi2 < 30  # 7 degrees of freedom: one seed in ten thousand
    assert logprobs[0] == pytest.approx(float(logits.log_softmax(-1)[chosen[0]]), abs=1e-5)


def test_rows_of_a_batch_keep_their_own_settings() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0]] * 3)
    chosen, _ = pick(logits, [0.0, 1.0, 1.0], [-1, 1, -1], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0])
    assert chosen == [2, 2, 0]


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (ask([]), "empty"),
        (ask([1, VOCAB]), "vocabulary"),
        (ask([1], max_tokens=0), "max_tokens"),
        (ask([1] * 100, max_tokens=100), r"100 \+ 100 > 128"),
        (ask([1], temperature=-1.0), "temperature"),
        (ask([1], temperature=float("nan")), "temperature"),
        (ask([1], top_p=0.0), "top_p"),
        (ask([1], stop=[""]), "stop"),
        (ask([1], 0), "num_samples"),
        (ask([1], 1, {"prompt_alt_tokens_k": -1}), "prompt_alt_tokens_k"),
        (ask([1], 1, {"record_stability_info": True}), "ppo"),
        (ask([1, 2], 1, targets([[1], [1]])), "1 rows"),
        (ask([1, 2], 1, targets([[-1]])), "names no token"),
        (ask([1, 2], 1, targets([[VOCAB]])), "vocabulary"),
    ],
)
def test_a_request_at_fault_does_not_spoil_the_batch(
    base: BaseModel, bad: Sample, says: str
) -> None:
    good, refused = sample(base, None, [ask(ids(4, 0), temperature=0), bad])
    assert isinstance(good, SampleResult)
    with pytest.raises(RequestError, match=says):
        raise refused  # type: ignore[misc]


def test_a_prompt_as_long_as_the_context_can_be_scored(base: BaseModel) -> None:
    (got,) = run(base, None, ask(ids(128, 0), 1, {"prompt_logprobs": True}, max_tokens=1))
    assert got.prompt_logprobs is not None
    assert np.isfinite(got.prompt_logprobs[1:]).all()


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


@pytest.mark.parametrize("kind", ["gpt2", "mamba", "mistral", "lfm2"])
def test_other_architectures(tmp_path: Path, kind: str) -> None:
    torch.manual_seed(0)
    small(kind).save_pretrained(tmp_path)
    base = BaseModel(kind, str(tmp_path), torch.device("cpu"))
    adapter = new_adapter(base, LoraConfig(rank=2, seed=0))
    with torch.no_grad():
        adapter.flat.add_(torch.randn(adapter.flat.shape, generator=torch.Generator()))
    prompts = [ids(n, n) for n in (12, 3, 12, 7)]
    asks = [ask(p, 2, max_tokens=10, temperature=0) for p in prompts]
    for prompt, result in zip(prompts, run(base, adapter.snapshot(), *asks), strict=True):
        whole = np.array(prompt + tokens(result))
        best = np.zeros(len(whole) - 1, int)
        with base.using(adapter.view), torch.no_grad():
            best[:] = base.model(torch.from_numpy(whole[:-1])[None]).logits[0].argmax(-1)
        assert tokens(result, 0) == tokens(result, 1) == best[len(prompt) - 1 :].tolist()
        out = forward_backward(
            base, adapter, [Datum(whole[:-1], {"target_tokens": whole[1:]})], "cross_entropy", {},
            False,
        )  # fmt: skip
        np.testing.assert_allclose(
            result.sequences[0].logprobs, out.logprobs[0][len(prompt) - 1 :], atol=1e-3
        )
    assert adapter.grad.any()
