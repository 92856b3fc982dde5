"""A store that all tests of tracking write to, and runs in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from posttrain_recipes.tracking import mlstore
from posttrain_recipes.tracking.runs import RecipeRun, StageRun
from posttrain_recipes.tracking.tracker import MlflowTracker
from tests.tracked import recipe_run


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for all tests of a file: building one takes a second."""
    home = tmp_path_factory.mktemp("tracking") / "with space" / ".ptl"
    mlstore.make_quiet()
    mlstore.create_database(home)
    return home


@pytest.fixture
def tracker(home: Path) -> MlflowTracker:
    return MlflowTracker(home)


@pytest.fixture
def client(tracker: MlflowTracker) -> Any:
    store = tracker.store()
    assert store is not None
    return store.client


@pytest.fixture
def opened(tracker: MlflowTracker) -> Iterator[tuple[RecipeRun, StageRun]]:
    with recipe_run(tracker) as run, run.stage(name="sft", index=1) as stage:
        yield run, stage
    assert tracker.problems == []
