"""The gradient loop: batches in a fixed order -> optimizer steps -> checkpoints.

A method hands over its examples and an `Objective`; the loop owns order, learning rate, pipeline,
checkpoints and resume. `forward_backward` and `optim_step` of step k + 1 are submitted before
those of step k are awaited, which hides the round trip; since the engine executes a client's
requests in the order of submission, a checkpoint submitted after step k holds exactly k steps.
"""

from __future__ import annotations

import math
import random
import time
from array import array
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from pydantic import Field

from posttrain_recipes.errors import PtlError, UsageError
from posttrain_recipes.plugin import StageContext, Streamed, Usage
from posttrain_recipes.records import Checkpoint
from posttrain_recipes.training.loops.optimizer import (
    OptimizerConfig,
    Saved,
    Saves,
    learning_rate,
    norms,
    save,
    unchanged,
    update,
)

if TYPE_CHECKING:
    import tinker

Example = TypeVar("Example")
Contra = TypeVar("Contra", contravariant=True)


class GradientConfig(OptimizerConfig):
    """Options of every method that takes optimizer steps over a data set."""

    batch_size: int = Field(default=32, ge=1)
    """Examples in one optimizer step."""
    epochs: int = Field(default=1, ge=1)
    """Passes over the data, each in an order of its own."""
    shuffle: bool = True
    """Draw that order by the seed; otherwise it is the data's, as a curriculum wants it."""
    max_steps: int | None = Field(default=None, ge=1)
    """Stop after this many steps, whatever `epochs` says."""
    max_length: int = Field(default=2048, ge=2)
    """Longest example in tokens."""
    truncate: bool = False
    """Cut longer examples at `max_length`; otherwise they are an error that names the record."""


class Objective(Protocol[Contra]):
    """What a method adds to the loop.

    One that has a `watched(batch, output)`, which returns a few `WatchedReply`, has them shown
    (`StageContext.watch`).
    """

    def prepare(self, batch: Sequence[Contra]) -> None:
        """Start work that the batch will need, without waiting; called one step ahead."""

    def submit(
        self, client: tinker.TrainingClient, batch: Sequence[Contra]
    ) -> tinker.APIFuture[tinker.ForwardBackwardOutput]:
        """Submit forward and backward of the batch, without waiting for it."""

    def metrics(
        self, batch: Sequence[Contra], output: tinker.ForwardBackwardOutput
    ) -> Mapping[str, float]:
        """What the batch showed."""

    def usage(self, batch: Sequence[Contra]) -> Usage:
        """Tokens that the batch trains on, and those that were written for it; asked once it is
        submitted."""


@dataclass
class Order(Generic[Example]):
    """Which examples each step sees: a permutation of its own for every epoch."""

    examples: Sequence[Example]
    """Of a `Streamed`, those of a batch are made when it is asked for."""
    batch_size: int
    seed: int
    shuffle: bool = True
    """Otherwise every epoch is in the order of the examples."""
    _shuffled: tuple[int, array[int]] = field(
        default_factory=lambda: (-1, array("I")), init=False, repr=False
    )
    """The last epoch that was asked for, with its permutation."""
    _made: tuple[int, list[Example]] = field(default=(-1, []), init=False, repr=False)
    """The last step that was asked for, with its batch: it is asked for ahead, and then again."""

    @property
    def steps_per_epoch(self) -> int:
        """Steps in one pass; the last batch may be smaller."""
        return math.ceil(len(self.examples) / self.batch_size)

    def batch(self, step: int) -> list[Example]:
        """The examples of optimizer step `step`, counted from 0: without those that are left out,
        and where that is all of them, the next one of the data that can be used.

        Raises:
            UsageError: one that cannot be used and is not to be left out, or none that can.
        """
        if self._made[0] != step:
            self._made = step, self._batch(step)
        return self._made[1]

    def _batch(self, step: int) -> list[Example]:
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._shuffled[0] != epoch:
            permutation = array("I", range(len(self.examples)))
            if self.shuffle:
                random.Random(f"{self.seed}:{epoch}").shuffle(permutation)
            self._shuffled = (epoch, permutation)
        chosen = self._shuffled[1][place * self.batch_size : (place + 1) * self.batch_size]
        if not isinstance(self.examples, Streamed):
            return [self.examples[i] for i in chosen]
        if batch := self.examples.chosen(chosen):
            return batch
        count = len(self.examples)
        for after in range(1, count):
            if batch := self.examples.chosen([(chosen[-1] + after) % count]):
                return batch
        raise UsageError(
            "none of the records can be used; the log has the first of them", code="no-records"
        )


def total_steps(config: GradientConfig, examples: int) -> int:
    """How many optimizer steps the stage takes."""
    steps = config.epochs * math.ceil(examples / config.batch_size)
    return min(steps, config.max_steps) if config.max_steps else steps


def examples_seen(config: GradientConfig, examples: int) -> int:
    """How many examples the steps see, those of later epochs counted again."""
    epochs, rest = divmod(total_steps(config, examples), math.ceil(examples / config.batch_size))
    return epochs * examples + rest * config.batch_size


@dataclass
class _Step(Generic[Example]):
    number: int
    batch: list[Example]
    gradient: tinker.APIFuture[tinker.ForwardBackwardOutput]
    update: tinker.APIFuture[tinker.OptimStepResponse]
    rate: float
    usage: Usage
    budgeted: int
    """Tokens of the budget, up to here."""
    saved: Saved | None


def train(
    stage: StageContext,
    config: GradientConfig,
    examples: Sequence[Example],
    objective: Objective[Example],
) -> Checkpoint:
    """Run the stage to its last step and return that step's checkpoint.

    Raises:
        UsageError: no examples.
        PtlError: the engine failed or is gone.
    """

    if not examples:
        raise UsageError(f"stage '{stage.name}' has no records to train on", code="no-records")
    total = total_steps(config, len(examples))
    order = Order(examples, config.batch_size, stage.seed, config.shuffle)
    last = stage.resume
    done, used = (last.step, last.tokens) if last else (0, 0)
    if config.exhausted(used):
        total = done
    stage.sink.begin(total)
    if stage.sink.review():  # an earlier try was ended by its evals
        total = done
    client = stage.training_client()
    pending: deque[_Step[Example]] = deque()
    finished = done, used
    clock, saves = time.monotonic(), Saves(config)
    watched = getattr(objective, "watched", None)

    def finish(step: _Step[Example]) -> None:
        nonlocal last, clock, finished
        # All waiting first: an interrupt in between must not have half of the step logged.
        output, updated = stage.wait(step.gradient), stage.wait(step.update)
        saved = step.saved.result(stage) if step.saved else None
        now = time.monotonic()
        tokens = step.usage.train
        metrics = {
            **objective.metrics(step.batch, output),
            "train/learning_rate": step.rate,
            "train/tokens": float(tokens),
            "train/tokens_per_second": tokens / max(1e-9, now - clock),
            **norms(updated),
        }
        clock = now
        if step.number > finished[0]:
            stage.sink.log(metrics, step.number)
            finished = step.number, step.budgeted
            if watched is not None:
                stage.watch(step.number, watched(step.batch, output))
        if saved is not None:
            last = saved
            stage.sink.checkpoint(saved)

    def drain(leave: int) -> None:
        while len(pending) > leave:
            finish(pending[0])
            pending.popleft()

    def keep_whole() -> None:
        """Save the steps before the one that failed, where nothing after them changed the weights:
        an engine that lives has them still."""
        with suppress(Exception):  # what failed fails again, at once
            drain(leave=0)
        number, tokens = finished
        if number == (last.step if last else 0):
            return
        if all(unchanged(stage, step.update) for step in pending):
            with suppress(PtlError):
                stage.sink.checkpoint(save(stage, client, number, tokens).result(stage))

    if done < total:
        objective.prepare(order.batch(done))
    try:
        number = done
        while number < total:
            batch = order.batch(number)
            gradient = objective.submit(client, batch)
            rate = learning_rate(config, number, total, used)
            updated = update(client, config, rate)
            usage = objective.usage(batch)
            number, used = number + 1, used + config.counted(usage)
            if config.token_budget:
                total = number if config.exhausted(used) else total
                stage.sink.begin(config.expected(number, total, used))
            due = stage.sink.due(number)
            saved = save(stage, client, number, used) if saves.due(number, total, due) else None
            pending.append(_Step(number, batch, gradient, updated, rate, usage, used, saved))
            if due:
                drain(leave=0)
                if stage.sink.review():
                    break
                clock = time.monotonic()  # an eval is no part of the speed of the next step
            if number < total:
                objective.prepare(order.batch(number))
            drain(leave=1)
        drain(leave=0)
    except KeyboardInterrupt:
        # What was paid for is kept: `wait` alone raises this, so every step that was submitted is
        # in `pending` and in the state that is saved here.
        if pending and pending[-1].saved is None:
            pending[-1].saved = save(stage, client, pending[-1].number, pending[-1].budgeted)
        drain(leave=0)
        raise
    except Exception:
        keep_whole()
        raise
    assert last is not None
    return Checkpoint(stage.base_model, last.state_uri, last.sampler_uri, last.step)
