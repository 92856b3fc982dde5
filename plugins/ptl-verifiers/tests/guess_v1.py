"""A taskset of verifiers, multi-turn: a number to be guessed, with a hint after each guess.

The environment is the user: it tells after each guess whether the number is higher or lower.
"""

import random
from collections.abc import Iterator

import verifiers.v1 as vf

__all__ = ["GuessEnv", "GuessTaskset"]


class GuessData(vf.TaskData):
    """The hidden number, and the bounds of the game."""

    secret: int
    high: int


class GuessTask(vf.Task[GuessData]):
    """A number to be guessed."""


class GuessTasksetConfig(vf.TasksetConfig):
    """Options of the taskset."""

    high: int = 8
    """The number is from 1 to this."""


class GuessTaskset(vf.Taskset[GuessTask, GuessTasksetConfig]):
    """Games without end."""

    INFINITE = True

    def load(self) -> Iterator[GuessTask]:
        draw, high = random.Random(0), self.config.high
        while True:
            # The range moves, so that there are many games; demonstrations have the odd ones.
            low = draw.randrange(10, 99, 2)
            data = GuessData(
                prompt=f"A number from {low} to {low + high - 1}.",
                secret=draw.randint(low, low + high - 1),
                high=high,
            )
            yield GuessTask(data, self.config.task)


class GuessEnvConfig(vf.EnvConfig):
    """The one agent that guesses."""

    guesser: vf.AgentConfig = vf.AgentConfig()
    most: int = 3
    """Guesses in a game."""


class GuessEnv(vf.Env[GuessEnvConfig]):
    """Tells higher or lower until the number is found, or there are no more guesses."""

    async def run(self, task: GuessTask, agents: vf.Agents) -> None:
        secret, found, legal, guesses = task.data.secret, False, 0, 0
        async with agents.guesser.interaction(task) as game:
            segment = await game.turn()
            while not segment.terminated:
                guesses += 1
                said = segment.last_reply.strip()
                guess = int(said) if said.isdigit() and len(said) < 4 else None
                legal += guess is not None
                found = guess == secret
                if found or guesses == self.config.most:
                    break
                hint = (
                    "A number, please."
                    if guess is None
                    else "Higher."
                    if guess < secret
                    else "Lower."
                )
                segment = await game.turn(hint)
        game.trace.record_reward("found", float(found), 1.0)
        game.trace.record_metric("legal", legal / max(1, guesses))
