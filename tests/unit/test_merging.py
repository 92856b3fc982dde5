"""Merged adapters: exact sums, arcs, the nearest of a rank, and checkpoints like any other."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from posttrain_recipes.errors import RecipeError
from posttrain_recipes.methods.merge import Merge
from posttrain_recipes.plugin import (
    Checkpoint,
    LoraConfig,
    LoraFactorPair,
    LoraUpdate,
    StageContext,
    UsageError,
)
from posttrain_recipes.training import merging
from tests.conftest import Project

RNG = np.random.default_rng(7)


def pair(rank: int, inputs: int = 9, outputs: int = 7) -> LoraFactorPair:
    return LoraFactorPair(RNG.normal(size=(rank, inputs)), RNG.normal(size=(outputs, rank)))


def full(one: LoraFactorPair) -> np.ndarray:
    return one.b @ one.a


def test_a_sum_is_exact_at_the_rank_of_all_and_the_nearest_at_a_smaller_one() -> None:
    parts, counts = [pair(2), None, pair(3)], [0.25, 1.0, -2.0]
    whole = merging.total(parts, counts)
    assert whole is not None
    wanted = 0.25 * full(parts[0]) - 2 * full(parts[2])  # type: ignore[arg-type]
    np.testing.assert_allclose(full(whole), wanted, atol=1e-12)
    u, s, vt = np.linalg.svd(wanted)
    for rank in (1, 2, 4, 5, 7):
        found = merging.fit(whole, rank, np.random.default_rng(0))
        assert found.pair.a.shape == (rank, 9)
        assert found.pair.b.shape == (7, rank)
        best = (u[:, :rank] * s[:rank]) @ vt[:rank]
        np.testing.assert_allclose(full(found.pair), best, atol=1e-10)
        assert found.whole == pytest.approx((s**2).sum())
        assert found.lost == pytest.approx((s[rank:] ** 2).sum(), abs=1e-9)
        assert np.linalg.norm(found.pair.a, axis=1).min() > 0.1, "a row of 0 never trains"
    assert merging.total(parts, [0.0, 1.0, 0.0]) is None


@pytest.mark.parametrize("t", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("start", [None, pair(2)], ids=["base", "since"])
def test_slerp_is_shoemakes_of_the_flattened_updates(start: Any, t: float) -> None:
    one, two = pair(2), pair(3)
    before = np.zeros((7, 9)) if start is None else full(start)
    a, b = (full(x) - before for x in (one, two))
    angle = math.acos((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))
    wanted = before + (math.sin((1 - t) * angle) * a + math.sin(t * angle) * b) / math.sin(angle)
    updates = [start, one, two]
    found = merging.total(updates, merging.coefficients("slerp", [1 - t, t], updates))
    assert found is not None
    np.testing.assert_allclose(full(found), wanted, atol=1e-10)


def test_slerp_keeps_the_norm_that_a_mean_loses() -> None:
    one, two = pair(1), pair(1)
    two = LoraFactorPair(two.a, two.b * np.linalg.norm(full(one)) / np.linalg.norm(full(two)))
    updates = [None, one, two]
    norms = {
        how: np.linalg.norm(
            full(merging.total(updates, merging.coefficients(how, [0.5, 0.5], updates)))  # type: ignore[arg-type]
        )
        for how in ("linear", "slerp")
    }
    assert norms["slerp"] == pytest.approx(np.linalg.norm(full(one)))
    assert norms["linear"] < norms["slerp"]


@pytest.mark.parametrize("other", [None, 1.0, -1.0], ids=["of 0", "parallel", "opposite"])
def test_without_an_angle_slerp_is_the_straight_line(other: float | None) -> None:
    one = pair(2)
    two = None if other is None else LoraFactorPair(one.a, other * one.b)
    assert merging.coefficients("slerp", [0.25, 0.75], [None, one, two])[1:] == [0.25, 0.75]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"weights": [1.0]}, "weights are 1, and of has 2"),
        ({"weights": []}, "weights are 0, and of has 2"),
        ({"weights": [0.0, 0.0]}, "not all 0"),
        ({"weights": [float("nan"), 1.0]}, "not all 0"),
        ({"how": "slerp", "weights": [1.0, 1.0]}, "add up to 1"),
        ({"how": "slerp", "of": [{"stage": n} for n in "abc"]}, "of has 3"),
        ({"since": {"stage": "a"}}, "no update from itself"),
        ({"of": [{"stage": "a"}]}, "at least 2"),
    ],
    ids=str,
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], said: str) -> None:
    given = {"of": [{"stage": "a"}, {"stage": "b"}], **options}
    with pytest.raises(ValidationError, match=said):
        Merge.Config.model_validate(given)


# --- the method ----------------------------------------------------------------------------------


class Adapters:
    """Adapters in memory by their paths."""

    def __init__(self, held: dict[str, LoraUpdate]) -> None:
        self.held = held

    def read(self, uri: str) -> LoraUpdate:
        return self.held[uri]

    def write(self, name: str, update: LoraUpdate, like: str, step: int) -> Checkpoint:
        self.held[name] = update
        self.like = like
        return Checkpoint("m", f"state/{name}", name, step)


def merged(held: dict[str, LoraUpdate], rank: int = 5, **options: Any) -> tuple[Any, Any]:
    logged: list[Any] = []
    sink: Any = SimpleNamespace(
        begin=lambda total: None,
        log=lambda metrics, step: logged.append(metrics),
        checkpoint=lambda resume: logged.append(resume),
    )
    adapters = Adapters(held)

    def resolve(ref: Any) -> Any:
        uri = None if ref.stage == "base" else ref.stage
        return SimpleNamespace(checkpoint=Checkpoint("m", None, uri))

    stage = StageContext(
        "s@seed=0", 0, "m", Checkpoint("m"), LoraConfig(rank=rank), [], None, None, sink, None,  # type: ignore[arg-type]
        resolve=resolve, adapters=adapters,
    )  # fmt: skip
    made = Merge(Merge.Config.model_validate(options)).train(stage)
    return adapters.held[made.sampler_uri or ""], logged


def test_task_vectors_are_added_to_what_they_are_counted_from(
    caplog: pytest.LogCaptureFixture,
) -> None:
    held = {n: LoraUpdate("m", {"q": pair(2), "k": pair(2, 4, 3)}) for n in "abc"}
    of = [{"stage": "a"}, {"stage": "b"}]
    found, logged = merged(dict(held), 6, of=of, weights=[1, 1], since={"stage": "c"})
    for layer in "qk":
        a, b, c = (full(held[name].layers[layer]) for name in "abc")
        np.testing.assert_allclose(full(found.layers[layer]), a + b - c, atol=1e-9)
    assert logged[0]["merge/lost"] == pytest.approx(0, abs=1e-7)
    assert logged[1].state_uri == "state/s_seed_0"
    assert not caplog.messages

    found, logged = merged(dict(held), 1, of=[*of, {"stage": "base"}])
    wanted = sum(full(held[name].layers["q"]) for name in "ab") / 3
    u, s, vt = np.linalg.svd(wanted)
    np.testing.assert_allclose(full(found.layers["q"]), s[0] * np.outer(u[:, 0], vt[0]), atol=1e-9)
    assert 0 < logged[0]["merge/lost"] < logged[0]["merge/lost_most"] < 1
    assert "is left out" in caplog.text
    assert "rank: 4" in caplog.text


def test_what_cannot_be_merged_is_told() -> None:
    held = {"a": LoraUpdate("m", {"q": pair(2)}), "b": LoraUpdate("m", {"k": pair(2)})}
    with pytest.raises(UsageError, match="different layers"):
        merged(held, of=[{"stage": "a"}, {"stage": "b"}])
    with pytest.raises(UsageError, match="no adapter"):
        merged(held, of=[{"stage": "base"}, {"stage": "base"}])


# --- checkpoints ---------------------------------------------------------------------------------


MERGED = """\
name: demo
model: ptl/nano
stages:
  - {name: a, LORA dataset: &d {use: jsonl, path: chat.jsonl}, method: {use: sft}}
  - {name: b, init_from: base, OTHER dataset: *d, method: {use: sft}}
  - {name: m, init_from: base, method: {use: merge, of: [{stage: a}, {stage: b}, {stage: base}]}}
"""


@pytest.mark.parametrize(
    ("lora", "other", "told"),
    [
        ("lora: {rank: 4},", "lora: {rank: 8},", None),
        (
            "lora: {train_mlp: false},",
            "lora: {train_unembed: true},",
            "adapts attention and MLP and output embedding, and 'a' attention;",
        ),
        ("", "model: ptl/tiny,", "adapter of ptl/tiny, and this stage is of ptl/nano"),
    ],
)
def test_stages_that_cannot_be_merged_are_faults(
    project: Project, lora: str, other: str, told: str | None
) -> None:
    text = MERGED.replace("LORA", lora).replace("OTHER", other)
    if told is None:
        project.plan(text)
        return
    with pytest.raises(RecipeError, match=told) as caught:
        project.plan(text)
    assert [fault.key for fault in caught.value.faults] == ["stages.m.method.of[1]"]


def test_what_is_written_is_a_checkpoint_of_the_engine(tmp_path: Path) -> None:
    """Read back, verified, and loaded by the engine's own code at another rank."""
    from posttrain_recipes.adapters import AdapterStore
    from posttrain_recipes.engine.model.lora import ALPHA, Adapter, LoraTarget, make_snapshot
    from posttrain_recipes.engine.storage import checkpoints
    from posttrain_recipes.engine.wire import AdapterConfig

    torch = pytest.importorskip("torch")
    targets = {"l.q_proj": LoraTarget("mlp", torch.nn.Linear(9, 7), 9, 7)}
    config = AdapterConfig(rank=2, seed=1, train_attn=True, train_mlp=True, train_unembed=True)
    adapter = Adapter(config, targets, torch.device("cpu"))
    adapter.flat.normal_(generator=torch.Generator().manual_seed(0))
    store = checkpoints.CheckpointStore(tmp_path)
    path = checkpoints.CheckpointPath("one:train:0", "sampler_weights", "a")
    record = checkpoints.CheckpointRecord(str(path), "m", config, 3, checkpoints.now())
    store.save(path, record, lambda folder: adapter.snapshot().save(folder, "m", targets), False)

    adapters = AdapterStore(tmp_path)
    read = adapters.read(str(path))
    (layer,) = read.layers
    factors = adapter.layers["l.q_proj"]
    own = ALPHA / 2 * (factors.b @ factors.a).detach().numpy()
    np.testing.assert_allclose(full(read.layers[layer]), own, rtol=1e-4, atol=1e-5)
    wider = merging.fit(read.layers[layer], 4, np.random.default_rng(0))
    made = adapters.write("both", LoraUpdate("m", {layer: wider.pair}), str(path), 1)
    for uri in (made.state_uri, made.sampler_uri):
        kept = store.find(checkpoints.parse_path(uri or ""))
        tensors, optimizer = store.load(kept, optimizer=True)
        assert optimizer is None
        assert kept.record.lora.rank == 4
        snapshot = make_snapshot(tensors, kept.record.lora, targets)
        loaded = snapshot.factors()["l.q_proj"]
        found = loaded.scale * (loaded.b @ loaded.a).numpy()
        np.testing.assert_allclose(found, own, rtol=1e-4, atol=1e-5)


def test_parts_that_cancel_are_told_and_lose_nothing(caplog: pytest.LogCaptureFixture) -> None:
    held = {"a": LoraUpdate("m", {"q": pair(2)})}
    _, logged = merged(held, 1, of=[{"stage": "a"}, {"stage": "a"}], weights=[1, -1])
    assert logged[0]["merge/lost"] == logged[0]["merge/lost_most"] == 0
    [said] = caplog.messages
    assert said.startswith("the merged adapter changes nothing")
