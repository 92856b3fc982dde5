"""Which record types can stand in for which: one file serves training and evals alike."""

from __future__ import annotations

from posttrain_recipes.errors import UsageError
from posttrain_recipes.records import Conversation, Message, Prompt, Record

REPLY = "answer"
"""Where a prompt's metadata keeps the whole reply that its answer was taken from."""


def final_answer(text: str) -> str:
    """What stands after the last `####`, as in GSM8K; the whole text where there is none."""
    return text.rpartition("####")[2].strip()


def can_become(have: type[Record], wanted: tuple[type[Record], ...]) -> type[Record] | None:
    """The first of `wanted` that records of type `have` can be handed over as."""
    if have in wanted:
        return have
    swaps = {Conversation: Prompt, Prompt: Conversation}
    other = swaps.get(have)
    return other if other in wanted else None


def convert(record: Record, wanted: type[Record]) -> Record:
    """`record` as `wanted`; nothing of it is lost.

    Raises:
        UsageError: it cannot be; the message names the record.
    """
    if isinstance(record, wanted):
        return record
    if isinstance(record, Conversation) and wanted is Prompt:
        *before, last = record.messages
        if last.role == "assistant":
            return Prompt(
                messages=tuple(before),
                answer=final_answer(last.content) or last.content.strip(),
                metadata={REPLY: last.content},
                source=record.source,
            )
    if isinstance(record, Prompt) and wanted is Conversation:
        reply = record.metadata.get(REPLY, record.answer)
        if isinstance(reply, str):
            return Conversation(
                messages=(*record.messages, Message("assistant", reply)), source=record.source
            )
        raise UsageError(f"{record.source}: a prompt without an answer cannot be imitated")
    raise UsageError(
        f"{record.source}: is a {type(record).__name__}, not a {wanted.__name__}",
        hint="'ptl data check' tells which lines differ from the first",
    )
