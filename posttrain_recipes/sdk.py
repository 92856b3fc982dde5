"""The SDK `tinker` that is installed: whether it is one that this program works with, and all that
is used of it without being public. A new version of the SDK is a matter of this file."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from posttrain_recipes.errors import PtlError

if TYPE_CHECKING:
    import tinker

OLDEST, BEFORE = (0, 38), (0, 39)
"""The versions that this program works with: from the first on, below the second."""
SINCE = {
    "RestClient": "asks servers what they can do",
    "ServiceClient.close": "tells a server how a session ended",
    "SampledProvenanceSpan": "says which tokens were sampled",
    "types.DimuonOptimizerConfig": "names optimizers",
}
"""What older ones lack, and what for it is used: how a version is told whose number says nothing,
as one that was built from source."""


def check() -> None:
    """Raise PtlError where the SDK is none that this program works with. Does not import it."""
    wanted = f"tinker>={_dotted(OLDEST)},<{_dotted(BEFORE)}"
    hint = f"pip install '{wanted}'"
    try:
        version = importlib.metadata.version("tinker")
    except importlib.metadata.PackageNotFoundError:
        raise PtlError(
            "the SDK 'tinker' is not installed", hint=hint, code="missing-package"
        ) from None
    found = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if found < OLDEST:
        why = f"it needs {wanted}: older ones lack what {', and what '.join(SINCE.values())}"
    elif found >= BEFORE:
        why = f"it needs {wanted}, and was not tried with what came later"
    else:
        return
    raise PtlError(
        f"this version of ptl does not work with tinker {version}, which is installed",
        why=why,
        hint=f"{hint}; programs with another SDK can use 'ptl serve' from an environment of their "
        "own",
        code="wrong-version",
    )


def check_names() -> None:
    """Raise PtlError where the SDK lacks what is used of it. Imports it."""
    import tinker

    missing = []
    for name, purpose in SINCE.items():
        found: object = tinker
        for part in name.split("."):
            found = getattr(found, part, None)
        if found is None:
            missing.append(f"{name}, which {purpose}")
    if missing:
        raise PtlError(
            "the SDK 'tinker' that is installed lacks what is used of it",
            why="; ".join(missing),
            hint=f"pip install 'tinker>={_dotted(OLDEST)},<{_dotted(BEFORE)}'",
            code="wrong-version",
        )


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


def address(base_url: str | None) -> str:
    """The address that the SDK's clients talk to: that which is given, or the environment's, or
    that of hosted Tinker."""
    from tinker.lib.base_url import resolve_base_url

    return str(resolve_base_url(base_url))


def console(uri: str) -> str:
    """Where hosted Tinker shows the training that a `tinker://` path is of."""
    from tinker.lib.console_urls import training_run_console_url

    return str(training_run_console_url(uri.removeprefix("tinker://").partition("/")[0]))


def session_beside(service: tinker.ServiceClient) -> tinker.ServiceClient | None:
    """A client of the same server with a session of its own; None where `service` does not tell
    which that is."""
    import tinker

    if not isinstance(service, tinker.ServiceClient):
        return None
    return tinker.ServiceClient(base_url=service._base_url, api_key=service._api_key)


def no_longer_known(error: Exception) -> bool:
    """Whether an error says that a server does not know a request that it had accepted (410)."""
    from tinker.lib.retryable_exception import RetryableException

    return isinstance(error, RetryableException)


@contextmanager
def pauses_told_after(seconds: float) -> Iterator[None]:
    """Have the SDK's log tell of a paused queue after so many seconds, within this context. By
    itself it waits for a quarter of an hour."""
    from tinker.lib import queue_state_logger

    before = queue_state_logger.PAUSE_GRACE_PERIOD
    queue_state_logger.PAUSE_GRACE_PERIOD = seconds
    try:
        yield
    finally:
        queue_state_logger.PAUSE_GRACE_PERIOD = before
