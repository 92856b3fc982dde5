"""A reward computed by a function of the user's own."""

from __future__ import annotations

import ast
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from posttrain_recipes.functions import (
    UserFunction,
    argument_problems,
    checked_call,
    parameters,
)
from posttrain_recipes.plugin import Affects, PluginConfig, Reward, Sample, UsageError
from posttrain_recipes.training.rl.scoring import within


class Function(Reward):
    """What a function of your own says: `{use: function, call: "my_rewards:score"}`.

    `score(sample)` is given one `Sample`, with its `completion`, `prompt`, `answer` and `metadata`,
    and returns a number, or None to abstain; `score(samples)` is given a list and returns one. It
    stands in `my_rewards.py` beside the recipe, or in a module that Python can import.
    """

    name = "function"

    class Config(PluginConfig):
        """Options of the reward."""

        call: Annotated[str, AfterValidator(checked_call)]
        """The function, as module:function."""
        arguments: dict[str, Any] = Field(default_factory=dict)
        """Further arguments of the function, by name."""
        timeout: Annotated[float | None, Affects.COST] = Field(default=None, gt=0)
        """Seconds that one call may take; one that takes longer raises. By default no limit."""

    config: Config

    @property
    def label(self) -> str:
        """The function's name."""
        return self._user.name

    @cached_property
    def _user(self) -> UserFunction:
        return UserFunction(self.config.call, self.base_dir)

    def problems(self) -> Iterable[tuple[str, str]]:
        """No such module or function, or one that takes something else. Nothing is run for it."""
        try:
            found = self._user.find(ast.FunctionDef)
        except UsageError as error:
            yield "call", error.what
            return
        if parameters(found)[:1] not in (["sample"], ["samples"]):
            yield (
                "call",
                f"the first parameter of '{found.name}' has to be 'sample' (one at a time) or "
                "'samples' (a list)",
            )
            return
        for problem in argument_problems(found, self.config.arguments, handed=1):
            yield "arguments", problem

    def digest(self) -> str | None:
        """A hash of the module's file."""
        return self._user.digest()

    @cached_property
    def _function(self) -> Callable[..., Any]:
        return self._user.load()

    @cached_property
    def _batched(self) -> bool:
        import inspect

        return next(iter(inspect.signature(self._function).parameters)) == "samples"

    @property
    def lock(self) -> threading.Lock:
        """One for all functions of a module: they may share what it keeps."""
        _ = self._function  # importing the module takes none of a call's time
        return _LOCKS.setdefault(str(self._user.path), threading.Lock())

    def score(self, samples: Sequence[Sample]) -> Sequence[float | None]:
        """What the function says, as it said it: whoever asks looks whether that is one score for
        each. Raises what it raised, or `RuntimeError` if it took too long."""
        if self._batched:
            scores: Sequence[float | None] = self._call(list(samples))
            return scores
        return [self._call(sample) for sample in samples]

    def _call(self, given: Sample | list[Sample]) -> Any:
        seconds = self.config.timeout
        try:
            return within(seconds, lambda: self._function(given, **self.config.arguments))
        except TimeoutError:
            raise RuntimeError(f"'{self.label}' took more than {seconds:g} s") from None


_LOCKS: dict[str, threading.Lock] = {}
"""By the module's file."""
