"""Two methods without a language model: the foundations that the others are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from posttrain_recipes.plugin import (
    Checkpoint,
    EvalResult,
    Method,
    PerRecord,
    PluginConfig,
    Record,
    StageContext,
    Task,
    UsageError,
)
from posttrain_recipes.training import mean
from ptl_gymnasium.tasks import GymTask

if TYPE_CHECKING:
    from ptl_gymnasium.tabular import Episode, QTable

LOGGED = 50
"""Points on a learning curve."""


def _tasks(stage: StageContext) -> list[GymTask]:
    tasks = [task for task in stage.train if isinstance(task, GymTask)]
    if len(tasks) != len(stage.train) or not tasks:
        raise UsageError(
            f"stage '{stage.name}' needs episodes of Gymnasium",
            hint="write dataset: {use: gymnasium, env: CartPole-v1}",
        )
    return tasks


def _result(episodes: Sequence[Episode]) -> EvalResult:
    returns = [episode.reward for episode in episodes]
    lengths = [float(episode.length) for episode in episodes]
    # Long episodes are good where a pole is held up, and bad where a goal is to be reached.
    return EvalResult(
        {"return": mean(returns), "length": mean(lengths)},
        higher_is_better={"return": True, "length": None},
        scores={"return": PerRecord(tuple(returns)), "length": PerRecord(tuple(lengths))},
    )


class RandomPolicy(Method):
    """Plays every action with the same probability: what anything learned has to beat.

    When: before any other method on an environment. When not: nothing was learned by it.
    """

    name = "random_policy"
    takes: ClassVar[tuple[type[Record], ...]] = (Task,)
    loss = "none"
    starts_over = True

    class Config(PluginConfig):
        """Options of the random policy."""

    def train(self, stage: StageContext) -> Checkpoint:
        """Play each of the stage's tasks once; no weights are trained."""
        from ptl_gymnasium.render import rendered
        from ptl_gymnasium.tabular import random_episodes

        tasks = _tasks(stage)
        env = tasks[0].make()
        stage.sink.begin(1)
        episodes = list(random_episodes(env, len(tasks), stage.seed))
        found = _result(episodes)
        stage.sink.log({f"episode/{k}": e.value for k, e in found.metrics.items()}, 1)
        stage.sink.measured("random_policy", "after", found)
        draw = env.action_space
        draw.seed(stage.seed)
        stage.sink.artifact("episode.md", rendered(tasks[0], lambda state: int(draw.sample())))
        return stage.start


class QLearning(Method):
    """Learns a table of values by Q-learning (Watkins and Dayan 1992); no language model.

    When: the states are few enough for a table; to know what can be reached in an environment.
    When not: states are words or images.
    """

    name = "q_learning"
    takes: ClassVar[tuple[type[Record], ...]] = (Task,)
    loss = "(r + gamma * max_b Q(s', b) - Q(s, a)) ** 2, by its semi-gradient"
    paper = "Watkins and Dayan 1992, Q-learning, Machine Learning 8, 279-292"
    starts_over = True

    class Config(PluginConfig):
        """Options of Q-learning."""

        episodes: int = Field(default=2000, ge=1)
        """Episodes that are played to learn."""
        alpha: float | None = Field(default=0.2, gt=0, le=1)
        """Step size; null is 1 / visits ** 0.6, which converges where the environment is random."""
        gamma: float = Field(default=0.99, gt=0, le=1)
        """Discount of later rewards."""
        epsilon: float = Field(default=0.02, ge=0, le=1)
        """The share of random actions, to which it falls from 1."""
        decay: float = Field(default=0.5, gt=0, le=1)
        """The share of the episodes over which it falls."""

    config: Config

    def train(self, stage: StageContext) -> Checkpoint:
        """Learn, and play each of the stage's tasks once before and once after."""
        from ptl_gymnasium.render import rendered
        from ptl_gymnasium.tabular import QTable, Schedule, discretizer, learn, play

        config, tasks = self.config, _tasks(stage)
        env = tasks[0].make()
        to_state = discretizer(env)
        table = QTable(int(env.action_space.n), config.alpha, config.gamma)  # type: ignore[attr-defined]

        def measured() -> EvalResult:
            return _result([play(env, table.greedy, to_state, task.seed) for task in tasks])

        every = max(1, config.episodes // LOGGED)
        total = -(-config.episodes // every)
        stage.sink.begin(total)
        stage.sink.measured("q_learning", "before", measured())
        schedule = Schedule(end=config.epsilon, decay=config.decay)
        for step in range(1, total + 1):
            part = range((step - 1) * every, min(step * every, config.episodes))
            played = list(learn(env, table, part, config.episodes, schedule, stage.seed))
            stage.sink.log(_curve(played, table), step)
        stage.sink.measured("q_learning", "after", measured())
        stage.sink.artifact("episode.md", rendered(tasks[0], table.greedy))
        return stage.start


def _curve(played: Sequence[Episode], table: QTable) -> dict[str, float]:
    return {
        "episode/return": sum(episode.reward for episode in played) / len(played),
        "episode/length": sum(episode.length for episode in played) / len(played),
        "table/states": float(len(table.values)),
    }
