"""Clients of a server: its address and key, what it serves, and how a session with it ends."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from posttrain_recipes import sdk
from posttrain_recipes.errors import PtlError
from posttrain_recipes.options import without_password
from posttrain_recipes.plugin import Offer, OpenAIRoutes
from posttrain_recipes.waiting import in_thread

if TYPE_CHECKING:
    import tinker

ROUTES_SECONDS = 10.0
"""How long a server may take to say whether it has OpenAI's routes."""
CLOSE_SECONDS = 5.0
"""How long the end of a session is waited for."""


def offers(served: Sequence[tinker.SupportedModel]) -> dict[str, Offer]:
    """What the models of a server's capabilities are served for, by name."""
    named = sorted((one for one in served if one.model_name), key=lambda one: one.model_name)
    return {
        one.model_name: Offer(one.max_context_length, one.trainable, one.sampleable)
        for one in named
    }


@contextmanager
def session(service: tinker.ServiceClient, alive: Callable[[], bool]) -> Iterator[None]:
    """Tell the engine how the session ended: an open one would send heartbeats for ever."""
    status: Literal["success", "errored", "interrupted"] = "success"
    try:
        yield
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    except BaseException:
        status = "errored"
        raise
    finally:
        closing = in_thread(lambda: service.close(status).result())
        if alive():
            with contextlib.suppress(Exception):  # nothing depends on it
                closing.result(timeout=CLOSE_SECONDS)


def key_of(api_key: str) -> str:
    """A key as it is sent: that of a variable where it names one. Raises PtlError."""
    if api_key.startswith("${env:"):
        name = api_key[len("${env:") : -1]
        value = os.environ.get(name)
        if not value:
            raise PtlError(
                f"the environment variable {name} is not set",
                hint=f"export {name}=... (keys: https://tinker-console.thinkingmachines.ai), or "
                "use 'engine: local', which needs none",
                code="not-set",
            )
        api_key = value
    if not (api_key.isascii() and api_key.isprintable()):
        raise PtlError(
            "the engine's api_key has characters that no request can carry",
            hint="look at the variable that it is read from: is there a line too many?",
            code="bad-key",
        )
    return api_key


def answering(routes: OpenAIRoutes) -> OpenAIRoutes | None:
    """The routes where the server knows them; None where it does not, or does not answer."""
    request = Request(
        f"{routes.base_url}/models", headers={"Authorization": f"Bearer {routes.api_key}"}
    )
    try:
        with urlopen(request, timeout=ROUTES_SECONDS):
            return routes
    except (OSError, HTTPException):  # what it answers with an error is the first
        return None


def check_address(base_url: str | None) -> None:
    """Raise PtlError where the environment's address holds a password: it is shown when the server
    does not answer. That of a recipe was checked with it."""
    try:
        without_password(base_url or os.environ.get("TINKER_BASE_URL", ""))
    except ValueError as error:
        raise PtlError(f"TINKER_BASE_URL {error}", code="wrong-value") from None


def clients(base_url: str | None, api_key: str) -> tuple[tinker.ServiceClient, tinker.RestClient]:
    """Clients of the SDK, quiet and kept off proxies where the engine is on this machine."""
    host = urlsplit(base_url).hostname if base_url else None
    if host in ("127.0.0.1", "localhost", "::1"):
        for variable in ("NO_PROXY", "no_proxy"):
            hosts = [h for h in os.environ.get(variable, "").split(",") if h]
            os.environ[variable] = ",".join(dict.fromkeys([*hosts, host]))
        os.environ.setdefault("TINKER_TELEMETRY", "0")
    sdk.check_names()
    import tinker

    # Whatever it logs as an error it also raises, and then it is told once.
    logging.getLogger("tinker").setLevel(logging.CRITICAL)
    return (
        tinker.ServiceClient(base_url=base_url, api_key=api_key),
        tinker.RestClient(base_url=base_url, api_key=api_key),
    )
