"""The unmodified `tinker` SDK against the engine: train, sample, save, load, restart."""

from __future__ import annotations

import dataclasses
import math
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tinker
import torch
from safetensors.torch import load_file
from tinker import types
from torch.nn import functional as F

from posttrain_recipes.engine import launch
from posttrain_recipes.engine.launch import EngineProcess
from tests.engine_model import VOCAB, build

pytestmark = pytest.mark.usefixtures("quiet_sdk")

BASE = "ptl/test"
ADAM = types.AdamParams(learning_rate=1e-2)
WAIT_S = 120.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def engine(model: Path, data_dir: Path) -> Iterator[EngineProcess]:
    with launch.start({BASE: str(model)}, data_dir, data_dir / "engine.log") as engine:
        yield engine


@pytest.fixture(scope="module")
def service(engine: EngineProcess) -> Iterator[tinker.ServiceClient]:
    with tinker.ServiceClient(base_url=engine.base_url, api_key=engine.api_key) as service:
        yield service


def test_a_step_whose_gradient_is_not_whole_is_not_taken(service: tinker.ServiceClient) -> None:
    client = service.create_lora_training_client(BASE, rank=2, seed=3)
    client = client.result(WAIT_S) if hasattr(client, "result") else client
    good = datum(8, 1)
    bad = datum(8, 1, target_tokens=[*ids(7, 1), 10**6], weights=[1.0] * 8)

    def step(one: types.Datum) -> tuple[Any, Any]:
        return client.forward_backward([one], "cross_entropy"), client.optim_step(ADAM)

    def loss() -> float:
        return float(client.forward([good], "cross_entropy").result(WAIT_S).metrics["loss:sum"])

    for answer in step(good):
        answer.result(WAIT_S)
    before = loss()
    # Something long first: all of them are accepted before the first is run.
    long = client.forward([datum(100, seed) for seed in range(240)], "cross_entropy")
    steps = [step(bad), step(good)]
    long.result(WAIT_S)
    with pytest.raises(Exception, match="1000000"):
        steps[0][0].result(WAIT_S)
    for _, update in steps:
        with pytest.raises(Exception, match="the step was not taken"):
            update.result(WAIT_S)
    assert loss() == before
    client.save_state("whole").result(WAIT_S)
    for answer in step(good):
        answer.result(WAIT_S)
    assert loss() < before


def ids(length: int, seed: int) -> list[int]:
    numbers: list[int] = np.random.default_rng(seed).integers(0, 256, length).tolist()
    return numbers


def datum(length: int = 12, seed: int = 0, **inputs: Any) -> types.Datum:
    tokens = ids(length + 1, seed)
    inputs = inputs or {"weights": [0.0] + [1.0] * (length - 1)}
    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={"target_tokens": tokens[1:], **inputs},
    )


BATCH = [datum(12, 0), datum(7, 1), datum(20, 2)]


def create(service: tinker.ServiceClient, **config: Any) -> tinker.TrainingClient:
    return service.create_lora_training_client(BASE, **{"rank": 4, "seed": 1, **config}).result()


def step(
    client: tinker.TrainingClient, data: list[types.Datum], loss: str = "cross_entropy"
) -> Any:
    forward = client.forward_backward(data, loss)  # type: ignore[arg-type]
    optim = client.optim_step(ADAM)
    optim.result(WAIT_S)
    return forward.result(WAIT_S)


def logprobs(output: types.ForwardBackwardOutput) -> list[np.ndarray]:
    return [out["logprobs"].to_numpy() for out in output.loss_fn_outputs]


def prompt(length: int = 6, seed: int = 3) -> types.ModelInput:
    return types.ModelInput.from_ints(ids(length, seed))


def params(**more: Any) -> types.SamplingParams:
    return types.SamplingParams(**{"max_tokens": 10, "stop": [], **more})


def tokens(sampler: tinker.SamplingClient, **more: Any) -> list[list[int]]:
    got = sampler.sample(prompt(), 2, params(**{"temperature": 1.0, "seed": 5, **more}))
    return [sequence.tokens for sequence in got.result(WAIT_S).sequences]


class TwinLora:
    """The same training written without the engine: hooks on transformers' model, torch's Adam."""

    def __init__(self, model: Path, adapter: Path, rank: int) -> None:
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        self.model.requires_grad_(False)
        saved = load_file(adapter / "adapter_model.safetensors")
        self.weights = {k: v.clone().requires_grad_() for k, v in saved.items()}
        for name, module in self.model.named_modules():
            if isinstance(module, torch.nn.Linear):
                a, b = (self.weights[f"base_model.model.{name}.lora_{x}.weight"] for x in "AB")
                module.register_forward_hook(
                    lambda _, args, out, a=a, b=b: out + 32 / rank * (args[0] @ a.T @ b.T)
                )
        self.adam = torch.optim.AdamW(
            self.weights.values(), lr=1e-2, betas=(0.9, 0.95), eps=1e-12, weight_decay=0.0
        )

    def step(self, data: list[types.Datum]) -> float:
        total = torch.zeros(())
        for item in data:
            logits = self.model(torch.tensor([item.model_input.to_ints()])).logits[0]
            losses = F.cross_entropy(
                logits, item.loss_fn_inputs["target_tokens"].to_torch(), reduction="none"
            )
            total = total + (losses * item.loss_fn_inputs["weights"].to_torch()).sum()
        total.backward()
        self.adam.step()
        self.adam.zero_grad()
        return total.item()


def test_supervised_training_follows_an_independent_run(
    service: tinker.ServiceClient, model: Path, data_dir: Path
) -> None:
    client = create(service)
    client.save_weights_for_sampler("start").result(WAIT_S)
    (saved,) = data_dir.glob(f"runs/{client.model_id.replace(':', '_')}/sampler_weights/start")
    twin = TwinLora(model, saved, rank=4)
    mine = [step(client, BATCH).metrics["loss:sum"] for _ in range(10)]
    theirs = [twin.step(BATCH) for _ in range(10)]
    np.testing.assert_allclose(mine, theirs, rtol=2e-3)
    assert mine[-1] < 0.5 * mine[0]


def test_gradients_accumulate_until_the_step(service: tinker.ServiceClient) -> None:
    together, apart = create(service), create(service)
    for _ in range(2):
        step(together, BATCH)
        for item in BATCH:
            apart.forward_backward([item], "cross_entropy")
        apart.optim_step(ADAM).result(WAIT_S)
    a, b = (c.forward(BATCH, "cross_entropy").result(WAIT_S) for c in (together, apart))
    for x, y in zip(logprobs(a), logprobs(b), strict=True):
        np.testing.assert_allclose(x, y, atol=2e-3)


def test_chunks_that_arrive_out_of_order_are_one_batch(service: tinker.ServiceClient) -> None:
    small = service.holder.get_client_config().model_copy(update={"fwdbwd_max_chunk_len": 2})
    client = create(service)
    whole = client.forward(BATCH * 2, "cross_entropy").result(WAIT_S)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(service.holder, "_client_config", small)  # three chunks, the first sent last
        chunked = client.forward_backward(BATCH * 2, "cross_entropy")
        client.optim_step(ADAM).result(WAIT_S)
    out = chunked.result(WAIT_S)
    assert out.metrics["loss:sum"] == pytest.approx(whole.metrics["loss:sum"], rel=1e-5)
    for x, y in zip(logprobs(out), logprobs(whole), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-4)


@pytest.mark.parametrize("loss", ["importance_sampling", "ppo", "cispo", "dro"])
def test_policy_losses_make_what_was_good_likelier(
    service: tinker.ServiceClient, loss: str
) -> None:
    client = create(service)
    before = logprobs(client.forward([datum()], "cross_entropy").result(WAIT_S))[0]
    signs = np.where(np.arange(12) % 2, 1.0, -1.0)
    item = datum(logprobs=before.tolist(), advantages=signs.tolist())
    first = step(client, [item], loss)
    np.testing.assert_allclose(logprobs(first)[0], before, atol=1e-5)
    want = -(signs * before).sum() if loss in ("cispo", "dro") else -signs.sum()
    assert first.metrics["loss:sum"] == pytest.approx(want, abs=1e-3)
    step(client, [item], loss)
    after = logprobs(client.forward([datum()], "cross_entropy").result(WAIT_S))[0]
    assert (signs * (after - before)).mean() > 0.05


def test_an_uploaded_loss_trains_as_the_same_loss_on_the_clients_side(
    service: tinker.ServiceClient,
) -> None:
    def confident(logprobs, weights):  # type: ignore[no-untyped-def]
        loss = -(logprobs * weights).sum() + 0.1 * logprobs.square().mean()
        return loss, {"custom/nll:mean": loss.detach(), "custom/datums:sum": loss.detach() * 0 + 1}

    ranks = {"logprobs": 1, "weights": 1}
    handle = service.create_custom_loss(confident, ranks).result(WAIT_S)  # type: ignore[arg-type]
    assert handle.loss_id is not None
    here, there = create(service), create(service)
    for client, loss in ((here, dataclasses.replace(handle, loss_id=None)), (there, handle)):
        future = client.forward_backward_custom(BATCH, loss)
        client.optim_step(ADAM).result(WAIT_S)
        metrics = future.result(WAIT_S).metrics
        assert metrics["custom/datums:sum"] == 3
        assert metrics["custom/nll:mean"] == pytest.approx(metrics["loss:sum"] / 3, rel=1e-5)
    a, b = (c.forward(BATCH, "cross_entropy").result(WAIT_S) for c in (here, there))
    for mine, theirs in zip(a.loss_fn_outputs, b.loss_fn_outputs, strict=True):
        np.testing.assert_allclose(mine["logprobs"].data, theirs["logprobs"].data, atol=1e-4)

    def escapes(logprobs):  # type: ignore[no-untyped-def]
        return torch.from_file(logprobs), {}

    with pytest.raises(tinker.APIStatusError, match="from_file") as caught:
        service.create_custom_loss(escapes, {"logprobs": 1}).result(WAIT_S)
    assert caught.value.status_code == 422


def test_a_custom_loss_runs_on_the_clients_side(service: tinker.ServiceClient) -> None:
    def doubled(data: list[types.Datum], values: list[torch.Tensor]) -> Any:
        loss = -2 * sum(value.sum() for value in values)
        return loss, {"mine": 1.0}

    custom, plain = create(service), create(service)
    heavy = [datum(12, 0, weights=[2.0] * 12), datum(7, 1, weights=[2.0] * 7)]
    light = [types.Datum(d.model_input, {"target_tokens": d.loss_fn_inputs["target_tokens"]})
             for d in heavy]  # fmt: skip
    future = custom.forward_backward_custom(light, doubled)
    custom.optim_step(ADAM).result(WAIT_S)
    assert future.result(WAIT_S).metrics["mine"] == 1.0
    step(plain, heavy)
    a, b = (c.forward(BATCH, "cross_entropy").result(WAIT_S) for c in (custom, plain))
    for x, y in zip(logprobs(a), logprobs(b), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5)


def test_several_targets_a_position(service: tinker.ServiceClient) -> None:
    client = create(service)
    targets = torch.zeros(12, 6, dtype=torch.int64)
    weights = torch.zeros(12, 6)
    plain = datum()
    targets[:, 0] = plain.loss_fn_inputs["target_tokens"].to_torch()
    targets[2, 1], weights[2, 1], weights[2, 0] = 7, 0.25, 0.75
    item = types.Datum(plain.model_input, {"target_tokens": targets, "weights": weights})
    assert item.loss_fn_inputs["weights"].sparse_crow_indices is not None
    out = client.forward([item], "cross_entropy").result(WAIT_S)
    (got,) = logprobs(out)
    assert got.shape == (12, 6)
    reference = logprobs(client.forward([plain], "cross_entropy").result(WAIT_S))[0]
    np.testing.assert_allclose(got[:, 0], reference, atol=1e-5)
    want = -(0.75 * got[2, 0] + 0.25 * got[2, 1])
    assert out.metrics["loss:sum"] == pytest.approx(want, rel=1e-4)


def test_sampling_is_seeded_stops_and_agrees_with_training(service: tinker.ServiceClient) -> None:
    client = create(service)
    step(client, BATCH)
    sampler = client.save_weights_and_get_sampling_client().result()
    first = sampler.sample(prompt(), 3, params(seed=9), include_prompt_logprobs=True)
    got = first.result(WAIT_S)
    assert [s.tokens for s in got.sequences] == [
        s.tokens for s in sampler.sample(prompt(), 3, params(seed=9)).result(WAIT_S).sequences
    ]
    assert len({s.sequence_id for s in got.sequences}) == 3
    for sequence in got.sequences:
        assert sequence.stop_reason == "length"
        whole = prompt().to_ints() + sequence.tokens
        item = types.Datum(types.ModelInput.from_ints(whole[:-1]), {"target_tokens": whole[1:]})
        trained = logprobs(client.forward([item], "cross_entropy").result(WAIT_S))[0]
        scored = sampler.compute_logprobs(types.ModelInput.from_ints(whole)).result(WAIT_S)
        assert scored[0] is None
        assert got.prompt_logprobs is not None
        np.testing.assert_allclose(np.array(scored[1:], float), trained, atol=1e-4)
        np.testing.assert_allclose(sequence.logprobs, trained[-10:], atol=1e-4)
        np.testing.assert_allclose(
            np.array(got.prompt_logprobs[1:], float), trained[: len(prompt().to_ints()) - 1],
            atol=1e-4,
        )  # fmt: skip
    token = got.sequences[0].tokens[3]
    cut = sampler.sample(prompt(), 3, params(seed=9, stop=[token])).result(WAIT_S).sequences[0]
    assert cut.stop_reason == "stop"
    assert cut.tokens == got.sequences[0].tokens[: got.sequences[0].tokens.index(token) + 1]
    text = client.get_tokenizer().decode(got.sequences[0].tokens[:3])
    named = sampler.sample(prompt(), 1, params(seed=9, stop=text[-1])).result(WAIT_S).sequences[0]
    assert named.stop_reason == "stop"


def test_many_requests_at_once_get_their_own_answers(service: tinker.ServiceClient) -> None:
    sampler = service.create_sampling_client(base_model=BASE).result()
    prompts = [prompt(n % 17 + 2, n) for n in range(80)]
    futures = [sampler.sample(p, 1, params(seed=n)) for n, p in enumerate(prompts)]
    got = [f.result(WAIT_S).sequences[0].tokens for f in futures]
    assert len({tuple(t) for t in got}) == 80
    for n in (0, 33, 79):
        again = sampler.sample(prompts[n], 1, params(seed=n)).result(WAIT_S)
        assert again.sequences[0].tokens == got[n]


def test_a_sampler_stays_with_its_weights_while_training_goes_on(
    service: tinker.ServiceClient,
) -> None:
    client = create(service)
    step(client, BATCH)
    sampler = client.save_weights_and_get_sampling_client().result()
    path = client.save_weights_for_sampler("pinned").result(WAIT_S).path
    from_disk = service.create_sampling_client(model_path=path).result()
    before = tokens(sampler)
    for _ in range(5):
        step(client, BATCH)
    assert tokens(sampler) == tokens(from_disk) == before
    assert tokens(client.save_weights_and_get_sampling_client().result()) != before
    assert tokens(pickle.loads(pickle.dumps(sampler))) == before  # a clone in another process


def test_a_sampler_for_every_step_does_not_fill_the_memory(
    service: tinker.ServiceClient, data_dir: Path
) -> None:
    client = create(service)
    samplers = []
    for _ in range(11):  # more than stay in memory
        samplers.append(client.save_weights_and_get_sampling_client().result())
        step(client, BATCH)
    drawn = [tokens(sampler) for sampler in samplers]
    assert len(list(data_dir.glob("parked/*/*.npy"))) >= 3
    assert [tokens(sampler) for sampler in reversed(samplers)] == drawn[::-1]
    assert drawn[0] != drawn[-1]


def test_training_continues_from_a_saved_state_as_if_never_interrupted(
    service: tinker.ServiceClient,
) -> None:
    client = create(service)
    for _ in range(3):
        step(client, BATCH)
    path = client.save_state("half").result(WAIT_S).path
    loaded = service.create_training_client_from_state_with_optimizer(path).result()
    fresh = service.create_training_client_from_state(path).result()
    other = create(service, seed=99)
    other.load_state_with_optimizer(path).result(WAIT_S)
    uninterrupted = [step(client, BATCH).metrics for _ in range(3)]
    assert [step(loaded, BATCH).metrics for _ in range(3)] == uninterrupted
    assert [step(other, BATCH).metrics for _ in range(3)] == uninterrupted
    # Weights alone: the same point, but Adam starts over.
    weights_only = [step(fresh, BATCH).metrics for _ in range(3)]
    assert weights_only[0] == uninterrupted[0]
    assert weights_only[1:] != uninterrupted[1:]


def test_what_was_saved_outlives_the_engine(model: Path, tmp_path: Path) -> None:
    def start() -> EngineProcess:
        return launch.start({BASE: str(model)}, tmp_path / "data", tmp_path / "engine.log")

    with start() as engine:
        service = tinker.ServiceClient(base_url=engine.base_url, api_key=engine.api_key)
        client = create(service)
        step(client, BATCH)
        state = client.save_state("s").result(WAIT_S).path
        sampler_path = client.save_weights_for_sampler("w").result(WAIT_S).path
        expected = step(client, BATCH).metrics
        sampled = tokens(service.create_sampling_client(model_path=sampler_path).result())
    with start() as engine:
        service = tinker.ServiceClient(base_url=engine.base_url, api_key=engine.api_key)
        again = service.create_training_client_from_state_with_optimizer(state).result()
        assert step(again, BATCH).metrics == expected
        sampler = service.create_sampling_client(model_path=sampler_path).result()
        assert tokens(sampler) == sampled
        assert sampler.get_base_model() == BASE
        rest = tinker.RestClient(base_url=engine.base_url, api_key=engine.api_key)
        runs = rest.list_training_runs().result(WAIT_S).training_runs
        assert client.model_id in [run.training_run_id for run in runs]


def test_the_rest_client_lists_and_deletes(
    service: tinker.ServiceClient, engine: EngineProcess
) -> None:
    client = create(service, user_metadata={"why": "test"})
    state = client.save_state("a", ttl_seconds=7200).result(WAIT_S).path
    client.save_weights_for_sampler("b").result(WAIT_S)
    rest = tinker.RestClient(base_url=engine.base_url, api_key=engine.api_key)
    run = rest.get_training_run(client.model_id).result(WAIT_S)
    assert (run.base_model, run.lora_rank, run.user_metadata) == (BASE, 4, {"why": "test"})
    assert run.last_checkpoint is not None
    assert run.last_checkpoint.tinker_path == state
    assert run.last_checkpoint.expires_at is not None
    listed = rest.list_checkpoints(client.model_id).result(WAIT_S).checkpoints
    assert {c.checkpoint_id for c in listed} == {"weights/a", "sampler_weights/b"}
    info = rest.get_weights_info_by_tinker_path(state).result(WAIT_S)
    assert (info.base_model, info.lora_rank, info.train_mlp) == (BASE, 4, True)
    rest.set_checkpoint_ttl_from_tinker_path(state, None).result(WAIT_S)
    assert state in [c.tinker_path for c in rest.list_user_checkpoints().result(WAIT_S).checkpoints]
    rest.delete_checkpoint_from_tinker_path(state).result(WAIT_S)
    with pytest.raises(tinker.NotFoundError, match="no checkpoint"):
        rest.get_weights_info_by_tinker_path(state).result(WAIT_S)
    models = rest.get_server_capabilities().result(WAIT_S).supported_models
    assert [(m.model_name, m.max_context_length) for m in models] == [(BASE, 128)]


def test_info_names_the_model_and_where_its_tokenizer_is(
    service: tinker.ServiceClient, model: Path
) -> None:
    client = create(service)
    info = client.get_info()
    assert (info.model_data.model_name, info.lora_rank) == (BASE, 4)
    assert info.model_data.tokenizer_id == str(model)
    assert client.get_tokenizer().decode(client.get_tokenizer().encode("hello")) == "hello"


def test_a_sampler_finds_its_tokenizer_where_the_model_is_named_by_its_directory(
    service: tinker.ServiceClient, model: Path
) -> None:
    params = types.SamplingParams(max_tokens=4, seed=0, stop=[])
    by_name, by_place = (
        service.create_sampling_client(base_model=name).result() for name in (BASE, str(model))
    )
    assert by_place.get_tokenizer().encode("hello") == create(service).get_tokenizer().encode(
        "hello"
    )
    drawn = [c.sample(prompt(5, 1), 1, params).result(WAIT_S) for c in (by_name, by_place)]
    assert drawn[0].sequences[0].tokens == drawn[1].sequences[0].tokens
    client = service.create_lora_training_client(str(model), rank=2).result()
    path = client.save_weights_for_sampler("placed").result(WAIT_S).path
    saved = service.create_sampling_client(model_path=path).result()
    assert saved.get_base_model() == str(model)
    assert saved.get_tokenizer().encode("hello") == by_place.get_tokenizer().encode("hello")


def test_a_name_alone_is_told_with_the_path_that_it_has(service: tinker.ServiceClient) -> None:
    client = create(service)
    path = client.save_state("named").result(WAIT_S).path
    with pytest.raises(tinker.TinkerError, match=path):
        client.load_state("named").result(WAIT_S)
    assert client.load_state(path).result(WAIT_S).path == path
    with pytest.raises(tinker.TinkerError, match="no '/'"):
        client.save_state("run/named").result(WAIT_S)


def test_peft_loads_a_saved_adapter(
    service: tinker.ServiceClient, model: Path, data_dir: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    client = create(service)
    for _ in range(3):
        step(client, BATCH)
    client.save_weights_for_sampler("peft").result(WAIT_S)
    folder = data_dir / "runs" / client.model_id.replace(":", "_") / "sampler_weights" / "peft"
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    peft = PeftModel.from_pretrained(base, folder).eval()
    mine = logprobs(client.forward(BATCH, "cross_entropy").result(WAIT_S))
    for item, got in zip(BATCH, mine, strict=True):
        with torch.no_grad():
            logits = peft(torch.tensor([item.model_input.to_ints()])).logits[0]
        targets = item.loss_fn_inputs["target_tokens"].to_torch()
        want = logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0]
        np.testing.assert_allclose(got, want, atol=1e-4)


def test_mistakes_are_told_and_the_model_goes_on(service: tinker.ServiceClient) -> None:
    client = create(service)
    bad = types.Datum(types.ModelInput.from_ints([VOCAB]), {"target_tokens": [1]})
    with pytest.raises(tinker.RequestFailedError, match="vocabulary") as caught:
        client.forward_backward([bad], "cross_entropy").result(WAIT_S)
    assert caught.value.category == types.RequestErrorCategory.User
    sampler = client.save_weights_and_get_sampling_client().result()
    with pytest.raises(tinker.RequestFailedError, match="context window"):
        sampler.sample(prompt(), 1, params(max_tokens=1000)).result(WAIT_S)
    with pytest.raises(tinker.UnprocessableEntityError, match="cannot be used"):
        client.save_state("../escape").result(WAIT_S)
    assert math.isfinite(step(create(service), BATCH).metrics["loss:sum"])


def test_an_unknown_base_model_says_what_is_served(service: tinker.ServiceClient) -> None:
    with pytest.raises(tinker.NotFoundError, match=BASE):
        service.create_sampling_client(base_model="no-such-model").result()


def test_a_directory_is_a_base_model_too(service: tinker.ServiceClient, tmp_path: Path) -> None:
    other = build(tmp_path / "untied", tied=False, seed=3)
    client = service.create_lora_training_client(str(other), rank=2, seed=0).result()
    first = step(client, BATCH).metrics["loss:sum"]
    assert step(client, BATCH).metrics["loss:sum"] < first
    assert len(tokens(client.save_weights_and_get_sampling_client().result())) == 2


def test_two_models_train_at_once_without_meeting(service: tinker.ServiceClient) -> None:
    def train(seed: int) -> list[float]:
        client = create(service, seed=seed)
        return [step(client, BATCH).metrics["loss:sum"] for _ in range(4)]

    alone = [train(1), train(2)]
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(train, [1, 2])) == alone


def test_the_wrong_key_is_refused(engine: EngineProcess) -> None:
    with pytest.raises(tinker.AuthenticationError, match="X-API-Key"):
        tinker.ServiceClient(base_url=engine.base_url, api_key="tml-wrong").holder  # noqa: B018


def test_a_client_that_leaves_without_a_word_does_not_hang(engine: EngineProcess) -> None:
    code = (
        "import sys, tinker\n"
        "s = tinker.ServiceClient(base_url=sys.argv[1], api_key=sys.argv[2])\n"
        f"c = s.create_lora_training_client({BASE!r}, rank=2).result()\n"
        "print(c.model_id)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, engine.base_url, engine.api_key],
        capture_output=True, text=True, timeout=WAIT_S,
    )  # fmt: skip
    # CPython before 3.14 may abort a process whose threads still work as it is taken down; the
    # SDK's thread may, rarely. That is the end of the client, not of the engine.
    assert done.returncode in (0, -signal.SIGABRT), done.stderr
    assert ":train:0" in done.stdout
    assert engine.is_alive
