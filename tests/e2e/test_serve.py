"""`ptl serve`, as another program meets it."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import tinker


def serve(*options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-u", "-m", "posttrain_recipes.cli", "serve", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_the_lines_it_prints_are_all_that_a_program_needs(tmp_path: Path) -> None:
    process = serve("--port", "0", "--home", str(tmp_path))
    assert process.stdout is not None
    exported: dict[str, str] = {}
    while len(exported) < 2:
        line = process.stdout.readline()
        assert line, process.stderr and process.stderr.read()
        if line.strip().startswith("export "):
            name, _, value = line.strip().removeprefix("export ").partition("=")
            exported[name] = value
    service = tinker.ServiceClient(
        base_url=exported["TINKER_BASE_URL"], api_key=exported["TINKER_API_KEY"]
    )
    sampler = service.create_sampling_client(base_model="ptl/nano").result()
    answer = sampler.sample(
        tinker.ModelInput.from_ints([5, 6, 7]), 2, tinker.SamplingParams(max_tokens=3, seed=0)
    ).result()
    assert [len(sequence.tokens) <= 3 for sequence in answer.sequences] == [True, True]
    service.close("success").result()
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0


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
