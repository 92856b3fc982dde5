"""A branch of the hub is the commit that it is when a plan is made, and that commit is read."""

from __future__ import annotations

import json
import types
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from posttrain_recipes import hub, registry
from posttrain_recipes.planning import planner
from posttrain_recipes.planning.data import load_records
from posttrain_recipes.planning.plans import Plan
from posttrain_recipes.plugin import Conversation
from tests.conftest import Project, Ptl
from tests.unit.test_plan import prints

pytestmark = pytest.mark.usefixtures("users_cache")


HUB = """\
name: demo
model: acme/model
stages:
  - name: sft
    dataset: {use: huggingface, path: acme/data}
    method: {use: sft, learning_rate: 1e-3}
"""


class Fake:
    """A hub whose branches are at one commit."""

    def __init__(self, commit: str | None) -> None:
        self.commit, self.asked = commit, list[str]()

    def about(self, name: str, *, revision: str | None, timeout: float) -> Any:
        self.asked.append(f"{name}@{revision}")
        if self.commit is None:
            raise ConnectionError("no network")
        return types.SimpleNamespace(sha=self.commit)

    dataset_info = model_info = about


def at(monkeypatch: pytest.MonkeyPatch, commit: str | None) -> Fake:
    fake = Fake(commit)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: fake)
    hub._of_hub.cache_clear()
    return fake


def plan_of(project: Project, text: str, *, ask: bool = True) -> Plan:
    return planner.build(project.load(text), registry.load(), ask=ask)


def test_a_branch_of_the_hub_is_the_commit_that_it_is_now(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = at(monkeypatch, "a" * 40)
    first = plan_of(project, HUB)
    assert f"acme/data@{'a' * 40}" in json.dumps(first.stages[0].inputs["dataset"])
    assert first.stages[0].inputs["model"] == f"acme/model@{'a' * 40}"
    assert first.pins == (
        f"acme/data: revision {'a' * 40}",
        f"acme/model: revision {'a' * 40}",
    )
    assert plan_of(project, HUB).fingerprint == first.fingerprint
    assert len(fake.asked) == 2, "once each"
    at(monkeypatch, "b" * 40)
    second = plan_of(project, HUB)
    assert prints(second) != prints(first)
    pinned = HUB.replace("path: acme/data", f"path: acme/data, revision: {'b' * 40}")
    assert prints(plan_of(project, pinned)) == prints(second), "the same data, named otherwise"


def test_the_commit_of_the_plan_is_what_is_read(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    at(monkeypatch, "a" * 40)
    data = plan_of(project, HUB).stages[0].data
    asked: list[Any] = []

    def load_dataset(*_: Any, revision: str, **__: Any) -> list[dict[str, str]]:
        asked.append(revision)
        return [{"prompt": "hi", "completion": "hello"}]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert data is not None
    assert len(load_records(data, Conversation)) == 1
    assert asked == ["a" * 40]


def test_without_the_hub_its_cache_tells(
    project: Project, monkeypatch: pytest.MonkeyPatch, users_cache: Path
) -> None:
    at(monkeypatch, None)
    unknown = plan_of(project, HUB)
    assert all("revision not known" in pin for pin in unknown.pins)
    assert len(unknown.pins) == 2
    for name in ("datasets--acme--data", "models--acme--model"):
        refs = users_cache / "huggingface" / "hub" / name / "refs"
        refs.mkdir(parents=True)
        (refs / "main").write_text("c" * 40)
    known = plan_of(project, HUB)
    assert all(f"revision {'c' * 40} of the cache" in pin for pin in known.pins)
    assert prints(known) != prints(unknown)


def test_validate_asks_no_hub_and_plan_says_what_it_told(
    project: Project, ptl: Ptl, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = at(monkeypatch, "a" * 40)
    project.write("hub.yaml", HUB)
    assert ptl("validate", "hub.yaml").code == 0
    assert fake.asked == []
    said = ptl("plan", "hub.yaml")
    assert f"acme/data: revision {'a' * 40}" in said.out
    assert len(fake.asked) == 2


def test_a_server_has_models_of_its_own(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    at(monkeypatch, "a" * 40)
    text = HUB.replace("stages:", "engine: {use: server, base_url: 'http://x'}\nstages:", 1)
    assert plan_of(project, text).stages[0].inputs["model"] == "acme/model"


def test_the_digest_of_data_that_tracking_keeps_leads_to_no_value(
    project: Project, monkeypatch: pytest.MonkeyPatch, users_cache: Path
) -> None:
    at(monkeypatch, None)
    monkeypatch.setenv("WORDS", "hush")
    monkeypatch.setenv("PLACE", "acme/data")
    text = HUB.replace("path: acme/data", "path: '${env:PLACE}', system: '${env:WORDS}'")

    def kept() -> str:
        data = plan_of(project, text).stages[0].data
        assert data is not None
        return data.digest

    first = kept()
    (users_cache / "posttrain-recipes" / "key").write_text("ab" * 32)
    assert kept() != first
    at(monkeypatch, "a" * 40)
    assert "acme" not in kept()
