"""The official `openai` client against the engine."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
import tinker
from tinker import types
from transformers import AutoTokenizer

from posttrain_recipes import models
from posttrain_recipes.engine import launch
from posttrain_recipes.engine.launch import EngineProcess
from tests.engine_model import build

pytestmark = pytest.mark.usefixtures("quiet_sdk")

NANO = "ptl/nano"
ASK: list[Any] = [{"role": "user", "content": "What is 12 + 7?"}]
WAIT_S = 60.0


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    data, bare = tmp_path_factory.mktemp("data"), build(tmp_path_factory.mktemp("bare"))
    served = {NANO: models.resolve(NANO), "bare": str(bare)}
    with launch.start(served, data, data / "engine.log") as engine:
        yield engine


@pytest.fixture(scope="module")
def client(engine: EngineProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{engine.base_url}/v1", api_key=engine.api_key, max_retries=0, timeout=WAIT_S
    ) as client:
        yield client


@pytest.fixture(scope="module")
def service(engine: EngineProcess) -> Iterator[tinker.ServiceClient]:
    with tinker.ServiceClient(base_url=engine.base_url, api_key=engine.api_key) as service:
        yield service


def reply(client: openai.OpenAI, **more: Any) -> Any:
    asked: Any = {"model": NANO, "messages": ASK, "temperature": 0, "max_tokens": 12, **more}
    return client.chat.completions.create(**asked)


def test_a_reply_is_what_the_sdk_samples_from_the_models_own_template(
    client: openai.OpenAI, service: tinker.ServiceClient
) -> None:
    sampler = service.create_sampling_client(base_model=NANO).result()
    tokenizer = AutoTokenizer.from_pretrained(models.resolve(NANO))
    ids = tokenizer.apply_chat_template(ASK, add_generation_prompt=True, return_dict=False)
    params = types.SamplingParams(max_tokens=12, temperature=0.0)
    prompt = types.ModelInput.from_ints(ids)
    (want,) = sampler.sample(prompt, 1, params).result(WAIT_S).sequences
    got = reply(client, logprobs=True, top_logprobs=2)
    (choice,) = got.choices
    assert choice.message.content == tokenizer.decode(want.tokens, skip_special_tokens=True)
    assert choice.finish_reason == want.stop_reason
    told = choice.logprobs.content
    assert [item.logprob for item in told] == pytest.approx(want.logprobs, abs=1e-4)
    assert all(item.top_logprobs[0].logprob >= item.logprob - 1e-4 for item in told)
    assert (got.usage.prompt_tokens, got.usage.completion_tokens) == (len(ids), len(want.tokens))
    assert reply(client, max_tokens=None, max_completion_tokens=2).usage.completion_tokens == 2


def test_a_stream_says_the_same(client: openai.OpenAI) -> None:
    asked = {"n": 3, "temperature": 1.0, "seed": 5, "max_tokens": 10, "logprobs": True}
    whole = reply(client, **asked)
    parts = list(reply(client, **asked, stream=True, stream_options={"include_usage": True}))
    texts = ["", "", ""]
    told: list[list[float]] = [[], [], []]
    finishes: dict[int, str] = {}
    for part in parts[:-1]:
        for choice in part.choices:
            texts[choice.index] += choice.delta.content or ""
            if choice.logprobs is not None:
                told[choice.index] += [item.logprob for item in choice.logprobs.content]
            if choice.finish_reason:
                finishes[choice.index] = choice.finish_reason
    assert texts == [choice.message.content for choice in whole.choices]
    assert [len(t) for t in told] == [len(choice.logprobs.content) for choice in whole.choices]
    assert finishes == {choice.index: choice.finish_reason for choice in whole.choices}
    assert parts[0].choices[0].delta.role == "assistant"
    assert parts[-1].usage == whole.usage
    assert len(set(texts)) > 1
    assert [c.message.content for c in reply(client, **asked).choices] == texts  # the seed holds


def test_completions_of_several_prompts_with_stops(client: openai.OpenAI) -> None:
    asked: Any = {"model": NANO, "prompt": ["The", "A b"], "max_tokens": 8, "seed": 1, "n": 2}
    got = client.completions.create(**asked, logprobs=1)
    assert [choice.index for choice in got.choices] == [0, 1, 2, 3]
    text = next(choice.text for choice in got.choices if len(choice.text) > 3)
    stopped = client.completions.create(**asked, stop=[text[2]])
    assert all(text[2] not in choice.text for choice in stopped.choices)
    assert "stop" in {choice.finish_reason for choice in stopped.choices}
    told = got.choices[0].logprobs
    assert told is not None
    assert told.text_offset is not None
    assert len(told.tokens or ()) == len(told.token_logprobs or ()) == len(told.text_offset)
    streamed = [""] * 4
    for part in client.completions.create(**asked, stream=True):
        for choice in part.choices:
            streamed[choice.index] += choice.text
    assert streamed == [choice.text for choice in got.choices]


def test_a_checkpoint_is_a_model_beside_its_base(
    client: openai.OpenAI, service: tinker.ServiceClient
) -> None:
    training = service.create_lora_training_client(NANO, rank=8, seed=0).result()
    tokenizer = training.get_tokenizer()
    ids = tokenizer.apply_chat_template(ASK, add_generation_prompt=True, return_dict=False)
    said = [*tokenizer.encode("yes yes yes"), tokenizer.eos_token_id]
    tokens = [*ids, *said]
    datum = types.Datum(
        types.ModelInput.from_ints(tokens[:-1]),
        {"target_tokens": tokens[1:], "weights": [0.0] * (len(ids) - 1) + [1.0] * len(said)},
    )
    for _ in range(15):
        training.forward_backward([datum], "cross_entropy")
        training.optim_step(types.AdamParams(learning_rate=2e-2)).result(WAIT_S)
    path = training.save_weights_for_sampler("yes").result(WAIT_S).path
    assert reply(client, model=path).choices[0].message.content == "yes yes yes"
    assert reply(client).choices[0].message.content != "yes yes yes"
    listed = [model.id for model in client.models.list()]
    assert listed == [NANO, "bare", path]
    assert client.models.retrieve(NANO).id == NANO
    assert client.models.retrieve(path).id == path
    with ThreadPoolExecutor(8) as pool:  # both at once, many times
        asked = [path, NANO] * 8
        got = list(pool.map(lambda m: reply(client, model=m).choices[0].message.content, asked))
    assert set(got[::2]) == {"yes yes yes"}
    assert "yes yes yes" not in got[1::2]


@pytest.mark.parametrize(
    ("more", "error", "code", "says"),
    [
        ({"model": "gpt-4o"}, openai.NotFoundError, "model_not_found", "serves ptl/nano"),
        ({"model": "tinker://a:train:0/sampler_weights/x"}, openai.NotFoundError,
         "model_not_found", "no checkpoint"),
        ({"model": "tinker://nonsense"}, openai.BadRequestError, None, "no checkpoint of this"),
        ({"model": "bare"}, openai.BadRequestError, None, "no chat template"),
        ({"max_tokens": 100_000}, openai.BadRequestError, "context_length_exceeded", "window"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, openai.BadRequestError,
         None, "'tools'"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_errors_have_openais_form(
    client: openai.OpenAI, more: Any, error: Any, code: str | None, says: str, stream: bool
) -> None:
    with pytest.raises(error, match=says) as caught:
        reply(client, stream=stream, **more)
    assert caught.value.code == code


def test_strangers_are_refused(engine: EngineProcess, client: openai.OpenAI) -> None:
    with pytest.raises(openai.AuthenticationError, match="token"):
        client.with_options(api_key="tml-wrong").models.list()
    with pytest.raises(openai.PermissionDeniedError, match="Host"):
        client.with_options(default_headers={"Host": "evil.example"}).models.list()


def test_a_stream_that_is_left_stops_the_work(client: openai.OpenAI) -> None:
    asked: Any = {"model": NANO, "prompt": "a", "max_tokens": 1500, "n": 64, "logprobs": 0}
    with client.completions.create(**asked, stream=True) as stream:
        next(iter(stream))
    assert client.with_options(timeout=20).completions.create(
        model="bare", prompt="a", max_tokens=1
    )
