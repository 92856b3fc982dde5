"""What a driver and the nodes of a cluster say to each other and share, without a cluster."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from posttrain_recipes.errors import PtlError, UsageError
from posttrain_recipes.planning.plans import Resources
from posttrain_recipes.plugin import Checkpoint, Resume
from posttrain_recipes.running.cluster import driver, node, ray_tasks, relay, shared
from posttrain_recipes.running.cluster.ray_tasks import Cluster, Mailbox, parallel
from posttrain_recipes.running.cluster.relay import Call, Outbox, RelayChild, StageSaved
from posttrain_recipes.running.cluster.shared import SharedHome
from posttrain_recipes.store import RunRecord, StageRecord
from posttrain_recipes.training.judges import backends


@pytest.mark.parametrize(
    ("jobs", "shared", "found"),
    [
        ("4", None, 4),
        (2, None, 2),
        ("ray", None, Cluster()),
        ("ray:10.0.0.1:6379", "s3://bucket/a", Cluster("10.0.0.1:6379", "s3://bucket/a")),
        ("ray:ray://head:10001", None, Cluster("ray://head:10001")),
    ],
)
def test_jobs_is_a_number_or_a_cluster(
    jobs: int | str, shared: str | None, found: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(ray_tasks.SHARED, raising=False)
    assert parallel(jobs, shared) == found


@pytest.mark.parametrize("jobs", ["0", "-1", "two", "rays", "", "1.5", "٣"])
def test_anything_else_is_refused(jobs: str) -> None:
    with pytest.raises(UsageError, match="--jobs"):
        parallel(jobs)


def test_shared_is_for_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="--shared"):
        parallel("4", "s3://bucket/a")
    monkeypatch.setenv(ray_tasks.SHARED, "gs://bucket/b")
    assert parallel("ray") == Cluster(None, "gs://bucket/b")


def test_a_relative_directory_is_the_same_on_every_node() -> None:
    assert parallel("ray", "runs") == Cluster(None, str(Path.cwd() / "runs"))


def test_a_node_that_tells_something_keeps_its_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray takes them from a task whose main thread waits for it."""

    def get(ref: object) -> object:
        assert threading.current_thread() is not threading.main_thread()
        return ref

    monkeypatch.setattr(ray_tasks, "ray_get", get)
    put = SimpleNamespace(remote=lambda *_: (True, "a bound"))
    assert ray_tasks._ToMailbox(SimpleNamespace(put=put), "sft", 1).put([]) == "a bound"


def test_resources_in_words() -> None:
    assert str(Resources()) == "1 CPU"
    assert str(Resources(4, 0.5, 16)) == "4 CPUs and 0.5 GPUs and 16 GB of memory"


def test_resources_that_ray_refuses_or_takes_for_nothing() -> None:
    for good in (Resources(), Resources(0.5, 0.25), Resources(1.5, 2, 64)):
        assert good.fault() is None
    for bad, key in (
        (Resources(gpus=1.5), "gpus"),
        (Resources(gpus=1e-5), "gpus"),
        (Resources(cpus=1e-5), "cpus"),
        (Resources(memory_gb=1e9), "memory_gb"),
    ):
        assert str(bad.fault()).startswith(f"{key}: ")


def test_a_full_disk_is_left_without_halves_of_files(tmp_path: Path) -> None:
    mine = SharedHome(str(tmp_path / "shared"), tmp_path / "a")
    mine.mark("word")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "w").write_text("weights")

    def full(here: str, there: str) -> None:
        Path(there).write_text("wei")
        raise OSError(28, "No space left on device")

    mine._files.put_file, whole = full, mine._files.put_file
    try:
        with pytest.raises(PtlError, match="cannot be read or written"):
            mine.push("w")
    finally:
        mine._files.put_file = whole
    assert [path.name for path in (tmp_path / "shared").iterdir()] == [shared.MARK]


def test_a_stage_says_what_it_failed_of_where_nothing_can_be_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise PtlError("the first fault")

    def full(*_: object) -> None:
        raise PtlError("no space")

    monkeypatch.setattr(SharedHome, "push", full)
    record: Any = SimpleNamespace(id="r-1")
    url = str(tmp_path / "shared")
    SharedHome(url, tmp_path).mark("mine")
    job = node.Job(record, "sft", url, "mine", "home", Checkpoint("ptl/nano"), {}, {}, ())
    monkeypatch.setattr(node, "_work", lambda *_: None)
    assert node.run(job, Kept(), node.Here("a node", tmp_path)).what == "no space"
    monkeypatch.setattr(node, "_work", fails)
    assert node.run(job, Kept(), node.Here("a node", tmp_path)).what == "the first fault"


@pytest.fixture(params=["directory", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    kinds = {"directory": str(tmp_path / "shared"), "memory": f"memory://{tmp_path.name}"}
    return kinds[request.param]


def test_what_is_pushed_is_pulled_to_the_same_place(url: str, tmp_path: Path) -> None:
    mine, other = SharedHome(url, tmp_path / "a"), SharedHome(url, tmp_path / "b")
    mine.mark("word")
    other.check("word")
    with pytest.raises(PtlError, match="not the same place"):
        other.check("another")
    folder = tmp_path / "a" / "engine" / "runs" / "x" / "weights" / "w"
    folder.mkdir(parents=True)
    (folder / "adapter.safetensors").write_bytes(b"123")
    (folder / "checkpoint.json").write_text("{}")
    (folder.parents[1] / "run.json").write_text("{}")
    (tmp_path / "a" / "curve.jsonl").write_text("1\n")
    names = ["engine/runs/x/weights/w", "engine/runs/x/run.json"]
    mine.push(*names, "curve.jsonl", "nothing")
    other.pull_checkpoint(names)
    other.pull("curve.jsonl", "nothing")
    there = tmp_path / "b"
    assert (there / "engine/runs/x/weights/w/adapter.safetensors").read_bytes() == b"123"
    assert (there / "engine/runs/x/run.json").is_file()
    assert not (there / "nothing").exists()
    (tmp_path / "a" / "curve.jsonl").write_text("1\n2\n")
    mine.push("curve.jsonl")
    other.pull("curve.jsonl")
    assert (there / "curve.jsonl").read_text() == "1\n2\n"
    assert other.read("curve.jsonl") == b"1\n2\n"
    assert other.read("nothing") is None
    mine.remove(names[0])
    assert SharedHome(url, tmp_path / "c").read(f"{names[0]}/checkpoint.json") is None
    mine.remove()
    mine.remove()


def test_a_checkpoint_is_whole_or_not_there(url: str, tmp_path: Path) -> None:
    """A download that fails leaves nothing where an engine would look."""
    mine, other = SharedHome(url, tmp_path / "a"), SharedHome(url, tmp_path / "b")
    (tmp_path / "a" / "w").mkdir(parents=True)
    for name in ("one", "two"):
        (tmp_path / "a" / "w" / name).write_text(name)
    mine.push("w")
    brought: list[str] = []
    whole = other._files.get_file

    def failing(at: str, to: str) -> None:
        brought.append(at)
        if len(brought) == 2:
            raise OSError("the network is down")
        whole(at, to)

    other._files = type("Failing", (), {"__getattr__": lambda _, n: getattr(mine._files, n)})()
    other._files.get_file = failing
    with pytest.raises(PtlError, match="cannot be read or written"):
        other.pull_checkpoint(["w"])
    assert not (tmp_path / "b" / "w").exists()
    other.pull_checkpoint(["w"])
    assert {file.name for file in (tmp_path / "b" / "w").iterdir()} == {"one", "two"}


def test_what_is_deleted_meanwhile_is_passed_over(url: str, tmp_path: Path) -> None:
    mine, other = SharedHome(url, tmp_path / "a"), SharedHome(url, tmp_path / "b")
    (tmp_path / "a" / "w").mkdir(parents=True)
    for name in ("one", "two"):
        (tmp_path / "a" / "w" / name).write_text(name)
    mine.push("w")
    whole = mine._files.get_file

    def deleting(at: str, to: str) -> None:
        whole(at, to)
        mine.remove("w/two")

    other._files = type("Deleting", (), {"__getattr__": lambda _, n: getattr(mine._files, n)})()
    other._files.get_file = deleting
    other.pull_checkpoint(["w"])
    assert not (tmp_path / "b" / "w").exists()
    mine.push("w")
    other.pull("w")
    assert {file.name for file in (tmp_path / "b" / "w").iterdir()} == {"one"}


def test_stages_push_the_same_checkpoint_at_once(url: str, tmp_path: Path) -> None:
    mine = SharedHome(url, tmp_path / "a")
    (tmp_path / "a" / "w").mkdir(parents=True)
    for number in range(20):
        (tmp_path / "a" / "w" / f"{number}").write_bytes(b"1" * 10_000)
    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(mine.push, "w") for _ in range(8)]:
            done.result()
    other = SharedHome(url, tmp_path / "b")
    other.pull("w")
    assert len(list((tmp_path / "b" / "w").iterdir())) == 20


def test_an_unknown_protocol_is_told() -> None:
    with pytest.raises(UsageError, match="nothing can be shared"):
        SharedHome("nosuch://a/b", Path("home"))


class Kept:
    """A link that keeps what it is handed."""

    def __init__(self, why: str | None = None, gone: bool = False) -> None:
        self.batches: list[bytes] = []
        self.why, self.gone = why, gone

    def put(self, batch: Sequence[bytes]) -> str | None:
        if self.gone:
            raise ConnectionError
        self.batches += batch
        return self.why


def test_events_come_in_order_and_as_they_were() -> None:
    import pickle

    link = Kept()
    outbox = Outbox(link, lambda why: None)
    kept = StageRecord("sft", "f", "sft")
    for step in range(5):
        kept.total_steps = step
        outbox.add(StageSaved(kept))
        RelayChild(outbox, "id").log_metrics({"loss": 1.0}, step)
    outbox.close()
    events = [pickle.loads(one) for one in link.batches]
    saved = [event.record.total_steps for event in events if isinstance(event, StageSaved)]
    calls = [event.args[1] for event in events if isinstance(event, Call)]
    assert saved == calls == list(range(5))


@pytest.mark.parametrize(("link", "why"), [(Kept("bound"), "bound"), (Kept(gone=True), "driver")])
def test_a_node_is_told_to_stop(link: Kept, why: str) -> None:
    heard: list[str] = []
    outbox = Outbox(link, heard.append)
    outbox.close()
    assert heard
    assert all(why in one for one in heard)


def test_a_record_becomes_another() -> None:
    kept, told = StageRecord("a", "f", None), StageRecord("a", "f", None, status="finished")
    relay.become(kept, told)
    assert kept == told


def test_only_the_last_node_of_a_stage_is_heard() -> None:
    mailbox = Mailbox()
    first, second = mailbox.begin("sft"), mailbox.begin("sft")
    assert mailbox.put("sft", first, [b"old"]) == (False, None)
    assert mailbox.put("sft", second, [b"new"]) == (True, None)
    assert mailbox.take("sft") == [b"new"]
    assert mailbox.take("sft") == []
    mailbox.stop("sft", "a bound")
    assert mailbox.put("sft", second, []) == (True, "a bound")
    assert mailbox.put("other", mailbox.begin("other"), []) == (True, None)


def test_a_node_that_was_taken_for_dead_shares_nothing_more() -> None:
    class Link:
        def put(self, batch: Sequence[bytes]) -> str | None:
            raise relay.SupersededError

    heard: list[str] = []
    outbox = Outbox(Link(), heard.append)
    assert not outbox.flush()
    outbox.close()
    assert "another node" in heard[0]


def test_what_judges_said_is_added_to_a_cache(tmp_path: Path) -> None:
    def kept(cache: Path) -> dict[str, str]:
        with sqlite3.connect(cache / backends.VERDICTS) as db:
            return dict(db.execute("SELECT key, said FROM verdicts"))

    for cache, rows in (("node", [("a", "1"), ("b", "2")]), ("driver", [("b", "3")])):
        backends.CachedJudge.create(tmp_path / cache / backends.VERDICTS)
        with sqlite3.connect(tmp_path / cache / backends.VERDICTS) as db:
            db.executemany("INSERT INTO verdicts VALUES (?, ?)", rows)
    backends.copy_verdicts(tmp_path / "node", tmp_path / "copy" / "sft.sqlite")
    backends.add_verdicts(tmp_path / "driver", tmp_path / "copy" / "sft.sqlite")
    assert kept(tmp_path / "driver") == {"a": "1", "b": "3"}
    backends.copy_verdicts(tmp_path / "none", tmp_path / "copy" / "none.sqlite")
    backends.add_verdicts(tmp_path / "new", tmp_path / "copy" / "none.sqlite")
    assert not (tmp_path / "new").exists()
    backends.add_verdicts(tmp_path / "new", tmp_path / "copy" / "sft.sqlite")
    assert kept(tmp_path / "new") == {"a": "1", "b": "2"}


def test_packages_of_plugins_are_found_with_their_metadata(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, metadata = tmp_path / "ptl_some", tmp_path / "ptl_some-1.0.dist-info"
    package.mkdir()
    metadata.mkdir()
    (package / "__init__.py").write_text("")
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: ptl-some\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[posttrain_recipes]\nsome = ptl_some\n")
    (metadata / "RECORD").write_text("ptl_some-1.0.dist-info/entry_points.txt,,\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = [path for path in ray_tasks.plugin_packages() if path.is_relative_to(tmp_path)]
    assert found == [package, metadata]


def test_what_another_stage_left_is_never_deleted(tmp_path: Path) -> None:
    """A stage without weights of its own leaves those that it started from."""
    discarded: list[str] = []

    class Engine:
        def files(self, uri: str, data_dir: Path) -> Sequence[Path]:
            return ()

        def discard(self, uri: str, data_dir: Path) -> bool:
            discarded.append(uri)
            return True

    def saved(name: str) -> Checkpoint:
        return Checkpoint("ptl/nano", f"tinker://{name}/weights/w", f"tinker://{name}/sampler/w")

    trained = StageRecord("sft", "f", "sft", status="finished", checkpoint=saved("sft"))
    look = StageRecord("look", "g", None, start=saved("sft"), checkpoint=saved("sft"))
    old = Resume(2, "tinker://look/weights/2", "tinker://look/sampler/2")
    look.resume = old
    record: Any = SimpleNamespace(id="r-1", stages=[trained, look])
    plan: Any = SimpleNamespace(engine=Engine())
    shared = SharedHome(str(tmp_path / "shared"), tmp_path / "home")
    driver.take_in(StageRecord("look", "g", None), look, plan, shared, record)
    assert discarded == [old.state_uri, old.sampler_uri]


def test_a_checkpoint_that_its_node_deleted_meanwhile_takes_no_place(tmp_path: Path) -> None:
    """A driver that is slower than its nodes keeps what it has until it gets a newer one."""
    discarded: list[str] = []

    class Engine:
        def files(self, uri: str, data_dir: Path) -> Sequence[Path]:
            return (data_dir / uri.rpartition("/")[2],)

        def discard(self, uri: str, data_dir: Path) -> bool:
            discarded.append(uri)
            return True

    there = SharedHome(str(tmp_path / "shared"), tmp_path / "node")
    (tmp_path / "node" / "engine" / "6").mkdir(parents=True)
    (tmp_path / "node" / "engine" / "6" / "checkpoint.json").write_text("{}")
    there.push("engine/6")
    kept = StageRecord("sft", "f", "sft", resume=Resume(2, "tinker://a/2", "tinker://a/2"))
    record: Any = SimpleNamespace(id="r-1", stages=[kept])
    plan: Any = SimpleNamespace(engine=Engine())
    home = SharedHome(str(tmp_path / "shared"), tmp_path / "home")
    for step, has in ((4, 2), (6, 6)):
        told = StageRecord("sft", "f", "sft")
        told.resume = Resume(step, f"tinker://a/{step}", f"tinker://a/{step}")
        driver.take_in(told, kept, plan, home, record)
        assert kept.resume is not None
        assert kept.resume.step == has
        assert bool(discarded) == (step == 6)


@pytest.mark.parametrize("by", ["another node", "another driver"])
def test_a_superseded_node_touches_nothing_that_is_shared(by: str, tmp_path: Path) -> None:
    """The node that goes on with its stage resumes from what the first one shared."""
    home, shared = tmp_path / "node", SharedHome(str(tmp_path / "shared"), tmp_path / "node")
    kept = StageRecord("sft", "f", "sft")
    record = RunRecord("r-1", "r", "p", "m", "local", "r.yaml", None, 0, {}, "now", [kept])

    class Engine:
        def files(self, uri: str, data_dir: Path) -> Sequence[Path]:
            return (data_dir / uri.rpartition("/")[2],)

    class Outgoing:
        superseded = False

        def add(self, event: object) -> None: ...

        def flush(self) -> bool:
            return not self.superseded

    def saved(step: int) -> None:
        for kind in ("w", "s"):
            (home / "engine" / f"{kind}{step}").mkdir(parents=True)
            (home / "engine" / f"{kind}{step}" / "checkpoint.json").write_text("{}")
        kept.resume = Resume(step, f"tinker://a/w{step}", f"tinker://a/s{step}")

    engine, outgoing = Engine(), Outgoing()
    directory = node._Directory(home, record, kept, engine, shared, outgoing, "mine")  # type: ignore[arg-type]
    shared.mark("mine")
    saved(2)
    directory.save()
    saved(4)
    directory.save()
    files = {path.relative_to(tmp_path) for path in (tmp_path / "shared").rglob("*")}
    assert not any(path.name == "w2" for path in files)
    assert any(path.name == "w4" for path in files)
    if by == "another node":
        outgoing.superseded = True
    else:
        shared.mark("the next driver's")
    saved(6)
    directory.save()
    assert {path.relative_to(tmp_path) for path in (tmp_path / "shared").rglob("*")} == files
