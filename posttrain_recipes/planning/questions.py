"""What a record asks and what it is, as digests: test splits and the check for overlap go by them.

A question is the same whatever is replied to it, whatever the system prompt before it and however
its white space is set: what was trained on with another reply is not held out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from json.encoder import encode_basestring
from typing import Any

from posttrain_recipes.conversion import as_row
from posttrain_recipes.planning.depends import as_json, digest, digest_of_json
from posttrain_recipes.records import (
    Conversation,
    Labelled,
    Message,
    Preference,
    Prompt,
    Record,
    Task,
)


def question_of(record: Record) -> str | None:
    """The digest of the question that a record begins with; None where that cannot be known.

    Of a conversation it is what stands before the first reply, which all later turns go on from;
    of a prompt, a preference and a labelled reply the whole prompt, whose earlier replies may be
    examples; of a task its prompt, where it has one, or else all of it.
    """
    return next(questions_of(record), None)


def questions_of(record: Record) -> Iterator[str]:
    """The digests of all that a record has a reply to: of a conversation one before each reply."""
    if isinstance(record, Task):
        prompt = next((part for part in _parts(record) if isinstance(part, Prompt)), None)
        known = content_of(record) if prompt is None else question_of(prompt)
        yield from () if known is None else (known,)
        return
    none = True
    for asked in filter(None, _prompts(record)):
        none = False
        yield _question(asked)
    if none:  # a text without a question
        yield digest(as_row(record))


def content_of(record: Record) -> str | None:
    """The digest of all of a record but where it was read; None where that cannot be known."""
    if not isinstance(record, Task):
        return digest(as_row(record))
    try:
        return digest(_plain(record))
    except TypeError:
        return None


def _prompts(record: Record) -> Iterator[Sequence[Message]]:
    match record:
        case Conversation():
            for place, message in enumerate(record.messages):
                if message.role == "assistant":
                    yield record.messages[:place]
        case Prompt():
            yield record.messages
        case Preference() | Labelled():
            yield record.prompt


def _question(prompt: Sequence[Message]) -> str:
    """Without the system prompt, unless that is all there is."""
    asked = [message for message in prompt if message.role != "system"] or prompt
    turns = []
    for message in asked:
        said = " ".join(message.content.split())
        if message.tool_calls:
            calls = [call.as_dict() for call in message.tool_calls]
            turns.append(as_json([message.role, said, calls]))
        else:  # a million times where a large file is split
            turns.append(f'["{message.role}", {encode_basestring(said)}, null]')
    return digest_of_json(f"[[{', '.join(turns)}]]")


def _parts(record: Record) -> list[Any]:
    return [getattr(record, field.name) for field in fields(record)]


def _plain(value: Any) -> Any:
    """A value as JSON holds it, `source` left out.

    Raises:
        TypeError: an object of which only its own code knows what it is.
    """
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, Mapping):
        return [[_plain(key), _plain(one)] for key, one in value.items()]
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, set | frozenset):
        return sorted((_plain(one) for one in value), key=digest)
    if is_dataclass(value) and not isinstance(value, type):
        kept = [field.name for field in fields(value) if field.name != "source"]
        return [type(value).__qualname__, *(_plain(getattr(value, name)) for name in kept)]
    raise TypeError(f"{type(value).__name__} is not plain")
