"""A task of Inspect that needs nothing but a model: sums of two digits."""

from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.scorer import includes
from inspect_ai.solver import generate


@task
def sums(count: int = 20) -> Task:
    """Sums whose answer is to stand in the reply."""
    pairs = [(a, b) for a in range(2, 9) for b in range(3, 9)][:count]
    return Task(
        dataset=[Sample(f"What is {a} + {b}?", target=str(a + b), id=f"{a}+{b}") for a, b in pairs],
        solver=generate(),
        scorer=includes(),
    )
