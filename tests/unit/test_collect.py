"""Garbage: what nothing names. What is named is never offered for deletion."""

from __future__ import annotations

import json
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from posttrain_recipes.cli.gc import gc
from posttrain_recipes.engine.storage import checkpoints
from posttrain_recipes.engine.wire import AdapterConfig
from posttrain_recipes.plugin import Resume
from posttrain_recipes.records import Checkpoint
from posttrain_recipes.running import collect
from posttrain_recipes.running.stages import Sink
from posttrain_recipes.store import RunRecord, StageRecord, Store


def uri(run: str, step: int, kind: str = "weights") -> str:
    return f"tinker://{run}:train:0/{kind}/s-{step:06d}"


def pair(run: str, step: int) -> tuple[str, str]:
    return uri(run, step), uri(run, step, "sampler_weights")


def record(number: int, status: str, *stages: StageRecord, engine: str = "local") -> RunRecord:
    return RunRecord(
        f"demo-{number}", "demo", f"f{number}", "m", engine, "r.yaml", None, 0,
        {"engine": engine}, f"2026-01-0{number}T00:00:00+00:00", list(stages), status,
    )  # fmt: skip


def finished(run: str, step: int = 8, *superseded: str) -> StageRecord:
    made = Checkpoint("m", *pair(run, step), step)
    return StageRecord(
        "s", "f", "sft", status="finished", checkpoint=made, superseded=list(superseded)
    )


def stopped(run: str, step: int = 4, *superseded: str) -> StageRecord:
    resume = Resume(step, *pair(run, step))
    return StageRecord("s", "f", "sft", status="killed", resume=resume, superseded=list(superseded))


def stored(*names: str) -> dict[str, int]:
    return dict.fromkeys(names, 10)


def uris(found: list[collect.Garbage]) -> set[str]:
    return {item.uri for item in found}


def test_what_a_stage_ended_in_or_goes_on_from_stays() -> None:
    runs = [record(1, "finished", finished("a")), record(2, "killed", stopped("b"))]
    there = stored(*pair("a", 8), *pair("b", 4))
    assert collect.find(runs, there, set()) == []


def test_superseded_steps_and_saves_that_nobody_recorded_go() -> None:
    runs = [record(1, "killed", stopped("a", 4, *pair("a", 2)))]
    there = stored(*pair("a", 2), *pair("a", 4), *pair("a", 6), *pair("stranger", 9))
    found = collect.find(runs, there, set())
    assert uris(found) == {*pair("a", 2), *pair("a", 6)}, "another program's checkpoints stay"
    assert {item.why for item in found} == {
        "demo-1 s: a later step was saved",
        "demo-1 s: no result of it",
    }
    assert all(item.size == 10 for item in found)


def test_the_weights_that_a_resumed_stage_samples_from_stay() -> None:
    """With max_staleness they are those of steps before the last that was saved."""
    older = (uri("a", 3, "sampler_weights"), uri("a", 2, "sampler_weights"))
    stage = stopped("a", 4, *pair("a", 2))
    stage.resume = Resume(4, *pair("a", 4), older)
    there = stored(*pair("a", 2), *pair("a", 4), *older)
    assert uris(collect.find([record(1, "killed", stage)], there, set())) == {uri("a", 2)}
    assert uris(collect.find([record(1, "killed", stage)], there, set(), keep_last=0)) == set(there)
    stage.status, stage.checkpoint = "finished", Checkpoint("m", *pair("a", 4), 4)
    left = collect.find([record(1, "finished", stage)], there, set())
    assert uris(left) == {*older, uri("a", 2)}, "once it is done nothing needs them"


def test_a_stage_at_work_deletes_none_of_the_weights_that_a_resume_samples_from() -> None:
    older = uri("a", 2, "sampler_weights")
    stage = stopped("a", 4, *pair("a", 2), *pair("a", 3))
    stage.resume = Resume(4, *pair("a", 4), (older,))
    deleted: list[str] = []

    def delete(name: str) -> Any:
        deleted.append(name)
        done: Future[None] = Future()
        done.set_result(None)
        return SimpleNamespace(future=lambda: done)

    rest = SimpleNamespace(delete_checkpoint_from_tinker_path=delete)
    work = SimpleNamespace(serving=SimpleNamespace(connection=SimpleNamespace(rest=rest)))
    sink: Any = SimpleNamespace(kept=stage, work=work, deleting={})
    Sink.delete_superseded(sink, keep=0)
    assert set(deleted) == {uri("a", 2), *pair("a", 3)}
    assert stage.superseded == [older]


def test_what_another_stage_or_mlflow_names_stays() -> None:
    start = Checkpoint("m", *pair("a", 2), 2)
    later = StageRecord("t", "g", "dpo", status="waiting", start=start)
    runs = [record(1, "killed", finished("a", 8, *pair("a", 2), *pair("a", 4)), later)]
    there = stored(*pair("a", 2), *pair("a", 4), *pair("a", 8))
    assert uris(collect.find(runs, there, {uri("a", 4)})) == {uri("a", 4, "sampler_weights")}


def test_a_run_at_work_is_left_alone() -> None:
    running = stopped("a", 4, *pair("a", 2))
    running.status = "running"
    there = stored(*pair("a", 2), *pair("a", 4), *pair("a", 6))
    assert collect.find([record(1, "running", running)], there, set()) == []


def test_of_unfinished_runs_the_last_can_be_kept() -> None:
    runs = [record(n, "killed", stopped(name)) for n, name in enumerate("abc", 1)]
    there = stored(*pair("a", 4), *pair("b", 4), *pair("c", 4))
    assert collect.find(runs, there, set()) == []
    assert uris(collect.find(runs, there, set(), keep_last=2)) == set(pair("a", 4))
    assert uris(collect.find(runs, there, set(), keep_last=0)) == set(there)
    done = record(4, "finished", finished("a", 4))
    assert uris(collect.find([*runs, done], there, set(), keep_last=0)) == {
        *pair("b", 4),
        *pair("c", 4),
    }


def test_on_an_engine_elsewhere_only_what_was_recorded_is_known() -> None:
    runs = [record(1, "finished", finished("a", 8, *pair("a", 2)), engine="tinker")]
    [one, two] = collect.find(runs, {}, set())
    assert (one.size, one.engine) == (None, '"tinker"')
    assert {one.uri, two.uri} == set(pair("a", 2))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """One run with a superseded step and a final one, on the embedded engine's disk."""
    disk = checkpoints.CheckpointStore(tmp_path / "engine")
    lora = AdapterConfig(rank=1)
    for step in (2, 8):
        for name in pair("a", step):
            path = checkpoints.parse_path(name)
            made = checkpoints.CheckpointRecord(name, "m", lora, step, "2026-01-01T00:00:00+00:00")
            disk.save(path, made, lambda folder: None, overwrite=False)
    kept = Store(tmp_path)
    run = record(1, "finished", finished("a", 8, *pair("a", 2)))
    with kept.open(run) as directory:
        directory.save()
    return tmp_path


def test_gc_shows_and_then_deletes(home: Path) -> None:
    def call(*words: str) -> str:
        done = CliRunner().invoke(gc, ["--home", str(home), *words], standalone_mode=False)
        assert done.exception is None, done.exception
        return done.output

    def there() -> set[str]:
        return {item.path for item, _ in checkpoints.CheckpointStore(home / "engine").checkpoints()}

    shown = call("--dry-run")
    assert "2 checkpoints would be deleted" in shown
    assert there() == {*pair("a", 2), *pair("a", 8)}
    assert {item["uri"] for item in json.loads(call("--json"))["deleted"]} == set(pair("a", 2))
    assert there() == set(pair("a", 8))
    assert call().startswith("0 checkpoints deleted")


def test_gc_of_nothing(tmp_path: Path) -> None:
    done = CliRunner().invoke(gc, ["--home", str(tmp_path / "none")], standalone_mode=False)
    assert "0 checkpoints deleted" in done.output
    assert not (tmp_path / "none").exists()


# --- on services ---------------------------------------------------------------------------------

HOSTED = json.dumps("tinker")


def hosted(*names: str) -> dict[str, dict[str, int | None]]:
    return {HOSTED: dict.fromkeys(names, 10)}


def test_on_a_service_what_these_runs_made_and_nothing_names_is_found() -> None:
    done = record(1, "finished", finished("a", 8, uri("a", 2)), engine="tinker")
    done.sessions = ["c"]
    killed = record(2, "killed", stopped("b", 4), engine="tinker")
    there = hosted(
        *pair("a", 8), *pair("a", 4), *pair("b", 4), uri("b", 6), uri("c", 1), uri("d", 1)
    )
    found = collect.find([done, killed], {}, set(), hosted=there)
    assert uris(found) == {*pair("a", 4), uri("b", 6), uri("c", 1)}
    assert {item.size for item in found} == {10}
    assert {item.engine for item in found} == {HOSTED}
    kept = collect.find([done, killed], {}, {uri("c", 1)}, hosted=there)
    assert uri("c", 1) not in uris(kept)


def test_what_a_stage_began_from_is_anothers_with_all_of_its_training() -> None:
    start = Checkpoint("m", *pair("other", 8))
    trained = finished("a")
    trained.start = start
    looked = StageRecord("t", "g", None, status="finished", checkpoint=start, start=start)
    taken = finished("z")
    taken.reused_from = "elsewhere-1"
    runs = [record(1, "finished", trained, looked, taken, engine="tinker")]
    there = hosted(*pair("other", 8), uri("other", 4), uri("a", 4), uri("z", 4))
    assert uris(collect.find(runs, {}, set(), hosted=there)) == {uri("a", 4)}


def test_what_a_run_works_on_stays_with_all_of_its_session() -> None:
    running = record(1, "running", engine="tinker")
    running.sessions = ["a"]
    other = record(2, "finished", finished("b"), engine="tinker")
    other.sessions = ["a"]
    assert not collect.find([running, other], {}, set(), hosted=hosted(uri("a", 4)))


def test_what_a_recipe_names_stays() -> None:
    run = record(1, "finished", finished("a"), engine="tinker")
    other = record(2, "failed", engine="tinker")
    other.resolved["stages"] = [{"method": {"teacher": {"checkpoint": uri("a", 4)}}}]
    there = hosted(uri("a", 4), uri("a", 2))
    assert uris(collect.find([run, other], {}, set(), hosted=there)) == {uri("a", 2)}


def test_one_service_is_not_asked_for_what_lies_on_another() -> None:
    run = record(1, "finished", finished("a", 8, uri("a", 2)), engine="tinker")
    there = {json.dumps("other"): {uri("a", 4): 10}}
    assert uris(collect.find([run], {}, set(), hosted=there)) == {uri("a", 2)}


def test_all_pages_are_read_and_what_is_published_is_left() -> None:
    every = [
        SimpleNamespace(tinker_path=uri("a", number), size_bytes=number, public=number == 7)
        for number in range(250)
    ]

    def page(limit: int, offset: int) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(SimpleNamespace(checkpoints=every[offset : offset + limit]))
        return future

    connection: Any = SimpleNamespace(
        rest=SimpleNamespace(list_user_checkpoints=page), alive=lambda: True
    )
    found = collect._listed(connection)
    assert len(found) == 249
    assert uri("a", 7) not in found


def test_a_service_that_does_not_answer_is_told_and_the_others_looked_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TINKER_API_KEY", raising=False)
    with Store(tmp_path).open(record(1, "finished", finished("a"), engine="tinker")) as directory:
        directory.save()
    found = CliRunner().invoke(gc, ["--hosted", "--home", str(tmp_path)])
    assert found.exit_code == 1
    assert "not looked through: the environment variable TINKER_API_KEY is not set" in found.output
    assert "0 checkpoints deleted" in found.output
