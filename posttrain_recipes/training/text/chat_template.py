"""Messages to tokens and back through a tokenizer's own chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from posttrain_recipes.errors import PtlError, UsageError
from posttrain_recipes.records import Message
from posttrain_recipes.training.text.vocabulary import Vocabulary


class ChatRenderer:
    """A `Renderer` over `tokenizer.apply_chat_template`.

    What the assistant wrote is found as the difference between the conversation rendered up to
    its turn and through it, so any template whose rendering only grows can be trained on.

    Raises:
        PtlError: the tokenizer has no chat template.
    """

    def __init__(self, tokenizer: Any) -> None:
        if not tokenizer.chat_template:
            raise PtlError(
                f"the tokenizer of {tokenizer.name_or_path} has no chat template",
                hint="use an instruction-tuned model, or add chat_template to its tokenizer config",
            )
        self._tokenizer = tokenizer
        self._ends = _ends(tokenizer)

    @property
    def stop(self) -> list[int]:
        """Token ids that end a reply."""
        return self._ends

    @property
    def vocabulary(self) -> Vocabulary:
        """What its tokenizer makes of text."""
        return Vocabulary.of(self._tokenizer)

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Token ids (P,) that end where the assistant begins to write."""
        return self._render(messages, generation=True)

    def supervised(
        self, messages: Sequence[Message], train_on: str = "last"
    ) -> tuple[list[int], list[float]]:
        """Token ids (N,) and 0/1 weights (N,), 1 on the assistant's words and their end token.

        Raises:
            UsageError: no assistant message to learn, or a template that renders a conversation
                differently once it goes on.
        """
        turns = [i for i, m in enumerate(messages) if m.role == "assistant"]
        if not turns:
            raise UsageError("there is no assistant message to learn from")
        if train_on == "last":
            turns = turns[-1:]
        tokens = self._render(messages[: turns[-1] + 1], generation=False)
        tokens = self._without_tail(tokens)
        weights = [0.0] * len(tokens)
        for turn in turns:
            begin = self._render(messages[:turn], generation=True)
            through = self._without_tail(self._render(messages[: turn + 1], generation=False))
            if tokens[: len(begin)] != begin or tokens[: len(through)] != through:
                raise UsageError(
                    "this model's chat template rewrites earlier turns, so the assistant's words "
                    "cannot be told apart",
                    hint="train on the last message only, or on single-turn conversations",
                )
            weights[len(begin) : len(through)] = [1.0] * (len(through) - len(begin))
        return tokens, weights

    def length(self, messages: Sequence[Message]) -> int:
        """Tokens of a prompt, or of a conversation through what the assistant said last."""
        if messages[-1].role != "assistant":
            return len(self._render(messages, generation=True))
        return len(self._without_tail(self._render(messages, generation=False)))

    def parse(self, tokens: Sequence[int]) -> str:
        """The reply as text, without the tokens that end it."""
        kept = list(tokens)
        while kept and kept[-1] in self._ends:
            kept.pop()
        return self._tokenizer.decode(kept, skip_special_tokens=True).strip()

    def decode(self, tokens: Sequence[int]) -> str:
        """Token ids (N,) as text, special tokens included."""
        return self._tokenizer.decode(list(tokens), skip_special_tokens=False)

    def _render(self, messages: Sequence[Message], *, generation: bool) -> list[int]:
        try:
            text = self._tokenizer.apply_chat_template(
                [m.as_dict() for m in messages],
                tokenize=False,
                add_generation_prompt=generation,
                enable_thinking=False,
            )
        except Exception as error:  # a template is a program of the model's author
            raise UsageError(
                "the model's chat template refuses this conversation", why=str(error)
            ) from None
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def _without_tail(self, tokens: list[int]) -> list[int]:
        """Cut what a template writes after the last end token: nobody ever generates it."""
        for length in range(len(tokens), max(0, len(tokens) - 4), -1):
            if tokens[length - 1] in self._ends:
                return tokens[:length]
        return tokens


def _ends(tokenizer: Any) -> list[int]:
    ends = {tokenizer.eos_token_id}
    for token in ("<|im_end|>", "<|eot_id|>", "<end_of_turn>"):
        token_id = tokenizer.convert_tokens_to_ids(token)
        if isinstance(token_id, int) and token_id != tokenizer.unk_token_id:
            ends.add(token_id)
    return sorted(token for token in ends if token is not None)


def load_renderer(location: str) -> ChatRenderer:
    """The renderer of the model at `location`, a directory or a hub id.

    Raises:
        PtlError: the tokenizer cannot be loaded.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(location)
    except Exception as error:  # transformers raises OSError, ValueError, hub errors, ...
        raise PtlError(
            f"cannot load the tokenizer of {location}",
            why=str(error).strip().split("\n")[0],
            hint="check the model's name and the network, or use a local directory",
        ) from None
    return ChatRenderer(tokenizer)
