"""Stages on nodes: with threads for nodes, each of which has a home and an engine of its own."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as TooLate
from contextlib import contextmanager
from pathlib import Path

import pytest

import posttrain_recipes as ptl
from posttrain_recipes.errors import PtlError
from posttrain_recipes.planning.plans import Plan, PlannedStage, Resources
from posttrain_recipes.running.cluster import driver, node, ray_tasks
from posttrain_recipes.running.cluster.node import Job, StageEnd
from posttrain_recipes.running.cluster.ray_tasks import Cluster, Mailbox, StageTask, Tasks
from posttrain_recipes.running.events import Reporter
from posttrain_recipes.store import Store
from posttrain_recipes.waiting import TICK
from tests import hearing
from tests.e2e.test_run import ROOT, assert_same_result, steps_in_mlflow

pytestmark = pytest.mark.usefixtures("quick_engines")

RECIPE = """\
name: nodes
watch: false
model: ptl/nano
lora: {rank: 4}
stages:
  - name: makes
    dataset: {use: jsonl, path: prompts.jsonl}
    method: {use: teacher_samples, teacher: {model: ptl/nano}, max_tokens: 8, batch_size: 4}
  - name: sft
    init_from: base
    dataset: {use: collected, stage: makes}
    method: {use: sft, learning_rate: 1e-3, batch_size: 4, max_steps: 8, epochs: 9, save_every: 2}
    eval: [{use: nll, dataset: {use: jsonl, path: chat.jsonl, limit: 12}}]
  - name: more
    dataset: {use: jsonl, path: chat.jsonl, limit: 12}
    method: {use: sft, learning_rate: 1e-3, batch_size: 4, max_steps: 2}
    eval: [nll]
"""


class Recorder(Reporter):
    """Keeps warnings, and the step that each stage begins to train from."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.begun: dict[str, int] = {}

    def warning(self, text: str) -> None:
        self.warnings.append(text)

    def training(self, stage: PlannedStage, done: int, total: int) -> None:
        self.begun[stage.name] = done


class OnThread(StageTask):
    """A task that ends with a thread."""

    def __init__(self, stage: str, mailbox: Mailbox, ref: Future[StageEnd]) -> None:
        super().__init__(stage, mailbox, ref)
        self.box = mailbox

    def events(self) -> Iterator[driver.Event]:
        yield from map(pickle.loads, self.box.take(self.stage))

    def outcome(self) -> StageEnd | None:
        try:
            return self.ref.result(TICK)
        except TooLate:
            return None

    def stop(self, why: str) -> None:
        self.box.stop(self.stage, why)


class Lost(Exception):
    """The node is gone."""


class OnThreads(Tasks):
    """A cluster of threads. The first node that is given the stage `loses` is lost as soon as it
    has sent something of step 5."""

    def __init__(self, folder: Path, loses: str = "") -> None:
        self.mailbox = Mailbox()
        self.folder, self.loses = folder, loses

    @property
    def cpus(self) -> int:
        return 2

    gpus = 0

    def lacking(self, wanted: Resources) -> str | None:
        return None if wanted.gpus == 0 else str(wanted)

    def submit(self, job: Job, wanted: Resources) -> StageTask:
        outcome: Future[StageEnd] = Future()

        def work() -> None:
            if job.stage == self.loses:
                self.loses = ""
                self.run(job, dies=True)
            outcome.set_result(self.run(job))

        threading.Thread(target=work, daemon=True).start()
        return OnThread(job.stage, self.mailbox, outcome)

    def run(self, job: Job, dies: bool = False) -> StageEnd:
        job = pickle.loads(pickle.dumps(job))
        number = self.mailbox.begin(job.stage)
        sent: list[bytes] = []
        mailbox = self.mailbox

        class Link:
            def put(self, batch: Sequence[bytes]) -> str | None:
                if dies and any(b"tinker://" in event for event in sent):
                    raise Lost
                sent.extend(batch)
                return mailbox.put(job.stage, number, batch)[1]

        return node.run(job, Link(), node.Here("a thread", self.folder))


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Callable[[Tasks], None]:
    def use(tasks: Tasks) -> None:
        @contextmanager
        def connected(cluster: Cluster, plan: Plan, home: Path) -> Iterator[Tasks]:
            yield tasks

        monkeypatch.setattr(driver, "connected", connected)
        monkeypatch.setattr(ray_tasks, "check", lambda cluster, plan: None)

    return use


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nodes")
    chat = (ROOT / "recipes" / "data" / "chat.jsonl").read_text().splitlines(keepends=True)
    (folder / "chat.jsonl").write_text("".join(chat[:40]))
    prompts = '{"prompt": [{"role": "user", "content": "What is %d + 1?"}]}\n'
    (folder / "prompts.jsonl").write_text("".join(prompts % n for n in range(8)))
    (folder / "nodes.yaml").write_text(RECIPE)
    return folder / "nodes.yaml"


@pytest.mark.nightly
def test_a_lost_node_changes_nothing(
    recipe: Path, tmp_path: Path, on: Callable[[Tasks], None]
) -> None:
    alone = ptl.run(recipe, home=tmp_path / "alone")
    # The node has another copy of the folder.
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in recipe.parent.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    on(OnThreads(copy, loses="sft"))
    heard = Recorder()
    home = tmp_path / "home"
    told = ["trackers=[listening]"]
    with hearing.installed():
        spread = ptl.run(recipe, home=home, jobs="ray", reporter=heard, overrides=told)
    assert spread.status == "finished"
    lost = [text for text in heard.warnings if "its node was lost" in text]
    assert len(lost) == 1
    assert int(lost[0].rpartition(" ")[2]) >= 2
    made = [run.record.stage("makes").made for run in (spread, alone)]
    assert made[0] == made[1] != {}
    for run in (spread.record, alone.record):
        del run.stages[0]  # it leaves records, and no weights
    assert_same_result(home, spread.record, (tmp_path / "alone", alone.record))
    for stage in spread.record.stages:
        assert stage.tracking_id
        assert steps_in_mlflow(home, stage.tracking_id) == list(range(1, stage.total_steps + 1))
        assert stage.training.train == alone.record.stage(stage.name).training.train
        # What a lost node had no time to tell is told by the next.
        heard_of = dict(hearing.curve(stage.name, "train/loss"))
        assert sorted(heard_of) == list(range(1, stage.total_steps + 1))
    assert not (home / "shared").exists()
    assert not list((home / "engine" / "runs").glob("*/*/.*"))
    ours = {"artifacts", "cache", "engine", "runs"}
    assert {path.name for path in home.iterdir() if "mlflow" not in path.name} <= ours
    # What nodes left is the home's own.
    again = ptl.run(recipe, home=home, overrides=["name=again"])
    assert [stage.status for stage in again.record.stages] == ["reused"] * 3


@pytest.mark.nightly
@pytest.mark.parametrize("jobs", ["ray", 1])
def test_what_a_driver_missed_is_taken_in(
    jobs: str | int,
    recipe: Path,
    tmp_path: Path,
    on: Callable[[Tasks], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A driver that is killed leaves a home that knows less than the nodes have shared. The run may
    go on without them."""
    tasks = OnThreads(recipe.parent)
    on(tasks)
    home = tmp_path / "home"
    take_in = driver.take_in

    def dies(told: object, *rest: object) -> None:
        if getattr(told, "name", "") == "sft" and getattr(told, "resume", None):
            raise KeyboardInterrupt
        take_in(told, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(driver, "take_in", dies)
    with pytest.raises(KeyboardInterrupt):
        ptl.run(recipe, home=home, jobs="ray", shared=str(tmp_path / "shared"))
    monkeypatch.undo()
    record = Store(home).runs()[0]
    assert record.stage("sft").resume is None
    on(tasks)
    heard = Recorder()
    spread = ptl.run(recipe, home=home, jobs=jobs, reporter=heard)
    assert spread.run_id == record.id
    assert heard.begun["sft"] >= 2
    assert list((tmp_path / "shared").iterdir()) == []
    done = spread.record.stage("sft")
    assert done.tracking_id
    assert steps_in_mlflow(home, done.tracking_id) == list(range(1, done.total_steps + 1))


def test_what_fails_on_a_node_is_told_here(
    recipe: Path, tmp_path: Path, on: Callable[[Tasks], None]
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "prompts.jsonl").write_bytes((recipe.parent / "prompts.jsonl").read_bytes())
    on(OnThreads(elsewhere))
    with pytest.raises(PtlError) as raised:
        ptl.run(recipe, home=tmp_path / "home", jobs="ray")
    assert "cannot be planned" in str(raised.value)
    assert "chat.jsonl" in str(raised.value)
    assert "in its folder" in str(raised.value)
    (elsewhere / "chat.jsonl").write_text(
        "".join((recipe.parent / "chat.jsonl").read_text().splitlines(keepends=True)[:20])
    )
    with pytest.raises(PtlError) as raised:
        ptl.run(recipe, home=tmp_path / "home", jobs="ray", overrides=["stages.sft.seed=3"])
    assert "would not be the same" in str(raised.value)


def test_a_node_that_nobody_has_is_waited_for_and_told(
    recipe: Path, tmp_path: Path, on: Callable[[Tasks], None]
) -> None:
    on(OnThreads(recipe.parent))
    heard = Recorder()
    ptl.run(
        recipe,
        home=tmp_path / "home",
        jobs="ray",
        until="makes",
        reporter=heard,
        overrides=["resources={gpus: 1}"],
    )
    assert any("no node has 1 CPU and 1 GPU" in text for text in heard.warnings)
