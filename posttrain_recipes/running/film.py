"""The same few prompts, answered again and again while stages train: from garble to right.

They change no result: they are asked of checkpoints, between two steps, by temperature 0, and what
they take is counted apart (`StageRecord.watching`). Where they cannot be asked, the run goes on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain_recipes.planning.film import shows
from posttrain_recipes.planning.plans import Data, Filmstrip, Plan, PlannedStage
from posttrain_recipes.plugin import Checkpoint, Message, Plugin
from posttrain_recipes.records import Conversation, Labelled, Preference, Prompt, Record, Sample
from posttrain_recipes.running.reading import read_records
from posttrain_recipes.running.serving import Serving
from posttrain_recipes.training.requests import reply, sample
from posttrain_recipes.training.text import answer_extraction
from posttrain_recipes.training.text.chat_template import ChatRenderer


@dataclass(frozen=True)
class FilmPrompts:
    """The prompts of a run."""

    source: str
    """Where they are from: an eval, or the data of a stage."""
    prompts: Sequence[Prompt]
    judged_by: Any = None
    """The options of an eval that compares a reply with an answer; None: nothing tells."""

    def right(self, sample: Sample) -> bool | None:
        """Whether a reply is right, as the eval compares; None where that is not known."""
        if self.judged_by is None or sample.answer is None:
            return None
        found = answer_extraction.extract(sample.completion, self.judged_by.extract)
        ignore_case = getattr(self.judged_by, "ignore_case", False)
        return answer_extraction.equal(found, sample.answer, ignore_case=ignore_case)


class Film:
    """Asks the prompts of one run of its checkpoints.

    Args:
        made: where the records that a stage made lie.
    """

    def __init__(self, plan: Plan, serving: Serving, made: Callable[[str], Path]) -> None:
        self._plan = plan
        self._serving = serving
        self._made = made
        self._lock = threading.Lock()
        self._prompts: FilmPrompts | None = None

    def steps(self, stage: PlannedStage, total: int) -> list[int]:
        """After which of a stage's steps they are asked."""
        film = self._plan.watch
        return film.steps(total) if film is not None and shows(stage) else []

    def prompts(self, stage: PlannedStage) -> FilmPrompts:
        """Those of the run: the same through all of its stages."""
        with self._lock:
            if self._prompts is None:
                self._prompts = self._found(self._plan.watch or Filmstrip(), stage)
            return self._prompts

    def _found(self, film: Filmstrip, stage: PlannedStage) -> FilmPrompts:
        renderer = self._serving.renderer(stage.model, stage.renderer)
        for source, data, wants, user in _sources(self._plan):
            if data.made_by:
                continue  # maybe by a stage that comes later
            records = read_records(data, wants, renderer, self._made, user)
            several = (prompt for record in records for prompt in _prompts_of(record))
            found = [prompt for prompt, _ in zip(several, range(film.prompts), strict=False)]
            if found:
                judges = user.name == "exact_match" or hasattr(user.config, "extract")
                return FilmPrompts(source, found, user.config if judges else None)
        return FilmPrompts("", ())

    def answers(self, stage: PlannedStage, checkpoint: Checkpoint) -> list[Sample]:
        """What a checkpoint answers to them."""
        film = self._plan.watch or Filmstrip()
        renderer: ChatRenderer = self._serving.renderer(stage.model, stage.renderer)
        sampler = self._serving.sampler(checkpoint)
        prompts = self.prompts(stage).prompts
        asked = [
            sample(
                sampler,
                renderer.prompt(prompt.messages),
                1,
                max_tokens=film.max_tokens,
                temperature=0.0,
                seed=0,
                stop=renderer.stop,
            )
            for prompt in prompts
        ]
        return [
            reply(prompt, self._serving.wait(future).sequences[0], renderer)
            for prompt, future in zip(prompts, asked, strict=True)
        ]


def _sources(plan: Plan) -> Iterator[tuple[str, Data, type[Record], Plugin]]:
    """Where prompts may be from, the best first: evals that compare replies, other evals, data."""
    evals = [planned for stage in plan.stages for planned in stage.evals if planned.eval.takes]
    for planned in sorted(evals, key=lambda one: one.wants is not Prompt):
        yield f"the eval {planned.name}", planned.data, planned.wants, planned.eval
    for stage in plan.stages:
        if stage.data is not None and stage.wants is not None and stage.method is not None:
            yield f"the data of {stage.name}", stage.data, stage.wants, stage.method


def _prompts_of(record: Record) -> Iterator[Prompt]:
    """What a record asks."""
    if isinstance(record, Prompt):
        yield record
    elif isinstance(record, Conversation):
        *before, last = record.messages
        if before and last.role == "assistant":
            yield Prompt(messages=tuple(before), answer=last.content)
    elif isinstance(record, Preference | Labelled):
        yield Prompt(messages=record.prompt)


def words(messages: Sequence[Message]) -> str:
    """A prompt in a line or more, for a person: the last message, and how many are before it."""
    if not messages:
        return ""
    before = len(messages) - 1
    return f"{messages[-1].content}" + (f" (after {before} more)" if before else "")
