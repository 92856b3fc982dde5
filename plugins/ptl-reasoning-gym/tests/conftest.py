"""What is said once in a process is said again in every test."""

from importlib.util import find_spec

import pytest
from ptl_reasoning_gym import datasets, rewards


@pytest.fixture(autouse=True)
def _nothing_was_said() -> None:
    datasets._said.clear()
    rewards._told.clear()


if find_spec("reasoning_gym") is None:
    collect_ignore_glob = ["test_*.py"]
