"""SDKs from 0.25 on against the embedded engine, as who pins one for another server has it.

    PTL_OLDER_SDKS=0.25.0,0.28.1,0.32.0,0.36.0 python -m pytest tests/e2e/test_older_sdks.py

Each is installed from the package index beside the current one, so this runs by hand.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from posttrain_recipes.engine import launch
from tests.engine_model import build

VERSIONS = [v for v in os.environ.get("PTL_OLDER_SDKS", "").split(",") if v]
PROGRAM = Path(__file__).with_name("older_sdk.py")
DEADLINE_S = 120

pytestmark = pytest.mark.skipif(not VERSIONS, reason="PTL_OLDER_SDKS names no version")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[launch.EngineProcess]:
    folder = tmp_path_factory.mktemp("engine")
    model = build(tmp_path_factory.mktemp("model"))
    with launch.start({"ptl/test": str(model)}, folder, folder / "engine.log") as process:
        yield process


@pytest.mark.parametrize("version", VERSIONS)
def test_an_older_sdk_trains_and_samples(
    engine: launch.EngineProcess, version: str, tmp_path: Path
) -> None:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--target", str(tmp_path), f"tinker=={version}"], check=True)
    environment = {
        **os.environ,
        "PYTHONPATH": str(tmp_path),
        "TINKER_BASE_URL": engine.base_url,
        "TINKER_API_KEY": engine.api_key,
        "TINKER_TELEMETRY": "0",
    }
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(PROGRAM), str(tmp_path)],
        env=environment, capture_output=True, text=True, timeout=DEADLINE_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "all of it"
