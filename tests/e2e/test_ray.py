"""Stages as tasks of a real Ray cluster: two nodes on this machine, of which one is killed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import posttrain_recipes as ptl
from posttrain_recipes.errors import PtlError, UsageError
from posttrain_recipes.plugin import Resume
from posttrain_recipes.running.events import Reporter
from posttrain_recipes.store import Store
from posttrain_recipes.tracking import curves
from posttrain_recipes.waiting import worker
from tests.e2e.test_run import ROOT

ray: Any = pytest.importorskip("ray")

pytestmark = pytest.mark.nightly

RECIPE = """\
name: spread
model: ptl/nano
lora: {rank: 4}
matrix:
  stages.tuned.method.learning_rate: [1e-3, 1e-4]
stages:
  - name: sft
    dataset: {use: jsonl, path: data/chat.jsonl, limit: 64, test_size: 16}
    method: {use: sft, learning_rate: 1e-3, batch_size: 8, max_steps: 4}
    eval: [nll]
  - name: tuned
    init_from: sft
    dataset: {use: jsonl, path: data/chat.jsonl, limit: 64, test_size: 16}
    method: {use: sft, batch_size: 4, max_steps: 40, epochs: 9, save_every: 4}
    eval: [nll]
""".replace("eval: [nll]", "eval: [{use: nll}]", 1)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    folder = tmp_path / "recipe"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "chat.jsonl").write_bytes(
        (ROOT / "recipes" / "data" / "chat.jsonl").read_bytes()
    )
    (folder / ".gitignore").write_text("data/\n")
    (folder / "spread.yaml").write_text(RECIPE)
    return folder / "spread.yaml"


@pytest.fixture
def cluster() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    cluster.workers = [cluster.add_node(num_cpus=1) for _ in range(2)]
    yield cluster
    ray.shutdown()
    cluster.shutdown()


class Heard(Reporter):
    """Kills the node of the first variant that has saved something."""

    def __init__(self, cluster: Any) -> None:
        self.cluster = cluster
        self.nodes: dict[str, str] = {}
        self.warnings: list[str] = []

    def note(self, text: str) -> None:
        if found := re.search(r"runs on node (\w+)", text):
            self.nodes[worker()] = found.group(1)

    def saved(self, resume: Resume) -> None:
        if worker().startswith("tuned") and len(self.cluster.workers) == 2:
            for node in self.cluster.workers:
                if node.node_id.startswith(self.nodes[worker()]):
                    self.cluster.workers.remove(node)
                    self.cluster.remove_node(node, allow_graceful=False)
                    return

    def warning(self, text: str) -> None:
        self.warnings.append(text)


def results(home: Path, run_id: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for stage in Store(home).find(run_id).stages:
        for when in ("before", "after"):
            for one in getattr(stage, when):
                found[f"{stage.name} {when} {one.name}"] = one.metrics["nll"].value
        for step, metrics in curves.steps(home / "runs" / run_id, stage.name).items():
            found[f"{stage.name} step {step}"] = metrics["train/loss"]
    return found


def test_a_killed_node_changes_nothing(recipe: Path, cluster: Any, tmp_path: Path) -> None:
    alone = ptl.run(recipe, home=tmp_path / "alone")
    heard = Heard(cluster)
    spread = ptl.run(
        recipe,
        home=tmp_path / "spread",
        jobs=f"ray:{cluster.address}",
        shared=str(tmp_path / "shared"),
        reporter=heard,
    )
    assert spread.status == "finished"
    assert len(cluster.workers) == 1
    lost = [text for text in heard.warnings if "its node was lost" in text]
    assert len(lost) == 1
    assert int(lost[0].rpartition(" ")[2]) > 0  # the step that it went on from
    one, other = (
        results(tmp_path / "alone", alone.run_id),
        results(tmp_path / "spread", spread.run_id),
    )
    assert one.keys() == other.keys()
    assert other == pytest.approx(one, rel=1e-4)
    assert list((tmp_path / "shared").iterdir()) == []  # what was shared is in the home by now

    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'spread' / 'mlflow.db'}")
    for stage in spread.record.stages:
        history = client.get_metric_history(stage.tracking_id, "train/loss")
        steps = [point.step for point in history]
        assert steps == list(range(1, stage.total_steps + 1))

    # What nodes trained is the home's own: a run without them reuses it, and trains on from it.
    again = ptl.run(recipe, home=tmp_path / "spread", overrides=["name=again"])
    assert [stage.status for stage in again.record.stages] == ["reused"] * 3
    longer = ptl.run(
        recipe, home=tmp_path / "spread", overrides=["name=longer", "stages.tuned.seed=5"]
    )
    assert longer.status == "finished"


def test_what_a_node_does_not_see_is_told(recipe: Path, cluster: Any, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.jsonl"
    elsewhere.write_bytes((recipe.parent / "data" / "chat.jsonl").read_bytes())
    text = recipe.read_text().replace("data/chat.jsonl", "../elsewhere.jsonl")
    recipe.write_text(text)
    with pytest.raises(PtlError) as raised:
        ptl.run(recipe, home=tmp_path / "home", jobs=f"ray:{cluster.address}")
    assert "cannot be planned" in str(raised.value)
    assert "elsewhere.jsonl" in str(raised.value)
    assert "in its folder" in str(raised.value)


def test_no_cluster_there(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PtlError) as raised:
        ptl.run(recipe, home=tmp_path / "home", jobs="ray:127.0.0.1:1")
    assert "there is no Ray at 127.0.0.1:1" in str(raised.value)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:2")
    with pytest.raises(PtlError) as raised:
        ptl.run(recipe, home=tmp_path / "home", jobs="ray")
    assert "there is no Ray at 127.0.0.1:2 (RAY_ADDRESS)" in str(raised.value)


def test_a_ray_of_another_version_is_called_so(
    recipe: Path, cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "__version__", "2.0.0")
    with pytest.raises(PtlError) as raised:
        ptl.run(recipe, home=tmp_path / "home", jobs=f"ray:{cluster.address}")
    assert "of another version" in str(raised.value)
    assert "Ray: 2.0.0" in str(raised.value)


def test_other_engines_are_refused(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        ptl.run(recipe, home=tmp_path / "home", jobs="ray", overrides=["engine=tinker"])
