"""Completions of a fixed model, a batch of prompts at a time: what stages that make data share.

The batch that comes next is asked for while the present one is worked on, so that the engine is
never idle. A seed comes from the stage's seed, the number of the batch and the place in it: an
interrupted stage goes on to the same replies.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, TypeVar, cast

from pydantic import Field

from posttrain_recipes.context import RewardLike
from posttrain_recipes.plugin import (
    FromData,
    Message,
    ModelRef,
    PluginConfig,
    Prompt,
    Renderer,
    RewardContext,
    Sample,
    ServedModel,
    StageContext,
    Waiter,
)
from posttrain_recipes.training.requests import derive_seed, sample
from posttrain_recipes.training.rl.failing import told_where_it_fails
from posttrain_recipes.training.rl.scoring import scores_of

if TYPE_CHECKING:
    import tinker

T = TypeVar("T")


class MakingConfig(PluginConfig):
    """Options of every method that makes records."""

    batch_size: int = Field(default=64, ge=1)
    """Prompts in a batch, the unit in which an interrupted stage goes on."""
    max_tokens: Annotated[int, FromData.REPLY_TOKENS] = Field(default=256, ge=1)
    """Longest reply in tokens; one that is cut there is left out, and counted.
    By default it follows from the answers in the data; 256 where those do not tell."""
    temperature: float = Field(default=1.0, ge=0)
    """Of the replies; 0 takes the likeliest token each time."""


@dataclass(frozen=True)
class Completion:
    """What a model wrote."""

    text: str
    truncated: bool
    raw: str = ""
    """As it was written: see `Sample.raw`."""

    @property
    def usable(self) -> bool:
        """Whether it is whole and says something."""
        return bool(self.text) and not self.truncated

    def sample(self, prompt: Prompt) -> Sample:
        """It as the reply to a prompt, for rewards."""
        return Sample(
            prompt.messages,
            self.text,
            prompt.answer,
            truncated=self.truncated,
            metadata=prompt.metadata,
            raw=self.raw,
        )


def open_rewards(stage: StageContext) -> None:
    """Get the stage's rewards ready to score."""
    context = RewardContext(stage.seed, stage.renderer, stage.wait, stage.resolve, stage.cache)
    for reward, _ in stage.rewards:
        reward.open(context)


def totals(
    rewards: Sequence[tuple[RewardLike, float]], samples: Sequence[Sample]
) -> list[float | None]:
    """The weighted sum of the rewards of each sample; None where one of them abstains.

    Raises:
        PtlError: a reward failed.
    """
    found: list[float | None] = [0.0] * len(samples)
    for reward, weight in rewards:
        with told_where_it_fails(reward):
            scores = scores_of(reward, samples)
        for place, score in enumerate(scores):
            total = found[place]
            found[place] = None if total is None or score is None else total + weight * score
    return found


def cut_share(replies: Sequence[Completion]) -> float:
    """The share of replies that were cut at `max_tokens`; 0 where there are none."""
    return sum(reply.truncated for reply in replies) / max(1, len(replies))


def batches(items: Sequence[T], size: int) -> list[Sequence[T]]:
    """`items` in their order, `size` at a time."""
    return [items[begin : begin + size] for begin in range(0, len(items), size)]


def served(stage: StageContext, ref: ModelRef | None) -> ServedModel:
    """The model that an option refers to; the stage's own start where it refers to none."""
    if ref is not None:
        return stage.resolve(ref)
    return ServedModel(stage.start, stage.renderer, stage.sampling_client(stage.start))


def ask(
    model: ServedModel,
    prompts: Sequence[Sequence[Message]],
    *,
    count: int,
    max_tokens: int,
    temperature: float,
    seed: str,
) -> list[tinker.APIFuture[tinker.SampleResponse]]:
    """Ask for `count` replies to each prompt, without waiting."""
    return [
        sample(
            model.sampler,
            model.renderer.prompt(prompt),
            count,
            max_tokens=max_tokens,
            temperature=temperature,
            seed=derive_seed(seed, place),
            stop=model.renderer.stop,
        )
        for place, prompt in enumerate(prompts)
    ]


def written(
    asked: Sequence[tinker.APIFuture[tinker.SampleResponse]], renderer: Renderer, wait: Waiter
) -> list[list[Completion]]:
    """The replies to each prompt that was asked."""
    return [
        [
            Completion(renderer.parse(s.tokens), s.stop_reason == "length", renderer.raw(s.tokens))
            for s in wait(future).sequences
        ]
        for future in asked
    ]


def ahead(
    model: ServedModel,
    prompts: Sequence[Sequence[Sequence[Message]]],
    skip: int,
    wait: Waiter,
    *,
    count: int,
    config: MakingConfig,
    seed: int,
) -> Iterator[tuple[int, list[list[Completion]]]]:
    """The replies to batches of prompts, one batch ahead, from batch `skip` (counted from 0) on.

    Yields the number of a batch, counted from 1, and the replies to each of its prompts.
    """

    def submit(number: int) -> list[tinker.APIFuture[tinker.SampleResponse]]:
        if number >= len(prompts):
            return []
        return ask(
            model,
            prompts[number],
            count=count,
            max_tokens=config.max_tokens,
            temperature=config.temperature,
            seed=f"{seed}:{number}",
        )

    coming = submit(skip)
    for number in range(skip, len(prompts)):
        present, coming = coming, submit(number + 1)
        yield number + 1, written(present, model.renderer, wait)


def rewarded_replies(
    stage: StageContext, config: MakingConfig, ref: ModelRef | None, count: int, skip: int
) -> Iterator[tuple[int, Sequence[Prompt], list[list[Completion]]]]:
    """`count` replies to each of the stage's prompts, its rewards ready to score them.

    Yields the number of each batch past `skip`, its prompts, and the replies to each of them.
    """
    groups = batches(cast(Sequence[Prompt], stage.train), config.batch_size)
    stage.sink.begin(len(groups))
    open_rewards(stage)
    asked = [[prompt.messages for prompt in group] for group in groups]
    model = served(stage, ref)
    for number, answers in ahead(
        model, asked, skip, stage.wait, count=count, config=config, seed=stage.seed
    ):
        yield number, groups[number - 1], answers
