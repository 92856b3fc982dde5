"""Mean return and success rate over episodes of an environment."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, ClassVar, cast

from pydantic import Field

from posttrain_recipes.errors import UsageError
from posttrain_recipes.plugin import (
    Affects,
    Eval,
    EvalContext,
    EvalResult,
    FromData,
    PerRecord,
    PluginConfig,
    Record,
    Task,
)
from posttrain_recipes.training.intervals import summary
from posttrain_recipes.training.rl.episodes import EpisodeLimits, Play, play

AT_ONCE = 64
"""Episodes that are played together."""


class Episodes(Eval):
    """Mean return of the first seat over episodes, one a task, and what else the episodes tell.

    Where the environment tells of success, its share is the main metric, else the return is. An
    episode whose environment abstains has no return, and is left out of that mean.
    """

    name = "episodes"
    takes: ClassVar[tuple[type[Record], ...]] = (Task,)
    needs = ("sample",)

    class Config(PluginConfig):
        """Options of the eval."""

        max_turns: int = Field(default=16, ge=1)
        """Replies in one episode; one that goes on is cut there."""
        max_tokens: Annotated[int, FromData.REPLY_TOKENS] = Field(default=256, ge=1)
        """Longest reply in tokens.
        By default it follows from the answers in the data; 256 where those do not tell."""
        temperature: float = Field(default=0.0, ge=0)
        """0 takes the likeliest token each time."""
        retries: Annotated[int, Affects.COST] = Field(default=2, ge=0)
        """How often an episode in which the environment raised is begun again before the eval
        fails."""

    config: Config

    def evaluate(self, context: EvalContext) -> EvalResult:
        """Student's intervals of means; Wilson's of metrics that are 0 or 1 in every episode.

        Raises:
            PtlError: the environment failed, or abstained in every episode.
        """
        config = self.config
        tasks = [cast(Task, record) for record in context.records]
        limits = EpisodeLimits(
            config.max_turns, config.max_tokens, config.temperature, config.retries
        )
        plays: list[Play] = []
        for begin in range(0, len(tasks), AT_ONCE):

            def over(count: int, before: int = begin) -> None:
                context.progress(before + count, len(tasks), "episodes")

            over(0)
            plays += play(
                tasks[begin : begin + AT_ONCE],
                context.seed + begin,
                context.sampler,
                context.renderer,
                context.wait,
                limits,
                over,
            )
            if failed := [one for one in plays if one.error]:
                raise failed[0].failure("mend the environment: an eval leaves no episode out")
        returns = [one.players[0].reward for one in plays]
        known = [one for one in returns if one is not None]
        if not known:
            raise UsageError(
                f"the environment abstains in every episode of the eval '{context.name}'",
                hint="do the prompts have what its reward compares with?",
                code="environment-failed",
            )
        told = sorted({name for one in plays for name in one.metrics})
        # What only some episodes tell of, such as the moves of a game that was won, is of others
        # before than after; that the environment abstains is not the policy's doing.
        scores = {name: PerRecord(tuple(one.metrics.get(name) for one in plays)) for name in told}
        scores["return"] = PerRecord(tuple(returns), abstained=True)
        scores["turns"] = PerRecord(tuple(float(one.turns) for one in plays))
        main = [name for name in ("success", "return") if name in scores]
        metrics = {
            name: summary([v for v in scores[name].values if v is not None])
            for name in dict.fromkeys([*main, *scores])
        }
        good: dict[str, bool | None] = dict.fromkeys(metrics)
        for task in tasks:
            good |= task.higher_is_better
        good |= dict.fromkeys(main, True)
        samples = [
            replace(
                one.sample(0),
                scores={**one.metrics, **({"return": total} if total is not None else {})},
            )
            for one, total in zip(plays, returns, strict=True)
        ]
        return EvalResult(metrics, tuple(samples), good, scores)
