"""64 clients of the SDK, 16 adapters and a minute: nothing is lost, and nothing out of order.

What only time shows, memory and long waits, is measured by `python benchmarks/soak.py`.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.nightly
@pytest.mark.parametrize("faults", ["0", "5"])
def test_many_clients_at_once(faults: str) -> None:
    """With `faults` that many percent of requests are dropped, delayed or doubled on their way."""
    done = subprocess.run(
        [sys.executable, "benchmarks/soak.py", "--minutes", "0.4", "--faults", faults],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = dict(line.rsplit(None, 1) for line in done.stdout.splitlines() if "  " in line)
    # How many there are says how busy the machine is: some of each have to be.
    assert int(told["training steps"]) > 20
    assert int(told["requests for samples"]) > 20
    assert (int(told["requests that were hit"]) > 10) == (faults != "0")
