"""The policy as an environment that drives itself is handed it, and how long it is waited for."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from posttrain_recipes.errors import PtlError
from posttrain_recipes.plugin import DrivenTask, Played, Renderer, Reply
from posttrain_recipes.training.requests import derive_seed, sample
from posttrain_recipes.waiting import in_thread

if TYPE_CHECKING:
    import tinker

Key = tuple[tuple[int, ...], int, int]
"""A prompt, its bound on tokens, and how often it was asked before."""


@dataclass
class SampledPolicy:
    """A `Policy` for one episode. It remembers its replies: one that is begun again hears them."""

    sampler: tinker.SamplingClient
    renderer: Renderer
    max_turns: int
    max_tokens: int
    temperature: float
    seed: int
    replies: dict[Key, Future[Reply]] = field(default_factory=dict)
    used: list[Key] = field(default_factory=list)
    """Those that the episode asked for since it was begun."""
    failed: list[Future[Any]] = field(default_factory=list)
    """Requests on which the engine failed, which is no fault of the environment."""
    over: threading.Event = field(default_factory=threading.Event)
    """Set when nobody waits for the episode any more, however often it was begun."""
    closed: bool = False
    """Whether nobody waits for this beginning of it."""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _waiting: int = 0
    _since: float = field(default_factory=time.monotonic)

    def again(self) -> SampledPolicy:
        """For the same episode, begun again: it has the replies that were given."""
        fresh: dict[str, Any] = {"_lock": threading.Lock(), "_since": time.monotonic()}
        return replace(self, used=[], closed=False, _waiting=0, **fresh)

    def sample(self, prompt: Sequence[int], max_tokens: int | None = None) -> Future[Reply]:
        """Ask for a reply. See `Policy`."""
        bound = min(self.max_tokens, max_tokens or self.max_tokens)
        with self._lock:
            if self.closed or self.over.is_set():
                raise PtlError(
                    "an episode that is over asks for a reply", code="environment-failed"
                )
            if len(self.used) >= self.max_turns:
                raise PtlError(
                    f"an episode asks for more than {self.max_turns} replies",
                    hint="end it at the policy's max_turns, or raise 'max_turns'",
                    code="environment-failed",
                )
            asked = tuple(prompt), bound
            key = (*asked, Counter(one[:2] for one in self.used)[asked])
            self.used.append(key)
            self._waiting += 1
            known = self.replies.get(key)
            if known is None:
                known = self.replies[key] = self._request(*key)
        known.add_done_callback(self._answered)
        return known

    def _request(self, prompt: tuple[int, ...], bound: int, before: int) -> Future[Reply]:
        # The seed follows from what is asked: requests made at once come in no known order.
        asked: Any = sample(
            self.sampler,
            prompt,
            1,
            max_tokens=bound,
            temperature=self.temperature,
            seed=derive_seed(self.seed, before, bound, *prompt),
            stop=self.renderer.stop,
        )
        inner: Future[Any] = asked.future() if hasattr(asked, "future") else asked
        told: Future[Reply] = Future()

        def take(done: Future[Any]) -> None:
            try:
                [sequence] = done.result().sequences
                logprobs = sequence.logprobs
                if logprobs is None:
                    raise PtlError(
                        "the engine gave no log-probabilities with its samples",
                        code="engine-cannot",
                    )
                told.set_result(Reply(list(sequence.tokens), list(logprobs)))
            except BaseException as error:
                self.failed.append(done)
                told.set_exception(error)

        inner.add_done_callback(take)
        return told

    def _answered(self, done: Future[Reply]) -> None:
        with self._lock:
            self._waiting, self._since = max(0, self._waiting - 1), time.monotonic()

    def left(self, seconds: float) -> float:
        """Of `seconds`, what is left to the environment before it has to ask or to end."""
        with self._lock:
            return seconds if self._waiting else self._since + seconds - time.monotonic()

    @property
    def thrown_away(self) -> int:
        """Tokens of replies that the episode, as it was begun last, did not ask for."""
        lost = [one for key, one in self.replies.items() if key not in self.used and one.done()]
        return sum(len(one.result().tokens) for one in lost if not one.exception())


def played(task: DrivenTask, policy: SampledPolicy, seconds: float | None) -> Played:
    """Have a task play an episode.

    Args:
        seconds: that it may take to begin, to ask again, or to end; None: as long as it likes.

    Raises:
        TimeoutError: it took longer; it is left to itself, and gets no more replies.
        Exception: whatever it raised.
    """
    doing: Callable[[], Played] = lambda: task.play(policy)  # noqa: E731
    course = in_thread(doing)
    while True:
        left = None if seconds is None else policy.left(seconds)
        try:
            found = course.result(left)
        except TimeoutError as error:
            if course.done():
                raise RuntimeError(f"TimeoutError: {error}") from error
            if seconds is not None and policy.left(seconds) > 0:
                continue
            policy.closed = True
            raise
        except (SystemExit, GeneratorExit, KeyboardInterrupt) as error:
            raise RuntimeError(f"it called for the end of the process: {error!r}") from error
        if not isinstance(found, Played):
            raise TypeError(f"play() should return a Played; it gives a {type(found).__name__}")
        return found
