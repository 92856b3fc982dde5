"""What is kept on disk about runs: always whole, held by one process, read back as written."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from posttrain_recipes import store
from posttrain_recipes.errors import PtlError, UsageError
from posttrain_recipes.plugin import Resume
from posttrain_recipes.records import Checkpoint, Estimate, EvalResult, Message, Sample
from posttrain_recipes.reporting import report
from posttrain_recipes.store import Measured, RunRecord, StageRecord, Store, dump, write_atomic


def record(run_id: str = "demo-1", *, created: str = "2026-01-01T00:00:00+00:00") -> RunRecord:
    return RunRecord(
        id=run_id,
        recipe=run_id.rsplit("-", 1)[0],
        fingerprint="f0",
        model="ptl/tiny",
        engine="local",
        path="mine.yaml",
        preset="quick",
        seed=3,
        resolved={"name": "demo", "key": "${env:KEY}", "rate": 1e-4},
        created=created,
        stages=[StageRecord("sft", "f1", "sft")],
    )


def keep(kept: Store, run: RunRecord) -> None:
    """As a version kept it whose runs have no order."""
    with kept.open(run) as directory:
        run.order = 0
        directory.save()


# --- atomic writes -------------------------------------------------------------------------------


def test_stages_and_evals_whose_names_run_together_keep_their_samples_apart(
    tmp_path: Path,
) -> None:
    kept = store.Store(tmp_path)
    (tmp_path / "runs" / "demo-1").mkdir(parents=True)
    one, two = (Sample((Message("user", "?"),), reply) for reply in ("one", "two"))
    with kept.open(record("demo-1")) as directory:
        directory.save_samples("sft", "dpo-held", "after", (one,))
        directory.save_samples("sft-dpo", "held", "after", (two,))
    path = kept.path("demo-1")
    assert store.load_samples(path, "sft", "dpo-held", "after") == [one]
    assert store.load_samples(path, "sft-dpo", "held", "after") == [two]
    new = store.samples_path(path, "sft-dpo", "held", "after")
    new.rename(path / "samples" / "old-held-after.jsonl")
    assert store.load_samples(path, "old", "held", "after") == [two], "a run of before"


def test_a_write_makes_the_directories_it_needs(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a" / "b.json", "é\n")
    assert (tmp_path / "a" / "b.json").read_bytes() == "é\n".encode()


@pytest.mark.parametrize("failure", [OSError("disk"), KeyboardInterrupt()])
@pytest.mark.parametrize("step", ["replace", "fsync"])
def test_a_write_that_is_stopped_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException, step: str
) -> None:
    target = tmp_path / "run.json"
    write_atomic(target, "old")

    def stop(*_: object) -> None:
        raise failure

    monkeypatch.setattr(store.os, step, stop)
    with pytest.raises(PtlError if isinstance(failure, OSError) else KeyboardInterrupt):
        write_atomic(target, "new")
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["run.json"]


def test_the_text_is_on_the_disk_before_it_takes_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(store.os, "fsync", lambda f: (done.append("fsync"), fsync(f)))
    monkeypatch.setattr(store.os, "replace", lambda a, b: (done.append("replace"), replace(a, b)))
    write_atomic(tmp_path / "run.json", "text")
    assert done == ["fsync", "replace"]


# --- ids -----------------------------------------------------------------------------------------


def test_the_last_run_is_told_by_its_number_not_by_the_clock(tmp_path: Path) -> None:
    kept = Store(tmp_path)
    for number, created in ((1, "2031"), (2, "2026"), (10, "2025")):
        keep(kept, record(f"demo-{number}", created=f"{created}-01-01T00:00:00+00:00"))
    assert [run.id for run in kept.runs()] == ["demo-1", "demo-2", "demo-10"]
    latest = kept.latest(record().fingerprint)
    assert latest is not None
    assert latest.id == kept.find("demo").id == "demo-10"


def test_what_was_at_work_in_a_run_that_was_killed_was_killed_too(tmp_path: Path) -> None:
    kept = Store(tmp_path)
    run = record()
    run.status = run.stages[0].status = "running"
    keep(kept, run)
    (found,) = kept.runs()
    assert (found.status, found.stages[0].status) == ("killed", "killed")


def test_runs_are_numbered_by_recipe(tmp_path: Path) -> None:
    kept = Store(tmp_path)
    made = [kept.next_id(name) for name in ("sft", "sft", "dpo", "sft-long", "sft")]
    assert made == ["sft-1", "sft-2", "dpo-1", "sft-long-1", "sft-3"]


def test_a_number_is_not_used_again_below_the_last(tmp_path: Path) -> None:
    kept = Store(tmp_path)
    for number in (2, 10):
        (kept.runs_dir / f"sft-{number}").mkdir(parents=True)
    assert kept.next_id("sft") == "sft-11"


def test_two_who_ask_at_once_get_two_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Store(tmp_path)
    assert kept.next_id("sft") == "sft-1"
    monkeypatch.setattr(Path, "glob", lambda *_: iter(()))  # looked before the other made it
    assert kept.next_id("sft") == "sft-2"


# --- locks ---------------------------------------------------------------------------------------

HOLD = """
import sys
from pathlib import Path
from posttrain_recipes.store import Store
kept = Store(Path(sys.argv[1]))
with kept._lock("demo-1"):
    print("held", flush=True)
    sys.stdin.read()
"""


def hold(home: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(home)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_who_comes_second_is_told_who_holds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "LOCK_ATTEMPTS", 1)
    kept = Store(tmp_path)
    keep(kept, record())
    holder = hold(tmp_path)
    try:
        assert kept.locked("demo-1")
        assert kept.find("demo-1").status == "running"
        with pytest.raises(PtlError) as caught, kept.open(record()):
            pytest.fail("held by two")
        began = r"since \d{4}-\d\d-\d\dT[\d:]+\+00:00"
        words = f"run demo-1 is being worked on by process {holder.pid} {began}"
        assert re.fullmatch(words, caught.value.what)
        assert caught.value.exit_code == 1
    finally:
        holder.kill()
        holder.communicate()
    # The kernel dropped it with its holder.
    assert not kept.locked("demo-1")
    assert kept.find("demo-1").status == "killed"
    with kept.open(record()) as directory:
        assert (directory.path / "lock").read_text().split()[0] == str(os.getpid())


def test_it_is_free_again_after_an_error(tmp_path: Path) -> None:
    kept = Store(tmp_path)
    held = []
    with contextlib.suppress(RuntimeError), kept.open(record()):
        held.append(kept.locked("demo-1"))
        raise RuntimeError
    assert held == [True]
    assert not kept.locked("demo-1")


def test_an_error_of_the_work_is_not_taken_for_a_lock(tmp_path: Path) -> None:
    kept = Store(tmp_path)
    with pytest.raises(OSError, match="of the work"), kept.open(record()):
        raise OSError("of the work")


def test_looking_at_a_run_takes_no_lock_and_makes_no_file(tmp_path: Path) -> None:
    kept = Store(tmp_path)
    assert not kept.locked("demo-1")
    assert kept.runs() == []
    assert list(tmp_path.iterdir()) == []


# --- records -------------------------------------------------------------------------------------


def full() -> RunRecord:
    run = record()
    run.status, run.finished, run.error, run.tracking_id = "failed", "2026-01-02", "why", "t1"
    estimate = Estimate(0.5, 0.25, 0.75, 12)
    run.stages = [
        StageRecord(
            name="sft",
            fingerprint="f1",
            method="sft",
            status="finished",
            seconds=1.5,
            total_steps=8,
            records=40,
            tokens=512,
            resume=Resume(
                8,
                "tinker://a/weights/8",
                "tinker://a/sampler_weights/8",
                beside={"critic": "tinker://b/weights/8"},
            ),
            start=Checkpoint("ptl/tiny"),
            checkpoint=Checkpoint("ptl/tiny", "tinker://a/weights/8", "tinker://s", 8),
            before=[Measured("held_out", "exact_match", "f2", "held.jsonl", {"em": estimate})],
            after=[
                Measured("nll", "nll", "f3", "chat (test)", {"nll": estimate}, {"nll": False}),
            ],
        ),
        StageRecord("dpo", "f4", None),
    ]
    return run


def test_a_run_is_read_as_it_was_written(tmp_path: Path) -> None:
    kept = Store(tmp_path)
    keep(kept, full())
    assert kept.find("demo-1") == full()
    assert kept.runs() == [full()]


def test_a_run_that_says_running_and_is_not_held_was_killed(tmp_path: Path) -> None:
    kept = Store(tmp_path)
    with kept.open(record()) as directory:
        directory.save()
        assert kept.runs()[0].status == "running"
    assert kept.runs()[0].status == "killed"


@pytest.mark.parametrize(
    "text",
    ["", '{"format": 1, "id": "demo-2", "rec', "[]", "null", '{"format": 1}', '{"format": 99}'],
)
def test_a_run_that_cannot_be_read_is_left_out(tmp_path: Path, text: str) -> None:
    kept = Store(tmp_path)
    keep(kept, full())
    (kept.path("demo-2")).mkdir()
    (kept.path("demo-2") / "run.json").write_text(text)
    assert [run.id for run in kept.runs()] == ["demo-1"]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('"seed": 3', '"seed": ' + "9" * 5000, "no JSON"),
        ('"status": "running"', '"status": "banana"', "run.status is"),
        ('"status": "waiting"', '"status": ""', "run.stages[0].status is"),
        ('"name": "sft"', '"name": "../../x"', "run.stages[0].name is"),
        ('"name": "sft"', '"name": ""', "run.stages[0].name is"),
        ('"made_in": ""', '"made_in": "../../etc"', "outside the runs"),
        ('"rate": 0.0001', '"stages": 5', "run.resolved.stages is 5, which is no list"),
        ('"rate": 0.0001', '"stages": [3]', "run.resolved.stages[0] is 3"),
        ('"rate": 0.0001', '"stages": [{"seed": 1}]', "run.resolved.stages[0] lacks 'name'"),
        ('"inputs": {}', '"inputs": {"method": 3}', "run.stages[0].inputs.method is 3"),
        ('"inputs": {}', '"inputs": {"reward": [{"config": 3}]}', "inputs.reward.config is 3"),
    ],
)
def test_a_record_with_nonsense_in_it_is_unreadable_and_hides_no_other(
    tmp_path: Path, old: str, new: str, told: str
) -> None:
    kept = Store(tmp_path)
    keep(kept, record("demo-1"))
    keep(kept, record("demo-2"))
    file = kept.path("demo-2") / "run.json"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    runs, [broken] = kept.listed()
    assert [run.id for run in runs] == ["demo-1"]
    assert told in broken.why


def test_json_of_a_run_has_no_number_that_json_has_not() -> None:
    run = record()
    run.seconds = float("inf")
    shown = json.dumps(report.as_json(run))
    assert json.loads(shown, parse_constant=pytest.fail)["seconds"] is None


def test_a_run_that_is_no_text_is_left_out(tmp_path: Path) -> None:
    kept = Store(tmp_path)
    kept.path("demo-1").mkdir(parents=True)
    (kept.path("demo-1") / "run.json").write_bytes(bytes(range(256)))
    assert kept.runs() == []


def test_runs_are_listed_by_age_and_found_by_id_or_recipe(tmp_path: Path) -> None:
    kept = Store(tmp_path)
    for run_id, created in (("b-2", "02"), ("a-1", "03"), ("b-10", "02"), ("b-1", "01")):
        keep(kept, record(run_id, created=created))
    assert [run.id for run in kept.runs()] == ["b-1", "b-2", "b-10", "a-1"]
    assert kept.find("b-2").id == "b-2"
    assert kept.find("b").id == "b-10"


def test_an_exact_id_wins_over_a_recipe_of_that_name(tmp_path: Path) -> None:
    """A recipe `mini-2`, run once, beside the second run of `mini`."""
    kept = Store(tmp_path)
    for run_id, created in (("mini-1", "01"), ("mini-2", "02"), ("mini-2-1", "03")):
        keep(kept, record(run_id, created=created))
    assert kept.find("mini-2").id == "mini-2"
    assert kept.find("mini").id == "mini-2"
    assert store.named(kept.runs(), "mini-2-1").id == "mini-2-1"  # type: ignore[union-attr]


def test_an_unknown_run_is_answered_with_the_last_ones(tmp_path: Path) -> None:
    kept = Store(tmp_path)
    with pytest.raises(UsageError) as caught:
        kept.find("demo")
    assert caught.value.what == f"there is no run 'demo' in {tmp_path}"
    assert caught.value.hint == "'ptl run RECIPE' makes one"
    for number in range(1, 8):
        keep(kept, record(f"demo-{number}"))
    with pytest.raises(UsageError) as caught:
        kept.find("x")
    assert caught.value.hint == "the last runs: demo-3, demo-4, demo-5, demo-6, demo-7"


def test_the_latest_run_of_a_plan(tmp_path: Path) -> None:
    kept = Store(tmp_path)
    for number in (1, 2):
        keep(kept, record(f"demo-{number}"))
    latest = kept.latest("f0")
    assert latest is not None
    assert latest.id == "demo-2"
    assert kept.latest("f9") is None


def test_samples_are_read_as_they_were_written(tmp_path: Path) -> None:
    samples = (
        Sample((Message("system", "Be kind."), Message("user", "1+1?\n")), "2\u2028é", "2"),
        Sample((Message("user", "?"),), "", None, {"exact_match": 0.0}, truncated=True),
    )
    kept = Store(tmp_path)
    with kept.open(record()) as directory:
        directory.save_samples("sft", "held_out", "before", samples)
        directory.save_samples("sft", "nll", "before", ())
    path = kept.path("demo-1")
    assert store.load_samples(path, "sft", "held_out", "before") == list(samples)
    assert store.load_samples(path, "sft", "held_out", "after") == []
    assert store.load_samples(path, "sft", "nll", "before") == []


def test_a_result_is_kept_without_its_samples() -> None:
    estimate = Estimate(1.0, 0.5, 1.5, 3)
    result = EvalResult({"nll": estimate}, (Sample((), "x"),), {"nll": False})
    assert store.measured("n", "nll", "f", "data", result) == Measured(
        "n", "nll", "f", "data", {"nll": estimate}, {"nll": False}
    )


def test_home_is_the_variable_or_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PTL_HOME", raising=False)
    assert store.default_home() == tmp_path / ".ptl"
    monkeypatch.setenv("PTL_HOME", str(tmp_path / "kept"))
    assert store.default_home() == tmp_path / "kept"


def test_the_last_run_is_told_by_no_clock(tmp_path: Path) -> None:
    """Each began, by its clock, before the one that was there; one is of a time without numbers."""
    kept = Store(tmp_path)
    old = record("old-1", created="2040-01-01T00:00:00+00:00")
    for run_id, created in (("b-1", "2033"), ("a-1", "2031"), ("c-1", "2032")):
        with kept.open(record(run_id, created=f"{created}-01-01T00:00:00+00:00")) as directory:
            directory.save()
    (kept.path(old.id)).mkdir(parents=True)
    (kept.path(old.id) / "run.json").write_text(dump(old))
    assert [run.id for run in kept.runs()] == ["old-1", "b-1", "a-1", "c-1"]
    with kept.open(kept.find("b-1")) as directory:  # gone on with, it stays where it was
        directory.save()
    assert [run.id for run in kept.runs()] == ["old-1", "b-1", "a-1", "c-1"]


def test_a_run_that_cannot_be_looked_at_hides_no_other(tmp_path: Path) -> None:
    """A link in a circle, a copy of another run, a lock that is none."""
    kept = Store(tmp_path)
    for run_id, status in (("demo-1", "finished"), ("demo-4", "running")):
        run = record(run_id)
        run.status = status
        keep(kept, run)
    circle = kept.path("demo-2")
    circle.mkdir()
    (circle / "run.json").symlink_to("run.json")
    shutil.copytree(kept.path("demo-1"), kept.path("demo-3"))
    (kept.path("demo-4") / "lock").unlink(missing_ok=True)
    (kept.path("demo-4") / "lock").mkdir()
    (kept.path("demo-5")).mkdir()  # without a record: no run
    found, broken = kept.listed()
    assert [run.id for run in found] == ["demo-1", "demo-4"]
    assert found[1].status == "killed"
    assert [one.id for one in broken] == ["demo-2", "demo-3"]
    assert "the record of another run, demo-1" in broken[1].why


@pytest.mark.parametrize("text", ["{", "[1]", '{"prompt": 1}', '{"x": 1}', "\udcff"])
def test_samples_that_are_damaged_are_left_out_with_a_word(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = store.samples_path(tmp_path, "sft", "held", "after")
    path.parent.mkdir(parents=True)
    path.write_bytes(text.encode(errors="surrogateescape"))
    assert store.load_samples(tmp_path, "sft", "held", "after") == []
    assert f"{path} is left out: it is damaged" in caplog.text
