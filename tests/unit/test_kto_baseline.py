"""Whose reply each record of kto borrows for its baseline."""

from __future__ import annotations

import pytest

from posttrain_recipes.methods.kto import mismatched
from posttrain_recipes.plugin import Labelled, Message


def labelled_as(*said: str) -> list[Labelled]:
    """`a1`: the reply `1` to the prompt `a`."""
    return [
        Labelled(
            prompt=(Message("user", text[0]),),
            completion=(Message("assistant", text[1:]),),
            label=True,
        )
        for text in said
    ]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "said", ["a1 a2 b1 b2 c1 c2 d1", "a1 b1", "a1 a2 a3 b1 c1 c2", "a1 a2 b1 b2"]
)
def test_kto_borrows_each_reply_once_of_another_prompt(said: str, seed: int) -> None:
    records = labelled_as(*said.split())
    borrowed = mismatched(records, seed)
    assert sorted(borrowed) == list(range(len(records)))
    assert all(records[i].prompt != records[j].prompt for i, j in enumerate(borrowed))


def test_kto_borrows_whatever_the_order_of_the_rows_and_by_the_seed() -> None:
    records = labelled_as(*(f"{prompt}{reply}" for prompt in "abcdefgh" for reply in "12"))
    turned = records[5:] + records[:5]

    def pairs(rows: list[Labelled], seed: int) -> set[tuple[Labelled, Labelled]]:
        return {(rows[i], rows[j]) for i, j in enumerate(mismatched(rows, seed))}

    assert pairs(records, 0) == pairs(turned, 0)
    assert pairs(records, 0) != pairs(records, 1)
    # Both replies of every prompt are in the baseline, not its first one twice.
    assert len({j for _, j in pairs(records, 0)}) == 16


def test_kto_of_a_prompt_with_most_of_the_records_borrows_in_turn() -> None:
    records = labelled_as("a1", "a2", "a3", "a4", "a5", "b1", "c1")
    borrowed = mismatched(records, 0)
    assert all(records[i].prompt != records[j].prompt for i, j in enumerate(borrowed))
    assert {borrowed.count(place) for place in (5, 6)} <= {2, 3}
