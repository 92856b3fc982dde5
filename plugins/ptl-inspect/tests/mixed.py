"""The task of `mixed.json`: several scorers, two epochs, letters and numbers, no model.

    inspect eval mixed.py@mixed --model mockllm/model --log-dir logs
    inspect log dump logs/*.eval

and of every sample `events`, `store`, `model_usage` and `messages` left out.
"""

from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.model import ChatMessageSystem, ChatMessageUser, ModelOutput
from inspect_ai.scorer import (
    SampleScore,
    Score,
    Target,
    accuracy,
    includes,
    mean,
    metric,
    scorer,
    stderr,
)
from inspect_ai.solver import Generate, TaskState, solver


@metric
def middle():
    def compute(scores: list[SampleScore]) -> float:
        values = sorted(one.score.as_float() for one in scores)
        return values[len(values) // 2]

    return compute


@scorer(metrics={"long": [mean(), stderr()], "polite": [mean()]})
def form():
    async def score(state: TaskState, target: Target) -> Score:
        return Score(
            value={
                "long": len(state.output.completion) / 10,
                "polite": "please" in state.output.completion,
            }
        )

    return score


@scorer(metrics=[accuracy(), stderr(), middle()])
def graded():
    async def score(state: TaskState, target: Target) -> Score:
        return Score(value=state.metadata["grades"][state.epoch - 1])

    return score


@solver
def says():
    async def solve(state: TaskState, generate: Generate) -> TaskState:
        state.output = ModelOutput.from_content(
            "mock", state.metadata["reply"], stop_reason=state.metadata["stop"]
        )
        state.messages.append(state.output.choices[0].message)
        return state

    return solve


@task
def mixed():
    rows = [
        ("right", "It is 7, please.", "7", ["C", "C"], "stop"),
        ("wrong", "It is 8.", "7", ["I", "C"], "stop"),
        ("half", "7", "7", ["P", "N"], "max_tokens"),
        ("chat", "no", "7", ["I", "I"], "stop"),
    ]
    samples = [
        Sample(
            "What is 3 + 4?"
            if id != "chat"
            else [
                ChatMessageSystem(content="Be short."),
                ChatMessageUser(content="What is 3 + 4?"),
            ],
            target=target,
            id=id,
            metadata={"reply": reply, "grades": grades, "stop": stop},
        )
        for id, reply, target, grades, stop in rows
    ]
    return Task(dataset=samples, solver=says(), scorer=[includes(), graded(), form()], epochs=2)
