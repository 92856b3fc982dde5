"""Prompts of reasoning-gym: items of one task or of several, in shares."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import Field, model_validator

from posttrain_recipes.plugin import (
    Dataset,
    DatasetConfig,
    Message,
    PluginConfig,
    Prompt,
    Record,
    UsageError,
)
from ptl_reasoning_gym import forms, library
from ptl_reasoning_gym.items import SEEDS, Part, Source, Stream, interleaved
from ptl_reasoning_gym.library import Item

log = logging.getLogger(__name__)
_said: set[str] = set()
ITEM = "item"
"""The field of a prompt that says which item it is and how its answer is read, as JSON."""


def prompt(item: Item, form: forms.Form, tell: bool) -> Prompt:
    """An item as a record; its reference answer is a reply in the form that is asked for."""
    entry = item.entry()
    question = str(entry["question"])
    answer = entry["answer"]
    kept = {**vars(item), "answer": form}
    return Prompt(
        messages=(Message("user", forms.asked(question, form) if tell else question),),
        answer=None if answer is None else forms.said(str(answer), form),
        metadata={
            "task": item.task,
            **({} if item.level is None else {"level": item.level}),
            ITEM: json.dumps(kept, sort_keys=True),
        },
        source=f"reasoning-gym:{item.task}:{item.seed + item.index}",
    )


def item_of(metadata: Any) -> tuple[Item, forms.Form] | None:
    """The item that a prompt was made of, and how its answer is read; None for other prompts."""
    if ITEM not in metadata:
        return None
    kept = json.loads(metadata[ITEM])
    form: forms.Form = kept.pop("answer")
    return Item(**kept), form


def prompts(
    sources: Sequence[Source], part: Part, seed: int, size: int, form: forms.Form, tell: bool
) -> Iterator[Prompt]:
    """So many items of a part. Says what became of the others.

    Raises:
        UsageError: a task does not take its options, or has no item of that part.
    """
    asked: set[str] = set()
    streams = [Stream(source, part, seed, asked) for source in sources]
    made = 0
    for _, item, _ in interleaved(streams):
        yield prompt(item, form, tell)
        made += 1
        if made == size:
            break
    if part == "held_out" or made < size:
        for stream in streams:
            say(_told(stream))
    if not made:
        raise UsageError(
            f"reasoning-gym has no {part} items of {', '.join(s.task for s in sources)}",
            hint="widen 'config', or choose another level: there are too few questions",
        )
    for stream in streams:
        if not stream.tally.kept:
            task = _called(stream.source)
            say(f"reasoning-gym: {task}: none of the {made} {part} items is of it")


def say(text: str) -> None:
    """Tell it, once: a run reads the same data several times."""
    if text not in _said:
        _said.add(text)
        log.warning("%s", text)


def _told(stream: Stream) -> str:
    tally, one = stream.tally, stream.source
    other = "training" if stream.part == "held_out" else "the held-out part"
    text = (
        f"reasoning-gym: {_called(one)}: {tally.kept} {stream.part} items of {tally.made} made; "
        f"left out: {tally.others} whose question belongs to {other}"
    )
    if stream.part == "held_out":
        text += f", {tally.again} that ask what another one asks"
    return f"{text}; it has no more questions" if tally.spent else text


def _called(source: Source) -> str:
    level = "" if source.level is None else f" (level {source.level})"
    return f"{source.task}{level}"


class TaskConfig(PluginConfig):
    """One task of several."""

    task: str
    """Its name, as `gcd`."""
    weight: float = Field(default=1.0, gt=0)
    """Its share of the records, beside those of the others."""
    level: int | list[int] | None = None
    """A level of its curriculum, or several in equal shares; null: the task's own defaults."""
    config: dict[str, Any] = Field(default_factory=dict)
    """Options of the task, as `{max_value: 20}`; they go before what the level says."""

    @property
    def levels(self) -> list[int]:
        """Those that are named."""
        return [self.level] if isinstance(self.level, int) else list(self.level or ())

    def sources(self) -> Iterator[Source]:
        """One for each level."""
        config = json.dumps(self.config, sort_keys=True)
        levels: Sequence[int | None] = self.levels or [None]
        for level in levels:
            yield Source(self.task, level, config, self.weight / len(levels))

    def problems(self) -> Iterator[tuple[str, str]]:
        """What is wrong with it, by option."""
        if len(set(self.levels)) < len(self.levels):
            yield "level", "names a level twice, whose items would all be there twice"
        if any(level < 0 for level in self.levels):
            yield "level", "levels are counted from 0"
        yield from library.problems(self.task, self.config, self.levels)


class ReasoningGym(Dataset):
    """Items of tasks of reasoning-gym, made as they are asked for, with their own scores.

    The reward and the eval of the same name read a reply in the form that `answer` names. What is
    trained on and what is held out share neither seeds nor questions, whatever their sizes.
    """

    name = "reasoning_gym"

    class Config(DatasetConfig):
        """Options of items of reasoning-gym."""

        task: str | None = None
        """The task, as `gcd`; or `tasks`."""
        level: int | list[int] | None = None
        """A level of the task's curriculum, or several in equal shares; null: its own defaults."""
        config: dict[str, Any] = Field(default_factory=dict)
        """Options of the task, as `{max_value: 20}`; they go before what the level says."""
        tasks: list[TaskConfig] | None = Field(default=None, min_length=1)
        """Several tasks, as `[{task: gcd, weight: 2}, {task: lcm, level: 1}]`."""
        size: int = Field(default=500, ge=1)
        """Items in all; a held-out part has fewer where there are not so many questions."""
        seed: int = Field(default=0, ge=0, lt=SEEDS // 2)
        """Other items; of the same part all the same."""
        part: Part = "train"
        """`held_out`: items that are in no training part, whatever its seed and size."""
        answer: forms.Form = "tag"
        """Where a reply says the answer: tag (`<answer>7</answer>`), last_line, boxed, hashes
        (after `####`), number (the last one), or whole, which is all of it."""
        tell: bool = True
        """Whether the prompt says so."""

        @model_validator(mode="after")
        def _one_or_several(self) -> ReasoningGym.Config:
            if (self.task is None) == (self.tasks is None):
                raise ValueError("say either 'task' or 'tasks'")
            if self.tasks is not None and (self.config or self.level is not None):
                raise ValueError("with 'tasks', say 'config' and 'level' of each task")
            return self

        @property
        def each(self) -> list[TaskConfig]:
            """The tasks."""
            if self.task is None:
                return self.tasks or []
            return [TaskConfig(task=self.task, level=self.level, config=self.config)]

    config: Config

    def problems(self) -> Iterator[tuple[str, str]]:
        """Unknown tasks, options and levels, without importing the library."""
        for place, one in enumerate(self.config.each):
            for before in self.config.each[:place]:
                if (one.task, one.config) != (before.task, before.config):
                    continue
                if {*(one.levels or [None])} & {*(before.levels or [None])}:
                    yield "tasks", f"[{place}] names '{one.task}' again; give it a larger 'weight'"
            for option, message in one.problems():
                alone = self.config.task is not None
                yield (option, message) if alone else ("tasks", f"[{place}] {option}: {message}")

    def record_type(self) -> type[Record]:
        """Prompts."""
        return Prompt

    def digest(self) -> str:
        """The version of the library: with the options it says what the items are."""
        return f"reasoning-gym {library.version()}"

    def load(self) -> Iterator[Prompt]:
        """The items, made one after another."""
        config = self.config
        size = min(config.size, config.limit or config.size)
        sources = [source for one in config.each for source in one.sources()]
        return prompts(sources, config.part, config.seed, size, config.answer, config.tell)
