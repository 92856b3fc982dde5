"""The engine's process: started, stopped, never left behind, and light to import."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from posttrain_recipes import engines
from posttrain_recipes.engine import launch
from posttrain_recipes.errors import PtlError
from tests import engine_model

DEADLINE_S = 60.0


def health(url: str) -> int:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"{url}/healthz", timeout=DEADLINE_S) as answer:
        status: int = answer.status
        return status


def wait_until_gone(pid: int) -> None:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    ended, _, _ = select.select([descriptor], [], [], DEADLINE_S)
    os.close(descriptor)
    assert ended, f"process {pid} is still there"


def test_it_starts_answers_and_stops(tmp_path: Path) -> None:
    with launch.start({}, tmp_path / "data", tmp_path / "logs" / "engine.log") as engine:
        assert engine.is_alive
        assert engine.api_key.startswith("tml-")
        assert health(engine.base_url) == 200
        command = subprocess.run(
            ["ps", "-o", "args=", "-p", str(engine.pid)], capture_output=True, text=True, check=True
        )
        assert "posttrain_recipes.engine" in command.stdout
        assert engine.api_key not in command.stdout
    assert engine.poll() == 0
    engine.stop()  # again: nothing to do
    assert "listening on" in engine.log_tail()


PARENT = """
import os, sys, time
from pathlib import Path
from posttrain_recipes.engine import launch
engine = launch.start({}, Path(sys.argv[1]) / "data", Path(sys.argv[1]) / "engine.log")
print(engine.pid, engine.base_url, flush=True)
if sys.argv[2] == "fork" and os.fork() == 0:
    time.sleep(600)  # a child that holds a copy of every descriptor
time.sleep(600)
"""


@pytest.mark.parametrize("how", ["plain", "fork"])
def test_killing_the_parent_ends_the_engine(tmp_path: Path, how: str) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path), how],
        stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        assert parent.stdout is not None
        pid, url = parent.stdout.readline().split()
        assert health(url) == 200
        parent.kill()
        parent.wait()
        wait_until_gone(int(pid))
    finally:
        os.killpg(parent.pid, signal.SIGKILL) if how == "fork" else parent.kill()
        parent.stdout.close()  # type: ignore[union-attr]


def test_a_failure_to_start_shows_the_log(tmp_path: Path) -> None:
    (tmp_path / "engine.log").write_text("listening on http://earlier\n")
    with pytest.raises(PtlError, match="did not start") as caught:
        launch.start({"x": "http://a/b"}, tmp_path / "data", tmp_path / "engine.log")
    assert str(tmp_path / "engine.log") in str(caught.value)
    assert "--model is an address" in str(caught.value)
    assert "earlier" not in str(caught.value), "which is another engine's"


@pytest.mark.parametrize("where", ["data", "data/engine"])
def test_a_file_in_the_place_of_the_data_directory_is_told_by_its_name(
    tmp_path: Path, where: str
) -> None:
    (tmp_path / "data").write_text("a file where the folder should be")
    with pytest.raises(PtlError, match="data is a file, where a directory has to be") as caught:
        launch.start({}, tmp_path / where, tmp_path / "engine.log")
    assert "move that file away" in str(caught.value)


def test_without_a_token_it_does_not_serve(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "posttrain_recipes.engine", "--data-dir", str(tmp_path)],
        env={**os.environ, "PTL_ENGINE_TOKEN": "short"},
        capture_output=True, text=True, timeout=DEADLINE_S,
    )  # fmt: skip
    assert done.returncode == 2
    assert "PTL_ENGINE_TOKEN" in done.stderr


def test_the_launcher_is_light() -> None:
    heavy = "torch", "transformers", "tinker", "starlette", "uvicorn", "pydantic", "numpy"
    code = (
        "import sys, posttrain_recipes.engine.launch\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_server_listens_before_torch_is_there(tmp_path: Path) -> None:
    code = (
        "import sys, posttrain_recipes.engine.__main__\n"
        "print([name for name in ('torch', 'transformers', 'tinker') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@dataclass
class Started:
    """Stands for an engine's process."""

    data_dir: Path
    is_alive: bool = True

    def __enter__(self) -> Started:
        return self

    def __exit__(self, *_: object) -> None:
        self.is_alive = False


def test_runs_can_share_an_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "engine.log"
    monkeypatch.setattr(
        launch, "start", lambda models, data_dir, log_path, dtype: Started(data_dir)
    )

    def used(data_dir: str) -> Any:
        with engines._embedded({"ptl/nano": "/nano"}, tmp_path / data_dir, log) as engine:
            assert engine.is_alive
            return engine

    alone = used("a")
    assert not alone.is_alive
    with engines.kept_running():
        first, again, elsewhere = used("a"), used("a"), used("b")
        assert first is again
        assert elsewhere is not first
        first.is_alive = False  # killed
        second = used("a")
        assert second is not first
    assert not any(engine.is_alive for engine in (first, second, elsewhere))
    assert used("a") is not second


LIGHT = """
import sys
from pathlib import Path
from posttrain_recipes.engine.core.registry import State

State({"m": sys.argv[1]}, Path(sys.argv[2])).base_models.get("m")
print(*sorted({"sklearn", "scipy", "pandas"} & {name.split(".")[0] for name in sys.modules}))
print(*(name for name in sys.modules if name.startswith("torch._dynamo")))
import scipy
from transformers.utils import is_scipy_available
print(is_scipy_available())

import torch
from transformers.masking_utils import TransformGetItemToIndex

@torch.compiler.disable
def left_alone(given):
    return torch.compiler.is_compiling(), given

@torch.compile(backend="eager")
def compiled(given):
    return torch.compiler.is_compiling(), left_alone(given + 1)

print(compiled(torch.ones(1)))
table = torch.arange(6).view(2, 3)
with TransformGetItemToIndex():
    print(torch.vmap(lambda at: table[at, 1])(torch.arange(2)).tolist())
"""


@pytest.mark.nightly
def test_a_model_is_loaded_without_what_its_engine_has_no_use_for(tmp_path: Path) -> None:
    model = engine_model.build(tmp_path / "model")
    done = subprocess.run(
        [sys.executable, "-c", LIGHT, str(model), str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    imported, compiler, *there = done.stdout.splitlines()
    assert (imported, compiler) == ("", "")
    # And yet all of it is there for a model's own code.
    assert there == ["True", "(True, (False, tensor([2.])))", "[1, 4]"]
