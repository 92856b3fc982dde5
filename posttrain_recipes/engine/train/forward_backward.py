"""forward_backward: log-probabilities of targets, loss, and the gradients of a LoRA adapter.

A model that `Decoder` supports runs packed, without padding, the sequences of a request split over
the cores; any other is run by transformers, padded on the right: attention is causal, so padding
cannot reach a token before it and no mask is needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from posttrain_recipes.engine.model import kernels
from posttrain_recipes.engine.model.base import BaseModel
from posttrain_recipes.engine.model.decoder import Decoder, DecoderWeights
from posttrain_recipes.engine.model.fused_linear import Grads
from posttrain_recipes.engine.model.kernels import Product
from posttrain_recipes.engine.model.lora import Adapter
from posttrain_recipes.engine.model.packing import Packing
from posttrain_recipes.engine.train import loss_functions, losses
from posttrain_recipes.engine.train.custom_loss import LossGraph
from posttrain_recipes.engine.train.loss_functions import LossFunction, columns
from posttrain_recipes.engine.wire import Datum, ForwardBackwardResult, RequestError

PassResult = tuple[NDArray[np.float32], float, dict[str, float]]  # logprobs, loss, metrics


def forward_backward(
    base: BaseModel,
    adapter: Adapter,
    data: Sequence[Datum],
    loss_fn: str,
    config: Mapping[str, float | str],
    forward_only: bool,
    graphs: Mapping[str, LossGraph] | None = None,
) -> ForwardBackwardResult:
    """The log-probabilities of every datum's targets, the loss summed over tokens, and its metrics.

    Gradients are added to the adapter's unless `forward_only`. `graphs` are the session's custom
    losses by their ids. All datums are checked before anything is computed, so that a request
    either adds all of its gradients or none. Raises RequestError 422.
    """
    loss_function = loss_functions.make(loss_fn, config, graphs or {})
    items = [_checked(base, loss_function, loss_fn, datum, i) for i, datum in enumerate(data)]
    logprobs: list[NDArray[np.float32]] = [np.zeros(0, np.float32)] * len(items)
    sums: dict[str, float] = {}
    total = 0.0
    before = adapter.grad.clone() if loss_function.may_fail and not forward_only else None
    run = _padded if base.decoder is None else _packed
    try:
        for chosen, (found, loss, metrics) in run(
            base, adapter, items, loss_function, forward_only
        ):
            total += loss
            for key, value in metrics.items():
                sums[key] = sums.get(key, 0.0) + value
            _scatter(found, chosen, [items[i] for i in chosen], logprobs)
    except RequestError:
        if before is not None:
            adapter.grad.copy_(before)
        raise
    return ForwardBackwardResult(logprobs, {**_reduced(sums, len(items)), "loss:sum": total})


def _scatter(
    found: NDArray[np.float32],
    chosen: Sequence[int],
    batch: Sequence[Datum],
    out: list[NDArray[np.float32]],
) -> None:
    """Split a micro-batch's log-probabilities, (tokens, K), into `out`, at its datums' indices."""
    start = 0
    for index, item in zip(chosen, batch, strict=True):
        targets = item.inputs["target_tokens"]
        block = found[start : start + targets.shape[0]]
        out[index] = block[:, 0] if targets.ndim == 1 else block[:, : targets.shape[1]]
        start += targets.shape[0]


def _reduced(sums: Mapping[str, float], count: int) -> dict[str, float]:
    """Metrics summed over `count` datums, reduced as their names say, `:sum` or `:mean`."""
    return {
        key: value / max(1, count) if key.endswith(":mean") else value
        for key, value in sums.items()
    }


def _checked(
    base: BaseModel, loss_function: LossFunction, name: str, datum: Datum, index: int
) -> Datum:
    """The datum, checked and converted for the loss function. Raises RequestError 422."""
    what = f"datum {index}"
    base.check_length(datum.tokens.size, what)
    base.check_ids(datum.tokens, what)
    targets = datum.inputs.get("target_tokens")
    if targets is None:
        raise RequestError(422, f"{what}: loss_fn_inputs lacks `target_tokens`")
    if targets.dtype != np.int64 or targets.ndim not in (1, 2):
        raise RequestError(422, f"{what}: target_tokens must be int64, (N,) or (N, K)")
    if targets.ndim == 2 and not (loss_function.many_targets and targets.shape[1]):
        raise RequestError(422, f"{what}: loss {name!r} takes one target a position, shape (N,)")
    if targets.shape[0] != datum.tokens.size:
        raise RequestError(
            422,
            f"{what}: {datum.tokens.size} input tokens but {targets.shape[0]} targets; "
            "target i is the token that follows input i, so both have one length",
        )
    base.check_ids(targets, f"{what}, target_tokens")
    return loss_function.check(datum, what)


def _targets(batch: Sequence[Datum]) -> NDArray[np.int64]:
    """The targets of a batch end to end, (tokens, K), K the widest datum's. The padding columns of
    a narrower datum hold token 0."""
    found = [datum.inputs["target_tokens"] for datum in batch]
    out = np.zeros((sum(map(len, found)), max(map(columns, found))), dtype=np.int64)
    start = 0
    for targets in found:
        stop = start + targets.shape[0]
        out[start:stop, : columns(targets)] = targets.reshape(targets.shape[0], -1)
        start = stop
    return out


# By transformers ------------------------------------------------------------------------------


def _padded(
    base: BaseModel,
    adapter: Adapter,
    items: Sequence[Datum],
    loss_function: LossFunction,
    forward_only: bool,
) -> list[tuple[list[int], PassResult]]:
    out = []
    with base.using(adapter.layers), torch.set_grad_enabled(not forward_only):
        for chosen in base.batches([item.tokens.size for item in items]):
            batch = [items[i] for i in chosen]
            logits = base.logits([datum.tokens for datum in batch])
            real = np.zeros(logits.shape[:2], dtype=bool)
            for row, datum in enumerate(batch):
                real[row, : datum.tokens.size] = True
            flat = logits[torch.from_numpy(real).to(base.device)]
            targets = torch.from_numpy(_targets(batch)).to(base.device)
            logp = losses.token_logprobs(flat, targets)
            loss, metrics = loss_function.evaluate(logp, batch)
            if not forward_only and loss.requires_grad:
                loss.backward()  # type: ignore[no-untyped-call]
            found = logp.detach().cpu().numpy()
            out.append((chosen, (found, float(loss.detach()), metrics)))
    return out


# Packed ---------------------------------------------------------------------------------------


def _packed(
    base: BaseModel,
    adapter: Adapter,
    items: Sequence[Datum],
    loss_function: LossFunction,
    forward_only: bool,
) -> list[tuple[list[int], PassResult]]:
    """Each thread computes its part of the sequences into a gradient of its own; these are added up
    in a fixed order, so that the result is deterministic."""
    assert base.decoder is not None
    sizes = [item.tokens.size for item in items]
    weights = base.training_weights(adapter, sum(sizes))
    shares = base.shares(sizes)
    views = [] if forward_only else [adapter.layout.views(adapter.grad)]
    extra = [torch.zeros_like(adapter.grad) for _ in shares[1:]] if views else []
    views += [adapter.layout.views(grad) for grad in extra]
    budget = base.activation_budget(len(shares)) if views else 0  # nothing is kept without them

    def run(which: int) -> list[tuple[list[int], PassResult]]:
        grads = views[which] if views else None
        return [
            (chosen, _pass(base, weights, [items[i] for i in chosen], loss_function, grads, budget))
            for chosen in shares[which]
        ]

    results = base.each(run, len(shares))
    for grad in extra:
        adapter.grad += grad
    return [item for result in results for item in result]


@torch.no_grad()
def _pass(
    base: BaseModel,
    weights: DecoderWeights,
    batch: Sequence[Datum],
    loss_function: LossFunction,
    grads: Grads | None,
    budget: int,
) -> PassResult:
    decoder: Decoder | None = base.decoder
    assert decoder is not None
    packing = Packing([datum.tokens.size for datum in batch], base.device)
    ids = torch.from_numpy(np.concatenate([datum.tokens for datum in batch])).to(base.device)
    kept: list[Any] | None = None if grads is None else []
    again = decoder.recomputed(packing.total, budget)
    hidden = decoder.forward(weights, ids, packing, kept, again)
    targets = torch.from_numpy(_targets(batch)).to(base.device)
    head = Head(weights.head, hidden, targets, base.rows_of_logits)
    logp = head.forward(keep=grads is not None)
    with torch.enable_grad():
        leaf = logp.requires_grad_(grads is not None)
        loss, metrics = loss_function.evaluate(leaf, batch)
        slope = torch.autograd.grad(loss, leaf)[0] if loss.requires_grad else None
    if slope is not None and grads is not None and kept is not None:
        dy = head.backward(slope, decoder.head.grads(grads))
        decoder.backward(weights, kept, dy, packing, grads)
    return leaf.detach().cpu().numpy(), float(loss.detach()), metrics


class Head:
    """The LM head with the log-softmax: hidden states (T, H) to log-probabilities of targets (T,
    K), and the backward pass, with at most `rows` rows of logits in memory at a time.

    If T is at most `rows` they are kept for the backward pass, else they are recomputed in it.
    """

    def __init__(self, by: Product, hidden: Tensor, targets: Tensor, rows: int) -> None:
        self.by, self.hidden, self.targets = by, hidden, targets
        self.rows = rows
        self._kept: Tensor | None = None

    def _all(self, hidden: Tensor) -> Tensor:
        """The log-probabilities of the whole vocabulary, (rows, V) float32."""
        return torch.log_softmax(kernels.product(hidden, self.by).float(), dim=-1)

    def forward(self, keep: bool) -> Tensor:
        """log p of the targets, (T, K)."""
        if self.hidden.shape[0] <= self.rows:
            every = self._all(self.hidden)
            self._kept = every if keep else None
            return every.gather(-1, self.targets)
        parts = zip(self.hidden.split(self.rows), self.targets.split(self.rows), strict=True)
        return torch.cat([self._all(hidden).gather(-1, targets) for hidden, targets in parts])

    def backward(self, slope: Tensor, grads: list[Tensor]) -> Tensor:
        """d loss / d hidden states (T, H), given `slope`, d loss / d log-probabilities (T, K). Rows
        with a slope of 0 are skipped: prompts, in most training."""
        active = (slope != 0).any(dim=-1).nonzero()[:, 0]
        out = torch.zeros_like(self.hidden)
        every = self._kept
        if every is not None and active.shape[0] == slope.shape[0]:
            return self._down(self.hidden, every, self.targets, slope, grads)
        for rows in active.split(self.rows):
            hidden = self.hidden[rows]
            found = self._all(hidden) if every is None else every[rows]
            out[rows] = self._down(hidden, found, self.targets[rows], slope[rows], grads)
        return out

    def _down(
        self, hidden: Tensor, every: Tensor, targets: Tensor, slope: Tensor, grads: list[Tensor]
    ) -> Tensor:
        # d logp_k / d logits = onehot(target_k) - softmax(logits), written over log softmax(logits)
        d_logits = every.exp_().mul_(-slope.sum(dim=-1, keepdim=True))
        d_logits.scatter_add_(-1, targets, slope.to(d_logits.dtype))
        return kernels.product_backward(hidden, d_logits.to(hidden.dtype), self.by, grads)
