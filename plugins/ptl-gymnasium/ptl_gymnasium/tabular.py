"""Tabular reinforcement learning: a policy that chooses at random, and Q-learning.

    Q(s, a) <- Q(s, a) + alpha * (r + gamma * max_b Q(s', b) - Q(s, a))

Watkins and Dayan 1992, Q-learning, Machine Learning 8; Sutton and Barto 2018, section 6.5. The term
gamma * max_b Q(s', b) is 0 where the episode ended, but not where it was only cut off.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np

State = Hashable
Discretizer = Callable[[Any], State]
"""An observation as a state of the table."""

CARTPOLE_BINS = (1, 2, 9, 12)
"""Intervals of position, velocity, angle and angular velocity; one interval ignores it."""
CARTPOLE_LIMITS = (2.4, 1.0, 0.2095, 2.0)
"""Values beyond plus and minus these fall into the outer intervals."""


def discretizer(env: gymnasium.Env[Any, Any]) -> Discretizer:
    """How observations of `env` become states.

    Raises:
        ValueError: continuous observations other than CartPole's.
    """
    space = env.observation_space
    if isinstance(space, gymnasium.spaces.Box):
        if env.spec is None or not env.spec.id.startswith("CartPole"):
            name = env.spec.id if env.spec else str(env)
            raise ValueError(f"{name} has continuous observations, which no table can hold")
        edges = [
            np.linspace(-limit, limit, bins + 1)[1:-1]
            for limit, bins in zip(CARTPOLE_LIMITS, CARTPOLE_BINS, strict=True)
        ]
        return lambda seen: tuple(
            int(np.searchsorted(edge, value)) for edge, value in zip(edges, seen, strict=True)
        )
    if isinstance(space, gymnasium.spaces.Discrete):
        return int
    return lambda seen: tuple(int(part) for part in seen)


@dataclass(frozen=True)
class Episode:
    """What happened in one episode."""

    reward: float
    """The sum of the rewards, undiscounted."""
    length: int
    """Steps taken."""


def play(
    env: gymnasium.Env[Any, Any], choose: Callable[[State], int], to_state: Discretizer, seed: int
) -> Episode:
    """One episode of the policy `choose`, begun with `seed`."""
    seen, _ = env.reset(seed=seed)
    total, length, over = 0.0, 0, False
    while not over:
        seen, reward, ended, cut, _ = env.step(choose(to_state(seen)))
        total, length, over = total + float(reward), length + 1, ended or cut
    return Episode(total, length)


def random_episodes(env: gymnasium.Env[Any, Any], count: int, seed: int) -> Iterator[Episode]:
    """Episodes of the policy that chooses every action with the same probability."""
    draw = np.random.default_rng(seed)
    actions = int(env.action_space.n)  # type: ignore[attr-defined]
    to_state = discretizer(env)
    for number in range(count):
        yield play(env, lambda state: int(draw.integers(actions)), to_state, seed + number)


@dataclass
class QTable:
    """The learned values, with how they are learned.

    Args:
        actions: how many there are.
        alpha: step size, or None for 1 / (visits of the pair) ** 0.6, which converges where the
            environment is random.
        gamma: discount.
    """

    actions: int
    alpha: float | None = 0.1
    gamma: float = 0.99
    values: dict[State, np.ndarray[Any, Any]] = field(default_factory=dict)
    visits: dict[State, np.ndarray[Any, Any]] = field(default_factory=dict)

    def row(self, state: State) -> np.ndarray[Any, Any]:
        """The values of the actions in `state` (actions,)."""
        if state not in self.values:
            self.values[state] = np.zeros(self.actions)
            self.visits[state] = np.zeros(self.actions)
        return self.values[state]

    def greedy(self, state: State) -> int:
        """The action of the highest value; the first of equal ones."""
        return int(np.argmax(self.row(state)))

    def update(self, state: State, action: int, reward: float, after: State | None) -> float:
        """Learn from one step; `after` is None where the episode ended. Returns the error."""
        row = self.row(state)
        target = reward + (self.gamma * self.row(after).max() if after is not None else 0.0)
        self.visits[state][action] += 1
        step = self.alpha or self.visits[state][action] ** -0.6
        error = float(target - row[action])
        row[action] += step * error
        return error


@dataclass(frozen=True)
class Schedule:
    """How the share of random actions falls over the episodes."""

    start: float = 1.0
    end: float = 0.02
    decay: float = 0.5
    """The share of the episodes over which it falls."""

    def epsilon(self, episode: int, total: int) -> float:
        """The share of random actions in episode `episode` of `total`, linear in between."""
        progress = min(1.0, episode / max(1.0, self.decay * total))
        return self.start + (self.end - self.start) * progress


def learn(
    env: gymnasium.Env[Any, Any],
    table: QTable,
    episodes: range,
    total: int,
    schedule: Schedule,
    seed: int,
) -> Iterator[Episode]:
    """Q-learning with epsilon-greedy exploration; yields each episode as it was played.

    Every episode draws from its own number, so that learning can be taken up in the middle.
    """
    to_state = discretizer(env)
    for number in episodes:
        draw = np.random.default_rng([seed, number])
        epsilon = schedule.epsilon(number, total)
        seen, _ = env.reset(seed=int(draw.integers(2**31)))
        state, reward_sum, length, over = to_state(seen), 0.0, 0, False
        while not over:
            explore = draw.random() < epsilon
            action = int(draw.integers(table.actions)) if explore else table.greedy(state)
            seen, reward, ended, cut, _ = env.step(action)
            after = to_state(seen)
            table.update(state, action, float(reward), None if ended else after)
            state, reward_sum, length = after, reward_sum + float(reward), length + 1
            over = ended or cut
        yield Episode(reward_sum, length)
