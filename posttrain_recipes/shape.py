"""The sizes of a decoder, as its `config.json` tells them: one reading of it, for whoever plans."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain_recipes import ggufs
from posttrain_recipes.errors import PtlError

LARGEST = 1 << 24
"""No size of a model that there is comes to it: a larger one is a mistake."""

WIDTH = ("hidden_size", "n_embd", "d_model")
"""What configs call the width of the residual stream: the others are of GPT-2, GPT-J, MPT, DBRX."""


@dataclass(frozen=True)
class Shape:
    """The sizes of a decoder."""

    layers: int
    hidden: int
    feed_forward: int
    heads: int
    groups: int
    """Key and value heads."""
    width: int
    """Of a head."""
    vocabulary: int
    tied: bool
    """Whether one matrix is embedding and output layer."""
    context: int | None = None
    """Tokens of a sequence."""
    experts: bool = False
    """Whether it is a mixture of experts, of which a token passes some."""

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Shape | None:
        """From a `config.json`; None where it lacks what is needed."""
        config = _of_text(config)
        try:
            heads, hidden = _size(config["num_attention_heads"]), _size(config["hidden_size"])
            return cls(
                layers=_size(config["num_hidden_layers"]),
                hidden=hidden,
                feed_forward=_size(config["intermediate_size"]),
                heads=heads,
                groups=_size(config.get("num_key_value_heads") or heads),
                width=_size(config.get("head_dim") or hidden // heads),
                vocabulary=_size(config["vocab_size"]),
                tied=bool(config.get("tie_word_embeddings", True)),
                context=config.get("max_position_embeddings"),
                experts=has_experts(config),
            )
        except (KeyError, TypeError, ValueError):
            return None

    @classmethod
    def read(cls, folder: Path) -> Shape | None:
        """From the `config.json` of a model's directory; None as `of`, and where there is none."""
        return cls.of(read_config(folder))

    @property
    def _projections(self) -> list[tuple[int, int]]:
        """(in, out) of a layer's linear layers: q, k, v, out, gate, up, down."""
        q, kv = self.heads * self.width, self.groups * self.width
        h, f = self.hidden, self.feed_forward
        return [(h, q), (h, kv), (h, kv), (q, h), (h, f), (h, f), (f, h)]

    @property
    def layer_parameters(self) -> int:
        """Of all layers."""
        return self.layers * sum(a * b for a, b in self._projections)

    @property
    def parameters(self) -> int:
        """Of the model."""
        matrices = 1 if self.tied else 2
        return self.layer_parameters + matrices * self.vocabulary * self.hidden

    def adapter(self, rank: int) -> int:
        """Parameters of an adapter on attention and MLP."""
        return self.layers * rank * sum(a + b for a, b in self._projections)

    @property
    def activations(self) -> int:
        """Numbers that a backward pass needs of one token: of each layer its inputs and norms,
        queries, keys and values as they are computed and as attention reads them, what attention
        gives, and the MLP's."""
        q, kv = self.heads * self.width, self.groups * self.width
        return self.layers * (4 * self.hidden + 2 * (q + 2 * kv) + 2 * q + 4 * self.feed_forward)


def read_config(folder: Path) -> dict[str, Any]:
    """The `config.json` of a model's directory, or what a GGUF file says in its place; empty where
    there is none that can be read."""
    try:
        if ggufs.is_gguf(str(folder)):
            return ggufs.shape(str(folder))
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, PtlError):
        return {}
    return found if isinstance(found, dict) else {}


def damage(folder: Path) -> str | None:
    """What is wrong with the file that tells the sizes of a model; None where it can be read, or is
    not there."""
    if ggufs.is_gguf(str(folder)):
        try:
            ggufs.metadata(str(folder))
        except PtlError as error:
            return "; ".join([error.what, *filter(None, (error.why, error.hint))])
        return None
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except OSError:
        return None
    except UnicodeDecodeError:
        why = "it is no text in UTF-8"
    except (ValueError, RecursionError) as error:
        why = f"it is no JSON ({error})"
    else:
        if isinstance(found, dict):
            return None
        why = "it is no mapping"
    return f"its config.json cannot be read: {why}; copy it from the model's origin again"


def hidden_size(config: Mapping[str, Any]) -> int | None:
    """The width of the residual stream, which more models tell than a whole `Shape`; None where a
    `config.json` does not."""
    told = _of_text(config)
    for name in WIDTH:
        try:
            return _size(told[name])
        except (KeyError, TypeError, ValueError):
            continue
    return None


def has_experts(config: Mapping[str, Any]) -> bool:
    """Whether a `config.json` is that of a mixture of experts."""
    return any("experts" in key for key in _of_text(config))


def _of_text(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What is said of the decoder: models that also see have it in a part of its own."""
    text = config.get("text_config")
    return {**config, **text} if isinstance(text, Mapping) else config


def _size(value: Any) -> int:
    """Raises `ValueError` where it is no whole number of a size that there is."""
    if type(value) is not int or not 0 < value < LARGEST:
        raise ValueError(f"{value!r} is no size")
    return value
