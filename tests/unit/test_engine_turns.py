"""Whose work is next at the engine's worker: lanes share the time, and a new one is served soon."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from posttrain_recipes.engine.core.turns import Turns


def played(turns: Turns[str], costs: Mapping[str, float], rounds: int) -> list[str]:
    """The jobs of so many turns, each of which takes what its lane costs."""
    order = []
    for _ in range(rounds):
        lane = turns.next()
        if lane is None:
            break
        order.append(lane.jobs.popleft())
        lane.used += costs[str(lane.name)]
    return order


def filled(count: int, *names: str) -> Turns[str]:
    turns: Turns[str] = Turns(lambda job: True)
    for name in names:
        for _ in range(count):
            turns.add(name, name)
    return turns


def test_lanes_share_the_time_and_not_the_turns() -> None:
    order = played(filled(1000, "dear", "cheap"), {"dear": 10.0, "cheap": 1.0}, 550)
    assert order.count("dear") == pytest.approx(50, abs=1)
    assert order.count("cheap") == pytest.approx(500, abs=1)


def test_one_that_comes_later_has_no_claim_to_the_past_and_waits_for_one_turn() -> None:
    turns = filled(1000, "old")
    played(turns, {"old": 1.0}, 300)
    for _ in range(1000):
        turns.add("new", "new")
    order = played(turns, {"old": 1.0, "new": 1.0}, 100)
    assert "new" in order[:2]
    assert order.count("new") == 50


def test_one_that_comes_job_by_job_is_held_to_what_it_used() -> None:
    """As a model does whose client waits for each step: it is not new every time."""
    turns, order = filled(1000, "stream"), []
    for _ in range(30):
        turns.add("model", "step")
        for job in iter(lambda: played(turns, {"stream": 1.0, "model": 20.0}, 1)[0], "step"):
            order.append(job)
    assert len(order) == pytest.approx(29 * 20, abs=25)


def test_models_that_come_one_after_the_other_keep_nobody_out_and_are_forgotten() -> None:
    turns, order = filled(3000, "stream"), []
    for number in range(500):
        name = f"m{number}"
        turns.add(name, "step")
        while "step" not in order[-1:]:
            order += played(turns, {"stream": 1.0, name: 5.0}, 1)
        order.append("")
    assert order.count("stream") >= 499
    assert len(turns._used) < 10
    assert len(turns._lanes) <= 2


def test_what_is_not_ready_holds_up_its_own_lane_alone() -> None:
    ready = {"first": False, "second": True, "other": True}
    turns: Turns[str] = Turns(ready.__getitem__)
    for lane, job in (("a", "first"), ("a", "second"), ("b", "other")):
        turns.add(lane, job)
    costs = {"a": 1.0, "b": 1.0}
    assert played(turns, costs, 9) == ["other"]
    assert (len(turns), turns.waiting) == (2, False)
    ready["first"] = True
    assert played(turns, costs, 9) == ["first", "second"]


def test_a_lane_is_pressed_by_those_who_had_no_more_time() -> None:
    turns = filled(1, "mine")
    mine = turns.next()
    assert mine is not None
    assert not turns.presses(mine, 0.0)
    turns.add("theirs", "job")
    assert turns.presses(mine, 0.0)
    theirs = turns._lanes["theirs"]
    theirs.used = 5.0
    assert not turns.presses(mine, 4.9)
    assert turns.presses(mine, 5.0)


def test_a_job_that_is_taken_out_is_not_run() -> None:
    turns = filled(2, "a", "b")
    turns.add("a", "wanted")
    assert turns.remove(lambda job: job == "wanted") == "wanted"
    assert turns.remove(lambda job: job == "wanted") is None
    assert sorted(played(turns, {"a": 1.0, "b": 1.0}, 9)) == ["a", "a", "b", "b"]
