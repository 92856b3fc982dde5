"""Runs with `engine: tinker` on a double of the service: what is billed, what stays there, what is
taken away from there."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import tinker
import yaml

from posttrain_recipes import api
from posttrain_recipes.store import RunRecord, Store
from tests.conftest import Ptl
from tests.e2e.test_serve import read_exports, serve

ROW = (
    '{"messages": [{"role": "user", "content": "%d+1?"}, {"role": "assistant", "content": "x"}]}\n'
)


@pytest.fixture(scope="module")
def hosted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    home = tmp_path_factory.mktemp("hosted")
    process = serve("--port=0", "--log-level=warning", "--like=hosted", f"--home={home}")
    yield read_exports(process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert process.stderr is not None
    assert "Traceback" not in process.stderr.read()


@pytest.fixture
def rest(hosted: dict[str, str]) -> tinker.RestClient:
    return tinker.RestClient(base_url=hosted["TINKER_BASE_URL"], api_key=hosted["TINKER_API_KEY"])


@pytest.fixture
def service(hosted: dict[str, str]) -> Iterator[tinker.ServiceClient]:
    with tinker.ServiceClient(
        base_url=hosted["TINKER_BASE_URL"], api_key=hosted["TINKER_API_KEY"]
    ) as service:
        yield service


@pytest.fixture
def recipe(tmp_path: Path, hosted: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TINKER_API_KEY", hosted["TINKER_API_KEY"])
    (tmp_path / "rows.jsonl").write_text("".join(ROW % number for number in range(8)))
    method = {"use": "sft", "learning_rate": 1e-3, "batch_size": 2, "max_steps": 4, "save_every": 1}
    stage = {"name": "sft", "dataset": {"use": "jsonl", "path": "rows.jsonl"}, "method": method}
    engine = {"use": "tinker", "base_url": hosted["TINKER_BASE_URL"]}
    made = {"name": "mini", "model": "ptl/nano", "engine": engine, "stages": [stage]}
    path = tmp_path / "mini.yaml"
    path.write_text(yaml.safe_dump(made, sort_keys=False))
    return path


@pytest.fixture
def run(recipe: Path, tmp_path: Path) -> RunRecord:
    api.run(recipe, home=tmp_path / ".ptl")
    [record] = Store(tmp_path / ".ptl").runs()
    assert record.status == "finished"
    return record


def listed(rest: tinker.RestClient) -> dict[str, tinker.Checkpoint]:
    return {one.tinker_path: one for one in rest.list_user_checkpoints(1000).result().checkpoints}


def test_what_a_run_made_and_nothing_names_is_deleted_and_nothing_else(
    run: RunRecord, rest: tinker.RestClient, service: tinker.ServiceClient, ptl: Ptl
) -> None:
    [session] = run.sessions
    assert run.billed is not None
    assert "nothing is billed" in run.billed.why
    assert "not told by the service" in ptl("show", "mini").out
    [stage] = run.stages
    assert stage.checkpoint is not None
    assert stage.checkpoint.state_uri is not None
    assert stage.checkpoint.state_uri.startswith(f"tinker://{session}:train:")
    # What a run that was killed had saved and not yet kept, and what another program has.
    ours = service.create_training_client_from_state(stage.checkpoint.state_uri).result()
    theirs = ours.save_state("theirs", overwrite=True).result().path
    before = listed(rest)
    results = {stage.checkpoint.state_uri, stage.checkpoint.sampler_uri}
    assert results | {theirs} <= before.keys()
    said = ptl("gc", "--hosted", "--dry-run")
    assert (said.code, "0 checkpoints would be deleted" in said.out) == (0, True)

    record = Store(run.home.parent).runs()[0] if run.home else run
    record.sessions.append(theirs.removeprefix("tinker://").partition(":train:")[0])
    with Store(Path(".ptl")).open(record) as directory:
        directory.save()
    said = ptl("gc", "--hosted", "--dry-run", "--json")
    assert [one["uri"] for one in json.loads(said.out)["deleted"]] == [theirs]
    assert listed(rest).keys() == before.keys()
    said = ptl("gc", "--hosted")
    assert "1 checkpoint deleted, 0.0 MB on this machine" in said.out
    assert f"{len(before) - 1} checkpoints stay there" in said.out
    assert listed(rest).keys() == before.keys() - {theirs}
    assert ptl("run", "mini.yaml").code == 0
