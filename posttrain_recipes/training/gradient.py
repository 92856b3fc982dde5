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
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, Literal, Protocol, TypeVar

from pydantic import Field

from posttrain_recipes.errors import UsageError
from posttrain_recipes.plugin import PluginConfig, Resume, StageContext
from posttrain_recipes.records import Checkpoint

if TYPE_CHECKING:
    import tinker

Example = TypeVar("Example")
Contra = TypeVar("Contra", contravariant=True)


class GradientConfig(PluginConfig):
    """Options of every method that takes optimizer steps over a data set."""

    learning_rate: float = Field(default=5e-4, gt=0)
    """Peak learning rate of Adam. LoRA wants about ten times that of full fine-tuning."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """How the learning rate falls to zero after the warm-up; constant keeps it."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the learning rate rises from zero."""
    batch_size: int = Field(default=32, ge=1)
    """Examples in one optimizer step."""
    epochs: int = Field(default=1, ge=1)
    """Passes over the data, each in an order of its own."""
    max_steps: int | None = Field(default=None, ge=1)
    """Stop after this many steps, whatever `epochs` says."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay (AdamW)."""
    grad_clip: float = Field(default=1.0, ge=0)
    """Largest norm of the gradient; 0 does not clip."""
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of Adam's first moment."""
    adam_beta2: float = Field(default=0.95, ge=0, lt=1)
    """Decay of Adam's second moment."""
    save_every: int = Field(default=50, ge=0)
    """Steps between checkpoints that an interrupted run goes on from; 0 saves only the last."""
    max_length: int = Field(default=2048, ge=2)
    """Longest example in tokens."""
    truncate: bool = False
    """Cut longer examples at `max_length`; otherwise they are an error that names the record."""


class Objective(Protocol[Contra]):
    """What a method adds to the loop."""

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

    def tokens(self, batch: Sequence[Contra]) -> int:
        """Tokens that went through the model."""


@dataclass
class Order(Generic[Example]):
    """Which examples each step sees: a permutation of its own for every epoch."""

    examples: Sequence[Example]
    batch_size: int
    seed: int
    _shuffled: tuple[int, list[int]] = field(default=(-1, []), init=False, repr=False)
    """The last epoch that was asked for, with its permutation."""

    @property
    def steps_per_epoch(self) -> int:
        """Steps in one pass; the last batch may be smaller."""
        return math.ceil(len(self.examples) / self.batch_size)

    def batch(self, step: int) -> list[Example]:
        """The examples of optimizer step `step`, counted from 0."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._shuffled[0] != epoch:
            permutation = list(range(len(self.examples)))
            random.Random(f"{self.seed}:{epoch}").shuffle(permutation)
            self._shuffled = (epoch, permutation)
        chosen = self._shuffled[1][place * self.batch_size : (place + 1) * self.batch_size]
        return [self.examples[i] for i in chosen]


def learning_rate(config: GradientConfig, step: int, total: int) -> float:
    """The learning rate of step `step` (from 0) of `total`."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, total - config.warmup_steps)
    factor = {
        "constant": 1.0,
        "linear": 1.0 - progress,
        "cosine": 0.5 * (1.0 + math.cos(math.pi * progress)),
    }[config.schedule]
    return config.learning_rate * factor


def total_steps(config: GradientConfig, examples: int) -> int:
    """How many optimizer steps the stage takes."""
    steps = config.epochs * math.ceil(examples / config.batch_size)
    return min(steps, config.max_steps) if config.max_steps else steps


@dataclass
class _Step(Generic[Example]):
    number: int
    batch: list[Example]
    gradient: tinker.APIFuture[tinker.ForwardBackwardOutput]
    update: tinker.APIFuture[tinker.OptimStepResponse]
    saved: _Saved | None


@dataclass
class _Saved:
    step: int
    state: tinker.APIFuture[tinker.SaveWeightsResponse]
    sampler: tinker.APIFuture[tinker.SaveWeightsForSamplerResponse]

    def result(self, stage: StageContext) -> Resume:
        return Resume(self.step, stage.wait(self.state).path, stage.wait(self.sampler).path)


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
    import tinker

    if not examples:
        raise UsageError(f"stage '{stage.name}' has no records to train on")
    total = total_steps(config, len(examples))
    order = Order(examples, config.batch_size, stage.seed)
    last = stage.resume
    done = last.step if last else 0
    stage.sink.begin(total)
    client = stage.training_client()
    pending: deque[_Step[Example]] = deque()
    clock = time.monotonic()

    def finish(step: _Step[Example]) -> None:
        nonlocal last, clock
        # All waiting first: an interrupt in between must not have half of the step logged.
        output, update = stage.wait(step.gradient), stage.wait(step.update)
        saved = step.saved.result(stage) if step.saved else None
        now = time.monotonic()
        tokens = objective.tokens(step.batch)
        metrics = {
            **objective.metrics(step.batch, output),
            "train/learning_rate": learning_rate(config, step.number - 1, total),
            "train/tokens": float(tokens),
            "train/tokens_per_second": tokens / max(1e-9, now - clock),
        }
        if "grad_norm:mean" in (update.metrics or {}):
            metrics["train/grad_norm"] = update.metrics["grad_norm:mean"]
        clock = now
        stage.sink.log(metrics, step.number)
        if saved is not None:
            last = saved
            stage.sink.checkpoint(saved)

    def drain(leave: int) -> None:
        while len(pending) > leave:
            finish(pending[0])
            pending.popleft()

    def save(step: int) -> _Saved:
        name = f"{stage.name}-{step:06d}"
        return _Saved(step, client.save_state(name), client.save_weights_for_sampler(name))

    if done < total:
        objective.prepare(order.batch(done))
    try:
        for step in range(done, total):
            batch = order.batch(step)
            gradient = objective.submit(client, batch)
            update = client.optim_step(
                tinker.AdamParams(
                    learning_rate=learning_rate(config, step, total),
                    beta1=config.adam_beta1,
                    beta2=config.adam_beta2,
                    weight_decay=config.weight_decay,
                    grad_clip_norm=config.grad_clip,
                )
            )
            number = step + 1
            due = number == total or (config.save_every and number % config.save_every == 0)
            saved = save(number) if due else None
            pending.append(_Step(number, batch, gradient, update, saved))
            if number < total:
                objective.prepare(order.batch(number))
            drain(leave=1)
        drain(leave=0)
    except KeyboardInterrupt:
        # What was paid for is kept: `wait` alone raises this, so every step that was submitted is
        # in `pending` and in the state that is saved here.
        if pending and pending[-1].saved is None:
            pending[-1].saved = save(pending[-1].number)
        drain(leave=0)
        raise
    assert last is not None
    return Checkpoint(stage.base_model, last.state_uri, last.sampler_uri, last.step)
