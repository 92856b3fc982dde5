"""Options that are marked as changing no result leave the weights as they are, to the bit."""

from __future__ import annotations

from typing import Annotated

import pytest
from pydantic import Field

from posttrain_recipes import registry
from posttrain_recipes.methods.sft import SFT
from posttrain_recipes.plugin import Affects, hookimpl
from posttrain_recipes.testing import working
from tests.conftest import Install


class Lying(SFT):
    """Imitates, with a learning rate that it says changes nothing."""

    name = "lying"

    class Config(SFT.Config):
        """Options."""

        learning_rate: Annotated[float, Affects.NOTHING] = Field(default=5e-4, gt=0)
        """Peak learning rate."""


def complaints(name: str, **options: object) -> list[str]:
    entry = registry.load().get("method", name)
    quick = {"max_steps": 2, **options}
    with working._bench(entry, quick) as bench:
        first = bench.run(working._EventLog())
        assert bench.weights(first)
        return [*working._changes_no_weight(entry, quick, bench, [first])]


@pytest.mark.nightly
def test_what_is_shown_saved_or_retried_changes_no_weight() -> None:
    assert complaints("grpo", group_size=2, max_tokens=4) == []


@pytest.mark.nightly
def test_an_option_that_does_is_told(install: Install) -> None:
    @hookimpl
    def ptl_methods() -> list[type]:
        return [Lying]

    install("acme", "1.0", {"ptl_methods": ptl_methods, "PTL_API": 1})
    (told,) = complaints("lying")
    assert told.startswith("option 'learning_rate' is marked as changing no result")
