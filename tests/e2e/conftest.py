"""What whole runs share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests import forks


@pytest.fixture
def quick_engines() -> Iterator[None]:
    """Engines start in a tenth of the time, but are not to be found by their command line."""
    with forks.engines():
        yield


@pytest.fixture(scope="module")
def quiet_sdk() -> Iterator[None]:
    """The SDK asks no proxy for an address of this machine, and reports to nobody."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1,localhost")
        patch.setenv("TINKER_TELEMETRY", "0")
        yield
