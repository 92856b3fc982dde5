"""`ptl eval`: a suite on runs, checkpoints and models; and the leaderboard of what was measured."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import posttrain_recipes as ptl
from posttrain_recipes import models
from posttrain_recipes.cli import cli
from posttrain_recipes.store import Store
from tests.e2e.test_run import ROOT

pytestmark = pytest.mark.usefixtures("quick_engines")

RECIPE = """\
name: small
model: ptl/nano
lora: {rank: 4}
stages:
  - name: sft
    dataset: {use: jsonl, path: DATA/chat.jsonl, limit: 64}
    method: {use: sft, learning_rate: 2e-3, batch_size: 8, max_steps: 8}
    eval: [{use: nll, name: chat, dataset: {use: jsonl, path: DATA/chat.jsonl, limit: 24}}]
"""
SUITE = """\
- {use: nll, name: chat, dataset: {use: jsonl, path: DATA/chat.jsonl, limit: 24}}
- use: exact_match
  name: held
  max_tokens: 8
  dataset: {use: jsonl, path: DATA/held_out.jsonl, limit: 8}
"""


def command(*args: str | Path) -> tuple[int, Any]:
    done = CliRunner().invoke(cli, [*map(str, args), "--json"], standalone_mode=False)
    if done.exception is not None:
        raise done.exception
    return done.return_value, json.loads(done.stdout)


def stages(home: Path, run_id: str) -> dict[str, float]:
    (stage,) = Store(home).find(run_id).stages
    return {m.name: next(iter(m.metrics.values())).value for m in stage.before}


@pytest.mark.nightly
def test_a_suite_on_a_run_and_its_base(tmp_path: Path) -> None:
    data = str(ROOT / "recipes" / "data")
    for name, text in (("small.yaml", RECIPE), ("held.yaml", SUITE)):
        (tmp_path / name).write_text(text.replace("DATA", data))
    home, suite = tmp_path / "home", tmp_path / "held.yaml"
    trained = ptl.run(tmp_path / "small.yaml", home=home)
    after = trained["sft"].after["chat"]["nll"].value
    there = ("--suite", suite, "--home", home)
    code, found = command("eval", "ptl/nano", trained.run_id, *there, "--fail-under", "chat=0")
    assert code == 0
    base, own = [row["id"] for row in found["runs"]]
    assert stages(home, own)["chat"] == pytest.approx(after, abs=1e-6)
    assert stages(home, base)["chat"] > after
    # In pairs, on the same records.
    (chat,) = [t for t in found["comparison"]["results"] if t["eval"] == "chat"]
    assert "paired t, 24 records" in chat["cells"][1]["against"]["test"]
    assert found["worse"] == []

    # The other way round the base is worse, and may fail.
    args = ("eval", trained.run_id, "ptl/nano", "--suite", suite, "--home", home)
    assert command(*args)[0] == 0
    code, found = command(*args, "--fail-worse")
    assert code == 3
    assert "chat" in found["worse"][0]
    assert command(*args[:2], *args[3:], "--fail-under", "held=1.01")[0] == 3

    # The same bytes under another name: known, and what is new of the suite is measured there.
    copy, more = tmp_path / "copy", tmp_path / "more.yaml"
    shutil.copytree(Path(models.__file__).parent / "nano", copy)
    only = SUITE.splitlines()[0].replace("DATA", data)
    more.write_text(f"{only}\n{only.replace('name: chat', 'name: less').replace('24', '4')}\n")
    _, found = command("eval", copy, "--suite", more, "--home", home)
    (again,) = found["runs"]
    assert again["stages"][0]["reused_from"] == base
    assert stages(home, again["id"])["chat"] == stages(home, base)["chat"]

    # Nothing was measured twice; an eval more is measured alone, and the same bytes under another
    # name are the same weights.
    before = Store(home).find(own).stages[0].evaluation.usage.tokens
    more = f"- {{use: nll, name: more, dataset: {{use: jsonl, path: {data}/chat.jsonl, limit: 3}}}}"
    suite.write_text(f"{suite.read_text()}{more}\n")
    uri = trained["sft"].checkpoint
    assert uri is not None
    assert uri.sampler_uri is not None
    copied = copy_of(home, uri.sampler_uri)
    _, found = command("eval", copied, "--suite", suite, "--home", home)
    again = Store(home).find(found["runs"][0]["id"]).stages[0]
    assert again.start is not None
    assert again.start.sampler_uri == uri.sampler_uri
    assert set(stages(home, found["runs"][0]["id"])) == {"chat", "held", "more"}
    assert again.evaluation.usage.tokens < before

    done = CliRunner().invoke(cli, ["report", "--all", "--home", str(home)])
    assert done.exit_code == 0, done.output
    page = (home / "leaderboard.html").read_text()
    assert page.index(f"{trained.run_id}/sft") < page.index("<td>ptl/nano</td>")
    done = CliRunner().invoke(
        cli, ["report", "--all", "--home", str(home), "-o", str(tmp_path / "all.md")]
    )
    assert "## chat" in (tmp_path / "all.md").read_text()
    assert CliRunner().invoke(cli, ["report", "--home", str(home)]).exit_code != 0


def copy_of(home: Path, uri: str) -> str:
    """The same weights, saved once more under another name."""
    from datetime import UTC, datetime

    from posttrain_recipes.engine.storage.checkpoints import CheckpointStore, parse_path

    store, path = CheckpointStore(home / "engine"), parse_path(uri)
    kept = store.find(path)

    def write(folder: Path) -> None:
        for file in kept.folder.iterdir():
            if file.name != "checkpoint.json":
                (folder / file.name).write_bytes(file.read_bytes())

    from dataclasses import replace

    other = parse_path(uri + "-copy")
    record = replace(kept.record, path=str(other), time=datetime.now(UTC).isoformat())
    store.save(other, record, write, overwrite=False)
    return str(other)
