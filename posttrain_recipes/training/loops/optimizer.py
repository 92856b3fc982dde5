"""What every loop shares: Adam's options, the learning rate of a step, and how a step is saved."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from posttrain_recipes.errors import PtlError
from posttrain_recipes.learning_rate import BASE
from posttrain_recipes.options import AUTO
from posttrain_recipes.plugin import (
    Affects,
    LearningRate,
    PluginConfig,
    Resume,
    StageContext,
    Usage,
    checkpoint_name,
)

if TYPE_CHECKING:
    import tinker


class OptimizerConfig(PluginConfig):
    """Options of every method that takes optimizer steps."""

    learning_rate: LearningRate = AUTO
    """Peak learning rate of Adam: a number, or auto, which becomes one as the run is planned, by
    the model's hidden size and the method's family. LoRA wants about ten times that of full
    fine-tuning."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """How the learning rate falls to zero after the warm-up; constant keeps it."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the learning rate rises from zero."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay (AdamW)."""
    grad_clip: float = Field(default=1.0, ge=0)
    """Largest norm of the gradient; 0 does not clip."""
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of Adam's first moment."""
    adam_beta2: float = Field(default=0.95, ge=0, lt=1)
    """Decay of Adam's second moment."""
    save_every: Annotated[int, Affects.NOTHING] = Field(default=50, ge=0)
    """Steps between checkpoints that an interrupted run goes on from; 0 saves only the last, and
    what `save_minutes` asks for."""
    save_minutes: Annotated[float, Affects.NOTHING] = Field(default=10.0, ge=0)
    """Minutes after which one is saved however few steps that were; 0 goes by steps alone."""
    token_budget: int | None = Field(default=None, ge=1)
    """Stop after the step with which the tokens that were trained on, and those that were written
    to be trained on, come to this. What a reference, teacher or judge only reads is not counted."""

    @property
    def needs(self) -> tuple[str, ...]:
        """What of the optimizer the engine must obey: some take it without effect."""
        asked = {
            "optimizer:grad_clip": self.grad_clip > 0,
            "optimizer:betas": (self.adam_beta1, self.adam_beta2) != (0.9, 0.95),
            "optimizer:weight_decay": self.weight_decay > 0,
        }
        return tuple(name for name, needed in asked.items() if needed)

    @property
    def peak(self) -> float:
        """The learning rate as a number. A plan puts one in the place of `auto`; in options that
        are made by hand, of which no model is known, `auto` is `BASE`."""
        return BASE if self.learning_rate == AUTO else self.learning_rate

    def saves(self, step: int, total: int) -> bool:
        """Whether a checkpoint is due after step `step` (from 1) of `total`."""
        return step == total or bool(self.save_every and step % self.save_every == 0)

    def counted(self, usage: Usage) -> int:
        """What a step takes of the budget of tokens; 0 where there is none."""
        return usage.train + usage.sample if self.token_budget else 0

    def exhausted(self, tokens: int) -> bool:
        """Whether so many tokens are all of the budget."""
        return self.token_budget is not None and tokens >= self.token_budget

    def expected(self, step: int, total: int, tokens: int) -> int:
        """How many steps it will come to, as far as can be told when `step` of `total` took so many
        tokens of the budget."""
        if self.token_budget is None or step == total:
            return total
        return min(total, max(step + 1, math.ceil(step * self.token_budget / tokens)))


def learning_rate(config: OptimizerConfig, step: int, total: int, tokens: int = 0) -> float:
    """The learning rate of step `step` (from 0) of `total`, after so many tokens of the budget.

    A budget of tokens ends a stage at a step that is not known beforehand: the rate falls with
    whatever is nearer to its end, the steps or the tokens.
    """
    if step < config.warmup_steps:
        return config.peak * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, total - config.warmup_steps)
    progress = max(progress, tokens / (config.token_budget or math.inf))
    factor = {
        "constant": 1.0,
        "linear": 1.0 - progress,
        "cosine": 0.5 * (1.0 + math.cos(math.pi * progress)),
    }[config.schedule]
    return config.peak * factor


def update(
    client: tinker.TrainingClient, config: OptimizerConfig, rate: float
) -> tinker.APIFuture[tinker.OptimStepResponse]:
    """Submit an optimizer step at a learning rate, without waiting for it."""
    import tinker

    return client.optim_step(
        tinker.AdamParams(
            learning_rate=rate,
            beta1=config.adam_beta1,
            beta2=config.adam_beta2,
            weight_decay=config.weight_decay,
            grad_clip_norm=config.grad_clip,
        )
    )


def norms(updated: tinker.OptimStepResponse | None) -> dict[str, float]:
    """The norm of the gradient of a step, where the engine tells it."""
    known = (updated.metrics or {}) if updated is not None else {}
    return {"train/grad_norm": known["grad_norm:mean"]} if "grad_norm:mean" in known else {}


@dataclass
class Saves:
    """When the checkpoints of a stage are due."""

    config: OptimizerConfig
    last: float = field(default_factory=time.monotonic)
    """When one was due, or the stage began."""

    def due(self, step: int, total: int, asked: bool = False) -> bool:
        """Whether one is due after step `step` (from 1) of `total`, or is `asked` for."""
        now, bound = time.monotonic(), 60 * self.config.save_minutes
        late = bool(bound) and now - self.last >= bound
        if not (asked or late or self.config.saves(step, total)):
            return False
        self.last = now
        return True


def unchanged(stage: StageContext, update: tinker.APIFuture[Any] | None) -> bool:
    """Whether an optimizer step was not taken, as one is not that follows a failed pass."""
    if update is None:
        return True
    try:
        stage.wait(update)
    except Exception:
        return True
    return False


@dataclass
class Saved:
    """A checkpoint that was asked for."""

    step: int
    state: tinker.APIFuture[tinker.SaveWeightsResponse]
    sampler: tinker.APIFuture[tinker.SaveWeightsForSamplerResponse]
    tokens: int = 0
    beside: Mapping[str, tinker.APIFuture[tinker.SaveWeightsResponse]] = field(default_factory=dict)
    """By name, the states of what is trained beside."""

    def result(self, stage: StageContext) -> Resume:
        """Wait for it."""
        state = stage.wait(self.state).path
        beside = {name: stage.wait(saved).path for name, saved in self.beside.items()}
        sampler = self._sampler(stage, state)
        return Resume(self.step, state, sampler, tokens=self.tokens, beside=beside)

    def _sampler(self, stage: StageContext, state: str) -> str:
        """The path of the weights to sample from; those of `state` lie beside them.

        Where the answer to this save was lost, the SDK asked again, and the server says that there
        is one of the name. No other has it: there is one of each step.
        """
        import tinker

        try:
            return str(stage.wait(self.sampler).path)
        except PtlError as error:
            if not isinstance(error.__cause__, tinker.ConflictError):
                raise
            return state.replace("/weights/", "/sampler_weights/")


def save(
    stage: StageContext,
    client: tinker.TrainingClient,
    step: int,
    tokens: int,
    beside: Mapping[str, tinker.TrainingClient] | None = None,
) -> Saved:
    """Submit the saving of the weights as they are after step `step`, without waiting for it.

    `tokens` is what these steps took of a budget; of the clients `beside` the state alone is saved,
    as nobody samples from them.
    """
    name = f"{checkpoint_name(stage.name)}-{step:06d}"
    # Where an answer was lost, the SDK asks again: what is there by then is this very checkpoint.
    ends: dict[str, int] = {} if stage.ttl_s is None else {"ttl_seconds": stage.ttl_s}
    state = client.save_state(name, overwrite=True, **ends)
    sampler = client.save_weights_for_sampler(name, **ends)
    others = {
        key: other.save_state(name, overwrite=True, **ends) for key, other in (beside or {}).items()
    }
    return Saved(step, state, sampler, tokens, others)
