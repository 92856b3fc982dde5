"""Tensors on the wire: dense or CSR, in JSON or protobuf, as numpy arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass as plain_dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic.dataclasses import dataclass

from posttrain_recipes.engine.wire.base import RequestError


@dataclass(frozen=True)
class TensorData:
    """A tensor in JSON: flat values with a shape, or CSR, where only listed cells are given."""

    data: list[float] | list[int]
    dtype: Literal["float32", "int64"]
    shape: list[int] | None = None
    sparse_crow_indices: list[int] | None = None
    sparse_col_indices: list[int] | None = None


@plain_dataclass(frozen=True)
class Cells:
    """The given cells of a (rows, columns) tensor, dense or CSR; the answer has the same layout.

    `values` are in row order, `row` has the row of each; `sparse` is (crow, col) for CSR.
    """

    shape: tuple[int, int]
    values: NDArray[Any]
    row: NDArray[np.int64]
    sparse: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None


def cells(tensor: TensorData, what: str) -> Cells:
    """A two-dimensional tensor's cells. Raises RequestError 422."""
    shape = tuple(tensor.shape or ())
    if tensor.dtype != "int64" or len(shape) != 2 or min(shape) < 0:
        raise RequestError(422, f"{what} must be int64 of two dimensions, (len(prompt) - 1, K)")
    try:
        values, crow, col = (
            np.asarray(part or [], dtype=np.int64)
            for part in (tensor.data, tensor.sparse_crow_indices, tensor.sparse_col_indices)
        )
    except (OverflowError, ValueError, TypeError):
        raise RequestError(422, f"{what}: token ids and indices must be whole numbers") from None
    if tensor.sparse_crow_indices is None:
        if values.size != shape[0] * shape[1]:
            raise RequestError(422, f"{what}: {values.size} values for shape {list(shape)}")
        return Cells((shape[0], shape[1]), values, np.repeat(np.arange(shape[0]), shape[1]))
    if not _sound_csr(shape, crow, col, values):
        raise RequestError(422, f"{what}: the sparse tensor does not add up")
    row = np.repeat(np.arange(shape[0]), np.diff(crow))
    return Cells((shape[0], shape[1]), values, row, (crow, col))


def _sound_csr(
    shape: Sequence[int], crow: NDArray[Any], col: NDArray[Any], values: NDArray[Any]
) -> bool:
    return (
        len(shape) == 2
        and crow.size == shape[0] + 1
        and crow[0] == 0
        and crow[-1] == col.size == values.size
        and bool((np.diff(crow) >= 0).all())
        and bool(((col >= 0) & (col < shape[1])).all())
    )


def as_ids(tokens: Sequence[int], what: str) -> NDArray[np.int64]:
    """Token ids as an array (length,). Raises RequestError 422 if one does not fit int32."""
    try:
        return np.asarray(tokens, dtype=np.int32).astype(np.int64)
    except (OverflowError, ValueError, TypeError):
        raise RequestError(422, f"{what}: token ids must be 32-bit integers") from None


_DTYPES: dict[int, np.dtype[Any]] = {
    1: np.dtype(np.float32),
    2: np.dtype(np.int64),
}  # the public DType values


def array(data: bytes, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Bytes as a flat array. Raises RequestError 400 if they are no whole number of items."""
    if len(data) % dtype.itemsize:
        raise RequestError(400, f"malformed request: {len(data)} bytes are no {dtype} array")
    return np.frombuffer(data, dtype)


def dense(message: Any) -> NDArray[Any]:
    """A protobuf Tensor as a dense array; what a CSR tensor does not list is 0."""
    dtype = _DTYPES.get(message.dtype)
    if dtype is None:
        raise RequestError(400, "malformed request: a tensor must be float32 or int64")
    shape = tuple(message.shape)
    if message.WhichOneof("encoding") != "sparse_csr":
        values = array(message.dense, dtype)
        return _shaped(values, shape or (values.size,))
    csr = message.sparse_csr
    values = array(csr.values, dtype)
    rows, cols = (array(x, _DTYPES[2]) for x in (csr.crow_indices, csr.col_indices))
    if not _sound_csr(shape, rows, cols, values) or shape[0] * shape[1] > 1 << 28:
        raise RequestError(400, "malformed request: the sparse tensor does not add up")
    out = np.zeros(shape, dtype)
    out[np.repeat(np.arange(shape[0]), np.diff(rows)), cols] = values
    return out


def _shaped(values: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    if min(shape) < 0 or math.prod(shape) != values.size:  # numpy's product would overflow
        raise RequestError(400, f"malformed request: {values.size} values for shape {list(shape)}")
    return values.reshape(shape)


def fill_tensor(message: Any, values: NDArray[Any]) -> None:
    """Write an array into a protobuf Tensor."""
    dtype = next(key for key, kind in _DTYPES.items() if kind == values.dtype)
    message.dtype, message.dense = dtype, values.tobytes()
    message.shape.extend(values.shape)


def fill_cells(message: Any, found: Cells) -> None:
    """Write cells into a protobuf Tensor, as float32, in the layout that they came in."""
    values = found.values.astype(np.float32)
    if found.sparse is None:
        return fill_tensor(message, values.reshape(found.shape))
    crow, col = found.sparse
    message.dtype = 1
    message.shape.extend(found.shape)
    message.sparse_csr.values = values.tobytes()
    message.sparse_csr.crow_indices = crow.tobytes()
    message.sparse_csr.col_indices = col.tobytes()
    return None
