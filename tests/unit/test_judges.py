"""Rewards that ask a judge: behind a sampler, behind an endpoint, and what is kept of its words."""

from __future__ import annotations

import json
import math
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from posttrain_recipes.options import ModelRef, RendererConfig
from posttrain_recipes.plugin import Message, PtlError, RewardContext, Sample, UsageError
from posttrain_recipes.records import Messages
from posttrain_recipes.rewards.judge import JudgeReward
from posttrain_recipes.rewards.pairwise import Pairwise
from posttrain_recipes.rewards.rubric import Rubric
from posttrain_recipes.running.serving import Serving
from posttrain_recipes.training.judges import backends
from posttrain_recipes.training.judges.backends import CachedJudge, Endpoint, EndpointJudge


class Words:
    """A judge whose log-odds and texts are functions of the question."""

    def __init__(
        self,
        odds: Callable[[str], float | None] = lambda text: 0.0,
        say: Callable[[str, int], str | None] = lambda text, attempt: "yes",
    ) -> None:
        self.odds, self.say = odds, say
        self.asked: list[str] = []

    def texts(self, questions: Sequence[Messages], attempt: int) -> list[str | None]:
        self.asked += [q[0].content for q in questions]
        return [self.say(q[0].content, attempt) for q in questions]

    def log_odds(
        self, questions: Sequence[Messages], first: str, second: str
    ) -> list[float | None]:
        self.asked += [q[0].content for q in questions]
        return [self.odds(q[0].content) for q in questions]


def sample(reply: str, prompt: str = "hi", **fields: Any) -> Sample:
    return Sample(prompt=(Message("user", prompt),), completion=reply, **fields)


def opened(reward: Any, judge: Words) -> Any:
    reward.judge = judge
    return reward


# --- judge ---------------------------------------------------------------------------------------


def test_a_judge_gives_the_probability_of_yes() -> None:
    judge = Words(lambda text: {"a": math.log(3), "b": None}.get(text[0], -1000.0))
    reward = opened(JudgeReward(JudgeReward.Config(question="{reply} {answer}")), judge)
    scores = reward.score([sample("a", answer="x"), sample("b"), sample("c")])
    assert scores == [pytest.approx(0.75), None, pytest.approx(0.0)]
    assert judge.asked == ["a x", "b ", "c "]


def test_a_text_without_a_verdict_is_asked_again_and_never_a_zero() -> None:
    judge = Words(say=lambda text, attempt: "No." if attempt == 2 and text[0] == "a" else "hm")
    reward = opened(JudgeReward(JudgeReward.Config(question="{reply}", score="text")), judge)
    assert reward.score([sample("a"), sample("b")]) == [0.0, None]
    assert [asked.partition("\n")[0] for asked in judge.asked] == ["a", "b"] * 3


def test_one_judge_at_most() -> None:
    with pytest.raises(ValidationError, match="has both 'judge' and 'endpoint'"):
        JudgeReward.Config.model_validate(
            {"judge": {"stage": "a"}, "endpoint": {"base_url": "http://x", "model": "m"}}
        )


# --- rubric --------------------------------------------------------------------------------------


def test_a_rubric_is_the_weighted_share_of_its_criteria() -> None:
    odds = {"polite": 1000.0, "short": -1000.0, "rude": 1000.0}
    judge = Words(lambda text: odds[text.split()[1]])
    config = Rubric.Config.model_validate(
        {
            "criteria": ["is polite.", {"text": "is short", "weight": 3}],
            "field": "also",
            "question": "{criterion}",
        }
    )
    reward = opened(Rubric(config), judge)
    scores = reward.score(
        [sample("x"), sample("y", metadata={"also": [{"text": "is rude", "weight": -2}]})]
    )
    assert scores == [pytest.approx(0.25), pytest.approx((1 - 2) / 4)]
    assert judge.asked[0] == "is polite"


def test_a_rubric_without_one_verdict_abstains() -> None:
    judge = Words(lambda text: None if "b" in text else 1000.0)
    reward = opened(Rubric(Rubric.Config(criteria=["a", "b"], question="{criterion}")), judge)
    assert reward.score([sample("x")]) == [None]


def test_criteria_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    reward = opened(Rubric(Rubric.Config(field="also")), Words())
    with pytest.raises(UsageError, match="field 'also' of a prompt is no list of criteria"):
        reward.score([sample("x", metadata={"also": [3]})])
    context: Any = None
    with pytest.raises(UsageError, match="has no criteria"):
        Rubric(Rubric.Config()).open(context)


# --- pairwise ------------------------------------------------------------------------------------


def longer(text: str) -> float:
    a, b = text.split("/")
    return 5.0 + 1000.0 * (len(a) - len(b))


def test_replies_are_compared_within_their_group_in_both_orders() -> None:
    judge = Words(longer)
    reward = opened(Pairwise(Pairwise.Config(question="{a}/{b}")), judge)
    scores = reward.score(
        [sample("xxx"), sample("x"), sample("xx"), sample("x", "other"), sample("yy", "other")]
    )
    assert scores == pytest.approx([1.0, 0.0, 0.5, 0.0, 1.0])
    assert len(judge.asked) == 2 * (3 + 1)


def test_equal_replies_share_the_win_and_are_not_judged() -> None:
    judge = Words(longer)
    reward = opened(Pairwise(Pairwise.Config(question="{a}/{b}")), judge)
    assert reward.score([sample("x"), sample("x"), sample("xx")]) == pytest.approx([0.25, 0.25, 1])
    assert len(judge.asked) == 4


def test_a_reply_may_be_compared_with_the_reference_and_one_that_is_alone_abstains() -> None:
    config = Pairwise.Config(question="{a}/{b}", against="answer")
    reward = opened(Pairwise(config), Words(longer))
    assert reward.score([sample("xx", answer="x"), sample("x")]) == [pytest.approx(1.0), None]
    alone = opened(Pairwise(Pairwise.Config()), Words(longer))
    assert alone.score([sample("x")]) == [None]


# --- an endpoint ---------------------------------------------------------------------------------


class Server:
    """An endpoint that answers with what `answer` makes of a request: a status and a body."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.answer: Callable[[dict[str, Any]], tuple[int, Any]] = lambda body: (200, {})


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Server, Endpoint]]:
    monkeypatch.setattr(backends, "BACKOFF", 0.0)
    state, lock = Server(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                state.requests.append(body | {"path": self.path})
                state.keys.append(self.headers.get("Authorization"))
                status, answer = state.answer(body)
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: Any) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{httpd.server_port}/v1"
    yield state, Endpoint(base_url=url, model="m", api_key="key")
    httpd.shutdown()
    httpd.server_close()
    thread.join()


def wait(future: Any) -> Any:
    return future.result(timeout=30)


def said(text: str, top: dict[str, float] | None = None) -> tuple[int, Any]:
    choice: dict[str, Any] = {"message": {"role": "assistant", "content": text}}
    if top is not None:
        tokens = [{"token": token, "logprob": value} for token, value in top.items()]
        choice["logprobs"] = {"content": [{"top_logprobs": tokens}]}
    return 200, {"choices": [choice]}


QUESTIONS = [(Message("user", f"q{n}"),) for n in range(8)]


def test_an_endpoint_answers_each_question_in_order(server: tuple[Server, Endpoint]) -> None:
    state, endpoint = server
    state.answer = lambda body: said(body["messages"][0]["content"].upper())
    judge = EndpointJudge(endpoint, wait, max_tokens=7)
    assert judge.texts(QUESTIONS, 0) == [f"Q{n}" for n in range(8)]
    request = state.requests[0]
    assert request["path"] == "/v1/chat/completions"
    assert (request["model"], request["max_tokens"], request["temperature"]) == ("m", 7, 0)
    assert set(state.keys) == {"Bearer key"}
    judge.texts(QUESTIONS[:1], 1)
    assert (state.requests[-1]["temperature"], state.requests[-1]["seed"]) == (1, 1)


def test_log_odds_come_from_the_likeliest_first_tokens(server: tuple[Server, Endpoint]) -> None:
    state, endpoint = server
    tops = {
        "q0": {"Yes": math.log(0.4), " yes": math.log(0.2), "no": math.log(0.3)},
        "q1": {"yes": math.log(0.9), "maybe": math.log(0.05)},
        "q2": {"maybe": -0.1},
    }
    state.answer = lambda body: said("", tops[body["messages"][0]["content"]])
    found = EndpointJudge(endpoint, wait, max_tokens=7).log_odds(QUESTIONS[:3], "yes", "no")
    assert found == [pytest.approx(math.log(2)), pytest.approx(math.log(0.9 / 0.05)), None]


def test_a_busy_endpoint_is_asked_again_and_then_there_is_no_answer(
    server: tuple[Server, Endpoint],
) -> None:
    state, endpoint = server
    busy = iter([(429, {}), (500, {}), (200, {"choices": []})])
    state.answer = lambda body: next(busy, said("yes"))
    assert EndpointJudge(endpoint, wait, max_tokens=7).texts(QUESTIONS[:1], 0) == ["yes"]
    assert len(state.requests) == 4
    state.answer = lambda body: (503, {})
    assert EndpointJudge(endpoint, wait, max_tokens=7).texts(QUESTIONS[:1], 0) == [None]
    assert len(state.requests) == 4 + backends.TRIES


def test_an_endpoint_that_nobody_listens_at_is_told_as_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backends, "BACKOFF", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    endpoint = Endpoint(base_url=f"http://127.0.0.1:{port}/v1", model="m")
    with pytest.raises(PtlError, match="cannot be reached") as caught:
        EndpointJudge(endpoint, wait, max_tokens=7).texts(QUESTIONS[:1], 0)
    assert "base_url" in (caught.value.hint or "")


def test_a_refused_key_is_told_at_once_and_without_the_key(
    server: tuple[Server, Endpoint],
) -> None:
    state, endpoint = server
    state.answer = lambda body: (401, {"error": {"message": "no such key"}})
    with pytest.raises(PtlError, match="refused a request: 401") as caught:
        EndpointJudge(endpoint, wait, max_tokens=7).texts(QUESTIONS[:1], 0)
    assert caught.value.why == "no such key"
    assert len(state.requests) == 1
    assert "'key'" not in repr(endpoint)


# --- what was said before ------------------------------------------------------------------------


def test_a_question_is_asked_once_also_by_another_run(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "verdicts.sqlite"
    judge = Words(lambda text: None if text == "q1" else float(text[1:]))
    first = CachedJudge(judge, "judge a", path)
    assert first.log_odds(QUESTIONS[:3], "yes", "no") == [0.0, None, 2.0]
    again = CachedJudge(judge, "judge a", path)
    assert again.log_odds(QUESTIONS[:3], "yes", "no") == [0.0, None, 2.0]
    assert judge.asked == ["q0", "q1", "q2", "q1"], "what is missing is asked again"
    assert (first.misses, again.misses) == (3, 1)


def test_another_judge_question_or_try_is_another_matter(tmp_path: Path) -> None:
    path, judge = tmp_path / "verdicts.sqlite", Words()
    one, other = CachedJudge(judge, "a", path), CachedJudge(judge, "b", path)
    for ask in (
        lambda: one.log_odds(QUESTIONS[:1], "yes", "no"),
        lambda: one.log_odds(QUESTIONS[:1], "A", "B"),
        lambda: one.texts(QUESTIONS[:1], 0),
        lambda: one.texts(QUESTIONS[:1], 1),
        lambda: other.texts(QUESTIONS[:1], 1),
    ):
        before = len(judge.asked)
        ask()
        ask()
        assert len(judge.asked) == before + 1


def test_equal_questions_in_one_batch_are_asked_once(tmp_path: Path) -> None:
    judge = Words(lambda text: 1.0)
    cached = CachedJudge(judge, "a", tmp_path / "verdicts.sqlite")
    assert cached.log_odds([QUESTIONS[0]] * 3, "yes", "no") == [1.0] * 3
    assert judge.asked == ["q0"]


def test_a_judge_is_cached_where_there_is_a_place_for_it(tmp_path: Path) -> None:
    class Resolved:
        identity = ""
        checkpoint = type("C", (), {"sampler_uri": "tinker://a", "base_model": "m"})()

    def resolve(ref: Any) -> Any:
        return Resolved()

    renderer: Any = None
    config = JudgeReward.Config()
    place = RewardContext(0, renderer, wait, resolve, tmp_path)
    assert isinstance(backends.open_judge(config, place), CachedJudge)
    nowhere = RewardContext(0, renderer, wait, resolve)
    assert not isinstance(backends.open_judge(config, nowhere), CachedJudge)
    off = JudgeReward.Config(cache=False)
    assert not isinstance(backends.open_judge(off, place), CachedJudge)


def test_futures_of_an_endpoint_are_waited_for_by_the_stage(
    server: tuple[Server, Endpoint],
) -> None:
    """So that Ctrl-C and a dead engine are noticed while a judge takes its time."""
    state, endpoint = server
    state.answer = lambda body: said("yes")
    waited: list[Future[Any]] = []

    def noted(future: Any) -> Any:
        waited.append(future)
        return future.result(timeout=30)

    EndpointJudge(endpoint, noted, max_tokens=7).texts(QUESTIONS[:2], 0)
    assert len(waited) == 2


def test_a_judge_that_was_replaced_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its weights and how it is asked, not by the path that it lies at."""
    folder = tmp_path / "judge"
    folder.mkdir()
    plan: Any = SimpleNamespace(path=tmp_path / "r.yaml", identities={})
    serving = Serving(plan, None, lambda future: None, Path())  # type: ignore[arg-type]
    monkeypatch.setattr(serving, "renderer", lambda model, options: None)
    monkeypatch.setattr(serving, "sampler", lambda checkpoint: None)

    def who(content: str, **options: Any) -> str:
        (folder / "model.safetensors").write_text(content)
        ref = ModelRef.model_validate({"model": "./judge", **options})
        return serving.resolve(ref, "ptl/tiny", RendererConfig()).identity

    first = who("a")
    assert who("b") != first
    assert who("a") == first
    assert who("a", renderer={"thinking": "on"}) != first
