"""Well-known programs, as small stand-ins that ask an engine what their originals ask.

Each module here that has a recording is a program; its docstring says where the original is. A
recording is made by `originals.py`: the routes that the original asked, and the fields that it
filled. A stand-in has to ask exactly these, and the engine has to answer them.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from posttrain_recipes import models
from tests.cookbook_programs import HUB_NAME
from tests.programs.recorder import TOKEN, Recorder, recording, written

RECORDINGS = Path(__file__).parent / "recordings"
PROGRAMS = sorted(path.stem for path in RECORDINGS.glob("*.json"))


def test_all_programs_are_here() -> None:
    assert PROGRAMS == [
        "axolotl_trainers", "cookbook_rl_loop", "inspect_provider", "litellm_provider",
        "twinkle_lora",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def recorder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recorder]:
    folder = tmp_path_factory.mktemp("programs") / "engine"
    from posttrain_recipes.engine.model import base

    with (
        pytest.MonkeyPatch.context() as patch,
        recording({HUB_NAME: models.resolve("ptl/nano")}, folder) as (address, made),
    ):
        # Two threads that wait for each other are slow where others want the cores as well.
        patch.setattr(base, "_cores", lambda: 1)
        patch.setenv("TINKER_BASE_URL", address)
        patch.setenv("TINKER_API_KEY", TOKEN)
        patch.setenv("TINKER_TELEMETRY", "0")
        patch.setenv("NO_PROXY", "127.0.0.1")
        yield made


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_stand_in_asks_what_its_original_asks(recorder: Recorder, program: str) -> None:
    recorder.asked.clear()
    importlib.import_module(f"tests.programs.{program}").main(HUB_NAME)
    recorded = json.loads((RECORDINGS / f"{program}.json").read_text(encoding="utf-8"))
    assert written(recorder.asked) == recorded
