"""Constrained decoding: which tokens may come next in a reply, by llguidance (the extra
`structured`), which reads grammars in Lark's form with `%json` for JSON schemas.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from posttrain_recipes.engine.model.base import BaseModel
from posttrain_recipes.engine.wire import RequestError

MOST = 200_000
"""Characters of a grammar."""

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
        """Leave of the logits (V,) those of tokens that may come next."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        may = torch.from_numpy(np.unpackbits(bits, bitorder="little")[: len(row)].astype(bool))
        row[: len(may)].masked_fill_(~may.to(row.device), -torch.inf)
        row[len(may) :] = -torch.inf

    def take(self, token: int) -> None:
        """Go on past a token."""
        self._matcher.consume_token(token)


def _vocabulary(base: BaseModel) -> Any:
    if base not in _vocabularies:
        from llguidance.hf import from_tokenizer

        try:
            ends = list(base.eos_ids())
            _vocabularies[base] = from_tokenizer(base.tokenizer, base.vocab, ends)
        except (OSError, ValueError) as error:
            raise RequestError(
                400, f"replies in a form need a fast tokenizer of the model: {error}"
            ) from None
    return _vocabularies[base]
