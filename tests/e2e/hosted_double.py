"""`ptl serve --like hosted` in a process of its own, and clients of it."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path

import tinker

from tests.e2e.test_serve import read_exports, serve


@contextlib.contextmanager
def double(home: Path, *options: str) -> Iterator[dict[str, str]]:
    """What it exports. It ends well, and without a traceback."""
    process = serve("--port=0", "--log-level=warning", "--like=hosted", f"--home={home}", *options)
    yield read_exports(process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert process.stderr is not None
    assert "Traceback" not in process.stderr.read()


def service_of(hosted: dict[str, str]) -> tinker.ServiceClient:
    return tinker.ServiceClient(
        base_url=hosted["TINKER_BASE_URL"], api_key=hosted["TINKER_API_KEY"]
    )


def rest_of(hosted: dict[str, str]) -> tinker.RestClient:
    return tinker.RestClient(base_url=hosted["TINKER_BASE_URL"], api_key=hosted["TINKER_API_KEY"])
