"""Which record types can stand in for which: one file serves training and evals alike."""

from __future__ import annotations

import re
from typing import Any

from posttrain_recipes.errors import UsageError
from posttrain_recipes.records import (
    Conversation,
    Labelled,
    Message,
    Messages,
    Preference,
    Prompt,
    Record,
    tools_of,
)

REPLY = "answer"
"""Where a prompt's metadata keeps the whole reply that its answer was taken from."""


def final_answer(text: str) -> str:
    """What stands after `####` on the last line, as in GSM8K; the whole text where that is none.

    A heading is written so too (`#### Step 1`), so that no other line may begin with it.
    """
    text = text.strip()
    if "####" not in text:
        return text
    lines = re.split(r"\r\n?|\n", text)
    last = lines[-1]
    marked = [line for line in lines if line.startswith("####")]
    if marked != [last] or last.startswith("#####"):
        return text
    return last.removeprefix("####").strip()


def can_become(have: type[Record], wanted: tuple[type[Record], ...]) -> type[Record] | None:
    """The first of `wanted` that records of type `have` can be handed over as."""
    if same := next((record for record in wanted if issubclass(have, record)), None):
        return same
    swaps = {Conversation: Prompt, Prompt: Conversation, Preference: Labelled}
    other = swaps.get(have)
    return other if other in wanted else None


def expand(record: Record, wanted: type[Record]) -> tuple[Record, ...]:
    """`record` as one or more of `wanted`: a preference is a good and a bad reply.

    Raises:
        UsageError: it cannot be; the message names the record.
    """
    if isinstance(record, Preference) and wanted is Labelled:
        return tuple(
            Labelled(
                prompt=record.prompt,
                completion=reply,
                label=label,
                source=f"{record.source} ({which})",
            )
            for which, reply, label in (
                ("chosen", record.chosen, True),
                ("rejected", record.rejected, False),
            )
        )
    return (convert(record, wanted),)


def convert(record: Record, wanted: type[Record]) -> Record:
    """`record` as `wanted`; nothing of it is lost but what was thought before a reference answer.

    Raises:
        UsageError: it cannot be; the message names the record.
    """
    if isinstance(record, wanted):
        return record
    if isinstance(record, Conversation) and wanted is Prompt:
        *before, last = record.messages
        if not before:
            raise UsageError(
                f"{record.source}: is a reply alone, and leaves no prompt", code="wrong-data"
            )
        if last.tool_calls:
            raise UsageError(
                f"{record.source}: ends with a call of a tool, and a reference answer is text",
                hint="evaluate such records with 'nll', or leave them out",
                code="wrong-data",
            )
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
        raise UsageError(
            f"{record.source}: a prompt without an answer cannot be imitated", code="wrong-data"
        )
    raise UsageError(
        f"{record.source}: is a {type(record).__name__}, not a {wanted.__name__}",
        hint="'ptl data check' tells which lines differ from the first",
        code="wrong-data",
    )


def conversations(record: Record) -> tuple[Messages, ...]:
    """The conversations of a record, each as a model is shown it; none of a task."""
    match record:
        case Conversation() | Prompt():
            return (record.messages,)
        case Preference():
            return (record.prompt + record.chosen, record.prompt + record.rejected)
        case Labelled():
            return (record.prompt + record.completion,)
    return ()


def as_row(record: Record) -> dict[str, Any]:
    """`record` as a row of a JSONL file, which the dataset `jsonl` reads back as the same record.

    Raises:
        TypeError: it is of none of the record types.
    """

    def turns(messages: Messages) -> list[dict[str, Any]]:
        return [
            {**message.as_dict(), **({} if message.weight is None else {"weight": message.weight})}
            for message in messages
        ]

    def tools(messages: Messages) -> dict[str, Any]:
        known = tools_of(messages)
        return {"tools": known} if known else {}

    match record:
        case Conversation():
            return {"messages": turns(record.messages), **tools(record.messages)}
        case Preference():
            names = ("prompt", "chosen", "rejected")
            return {**{n: turns(getattr(record, n)) for n in names}, **tools(record.prompt)}
        case Labelled():
            asked, reply = turns(record.prompt), turns(record.completion)
            label = {"label": record.label}
            return {"prompt": asked, "completion": reply, **label, **tools(record.prompt)}
        case Prompt():
            answer = record.metadata.get(REPLY, record.answer)
            others = {key: value for key, value in record.metadata.items() if key != REPLY}
            known = {} if answer is None else {"answer": answer}
            told = turns(record.messages)
            # A field that is called so may be among those for rewards.
            name = "question" if "prompt" in others else "prompt"
            return {**others, name: told, **known, **tools(record.messages)}
    raise TypeError(f"{type(record).__name__} is no record type")
