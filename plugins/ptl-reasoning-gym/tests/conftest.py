"""What is said once in a process is said again in every test."""

import pytest
from ptl_reasoning_gym import datasets, rewards


@pytest.fixture(autouse=True)
def _nothing_was_said() -> None:
    datasets._said.clear()
    rewards._told.clear()
