"""What tests of every kind share: a project to plan in, plugins of strangers, the command line."""

from __future__ import annotations

import importlib.metadata
import os
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from posttrain_recipes import cli, registry
from posttrain_recipes.engine import calibrate
from posttrain_recipes.language import recipe as recipes
from posttrain_recipes.language.recipe import Recipe
from posttrain_recipes.planning import planner as planning
from posttrain_recipes.planning.plans import Plan
from tests import databases

# Models of a few thousand weights compute on one thread as fast as on many, and far faster where
# the tests share their cores. Read by torch when it is first imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[1]

CHAT = (
    '{"messages": [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]}\n'
)
PAIRS = '{"prompt": "hi", "chosen": "hello", "rejected": "what"}\n'
QUESTIONS = '{"question": "2+2?", "answer": "two and two\\n#### 4"}\n'


@pytest.fixture(scope="session", autouse=True)
def databases_are_copied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What tests track goes to a copy of one database that is built once for all workers."""
    folder = tmp_path_factory.getbasetemp()
    with databases.copied(folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder):
        yield


@dataclass(frozen=True)
class Project:
    """A directory with data and a model that is all files and no weights."""

    path: Path

    def write(self, name: str, text: str) -> Path:
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
        return target

    def load(
        self,
        text: str,
        *,
        name: str = "mine.yaml",
        preset: str | None = None,
        overrides: Sequence[str] = (),
    ) -> Recipe:
        self.write(name, text)
        return recipes.load(Path(name), preset=preset, overrides=overrides)

    def plan(
        self,
        text: str,
        *,
        name: str = "mine.yaml",
        preset: str | None = None,
        overrides: Sequence[str] = (),
    ) -> Plan:
        read = self.load(text, name=name, preset=preset, overrides=overrides)
        return planning.build(read, registry.load())


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project in the current directory: chat, pairs and questions, and `./model`."""
    made = Project(tmp_path)
    made.write("chat.jsonl", CHAT * 4)
    made.write("pairs.jsonl", PAIRS * 4)
    made.write("questions.jsonl", QUESTIONS * 4)
    made.write("model/config.json", '{"model_type": "none", "hidden_size": 64}')
    made.write("model/tokenizer.json", "{}")
    made.write("model/chat_template.jinja", "{% for m in messages %}{{ m.content }}{% endfor %}")
    monkeypatch.chdir(tmp_path)
    return made


@dataclass(frozen=True)
class _Distribution:
    name: str
    version: str


@dataclass(frozen=True)
class _Point:
    """An entry point as `importlib.metadata` has them."""

    name: str
    dist: _Distribution
    make: Callable[[], Any]

    def load(self) -> Any:
        return self.make()


Install = Callable[..., None]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """`install("acme", "1.2", hooks)`: a distribution whose module has these functions.

    A callable in place of the mapping is what its import does.
    """
    points: list[_Point] = []

    real = importlib.metadata.entry_points

    def entry_points(**asked: Any) -> Any:
        # Other libraries, as torch when it is imported, have plugins of their own.
        return points if asked == {"group": "posttrain_recipes"} else real(**asked)

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)

    def add(
        distribution: str, version: str, content: Mapping[str, Any] | Callable[[], Any]
    ) -> None:
        def module() -> Any:
            if not isinstance(content, Mapping):
                return content()
            made = types.ModuleType(distribution)
            vars(made).update(content)
            return made

        points.append(_Point(distribution, _Distribution(distribution, version), module))
        registry.load.cache_clear()

    registry.load.cache_clear()
    yield add
    registry.load.cache_clear()


# --- the command line ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str


Ptl = Callable[..., Said]


@pytest.fixture
def ptl(
    project: Project, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Ptl:
    """`ptl WORD...` in a project, as the console script runs it."""
    monkeypatch.delenv("PTL_HOME", raising=False)
    monkeypatch.setenv("COLUMNS", "100")

    def run(*words: str) -> Said:
        monkeypatch.setattr(sys, "argv", ["ptl", *words])
        capfd.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.called()
        said = capfd.readouterr()
        code = caught.value.code
        assert isinstance(code, int)
        for text in (said.out, said.err):
            assert "Traceback" not in text
        return Said(code, said.out, said.err)

    return run


def flat(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture
def users_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    for name in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


real_speed = calibrate.speed


@pytest.fixture(autouse=True)
def nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan of a test takes no seconds to find out how fast this machine is."""
    monkeypatch.setattr(calibrate, "speed", lambda folder, dtype="float32": None)
