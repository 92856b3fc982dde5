"""Memory: estimated from shapes, compared with what there is, and told of when it ran out."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from posttrain_recipes import machine
from posttrain_recipes.engine import launch
from posttrain_recipes.engine.launch import EngineProcess
from posttrain_recipes.models import BUNDLED
from posttrain_recipes.planning import memory
from posttrain_recipes.running import death, preflight
from posttrain_recipes.shape import Shape
from tests.conftest import Project, Ptl

SMOL = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
}
"""SmolLM2-135M."""
TINY = json.loads((BUNDLED["ptl/tiny"] / "config.json").read_text())
RECIPE = """\
name: demo
model: ptl/nano
stages:
  - name: sft
    dataset: {use: jsonl, path: chat.jsonl}
    method: {use: sft, max_length: 128}
"""


def shape(config: dict[str, Any]) -> Shape:
    found = Shape.of(config)
    assert found is not None
    return found


def test_parameters_are_those_of_the_model() -> None:
    # The norms, a thousandth of the others, are left out.
    assert shape(SMOL).parameters == pytest.approx(134_515_008, rel=0.001)
    assert shape(SMOL).adapter(16) == 4_884_480


@pytest.mark.parametrize(
    ("config", "sequences", "tokens", "rank", "mib"),
    [
        (TINY, 8, 256, 16, 687),
        (TINY, 4, 2048, 16, 1064),
        (SMOL, 1, 64, 16, 1555),
        (SMOL, 4, 256, 16, 3485),
        (SMOL, 1, 512, 16, 2442),
        (SMOL, 1, 1024, 16, 3416),
        (SMOL, 4, 128, 256, 4352),
    ],
)
def test_it_is_within_a_quarter_of_what_was_measured(
    config: dict[str, Any], sequences: int, tokens: int, rank: int, mib: int
) -> None:
    """`python tools/memory.py --model MODEL --batch N --tokens T --rank R` on two cores."""
    found = memory.training(shape(config), rank, sequences, tokens, threads=2) / 2**20
    assert found == pytest.approx(mib, rel=0.25)


def test_an_adapter_beside_takes_as_much_as_the_policys() -> None:
    tiny = shape(TINY)
    one, two = (memory.training(tiny, 16, 8, 256, 2, adapters=count) for count in (1, 2))
    assert two - one == 4 * tiny.adapter(16) * memory.COPIES


@pytest.mark.usefixtures("no_gpu")
def test_the_plan_says_what_is_trained_beside(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    project.write("chat.jsonl", json.dumps({"messages": turns}) + "\n")
    plan = project.plan(RECIPE)
    before = memory.of_stage(plan, plan.stages[0])
    monkeypatch.setattr(type(plan.stages[0].method), "trains_beside", ("critic",))
    after = memory.of_stage(plan, plan.stages[0])
    assert before is not None
    assert after is not None
    assert after.bytes > before.bytes
    assert "on the CPU, an adapter more for critic)" in str(after)


def test_a_batch_is_split_as_the_engine_splits_it() -> None:
    from posttrain_recipes.engine.model import base

    assert (memory.PART, memory.MIN_SHARE) == (base.MIN_PASS, base.MIN_SHARE)
    assert memory.COPIED == base.COPY_LIMIT
    assert base.ACTIVATIONS_BUDGET["cpu"] == memory.ACTIVATIONS
    assert base.LOGITS_BUDGET["cpu"] == memory.LOGITS
    text = SimpleNamespace(**TINY)
    model = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: text))
    for sequences, tokens in ((1, 40), (4, 2048), (8, 256), (64, 100), (3, 700)):
        engine: Any = SimpleNamespace(model=model, kind="cpu", threads=2)
        shares = base.BaseModel.shares(engine, [tokens] * sequences)
        most = max(len(chosen) for share in shares for chosen in share) * tokens
        used, part = memory.in_flight(shape(TINY), sequences, tokens, 2)
        assert (used, part) == (len(shares), most), (sequences, tokens)


def test_a_config_that_does_not_tell_is_not_guessed_at() -> None:
    assert Shape.of({"model_type": "none"}) is None
    assert Shape.of({**SMOL, "num_attention_heads": 0, "head_dim": None}) is None


# --- of stages -----------------------------------------------------------------------------------


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "GPU", Path("/nowhere"))
    monkeypatch.setattr(memory, "cores", lambda: 2)


@pytest.mark.usefixtures("no_gpu")
def test_preflight_says_what_to_change(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    words = "word " * 400
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": words}]
    project.write("chat.jsonl", json.dumps({"messages": turns}) + "\n")
    monkeypatch.setattr(preflight, "available_memory", lambda: 100 << 20)
    [finding] = preflight.room(project.plan(RECIPE))
    assert (finding.check, finding.verdict) == ("memory of sft", "warning")
    assert "32 sequences of up to 128 tokens, on the CPU); 0.1 GiB are free" in finding.message
    assert (finding.hint or "").startswith("lower 'max_length' (with 'truncate: true'): 2,048 tok")
    few = project.plan(RECIPE, overrides=["stages.sft.method.batch_size=8"])
    [finding] = preflight.room(few)
    assert (finding.hint or "").startswith("lower 'max_length' (with 'truncate: true'), or 'batch")
    wide = ["lora.rank=512", "stages.sft.method.batch_size=1"]
    [finding] = preflight.room(project.plan(RECIPE, overrides=wide))
    assert (finding.hint or "").startswith("lower 'lora.rank'")
    monkeypatch.setattr(preflight, "available_memory", lambda: 64 << 30)
    assert [f.verdict for f in preflight.room(project.plan(RECIPE))] == ["ok"]


@pytest.mark.usefixtures("no_gpu")
def test_a_plan_tells_it(project: Project, ptl: Ptl) -> None:
    project.write("mine.yaml", RECIPE)
    said = ptl("plan", "mine.yaml")
    assert "   memory  about 0.5 GiB at its peak (32 sequences of up to " in said.out
    [stage] = json.loads(ptl("plan", "mine.yaml", "--json").out)["stages"]
    assert "about 0.5 GiB" in stage["memory"]


@pytest.mark.usefixtures("no_gpu")
def test_other_models_that_the_engine_holds_are_counted(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    big = project.path / "big"
    big.mkdir()
    for file in BUNDLED["ptl/nano"].iterdir():
        if file.suffix != ".safetensors":
            (big / file.name).write_bytes(file.read_bytes())
    wide = {**json.loads((big / "config.json").read_text()), **SMOL, "vocab_size": 1024}
    (big / "config.json").write_text(json.dumps(wide))
    monkeypatch.setattr(machine, "available_memory", lambda: 16 << 30)
    taught = """\
  - name: alone
    init_from: base
    dataset: {use: jsonl, path: chat.jsonl}
    method: {use: sft, max_length: 128}
  - name: taught
    init_from: base
    dataset: {use: jsonl, path: chat.jsonl}
    method: {use: distill_off_policy, max_length: 128, teacher: {model: ./big}}
  - name: after
    init_from: base
    dataset: {use: jsonl, path: chat.jsonl}
    method: {use: sft, max_length: 128}
"""
    plan = project.plan(RECIPE + taught)
    sft, alone, taught_, after = (memory.of_stage(plan, stage) for stage in plan.stages)
    assert sft is not None
    assert alone == sft
    for one in (taught_, after):
        assert one is not None
        assert one.bytes - sft.bytes >= 4 * shape(wide).parameters
        assert one.others == ("./big",)
        assert "on the CPU, beside ./big)" in str(one)
        assert one.hint.startswith("take smaller ones for ./big, which take 0.3 GiB")
    monkeypatch.setattr(preflight, "available_memory", lambda: 600 << 20)
    told = {found.check: found.verdict for found in preflight.room(plan)}
    assert told["memory of taught"] == told["memory of after"] == "warning"


def test_it_is_of_this_machine_alone(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = project.plan(RECIPE + "engine: {use: server, base_url: 'http://127.0.0.1:1'}\n")
    assert memory.of_stage(plan, plan.stages[0]) is None
    monkeypatch.setattr(machine, "GPU", project.path)
    plan = project.plan(RECIPE)
    assert memory.of_stage(plan, plan.stages[0]) is None


def test_the_tightest_limit_of_a_container_counts(tmp_path: Path) -> None:
    def group(name: str, limit: str, taken: int, files: int) -> None:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True, parents=True)
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{taken}\n")
        (folder / "memory.stat").write_text(f"anon 1\ninactive_file {files}\n")

    group("", "max", 9, 0)
    group("pod", "1000", 600, 100)
    group("pod/mine", "5000", 600, 100)
    assert sorted(machine._left(tmp_path, "pod/mine")) == [500, 4500]
    assert machine.available_memory() is None or machine.available_memory() != 0


# --- when it ran out -----------------------------------------------------------------------------


def child(code: str) -> EngineProcess:
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    return EngineProcess("", "", Path("engine.log"), process, -1)


def test_an_engine_that_the_system_killed_says_so() -> None:
    engine = child("input()")
    engine.process.send_signal(signal.SIGKILL)
    engine.process.wait()
    assert engine.killed == launch.KILLED
    connection: Any = SimpleNamespace(log_path=Path("engine.log"), trouble=lambda: engine.killed)
    told = death.explain(connection)
    assert told.what == "the engine ended while the run needed it"
    assert "killed by signal 9" in (told.why or "")
    assert "memory runs out" in (told.why or "")
    assert "'max_length' (with 'truncate: true'), 'batch_size' or 'lora.rank'" in (told.hint or "")
    assert "'ptl run' of the same recipe goes on" in (told.hint or "")


def test_an_engine_that_we_stopped_or_that_failed_does_not(tmp_path: Path) -> None:
    stubborn = child("import signal; signal.signal(15, signal.SIG_IGN); print(flush=True); input()")
    stubborn.stop(grace_s=0.0)
    assert stubborn.killed is None
    failed = child("raise SystemExit(3)")
    failed.process.wait()
    assert failed.killed is None
    log = tmp_path / "engine.log"
    log.write_text("one\nValueError: two\n")
    told = death.explain(SimpleNamespace(log_path=log, log_start=0, trouble=lambda: failed.killed))  # type: ignore[arg-type]
    assert told.why == "one\nValueError: two"
    assert "lora.rank" not in (told.hint or "")


def test_less_free_memory_has_layers_recomputed() -> None:
    plenty = memory.training(shape(SMOL), 16, 4, 1024, 2, free=64 << 30)
    assert plenty == memory.training(shape(SMOL), 16, 4, 1024, 2)
    some = memory.training(shape(SMOL), 16, 4, 1024, 2, free=8 << 30)
    least = memory.training(shape(SMOL), 16, 4, 1024, 2, free=0)
    assert least < some < plenty
    whole = 2 * 1024 * shape(SMOL).activations * memory.FLOAT * memory.OVERHEAD
    assert plenty - least == pytest.approx(whole * (1 - 1 / 30) * 0.95, rel=0.05)
    assert memory.training(shape(SMOL), 16, 4, 1024, 2, size=2) < 0.7 * plenty
