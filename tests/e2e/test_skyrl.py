"""SkyRL as an engine: checks and recipes on a real server, beside the embedded engine.

    PTL_SKYRL=CHECKOUT [SKYRL_VENV=...] python -m pytest -m nightly tests/e2e/test_skyrl.py
    PTL_SKYRL_URL=http://host:port      python -m pytest -m nightly tests/e2e/test_skyrl.py

The first starts one on this machine's CPU by tools/skyrl_cpu.sh; the second takes one that serves
ptl/tiny. Its replies are drawn by another generator, so that losses are compared where both engines
have the same tokens.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tinker
from tinker import types

import posttrain_recipes as ptl
from posttrain_recipes import probe
from posttrain_recipes.engines import Local, Server
from posttrain_recipes.errors import PtlError
from posttrain_recipes.models import BUNDLED
from posttrain_recipes.plugin import Engine, Message
from posttrain_recipes.store import Store
from posttrain_recipes.tracking import curves
from posttrain_recipes.training.text.chat_template import load_renderer

ROOT = Path(__file__).resolve().parents[2]
CHECKOUT, ADDRESS = os.environ.get("PTL_SKYRL"), os.environ.get("PTL_SKYRL_URL")
pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(
        not (CHECKOUT or ADDRESS), reason="needs PTL_SKYRL (a checkout) or PTL_SKYRL_URL"
    ),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
START_S = 300.0
CLOSE = 0.01
"""How far losses may be apart: SkyRL computes its log-probabilities in other precision."""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if ADDRESS:
        yield ADDRESS
        return
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    state = tmp_path_factory.mktemp("skyrl")
    command = [str(ROOT / "tools" / "skyrl_cpu.sh"), str(CHECKOUT), str(port), str(state)]
    with (state / "log").open("wb") as log:
        started = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_for(f"http://127.0.0.1:{port}", started, state / "log")
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(started.pid, signal.SIGTERM)
        started.wait(60)


def wait_for(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until the server answers; it loads its model meanwhile."""
    end = time.monotonic() + START_S
    while time.monotonic() < end and process.poll() is None:
        try:
            urllib.request.urlopen(f"{address}/api/v1/healthz", timeout=5).close()
            return
        except OSError:
            time.sleep(1)
    pytest.fail(f"SkyRL did not start; its log ends:\n{log.read_text()[-2000:]}")


@pytest.fixture(autouse=True)
def quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setenv("TINKER_TELEMETRY", "0")
    if not os.environ.get("TINKER_API_KEY"):
        monkeypatch.setenv("TINKER_API_KEY", "tml-none")


def run(recipe: str, address: str | None, *overrides: str) -> Any:
    """A run of a recipe's preset tiny, on the server at `address` or on the embedded engine."""
    where = [f"engine={{use: server, base_url: '{address}'}}"] if address else []
    path = ROOT / "recipes" / f"{recipe}.yaml"
    return ptl.run(path, preset="tiny", home="home", overrides=[*where, *overrides]).record


def test_the_checks_are_done_in_one_pass(address: str) -> None:
    server = Server(Server.Config(base_url=address))
    with server.connect({"ptl/tiny": ""}, Path(), Path()) as connection:
        found = list(probe.probe(connection.service, connection.rest, "ptl/tiny", startup_s=300.0))
    told = {one.name: (one.verdict, one.detail) for one in found}
    assert not [one for one in found if one.full or one.detail.startswith("no answer")], told
    needed = "train forward loss:cross_entropy loss:importance_sampling loss:ppo loss:cispo"
    needed += " accumulate order lora:seed sample:group sample:trained prompt_logprobs save"
    needed += " load load:optimizer save:sampler optimizer:weight_decay checkpoints:delete"
    assert {name: told[name] for name in needed.split() if told[name][0] != "yes"} == {}


def test_imitation_has_the_losses_of_the_embedded_engine(address: str) -> None:
    here, there = run("sft", None, "stages.sft.method.grad_clip=0"), run("sft", address)
    assert there.stages[0].status == "finished"
    assert there.resolved["engine"]["dialect"] == "0.25"
    losses = [
        [value for _, value in curves.read(Store(Path("home")).path(one.id), "sft")["train/loss"]]
        for one in (here, there)
    ]
    print("losses, embedded engine and SkyRL:", losses)
    assert losses[1] == pytest.approx(losses[0], rel=CLOSE)
    ends = [one.stages[0].after[0].metrics["nll"].value for one in (here, there)]
    print("nll after, embedded engine and SkyRL:", ends)
    assert ends[1] == pytest.approx(ends[0], rel=0.02)


def test_reinforcement_ends_and_has_the_loss_of_the_embedded_engine(
    address: str, tmp_path: Path
) -> None:
    there = run("grpo_arithmetic", address)
    assert there.stages[0].status == "finished"
    renderer = load_renderer(str(BUNDLED["ptl/tiny"]))
    prompt = renderer.prompt([Message("user", "What is 2 + 3?")])
    reply: list[tuple[int, float]] = []

    def loss(engine: Engine) -> float:
        """Of the embedded engine's own reply, which the first call draws."""
        models = {"ptl/tiny": str(BUNDLED["ptl/tiny"])}
        with engine.connect(models, tmp_path / "engine", tmp_path / "log") as connection:
            service: tinker.ServiceClient = connection.service
            if not reply:
                sampler = service.create_sampling_client(base_model="ptl/tiny").result()
                how = types.SamplingParams(max_tokens=12, temperature=0.0, stop=renderer.stop)
                asked = sampler.sample(types.ModelInput.from_ints(prompt), 1, how)
                (drawn,) = asked.result().sequences
                reply.extend(zip(drawn.tokens, drawn.logprobs or (), strict=True))
            client = service.create_lora_training_client(
                "ptl/tiny", rank=4, train_unembed=False
            ).result()
            passed = client.forward_backward([learned(prompt, reply)], "importance_sampling")
            return float(passed.result().metrics["loss:sum"])

    losses = [loss(Local(Local.Config())), loss(Server(Server.Config(base_url=address)))]
    print("importance sampling, embedded engine and SkyRL:", losses)
    assert losses[1] == pytest.approx(losses[0], rel=CLOSE)


def learned(prompt: list[int], reply: list[tuple[int, float]]) -> types.Datum:
    """A reply with an advantage of 1 for each token."""
    before, tokens = len(prompt) - 1, [token for token, _ in reply]

    def floats(values: list[float]) -> types.TensorData:
        return types.TensorData(data=values, dtype="float32", shape=[len(values)])

    return types.Datum(
        model_input=types.ModelInput.from_ints([*prompt, *tokens[:-1]]),
        loss_fn_inputs={
            "target_tokens": [*prompt[1:], *tokens],
            "logprobs": floats([0.0] * before + [value for _, value in reply]),
            "advantages": floats([0.0] * before + [1.0] * len(reply)),
        },
    )


def test_only_what_needs_sums_of_gradients_is_refused_and_by_that_name(address: str) -> None:
    """Of what the preference methods need. A backend that sums is not refused."""
    server = Server(Server.Config(base_url=address))
    with server.connect({"ptl/tiny": ""}, Path(), Path()) as connection:
        sums = not connection.missing(["gradient:sum"])
    if sums:
        assert run("dpo", address).stages[-1].status == "finished"
        return
    with pytest.raises(PtlError, match="custom_loss") as error:
        run("dpo", address)
    assert "needs gradient:sum: a sequence of weight" in str(error.value.why)
