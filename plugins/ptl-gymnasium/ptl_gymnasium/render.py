"""An episode for a person to look at."""

from __future__ import annotations

from collections.abc import Callable

from ptl_gymnasium import words
from ptl_gymnasium.tabular import State, discretizer
from ptl_gymnasium.tasks import GymTask

SHOWN = 40
"""Steps of an episode that are shown."""


def rendered(task: GymTask, choose: Callable[[State], int]) -> str:
    """One episode as Markdown: what was seen, what was done, what it was worth."""
    env = task.make()
    telling, to_state = words.telling(env), discretizer(env)
    seen, _ = env.reset(seed=task.seed)
    lines = [f"# {task.env_id}, seed {task.seed}", ""]
    total, over, step = 0.0, False, 0
    while not over:
        action = choose(to_state(seen))
        if step < SHOWN:
            lines += ["```", telling.observation(seen), "```", f"{telling.actions[action]}", ""]
        seen, reward, ended, cut, _ = env.step(action)
        total, over, step = total + float(reward), ended or cut, step + 1
    if step > SHOWN:
        lines.append(f"... {step - SHOWN} more steps")
    lines += ["```", telling.observation(seen), "```"]
    return "\n".join([*lines, "", f"Return {total:g} in {step} steps.", ""])
