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
