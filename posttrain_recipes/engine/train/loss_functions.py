"""The loss function of a forward_backward request, built-in or custom: input checks, evaluation.

One is made for each request. It checks every datum before anything is computed, and is then
evaluated on the log-probabilities of one micro-batch after another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from posttrain_recipes.engine.train import losses
from posttrain_recipes.engine.train.custom_loss import LossGraph
from posttrain_recipes.engine.wire import Datum, RequestError

CUSTOM = "custom"


class LossFunction(Protocol):
    """A loss with its settings, for one request."""

    many_targets: bool
    may_fail: bool  # whether `evaluate` may raise RequestError for datums that passed `check`

    def check(self, datum: Datum, what: str) -> Datum:
        """The datum with its inputs converted for `evaluate`. Raises RequestError 422 for missing,
        unknown or wrongly shaped inputs; `what` names the datum in the message."""
        ...

    def evaluate(self, logp: Tensor, batch: Sequence[Datum]) -> tuple[Tensor, dict[str, float]]:
        """The loss summed over the batch, and metrics summed over its datums.

        `logp` (tokens, K), in nats: the datums' tokens end to end. K is the most targets a position
        of any datum; a datum's columns beyond its own are padding.
        """
        ...


def make(
    name: str, config: Mapping[str, float | str], graphs: Mapping[str, LossGraph]
) -> LossFunction:
    """The loss function called `name`, with its settings; `graphs` are the session's custom losses
    by id. Raises RequestError 422 if there is no such loss or setting."""
    if name == CUSTOM and "loss_id" in config:
        graph = graphs.get(str(config["loss_id"]))
        if graph is None:
            raise RequestError(
                422,
                f"this session has no custom loss {config['loss_id']!r}: create it again with "
                "create_custom_loss; losses end with their session",
            )
        return CustomLoss(graph)
    try:
        return BuiltinLoss(name, losses.find(name), losses.settings(name, config))
    except losses.LossError as error:
        raise RequestError(422, str(error)) from None


def columns(targets: NDArray[np.int64]) -> int:
    """K, the targets at each position, of targets (N,) or (N, K)."""
    return 1 if targets.ndim == 1 else targets.shape[1]


class BuiltinLoss:
    """One of the losses in `losses`."""

    may_fail = False

    def __init__(
        self, name: str, loss: losses.LossDefinition, settings: Mapping[str, float]
    ) -> None:
        self.name, self.loss, self.settings = name, loss, settings
        self.many_targets = loss.many_targets
        self._keys: frozenset[str] | None = None

    def check(self, datum: Datum, what: str) -> Datum:
        """The inputs as float32, cross-entropy's weights 1 where the datum has none."""
        targets = datum.inputs["target_tokens"]
        known = {"target_tokens", *self.loss.required, *self.loss.optional}
        inputs: dict[str, NDArray[Any]] = {"target_tokens": targets}
        for key, value in datum.inputs.items():
            if key not in known:
                raise RequestError(
                    422, f"{what}: loss {self.name!r} does not read {key!r} (it reads "
                    f"{sorted(known)})",
                )  # fmt: skip
            if key != "target_tokens":
                if value.shape != targets.shape:
                    raise RequestError(
                        422,
                        f"{what}: {key} has shape {list(value.shape)}, target_tokens "
                        f"{list(targets.shape)}; they must be equal",
                    )
                inputs[key] = value.astype(np.float32, copy=False)
        for key in self.loss.required:
            if key not in inputs:
                raise RequestError(
                    422, f"{what}: loss {self.name!r} needs {key!r} in loss_fn_inputs"
                )
        mask = inputs.get("sequence_ratio_mask")
        if mask is not None and not mask.any():
            raise RequestError(
                422, f"{what}: sequence_ratio_mask marks no token: there is no ratio to train on"
            )
        if self.name == "cross_entropy" and "weights" not in inputs:
            inputs["weights"] = np.ones(targets.shape, np.float32)
        self._keys = self._keys or frozenset(inputs)
        if self._keys != inputs.keys():
            raise RequestError(422, "every datum of a request must have the same loss_fn_inputs")
        return Datum(datum.tokens, inputs)

    def evaluate(self, logp: Tensor, batch: Sequence[Datum]) -> tuple[Tensor, dict[str, float]]:
        inputs = _stack(batch, logp)
        if self.loss.by_sequence:
            sizes = [datum.tokens.size for datum in batch]
            which = np.repeat(np.arange(len(batch)), sizes)[:, None]
            inputs["datum"] = torch.from_numpy(which).to(logp.device)
        return self.loss.fn(logp, inputs, self.settings), {}


def _stack(batch: Sequence[Datum], like: Tensor) -> dict[str, Tensor]:
    """The datums' loss inputs as tensors shaped like `like`, (tokens, K). Padding columns are 0, as
    weights or advantages, and so add nothing to the loss."""
    out = {}
    for name in batch[0].inputs.keys() - {"target_tokens"}:
        table = np.zeros(tuple(like.shape), dtype=np.float32)
        start = 0
        for datum in batch:
            value = datum.inputs[name]
            stop = start + value.shape[0]
            table[start:stop, : columns(value)] = value.reshape(value.shape[0], -1)
            start = stop
        out[name] = torch.from_numpy(table).to(like.device)
    return out


class CustomLoss:
    """A loss that the client uploaded, evaluated datum by datum."""

    may_fail = True

    def __init__(self, graph: LossGraph) -> None:
        self.graph, self.many_targets = graph, graph.many_targets

    def check(self, datum: Datum, what: str) -> Datum:
        """The inputs that the loss declares, checked for their rank; others are dropped."""
        (_, wanted), *others = self.graph.inputs
        kept = {"target_tokens": datum.inputs["target_tokens"]}
        for key, rank in [("target_tokens", wanted), *others]:
            value = datum.inputs.get(key)
            if value is None:
                raise RequestError(422, f"{what}: loss {self.graph.name!r} needs {key!r}")
            if value.ndim != rank:
                raise RequestError(
                    422, f"{what}: {key} has rank {value.ndim}, but loss {self.graph.name!r} "
                    f"declared rank {rank}",
                )  # fmt: skip
            kept[key] = value
        return Datum(datum.tokens, kept)

    def evaluate(self, logp: Tensor, batch: Sequence[Datum]) -> tuple[Tensor, dict[str, float]]:
        total, sums = logp.new_zeros(()), dict[str, float]()
        start = 0
        for datum in batch:
            targets = datum.inputs["target_tokens"]
            own = logp[start : start + targets.shape[0], : columns(targets)]
            start += targets.shape[0]
            inputs = {
                name: torch.from_numpy(np.array(datum.inputs[name])).to(logp.device)
                for name, _ in self.graph.inputs[1:]
            }
            loss, metrics = self.graph.evaluate(own[:, 0] if targets.ndim == 1 else own, inputs)
            total = total + loss
            for key, value in metrics.items():
                sums[key] = sums.get(key, 0.0) + value
        return total, sums
