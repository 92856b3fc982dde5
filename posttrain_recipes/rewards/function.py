"""A reward computed by a function of the user's own."""

from __future__ import annotations

import ast
import asyncio
import inspect
import threading
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import cached_property, partial
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
    and returns a number, or None to abstain; `score(samples)` is given a list and returns one. Both
    may be `async`: then the replies to a prompt are scored at the same time. It stands in
    `my_rewards.py` beside the recipe, or in a module that Python can import. `feedback:` names a
    function `say(sample)` that returns what is to be said of a reply to whoever wrote it, a text or
    None, for the method `sdpo`.
    """

    name = "function"

    class Config(PluginConfig):
        """Options of the reward."""

        call: Annotated[str, AfterValidator(checked_call)]
        """The function, as module:function."""
        feedback: Annotated[str, AfterValidator(checked_call)] | None = None
        """A function of one sample that says in words what is wrong with it, as module:function."""
        arguments: dict[str, Any] = Field(default_factory=dict)
        """Further arguments of the function, by name."""
        timeout: Annotated[float | None, Affects.COST] = Field(default=None, gt=0)
        """Seconds that one call may take, and an `async` function for all replies to a prompt; one
        that takes longer raises. By default no limit."""

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
            found = self._user.find(ast.FunctionDef, ast.AsyncFunctionDef)
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
        if self._says is not None:
            try:
                says = self._says.find(ast.FunctionDef)
            except UsageError as error:
                yield "feedback", error.what
                return
            if parameters(says)[:1] != ["sample"]:
                yield "feedback", f"the first parameter of '{says.name}' has to be 'sample'"

    def digest(self) -> str | None:
        """A hash of the module's file; of both, where `feedback` is in another."""
        own = self._user.digest()
        if self._says is None or self._says.path == self._user.path:
            return own
        other = self._says.digest()
        return None if own is None or other is None else f"{own} {other}"

    @cached_property
    def _says(self) -> UserFunction | None:
        call = self.config.feedback
        return UserFunction(call, self.base_dir) if call else None

    @cached_property
    def _say(self) -> Callable[[Sample], Any] | None:
        return self._says.load() if self._says else None

    @cached_property
    def _function(self) -> Callable[..., Any]:
        return self._user.load()

    @cached_property
    def _batched(self) -> bool:
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
        if inspect.iscoroutinefunction(self._function):
            return list(self._within(lambda: asyncio.run(self._all(samples))))
        return [self._call(sample) for sample in samples]

    @property
    def gives_feedback(self) -> bool:
        """Where `feedback:` names a function."""
        return self._says is not None

    def feedback(self, samples: Sequence[Sample]) -> list[str | None]:
        """What the function of that name says. Raises what it raised."""
        say = self._say
        if say is None:
            return [None] * len(samples)
        return [self._within(partial(say, sample)) for sample in samples]

    async def _all(self, samples: Sequence[Sample]) -> list[float | None]:
        """Of an `async` function: all replies to a prompt at the same time."""
        given = self.config.arguments
        return await asyncio.gather(*(self._function(sample, **given) for sample in samples))

    def _call(self, given: Sample | list[Sample]) -> Any:
        def work() -> Any:
            found = self._function(given, **self.config.arguments)
            return asyncio.run(_awaited(found)) if inspect.isawaitable(found) else found

        return self._within(work)

    def _within(self, work: Callable[[], Any]) -> Any:
        seconds = self.config.timeout
        try:
            return within(seconds, work)
        except TimeoutError:
            raise RuntimeError(f"'{self.label}' took more than {seconds:g} s") from None


async def _awaited(found: Awaitable[Any]) -> Any:
    return await found


_LOCKS: dict[str, threading.Lock] = {}
"""By the module's file."""
