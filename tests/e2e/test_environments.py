"""docs/environments.md: its code and its recipes, as a reader would run them, in few steps."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest

import posttrain_recipes as ptl
from posttrain_recipes.tracking import curves
from tests.conftest import ROOT

pytestmark = pytest.mark.usefixtures("quick_engines")

PAGE = (ROOT / "docs" / "environments.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"```\w+\n# (\S+)\n(.*?)```", PAGE, flags=re.DOTALL))


def train(folder: Path, name: str, *overrides: str) -> dict[str, list[tuple[int, float]]]:
    """Two steps of one of the page's recipes; its curves."""
    for file, text in FILES.items():
        (folder / file).write_text(text)
    small = ["stages.rl.method.max_steps=2", "stages.rl.method.batch_size=4", *overrides]
    ptl.run(folder / f"{name}.yaml", home=folder / "home", overrides=small)
    return curves.read(folder / "home" / "runs" / f"{name}-1", "rl")


def test_a_message_environment_is_trained_in(tmp_path: Path) -> None:
    pytest.importorskip("tinker_cookbook")
    found = train(tmp_path, "second_try", "stages.rl.eval.others.dataset.arguments.count=8")
    for _, told in found["reward/parts/success"]:
        assert 0 < told < 1
    for (_, whole), (_, right) in zip(
        found["reward/parts/return"], found["reward/parts/success"], strict=True
    ):
        assert whole < right  # the second try is worth half
    assert any(loss != 0 for _, loss in found["train/loss"])


def test_an_environment_of_the_cookbooks_own_is_trained_in(tmp_path: Path) -> None:
    pytest.importorskip("tinker_cookbook")
    found = train(tmp_path, "guess_number", "stages.rl.method.max_turns=3")
    assert len(found["train/loss"]) == 2
    for _, told in found["reward/parts/return"]:
        assert -3 <= told < 1  # a guess without the form costs one


def test_prompts_with_tools_are_trained_on(tmp_path: Path) -> None:
    found = train(tmp_path, "twice", "stages.rl.dataset.describe=false")
    assert {told for _, told in found["reward/parts/tool_calls"]} == {0.0}, "nobody showed it how"
    assert len(found["train/loss"]) == len(found["reward/parts/exact_match"]) == 2


def test_an_environment_that_drives_itself_is_played() -> None:
    from posttrain_recipes.training.rl.episodes import EpisodeLimits, play
    from tests.scripted import END, Renderer, Sampler, spell, wait

    page: dict[str, Any] = {}
    exec(FILES["riddles.py"], page)
    tasks = [page["Riddle"](question="What is twice 21?", answer=one) for one in ("42", "41")]
    sampler: Any = Sampler(lambda tokens, index, seed: [*spell("42"), END])
    plays = play(tasks, 0, sampler, Renderer(), wait, EpisodeLimits(1, 8, 1.0))
    assert [one.players[0].reward for one in plays] == [1.0, 0.0]


def test_an_environment_of_ones_own_is_played_and_keeps_its_parts_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ptl_hilo.py").write_text(FILES["ptl_hilo.py"])
    monkeypatch.syspath_prepend(tmp_path)
    [made] = importlib.import_module("ptl_hilo").ptl_datasets()
    parts = [set(made(made.Config(part=part, count=500)).load()) for part in ("train", "held_out")]
    assert [len(part) for part in parts] == [240, 80]
    assert not {(t.low, t.number) for t in parts[0]} & {(t.low, t.number) for t in parts[1]}
    for task in sorted(parts[1], key=lambda t: t.source)[:8]:
        episode, guess, low, high = task.start(), -1, task.low, task.low + 7
        rewards: list[float] = []
        while turn := episode.turn():
            if (told := turn.messages[-1].content) == "higher":
                low = guess + 1
            elif told == "lower":
                high = guess - 1
            guess = (low + high) // 2
            rewards += episode.act(str(guess))
        assert rewards[-1] == 1.0, "halving finds one of eight in four tries"
        assert episode.metrics() == {"success": 1.0}
    broken = task.start()
    assert broken.act("seven") == [-1.0]
    assert broken.turn() is None
