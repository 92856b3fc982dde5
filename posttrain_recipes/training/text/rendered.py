"""What models read of a record, in tokens: the same that methods make of it to train on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from posttrain_recipes.plugin import (
    Conversation,
    Labelled,
    Message,
    PluginConfig,
    Preference,
    Prompt,
    Record,
    Rendered,
    Renderer,
)
from posttrain_recipes.training.text.examples import learned_whole, tokenize, with_answers


def prompt(messages: Sequence[Message], renderer: Renderer, what: str = "") -> Rendered:
    """A prompt as it is sampled from."""
    return Rendered(renderer.prompt(messages), (), tuple(messages), what)


def learned(
    messages: Sequence[Message], renderer: Renderer, config: PluginConfig, what: str = ""
) -> Rendered:
    """A conversation as it is learned from, with the options of `config` that bound it.

    Raises:
        UsageError: as `tokenize`.
    """
    options: dict[str, Any] = {"train_on": getattr(config, "train_on", "last")}
    messages = with_answers(messages, getattr(config, "tool_weight", 0.0))
    whole = len(renderer.supervised(messages, options["train_on"])[0])
    if (bound := getattr(config, "max_length", None)) is not None:
        # Evals have no such option: they cut what is longer.
        options["truncate"] = getattr(config, "truncate", True)
    example = tokenize(messages, renderer, max_length=bound or whole, **options)
    cut = whole - len(example.tokens)
    note = f"its last {cut:,} tokens are cut off, at max_length={bound}" if cut else ""
    return Rendered(example.tokens, example.weights, tuple(messages), what, note)


def of_record(record: Record, renderer: Renderer, config: PluginConfig) -> list[Rendered]:
    """What is usual for records of a type; nothing for a task, which is played.

    Raises:
        UsageError: the record cannot be used.
    """
    match record:
        case Conversation():
            return [learned(record.messages, renderer, config)]
        case Preference():
            return [
                learned(learned_whole(record.prompt, reply), renderer, config, which)
                for which, reply in (("chosen", record.chosen), ("rejected", record.rejected))
            ]
        case Labelled():
            reply = learned_whole(record.prompt, record.completion)
            verdict = "a good reply" if record.label else "a bad reply"
            return [learned(reply, renderer, config, verdict)]
        case Prompt():
            return [prompt(record.messages, renderer)]
    return []
