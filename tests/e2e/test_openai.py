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
        ({"model": "tinker://nonsense"}, openai.BadRequestError, None, "is no path of a check"),
        ({"model": "bare"}, openai.BadRequestError, None, "no chat template"),
        ({"max_tokens": 100_000}, openai.BadRequestError, "context_length_exceeded", "window"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, openai.BadRequestError,
         None, "'tools': the chat template of ptl/nano leaves them out"),
        ({"tool_choice": "required"}, openai.BadRequestError, None, "required needs 'tools'"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema":
          {"type": "nonsense"}}}}, openai.BadRequestError, None, "Invalid type: nonsense"),
        ({"extra_body": {"guided_regex": "("}}, openai.BadRequestError, None, "unclosed group"),
        ({"extra_body": {"guided_grammar": "a", "tempreature": 0.5}}, openai.BadRequestError,
         None, "'guided_grammar', 'tempreature': leave them out"),
        ({"logit_bias": {"100000": 5}}, openai.BadRequestError, None, "logit_bias: token id"),
        ({"max_tokens": 0}, openai.BadRequestError, None, "max_tokens"),
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


def complete(client: openai.OpenAI, **more: Any) -> Any:
    asked: Any = {"model": NANO, "prompt": "What is", "temperature": 0, "max_tokens": 8, **more}
    return client.completions.create(**asked)


def test_a_prompt_is_scored_as_harnesses_ask_for_it(
    client: openai.OpenAI, service: tinker.ServiceClient
) -> None:
    """lm-eval's multiple choice: prompt ids, one token, echo, log-probabilities."""
    tokenizer = AutoTokenizer.from_pretrained(models.resolve(NANO))
    ids = tokenizer.encode("What is 12 + 7? 19")
    asked = {"prompt": ids, "max_tokens": 1, "logprobs": 1, "echo": True, "seed": 3}
    (choice,) = complete(client, **asked).choices
    told = choice.logprobs
    assert len(told.token_logprobs) == len(told.top_logprobs) == len(ids) + 1
    assert told.token_logprobs[0] is told.top_logprobs[0] is None
    sampler = service.create_sampling_client(base_model=NANO).result()
    want = sampler.compute_logprobs(types.ModelInput.from_ints(ids)).result(WAIT_S)
    assert told.token_logprobs[1:-1] == pytest.approx(want[1:], abs=1e-4)
    rows = zip(told.tokens, told.token_logprobs, told.top_logprobs, strict=True)
    for token, own, top in list(rows)[1:]:
        assert top[token] == own  # to the bit
        assert max(top.values()) >= own
    assert told.token_logprobs[-1] == max(told.top_logprobs[-1].values())  # greedy
    assert choice.text.startswith("What is 12 + 7? 19")
    assert told.text_offset[len(ids)] == len("What is 12 + 7? 19")
    (alone,) = complete(client, **{**asked, "max_tokens": 0}).choices
    assert alone.logprobs.token_logprobs == told.token_logprobs[:-1]
    assert (alone.text, alone.finish_reason) == ("What is 12 + 7? 19", "length")
    whole = complete(client, prompt="A b", max_tokens=0)
    assert (whole.choices[0].text, whole.usage.completion_tokens) == ("", 0)
    streamed = complete(client, prompt="A b", echo=True, stream=True)
    text = "".join(choice.text for part in streamed for choice in part.choices)
    assert text == complete(client, prompt="A b", echo=True).choices[0].text


def test_tokens_can_be_had_as_their_ids(client: openai.OpenAI) -> None:
    more = {"return_token_ids": True, "return_tokens_as_token_ids": True, "ignore_eos": True}
    (choice,) = complete(client, logprobs=2, extra_body=more).choices
    assert len(choice.token_ids) == 8
    assert choice.logprobs.tokens == [f"token_id:{token}" for token in choice.token_ids]
    assert all(name.startswith("token_id:") for top in choice.logprobs.top_logprobs for name in top)
    got = reply(client, logprobs=True, extra_body=more)
    told = got.choices[0].logprobs.content
    assert [item.token for item in told] == [f"token_id:{i}" for i in got.choices[0].token_ids]
    assert got.usage.prompt_tokens == len(got.prompt_token_ids)
    answer = client.with_options(base_url=str(client.base_url).replace("/v1", "")).post(
        "/inference/v1/generate",
        cast_to=object,
        body={
            "model": NANO,
            "token_ids": choice.prompt_token_ids,
            "sampling_params": {
                "temperature": 0,
                "max_tokens": 8,
                "logprobs": 1,
                "ignore_eos": True,
            },
        },
    )
    (generated,) = answer["choices"]  # type: ignore[index]
    assert generated["token_ids"] == choice.token_ids
    assert [item["logprob"] for item in generated["logprobs"]["content"]] == pytest.approx(
        choice.logprobs.token_logprobs, abs=1e-4
    )


def test_what_is_sampled_can_be_steered(client: openai.OpenAI) -> None:
    def ids(**more: Any) -> list[int]:
        extra = {"return_token_ids": True, "ignore_eos": True, **more.pop("extra_body", {})}
        tokens: list[int] = complete(client, extra_body=extra, **more).choices[0].token_ids
        return tokens

    plain = ids(max_tokens=40)
    (banned,) = {plain[0]}
    assert banned not in ids(max_tokens=40, logit_bias={str(banned): -100})
    assert set(ids(max_tokens=5, logit_bias={str(banned): 100})) == {banned}
    assert len(set(ids(max_tokens=40, extra_body={"repetition_penalty": 10.0}))) > len(set(plain))
    cut = ids(max_tokens=40, extra_body={"stop_token_ids": [plain[2]]})
    assert cut == plain[: plain.index(plain[2]) + 1]
    longer = ids(max_tokens=40, extra_body={"stop_token_ids": [plain[2]], "min_tokens": 9})
    assert len(longer) >= 9
    for seed in range(5):  # only the likeliest are left
        hot = {"temperature": 2.0, "seed": seed, "max_tokens": 8}
        assert ids(**hot, extra_body={"min_p": 1.0}) == plain[:8]
        assert ids(**hot) != plain[:8]


def test_what_hosted_tinker_serves_is_served_there_too(
    engine: EngineProcess, client: openai.OpenAI
) -> None:
    with openai.OpenAI(
        base_url=f"{engine.base_url}/oai/api/v1", api_key=engine.api_key, timeout=WAIT_S
    ) as other:
        assert reply(other).choices[0].message == reply(client).choices[0].message
        assert [model.id for model in other.models.list()][0] == NANO
        with pytest.raises(openai.AuthenticationError):
            other.with_options(api_key="tml-wrong").models.list()
