"""What an archive of a run says that it lacks."""

from __future__ import annotations

from pathlib import Path

from posttrain_recipes.exporting.packing import Packed, _Gathering
from posttrain_recipes.running.runner import new_record
from tests.conftest import Project

START = "tinker://a:train:0/weights/sft-000002"


def test_a_start_from_a_checkpoint_is_named_as_missing(project: Project, tmp_path: Path) -> None:
    plan = project.plan(
        "name: demo\nmodel: ./model\nstages:\n  - name: sft\n"
        f"    init_from: {START}\n"
        "    dataset: {use: jsonl, path: chat.jsonl}\n    method: {use: sft}\n"
    )
    made = Packed(tmp_path / "demo.zip")
    resolved = _Gathering(new_record(plan, "demo-1"), tmp_path / "in", True, made).resolved()
    assert resolved["stages"][0]["init_from"] == START
    assert any(START in note and "is not in it" in note for note in made.notes)


def test_what_tells_others_of_a_run_is_not_in_it_and_a_script_stays_one(
    project: Project, tmp_path: Path
) -> None:
    project.write("told.sh", "#!/bin/sh\n").chmod(0o755)
    project.write("mine.sh", "#!/bin/sh\n").chmod(0o755)
    plan = project.plan(
        "name: demo\nmodel: ./model\non_end: {command: [./told.sh]}\nstages:\n  - name: sft\n"
        "    dataset: {use: jsonl, path: chat.jsonl}\n    method: {use: sft}\n"
    )
    made, folder = Packed(tmp_path / "demo.zip"), tmp_path / "in"
    gathering = _Gathering(new_record(plan, "demo-1"), folder, True, made)
    assert "on_end" not in gathering.resolved()
    assert any("on_end" in note for note in made.notes)
    assert not (folder / "data" / "told.sh").exists()
    gathering._copy(project.path / "mine.sh", "data/mine.sh")
    assert (folder / "data" / "mine.sh").stat().st_mode & 0o111
