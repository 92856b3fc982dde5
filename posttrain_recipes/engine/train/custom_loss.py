"""Custom losses sent by clients as a torch.fx graph, checked and interpreted from an allow-list.

The SDK traces a loss with torch.fx and sends its nodes as names and plain values. Nothing is ever
compiled or looked up by a name that came with it: an operation runs if it is in `FUNCTIONS` or
`METHODS`, all of which are pure tensor arithmetic without files, processes or in-place writes, and
what a node may produce is bounded. `LossGraph` raises RequestError 422 for anything else.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from posttrain_recipes.engine.wire import CreateCustomLoss, GraphNode, RequestError

MAX_NODES = 4096
MAX_INPUTS = 16
MAX_ELEMENTS = 1 << 26  # of one tensor
MAX_NESTING = 16

_OPERATORS = (
    "add sub mul truediv floordiv mod pow neg pos abs lt le eq ne ge gt and_ or_ xor invert getitem"
)
# Names that are functions of torch and methods of a tensor alike.
_BOTH = (
    "abs absolute add all amax amin any argmax argmin argsort asin atan atan2 acos ceil clamp "
    "clamp_max clamp_min clip cos cosh count_nonzero cumprod cumsum deg2rad diff div divide dot "
    "eq erf erfc exp exp2 expm1 flatten flip floor floor_divide fmax fmin fmod frac gather ge "
    "greater greater_equal gt heaviside hypot index_select isfinite isinf isnan kthvalue le lerp "
    "less less_equal lgamma log log10 log1p log2 log_softmax logaddexp logaddexp2 logcumsumexp "
    "logical_and logical_not logical_or logical_xor logit logsumexp lt masked_fill masked_select "
    "max maximum mean median min minimum mode mul multiply nan_to_num nanmean nansum narrow ne neg "
    "negative norm not_equal positive pow prod quantile reciprocal relu remainder reshape rsqrt "
    "round select sgn sigmoid sign sin sinh softmax sort sqrt square squeeze std sub subtract sum "
    "take_along_dim tan tanh topk transpose true_divide trunc unbind unsqueeze var where xlogy"
)
_ONLY_TORCH = (
    "arange broadcast_tensors cat concat full full_like linspace ones ones_like rsub scalar_tensor "
    "stack tensor zeros zeros_like"
)
_FUNCTIONAL = (
    "binary_cross_entropy binary_cross_entropy_with_logits elu gelu hardtanh huber_loss l1_loss "
    "leaky_relu log_softmax logsigmoid mse_loss pad relu relu6 selu sigmoid silu smooth_l1_loss "
    "softmax softmin softplus softsign tanh threshold"
)
_SPECIAL = "entr erf erfc expit expm1 log1p log_softmax logit logsumexp softmax xlog1py xlogy"
_ONLY_METHODS = (
    "bool contiguous detach dim double expand expand_as flatten float int long ndimension "
    "nelement new_full new_ones new_tensor new_zeros numel permute size t to type_as "
    "view view_as"
)
_ATTRIBUTES = {"shape", "dtype", "device", "ndim", "T", "mT", "values", "indices"}
# What makes a tensor of the size that its numbers say.
_SIZED = {"arange", "expand", "full", "linspace", "new_full", "new_ones", "new_zeros", "ones"}
_SIZED |= {"pad", "zeros"}
_DTYPES = {"float16", "float32", "float64", "bfloat16", "int32", "int64", "bool"}
_METRIC_REDUCTIONS = (":sum", ":mean")

Run = Callable[..., Any]


def _table() -> dict[str, Run]:
    """Qualified names, as torch.fx writes them, of everything a graph may call."""
    table: dict[str, Run] = {
        f"operator.{name}": getattr(operator, name) for name in _OPERATORS.split()
    }
    table["operator.pow"] = _power
    table["getattr"] = table["builtins.getattr"] = _attribute
    for name in (_BOTH + " " + _ONLY_TORCH).split():
        table[f"torch.{name}"] = getattr(torch, name, None) or getattr(Tensor, name)
    for name in _FUNCTIONAL.split():
        table[f"torch.nn.functional.{name}"] = table[f"torch._C._nn.{name}"] = getattr(F, name)
    table["torch._C._nn.log_sigmoid"] = F.logsigmoid
    for name in _SPECIAL.split():
        run = getattr(torch.special, name)
        table[f"torch.special.{name}"] = table[f"torch._C._special.special_{name}"] = run
    return table


def _power(base: Any, exponent: Any) -> Any:
    if isinstance(base, int) and isinstance(exponent, int):
        return float(base) ** exponent  # a whole number of any length would take any time
    return base**exponent


def _attribute(value: Any, name: Any) -> Any:
    if name not in _ATTRIBUTES:
        raise RequestError(422, f"custom loss: {name!r} is no attribute that a loss may read")
    return getattr(value, name)


FUNCTIONS = _table()
METHODS: dict[str, Run] = {
    name: getattr(Tensor, name)
    for name in (_BOTH + " " + _ONLY_METHODS).split()
    if hasattr(Tensor, name)
}


class LossGraph:
    """A custom loss, checked: `evaluate` runs it on one datum.

    Attributes:
        name: what its author calls it, for messages.
        inputs: (name, rank) in the order the graph takes them, `logprobs` first.
    """

    def __init__(self, request: CreateCustomLoss) -> None:
        self.name = request.name
        self.inputs = [(item.name, item.rank) for item in request.inputs]
        self._nodes = request.graph.nodes
        self._check(request)

    @property
    def many_targets(self) -> bool:
        """Whether it reads the log-probabilities of several targets a position, (T, K)."""
        return self.inputs[0][1] == 2

    def _refuse(self, message: str) -> RequestError:
        return RequestError(422, f"custom loss {self.name!r}: {message}")

    def _check(self, request: CreateCustomLoss) -> None:
        names = [name for name, _ in self.inputs]
        if request.graph.format != 1:
            raise self._refuse(f"graph format {request.graph.format} is not known; send format 1")
        if not names or names[0] != "logprobs" or self.inputs[0][1] not in (1, 2):
            raise self._refuse("its first input must be logprobs, of rank 1 or 2")
        if len(names) > MAX_INPUTS or len(set(names)) < len(names):
            raise self._refuse(f"it may have up to {MAX_INPUTS} inputs, each named once")
        if len(self._nodes) > MAX_NODES:
            raise self._refuse(f"it has {len(self._nodes)} operations; {MAX_NODES} are the limit")
        placeholders = [node.target for node in self._nodes if node.op == "placeholder"]
        if placeholders != names:
            raise self._refuse(f"its inputs are {names}, but its graph takes {placeholders}")
        seen: set[str] = set()
        for node in self._nodes:
            self._check_node(node, seen)
            seen.add(node.name)
        ends = [index for index, node in enumerate(self._nodes) if node.op == "output"]
        if ends != [len(self._nodes) - 1]:
            raise self._refuse("its graph must end with its one output")
        self._check_output(self._nodes[-1])

    def _check_node(self, node: GraphNode, seen: set[str]) -> None:
        if node.op == "call_function" and node.target not in FUNCTIONS:
            raise self._refuse(
                f"{node.target} is not an operation this engine runs; use arithmetic of torch, or "
                "forward_backward_custom with a function, which runs on your side"
            )
        if node.op == "call_method" and node.target not in METHODS:
            raise self._refuse(
                f"the tensor method {node.target!r} is not one this engine runs; use arithmetic "
                "without in-place writes"
            )
        if "out" in node.kwargs:
            raise self._refuse(f"{node.target} may not write into a tensor (out=)")
        if node.op in ("get_attr", "call_module"):
            raise self._refuse(f"it may not hold modules or tensors of its own ({node.target})")
        if node.name in seen:
            raise self._refuse(f"two of its operations are called {node.name!r}")
        for name in _refs([node.args, node.kwargs], 0):
            if name not in seen:
                raise self._refuse(f"{node.name!r} reads {name!r}, which is not computed before it")

    def _check_output(self, node: GraphNode) -> None:
        value = node.args[0] if node.args else None
        pair = value.get("tuple") if isinstance(value, dict) else value
        metrics = pair[1].get("dict") if isinstance(pair, list) and _is_pair(pair) else None
        if not isinstance(metrics, dict):
            raise self._refuse("it must return (loss, metrics), metrics a dictionary")
        for key in metrics:
            if not key.endswith(_METRIC_REDUCTIONS) or key.count(":") != 1 or len(key) > 128:
                raise self._refuse(f"metric {key!r} must be named custom/NAME:sum or :mean")

    def evaluate(
        self, logprobs: Tensor, inputs: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, float]]:
        """The loss, a scalar, and the metrics of one datum.

        Raises RequestError 422, naming the operation, where the graph does not fit its inputs.
        """
        values: dict[str, Any] = {}
        result: Any = None
        for node in self._nodes:
            try:
                args = [_decode(arg, values, logprobs.device) for arg in node.args]
                kwargs = {
                    key: _decode(arg, values, logprobs.device) for key, arg in node.kwargs.items()
                }
                if node.op == "placeholder":
                    value = logprobs if node.target == "logprobs" else inputs[node.target]
                elif node.op == "output":
                    result = args[0]
                    break
                else:
                    value = _call(node, args, kwargs)
            except RequestError:
                raise
            except Exception as error:  # torch's own complaint about what the user wrote
                reason = str(error).strip().split("\n")[0]
                raise self._refuse(f"{node.name} ({node.target}): {reason}") from None
            values[node.name] = value
        loss, metrics = result
        if not isinstance(loss, Tensor) or loss.ndim != 0 or not loss.is_floating_point():
            raise self._refuse("its loss must be a scalar tensor")
        return loss, {key: self._number(key, value) for key, value in metrics.items()}

    def _number(self, key: str, value: Any) -> float:
        if isinstance(value, Tensor) and value.numel() != 1:
            raise self._refuse(f"metric {key!r} must be a scalar, not {list(value.shape)}")
        return float(value.detach() if isinstance(value, Tensor) else value)


def _is_pair(value: list[Any]) -> bool:
    return len(value) == 2 and isinstance(value[1], dict)


def _refs(value: Any, depth: int) -> list[str]:
    """The nodes that an encoded argument reads. Raises RequestError 422 if it nests too deep."""
    if depth > MAX_NESTING:
        raise RequestError(422, "custom loss: an argument nests too deep")
    if isinstance(value, dict):
        if set(value) == {"ref"}:
            return [str(value["ref"])]
        return [name for item in value.values() for name in _refs(item, depth + 1)]
    if isinstance(value, list):
        return [name for item in value for name in _refs(item, depth + 1)]
    return []


def _decode(value: Any, values: Mapping[str, Any], device: torch.device) -> Any:
    """An argument as the SDK encodes it: plain values, or an object with one key."""
    if isinstance(value, list):
        return [_decode(item, values, device) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) != 1:
        raise ValueError(f"an argument is malformed: {value}")
    ((kind, inner),) = value.items()
    if kind == "ref":
        return values[inner]
    if kind == "device":
        return device  # a loss traced on a CPU runs where the model is
    if kind == "dtype" and inner in _DTYPES:
        return getattr(torch, inner)
    if kind == "float" and inner in ("inf", "-inf", "nan"):
        return float(inner)
    if kind == "ellipsis":
        return ...
    if kind == "slice":
        return slice(*(_decode(item, values, device) for item in inner))
    if kind == "tuple":
        return tuple(_decode(item, values, device) for item in inner)
    if kind == "dict":
        return {key: _decode(item, values, device) for key, item in inner.items()}
    if kind in ("layout", "memory_format"):
        return getattr(torch, {"strided": "strided"}.get(inner, "contiguous_format"))
    raise ValueError(f"an argument is of no known kind: {kind}")


def _call(node: GraphNode, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Run one operation, within bounds."""
    short = node.target.rsplit(".", 1)[-1]
    arithmetic = node.target.startswith("operator.") and short != "getitem"
    if arithmetic and not all(isinstance(arg, Tensor | int | float) for arg in args):
        raise ValueError("arithmetic takes tensors and numbers")
    if node.op == "call_method" and not (args and isinstance(args[0], Tensor)):
        raise ValueError("a method is called on a tensor")
    if short in _SIZED:
        sizes = [abs(n) for n in _whole_numbers([args, kwargs])]
        if math.prod(max(1, n) for n in sizes) > MAX_ELEMENTS:
            raise ValueError(f"a tensor may have up to {MAX_ELEMENTS} elements")
    _check_broadcast([*args, *kwargs.values()])
    value = (METHODS if node.op == "call_method" else FUNCTIONS)[node.target](*args, **kwargs)
    for item in value if isinstance(value, tuple | list) else (value,):
        if isinstance(item, Tensor) and item.numel() > MAX_ELEMENTS:
            raise ValueError(f"a tensor may have up to {MAX_ELEMENTS} elements")
        if isinstance(item, int) and abs(item) >= 1 << 63:
            raise ValueError("a number is too large")
    return value


def _whole_numbers(value: Any) -> list[int]:
    if isinstance(value, bool | Tensor):
        return []
    if isinstance(value, int):
        return [value]
    if isinstance(value, Mapping):
        return [n for item in value.values() for n in _whole_numbers(item)]
    if isinstance(value, list | tuple):
        return [n for item in value for n in _whole_numbers(item)]
    return []


def _check_broadcast(values: Sequence[Any]) -> None:
    """Raise ValueError if broadcasting would exceed `MAX_ELEMENTS`, before it is done: (T, 1) with
    (1, T) is T * T elements."""
    shapes = [value.shape for value in values if isinstance(value, Tensor)]
    if len(shapes) > 1:
        try:
            size = math.prod(torch.broadcast_shapes(*shapes))
        except RuntimeError:  # not an operation that broadcasts, or torch will say so itself
            return
        if size > MAX_ELEMENTS:
            raise ValueError(f"a tensor may have up to {MAX_ELEMENTS} elements")
