"""Which numbers the engine computes in, which library multiplies them, and who is told."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from posttrain_recipes import content, engines, machine, registry
from posttrain_recipes.engine import calibrate
from posttrain_recipes.engine.model import kernels, precision
from posttrain_recipes.engines import Local
from posttrain_recipes.planning import planner as planning
from posttrain_recipes.planning.reuse import differences
from tests.conftest import Project, Ptl

LARGE = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "vocab_size": 8192,
}
"""71 million parameters, by its config alone."""
RECIPE = """\
name: demo
model: ptl/nano
stages:
  - name: sft
    dataset: {use: jsonl, path: chat.jsonl}
    method: {use: sft, learning_rate: 1e-3}
    eval: [{use: nll, dataset: {use: jsonl, path: held.jsonl}}]
"""


def chat(project: Project) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows = "".join(json.dumps({"messages": turns}) + "\n" for _ in range(4))
    project.write("chat.jsonl", rows)
    project.write("held.jsonl", rows)


@pytest.fixture
def large(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(LARGE))
    return tmp_path


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[float | None], None]:
    monkeypatch.setattr(machine, "GPU", Path("/nowhere"))

    def gains(by: float | None) -> None:
        monkeypatch.setattr(calibrate, "gain", lambda folder: by)

    return gains


def settled(dtype: str, folder: Path | None, measure: bool = True) -> tuple[str, str, str | None]:
    engine = Local(Local.Config.model_validate({"dtype": dtype}))
    told = engine.settle(folder, measure)
    return engine.dtype, engine.precision, told


def test_auto_takes_bfloat16_where_it_was_measured_to_pay(
    large: Path, cpu: Callable[[float | None], None]
) -> None:
    cpu(2.04)
    dtype, kept, told = settled("auto", large)
    assert (dtype, kept) == ("bfloat16", "bfloat16")
    assert told == (
        "engine: computes in bfloat16: this CPU multiplies it 2.0 times as fast as float32"
    )
    cpu(1.49)
    dtype, kept, told = settled("auto", large)
    assert (dtype, kept) == ("float32", "")
    assert "bfloat16 is multiplied 1.5 times as fast" in (told or "")
    cpu(None)
    assert settled("auto", large)[:2] == ("float32", "")


def test_small_models_stay_in_float32_unmeasured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "GPU", Path("/nowhere"))
    monkeypatch.setattr(calibrate, "gain", lambda folder: pytest.fail("measured"))
    (tmp_path / "config.json").write_text(json.dumps({**LARGE, "num_hidden_layers": 1}))
    for folder in (tmp_path, tmp_path / "nowhere", None):
        assert settled("auto", folder) == ("float32", "", None)


def test_a_recipe_has_the_last_word(large: Path, cpu: Callable[[float | None], None]) -> None:
    cpu(9.0)
    assert settled("float32", large) == ("float32", "", None)
    cpu(0.1)
    assert settled("bfloat16", large) == ("bfloat16", "bfloat16", None)


def test_a_gpu_computes_in_bfloat16(monkeypatch: pytest.MonkeyPatch, large: Path) -> None:
    monkeypatch.setattr(machine, "GPU", large)
    assert settled("auto", None)[:2] == ("bfloat16", "bfloat16")
    assert settled("float32", None)[:2] == ("float32", "")


def test_what_is_looked_at_alone_measures_nothing(
    large: Path, cpu: Callable[[float | None], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu(9.0)
    dtype, _, told = settled("auto", large, measure=False)
    assert dtype == "float32"
    assert "bfloat16 was not measured" in (told or "")


def test_a_gain_is_of_two_measurements(monkeypatch: pytest.MonkeyPatch, large: Path) -> None:
    speeds = {
        "float32": {"train": 6.0, "prefill": 3.0, "sample": 6.0, "products": 3.0},
        "bfloat16": {"train": 5.0, "prefill": 2.5, "sample": 4.0, "products": 1.0},
    }
    monkeypatch.setattr(calibrate, "speed", lambda folder, dtype="float32": speeds.get(dtype))
    assert calibrate.gain(large) == 3.0, "of products alone"
    del speeds["bfloat16"]
    assert calibrate.gain(large) is None


def test_results_of_one_precision_are_not_those_of_another(project: Project) -> None:
    chat(project)
    plans = {
        name: project.plan(RECIPE + extra)
        for name, extra in (
            ("auto", ""),
            ("float32", "engine: {use: local, dtype: float32}\n"),
            ("bfloat16", "engine: {use: local, dtype: bfloat16}\n"),
        )
    }
    stages = {name: plan.stages[0] for name, plan in plans.items()}
    assert stages["auto"].fingerprint == stages["float32"].fingerprint
    assert stages["bfloat16"].fingerprint != stages["float32"].fingerprint
    assert stages["bfloat16"].evals[0].fingerprint != stages["float32"].evals[0].fingerprint
    assert stages["bfloat16"].inputs["engine"] == "local bfloat16"
    assert plans["bfloat16"].resolved["engine"] == {"use": "local", "dtype": "bfloat16"}
    assert plans["auto"].resolved["engine"] == {"use": "local", "dtype": "float32"}
    assert list(differences(stages["bfloat16"].inputs, stages["float32"]))[0] == (
        "engine local bfloat16 -> local float32"
    )


def test_what_auto_came_to_is_kept_with_the_run(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat(project)
    monkeypatch.setattr(engines, "LARGE", 1)
    monkeypatch.setattr(machine, "GPU", Path("/nowhere"))
    monkeypatch.setattr(calibrate, "gain", lambda folder: 2.0)
    plan = planning.build(project.load(RECIPE), registry.load(), ask=True)
    assert plan.resolved["engine"] == {"use": "local", "dtype": "bfloat16"}
    assert any("computes in bfloat16: this CPU multiplies it 2.0 times" in pin for pin in plan.pins)


def test_another_type_is_a_fault_with_its_place(project: Project, ptl: Ptl) -> None:
    chat(project)
    project.write("mine.yaml", RECIPE + "engine: {use: local, dtype: float16}\n")
    said = ptl("validate", "mine.yaml")
    assert said.code == 2
    assert "mine.yaml:8" in said.out
    assert "bfloat16" in said.out


# --- products ------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [3, 200])
@pytest.mark.parametrize("layout", ["rows", "columns", "strided"])
def test_a_product_is_the_same_by_either_library(rows: int, layout: str) -> None:
    draw = torch.Generator().manual_seed(0)
    x, weight = torch.randn(rows, 160, generator=draw), torch.randn(192, 160, generator=draw)
    bias = torch.randn(192, generator=draw)
    if layout == "columns":
        weight = weight.t().contiguous().t()
    elif layout == "strided":
        weight = weight.repeat(1, 2)[:, ::2]
    for given in (None, bias):
        exact = F.linear(x.double(), weight.double(), None if given is None else given.double())
        found = kernels.matmul(x, weight, given, True)
        torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-4)


def test_no_strided_weight_goes_where_there_is_no_fast_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Any] = []
    real = F.linear
    monkeypatch.setattr(kernels.F, "linear", lambda *given: asked.append(given) or real(*given))
    x, wide = torch.ones(256, 256), torch.ones(256, 512)
    kernels.matmul(x, wide[:, :256], None, True)
    kernels.matmul(x[:2], torch.ones(256, 256), None, True)
    assert len(asked) == 2, "strided, and small"


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., bool]]:
    """Asks as a new process does, on a machine where a product takes so long by either library."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(precision, "_carries_onednn", lambda: True)
    content.make_cache_dir()
    forget = (precision.onednn_leads.cache_clear, precision._timed.cache_clear)

    def ask(blas: float, onednn: float) -> bool:
        for one in forget:
            one()
        times = {precision._by_blas: blas, precision._by_onednn: onednn}
        monkeypatch.setattr(precision, "_seconds", lambda run: times[run])
        return precision.onednn_leads()

    yield ask
    for one in forget:
        one()


@pytest.mark.parametrize(("onednn", "leads"), [(1.0, False), (1.9, False), (0.5, True)])
def test_it_is_asked_only_where_it_leads(
    fresh: Callable[..., bool], onednn: float, leads: bool
) -> None:
    assert fresh(blas=1.0, onednn=onednn) is leads


@pytest.mark.parametrize("leads", [True, False])
def test_the_first_engine_of_a_machine_decides_for_all(
    fresh: Callable[..., bool], tmp_path: Path, leads: bool
) -> None:
    """Two engines of one run would otherwise differ in the last bit."""
    times = [{"blas": 2.0, "onednn": 1.0}, {"blas": 1.0, "onednn": 1.0}]
    first, later = times if leads else times[::-1]
    assert fresh(**first) is leads
    assert fresh(**later) is leads, "of a busy machine"
    (kept,) = (tmp_path / "posttrain-recipes" / "speed").iterdir()
    precision._keep(kept, not leads)
    assert fresh(**later) is leads, "an engine that was slower with its measuring"
    kept.write_bytes(b"\xff")
    assert fresh(**later) is not leads, "what is spoiled is measured anew"
    assert fresh(**first) is not leads


def test_nothing_depends_on_a_place_to_keep_it(
    fresh: Callable[..., bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    assert fresh(blas=2.0, onednn=1.0)
    assert not fresh(blas=1.0, onednn=1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 3, 200])
def test_a_packed_weight_multiplies_as_it_did_before(
    rows: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "onednn_leads", lambda: True)
    monkeypatch.setattr(precision, "onednn_multiplies_bfloat16", lambda: True)
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 320, generator=draw).to(dtype)
    weight, bias = torch.randn(512, 320, generator=draw).to(dtype), torch.ones(512, dtype=dtype)
    packed = precision.packed(weight.t().contiguous().t())
    assert packed is not None
    for given in (None, bias):
        exact = F.linear(x.double(), weight.double(), None if given is None else given.double())
        for multiply in (kernels.matmul, kernels.compiled(kernels.matmul)):
            found = multiply(x, packed, given, False)
            assert found.dtype == dtype
            tolerance = 1e-4 if dtype == torch.float32 else 0.01
            torch.testing.assert_close(found.double(), exact, rtol=tolerance, atol=50 * tolerance)


def test_what_is_packed_is_worth_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    large = torch.ones(512, 512)
    monkeypatch.setattr(precision, "onednn_multiplies_bfloat16", lambda: False)
    for leads in (False, True):
        monkeypatch.setattr(precision, "onednn_leads", lambda leads=leads: leads)
        assert (precision.packed(large) is not None) is leads
        assert precision.packed(large.bfloat16()) is None, "torch asks another library for these"
        assert precision.packed(torch.ones(64, 64)) is None, "a toy's"
