"""How many items a model solves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, cast

from pydantic import Field

from posttrain_recipes.plugin import (
    CountTokens,
    Eval,
    EvalContext,
    EvalResult,
    PerRecord,
    PluginConfig,
    Prompt,
    Record,
    Usage,
    UsageError,
    Workload,
)
from ptl_reasoning_gym import library
from ptl_reasoning_gym.datasets import item_of
from ptl_reasoning_gym.rewards import judge


class ReasoningGymEval(Eval):
    """Share of items that a model solves, by the rule of their task, one reply to each.

    Beside `solved` there are `score`, the mean of what `score_answer` says, and `answered`, the
    share of replies with an answer where it should stand; and `solved` of each task and of each
    level where there are several.
    """

    name = "reasoning_gym"
    takes: ClassVar[tuple[type[Record], ...]] = (Prompt,)
    needs = ("sample:greedy",)

    class Config(PluginConfig):
        """Options of the eval."""

        max_tokens: int = Field(default=256, ge=1)
        """Longest reply in tokens."""
        temperature: float = Field(default=0.0, ge=0)
        """0 takes the likeliest token each time."""

    config: Config

    def digest(self) -> str:
        """The version of the library, whose rules these are."""
        return f"reasoning-gym {library.version()}"

    def workload(self, sample: Sequence[Record], count: int, tokens: CountTokens) -> Workload:
        """Every prompt is read once, and a reply may end before its limit."""
        lengths = [tokens(cast(Prompt, record).messages) for record in sample]
        read = count * sum(lengths) / max(1, len(lengths))
        return Workload(
            Usage(prefill=round(read), sample=count * self.config.max_tokens), at_most=True
        )

    def evaluate(self, context: EvalContext) -> EvalResult:
        """Wilson's intervals of shares, Student's of the mean score.

        Raises:
            UsageError: a record that is no item of reasoning-gym.
        """
        from posttrain_recipes.training import generate, mean, proportion

        prompts = [cast(Prompt, record) for record in context.records]
        for prompt in prompts:
            if item_of(prompt.metadata) is None:
                raise UsageError(
                    f"{prompt.source}: eval '{context.name}' is of prompts of 'reasoning_gym'",
                    hint="give it such a dataset",
                )
        config = self.config
        samples = generate(
            context, prompts, max_tokens=config.max_tokens, temperature=config.temperature
        )
        scored, solved = [], []
        for prompt, sample in zip(prompts, samples, strict=True):
            judged = judge(replace(sample, metadata=prompt.metadata))
            assert judged is not None
            solved.append(float(judged.solved))
            values = {"solved": solved[-1], "score": judged.score}
            scored.append(replace(sample, scores={**values, "answered": float(judged.answered)}))
        count = len(scored)
        metrics = {
            "solved": proportion(sum(solved), count),
            "score": mean([one.scores["score"] for one in scored]),
            "answered": proportion(sum(one.scores["answered"] for one in scored), count),
        }
        kinds = _kinds(prompts)
        scores = {
            kind: PerRecord.at(places, [solved[at] for at in places], count)
            for kind, places in kinds.items()
        }
        metrics |= {
            kind: proportion(sum(solved[at] for at in places), len(places))
            for kind, places in kinds.items()
        }
        return EvalResult(metrics, tuple(scored), dict.fromkeys(metrics, True), scores)


def _kinds(prompts: Sequence[Prompt]) -> dict[str, list[int]]:
    """The places of the records of each task, and of each level, where there are several."""
    found: dict[str, list[int]] = {}
    for name in ("task", "level"):
        values = sorted({p.metadata[name] for p in prompts if name in p.metadata})
        for value in values if len(values) > 1 else ():
            label = f"solved_{value}" if name == "task" else f"solved_level_{value}"
            places = [n for n, p in enumerate(prompts) if p.metadata.get(name) == value]
            found[label] = places
    return found
