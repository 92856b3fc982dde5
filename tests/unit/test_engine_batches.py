"""Requests that share a batch: they join, leave and are cancelled, and read alike prompts once."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from posttrain_recipes.engine.generate import prefix_cache, slots
from posttrain_recipes.engine.generate.batcher import APART_S, RequestFeed, serve
from posttrain_recipes.engine.model.base import BaseModel
from posttrain_recipes.engine.model.lora import Snapshot
from posttrain_recipes.engine.wire import SampleRequest
from tests.device import exact, near
from tests.sampling import adapted, ids, model, run, sample_request, tokens


@pytest.fixture(scope="module", params=["decoder", "transformers"])
def base(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> BaseModel:
    return model(tmp_path_factory.mktemp("model"), request.param)


@pytest.fixture(scope="module")
def snapshot(base: BaseModel) -> Snapshot:
    return adapted(base)


def all_turns(base: BaseModel, snapshot: Snapshot | None, feed: RequestFeed) -> int:
    """How many turns it takes to answer a feed."""
    return sum(1 for _ in serve(base, snapshot, feed))


class Trickle(RequestFeed):
    """Gives one request at a time, a few tokens apart."""

    def __init__(self, requests: list[SampleRequest], slowly: bool) -> None:
        self.left, self.calls, self.slowly = list(enumerate(requests)), 0, slowly
        self.results: dict[int, Any] = {}
        self.order: list[int] = []

    def take(self) -> list[tuple[Any, SampleRequest]]:
        every = 3 if self.slowly else 1
        due = self.calls % every == 0 and self.left
        self.calls += 1
        return [self.left.pop(0)] if due else []

    def answer(self, ticket: Any, result: Any) -> None:
        self.results[ticket] = result
        self.order.append(ticket)


@exact
def test_requests_may_join_a_running_batch(base: BaseModel, snapshot: Snapshot) -> None:
    lengths = [(9, 40), (30, 4), (2, 50), (17, 9), (1, 30), (40, 20)]
    requests = [sample_request(ids(n, n), 2, max_tokens=m, seed=n) for n, m in lengths]
    feed = Trickle(requests, slowly=base.decoder is None)  # one that looks after every token
    all_turns(base, snapshot, feed)
    assert feed.order[0] == 1  # the short request was answered while the long ones went on
    for index, request in enumerate(requests):
        (alone,) = run(base, snapshot, request)
        for i in range(2):
            assert tokens(feed.results[index], i) == tokens(alone, i)
            np.testing.assert_allclose(
                feed.results[index].sequences[i].logprobs,
                alone.sequences[i].logprobs,
                atol=near(1e-4),
            )


class OneByOne(Trickle):
    """Gives one request at a time, the next a moment later."""

    def __init__(self, requests: list[SampleRequest]) -> None:
        super().__init__(requests, slowly=False)

    def wait(self, seconds: float) -> bool:
        assert seconds == APART_S
        return bool(self.left)


@exact
def test_requests_that_are_sent_together_are_read_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = model(tmp_path)
    joined: list[int] = []
    join = slots.SlotBatch.join
    monkeypatch.setattr(
        slots.SlotBatch, "join", lambda self, new: (joined.append(len(new)), join(self, new))[1]
    )
    requests = [sample_request(ids(n, n), 2, max_tokens=6, seed=n) for n in (4, 9, 30)]
    feed = OneByOne(requests)
    all_turns(base, None, feed)
    assert joined == [6]
    assert 0 < APART_S < 0.1, "one that comes alone is hardly kept waiting"
    for index, request in enumerate(requests):
        (alone,) = run(base, None, request)
        assert tokens(feed.results[index]) == tokens(alone)


class Cancelling(RequestFeed):
    """Gives all requests at once, and cancels some of them when it is asked again."""

    def __init__(self, requests: list[SampleRequest], cancelled: set[int]) -> None:
        self.left, self.cancelled = list(enumerate(requests)), cancelled
        self.results: dict[int, Any] = {}

    def take(self) -> list[tuple[Any, SampleRequest]]:
        taken, self.left = self.left, []
        return taken

    def dropped(self) -> list[Any]:
        return [] if self.left else sorted(self.cancelled - self.results.keys())

    def answer(self, ticket: Any, result: Any) -> None:
        self.results[ticket] = result


@exact
@pytest.mark.parametrize("cancelled", [{0, 1, 2, 3}, {4, 5}, {0, 2, 4, 5, 6, 7}])
def test_cancelled_requests_leave_and_the_others_go_on(
    base: BaseModel, cancelled: set[int]
) -> None:
    requests = [sample_request(ids(5 + n, n), 2, max_tokens=40, seed=n) for n in range(8)]
    feed = Cancelling(requests, cancelled)
    all_turns(base, None, feed)
    for index in set(range(8)) - cancelled:
        (alone,) = run(base, None, requests[index])
        assert tokens(feed.results[index]) == tokens(alone)


def noted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each text has that is read from now on."""
    read: list[int] = []
    prefill = prefix_cache.PrefixCache._prefill

    def counted(self: Any, texts: Any, prefix: Any) -> Any:
        read.extend(text.size for text in texts)
        return prefill(self, texts, prefix)

    monkeypatch.setattr(prefix_cache.PrefixCache, "_prefill", counted)
    return read


@exact
def test_a_prompt_is_read_once_however_many_continue_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = model(tmp_path)
    read = noted(monkeypatch)
    long, short = ids(60, 1), ids(5, 2)
    requests = [
        sample_request(long, 16, seed=1, max_tokens=30),
        *(sample_request(short, seed=n) for n in range(6)),
    ]
    requests += [sample_request(ids(n, n), seed=n) for n in (4, 9)]
    together = run(base, None, *requests)
    assert sorted(read) == [4, 5, 9, 60]
    for request, result in zip(requests, together, strict=True):
        (alone,) = run(base, None, request)
        for i, sequence in enumerate(alone.sequences):
            assert tokens(result, i) == sequence.tokens.tolist()
    (first,) = run(
        base, None, sample_request(long, 1, seed=1, max_tokens=30)
    )  # not shared: its own buffers
    assert tokens(first) == tokens(together[0])


@exact
def test_what_prompts_begin_with_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = model(tmp_path)
    base.threads = 2
    monkeypatch.setattr(slots, "SLOT_SEQUENCES", 3)  # two slots
    task, other = ids(50, 1), ids(40, 2)
    texts = [[*task, *ids(n, n)] for n in (3, 8, 5, 5, 11)] + [[*other, *ids(6, 6)], ids(9, 9)]
    requests = [
        sample_request(text, 1 + n % 2, seed=n, max_tokens=12) for n, text in enumerate(texts)
    ]
    requests.append(
        sample_request(texts[0], 6, seed=20, max_tokens=30)
    )  # enough rows to share all of it
    alone = [run(base, None, request)[0] for request in requests]
    read = noted(monkeypatch)
    together = run(base, None, *requests)
    assert sorted(read) == [3, 5, 8, 9, 11, 46, 50]  # two of 5 are the same text
    for mine, its in zip(together, alone, strict=True):
        for i, sequence in enumerate(its.sequences):
            assert tokens(mine, i) == sequence.tokens.tolist()
            np.testing.assert_allclose(
                mine.sequences[i].logprobs, sequence.logprobs, atol=near(1e-4)
            )
    read.clear()
    feed = Trickle(
        [*requests[:5], sample_request([*task, *ids(4, 4)], seed=3, max_tokens=4)], slowly=False
    )
    feed.left, later = feed.left[:5], feed.left[5:]
    first = feed.take

    def take() -> list[tuple[Any, SampleRequest]]:  # five at once, the last when they are under way
        if feed.calls == 0:
            feed.calls, taken, feed.left = 1, feed.left, later
            return taken
        return first()

    monkeypatch.setattr(feed, "take", take)
    all_turns(base, None, feed)
    assert sorted(read) == [3, 4, 5, 8, 11, 50]
    (last,) = run(base, None, sample_request([*task, *ids(4, 4)], seed=3, max_tokens=4))
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
    monkeypatch.setattr(prefix_cache, "SHARED_TOKENS", 2)
    found = prefix_cache.group_by_prefix(
        [np.array([ord(c) for c in text]) for text in reversed(texts)]
    )
    assert [(shared, len(group)) for shared, group in found] == groups


class AllAtOnce(Cancelling):
    """Gives all requests at once; others may be waiting."""

    def __init__(self, requests: list[SampleRequest], pressed: bool = True) -> None:
        super().__init__(requests, set())
        self._pressed = pressed

    def pressed(self) -> bool:
        return self._pressed


def test_a_batch_gives_way_after_a_token_where_others_wait(base: BaseModel) -> None:
    request = sample_request(ids(9, 9), 3, max_tokens=40, seed=1)
    alone, beside = AllAtOnce([request], pressed=False), AllAtOnce([request])
    stride = slots.STRIDE if base.decoder is not None else 1
    assert all_turns(base, None, alone) <= 40 // stride + 1
    assert all_turns(base, None, beside) >= 40
    for i in range(3):
        assert tokens(alone.results[0], i) == tokens(beside.results[0], i)


@exact
def test_batches_that_take_turns_get_what_each_gets_alone(
    base: BaseModel, snapshot: Snapshot
) -> None:
    """Of two sets of weights, with another pass over the model between two tokens."""
    requests = [sample_request(ids(5 + n, n), 2, max_tokens=20, seed=n) for n in range(3)]
    feeds = [AllAtOnce(requests), AllAtOnce(requests)]
    for _ in itertools.zip_longest(serve(base, None, feeds[0]), serve(base, snapshot, feeds[1])):
        assert base.active_adapter.layers is None
        assert not torch.is_inference_mode_enabled()
        assert torch.is_grad_enabled()
    for feed, weights in zip(feeds, (None, snapshot), strict=True):
        for index, request in enumerate(requests):
            (alone,) = run(base, weights, request)
            for i in range(2):
                assert tokens(feed.results[index], i) == tokens(alone, i)


@exact
def test_long_prompts_are_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = model(tmp_path)
    monkeypatch.setattr(type(base), "prefill_limit", 50)
    read = noted(monkeypatch)
    between: list[int] = []
    requests = [sample_request(ids(20, n), seed=n, max_tokens=4) for n in range(6)]
    requests += [sample_request(ids(70, 9), seed=9, max_tokens=4, prompt_logprobs=True)] * 2
    feed = AllAtOnce(requests)
    for _ in serve(base, None, feed):
        between.append(sum(read))
    assert [n for n in dict.fromkeys(between) if n <= 120 and n] == [40, 80, 120]
    for index, request in enumerate(requests):
        (alone,) = run(base, None, request)
        assert tokens(feed.results[index]) == tokens(alone)
