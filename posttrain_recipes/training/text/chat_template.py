"""Messages to tokens and back through a tokenizer's own chat template."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from posttrain_recipes.errors import PtlError, TooLongError, UsageError
from posttrain_recipes.options import AS_EVER, RendererConfig
from posttrain_recipes.pretrained import in_a_line, load_tokenizer
from posttrain_recipes.records import Message, tools_of
from posttrain_recipes.training.text import jinja, model_files
from posttrain_recipes.training.text.dialects import arguments_as_text, reasoning_key
from posttrain_recipes.training.text.left_out import left_out, marked, stripped
from posttrain_recipes.training.text.model_files import NO_LIMITS, ModelLimits
from posttrain_recipes.training.text.turns import (
    ReplySpan,
    Template,
    answered,
    chosen,
    common,
    shared,
)
from posttrain_recipes.training.text.vocabulary import Vocabulary

log = logging.getLogger(__name__)

REMEMBERED = 1 << 16
"""Prompts that are not looked at again."""
_OTHER_PROMPT = (
    "this model's chat template shows a reply after another beginning than a sampled one has, so "
    "that it is learned after a prompt that sampling does not use"
)
_NO_OPENING = "this model's chat template has no generation prompt"
_STRIPS = (
    "this model's chat template strips white space at the ends of messages: what is read and "
    "learned of them has none"
)
_UNREADABLE = "\ue000"
"""Put into a control token's text so that no template or tokenizer reads it as one."""


class ChatRenderer:
    """A `Renderer` over `tokenizer.apply_chat_template`.

    What the assistant wrote is found in the text that the template makes (see `turns`), and is
    learned together with the token that ends it. A conversation of which the template leaves a part
    out is refused.

    Args:
        ends: token ids that end a reply by the model's generation config.
        limits: what the model can read.

    Raises:
        PtlError: the tokenizer has no chat template, or one that cannot be used.
    """

    def __init__(
        self,
        tokenizer: Any,
        options: RendererConfig | None = None,
        ends: Sequence[int] = (),
        limits: ModelLimits = NO_LIMITS,
    ) -> None:
        jinja.check(tokenizer.chat_template, tokenizer.name_or_path)
        self._tokenizer = tokenizer
        self._limits = limits
        self._options = options or AS_EVER
        self._variables = self._options.variables
        self._reasoning_key = reasoning_key(tokenizer.chat_template)
        added = tokenizer.added_tokens_decoder.items()
        self._added: dict[str, int] = {token.content: number for number, token in added}
        self._told: set[str] = set()
        self._checked: set[tuple[Message, ...]] = set()
        self._shapes: dict[tuple[Message, ...], str | None] = {}
        self._ends: list[int] = []  # nothing is said yet that could look like one
        self._parts = False
        self._template = Template(self._text)
        self._parts = self._wants_parts()
        self._end, self._ends = self._ending(ends)

    @property
    def stop(self) -> list[int]:
        """Token ids that end a reply: what the template writes after one, the tokenizer's end of a
        sequence, and what the model's generation config names."""
        return self._ends

    @property
    def eos(self) -> int | None:
        """The tokenizer's end of a sequence."""
        end: int | None = self._tokenizer.eos_token_id
        return end

    @property
    def told(self) -> frozenset[str]:
        """What is odd about the template, as far as conversations showed it: logged once each."""
        return frozenset(self._told)

    @property
    def special(self) -> dict[int, str]:
        """Tokens that stand for no text of their own, such as those that begin and end a turn, by
        id, with their names."""
        return {number: name for name, number in self._added.items()}

    @property
    def vocabulary(self) -> Vocabulary:
        """What its tokenizer makes of text."""
        return Vocabulary.of(self._tokenizer)

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Token ids (P,) that end where the assistant begins to write.

        Raises:
            UsageError: the template refuses the conversation, or leaves a part of it out.
        """
        tokens = self._encode(self.check(messages))
        self._refuse_long(tokens)
        return tokens

    @property
    def context(self) -> int | None:
        """The longest sequence that the model reads, in tokens; None where that is not known."""
        return self._limits.context

    @property
    def rows(self) -> int | None:
        """Rows of the model's embedding; None where its config does not say."""
        return self._limits.vocabulary

    @cached_property
    def frame(self) -> int:
        """Characters that the template writes around a conversation, such as a system prompt."""
        try:
            return len(self._text((Message("user", "a"), Message("assistant", "b")), False))
        except UsageError:  # it wants something else of conversations: not known, so a large one
            return 4096

    def check(self, messages: Sequence[Message]) -> str:
        """A prompt as text. Raises `UsageError` as `prompt` does, which makes tokens of it."""
        text = self._text(messages, generation=True)
        key = tuple(messages)
        if key not in self._checked:  # a prompt is asked again and again
            self._refuse_left_out(messages, (), text)
            if len(self._checked) >= REMEMBERED:  # episodes make new ones without end
                self._checked.clear()
            self._checked.add(key)
        # A token is a character at least, but for the few that are more than one.
        if self.context is not None and len(text) > self.context:
            self._refuse_long(self._encode(text))
        return text

    def _refuse_long(self, tokens: Sequence[int]) -> None:
        if self.context is not None and len(tokens) >= self.context:
            raise TooLongError(
                f"{len(tokens)} tokens leave no room for a reply in the model's context of "
                f"{self.context}",
                hint="shorten or remove the record, or use a model that reads more",
            )

    def supervised(
        self, messages: Sequence[Message], train_on: str = "last"
    ) -> tuple[list[int], list[float]]:
        """Token ids (N,) and weights (N,), 1 on the assistant's words and their end token.

        Messages that have a weight of their own, of the assistant or of a tool, are learned as it
        says; of the assistant's others, `train_on` takes the `last` or `all`.

        Raises:
            UsageError: no assistant message to learn, or one that this template cannot show.
        """
        spoken = [i for i, m in enumerate(messages) if m.role == "assistant"]
        if not spoken:
            raise UsageError("there is no assistant message to learn from", code="nothing-to-learn")
        messages = messages[: spoken[-1] + 1]
        learned, answers = chosen(messages, spoken, train_on), answered(messages)
        if not learned and not answers:
            raise UsageError(
                "its messages are all of weight 0, so that there is nothing to learn",
                code="nothing-to-learn",
            )
        text = self._text(messages, generation=False)
        self._refuse_left_out(messages, learned, text)
        turns = []
        for index in sorted({*learned, *answers}):
            weight = messages[index].weight
            one = self._turn if index in learned else self._template.answer
            turns.append((one(messages, index, text), 1.0 if weight is None else weight))
        return self._weighted(text, turns, closes=spoken[-1:] == learned[-1:])

    def added(self, messages: Sequence[Message], train_on: str = "last") -> list[tuple[str, str]]:
        """What the template writes around the parts of a conversation: (where, text), in order.

        A prompt ends where the assistant begins to write, a conversation with its last reply, as
        `prompt` and `supervised` do. The parts have marks in their places, so that nothing of them
        is taken for the template's.

        Raises:
            UsageError: the template refuses marks: it looks into what is said.
        """
        spoken = [i for i, m in enumerate(messages) if m.role == "assistant"]
        asks = messages[-1].role != "assistant"
        learned = [] if asks else chosen(messages, spoken, train_on)
        shape, parts = marked(messages, learned, self._options.thinking == "keep")
        text = self._text(shape, generation=asks)
        end = None if asks else self._last_end(text, 0)
        if end is not None:
            text = text[: end.end()]
        found: list[tuple[str, str]] = []
        places = sorted((text.index(mark), mark) for mark in parts if mark in text)
        at = 0
        for place, mark in places:
            found.append((f"before {parts[mark].removeprefix('a part of ')}", text[at:place]))
            at = place + len(mark)
        rest = text[at:]
        if asks:
            asked = self._text(shape, generation=False)
            begins = common(asked, text) - at
            found.append(("after the last message", rest[: max(0, begins)]))
            found.append(("where the assistant begins", rest[max(0, begins) :]))
        elif end is not None:  # else nothing of it is learned
            found.append(("after the last reply", rest))
        return [(where, written) for where, written in found if written]

    def length(self, messages: Sequence[Message]) -> int:
        """Tokens of a prompt, or of a conversation through what the assistant said last."""
        if messages[-1].role != "assistant":
            return len(self._encode(self._text(messages, generation=True)))
        text = self._text(messages, generation=False)
        found = self._last_end(text, 0)
        return len(self._encode(text[: found.end()] if found else text))

    def parse(self, tokens: Sequence[int]) -> str:
        """The reply as text: without the tokens that end it, other special tokens, and the white
        space around it. `raw` has all of that but the end."""
        return self._tokenizer.decode(self._open(tokens), skip_special_tokens=True).strip()

    def raw(self, tokens: Sequence[int]) -> str:
        """The reply as it was written, special tokens and white space included, up to its end."""
        return self.decode(self._open(tokens))

    def again(self, text: str) -> str:
        """A text after it was tokens: the same, unless the tokenizer loses a part of it."""
        return self.decode(self._tokens(text))

    def written(self, text: str, *, ended: bool) -> list[int]:
        """The tokens of a reply with this text, and with `ended` the one that ends it."""
        end = [self._end] if ended and self._end is not None else []
        return self._encode(self._without_control(text)) + end

    def decode(self, tokens: Sequence[int]) -> str:
        """Token ids (N,) as text, special tokens included."""
        return self._tokenizer.decode(list(tokens), skip_special_tokens=False)

    def _open(self, tokens: Sequence[int]) -> list[int]:
        """A reply without the tokens that end it."""
        kept = list(tokens)
        while kept and kept[-1] in self._ends:
            kept.pop()
        return kept

    # --- text ------------------------------------------------------------------------------------

    def _text(self, messages: Sequence[Message], generation: bool) -> str:
        turns = [self._as_template_wants(message) for message in messages]
        tools = self._plain(tools_of(messages))
        try:
            try:
                return self._rendered(turns, tools, generation)
            except TypeError:
                if not any(message.tool_calls for message in messages):
                    raise
                # Some templates write a call's arguments as they are, and want their text.
                return self._rendered(arguments_as_text(turns), tools, generation)
        except Exception as error:  # a template is a program of the model's author
            raise UsageError(
                "the model's chat template refuses this conversation",
                why=str(error),
                code="chat-template",
            ) from None

    def _rendered(self, turns: list[dict[str, Any]], tools: list[Any], generation: bool) -> str:
        return str(
            self._tokenizer.apply_chat_template(
                turns,
                **({"tools": tools} if tools else {}),
                tokenize=False,
                add_generation_prompt=generation,
                **self._variables,
            )
        )

    def _as_template_wants(self, message: Message) -> dict[str, Any]:
        turn = message.as_dict()
        if "tool_calls" in turn:
            turn["tool_calls"] = self._plain(turn["tool_calls"])
        said = self._without_control(message.content)
        turn["content"] = [{"type": "text", "text": said}] if self._parts else said
        if "reasoning_content" in turn:
            turn[self._reasoning_key] = self._without_control(turn.pop("reasoning_content"))
        return turn

    def _wants_parts(self) -> bool:
        """Whether the template reads content as a list of parts, as those of models that see do."""
        try:
            self._template.after((Message("user", "a"), Message("assistant", "b")), 1)
        except UsageError:
            self._parts = True
            try:
                self._template.after((Message("user", "a"), Message("assistant", "b")), 1)
            except UsageError:
                return False
        return self._parts

    def _refuse_left_out(
        self, messages: Sequence[Message], learned: Sequence[int], text: str
    ) -> None:
        read = text.replace(_UNREADABLE, "")
        keep = self._options.thinking == "keep"
        lost = left_out(messages, read, learned, keep) or self._unshown(messages, learned, keep)
        if lost is None:
            if stripped(messages, read):
                self._tell(_STRIPS)
            return
        hint = "remove it from the data, or use a model whose template shows it"
        if lost.startswith("changes"):
            hint = "have 'renderer: {chat_template: FILE}' name one that writes it as it is"
        if "thought" in lost and self._options.thinking == "off":
            hint = f"set 'renderer: {{thinking: on}}', or {hint}"
        if "message" in lost and len(learned) > 1:
            hint = f"train on the last message only ('train_on: last'), or {hint}"
        raise UsageError(f"the model's chat template {lost}", hint=hint, code="chat-template")

    def _unshown(
        self, messages: Sequence[Message], learned: Sequence[int], keep: bool
    ) -> str | None:
        """What the template leaves out of every conversation of this shape; None where nothing."""
        if not any(m.role in ("system", "tool") or m.tools or m.tool_calls for m in messages):
            return None
        shape, parts = marked(messages, learned, keep)
        key = tuple(shape)
        if key not in self._shapes:
            asks = messages[-1].role != "assistant"
            try:
                text = self._text(shape, generation=asks)
            except UsageError:  # it looks into what is said, and refuses the marks
                text = "".join(parts)
            self._shapes[key] = next((mark for mark in parts if mark not in text), None)
        lost = self._shapes[key]
        return None if lost is None else f"leaves out {parts[lost]}"

    # --- tokens ----------------------------------------------------------------------------------

    @cached_property
    def _control(self) -> re.Pattern[str]:
        """The texts of control tokens, and of those that end a reply."""
        tokens = self._tokenizer.added_tokens_decoder.items()
        control = {t.content for number, t in tokens if t.special or number in self._ends}
        return _any_of(control | set(self._tokenizer.all_special_tokens))

    def _without_control(self, text: str) -> str:
        """A control token in what somebody says is text, and no turn of its own."""
        return self._control.sub(lambda found: found[0][0] + _UNREADABLE + found[0][1:], text)

    def _plain(self, value: Any) -> Any:
        """The same for every text within a value of JSON."""
        if isinstance(value, str):
            return self._without_control(value)
        if isinstance(value, dict):
            return {self._plain(key): self._plain(held) for key, held in value.items()}
        return [self._plain(held) for held in value] if isinstance(value, list) else value

    def _encode(self, text: str) -> list[int]:
        tokens = self._tokens(text)
        rows = self._limits.vocabulary
        if rows is not None and tokens and (most := max(tokens)) >= rows:
            raise UsageError(
                f"the tokenizer makes token {most} ({self._tokenizer.decode([most])!r}) of this, "
                f"and the model's embedding ends at {rows - 1}",
                hint="resize the model's embedding to its tokenizer, or take out what was added",
                code="bad-model",
            )
        return tokens

    def _tokens(self, text: str) -> list[int]:
        if _UNREADABLE not in text:
            return list(self._tokenizer.encode(text, add_special_tokens=False))
        tokens: list[int] = []
        at = 0
        for found in re.finditer(f".{_UNREADABLE}", text, re.DOTALL):
            said = self._control.match(text[found.start()] + text[found.end() :])
            if said is None:  # the data's own character
                continue
            tokens += self._tokenizer.encode(text[at : found.start()], add_special_tokens=False)
            tokens += self._tokenizer.encode(
                said[0], add_special_tokens=False, split_special_tokens=True
            )
            at = found.end() + len(said[0]) - 1
        return tokens + list(self._tokenizer.encode(text[at:], add_special_tokens=False))

    def _weighted(
        self, text: str, turns: Sequence[tuple[ReplySpan, float]], closes: bool
    ) -> tuple[list[int], list[float]]:
        """Tokens of `text` through the last turn, with the turns' weights on theirs.

        `closes`: that turn is the last of the conversation.
        """
        last = turns[-1][0]
        tokens = self._encode(text[: last.end])
        weights = [0.0] * len(tokens)
        for turn, weight in turns:
            begin = shared(tokens, prompt := self._encode(text[: turn.begin]))
            if begin < len(prompt) and turn is last:
                # The reply's first characters melted into a token of the prompt. Sampling starts
                # from the prompt's own tokens, so that training has to as well.
                reply = self._encode(text[turn.begin : turn.end])
                if self.decode(prompt + reply) == self.decode(tokens):
                    tokens, begin = prompt + reply, len(prompt)
                    weights = weights[:begin] + [0.0] * len(reply)
            through = tokens if turn is last else self._encode(text[: turn.end])
            end = shared(tokens, through)
            if begin < len(prompt):
                self._tell(_OTHER_PROMPT)
            weights[begin:end] = [weight] * (end - begin)
        if closes and not last.ended:
            self._tell(
                "this model's chat template ends a reply with no token"
                + (
                    f"; {self._tokenizer.decode([self._end])!r} is learned after the last one, and "
                    "ends it when the model is sampled"
                    if self._end is not None
                    else ", and the tokenizer has none: a reply goes on up to 'max_tokens'"
                )
            )
            if self._end is not None:
                tokens, weights = [*tokens, self._end], [*weights, turns[-1][1]]
        return tokens, weights

    def _turn(self, messages: Sequence[Message], index: int, text: str) -> ReplySpan:
        turn = self._template.turn(messages, index, text, self._end_at, self._last_end)
        if not turn.as_sampled:
            self._tell(_OTHER_PROMPT)
        if opening := self._template.opening:
            self._tell(f"{_NO_OPENING}: {opening!r} is learned and sampled as a part of each reply")
        return turn

    def _tell(self, what: str) -> None:
        if what not in self._told:
            self._told.add(what)
            log.warning("%s: %s", self._tokenizer.name_or_path, what)

    # --- ends ------------------------------------------------------------------------------------

    def _ending(self, more: Sequence[int]) -> tuple[int | None, list[int]]:
        """The token that ends a reply, and all that may."""
        eos = self._tokenizer.eos_token_id
        ends = {token for token in (eos, *more) if token is not None}
        added = _any_of(self._added)
        said = (Message("user", "a"), Message("assistant", "b"))
        own = None
        # In some families it is what begins the next message, which only their config tells.
        for messages in (said, (*said, Message("user", "c"))):
            try:
                found = added.match(self._template.after(messages, 1).lstrip())
            except UsageError:  # it wants something else of conversations
                break
            if own is None and found and (messages is said or self._added[found[0]] in ends):
                own = self._added[found[0]]
        self.__dict__.pop("_control", None)
        return (own if own is not None else eos), sorted({*ends, *([] if own is None else [own])})

    @cached_property
    def _end_texts(self) -> re.Pattern[str]:
        return _any_of(self._tokenizer.convert_ids_to_tokens(token) for token in self._ends)

    def _end_at(self, text: str, position: int) -> int | None:
        """Where the token that ends a reply ends, if it follows at `position`."""
        found = re.compile(rf"\s*(?:{self._end_texts.pattern})").match(text, position)
        return found.end() if found else None

    def _last_end(self, text: str, position: int) -> re.Match[str] | None:
        """The first token that ends the last reply of `text`: where sampling stops."""
        end = self._end_texts.pattern
        return re.compile(rf"(?:{end})(?=(?:\s|{end})*\Z)").search(text, position)


def _any_of(texts: Any) -> re.Pattern[str]:
    """Matches any of `texts`, the longest first; nothing, where there is none."""
    known = sorted(filter(None, texts), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, known)) or r"(?!)")


# --- where a model lies ---------------------------------------------------------------------------


def load_renderer(
    location: str, options: RendererConfig | None = None, context: int | None = None
) -> ChatRenderer:
    """The renderer of the model at `location`, a directory, a GGUF file or a hub id.

    Args:
        context: tokens of a sequence that a server reads, which may be fewer than the model does.

    Raises:
        PtlError: the tokenizer cannot be loaded.
    """
    if Path(location).is_dir() and not model_files.has_tokenizer(Path(location)):
        # transformers makes an empty one of the config's model type.
        raise PtlError(
            f"there is no tokenizer in {location}", hint=model_files.NO_TOKENIZER, code="bad-model"
        )
    try:
        tokenizer = load_tokenizer(location)
    except PtlError:
        raise
    except Exception as error:  # transformers raises OSError, ValueError, hub errors, ...
        raise PtlError(
            f"cannot load the tokenizer of {location}",
            why=in_a_line(error),
            hint="copy the model's files from its origin again"
            if Path(location).is_dir()
            else "check the model's name and the network, or use a local directory",
            code="bad-model",
        ) from None
    if options is not None and options.chat_template is not None:
        tokenizer.chat_template = options.chat_template
    limits = model_files.limits(location)
    if context is not None:
        limits = replace(limits, context=min(context, limits.context or context))
    return ChatRenderer(tokenizer, options, model_files.ends(location), limits)
