"""Judges that a recipe names: weights behind a sampler, or an OpenAI-compatible endpoint.

What a judge said is kept on disk by content (the judge, the question, the attempt), so that a
question is paid for once, also over runs.
"""

from __future__ import annotations

import hashlib
import json
import math
import sqlite3
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import Field, model_validator

from posttrain_recipes.errors import PtlError
from posttrain_recipes.options import Address
from posttrain_recipes.plugin import (
    Affects,
    ModelRef,
    PluginConfig,
    Reward,
    RewardContext,
    Waiter,
)
from posttrain_recipes.records import Messages
from posttrain_recipes.training.judges import verdicts
from posttrain_recipes.training.judges.judge import How, Judge, ModelJudge

if TYPE_CHECKING:
    import httpx

BACKOFF = 0.5
"""Seconds before the second try of a request that failed for a while; doubled for each more."""
TRIES = 5
"""How often a request is sent before there is no answer."""


class Endpoint(PluginConfig):
    """An OpenAI-compatible server of chat completions."""

    base_url: Address
    """Where it is, as https://api.example.com/v1."""
    model: str
    """The name of the model there."""
    api_key: Annotated[str, Affects.NOTHING] = Field(default="", repr=False)
    """Its key, as ${env:JUDGE_API_KEY}."""
    timeout: Annotated[float, Affects.COST] = Field(default=60.0, gt=0)
    """Seconds to wait for an answer."""
    concurrency: Annotated[int, Affects.COST] = Field(default=16, ge=1)
    """Requests at a time."""


class GradingConfig(PluginConfig):
    """Options of rewards that ask a judge."""

    judge: ModelRef | None = None
    """The judge's weights, as {stage: rm} or {model: ptl/tiny}."""
    endpoint: Endpoint | None = None
    """A judge behind an OpenAI-compatible endpoint, in place of `judge`."""
    score: How = "logits"
    """Read the judge's log-odds of the two verdicts, or let it write and find the verdict."""
    max_tokens: int = Field(default=256, ge=1)
    """Longest text of the judge."""
    retries: Annotated[int, Affects.COST] = Field(default=2, ge=0)
    """How often a text without a verdict is asked for again before it counts as missing."""
    cache: Annotated[bool, Affects.COST] = True
    """Keep verdicts on disk, so that a question is asked once."""

    @model_validator(mode="after")
    def _one_judge(self) -> Self:
        if self.judge and self.endpoint:
            raise ValueError("has both 'judge' and 'endpoint'; keep one of them")
        return self


class GradedReward(Reward):
    """A reward that asks a judge."""

    config: GradingConfig

    @property
    def needs(self) -> Sequence[str]:
        """What the judge needs of the engine; nothing where it is an endpoint."""
        if self.config.endpoint is not None:
            return ()
        return verdicts.NEEDS if self.config.score == "logits" else ("sample",)


def open_judge(config: GradingConfig, context: RewardContext) -> Judge:
    """The judge of a reward; the recipe's untrained model where none is named."""
    judge: Judge
    if config.endpoint is not None:
        judge = EndpointJudge(config.endpoint, context.wait, max_tokens=config.max_tokens)
        who = f"{config.endpoint.base_url} {config.endpoint.model}"
    else:
        served = context.resolve(config.judge or ModelRef(stage="base"))
        judge = ModelJudge(served, context.wait, max_tokens=config.max_tokens, seed=context.seed)
        who = served.identity or served.checkpoint.sampler_uri or served.checkpoint.base_model
    if not config.cache or context.cache is None:
        return judge
    return CachedJudge(judge, f"{who} {config.max_tokens}", context.cache / VERDICTS)


# --- an endpoint ---------------------------------------------------------------------------------


class EndpointJudge:
    """A `Judge` behind `POST /chat/completions`; requests run beside each other."""

    def __init__(self, endpoint: Endpoint, wait: Waiter, *, max_tokens: int) -> None:
        import httpx

        self.endpoint = endpoint
        self.wait = wait
        self.max_tokens = max_tokens
        headers = {"Authorization": f"Bearer {endpoint.api_key}"} if endpoint.api_key else {}
        self.client = httpx.Client(headers=headers, timeout=endpoint.timeout)
        self.pool = ThreadPoolExecutor(endpoint.concurrency, "judge")

    def texts(self, questions: Sequence[Messages], attempt: int) -> list[str | None]:
        """At temperature 0 the first time, at 1 with another seed after that."""
        options = {
            "max_tokens": self.max_tokens,
            "temperature": 1.0 if attempt else 0.0,
            "seed": attempt,
        }
        return [
            None if choice is None else str(choice["message"]["content"] or "")
            for choice in self._ask(questions, options)
        ]

    def log_odds(
        self, questions: Sequence[Messages], first: str, second: str
    ) -> list[float | None]:
        """From the likeliest 20 first tokens; a word that is not among them counts as the last of
        them, and with neither there is no verdict."""
        options = {"max_tokens": 1, "temperature": 0.0, "logprobs": True, "top_logprobs": 20}
        return [
            None if choice is None else _odds(choice, first, second)
            for choice in self._ask(questions, options)
        ]

    def _ask(
        self, questions: Sequence[Messages], options: dict[str, Any]
    ) -> list[dict[str, Any] | None]:
        futures: list[Future[dict[str, Any] | None]] = [
            self.pool.submit(self._send, question, options) for question in questions
        ]
        return [self.wait(future) for future in futures]

    def _send(self, question: Messages, options: dict[str, Any]) -> dict[str, Any] | None:
        """The first choice; None where the endpoint gave no usable answer in `TRIES` tries.

        Raises:
            PtlError: it refuses the key or the request, which no further try would change, or
                nothing accepts connections there.
        """
        import httpx

        url = f"{self.endpoint.base_url.rstrip('/')}/chat/completions"
        body = {
            "model": self.endpoint.model,
            "messages": [message.as_dict() for message in question],
            **options,
        }
        for number in range(TRIES):
            if number:
                time.sleep(BACKOFF * 2 ** (number - 1))
            try:
                response = self.client.post(url, json=body)
            except httpx.ConnectError as error:
                if number < TRIES - 1:
                    continue
                raise PtlError(
                    f"the judge at {self.endpoint.base_url} cannot be reached",
                    why=str(error) or type(error).__name__,
                    hint="start it, or check 'base_url' of its 'endpoint'",
                    code="server-failed",
                ) from None
            except httpx.TransportError:
                continue
            if response.status_code == 429 or response.status_code >= 500:
                continue
            if response.status_code >= 400:
                raise PtlError(
                    f"the judge at {self.endpoint.base_url} refused a request: "
                    f"{response.status_code} {response.reason_phrase}",
                    why=_reason(response),
                    hint="check 'base_url', 'model' and 'api_key' of its 'endpoint'",
                    code="server-failed",
                )
            try:
                choice = response.json()["choices"][0]
            except (ValueError, KeyError, IndexError, TypeError):
                continue
            if isinstance(choice, dict) and isinstance(choice.get("message"), dict):
                return choice
        return None


def _reason(response: httpx.Response) -> str | None:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return response.text[:200] or None


def _odds(choice: dict[str, Any], first: str, second: str) -> float | None:
    try:
        top = choice["logprobs"]["content"][0]["top_logprobs"]
        told = [(str(one["token"]).strip().lower(), float(one["logprob"])) for one in top]
    except (KeyError, IndexError, TypeError, ValueError):
        return None
    mass = {
        word: sum(math.exp(logprob) for token, logprob in told if token == word.lower())
        for word in (first, second)
    }
    if not any(mass.values()):
        return None
    least = math.exp(min(logprob for _, logprob in told))
    return math.log(mass[first] or least) - math.log(mass[second] or least)


# --- what was said before ------------------------------------------------------------------------


VERDICTS = "verdicts.sqlite"
"""The file of a cache in which answers of judges are kept."""


def copy_verdicts(cache: Path, to: Path) -> None:
    """Copy the answers that are kept in a cache, which others may add to meanwhile."""
    if (cache / VERDICTS).is_file():
        to.parent.mkdir(parents=True, exist_ok=True)
        with (
            closing(sqlite3.connect(cache / VERDICTS, timeout=30)) as kept,
            closing(sqlite3.connect(to)) as copy,
        ):
            kept.backup(copy)


def add_verdicts(cache: Path, of: Path) -> None:
    """Add answers that `copy_verdicts` copied to those of a cache."""
    if of.is_file():
        CachedJudge.create(cache / VERDICTS)
        with closing(sqlite3.connect(cache / VERDICTS, timeout=30)) as kept:
            kept.execute("ATTACH ? AS other", (str(of),))
            with kept:
                kept.execute("INSERT OR IGNORE INTO verdicts SELECT * FROM other.verdicts")


class CachedJudge:
    """A `Judge` whose answers are kept in an SQLite file; missing ones are not.

    `misses` counts the questions that had to be asked.
    """

    def __init__(self, judge: Judge, who: str, path: Path) -> None:
        self.judge = judge
        self.who = who
        self.path = path
        self.misses = 0
        self.create(path)

    @staticmethod
    def create(path: Path) -> None:
        """Make the file, unless it is there."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path, timeout=30)) as db, db:
            db.execute("CREATE TABLE IF NOT EXISTS verdicts (key TEXT PRIMARY KEY, said TEXT)")

    def texts(self, questions: Sequence[Messages], attempt: int) -> list[str | None]:
        """Those that were asked before, and the judge's for the others."""
        return self._remembered(
            questions, ["text", attempt], lambda some: self.judge.texts(some, attempt)
        )

    def log_odds(
        self, questions: Sequence[Messages], first: str, second: str
    ) -> list[float | None]:
        """Those that were asked before, and the judge's for the others."""
        return self._remembered(
            questions,
            ["odds", first, second],
            lambda some: self.judge.log_odds(some, first, second),
        )

    def _remembered(
        self,
        questions: Sequence[Messages],
        kind: list[Any],
        ask: Callable[[Sequence[Messages]], Sequence[Any]],
    ) -> list[Any]:
        keys = [self._key(kind, question) for question in questions]
        with closing(self._connect()) as db:
            known = {
                key: json.loads(said)
                for key in dict.fromkeys(keys)
                for (said,) in db.execute("SELECT said FROM verdicts WHERE key = ?", (key,))
            }
        new = {key: q for key, q in zip(keys, questions, strict=True) if key not in known}
        if new:
            self.misses += len(new)
            said = dict(zip(new, ask(list(new.values())), strict=True))
            rows = [(key, json.dumps(one)) for key, one in said.items() if one is not None]
            with closing(self._connect()) as db, db:
                db.executemany("INSERT OR REPLACE INTO verdicts VALUES (?, ?)", rows)
            known |= said
        return [known[key] for key in keys]

    def _connect(self) -> sqlite3.Connection:
        # A connection for each call: rewards are asked from several threads, and processes.
        return sqlite3.connect(self.path, timeout=30)

    def _key(self, kind: list[Any], question: Messages) -> str:
        text = json.dumps([self.who, kind, [message.as_dict() for message in question]])
        return hashlib.sha256(text.encode()).hexdigest()
