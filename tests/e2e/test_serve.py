"""`ptl serve`, as another program meets it."""

from __future__ import annotations

import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import openai
import tinker


def serve(*options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-u", "-m", "posttrain_recipes.cli", "serve", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_the_lines_it_prints_are_all_that_a_program_needs(tmp_path: Path) -> None:
    process = serve("--port", "0", "--home", str(tmp_path))
    exported = read_exports(process)
    service = tinker.ServiceClient(
        base_url=exported["TINKER_BASE_URL"], api_key=exported["TINKER_API_KEY"]
    )
    sampler = service.create_sampling_client(base_model="ptl/nano").result()
    params = tinker.SamplingParams(max_tokens=3, seed=0, stop=[])
    answer = sampler.sample(tinker.ModelInput.from_ints([5, 6, 7]), 2, params).result()
    assert [len(sequence.tokens) for sequence in answer.sequences] == [3, 3]
    with openai.OpenAI(
        base_url=exported["OPENAI_BASE_URL"], api_key=exported["OPENAI_API_KEY"]
    ) as client:
        assert [model.id for model in client.models.list()] == ["ptl/tiny", "ptl/nano"]
    training = service.create_lora_training_client("ptl/nano", rank=2).result()
    datum = tinker.Datum(tinker.ModelInput.from_ints([5, 6, 7]), {"target_tokens": [6, 7, 8]})
    training.forward_backward([datum] * 4, "cross_entropy").result()
    training.optim_step(tinker.AdamParams()).result()
    lines = metrics(exported)
    for line in ("ptl_tokens_trained_total 12", "ptl_tokens_sampled_total 6", "ptl_adapters 1",
                 'ptl_work_seconds_count{operation="forward_backward"} 1'):  # fmt: skip
        assert line in lines

    # Asked to stop, it finishes what it has taken, and the answer is fetched.
    long = sampler.sample(tinker.ModelInput.from_ints([5]), 64, LONG)
    while "ptl_busy 1" not in metrics(exported):
        pass
    process.send_signal(signal.SIGTERM)
    assert len(long.result(60).sequences) == 64
    assert process.wait(60) == 0
    assert process.stderr is not None
    log = process.stderr.read()
    assert "POST /api/v1/forward_backward 200" in log
    assert "retrieve_future" not in log
    assert "Traceback" not in log
    assert exported["TINKER_API_KEY"] not in log


LONG = tinker.SamplingParams(max_tokens=100, stop=[])


def read_exports(process: subprocess.Popen[str]) -> dict[str, str]:
    assert process.stdout is not None
    exported: dict[str, str] = {}
    while len(exported) < 4:
        line = process.stdout.readline()
        assert line, process.stderr and process.stderr.read()
        if line.strip().startswith("export "):
            words = line.split()[1:]
            exported |= dict(word.split("=", 1) for word in words)
    return exported


def metrics(exported: dict[str, str]) -> list[str]:
    request = urllib.request.Request(
        f"{exported['TINKER_BASE_URL']}/metrics", headers={"X-API-Key": exported["TINKER_API_KEY"]}
    )
    text: str = urllib.request.urlopen(request, timeout=30).read().decode()
    return text.splitlines()


def test_another_machine_needs_a_token_of_ones_own(tmp_path: Path) -> None:
    process = serve("--host", "0.0.0.0", "--home", str(tmp_path))
    _, error = process.communicate(timeout=30)
    assert process.returncode == 2
    assert "--host 0.0.0.0 is reachable from other machines" in error


def test_a_port_that_is_taken_is_said_so(tmp_path: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = serve("--port", str(port), "--home", str(tmp_path))
        _, error = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"cannot serve on 127.0.0.1:{port}" in error
    assert "Traceback" not in error
