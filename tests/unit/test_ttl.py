"""What a stage saves on a service that bills has an end, and what it leaves has none."""

from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

from posttrain_recipes.errors import PtlError
from posttrain_recipes.plugin import Resume
from posttrain_recipes.records import Checkpoint
from posttrain_recipes.running.stages import TTL_S, Sink
from posttrain_recipes.training.loops import optimizer

LEFT = Checkpoint("m", "tinker://a/weights/8", "tinker://a/sampler_weights/8", 8)
BEST = Resume(3, "tinker://a/weights/3", "tinker://a/sampler_weights/3")


class Told:
    """What the service was told of ends."""

    def __init__(self, refuses: bool = False) -> None:
        self.ends: list[tuple[str, int | None]] = []
        self.refuses = refuses

    def set_checkpoint_ttl_from_tinker_path(self, uri: str, seconds: int | None) -> Any:
        self.ends.append((uri, seconds))
        return SimpleNamespace(future=lambda: Future())

    def wait(self, future: Any) -> None:
        if self.refuses:
            raise PtlError("no such route")


def sink(told: Told, billed: bool, **kept: Any) -> Any:
    work = SimpleNamespace(
        plan=SimpleNamespace(engine=SimpleNamespace(billed=billed)),
        serving=SimpleNamespace(connection=SimpleNamespace(rest=told), wait=told.wait),
        directory=SimpleNamespace(save=lambda: None),
        reporter=SimpleNamespace(saved=lambda resume: None, warning=lambda text: None),
    )
    made: Any = Sink.__new__(Sink)
    made.work, made.stage, made.tokens = work, SimpleNamespace(name="s", keep="best"), 0
    made.child = SimpleNamespace(flush=lambda: None, warn=lambda text: None)
    made.collected, made.deleting = [], {}
    held = {"start": None, "resume": None, "best": None, "superseded": [], "warnings": []}
    made.kept = SimpleNamespace(**held, total_steps=9, tokens=0)
    for name, value in kept.items():
        setattr(made.kept, name, value)
    return made


@pytest.mark.parametrize(("billed", "count"), [(True, 2), (False, 0)])
def test_what_a_stage_leaves_has_no_end(billed: bool, count: int) -> None:
    told = Told()
    sink(told, billed).hold(LEFT)
    assert told.ends == [(LEFT.state_uri, None), (LEFT.sampler_uri, None)][:count]


def test_a_start_that_is_left_as_it_was_is_anothers() -> None:
    told = Told()
    sink(told, True, start=LEFT).hold(LEFT)
    assert not told.ends


def test_an_end_that_stays_is_told() -> None:
    made = sink(Told(refuses=True), True)
    made.hold(LEFT)
    assert made.kept.warnings[0] == (
        "the service may delete tinker://a/weights/8 14 days after it was saved: no such route"
    )


@pytest.mark.parametrize(("billed", "count"), [(True, 2), (False, 0)])
def test_the_best_so_far_is_renewed_with_each_save(billed: bool, count: int) -> None:
    told = Told()
    made = sink(told, billed, best=BEST)
    made.checkpoint(Resume(5, "tinker://a/weights/5", "tinker://a/sampler_weights/5"))
    assert told.ends == [(BEST.state_uri, TTL_S), (BEST.sampler_uri, TTL_S)][:count]


@pytest.mark.parametrize("ttl", [None, TTL_S])
def test_what_is_saved_has_the_end_that_the_stage_says(ttl: int | None) -> None:
    asked: dict[str, Any] = {}

    class Client:
        def save_state(self, name: str, **options: Any) -> None:
            asked["state"] = options.get("ttl_seconds")

        def save_weights_for_sampler(self, name: str, **options: Any) -> None:
            asked["sampler"] = options.get("ttl_seconds")

    stage: Any = SimpleNamespace(name="s", ttl_s=ttl)
    client: Any = Client()
    optimizer.save(stage, client, 4, 0)
    assert asked == {"state": ttl, "sampler": ttl}
