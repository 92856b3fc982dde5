"""Counts the tokens that a run sends to its engine, by methods, evals, rewards and plugins alike.

The SDK reports no usage, so its public methods are wrapped for as long as a run lasts.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from posttrain_recipes.running import activity
from posttrain_recipes.store import Spent

if TYPE_CHECKING:
    import tinker


@dataclass
class _Counted:
    """Where tokens go, and until when the time of it is counted."""

    spent: Spent
    until: float

    def tick(self, now: float) -> None:
        """Count the time up to now."""
        self.spent.seconds += now - self.until
        self.until = now


class Meter:
    """Adds what is used to whatever `into` was last told to."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._here: ContextVar[_Counted] = ContextVar("spent")
        self._last = Spent()

    @contextmanager
    def into(self, spent: Spent) -> Iterator[None]:
        """Count tokens and time into `spent` until the context ends.

        Stages that run side by side count each into its own; a thread that a plugin started by
        itself counts for whoever was told last. Within another one it takes its time off that.
        """
        before, self._last = self._last, spent
        around = self._here.get(None)
        began = time.monotonic()
        here = _Counted(spent, began)
        token = self._here.set(here)
        if around is not None:
            with self._lock:
                around.tick(began)
        try:
            yield
        finally:
            self._here.reset(token)
            self._last = before
            now = time.monotonic()
            with self._lock:
                here.tick(now)
                if around is not None:  # an eval in the middle of training: counted once
                    # Both at once: what a killed run leaves must not be less than nothing.
                    around.tick(now)
                    around.spent.seconds -= now - began

    @property
    def _target(self) -> Spent:
        here = self._here.get(None)
        return self._last if here is None else here.spent

    def _add(self, target: Spent, **tokens: int) -> None:
        with self._lock:  # replies arrive on other threads
            for kind, count in tokens.items():
                setattr(target, kind, getattr(target, kind) + count)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Count every request of this process until the context ends."""
        import tinker

        wrapped: Mapping[str, tuple[type, Callable[..., Any]]] = {
            "forward_backward": (tinker.TrainingClient, self._trained),
            "forward_backward_custom": (tinker.TrainingClient, self._read_and_trained),
            "forward": (tinker.TrainingClient, self._forwarded),
            "sample": (tinker.SamplingClient, self._sampled),
            "compute_logprobs": (tinker.SamplingClient, self._scored),
        }
        originals = {name: getattr(owner, name) for name, (owner, _) in wrapped.items()}
        for name, (owner, count) in wrapped.items():
            setattr(owner, name, _counting(originals[name], count))
        try:
            yield
        finally:
            for name, (owner, _) in wrapped.items():
                setattr(owner, name, originals[name])

    def count(self, read: int, written: int) -> None:
        """Tokens that a program took which the SDK does not know of."""
        self._add(self._target, prefill=read, sample=written)

    def _trained(self, future: Any, data: Sequence[tinker.Datum], *_: Any, **__: Any) -> None:
        self._add(self._target, train=_tokens(data))

    def _forwarded(self, future: Any, data: Sequence[tinker.Datum], *_: Any, **__: Any) -> None:
        self._add(self._target, prefill=_tokens(data), forward=_tokens(data))

    def _read_and_trained(
        self, future: Any, data: Sequence[tinker.Datum], *_: Any, **__: Any
    ) -> None:
        # A loss of one's own takes a forward pass of its own.
        count = _tokens(data)
        self._add(self._target, prefill=count, forward=count, train=count)

    def _scored(self, future: Any, prompt: tinker.ModelInput, *_: Any, **__: Any) -> None:
        self._add(self._target, prefill=prompt.length)
        _when_done(future, lambda done: prompt.length, lambda done: 0)

    def _sampled(self, future: Any, prompt: tinker.ModelInput, *_: Any, **__: Any) -> None:
        target = self._target
        self._add(target, prefill=prompt.length)

        def written(done: Any) -> int:
            count = sum(len(sequence.tokens) for sequence in done.result().sequences)
            self._add(target, sample=count)
            return count

        _when_done(future, lambda done: prompt.length, written)


def _when_done(future: Any, read: Callable[[Any], int], written: Callable[[Any], int]) -> None:
    """Count the tokens of a request once it is answered, also for what is under way here."""
    here = activity.current()
    if here is not None:
        here.asked()

    def answered(done: Any) -> None:
        if not done.cancelled() and done.exception() is None:
            tokens = read(done), written(done)
            if here is not None:
                here.answered(*tokens)

    inner = future.future() if hasattr(future, "future") else future
    inner.add_done_callback(answered)


def _tokens(data: Sequence[tinker.Datum]) -> int:
    return sum(datum.model_input.length for datum in data)


def _counting(original: Callable[..., Any], count: Callable[..., None]) -> Callable[..., Any]:
    @functools.wraps(original)
    def counted(client: Any, *args: Any, **kwargs: Any) -> Any:
        future = original(client, *args, **kwargs)
        count(future, *args, **kwargs)
        return future

    return counted
