"""What a client of the SDK can look up, keep, copy and download, and the `tinker` command line."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import tinker
from click.testing import CliRunner, Result
from safetensors.numpy import load_file
from tinker import types

from posttrain_recipes.engine import launch
from posttrain_recipes.engine.launch import EngineProcess
from tests.conftest import ROOT
from tests.engine_model import build

pytestmark = pytest.mark.usefixtures("quiet_sdk")

BASE = "ptl/test"
WAIT_S = 60.0
PROMPT = types.ModelInput.from_ints([5, 6, 7])


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def engine(model: Path, data_dir: Path) -> Iterator[EngineProcess]:
    with launch.start({BASE: str(model)}, data_dir, data_dir / "engine.log") as engine:
        yield engine


@pytest.fixture(scope="module")
def service(engine: EngineProcess) -> Iterator[tinker.ServiceClient]:
    with tinker.ServiceClient(
        base_url=engine.base_url, api_key=engine.api_key, display_name="Nightly SFT run"
    ) as service:
        yield service


@pytest.fixture(scope="module")
def rest(engine: EngineProcess) -> tinker.RestClient:
    return tinker.RestClient(base_url=engine.base_url, api_key=engine.api_key)


@pytest.fixture(scope="module")
def trained(service: tinker.ServiceClient) -> tinker.TrainingClient:
    client = service.create_lora_training_client(BASE, rank=4, seed=1).result()
    tokens = list(range(20))
    datum = types.Datum(types.ModelInput.from_ints(tokens[:-1]), {"target_tokens": tokens[1:]})
    client.forward_backward([datum], "cross_entropy").result(WAIT_S)
    client.optim_step(types.AdamParams(learning_rate=1e-2)).result(WAIT_S)
    return client


@pytest.fixture(scope="module")
def state(trained: tinker.TrainingClient) -> str:
    path: str = trained.save_state("kept").result(WAIT_S).path
    return path


def adapter(folder: Path) -> dict[str, Any]:
    arrays: dict[str, Any] = load_file(folder / "adapter_model.safetensors")
    return arrays


def equal(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all((one[k] == other[k]).all() for k in one)


def saved(data_dir: Path, path: str) -> Path:
    return data_dir / "runs" / path.removeprefix("tinker://").replace(":", "_")


def test_a_checkpoint_is_published_and_withdrawn(rest: tinker.RestClient, state: str) -> None:
    def public() -> bool:
        listed = rest.list_user_checkpoints().result(WAIT_S).checkpoints
        return next(c.public for c in listed if c.tinker_path == state)

    assert not public()
    for _ in range(2):  # again is no error: the SDK would try a 409 for five minutes
        rest.publish_checkpoint_from_tinker_path(state).result(WAIT_S)
        assert public()
    for _ in range(2):
        rest.unpublish_checkpoint_from_tinker_path(state).result(WAIT_S)
        assert not public()
    with pytest.raises(tinker.NotFoundError, match="no checkpoint"):
        rest.publish_checkpoint_from_tinker_path(f"{state}2").result(WAIT_S)


def test_a_copy_has_a_life_of_its_own(
    service: tinker.ServiceClient,
    rest: tinker.RestClient,
    trained: tinker.TrainingClient,
    data_dir: Path,
) -> None:
    source = trained.save_state("source").result(WAIT_S).path
    copied = rest.copy_weights(source, "any-project", ttl_seconds=7200).result(WAIT_S)
    assert copied.endswith("/weights/source")
    run = rest.get_training_run_by_tinker_path(copied).result(WAIT_S)
    assert run.base_model == BASE
    assert run.last_checkpoint is not None
    assert run.last_checkpoint.expires_at is not None
    original = adapter(saved(data_dir, source))
    rest.delete_checkpoint_from_tinker_path(source).result(WAIT_S)
    assert equal(adapter(saved(data_dir, copied)), original)
    again = service.create_training_client_from_state_with_optimizer(copied).result()
    assert again.get_info().lora_rank == 4
    with pytest.raises(tinker.NotFoundError):
        rest.copy_weights(source, "any-project").result(WAIT_S)


@pytest.mark.filterwarnings("ignore:.*experimental")
def test_sessions_are_found_by_name_state_and_page(
    engine: EngineProcess, service: tinker.ServiceClient, rest: tinker.RestClient, state: str
) -> None:
    ids = []
    for n in range(3):
        with tinker.ServiceClient(
            base_url=engine.base_url, api_key=engine.api_key,
            display_name=f"other {n}", user_metadata={"sweep": "a"},
        ) as client:  # fmt: skip
            client.create_sampling_client(base_model=BASE).result()
            ids.append(client.holder.get_session_id())
    assert rest.list_sessions(limit=3).result(WAIT_S).sessions == ids[::-1]

    def search(**filters: Any) -> types.SessionSearchResponse:
        return rest.search_sessions(types.SessionSearchRequest(**filters)).result(WAIT_S)

    (mine,) = search(display_name="sft nightly").sessions
    assert mine.session_id == service.holder.get_session_id()
    assert mine.status is not None
    assert mine.status.type == "active"
    assert mine.checkpoints_count >= 1
    assert mine.checkpoint_storage_bytes
    first = search(user_metadata={"sweep": "a"}, limit=2)
    rest_of = search(user_metadata={"sweep": "a"}, limit=2, cursor=first.next_cursor)
    assert [s.session_id for s in first.sessions + rest_of.sessions] == ids[::-1]
    assert rest_of.next_cursor is None
    ended = types.ClientFinishedSessionStatusQuery(reasons=["success"])
    assert {s.session_id for s in search(statuses=[ended]).sessions} == set(ids)
    assert search(display_name="nothing like it").sessions == []
    looked_up = rest.get_session(ids[0]).result(WAIT_S)
    assert (looked_up.display_name, len(looked_up.sampler_ids)) == ("other 0", 1)


def test_external_weights_are_listed_and_only_for_download(
    service: tinker.ServiceClient, rest: tinker.RestClient, trained: tinker.TrainingClient
) -> None:
    path = trained.save_weights_external("for-others", ttl_seconds=3600).result(WAIT_S).path
    listed = rest.list_checkpoints(trained.model_id).result(WAIT_S).checkpoints
    assert {c.tinker_path: c.checkpoint_type for c in listed}[path] == "external"
    urls = rest.get_external_weights_urls(path).result(WAIT_S)
    assert set(urls.urls) == {"adapter_config.json", "adapter_model.safetensors"}
    with pytest.raises(tinker.UnprocessableEntityError, match="for download"):
        service.create_sampling_client(model_path=path).result()
    with pytest.raises(tinker.UnprocessableEntityError, match="age_encryption_recipients"):
        trained.save_weights_external("x", age_encryption_recipients=["nobody"]).result(WAIT_S)
    rest.delete_checkpoint_from_tinker_path(path).result(WAIT_S)
    # A request that was refused has taken no number: what follows is not held up.
    assert trained.save_state("after", overwrite=True).result(WAIT_S).path


def test_the_cookbook_downloads_a_training_checkpoint_encrypted_on_its_way(
    engine: EngineProcess, state: str, data_dir: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from tinker_cookbook import weights

    monkeypatch.setenv("TINKER_API_KEY", engine.api_key)
    out = weights.download(
        tinker_path=state, output_dir=str(tmp_path / "out"), base_url=engine.base_url
    )
    assert equal(adapter(Path(out)), adapter(saved(data_dir, state)))
    assert (Path(out) / "adapter_config.json").is_file()


def test_the_cookbook_merges_what_was_trained_into_a_base_with_a_head_of_its_own(
    trained: tinker.TrainingClient, rest: tinker.RestClient, model: Path, tmp_path: Path
) -> None:
    """The base is tied, and the adapter is on its output layer too."""
    import torch
    from tinker_cookbook import weights
    from tinker_cookbook.exceptions import WeightsMergeError
    from transformers import AutoModelForCausalLM

    tokens = list(range(30, 50))
    datum = types.Datum(types.ModelInput.from_ints(tokens[:-1]), {"target_tokens": tokens[1:]})
    (own,) = trained.forward([datum], "cross_entropy").result(WAIT_S).loss_fn_outputs
    path = trained.save_weights_external("merged").result(WAIT_S).path
    downloaded = tmp_path / "adapter"
    downloaded.mkdir()
    for name, address in rest.get_external_weights_urls(path).result(WAIT_S).urls.items():
        (downloaded / name).write_bytes(httpx.get(address).content)
    assert any("lm_head" in name for name in adapter(downloaded))

    def build(base: Path, out: str) -> Path:
        weights.build_hf_model(
            base_model=str(base), adapter_path=str(downloaded), output_path=str(tmp_path / out)
        )
        return tmp_path / out

    with pytest.raises(WeightsMergeError, match="'lm_head.weight' which does not exist"):
        build(model, "tied")
    page = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(code, {"BASE": str(model), "COPY": str(tmp_path / "copy")})  # what the docs tell
    merged = AutoModelForCausalLM.from_pretrained(build(tmp_path / "copy", "whole"))
    with torch.no_grad():
        said = merged(torch.tensor([tokens[:-1]])).logits[0].float().log_softmax(-1)
    expected = said.gather(1, torch.tensor(tokens[1:])[:, None])[:, 0].tolist()
    assert own["logprobs"].data == pytest.approx(expected, abs=1e-4)


def test_the_tinker_command_line(
    engine: EngineProcess, state: str, data_dir: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from tinker.cli.__main__ import main_cli

    monkeypatch.setenv("TINKER_BASE_URL", engine.base_url)
    monkeypatch.setenv("TINKER_API_KEY", engine.api_key)

    def run(*words: str) -> Result:
        return CliRunner().invoke(main_cli, words)

    got = run("checkpoint", "download", state, "--output", str(tmp_path))
    assert got.exit_code == 0, got.output
    (folder,) = (path.parent for path in tmp_path.rglob("adapter_model.safetensors"))
    assert equal(adapter(folder), adapter(saved(data_dir, state)))
    assert "download" not in [p.name for p in data_dir.glob("runs/*/external_weights/*")]
    assert state in run("-f", "json", "checkpoint", "list").stdout
    assert run("-f", "json", "run", "list").exit_code == 0
    assert BASE in run("model", "list").stdout
    refused = run("session", "export-trace", "any")
    assert refused.exit_code != 0
    assert "/metrics" in refused.exception.details  # type: ignore[union-attr]


def test_an_abandoned_sample_is_cancelled(service: tinker.ServiceClient) -> None:
    sampler = service.create_sampling_client(base_model=BASE).result()
    long = types.SamplingParams(max_tokens=100, stop=[])
    cancelled = threading.Event()
    send = service.holder._send_cancel_request

    async def noted(request_id: str) -> None:
        await send(request_id)
        cancelled.set()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(service.holder, "_send_cancel_request", noted)
        pending = [sampler.sample(PROMPT, 200, long) for _ in range(4)]
        with pytest.raises(TimeoutError):
            pending[-1].result(0.3)
        pending[-1].future().cancel()
        assert cancelled.wait(WAIT_S)
    assert sampler.sample(PROMPT, 1, long).result(WAIT_S).sequences


def test_one_poll_can_serve_a_whole_sampling_session(service: tinker.ServiceClient) -> None:
    config = service.holder.get_client_config().model_copy(
        update={"sample_use_retrieve_futures": True}
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(service.holder, "_client_config", config)
        sampler = service.create_sampling_client(base_model=BASE).result()
        futures = [
            sampler.sample(PROMPT, 1, types.SamplingParams(max_tokens=3, seed=n, stop=[]))
            for n in range(20)
        ]
        assert all(len(f.result(WAIT_S).sequences[0].tokens) == 3 for f in futures)
        wrong = sampler.sample(types.ModelInput.from_ints([999]), 1, types.SamplingParams())
        with pytest.raises(tinker.RequestFailedError, match="vocabulary"):
            wrong.result(WAIT_S)


def test_what_means_nothing_here_is_refused_at_once(rest: tinker.RestClient) -> None:
    with pytest.raises(tinker.UnprocessableEntityError, match="no projects"):
        rest.assign_session_project("any", "any").result(5)
    admin = tinker.AdminClient(base_url=rest.holder._base_url, api_key=rest.holder._api_key)
    with pytest.raises(tinker.UnprocessableEntityError, match="one owner"):
        admin.get_audit_log().result(5)


def test_a_sampler_is_handed_on_and_looked_up(
    engine: EngineProcess, trained: tinker.TrainingClient, rest: tinker.RestClient
) -> None:
    path = trained.save_weights_for_sampler("handed").result(WAIT_S).path
    sampler = trained.create_sampling_client(path).result(WAIT_S)
    handed = tinker.SamplingClient.from_sampler_handle(
        sampler.get_sampler_handle(), api_key=engine.api_key
    )
    params = types.SamplingParams(max_tokens=4, seed=1, stop=[])
    first, second = (
        one.sample(PROMPT, 1, params).result(WAIT_S).sequences[0] for one in (sampler, handed)
    )
    assert first.tokens == second.tokens
    assert first.sequence_id != second.sequence_id
    found = rest.get_sampler(first.sequence_id.rpartition(":")[0].rpartition(":")[0]).result(WAIT_S)
    assert (found.base_model, found.model_path) == (BASE, path)


def test_a_checkpoint_is_deleted_by_run_and_name_and_expires(
    trained: tinker.TrainingClient, rest: tinker.RestClient
) -> None:
    kept, gone = (trained.save_state(name).result(WAIT_S).path for name in ("stays", "goes"))

    def listed() -> dict[str, Any]:
        found = rest.list_checkpoints(trained.model_id).result(WAIT_S).checkpoints
        return {one.tinker_path: one.expires_at for one in found}

    assert listed()[kept] is None
    rest.set_checkpoint_ttl_from_tinker_path(kept, 7200).result(WAIT_S)
    assert listed()[kept] is not None
    rest.delete_checkpoint(trained.model_id, "weights/goes").result(WAIT_S)
    assert gone not in listed()
    assert kept in listed()


def test_what_only_a_business_has_is_refused_with_its_reason(
    trained: tinker.TrainingClient, rest: tinker.RestClient
) -> None:
    session = trained.model_id.partition(":")[0]
    asked = {
        "its /metrics tell": lambda: rest.export_session_trace(session),
        "nothing is billed; checkpoints": rest.get_current_checkpoint_storage_usage,
        "nothing is billed": lambda: rest.get_billing_usage(
            "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"
        ),
    }
    for says, ask in asked.items():
        with pytest.raises(tinker.UnprocessableEntityError, match=says):
            ask().result(WAIT_S)
    with pytest.raises(RuntimeError, match="plain API key"):  # the SDK's own, by the client config
        rest.whoami().result(WAIT_S)
    assert trained.model_id in trained.get_console_url()
    assert trained.get_telemetry() is None  # switched off, as `ptl` does


def test_checkpoints_outlive_a_kill_in_the_midst_of_saving(model: Path, tmp_path: Path) -> None:
    def start() -> EngineProcess:
        return launch.start({BASE: str(model)}, tmp_path / "data", tmp_path / "engine.log")

    engine = start()
    service = tinker.ServiceClient(base_url=engine.base_url, api_key=engine.api_key)
    client = service.create_lora_training_client(BASE, rank=4, seed=1).result()
    kept = client.save_state("kept").result(WAIT_S).path
    for n in range(20):
        client.save_state(f"more-{n}")
    client.save_state("kept", overwrite=True)
    os.kill(engine.pid, signal.SIGKILL)
    engine.stop()
    with start() as engine:
        service = tinker.ServiceClient(base_url=engine.base_url, api_key=engine.api_key)
        rest = tinker.RestClient(base_url=engine.base_url, api_key=engine.api_key)
        for found in rest.list_user_checkpoints().result(WAIT_S).checkpoints:
            adapter(saved(tmp_path / "data", found.tinker_path))  # each is whole
        again = service.create_training_client_from_state_with_optimizer(kept).result()
        assert again.get_info().lora_rank == 4
        assert list((tmp_path / "data").glob("runs/*/*/.[!w]*")) == []
        damaged = saved(tmp_path / "data", kept) / "adapter_model.safetensors"
        damaged.write_bytes(damaged.read_bytes()[:100])
        with pytest.raises(tinker.RequestFailedError, match="adapter_model.safetensors is damaged"):
            service.create_training_client_from_state(kept).result()
