"""A student's reply as a teacher with another tokenizer reads it: the same text in other tokens.

Both sequences of tokens are cut where both have a boundary in the text, as early as that is: so the
text falls into its smallest spans that are whole tokens of both. Of a span s the log-probability is
the sum over its tokens, and the reverse KL is a sum over spans,

    E[ sum_s ( log p(s) - log q(s) ) ],    log p(s) = sum_{t in s} log p(x_t),

whose gradient is a policy gradient with the advantage A_s = log q(s) - log p(s) at every token of
s. The log-probability of what came before a token in its span is no fault of that token, and has no
part in the expectation: token t has A_t = log q(s) - sum_{u in s, u >= t} log p(x_u). Where every
span is one token of both, that is log q(x_t) - log p(x_t).

Where one text may be written in several ways, the teacher reads the one that its tokenizer makes;
its other ways are left out, as the student's are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from posttrain_recipes.plugin import Message, Renderer, ServedModel
from posttrain_recipes.training.distill.on_policy import Attempt

if TYPE_CHECKING:
    import tinker

    from posttrain_recipes.plugin import Waiter

BROKEN = "\ufffd"
"""What bytes are decoded to that are no character, or not yet."""


@dataclass(frozen=True)
class SharedSpan:
    """A piece of text that is whole tokens of both: where they stand in each sequence."""

    ours: range
    theirs: range


@dataclass(frozen=True)
class TextPieces:
    """Tokens (T,) as text."""

    text: str
    """What they say, as far as they end a character."""
    ends: list[int | None]
    """Of each token, how many characters there are up to its end; None within a character."""

    @classmethod
    def of(cls, tokens: Sequence[int], decode: Callable[[Sequence[int]], str]) -> TextPieces:
        """Decoded a few tokens at a time, each with those before it, as they may share a
        character, and as some tokenizers leave out the space before a first one."""
        text, ends = "", list[int | None]()
        before = done = 0
        for end in range(1, len(tokens) + 1):
            known, now = decode(tokens[before:done]), decode(tokens[before:end])
            whole = now.startswith(known) and not now.endswith(BROKEN)
            if whole:
                text += now[len(known) :]
                before, done = done, end
            ends.append(len(text) if whole else None)
        return cls(text, ends)


def align(ours: TextPieces, theirs: TextPieces) -> list[SharedSpan]:
    """The smallest spans at whose ends both have a boundary, in order.

    What comes after the last such end is in none of them, and so is all from where the two texts
    are not the same, as they are not where a tokenizer cannot say some character.
    """
    same = next(
        (i for i, (a, b) in enumerate(zip(ours.text, theirs.text, strict=False)) if a != b),
        min(len(ours.text), len(theirs.text)),
    )
    # Of several tokens that end in one place, as those without text do, the last.
    mine = {end: place + 1 for place, end in enumerate(ours.ends) if end is not None}
    other = {end: place + 1 for place, end in enumerate(theirs.ends) if end is not None}
    found, begin, begin_theirs = list[SharedSpan](), 0, 0
    for end, place in mine.items():
        if end <= same and end in other:
            found.append(SharedSpan(range(begin, place), range(begin_theirs, other[end])))
            begin, begin_theirs = place, other[end]
    return [span for span in found if span.ours and span.theirs]


@dataclass(frozen=True)
class SpanCredits:
    """A reply as a teacher finds it."""

    credits: list[float | None]
    """What each token (T,) is worth, in nats; None where the teacher has no word on it."""
    gap: float = 0.0
    """log q - log p, summed over all that it has a word on."""
    spans: int = 0
    """How many pieces that are."""

    @property
    def read(self) -> int:
        """Tokens that it has a word on."""
        return sum(credit is not None for credit in self.credits)


def compared(
    spans: Sequence[SharedSpan], ours: Sequence[float], theirs: Sequence[float | None]
) -> SpanCredits:
    """From log p of the student's tokens (T,) and log q of the teacher's."""
    credits: list[float | None] = [None] * len(ours)
    gap = 0.0
    for span in spans:
        logq = sum(theirs[place] or 0.0 for place in span.theirs)
        left = 0.0
        for place in reversed(span.ours):
            left += ours[place]
            credits[place] = logq - left
        gap += logq - left
    return SpanCredits(credits, gap, len(spans))


def mixed(found: Sequence[SpanCredits], shares: Sequence[float]) -> SpanCredits:
    """Several teachers as one, weighted by `shares` (summing to 1)."""
    pairs = list(zip(found, shares, strict=True))
    credits = [
        None
        if all(one.credits[t] is None for one in found)
        else sum(share * (one.credits[t] or 0.0) for one, share in pairs)
        for t in range(len(found[0].credits))
    ]
    gap = sum(share * one.gap for one, share in pairs)
    return SpanCredits(credits, gap, max(one.spans for one in found))


@dataclass(frozen=True)
class Asked:
    """A reply that a teacher was asked to read in its own tokens."""

    spans: list[SharedSpan]
    future: tinker.APIFuture[list[float | None]] | None
    """Its log-probabilities of its prompt and the reply; None where there is nothing to read."""
    length: int
    """Of its tokens, those of the reply: the last ones."""

    def compared(self, y: Attempt, wait: Waiter) -> SpanCredits:
        """What it found of the student's reply."""
        if self.future is None:
            return SpanCredits([None] * len(y.tokens))
        return compared(self.spans, y.logprobs, wait(self.future)[-self.length :])


@dataclass(frozen=True)
class Reader:
    """A teacher that reads a reply's text: prompt and reply by its own template and tokenizer."""

    model: ServedModel
    student: Renderer

    def ask(self, messages: Sequence[Message], y: Attempt) -> Asked:
        """Ask for log q of the student's reply to a prompt, without waiting.

        The student's end of a reply is compared with the teacher's, whatever their numbers. Bytes
        at the end of a reply that are no character, as where it was cut, are not read.
        """
        import tinker

        ended = bool(y.tokens) and y.tokens[-1] in self.student.stop
        body = y.tokens[:-1] if ended else y.tokens
        ours = TextPieces.of(body, self.student.decode)
        whole = ended and (not body or ours.ends[-1] is not None)
        renderer = self.model.renderer
        reply = renderer.written(ours.text, ended=whole)
        end = int(whole and bool(reply) and reply[-1] in renderer.stop)
        theirs = TextPieces.of(reply[: len(reply) - end], renderer.decode)
        spans = align(ours, theirs)
        if end and ours.text == theirs.text:
            last = len(body), len(theirs.ends)
            spans.append(SharedSpan(*(range(place, place + 1) for place in last)))
        if not spans:
            return Asked([], None, 0)
        read = tinker.ModelInput.from_ints([*renderer.prompt(messages), *reply])
        return Asked(spans, self.model.sampler.compute_logprobs(read), len(reply))
