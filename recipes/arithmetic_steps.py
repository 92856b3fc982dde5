"""Marks the last line of a worked solution, for recipes/process_rewards.yaml.

An equation is right where it holds; the line with #### where its number is what the line before
came to. Nothing is asked of the question: a step may hold and lead nowhere.
"""

import re

EQUATION = re.compile(r"^(\d+) ([-+*]) (\d+) = (\d+)$")
ANSWER = re.compile(r"^#### (\d+)$")
WORK = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}


def holds(sample):
    """1 where the last line holds, else 0."""
    *before, line = sample.completion.strip().split("\n")
    if equation := EQUATION.match(line):
        left, sign, right, result = equation.groups()
        return float(WORK[sign](int(left), int(right)) == int(result))
    answer = ANSWER.match(line)
    came_to = EQUATION.match(before[-1]) if before else None
    return float(bool(answer and came_to) and answer[1] == came_to[4])
