"""What `ptl explain` says of a curve is said of curves that there are."""

from __future__ import annotations

from pathlib import Path

import pytest

import posttrain_recipes
from posttrain_recipes.reporting import metric_words
from tests.conftest import Ptl

PACKAGE = Path(posttrain_recipes.__file__).parent


def test_every_metric_is_logged_somewhere() -> None:
    files = [f for room in ("training", "methods") for f in (PACKAGE / room).rglob("*.py")]
    text = "".join(file.read_text(encoding="utf-8") for file in files)
    assert [name for name in metric_words.METRICS if f'"{name}"' not in text] == []


@pytest.mark.parametrize("word", ["zero-var", "zero_variance_share", "groups/zero_variance_share"])
def test_a_curve_is_explained_by_any_of_its_names(ptl: Ptl, word: str) -> None:
    said = ptl("explain", word)
    assert said.code == 0
    assert said.out.startswith("groups/zero_variance_share, a curve of training")
    assert "They teach nothing" in " ".join(said.out.split())
