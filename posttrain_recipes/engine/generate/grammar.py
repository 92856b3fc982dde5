"""Constrained decoding: which tokens may come next in a reply, by llguidance (the extra
`structured`), which reads grammars in Lark's form with `%json` for JSON schemas.
"""

from __future__ import annotations

import copy
import json
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from posttrain_recipes.engine.model.base import BaseModel
from posttrain_recipes.engine.wire import RequestError

MOST = 200_000
"""Characters of a grammar."""

_STATE = "\n<state>"
"""What llguidance appends to an error is of its own insides."""
_PROBE = '{"a": [1, "b c"]}\n\t"x": -2.5'
_vocabularies: WeakKeyDictionary[BaseModel, Any] = WeakKeyDictionary()


class Grammar:
    """Where a reply stands in what a grammar allows."""

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher

    @classmethod
    def of(cls, base: BaseModel, text: str) -> Grammar:
        """At the beginning of a reply of `base`.

        Raises:
            RequestError: 400 for a grammar that cannot be read, and where llguidance, or a fast
                tokenizer, is not there.
        """
        if len(text) > MOST:
            raise RequestError(400, f"a grammar of more than {MOST:,} characters is not read")
        try:
            import llguidance
        except ImportError:
            raise RequestError(
                400,
                "replies in a form need llguidance where the engine runs: "
                "pip install 'posttrain-recipes[structured]'",
            ) from None
        matcher = llguidance.LLMatcher(_vocabulary(base), text, log_level=0)
        if error := matcher.get_error():
            raise RequestError(400, f"the form of the reply cannot be kept to: {error}")
        return cls(matcher)

    def copy(self) -> Grammar:
        """The same place, to go on from by itself."""
        return Grammar(self._matcher.deep_copy())

    def only(self, row: Tensor) -> None:
        """Leave of the logits (V,) those of tokens that may come next.

        Raises:
            RequestError: 400 where none may, or where to go on is too much to compute: some forms
                are read, and found to be impossible only here.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        may = torch.from_numpy(np.unpackbits(bits, bitorder="little")[: len(row)].astype(bool))
        # In an error the mask has the tokens that end a reply.
        if (error := self._matcher.get_error()) or not may.any():
            raise RequestError(
                400,
                "the form of the reply could not be kept to: "
                f"{error.partition(_STATE)[0] or 'no token of the model goes on in it'}",
            )
        row[: len(may)].masked_fill_(~may.to(row.device), -torch.inf)
        row[len(may) :] = -torch.inf

    def take(self, token: int) -> None:
        """Go on past a token."""
        self._matcher.consume_token(token)


def _vocabulary(base: BaseModel) -> Any:
    if base not in _vocabularies:
        try:
            ends = list(base.eos_ids())
            # A tokenizer may know tokens that the model has no numbers for: `only` cuts them off.
            size = max(base.vocab, len(base.tokenizer))
            _vocabularies[base] = _read(base.tokenizer, size, ends)
        except (OSError, ValueError) as error:
            raise RequestError(
                400, f"replies in a form need a fast tokenizer of the model: {error}"
            ) from None
    return _vocabularies[base]


def _read(tokenizer: Any, size: int, ends: list[int]) -> Any:
    """A tokenizer as llguidance has it, which takes the bytes of each token from its JSON.

    Raises:
        ValueError: it has none, or is understood otherwise than it decodes.
    """
    from llguidance import LLTokenizer

    if not hasattr(tokenizer, "backend_tokenizer"):
        raise ValueError("this one is written in Python")
    backend = copy.copy(tokenizer.backend_tokenizer)
    backend.no_padding()
    backend.no_truncation()
    told = json.loads(backend.to_str())
    chain = (told["decoder"] or {}).get("decoders", ())
    if any(one["type"] == "ByteLevel" for one in chain):
        # As a conversion from GGUF writes it, after steps that change nothing. llguidance would
        # take the first of them for all.
        told["decoder"] = next(one for one in chain if one["type"] == "ByteLevel")
    made = LLTokenizer(json.dumps(told), n_vocab=size, eos_token=ends)
    ids = tokenizer.encode(_PROBE, add_special_tokens=False)
    means = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    if made.decode_bytes(ids).decode(errors="replace").strip() != means.strip():
        raise ValueError("llguidance does not understand how this one decodes")
    return made
