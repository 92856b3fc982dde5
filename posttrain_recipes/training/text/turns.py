"""Where in a rendered conversation the assistant speaks, whatever the chat template does to it.

A template is a program: it may strip what was said, drop the thoughts of earlier turns, or write a
prompt that ends otherwise than the conversation goes on. So a turn is looked for in the text: the
prompt before it is rendered, and where that is not how the conversation begins, the conversation is
rendered again with a mark in the place of what was said.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from posttrain_recipes.errors import UsageError
from posttrain_recipes.records import Message

MARK = "\ue001\ue002\ue001"
"""A reply that no template changes and no data has."""


@dataclass(frozen=True)
class ReplySpan:
    """What the assistant wrote, as a slice of the text."""

    begin: int
    end: int
    """After the token that ends it, where there is one."""
    ended: bool
    """Whether there is one."""
    as_sampled: bool
    """Whether the text before it is the prompt that a reply is sampled from."""


@dataclass(frozen=True)
class Template:
    """A chat template as a function: (messages, generation) -> text. Raises `UsageError`."""

    render: Callable[[Sequence[Message], bool], str]

    def after(self, messages: Sequence[Message], index: int) -> str:
        """What stands after message `index`, an assistant's."""
        return self._around(messages, index)[1]

    @cached_property
    def opening(self) -> str:
        """What stands before a reply and not at the end of a prompt, where the template takes no
        notice of being asked for one."""
        asked = (Message("user", "a"),)
        try:
            prompt = self.render(asked, True)
            head, _ = self._around((*asked, Message("assistant", "b")), 1)
            if prompt == self.render(asked, False) and head.startswith(prompt):
                return head.removeprefix(prompt)
        except UsageError:  # it wants something else of conversations
            pass
        return ""

    def turn(
        self,
        messages: Sequence[Message],
        index: int,
        text: str,
        end_at: Callable[[str, int], int | None],
        last_end: Callable[[str, int], Any],
    ) -> ReplySpan:
        """Message `index` of a conversation that is rendered as `text`.

        Args:
            end_at: where a token that ends a reply ends, if it stands at a position of the text.
            last_end: a match of the one that ends the text, if there is one after a position.

        Raises:
            UsageError: the words cannot be told from what is around them.
        """
        # Nobody asks for a first message that is the assistant's, and few templates could.
        prompt = self.render(messages[:index], True) if index else ""
        begin, as_sampled = len(prompt), bool(index) and text.startswith(prompt)
        head = tail = None
        if not as_sampled:
            head, tail = self._around(messages, index)
            begin, as_sampled = self._begin(messages[:index], prompt, head)
            if not text.startswith(head[:begin]):
                raise UsageError(
                    "this reply does not begin where the model's chat template lets one begin",
                    hint="where it has thoughts ('<think>'), set 'renderer: {thinking: on}'",
                    code="chat-template",
                )
        through = text if index == len(messages) - 1 else self.render(messages[: index + 1], False)
        found = last_end(through, begin)
        if found and text.startswith(through[: found.end()]):
            return ReplySpan(begin, found.end(), True, as_sampled)
        if tail is None:
            _, tail = self._around(messages, index)
        end = len(text) - len(tail)
        if not text.endswith(tail) or end < begin:
            raise UsageError(
                "this model's chat template writes what follows a message otherwise for this one, "
                "so that it cannot be told where it ends",
                hint="train on the last message only",
                code="chat-template",
            )
        ended = end_at(text, end)
        return ReplySpan(begin, ended or end, ended is not None, as_sampled)

    def _begin(self, before: Sequence[Message], prompt: str, head: str) -> tuple[int, bool]:
        """Where a reply begins after `head`, and whether that ends as the prompt does."""
        if not before:
            return len(head), True
        asked = self.render(before, False)
        known = common(asked, prompt)
        opening = prompt[known:]
        at = head.rfind(opening) if opening else -1
        if at >= 0 and at >= common(asked, head):
            return at + len(opening), True
        return len(head), False

    def _around(self, messages: Sequence[Message], index: int) -> tuple[str, str]:
        """What stands before and after message `index` where it is a plain reply."""
        said = Message("assistant", MARK, tools=messages[index].tools)
        return self._split(messages, index, said, "the assistant says")

    def answer(self, messages: Sequence[Message], index: int, text: str) -> ReplySpan:
        """What a tool answered, message `index` of a conversation that is rendered as `text`.

        Raises:
            UsageError: its words cannot be told from what is around them.
        """
        said = replace(messages[index], content=MARK)
        head, tail = self._split(messages, index, said, "tools answer")
        end = len(text) - len(tail)
        if end < len(head) or not (text.startswith(head) and text.endswith(tail)):
            raise UsageError(
                "this model's chat template writes what surrounds a tool's answer by its words, so "
                "that it cannot be told where it begins and ends",
                hint="leave 'tool_weight' and weights of tools' messages out",
                code="chat-template",
            )
        return ReplySpan(len(head), end, ended=False, as_sampled=True)

    def _split(
        self, messages: Sequence[Message], index: int, marked: Message, what: str
    ) -> tuple[str, str]:
        text = self.render((*messages[:index], marked, *messages[index + 1 :]), False)
        head, mark, tail = text.partition(MARK)
        if not mark or MARK in tail:
            raise UsageError(
                f"this model's chat template does not show what {what}", code="chat-template"
            )
        return head, tail


def common(one: str, other: str) -> int:
    """The length of the longest beginning that two texts share."""
    length = min(len(one), len(other))
    if one[:length] == other[:length]:
        return length
    low, high = 0, length
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if one[:middle] == other[:middle] else (low, middle)
    return low


# --- which turns, and which tokens ---------------------------------------------------------------


def chosen(messages: Sequence[Message], spoken: Sequence[int], train_on: str) -> list[int]:
    """Which of the assistant's messages are learned."""
    learned = []
    for index in spoken:
        weight = messages[index].weight
        taken = train_on == "all" or index == spoken[-1]
        if taken if weight is None else weight:
            learned.append(index)
    return learned


def answered(messages: Sequence[Message]) -> list[int]:
    """Which answers of tools are learned: those that have a weight."""
    return [i for i, m in enumerate(messages) if m.role == "tool" and m.weight]


def shared(tokens: Sequence[int], others: Sequence[int]) -> int:
    """The length of the longest beginning that two sequences share."""
    length = min(len(tokens), len(others))
    if tokens[:length] == others[:length]:
        return length
    return next(i for i in range(length) if tokens[i] != others[i])
