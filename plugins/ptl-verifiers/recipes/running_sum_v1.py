"""An environment of verifiers, multi-turn: a sum, and then one more with what was answered.

The second question is made of the first answer, whatever that was: who is wrong once is wrong in
the end, and only all of the conversation tells.
"""

import re
from collections.abc import Iterator

import verifiers.v1 as vf

__all__ = ["RunningSumEnv", "RunningSumTaskset"]

NUMBER = re.compile(r"\d+")


class RunningSumData(vf.TaskData):
    """What is added, from the third number on, and the sum of all."""

    more: list[int]
    answer: int


class RunningSumTask(vf.Task[RunningSumData]):
    """Numbers to be added one after another."""


class RunningSumConfig(vf.TasksetConfig):
    """Options of the taskset."""

    below: int = 50
    """The first two numbers are smaller."""
    turns: int = 2
    """Questions in an episode."""


class RunningSumTaskset(vf.Taskset[RunningSumTask, RunningSumConfig]):
    """One task for each first question, in an order that looks drawn."""

    def load(self) -> Iterator[RunningSumTask]:
        below = self.config.below
        for n in range(below * below):
            a, b = divmod(n * 7919 % (below * below), below)
            more = [(3 * a + 5 * b + 7 * k) % 9 + 1 for k in range(1, self.config.turns)]
            data = RunningSumData(prompt=f"What is {a} + {b}?", more=more, answer=a + b + sum(more))
            yield RunningSumTask(data, self.config.task)


class RunningSumEnvConfig(vf.EnvConfig):
    """The one agent that adds."""

    adder: vf.AgentConfig = vf.AgentConfig()


class RunningSumEnv(vf.Env[RunningSumEnvConfig]):
    """Asks again with the last number of each reply; a reply without one ends it."""

    async def run(self, task: RunningSumTask, agents: vf.Agents) -> None:
        said, asked = None, 0
        async with agents.adder.interaction(task) as talk:
            segment = await talk.turn()
            for more in [*task.data.more, None]:
                found = NUMBER.findall(segment.last_reply or "")
                said, asked = (int(found[-1][:6]) if found else None), asked + 1
                if said is None or more is None or segment.terminated:
                    break
                segment = await talk.turn(f"What is {said} + {more}?")
        right = said == task.data.answer and asked == len(task.data.more) + 1
        talk.trace.record_reward("right", float(right), 1.0)
        talk.trace.record_metric("asked", float(asked))
