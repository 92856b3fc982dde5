"""One token of each of many sequences: the model, and attention to what each of them has read.

TorchScript, as `kernels`, and for the same reason.

Shapes: R rows, H hidden, N query heads, G key heads, D head width, L own tokens, P a prompt's.
"""

# ruff: noqa: UP006, UP035, UP045, see kernels

from typing import List, NamedTuple, Optional

import torch
from torch import Tensor
from torch.nn import functional as F

from posttrain_recipes.engine.model.kernels import (
    Layer,
    Product,
    after_attention,
    before_attention,
    norm,
    product,
    values,
)


class Place(NamedTuple):
    """Where a lane's rows stand."""

    where: Tensor  # (R,) the place of the new token among the row's own
    width: int  # the longest row's own tokens, the new one with them
    even: bool  # all rows have as many
    groups: List[int]  # neighbouring rows that share a text: how many
    prompts: List[int]  # and that text's tokens; 0: they share none


def step(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    layers: List[Layer],
    last: Tensor,
    head: Product,
    scale: float,
    keys: List[Tensor],
    its: List[Tensor],
    place: Place,
    shared: List[Tensor],
) -> Tensor:
    """Logits (R, V) float32 of what follows the tokens embedded as x.

    Args:
        x: embedded tokens, (R, H).
        cos: of the token's position, (R, 1, D).
        sin: likewise, its first half negative.
        layers: the layers' weights.
        last: the last norm's weight (H,).
        head: the last product.
        scale: of attention.
        keys: of each layer the rows' own, (R, G, room, D); the new token's are written there.
        its: likewise, values.
        place: where the rows stand.
        shared: the prompts' keys and values (G, P, D), for each layer those of each group that has
            one.
    """
    groups, width = keys[0].shape[1], cos.shape[-1]
    longest = max(place.prompts)
    per_layer = len(shared) // len(layers)
    reached: Optional[Tensor] = None
    if not place.even:
        columns = torch.arange(place.width, device=x.device)
        reached = (columns > place.where[:, None])[:, None, None]
    rows = torch.arange(x.shape[0], device=x.device)
    for index, layer in enumerate(layers):
        _, _, qkv, _, both = before_attention(x, layer, cos, sin, groups)
        heads = both.shape[1] - groups
        k, v = keys[index], its[index]
        if place.even:
            k[:, :, place.width - 1] = both[:, heads:]
            v[:, :, place.width - 1] = values(qkv, width, groups)
        else:
            k[rows, :, place.where] = both[:, heads:]
            v[rows, :, place.where] = values(qkv, width, groups)
        k, v = k[:, :, : place.width], v[:, :, : place.width]
        query = (both[:, :heads] * scale).view(x.shape[0], groups, -1, width)
        scores = query @ k.transpose(-1, -2)  # (R, G, N / G, L)
        if reached is not None:
            scores.masked_fill_(reached, float("-inf"))
        if longest == 0:
            mixed = softmax(scores) @ v
        else:
            here = shared[index * per_layer : (index + 1) * per_layer]
            scores = torch.cat([of_prompts(query, place, here, longest), scores], dim=-1)
            shares = softmax(scores)
            mixed = shares[..., longest:] @ v
            add_prompts(shares, place, here, mixed)
        x = after_attention(x, mixed.view(x.shape[0], -1), layer)
    return product(norm(x, last, layers[0].eps)[0], head).float()


def softmax(scores: Tensor) -> Tensor:
    """In float32."""
    return torch.softmax(scores, dim=-1, dtype=torch.float32).to(scores.dtype)


def of_prompts(query: Tensor, place: Place, shared: List[Tensor], longest: int) -> Tensor:
    """Scores with the shared prompts (R, G, N / G, longest), -inf past each one's end."""
    parts: List[Tensor] = []
    start, at = 0, 0
    for count, size in zip(place.groups, place.prompts):  # noqa: B905, TorchScript has no strict
        mine = query[start : start + count]
        start += count
        if size == 0:
            parts.append(
                torch.full(
                    [count, mine.shape[1], mine.shape[2], longest], float("-inf"),
                    dtype=query.dtype, device=query.device,
                )
            )  # fmt: skip
            continue
        # (G, rows * N / G, P): all the group's queries with one key head, in one product
        joined = mine.transpose(0, 1).flatten(1, 2)
        found = joined @ shared[at].transpose(-1, -2)
        at += 2
        found = found.unflatten(1, [count, mine.shape[2]]).transpose(0, 1)
        parts.append(F.pad(found, [0, longest - size], value=float("-inf")))
    return torch.cat(parts)


def add_prompts(shares: Tensor, place: Place, shared: List[Tensor], out: Tensor) -> None:
    """Add the shared prompts' part of the mixture to `out` (R, G, N / G, D)."""
    start, at = 0, 1
    for count, size in zip(place.groups, place.prompts):  # noqa: B905
        if size > 0:
            mine = shares[start : start + count, :, :, :size].transpose(0, 1).flatten(1, 2)
            found = (mine @ shared[at]).unflatten(1, [count, out.shape[2]]).transpose(0, 1)
            out[start : start + count] += found
            at += 2
        start += count
