"""The capability check, and the bench of clients that checks work with."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from posttrain_recipes import models, sdk
from posttrain_recipes.pretrained import load_tokenizer
from posttrain_recipes.waiting import says_full

if TYPE_CHECKING:
    import tinker
    from tinker import types


class UnsupportedError(Exception):
    """The server lacks the capability; the message says what it did instead."""


class AbandonedError(Exception):
    """The check was given up: nobody waits for it."""


class FullError(Exception):
    """The server has no free slot for the adapter that a check needs; the message is its own."""


@dataclass(frozen=True)
class Check:
    """One capability, and how to see whether a server has it."""

    name: str
    summary: str
    run: Callable[[Bench], str | None]
    """Returns a detail to report, or raises."""
    requires: tuple[str, ...] = ()
    """Checks that must pass before this one can tell anything."""


@dataclass(frozen=True)
class Outcome:
    """The result of a capability check."""

    name: str
    summary: str
    verdict: Literal["yes", "no", "untried"]
    detail: str = ""
    seconds: float = 0.0
    full: bool = False
    """Whether it is untried because the server has no free slot for an adapter."""


class Checks(dict[str, Check]):
    """The checks of one module by name, in the order in which they run."""

    def __call__(self, name: str, summary: str, *requires: str) -> Callable[[Any], Any]:
        """Add the function decorated as the check called `name`."""

        def add(run: Callable[[Bench], str | None]) -> Callable[[Bench], str | None]:
            self[name] = Check(name, summary, run, requires)
            return run

        return add


T = TypeVar("T")
_CHECK: ContextVar[object] = ContextVar("check", default=None)
TOKENS = [37, 91, 5, 64, 120, 18, 77, 33, 140, 52, 11, 98, 25, 66, 109, 7, 83, 41, 130, 29]
"""Ids that every vocabulary has. What they say does not matter."""
RANK = 4
MOST = 4
"""Adapters that are held at a time, at most."""
RELEASE_S = 15.0
"""How long the end of a session is waited for."""
TOLERANCE = 0.05
"""How far two log-probabilities of the same token may be apart: servers compute in bfloat16."""


@dataclass
class Bench:
    """Clients of the server at test, and the few things that every check does with them.

    Servers hold so many adapters and no more. Those of a check are of sessions of their own, and
    given back as it goes on; with the two that checks share, at most `MOST` are held at a time.

    `wait_s` bounds each wait: an old SDK waits for ever where a server never answers.
    """

    service: tinker.ServiceClient
    rest: tinker.RestClient
    model: str
    wait_s: float = 60.0
    rank: int = RANK
    saved: list[str] = field(default_factory=list)
    asked: list[Any] = field(default_factory=list)
    """What the SDK was asked since the last `give_up`."""
    opened: list[tinker.ServiceClient] = field(default_factory=list)
    """The sessions of the present check."""
    check: object = None
    """What the present check is known by."""

    def wait(self, future: Any) -> Any:
        """The result of what an SDK returned, now or as a future."""
        return self.wait_all(future)[0]

    def wait_all(self, *futures: Any) -> list[Any]:
        """The results of what was sent together."""
        try:
            self._go_on()
        except AbandonedError:
            _cancel(futures)
            raise
        self.asked += (one for one in futures if hasattr(one, "result"))
        return [
            one.result(timeout=self.wait_s) if hasattr(one, "result") else one for one in futures
        ]

    def give_up(self) -> None:
        """Cancel what was asked and has no answer: the SDK would poll for it for ever."""
        asked, self.asked = self.asked, []
        _cancel(asked)

    def as_check(self, run: Callable[[], T]) -> Callable[[], T]:
        """`run` as the present check, in whatever thread it is called."""
        me = self.check = object()

        def work() -> T:
            _CHECK.set(me)
            return run()

        return work

    def abandon(self) -> None:
        """Have the present check end at its next request, if it is still under way."""
        self.check = None

    def _go_on(self) -> None:
        me = _CHECK.get()
        if me is not None and me is not self.check:
            raise AbandonedError

    def trainer(
        self, service: tinker.ServiceClient | None = None, **options: Any
    ) -> tinker.TrainingClient:
        """A client with a new adapter on attention and MLP, of `service` or of a session of its
        own."""
        options = {"rank": self.rank, "seed": 1, "train_unembed": False, **options}
        service = service or self.own_session()
        return self._made(service.create_lora_training_client(self.model, **options))

    @cached_property
    def shared(self) -> tinker.ServiceClient:
        """The session of the adapters that checks share; `service` may be that of a run."""
        return sdk.session_beside(self.service) or self.service

    def own_session(self) -> tinker.ServiceClient:
        """A session that ends with the check, or with the next `release`."""
        self._go_on()
        session = sdk.session_beside(self.service)
        if session is None:
            return self.service
        self.opened.append(session)
        return session

    def _made(self, client: Any) -> Any:
        try:
            return self.wait(client)
        except Exception as error:
            if says_full(str(error)):
                raise FullError(str(error)) from error
            raise

    def release(self) -> None:
        """Give back the adapters of the check's own sessions."""
        ended, self.opened = self.opened, []
        for one in ended:
            with contextlib.suppress(Exception):  # a server without such a call keeps them
                one.close("success").result(timeout=RELEASE_S)

    def save(self, client: tinker.TrainingClient, what: str, **options: Any) -> str:
        """Save the client's state and return its path; it is deleted when all checks are done."""
        path = str(self.wait(client.save_state(self.name(what), overwrite=True, **options)).path)
        self.saved.append(path)
        return path

    def clean_up(self) -> None:
        """Delete what was saved, which costs money on a hosted server; give back all adapters."""
        for path in dict.fromkeys(self.saved):
            with contextlib.suppress(Exception):
                self.wait(self.rest.delete_checkpoint_from_tinker_path(path))
        self.saved.clear()
        if "shared" in vars(self) and self.shared is not self.service:
            self.opened.append(self.shared)
        self.release()

    @cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer, where this machine can load it."""
        try:
            if (folder := Path(models.resolve(self.model))).is_dir():
                return load_tokenizer(str(folder))
            return self.fresh.get_tokenizer()
        except Exception as error:
            raise UnsupportedError(f"its tokenizer cannot be loaded here: {error}") from None

    @cached_property
    def fresh(self) -> tinker.TrainingClient:
        """An adapter that no check trains."""
        return self.trainer(self.shared)

    @cached_property
    def trained(self) -> tinker.TrainingClient:
        """An adapter after one step, for checks that save it."""
        client = self.trainer(self.shared)
        self.step(client, [self.datum()])
        return client

    @cached_property
    def sampler(self) -> tinker.SamplingClient:
        """A client that samples from the base model."""
        return self.wait(self.service.create_sampling_client(base_model=self.model))

    def resume(self, path: str, *, optimizer: bool) -> tinker.TrainingClient:
        """A client made from a saved state, of a session of its own."""
        service = self.own_session()
        create = (
            service.create_training_client_from_state_with_optimizer
            if optimizer
            else service.create_training_client_from_state
        )
        return self._made(create(path))

    def name(self, what: str) -> str:
        """A name for a checkpoint that nobody else takes."""
        return f"probe-{what}-{uuid.uuid4().hex[:8]}"

    def datum(self, start: int = 0, length: int = 10, **inputs: Any) -> types.Datum:
        """`length` tokens from the `start`-th on and what follows each, weighted 1 by default."""
        from tinker import types

        ids = (TOKENS * (2 + (start + length) // len(TOKENS)))[start : start + length + 1]
        return types.Datum(
            model_input=types.ModelInput.from_ints(ids[:-1]),
            loss_fn_inputs={"target_tokens": ids[1:], **(inputs or {"weights": [1.0] * length})},
        )

    def prompt(self, start: int = 0, length: int = 8) -> types.ModelInput:
        """A prompt of `length` tokens."""
        from tinker import types

        return types.ModelInput.from_ints(TOKENS[start : start + length])

    def params(self, **options: Any) -> types.SamplingParams:
        """How to sample: 8 tokens, whatever they are."""
        from tinker import types

        return types.SamplingParams(**{"max_tokens": 8, "stop": [], **options})

    def sample(self, count: int = 1, prompt: Any = None, **options: Any) -> list[list[int]]:
        """The tokens of `count` samples from the base model."""
        asked = self.sampler.sample(prompt or self.prompt(), count, self.params(**options))
        return [list(one.tokens) for one in self.wait(asked).sequences]

    def adam(self, **options: Any) -> types.AdamParams:
        """Adam at a rate that shows after one step."""
        from tinker import types

        return types.AdamParams(**{"learning_rate": 1e-2, **options})

    def step(
        self,
        client: tinker.TrainingClient,
        data: list[types.Datum],
        loss: Any = "cross_entropy",
        config: dict[str, float] | None = None,
        **adam: Any,
    ) -> Any:
        """One pass and one step, both sent before either is waited for; the pass's result."""
        passed = client.forward_backward(data, loss, config)
        stepped = client.optim_step(self.adam(**adam))
        return self.wait_all(passed, stepped)[0]

    def logprobs(self, client: tinker.TrainingClient, start: int = 0) -> list[float]:
        """What the client's weights give the tokens of `datum(start)`."""
        return self.arrays(self.wait(client.forward([self.datum(start)], "cross_entropy")))[0]

    @staticmethod
    def arrays(output: Any) -> list[list[float]]:
        """The log-probabilities that came back, a list for each datum."""
        return [list(out["logprobs"].data) for out in output.loss_fn_outputs]


def _cancel(asked: Iterable[Any]) -> None:
    for one in asked:
        if hasattr(one, "result"):
            (one.future() if hasattr(one, "future") else one).cancel()


def total(output: Any) -> float:
    """The loss that came back, a sum over tokens."""
    if "loss:sum" not in output.metrics:
        raise UnsupportedError("its answer has no metric loss:sum")
    return float(output.metrics["loss:sum"])


def agree(got: Any, want: Any, what: str, tolerance: float = TOLERANCE) -> None:
    """Raise `UnsupportedError` unless two numbers, or two lists of them, are close."""
    pairs = list(zip(got, want, strict=True)) if isinstance(got, list) else [(got, want)]
    worst = max((abs(a - b) / max(1.0, abs(b)) for a, b in pairs), default=0.0)
    if not worst <= tolerance:  # NaN included
        raise UnsupportedError(f"{what}: off by {worst:.2g}")


def differ(got: list[float], want: list[float], what: str) -> None:
    """Raise `UnsupportedError` if two lists of numbers are the same."""
    if not max(abs(a - b) for a, b in zip(got, want, strict=True)) > 1e-4:
        raise UnsupportedError(what)


def expect(condition: bool, what: str) -> None:
    """Raise `UnsupportedError` with what is wrong."""
    if not condition:
        raise UnsupportedError(what)
