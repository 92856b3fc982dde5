"""Instructions before a prompt: put there, and taken off again."""

from __future__ import annotations

from posttrain_recipes.records import Message, Messages


def instructed(messages: Messages, system: str) -> Messages:
    """The prompt with instructions before it; they come first in a system message it has."""
    if messages and messages[0].role == "system":
        return (Message("system", f"{system}\n\n{messages[0].content}"), *messages[1:])
    return (Message("system", system), *messages)


def without_instructions(messages: Messages) -> Messages:
    """The prompt without its system message."""
    return messages[1:] if messages and messages[0].role == "system" else messages
