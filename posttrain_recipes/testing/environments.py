"""Checks of a dataset of tasks: its episodes are played, with replies drawn from what they tell."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice, zip_longest
from typing import Any

from posttrain_recipes.plugin import Dataset, DrivenTask
from posttrain_recipes.records import Episode, Message, Task, Turn
from posttrain_recipes.registry import Entry
from posttrain_recipes.testing.findings import Finding, run_check

TASKS = 4
"""Tasks that are played."""
LIMIT = 1000
"""Replies after which an episode should be over, whatever they are."""
NONSENSE = ("", " ", "?", "no such move", "-1", "1e999", "²", "七 \u2028", "a" * 4000, "{" * 50)
"""Replies that no environment asks for; a model in training writes all of these."""


class _Fault(Exception):
    """What is wrong with an episode, as its text."""


@dataclass(frozen=True)
class _EpisodeStep:
    """A turn with its reply, and the reward of every seat for it."""

    messages: tuple[Message, ...]
    seat: int
    reply: str
    rewards: tuple[float | None, ...]


@dataclass(frozen=True)
class _End:
    """The metrics and transcript of an episode that has ended."""

    metrics: Mapping[str, float]
    shown: str


def environment_checks(entry: Entry, options: dict[str, Any]) -> list[Finding]:
    """Every check of a dataset whose records are tasks that are told replies; none of another's,
    and of tasks that drive themselves that they were not played."""
    try:
        tasks = _tasks(entry, options)
        if not tasks:
            return []
        if isinstance(tasks[0], DrivenTask):
            why = "its tasks drive themselves; a check has no policy for them to ask"
            return [Finding(_CHECKS[0][0], why, skipped=True)]
    except Exception:  # the checks of every dataset tell of it
        return []
    return [run_check(check, told, entry, options) for check, told in _CHECKS]


def _tasks(entry: Entry, options: Mapping[str, Any]) -> list[Task]:
    dataset = entry.cls(entry.config.model_validate(options))
    assert isinstance(dataset, Dataset)
    return [record for record in islice(dataset.load(), TASKS) if isinstance(record, Task)]


def _ends(entry: Entry, options: Mapping[str, Any]) -> Iterable[str]:
    try:
        for task in _tasks(entry, options):
            for _ in _course(task):
                pass
    except _Fault as fault:
        yield str(fault)


def _answers(entry: Entry, options: Mapping[str, Any]) -> Iterable[str]:
    for task in _tasks(entry, options)[:1]:
        for reply in NONSENSE:
            try:
                _act(task.start(), reply)
            except _Fault as fault:
                yield str(fault)


def _repeats(entry: Entry, options: Mapping[str, Any]) -> Iterable[str]:
    try:
        for task in _tasks(entry, options):
            first = list(_course(task))
            if list(_course(task)) != first:
                yield (
                    "a task that is begun twice and played in the same way goes two ways; draw "
                    "from a seed that the task holds"
                )
                return
            if list(zip_longest(_course(task), _course(task))) != [(one, one) for one in first]:
                yield (
                    "two episodes of one task that are played at the same time disturb each "
                    "other; keep what changes in the episode, not in the task or its class"
                )
                return
    except _Fault:
        return  # told by the check that plays them first


def _course(task: Task) -> Iterator[_EpisodeStep | _End]:
    """An episode from its beginning to its end, its replies words and characters that it told."""
    episode = task.start()
    if not isinstance(episode, Episode):
        raise _Fault(f"start() should begin an Episode; it gives a {type(episode).__name__}")
    draw = random.Random(0)
    words: list[str] = []
    turn = episode.turn()
    if turn is None:
        raise _Fault("an episode is over before anybody has said anything")
    for _ in range(LIMIT):
        _readable(turn, episode.seats)
        for message in turn.messages:
            words += [*re.findall(r"\w+", message.content), *re.findall(r"\w", message.content)]
        reply = draw.choice(words) if words else ""
        yield _EpisodeStep(tuple(turn.messages), turn.seat, reply, _act(episode, reply))
        turn = episode.turn()
        if turn is None:
            yield _told(episode)
            return
    raise _Fault(
        f"an episode is not over after {LIMIT:,} replies; end it after so many turns, or each one "
        "that goes wrong is only cut at the method's max_turns"
    )


def _readable(turn: Turn, seats: int) -> None:
    if not 0 <= turn.seat < seats:
        raise _Fault(
            f"it is the turn of seat {turn.seat}, and 'seats' is {seats}: they count from 0"
        )
    if not turn.messages:
        raise _Fault("a turn has no message; tell the seat something before it writes")
    if any(message.role == "assistant" for message in turn.messages):
        raise _Fault("a turn speaks as the assistant, which is the policy; use 'user' or 'tool'")


def _act(episode: Episode, reply: str) -> tuple[float | None, ...]:
    shown = repr(reply if len(reply) <= 20 else f"{reply[:17]}...")
    try:
        rewards = episode.act(reply)
    except Exception as error:  # a stranger's environment may fail in any way
        raise _Fault(
            f"the reply {shown} raised {type(error).__name__}: {error}; answer it with a message, "
            "a cost or the end of the episode"
        ) from error
    if len(rewards) != episode.seats:
        raise _Fault(f"the reply {shown} got {len(rewards)} rewards for {episode.seats} seats")
    for reward in rewards:
        if reward is None:  # it abstains
            continue
        if not isinstance(reward, int | float) or not math.isfinite(reward):
            raise _Fault(f"the reply {shown} got the reward {reward!r}, which is no finite number")
    return tuple(rewards)


def _told(episode: Episode) -> _End:
    metrics, shown = dict(episode.metrics()), episode.show()
    for name, value in metrics.items():
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise _Fault(f"the metric '{name}' is {value!r}, which is no finite number")
    if not isinstance(shown, str):
        raise _Fault(f"show() should return Markdown; it gives a {type(shown).__name__}")
    return _End(metrics, shown)


_CHECKS = (
    ("its episodes can be played to their end", _ends),
    ("its episodes answer any reply", _answers),
    ("its episodes are the same each time", _repeats),
)
