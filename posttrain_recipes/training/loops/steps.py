"""One optimizer step of the rollout loop, and the weights that a batch is sampled from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from posttrain_recipes.plugin import Usage
from posttrain_recipes.training.loops.optimizer import Saved
from posttrain_recipes.training.rl.rollout import Group, Passes

if TYPE_CHECKING:
    import tinker


@dataclass
class Step:
    """One optimizer step: the groups that it learns from, and what was submitted of them."""

    size: int
    """Groups that the loss is a mean over."""
    batch: list[Group]
    """Every group of its batch, where the advantage looks at all of them."""
    _arrivals: Iterable[list[Group]]
    _take: Callable[[Step], None]
    number: int = 0
    learned: list[Group] = field(default_factory=list)
    """The groups that have come."""
    passes: Passes = field(default_factory=list)
    """Forward and backward passes that were submitted."""
    optim: tinker.APIFuture[tinker.OptimStepResponse] | None = None
    beside: list[tinker.APIFuture[Any]] = field(default_factory=list)
    """What was submitted to the loop's clients `beside`; it is waited for with the rest."""
    extra: Usage = field(default_factory=Usage)
    """Tokens of those submissions. What was trained on counts in a budget of tokens."""
    metrics: dict[str, float] = field(default_factory=dict)
    """What the method tells of it by itself, known once `beside` is."""
    learning_rate: float = 0.0
    budgeted: int = 0
    """Tokens of the budget, up to here."""
    saved: Saved | None = None
    due: bool = False
    """Whether its checkpoint is to be evaluated before the next batch is sampled."""

    def groups(self) -> Iterator[list[Group]]:
        """The groups of the step in their order, some at a time, as soon as those are scored."""
        for groups in self._arrivals:
            self.learned += groups
            yield groups

    @property
    def half_done(self) -> bool:
        """Whether it was begun and not updated yet."""
        return bool(self.learned) and not self.number

    def update(self) -> None:
        """Submit Adam's step on the gradients of `passes`, without waiting for it."""
        self._take(self)


@dataclass
class PolicySnapshot:
    """The policy after so many batches, to sample from."""

    client: Future[tinker.SamplingClient]
    path: Future[str] | None = None
    """Where it is kept, where a resumed stage may need it."""
