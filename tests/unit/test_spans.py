"""A reply in the tokens of two tokenizers: where both have a boundary, and what a span is worth."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from posttrain_recipes.engine.train import losses
from posttrain_recipes.methods.distill_on_policy import _ReverseKL
from posttrain_recipes.models import BUNDLED
from posttrain_recipes.plugin import Message, PtlError
from posttrain_recipes.training.distill import teachers
from posttrain_recipes.training.distill.on_policy import Attempt
from posttrain_recipes.training.distill.spans import (
    Asked,
    Reader,
    SharedSpan,
    SpanCredits,
    TextPieces,
    align,
    compared,
    mixed,
)
from posttrain_recipes.training.text.chat_template import ChatRenderer, load_renderer

TEXTS = ("Hello, world! 12,345", "naïve π ≈ 3.14", "你好 🙂🙂", "  two  spaces\n\n", "")


def by_bytes() -> Tokenizer:
    """One token a byte, as many tokenizers fall back to."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return made


def by_pieces() -> Tokenizer:
    """Words with the space before them, and bytes for the rest, as SentencePiece writes them."""
    words = ["▁", "▁Hello", "▁w", "orld", "lo", ",", "!", "o", "1", "2", "3", "▁na", "ve"]
    words += [f"<0x{byte:02X}>" for byte in range(256)]
    chances = [("<unk>", -100.0), *((word, -1.0) for word in words)]
    made = Tokenizer(models.Unigram(chances, 0, byte_fallback=True))
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    made.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return made


def renderer(made: Tokenizer) -> ChatRenderer:
    """With a chat template of its own."""
    made.add_special_tokens(["<end>", "<say>"])
    fast = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>")
    fast.chat_template = (
        "{% for m in messages %}<say>{{ m.content }}<end>{% endfor %}"
        "{% if add_generation_prompt %}<say>{% endif %}"
    )
    return ChatRenderer(fast)


def tiny() -> Any:
    return load_renderer(str(BUNDLED["ptl/tiny"]))


RENDERERS = {"bytes": by_bytes, "pieces": by_pieces}


@pytest.fixture(scope="module")
def readers() -> dict[str, Any]:
    return {"tiny": tiny(), **{name: renderer(made()) for name, made in RENDERERS.items()}}


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_are_cut_at_characters(readers: dict[str, Any], text: str) -> None:
    for name, one in readers.items():
        tokens = one.written(text, ended=False)
        pieces = TextPieces.of(tokens, one.decode)
        assert pieces.text == text == one.decode(tokens), name
        assert len(pieces.ends) == len(tokens)
        ends = [end for end in pieces.ends if end is not None]
        assert ends == sorted(ends)
        assert ends[-1:] == [len(text)] * bool(text)
    bytewise = TextPieces.of([*"🙂a".encode()], lambda ids: bytes(ids).decode(errors="replace"))
    assert bytewise.ends == [None, None, None, 1, 2]


def test_bytes_that_are_no_character_yet_end_nowhere() -> None:
    cut = TextPieces.of([*"ok🙂".encode()[:-1]], lambda ids: bytes(ids).decode(errors="replace"))
    assert cut.text == "ok"
    assert cut.ends == [1, 2, None, None, None]
    broken = TextPieces.of([0x61, 0xF0, 0x62], lambda ids: bytes(ids).decode(errors="replace"))
    assert broken.text == "a\ufffdb"
    assert broken.ends == [1, None, 3]


def spans(found: Sequence[SharedSpan]) -> list[tuple[list[int], list[int]]]:
    return [([*span.ours], [*span.theirs]) for span in found]


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ([1, 2, 3], [1, 2, 3], [([0], [0]), ([1], [1]), ([2], [2])]),
        ([1, 4, 6], [2, 4, 5, 6], [([0, 1], [0, 1]), ([2], [2, 3])]),
        ([6], [1, 2, 6], [([0], [0, 1, 2])]),
        ([2, None, 6], [3, 6], [([0, 1, 2], [0, 1])]),
        ([2, 2, 6], [2, 6], [([0, 1], [0]), ([2], [1])]),  # the second has no text
        ([2, 6, None], [2, 5], [([0], [0])]),
    ],
)
def test_spans_are_the_smallest_that_are_whole_tokens_of_both(
    ours: list[int | None], theirs: list[int | None], expected: Any
) -> None:
    assert spans(align(TextPieces("abcdef", ours), TextPieces("abcdef", theirs))) == expected


def test_texts_are_compared_up_to_where_they_differ() -> None:
    found = align(TextPieces("abXd", [1, 2, 3, 4]), TextPieces("abYd", [1, 2, 3, 4]))
    assert spans(found) == [([0], [0]), ([1], [1])]


def test_a_span_has_the_sums_of_its_tokens() -> None:
    found = compared(
        [SharedSpan(range(2), range(1)), SharedSpan(range(2, 3), range(1, 3))],
        [-1.0, -2.0, -0.5, -9.0],
        [-2.5, -0.25, -0.5],
    )
    assert found.credits == [0.5, -0.5, -0.25, None]
    assert found.gap == pytest.approx(0.5 - 0.25)
    assert (found.spans, found.read) == (2, 3)


def test_spans_of_one_token_each_are_the_tokens() -> None:
    ones = [SharedSpan(range(t, t + 1), range(t, t + 1)) for t in range(3)]
    found = compared(ones, [-1.0, -2.0, -3.0], [-1.5, -1.0, -3.0])
    assert found.credits == [-0.5, 1.0, 0.0]
    assert found.gap == 0.5


def test_several_teachers_are_their_weighted_mean() -> None:
    two = [SpanCredits([1.0, None, 2.0], 3.0, 2), SpanCredits([3.0, None, None], 3.0, 1)]
    both = mixed(two, [0.75, 0.25])
    assert both.credits == [1.5, None, 1.5]
    assert (both.gap, both.spans, both.read) == (3.0, 2, 2)


def test_what_is_submitted_has_the_gradient_of_the_kl_of_spans() -> None:
    """The student says a span in two tokens of three, the teacher in one of nine; over all that
    could have been sampled, each as likely as the student finds it."""
    torch.manual_seed(1)
    first = torch.randn(3, dtype=torch.float64, requires_grad=True)
    second = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    logq = torch.log_softmax(torch.randn(3, 3, dtype=torch.float64), -1)
    logq = logq - math.log(3)
    logp1, logp2 = first.log_softmax(-1), second.log_softmax(-1)
    joint = logp1[:, None] + logp2
    kl = (joint.exp() * (joint - logq)).sum()
    wanted = torch.autograd.grad(kl, (first, second), retain_graph=True)
    sums = [torch.zeros_like(one) for one in wanted]
    for a, b in itertools.product(range(3), range(3)):
        own = (logp1[a].item(), logp2[a, b].item())
        found = compared([SharedSpan(range(2), range(1))], own, [logq[a, b].item()])
        credits = [credit or 0.0 for credit in found.credits]
        columns = teachers.policy_datum(Attempt([9], [a, b]), own, credits).loss_fn_inputs
        inputs = {n: torch.tensor(columns[n].data) for n in ("logprobs", "advantages")}
        loss = losses.importance_sampling(torch.stack([logp1[a], logp2[a, b]]), inputs, {})
        slopes = torch.autograd.grad(loss, (first, second), retain_graph=True, allow_unused=True)
        chance = joint[a, b].exp().item()
        sums = [s + chance * slope for s, slope in zip(sums, slopes, strict=True)]
    for ours, theirs in zip(sums, wanted, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


# --- a teacher that reads text -------------------------------------------------------------------


class Sampler:
    """Finds token i of what it reads to have log-probability -i, and keeps it."""

    read: list[int]

    def compute_logprobs(self, given: Any) -> Future[list[float | None]]:
        self.read = given.to_ints()
        found: Future[list[float | None]] = Future()
        found.set_result([None, *(-float(i) for i in range(1, len(self.read)))])
        return found


def ask(readers: dict[str, Any], text: str, *, ended: bool, cut: int = 0) -> Any:
    """A reply of the tiny model's, read by a teacher of bytes."""
    student, teacher, sampler = readers["tiny"], readers["bytes"], Sampler()
    tokens = student.written(text, ended=ended)
    tokens = tokens[: len(tokens) - cut]
    y = Attempt([1], tokens, logprobs=tuple([-1.0] * len(tokens)))
    model: Any = SimpleNamespace(renderer=teacher, sampler=sampler)
    asked = Reader(model, student).ask((Message("user", "hi"),), y)
    return asked, y, sampler


def test_the_teacher_reads_prompt_and_reply_in_its_own_tokens(readers: dict[str, Any]) -> None:
    asked, y, sampler = ask(readers, "naïve 🙂", ended=True)
    teacher = readers["bytes"]
    assert teacher.decode(sampler.read) == "<say>hi<end><say>naïve 🙂<end>"
    # Two numbers for an end of a reply are one word.
    assert spans(asked.spans)[-1] == ([len(y.tokens) - 1], [asked.length - 1])
    found = asked.compared(y, lambda future: future.result())
    assert None not in found.credits
    begin = len(sampler.read) - asked.length
    logq = -sum(range(begin, len(sampler.read)))
    assert found.gap == pytest.approx(logq + len(y.tokens))


def test_a_reply_that_was_cut_has_no_end_to_compare(readers: dict[str, Any]) -> None:
    asked, y, sampler = ask(readers, "some words", ended=False)
    assert readers["bytes"].decode(sampler.read).endswith("<say>some words")
    assert None not in asked.compared(y, lambda future: future.result()).credits


def test_half_a_character_is_not_read(readers: dict[str, Any]) -> None:
    whole = readers["tiny"].written("ok 🙂", ended=False)
    ends = TextPieces.of(whole, readers["tiny"].decode).ends
    assert ends[-2] is None, "the tiny model says an emoji in several tokens"
    asked, y, sampler = ask(readers, "ok 🙂", ended=False, cut=1)
    assert readers["bytes"].decode(sampler.read).endswith("<say>ok ")
    credits = asked.compared(y, lambda future: future.result()).credits
    assert credits[-1] is None
    assert credits[0] is not None


def test_what_looks_like_the_teachers_end_is_text(readers: dict[str, Any]) -> None:
    asked, y, sampler = ask(readers, "a<end>b", ended=True)
    assert sampler.read.count(readers["bytes"].stop[0]) == 2  # the prompt's and the reply's own
    assert None not in asked.compared(y, lambda future: future.result()).credits


def test_an_empty_reply_has_its_end_alone(readers: dict[str, Any]) -> None:
    asked, y, _ = ask(readers, "", ended=True)
    assert spans(asked.spans) == [([0], [0])]
    nothing, y, _ = ask(readers, "", ended=False)
    assert nothing.compared(y, lambda future: future.result()).read == 0


def test_a_student_that_ends_in_half_a_character_is_not_told_to_end(
    readers: dict[str, Any],
) -> None:
    student = readers["tiny"]
    tokens = [*student.written("ok 🙂", ended=False)[:-1], student.written("", ended=True)[0]]
    sampler = Sampler()
    model: Any = SimpleNamespace(renderer=readers["bytes"], sampler=sampler)
    y = Attempt([1], tokens, logprobs=tuple([-1.0] * len(tokens)))
    asked = Reader(model, student).ask((Message("user", "hi"),), y)
    assert asked.compared(y, lambda future: future.result()).credits[-1] is None
    assert readers["bytes"].decode(sampler.read).endswith("<say>ok ")


def test_much_that_is_not_read_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    objective = _ReverseKL.__new__(_ReverseKL)
    vars(objective).update(by_text=True, warned=False, _step=0)
    y = Attempt([9], [1, 2], logprobs=(-1.0, -2.0))
    for _ in range(2):
        metrics = objective._metrics([y], [SpanCredits([0.5, None], 0.5, 1)], 2)
    assert metrics == {
        "kl": -0.5,
        "entropy": 1.5,
        "teacher/logp": -0.5,
        "align/unread_share": 0.5,
        "align/tokens_per_span": 1.0,
    }
    assert [record.message[:30] for record in caplog.records] == ["50% of what the student wrote "]


@pytest.mark.parametrize(
    ("why", "told"),
    [
        ("prompt: 141 tokens exceed the model's context window: 128", "data:7: .* teacher big"),
        ("out of luck", "could not do"),
    ],
)
def test_a_text_that_is_too_long_for_a_teacher_names_record_and_teacher(
    why: str, told: str
) -> None:
    def wait(future: Any) -> Any:
        raise PtlError("the engine could not do what was asked", why=why)

    objective = _ReverseKL.__new__(_ReverseKL)
    vars(objective).update(names=["big"], stage=SimpleNamespace(wait=wait))
    item: Any = SimpleNamespace(source="data:7", teachers=[(0, 1.0)])
    asked: Any = Asked([SharedSpan(range(1), range(1))], "asked", 1)
    with pytest.raises(PtlError, match=told) as caught:
        objective._compared(item, Attempt([9], [1], logprobs=(-1.0,)), [asked])
    assert why in (caught.value.why or "")
    assert ("max_length" in (caught.value.hint or "")) == ("window" in why)
