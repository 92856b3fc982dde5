"""A tokenizer of transformers as GGUF has it: tokens, merges, and rules that split text by name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from posttrain_recipes import ggufs
from posttrain_recipes.errors import PtlError
from posttrain_recipes.training.text.soundness import PROBES

NORMAL, UNUSED = 1, 5
"""Types of tokens beside `ggufs.CONTROL` and `ggufs.USER_DEFINED`."""
TEXTS = (
    *PROBES.values(),
    "It's 12,345.67 or 1e-9; they're don'T I'LL\t\tx",
    "Hello  world   THE END\n\n  \n def f(x):\n\treturn x**2 != 0  \n",
    "Größe naïve 你好,世界 привет мир مرحبا हिन्दी 日本語テキスト 123٤٥٦",
    "http://a.b/c?d=e&f=1#g a_b-c camelCase HTTPServer2 🙂🙃 ½ ²",
)
"""What splitting rules are compared on."""


@dataclass(frozen=True)
class Words:
    """The tokens of a model, one for each row of its embedding, and what is said of them."""

    tokens: list[str]
    types: list[int]
    merges: list[str]
    pre: str
    """The rules that split text, by llama.cpp's name."""
    whole: str
    """The `tokenizer.json` itself."""
    ids: dict[str, int] = field(default_factory=dict)
    """Token ids by what they are for: bos, eos, eot, unk, pad."""
    add_bos: bool = False
    template: str | Mapping[str, str] | None = None
    notes: tuple[str, ...] = ()
    """What is otherwise than in the tokenizer itself."""

    @classmethod
    def of(
        cls, tokenizer: Any, rows: int, ends: Sequence[int] = (), add_bos: bool = False
    ) -> Words:
        """Of a tokenizer of transformers.

        Args:
            rows: of the model's embedding.
            ends: tokens that end a reply, the tokenizer's end of a sequence aside.
            add_bos: whether a text begins with the token of a beginning.

        Raises:
            PtlError: it is no byte-level BPE.
        """
        whole = json.loads(tokenizer._tokenizer.to_str())
        model = whole["model"]
        if model.get("type") != "BPE" or "ByteLevel" not in json.dumps(whole["pre_tokenizer"]):
            raise PtlError(
                "this model is not written as GGUF",
                why="ptl writes tokenizers that are byte-level BPE, and its tokenizer is none",
                hint="write it with --merge, and convert that with convert_hf_to_gguf.py of "
                "llama.cpp",
            )
        by_id = {number: token for token, number in tokenizer.get_vocab().items()}
        added = tokenizer._tokenizer.get_added_tokens_decoder()
        tokens = [by_id.get(number, f"[PAD{number}]") for number in range(rows)]
        types = [
            (ggufs.CONTROL if added[number].special else ggufs.USER_DEFINED)
            if number in added
            else (NORMAL if number in by_id else UNUSED)
            for number in range(rows)
        ]
        merges = [one if isinstance(one, str) else " ".join(one) for one in model["merges"]]
        pre, notes = _rules(whole)
        if outside := sorted(token for number, token in by_id.items() if number >= rows):
            shown = ", ".join(outside[:3]) + (", ..." if outside[3:] else "")
            notes.append(f"{len(outside)} tokens without a row in the embedding left out: {shown}")
        named = {
            "bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id,
            "unk": tokenizer.unk_token_id, "pad": tokenizer.pad_token_id,
            "eot": next((end for end in ends if end != tokenizer.eos_token_id), None),
        }  # fmt: skip
        ids = {name: number for name, number in named.items() if number is not None}
        ids = {name: number for name, number in ids.items() if number < rows}
        return cls(
            tokens, types, merges, pre, json.dumps(whole, ensure_ascii=False), ids, add_bos,
            tokenizer.chat_template, tuple(notes),
        )  # fmt: skip

    def add_to(self, writer: Any) -> None:
        """Put all of it into a `GGUFWriter`."""
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        writer.add_token_merges(self.merges)
        writer.add_string(ggufs.HUGGING_FACE, self.whole)
        for name, add in (
            ("bos", writer.add_bos_token_id), ("eos", writer.add_eos_token_id),
            ("eot", writer.add_eot_token_id), ("unk", writer.add_unk_token_id),
            ("pad", writer.add_pad_token_id),
        ):  # fmt: skip
            if name in self.ids:
                add(self.ids[name])
        writer.add_add_bos_token(self.add_bos)
        writer.add_add_space_prefix(False)
        if isinstance(self.template, str):
            writer.add_chat_template(self.template)
        elif self.template:
            named = [{"name": name, "template": text} for name, text in self.template.items()]
            writer.add_chat_template(named)


def _rules(whole: dict[str, Any]) -> tuple[str, list[str]]:
    """The rules by which llama.cpp splits text most nearly so, and how they differ."""
    from tokenizers import Tokenizer

    own = Tokenizer.from_str(json.dumps(whole))
    wrong: dict[str, list[str]] = {}
    for name, splits in ggufs.SPLITS.items():
        model = {**whole["model"], "ignore_merges": name == "llama-bpe"}  # as llama.cpp has it
        other = Tokenizer.from_str(json.dumps({**whole, "model": model, "normalizer": None}))
        other.pre_tokenizer = ggufs.pre_tokenizer(splits)
        wrong[name] = [
            text
            for text in TEXTS
            if own.encode(text, add_special_tokens=False).ids
            != other.encode(text, add_special_tokens=False).ids
        ]
    nearest = min(wrong, key=lambda name: len(wrong[name]))
    if not wrong[nearest]:
        return nearest, []
    return nearest, [
        f"llama.cpp has no rules that split text as this tokenizer does: by those of {nearest}, "
        f"the nearest, {len(wrong[nearest])} of {len(TEXTS)} sample texts become other tokens "
        f"({wrong[nearest][0][:40]!r} is one). Replies may differ"
    ]
