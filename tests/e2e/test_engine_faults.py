"""What happens between SDK and engine when the network, a gateway or the engine itself fails.

Either training ends in exactly the state of a run without faults, to the byte, or the client hears
of it: no step is taken twice, and nobody waits for ever.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tinker
from tinker import types

from posttrain_recipes import watching
from posttrain_recipes.engine import launch
from posttrain_recipes.engines import Server
from posttrain_recipes.errors import PtlError
from posttrain_recipes.waiting import EngineLostError, EngineWaiter, in_thread
from tests.engine_model import build
from tests.faulty_proxy import FAULTS, FaultyProxy

BASE = "ptl/test"
TOKEN = "tml-a-token-for-the-tests"
WAIT_S = 60.0
OPERATIONS = (
    "create_model", "get_info", "forward_backward", "optim_step", "save_weights",
    "save_weights_for_sampler", "load_weights", "create_sampling_session", "asample",
    "retrieve_future",
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1,localhost")
        patch.setenv("TINKER_TELEMETRY", "0")
        patch.setenv("TINKER_API_KEY", TOKEN)
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("model"))


class Engine:
    """An engine on one port, with one token and one folder, however often it is started."""

    def __init__(self, model: Path, folder: Path) -> None:
        self.model, self.folder = model, folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        read, write = os.pipe()
        command = [
            sys.executable, "-m", "posttrain_recipes.engine", "--model", f"{BASE}={self.model}",
            "--port", str(self.port), "--data-dir", str(self.folder), "--ready-fd", str(write),
        ]  # fmt: skip
        environment = {**launch._environment(TOKEN)}
        with (self.folder / "engine.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, env=environment, pass_fds=(write,), stdout=log, stderr=log
            )
        os.close(write)
        assert os.read(read, 100).startswith(b"http://")
        os.close(read)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def state(self, client_or_path: Any) -> dict[str, bytes]:
        """The bytes of a saved checkpoint."""
        run, kind, name = str(client_or_path).removeprefix("tinker://").split("/")
        folder = self.folder / "runs" / run.replace(":", "_") / kind / name
        return {file.name: file.read_bytes() for file in folder.glob("*.safetensors")}


@pytest.fixture(scope="module")
def engine(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    engine = Engine(model, tmp_path_factory.mktemp("data"))
    engine.start()
    yield engine
    engine.kill()


def datum(start: int, length: int = 12) -> types.Datum:
    ids = [(7 * start + 11 * i) % 251 for i in range(length + 1)]
    return types.Datum(
        model_input=types.ModelInput.from_ints(ids[:-1]),
        loss_fn_inputs={"target_tokens": ids[1:], "weights": [1.0] * length},
    )


@contextmanager
def session(url: str) -> Iterator[tinker.ServiceClient]:
    service = tinker.ServiceClient(base_url=url, api_key=TOKEN)
    # Every batch goes out as one request a sequence, all at once.
    holder = service.holder
    settings = holder.get_client_config().model_copy(update={"fwdbwd_max_chunk_len": 1})
    holder._client_config = settings
    yield service
    service.close("success")


def result(future: Any) -> Any:
    return future.result(WAIT_S)


def steps(
    client: tinker.TrainingClient, first: int, count: int, wait: Callable[[Any], Any] = result
) -> None:
    futures: list[Any] = []
    for i in range(first, first + count):
        futures.append(client.forward_backward([datum(i), datum(i + 50, 7)], "cross_entropy"))
        futures.append(client.optim_step(types.AdamParams(learning_rate=1e-2)))
    for future in futures:
        wait(future)


@dataclass
class Result:
    """What a program ended with."""

    state: dict[str, bytes]
    resumed: dict[str, bytes]
    samples: list[list[int]]


def program(url: str, engine: Engine) -> Result:
    """Train, save, go on from what was saved, train, save, sample."""
    with session(url) as service:
        client = service.create_lora_training_client(BASE, rank=4, seed=3).result(WAIT_S)
        steps(client, 0, 3)
        saved = client.save_state("middle").result(WAIT_S).path
        again = service.create_training_client_from_state_with_optimizer(saved).result(WAIT_S)
        steps(again, 3, 1)
        end = again.save_state("end").result(WAIT_S).path
        path = again.save_weights_for_sampler("end").result(WAIT_S).path
        sampler = service.create_sampling_client(model_path=path).result(WAIT_S)
        prompt = types.ModelInput.from_ints(list(range(20, 30)))
        params = types.SamplingParams(max_tokens=6, stop=[], seed=4)
        live = again.save_weights_and_get_sampling_client().result(WAIT_S)
        tokens = []
        for one in (sampler, live):
            drawn = one.sample(prompt, 2, params).result(WAIT_S)
            tokens += [list(sequence.tokens) for sequence in drawn.sequences]
    return Result(engine.state(saved), engine.state(end), tokens)


@pytest.fixture(scope="module")
def faultless(engine: Engine) -> Result:
    found = program(f"http://127.0.0.1:{engine.port}", engine)
    assert set(found.state) == {"adapter_model.safetensors", "optimizer.safetensors"}
    assert found.state != found.resumed
    return found


@pytest.fixture(scope="module")
def outcomes(engine: Engine, faultless: Result) -> dict[str, tuple[Any, list[tuple[str, str]]]]:
    """What the program ends with under each fault, all at once: most of the time it waits."""

    def once(kind: str) -> Callable[[str, int], str | None]:
        return lambda path, seen: kind if path in OPERATIONS and seen == 0 else None

    def run(kind: str) -> tuple[Any, list[tuple[str, str]]]:
        with FaultyProxy(engine.port, once(kind)) as proxy:
            try:
                return program(proxy.url, engine), proxy.struck
            except Exception as error:
                return error, proxy.struck

    with ThreadPoolExecutor(len(FAULTS)) as pool:
        return dict(zip(FAULTS, pool.map(run, FAULTS), strict=True))


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_at_every_request_changes_nothing(
    outcomes: dict[str, tuple[Any, list[tuple[str, str]]]], faultless: Result, kind: str
) -> None:
    outcome, struck = outcomes[kind]
    assert {path for path, _ in struck} == set(OPERATIONS), outcome
    assert isinstance(outcome, Result), outcome
    assert outcome == faultless


def after_restart(url: str, saved: str, engine: Engine) -> dict[str, bytes]:
    """The state of `program`'s end, from what it had saved."""
    with session(url) as service:
        client = service.create_training_client_from_state_with_optimizer(saved).result(WAIT_S)
        steps(client, 3, 1)
        return engine.state(client.save_state("end").result(WAIT_S).path)


@pytest.mark.parametrize("ack", ["delivered", "lost"])
def test_an_engine_killed_and_restarted_under_a_request_is_told_of(
    engine: Engine, faultless: Result, ack: str
) -> None:
    killed = threading.Event()

    def kill(path: str) -> None:
        if path == "optim_step" and armed.is_set() and not killed.is_set():
            killed.set()
            engine.kill()
            engine.start()

    def fault(path: str, seen: int) -> str | None:
        strikes = path == "optim_step" and armed.is_set() and not killed.is_set()
        return "cut_after" if strikes and ack == "lost" else None

    armed = threading.Event()
    with FaultyProxy(engine.port, fault, kill) as proxy:
        with session(proxy.url) as service:
            client = service.create_lora_training_client(BASE, rank=4, seed=3).result(WAIT_S)
            steps(client, 0, 3)
            saved = client.save_state("middle").result(WAIT_S).path
            armed.set()
            told = in_thread(lambda: steps(client, 3, 1, EngineWaiter()))
            with pytest.raises(EngineLostError, match="restarted"):
                told.result(WAIT_S)
        assert killed.is_set()
        assert after_restart(proxy.url, saved, engine) == faultless.resumed


def test_a_server_that_stops_answering_ends_the_wait_with_the_reason(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "PING_S", 0.05)
    monkeypatch.setattr(watching, "LOST_S", 4.0)
    told: list[str] = []
    proxy = FaultyProxy(engine.port)
    with proxy, Server(Server.Config(base_url=proxy.url)).connect({}, Path(), Path()) as connection:

        def lost() -> PtlError:
            return EngineLostError("lost", why=connection.trouble())

        wait = EngineWaiter(
            connection.alive, explain_death=lost, trouble=connection.trouble, tell=told.append
        )
        client = wait(connection.service.create_lora_training_client(BASE, rank=4))
        proxy.__exit__()
        with pytest.raises(EngineLostError) as raised:
            wait(client.forward_backward([datum(0)], "cross_entropy"))
        assert f"{proxy.url} has not answered for" in str(raised.value)
        assert len(told) == 1
        proxy.__enter__()  # on the same port: the same client goes on
        wait(client.forward_backward([datum(0)], "cross_entropy"))
        assert told[-1] == "the engine answers again"


def test_a_rate_limit_is_waited_out_with_its_reason(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "BRIEF_S", 0.0)
    told: list[str] = []
    limited = FaultyProxy(
        engine.port, lambda path, seen: "429" if path == "asample" and seen < 2 else None
    )
    with (
        limited as proxy,
        Server(Server.Config(base_url=proxy.url)).connect({}, Path(), Path()) as connection,
    ):
        wait = EngineWaiter(connection.alive, trouble=connection.trouble, tell=told.append)
        sampler = wait(connection.service.create_sampling_client(base_model=BASE))
        prompt = types.ModelInput.from_ints([1, 2, 3])
        reply = wait(sampler.sample(prompt, 1, types.SamplingParams(max_tokens=2, seed=1)))
    assert len(reply.sequences[0].tokens) == 2
    assert len(told) == 1
    assert f"{proxy.url} holds requests back" in told[0]
    assert "a rate limit is reached" in told[0]
