"""What `ptl watch` shows of a run changes nothing of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import posttrain_recipes as ptl
from posttrain_recipes.store import RunRecord, Store
from posttrain_recipes.watchlog import read, watch_path

pytestmark = pytest.mark.usefixtures("quick_engines")

DATA = Path(__file__).resolve().parents[2] / "recipes" / "data"
HELD_OUT = f"dataset: {{use: jsonl, path: {DATA}/held_out.jsonl, limit: 10}}"
STAGES = {
    "sft": f"""
    dataset: {{use: jsonl, path: {DATA}/chat.jsonl, limit: 40}}
    method: {{use: sft, learning_rate: 1e-2, batch_size: 8, save_every: 0}}
    eval: [{{use: exact_match, name: held, max_tokens: 8, {HELD_OUT}}}]
""",
    "rl": f"""
    {HELD_OUT}
    method: {{use: grpo, batch_size: 2, group_size: 4, max_tokens: 8, save_every: 0, kl_beta: 0.1}}
    reward: {{use: length, unit: characters, most: 4, slack: 8}}
""",
}
NUMBERS = {"sft": {"logprob"}, "rl": {"advantage", "log_ratio", "logprob"}}


def weights(home: Path, record: RunRecord) -> Any:
    """The adapter that the stage left."""
    left = record.stages[0].checkpoint
    assert left is not None
    assert left.sampler_uri is not None
    where = left.sampler_uri.removeprefix("tinker://").replace(":", "_")
    (path,) = (home / "engine" / "runs").glob(f"*{where}/adapter_model.safetensors")
    return load_file(path)


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["sft", pytest.param("rl", marks=pytest.mark.nightly)])
def test_a_run_with_a_filmstrip_is_the_run_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    head = "name: watched\nmodel: ptl/nano\nlora: {rank: 4}\nstages:\n  - name: stage"
    Path("watched.yaml").write_text(head + STAGES[kind])
    home = Path("home")
    shown = ptl.run("watched.yaml", home=home).record
    plain = ptl.run("watched.yaml", home=home, overrides=["watch=false"], fresh=True).record
    assert plain.fingerprint == shown.fingerprint
    ours, theirs = weights(home, shown), weights(home, plain)
    # To the bit, but for RL: what is sampled side by side comes in batches as time has it.
    bound = 1e-5 if kind == "rl" else 0.0
    assert all((ours[name] - theirs[name]).abs().max() <= bound for name in ours | theirs)
    (with_film,), (without,) = shown.stages, plain.stages
    # What an eval asks comes in batches as time has it, whatever the method.
    found = [
        [e.value for m in one.after for e in m.metrics.values()] for one in (without, with_film)
    ]
    assert found[0] == pytest.approx(found[1], abs=1e-5)
    assert without.spent.usage == with_film.spent.usage
    assert with_film.watching.usage.sample
    assert not without.watching.usage.tokens

    def lines(record: RunRecord, kind: str) -> list[dict[str, Any]]:
        path = watch_path(Store(home).path(record.id), "stage")
        return [line for line in read(path) if line["kind"] == kind]

    assert [line["step"] for line in lines(shown, "film")] == [0, 1, 2, 3, 4, 5]
    assert lines(plain, "film") == []
    assert len(lines(plain, "step")) == len(lines(plain, "rollouts")) == 5
    assert set(lines(shown, "rollouts")[0]["rollouts"][0]["numbers"]) == NUMBERS[kind]
