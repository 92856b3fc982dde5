"""What the fields of a row come to: the record of each form."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from posttrain_recipes.conversion import REPLY, final_answer
from posttrain_recipes.datasets.faults import RowError
from posttrain_recipes.datasets.messages import FRAME, Row, framed, is_given, kind, text, turns
from posttrain_recipes.datasets.numbers import is_number
from posttrain_recipes.records import (
    Conversation,
    Labelled,
    Message,
    Messages,
    Preference,
    Prompt,
    Record,
)

_HH_TURN = re.compile(r"\n\n(Human|Assistant):")

# --- parts of a record ---------------------------------------------------------------------------


def _ends_with_reply(messages: Messages, name: str) -> Messages:
    if not any(message.role == "assistant" for message in messages):
        raise RowError(
            f"'{name}' has no assistant message; add the reply to learn, or name the field "
            "'prompt' if there is none"
        )
    if messages[-1].role != "assistant":
        raise RowError(
            f"'{name}' ends with the {messages[-1].role}; add the assistant's reply, or remove "
            "what follows the last one"
        )
    return messages


def _asks(value: Any, name: str) -> Messages:
    messages = turns(value, name, "user")
    if messages[-1].role == "assistant":
        raise RowError(f"'{name}' ends with the assistant; it must end where a reply is wanted")
    return messages


def _reply(value: Any, name: str, prompt: Messages) -> Messages:
    messages = turns(value, name, "assistant")
    if messages[: len(prompt)] == prompt and len(messages) > len(prompt):
        messages = messages[len(prompt) :]  # some data repeats the prompt in front of the reply
    if messages[0].role != "assistant":
        raise RowError(
            f"'{name}' begins with the {messages[0].role}; it must be the assistant's reply, or "
            "repeat 'prompt' exactly before it"
        )
    return _ends_with_reply(messages, name)


def _whole(value: Any, name: str) -> Messages:
    """A whole conversation: messages, or text with `Human:` and `Assistant:` turns as in HH."""
    if isinstance(value, str):
        before, *parts = _HH_TURN.split(value)
        if before.strip() or not parts:
            raise RowError(
                f"'{name}' is text and there is no 'prompt'; add 'prompt', or write whole "
                "conversations as lists of messages"
            )
        value = [
            {"role": "user" if who == "Human" else "assistant", "content": said.strip()}
            for who, said in zip(parts[::2], parts[1::2], strict=True)
        ]
    return _ends_with_reply(turns(value, name), name)


# --- records -------------------------------------------------------------------------------------


def conversation(name: str) -> Callable[[Row, str], Record]:
    """A conversation whose turns stand under `name`."""

    def make(row: Row, source: str) -> Record:
        messages = _ends_with_reply(turns(row[name], name), name)
        return Conversation(source=source, messages=framed(row, messages))

    return make


def pair(reply: str) -> Callable[[Row, str], Record]:
    """A prompt and its reply."""

    def make(row: Row, source: str) -> Record:
        prompt = _asks(row["prompt"], "prompt")
        messages = prompt + _reply(row[reply], reply, prompt)
        return Conversation(source=source, messages=framed(row, messages))

    return make


def alpaca(row: Row, source: str) -> Record:
    """An instruction, perhaps with an input, and its output."""
    return Conversation(source=source, messages=framed(row, _alpaca(row)))


def _alpaca(row: Row) -> Messages:
    asked = text(row["instruction"], "'instruction'")
    if is_given(row.get("input")):
        asked += "\n\n" + text(row["input"], "'input'")
    return (Message("user", asked), Message("assistant", text(row["output"], "'output'")))


def prompt(name: str) -> Callable[[Row, str], Record]:
    """A prompt, perhaps with an answer; other fields are its metadata."""

    def make(row: Row, source: str) -> Record:
        messages = _asks(row[name], name)
        own = (name, "answer", *FRAME)
        metadata = {key: value for key, value in row.items() if key not in own}
        answer = None
        if "answer" in row:
            value = row["answer"]
            if isinstance(value, float) and not math.isfinite(value):
                raise RowError(f"'answer' is {value}, which is no number; write it, or null")
            whole = str(value) if is_number(value) else text(value, "'answer'")
            answer = final_answer(whole)
            if not answer:
                raise RowError("'answer' has nothing after '####'; write the final answer there")
            if answer != whole:
                metadata[REPLY] = whole
        return Prompt(
            source=source, messages=framed(row, messages), answer=answer, metadata=metadata
        )

    return make


def preference(asked: str) -> Callable[[Row, str], Record]:
    """What stands under `asked`, with two replies."""

    def make(row: Row, source: str) -> Record:
        prompt = _asks(row[asked], asked)
        chosen, rejected = (_reply(row[name], name, prompt) for name in ("chosen", "rejected"))
        return _preference(source, framed(row, prompt), chosen, rejected)

    return make


def whole_preference(row: Row, source: str) -> Record:
    """Two whole conversations that part at a reply."""
    chosen, rejected = (_whole(row[name], name) for name in ("chosen", "rejected"))
    if chosen == rejected:
        raise RowError("'chosen' and 'rejected' are the same; there is nothing to prefer")
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    if not prompt or prompt[-1].role == "assistant":
        raise RowError(
            "'chosen' and 'rejected' differ before the reply; they must be the same conversation "
            "up to an assistant message"
        )
    if chosen[0].role != "assistant" or rejected[0].role != "assistant":
        raise RowError("'chosen' and 'rejected' must part at an assistant message")
    return _preference(source, framed(row, prompt), chosen, rejected)


def _preference(source: str, prompt: Messages, chosen: Messages, rejected: Messages) -> Preference:
    if chosen == rejected:
        raise RowError("'chosen' and 'rejected' are the same; there is nothing to prefer")
    return Preference(
        source=source,
        prompt=_only_read(prompt),
        chosen=_learned_whole(chosen),
        rejected=_learned_whole(rejected),
    )


def labelled(reply: str) -> Callable[[Row, str], Record]:
    """A reply to a prompt, with a verdict."""

    def make(row: Row, source: str) -> Record:
        prompt = _asks(row["prompt"], "prompt")
        completion = _reply(row[reply], reply, prompt)
        return _labelled(row, source, framed(row, prompt + completion), len(completion))

    return make


def labelled_conversation(name: str) -> Callable[[Row, str], Record]:
    """A conversation whose last message has a verdict."""

    def make(row: Row, source: str) -> Record:
        messages = _ends_with_reply(turns(row[name], name), name)
        if len(messages) == 1:
            raise RowError(f"'{name}' is a reply alone; write what it replies to before it")
        return _labelled(row, source, framed(row, messages), 1)

    return make


def labelled_alpaca(row: Row, source: str) -> Record:
    """An instruction and its output, with a verdict."""
    return _labelled(row, source, framed(row, _alpaca(row)), 1)


def _labelled(row: Row, source: str, messages: Messages, reply: int) -> Labelled:
    label = row["label"]
    if not isinstance(label, bool):
        raise RowError(
            f"'label' is {kind(label)}; write true (good) or false (bad), or leave the field out "
            "where it is no verdict on the reply"
        )
    prompt, completion = _only_read(messages[:-reply]), _learned_whole(messages[-reply:])
    return Labelled(source=source, prompt=prompt, completion=completion, label=label)


def _only_read(prompt: Messages) -> Messages:
    """A prompt of replies with a verdict, none of which is learned: it says so, or nothing."""
    if any(message.weight for message in prompt):
        raise RowError(
            "has a message of the prompt that is to be learned ('weight' or 'train'), and only "
            "replies are; remove it"
        )
    return _unweighted(prompt)


def _learned_whole(reply: Messages) -> Messages:
    """A reply with a verdict, all of which is learned: it says so, or nothing."""
    if any(message.weight == 0 for message in reply):
        raise RowError(
            "has a message that is not to be learned ('weight' or 'train'), and its replies are "
            "learned whole; remove it"
        )
    return _unweighted(reply)


def _unweighted(messages: Messages) -> Messages:
    if all(message.weight is None for message in messages):
        return messages
    return tuple(replace(message, weight=None) for message in messages)
