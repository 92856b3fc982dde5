"""Messages to tokens and back, with a tokenizer of one token a word, made here."""

from __future__ import annotations

from typing import Any

import pytest

from posttrain_recipes.errors import PtlError, UsageError
from posttrain_recipes.records import Message
from posttrain_recipes.training.text.chat_template import ChatRenderer, load_renderer
from posttrain_recipes.training.text.examples import Example, datum, tokenize

WORDS = ["<unk>", "<s>", "<|im_start|>", "<|im_end|>", "<eos>", "\n"]
WORDS += ["system", "user", "assistant", "<think>", "one", "two", "three", "four", "hello"]

CHATML = (
    "{% for m in messages %}<|im_start|> {{ m['role'] }} \n {{ m['content'] }} <|im_end|> \n "
    "{% endfor %}{% if add_generation_prompt %}<|im_start|> assistant \n {% endif %}"
)
# What was said in earlier turns loses its thoughts once the conversation goes on.
FORGETFUL = CHATML.replace(
    "{{ m['content'] }}",
    "{{ m['content'] if loop.last else m['content'].replace('<think> ', '') }}",
)
STRICT = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"


def renderer(template: str | None = CHATML, *, eos: str = "<|im_end|>") -> ChatRenderer:
    return ChatRenderer(tokenizer(template, eos=eos))


def tokenizer(template: str | None, *, eos: str) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token=eos
    )
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    made.chat_template = template
    return made


def ids(text: str) -> list[int]:
    return [WORDS.index("\n" if word == "\\n" else word) for word in text.split()]


def talk(*turns: str) -> list[Message]:
    """`u one two`: a user who says `one two`."""
    roles = {"s": "system", "u": "user", "a": "assistant"}
    return [Message(roles[turn[0]], turn[2:]) for turn in turns]  # type: ignore[arg-type]


def marked(messages: list[Message], train_on: str = "last", **kwargs: Any) -> str:
    """Every token as a word, the learned ones in brackets."""
    tokens, weights = renderer(**kwargs).supervised(messages, train_on)
    assert len(tokens) == len(weights)
    assert set(weights) <= {0.0, 1.0}
    words = [WORDS[token].replace("\n", "\\n") for token in tokens]
    pairs = zip(words, weights, strict=True)
    return " ".join(f"[{word}]" if weight else word for word, weight in pairs)


def test_a_prompt_ends_where_the_assistant_begins() -> None:
    assert renderer().prompt(talk("s one", "u two three")) == ids(
        "<|im_start|> system \\n one <|im_end|> \\n "
        "<|im_start|> user \\n two three <|im_end|> \\n <|im_start|> assistant \\n"
    )


def test_nothing_is_put_before_the_template() -> None:
    assert WORDS.index("<s>") not in renderer().prompt(talk("u one"))


def test_the_reply_and_its_end_are_learned_and_nothing_else() -> None:
    assert marked(talk("s four", "u one", "a two three")) == (
        "<|im_start|> system \\n four <|im_end|> \\n <|im_start|> user \\n one <|im_end|> \\n "
        "<|im_start|> assistant \\n [two] [three] [<|im_end|>]"
    )


def test_the_last_reply_or_all_of_them() -> None:
    messages = talk("u one", "a two", "u three", "a four")
    frame = (
        "<|im_start|> user \\n one <|im_end|> \\n <|im_start|> assistant \\n {} \\n "
        "<|im_start|> user \\n three <|im_end|> \\n <|im_start|> assistant \\n {}"
    )
    last = frame.format("two <|im_end|>", "[four] [<|im_end|>]")
    every = frame.format("[two] [<|im_end|>]", "[four] [<|im_end|>]")
    assert marked(messages, "last") == last
    assert marked(messages, "all") == every


def test_what_comes_after_the_last_reply_is_left_out() -> None:
    assert marked(talk("u one", "a two", "u three")) == marked(talk("u one", "a two"))


def test_a_prompt_is_where_the_learned_part_begins() -> None:
    messages = talk("u one", "a two three")
    tokens, weights = renderer().supervised(messages)
    assert tokens[: weights.index(1.0)] == renderer().prompt(messages[:1])


def test_a_template_without_a_tail_keeps_all_of_the_reply() -> None:
    bare = CHATML.replace(" \n {% endfor %}", " {% endfor %}")
    assert marked(talk("u one", "a two"), template=bare).endswith("\\n [two] [<|im_end|>]")


def test_a_template_without_an_end_token_learns_the_tokenizers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bare = CHATML.replace(" <|im_end|>", "")
    with caplog.at_level("WARNING"):
        said = marked(talk("u one", "a two"), template=bare, eos="<eos>")
    assert said.endswith("assistant \\n [two] [<eos>]")
    assert "'<eos>' is learned after the last one" in caplog.text
    assert renderer(bare, eos="<eos>").stop == ids("<eos>")


def test_a_template_that_rewrites_earlier_turns_is_told() -> None:
    messages = talk("u one", "a <think> two", "u three", "a four")
    with pytest.raises(UsageError, match=r"leaves out a part of message 2 \(assistant\)") as caught:
        renderer(FORGETFUL).supervised(messages, "all")
    assert "train on the last message only" in (caught.value.hint or "")
    assert marked(messages, "last", template=FORGETFUL).endswith("\\n [four] [<|im_end|>]")


def test_a_conversation_without_a_reply_has_nothing_to_learn() -> None:
    with pytest.raises(UsageError, match="there is no assistant message to learn from"):
        renderer().supervised(talk("u one"))


def test_a_template_that_refuses_is_quoted() -> None:
    with pytest.raises(UsageError, match="the model's chat template refuses") as caught:
        renderer(STRICT + CHATML).prompt(talk("s one", "u two"))
    assert caught.value.why == "no system"


def test_a_tokenizer_without_a_template_is_told() -> None:
    with pytest.raises(PtlError, match="has no chat template"):
        renderer(None)


def test_a_model_that_is_not_there_is_told(tmp_path: Any) -> None:
    with pytest.raises(PtlError, match="there is no tokenizer in") as caught:
        load_renderer(str(tmp_path))
    assert caught.value.hint is not None
    assert "\n" not in (caught.value.why or "")


def test_a_reply_ends_with_any_token_that_ends_one() -> None:
    assert renderer().stop == ids("<|im_end|>")
    assert renderer(eos="<eos>").stop == ids("<|im_end|> <eos>")


@pytest.mark.parametrize(
    "tokens",
    ["two three", "two three <|im_end|>", "two three <|im_end|> <eos> <|im_end|>"],
)
def test_a_reply_is_read_without_what_ends_it(tokens: str) -> None:
    assert renderer(eos="<eos>").parse(ids(tokens)) == "two three"


def test_a_reply_of_nothing_is_nothing() -> None:
    assert renderer().parse([]) == ""
    assert renderer().parse(ids("<|im_end|>")) == ""


def test_all_of_the_tokens_can_be_shown() -> None:
    assert "<|im_end|>" in renderer().decode(ids("two <|im_end|>"))


# --- examples ------------------------------------------------------------------------------------

LONG = talk("u one", "a two three four")  # 13 tokens, learned from the tenth on


def example(**kwargs: Any) -> Example:
    return tokenize(LONG, renderer(), source="data/chat.jsonl:7", **kwargs)


def test_an_example_that_fits_is_whole() -> None:
    tokens, weights = renderer().supervised(LONG)
    assert example(max_length=13) == Example(tokens, weights)
    assert len(tokens) == 13
    assert example(max_length=13).learned == 4.0


def test_an_example_that_is_too_long_names_its_record() -> None:
    with pytest.raises(UsageError) as caught:
        example(max_length=12)
    assert caught.value.what == "data/chat.jsonl:7: 13 tokens are more than max_length=12"
    assert "'truncate: true'" in (caught.value.hint or "")


def test_an_example_may_be_cut() -> None:
    cut = example(max_length=11, truncate=True)
    assert cut.tokens == renderer().supervised(LONG)[0][:11]
    assert cut.weights == [0.0] * 9 + [1.0] * 2


def test_an_example_with_nothing_left_to_learn_is_told() -> None:
    with pytest.raises(UsageError, match="nothing that the assistant said is within max_length=9"):
        example(max_length=9, truncate=True)


def test_what_the_renderer_refuses_names_the_record() -> None:
    with pytest.raises(UsageError, match=r"^chat\.jsonl:3: there is no assistant message"):
        tokenize(talk("u one"), renderer(), max_length=9, source="chat.jsonl:3")


def test_the_engine_is_given_targets_one_ahead() -> None:
    made = datum(Example([5, 6, 7, 8], [0.0, 0.0, 0.25, 0.25]))
    assert made.model_input.to_ints() == [5, 6, 7]
    targets, weights = made.loss_fn_inputs["target_tokens"], made.loss_fn_inputs["weights"]
    assert (targets.data, targets.dtype, targets.shape) == ([6, 7, 8], "int64", [3])
    assert (weights.data, weights.dtype, weights.shape) == ([0.0, 0.25, 0.25], "float32", [3])
