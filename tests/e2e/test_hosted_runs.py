"""Runs with `engine: tinker` on a double of the service: what is billed, what stays there, what is
taken away from there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import tinker
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM

from posttrain_recipes import api, models
from posttrain_recipes.errors import PtlError
from posttrain_recipes.running import stages
from posttrain_recipes.store import RunRecord, Store
from tests.conftest import Ptl
from tests.e2e.hosted_double import double, rest_of, service_of

ROW = (
    '{"messages": [{"role": "user", "content": "%d+1?"}, {"role": "assistant", "content": "x"}]}\n'
)


@pytest.fixture(scope="module")
def hosted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with double(tmp_path_factory.mktemp("hosted"), "--sample-only=ptl/tiny") as exported:
        yield exported


@pytest.fixture
def rest(hosted: dict[str, str]) -> tinker.RestClient:
    return rest_of(hosted)


@pytest.fixture
def service(hosted: dict[str, str]) -> Iterator[tinker.ServiceClient]:
    with service_of(hosted) as service:
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


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("model=ptl/tiny", "stages.sft.model: ptl/tiny is not trained there"),
        ("stages.sft.method.max_length=4096", "stages.sft.method.max_length: 4,096 is more than"),
        ("lora.rank=12", "lora.rank"),
    ],
)
def test_what_the_service_refuses_is_told_before_anything_is_spent(
    recipe: Path, rest: tinker.RestClient, ptl: Ptl, option: str, words: str
) -> None:
    before = listed(rest).keys()
    for command in ("preflight", "run"):
        said = ptl(command, recipe.name, "--set", option)
        assert said.code in (1, 2)
        assert words in said.out + said.err
    assert listed(rest).keys() == before


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


def test_a_run_is_exported_from_the_service(
    run: RunRecord, rest: tinker.RestClient, hosted: dict[str, str], ptl: Ptl
) -> None:
    [stage] = run.stages
    assert stage.checkpoint is not None
    uri = stage.checkpoint.sampler_uri
    assert uri is not None
    before = listed(rest).keys()
    said = ptl("export", "mini", "one")
    assert said.code == 0, said.err
    training = uri.removeprefix("tinker://").partition("/")[0]
    assert f"https://tinker.thinkingmachines.ai/training_runs/{training}" in said.out
    by_path = ["export", uri, "two", "--base-url", hosted["TINKER_BASE_URL"]]
    assert ptl(*by_path, "--merge", "--dtype", "float32").code == 0
    assert listed(rest).keys() == before, "the export there is deleted again"

    config = json.loads(Path("one/adapter_config.json").read_text())
    nano = models.resolve("ptl/nano")
    assert config["base_model_name_or_path"] == nano
    base = AutoModelForCausalLM.from_pretrained(nano, dtype=torch.float32)
    ids = torch.tensor([[5, 6, 7, 8]])
    merged = AutoModelForCausalLM.from_pretrained("two", dtype=torch.float32)
    plain = base(ids).logits
    trained = PeftModel.from_pretrained(base, "one")(ids).logits
    assert torch.allclose(merged(ids).logits, trained, atol=1e-4)
    assert not torch.allclose(plain, trained, atol=1e-4)

    said = ptl("export", uri, "three")
    assert (said.code, "--base-url of the engine that has it" in said.err) == (0, False)
    gone = uri.replace("sft", "gone")
    said = ptl("export", gone, "four", "--base-url", hosted["TINKER_BASE_URL"])
    assert said.code != 0
    assert not Path("four").exists()


def test_only_what_a_stage_leaves_is_kept_without_end(
    recipe: Path, tmp_path: Path, rest: tinker.RestClient
) -> None:
    home = tmp_path / ".ptl"
    held = yaml.safe_load(recipe.read_text())
    recipe.write_text(yaml.safe_dump({**held, "limits": {"max_tokens": 120}}))
    with pytest.raises(PtlError, match=r"stopped: limits\.max_tokens"):
        api.run(recipe, home=home)
    [stage] = Store(home).runs()[0].stages
    assert stage.resume is not None
    assert 0 < stage.resume.step < 4
    fortnight = timedelta(seconds=stages.TTL_S)
    for uri in (stage.resume.state_uri, stage.resume.sampler_uri):
        one = listed(rest)[uri]
        assert one.expires_at is not None
        assert abs(one.expires_at - one.time - fortnight) < timedelta(hours=1)

    recipe.write_text(yaml.safe_dump(held))
    api.run(recipe, home=home)
    [stage] = Store(home).runs()[0].stages
    assert stage.checkpoint is not None
    assert not stage.warnings
    for made in (stage.checkpoint.state_uri, stage.checkpoint.sampler_uri):
        assert made is not None
        assert listed(rest)[made].expires_at is None
