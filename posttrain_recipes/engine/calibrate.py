"""How fast this machine computes what a model of some shape asks for, measured in a second or two.

    python -m posttrain_recipes.engine.calibrate '{"hidden": 576, ...}'

Prints seconds a token as JSON. Measured are the products of one layer and of the output embedding,
on numbers drawn at random: no weights are read; and how fast numbers are passed over otherwise.
How often that is (`PASSES`), and what else there is (`OVER`), was found by comparing with what real
models took (`benchmarks/plan_time.py`). It is kept in the user's cache, by shape and machine: a
plan has a time before anything was run.
"""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain_recipes import content
from posttrain_recipes.machine import cores
from posttrain_recipes.shape import Shape

if TYPE_CHECKING:
    import torch

LONG, SHORT = 512, 32
"""Tokens that go through a layer at once: in training and reading, and in writing, where they are
of as many replies."""
WIDE = 2048
"""Numbers of a token in what is measured beside products."""
COLUMNS = 8192
"""Of a larger vocabulary so many columns are measured."""
OVER = {"train": 1.0, "prefill": 1.0, "sample": 1.0}
"""Seconds for each second of products."""
PASSES = {"train": 72.0, "prefill": 18.0, "sample": 36.0}
"""How often each activation is read and written beside products: by norms, attention, losses; a
token that is written goes through as many operations as 512 that are read, and waits for each."""
REPEATS = 5
WAIT_S = 60.0
"""A machine that takes longer for this tells nothing."""


def shape(folder: Path) -> dict[str, Any] | None:
    """The sizes that are measured, of the model in `folder`; None where its config does not tell,
    and for a mixture of experts: a token passes some of them, which is not in these products."""
    found = Shape.read(folder)
    if found is None or found.experts:
        return None
    return {
        "hidden": found.hidden,
        "intermediate": found.feed_forward,
        "layers": found.layers,
        "heads": found.heads,
        "vocab": found.vocabulary,
        "kv_heads": found.groups,
        "head_dim": found.width,
    }


def speed(folder: Path, dtype: str = "float32") -> dict[str, float] | None:
    """Seconds a token of a model's training, reading and writing on this machine, computed in
    `dtype`; measured where it was not before. None where that cannot be told."""
    known = shape(folder)
    if known is None:
        return None
    known = {**known, "dtype": dtype}
    machine = [platform.node(), platform.machine(), cores(), _torch(), OVER, PASSES, known]
    key = hashlib.sha256(json.dumps(machine).encode()).hexdigest()[:16]
    path = content.cache_dir() / "speed" / f"{key}.json"
    found = _read(path)
    if found is None:
        found = _measured(key, json.dumps(known))
        if found is not None and content.cache_dir().is_dir():  # looking makes no directory
            content.write_quietly(path, json.dumps(found))
    return found


def gain(folder: Path) -> float | None:
    """How many times as fast as float32 a model's products are in bfloat16 on this machine."""
    wide, narrow = speed(folder), speed(folder, "bfloat16")
    return None if wide is None or narrow is None else wide["products"] / narrow["products"]


@cache
def _measured(key: str, known: str) -> dict[str, float] | None:
    """What a process of its own measures: once, for all stages of a plan that keeps nothing."""
    command = [sys.executable, "-m", __spec__.name, known]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return _parsed(done.stdout)


def _torch() -> str:
    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return ""


def _read(path: Path) -> dict[str, float] | None:
    try:
        return _parsed(path.read_text(encoding="utf-8"))
    except OSError:
        return None


def _parsed(text: str) -> dict[str, float] | None:
    try:
        found = json.loads(text)
        return {name: float(found[name]) for name in (*OVER, "products")}
    except (ValueError, LookupError, TypeError):
        return None


def measure(shape: Mapping[str, Any]) -> dict[str, float]:
    """Seconds a token in training, reading and writing; and of `products` alone, in one precision
    and of few tokens: what else there is, is float32 in either case.

    Args:
        shape: hidden, intermediate, layers, heads, kv_heads, head_dim, vocab; and dtype, which is
            bfloat16 whatever it says on a GPU.
    """
    import torch

    # `base.pick_device` would say the same, and import transformers.
    on_card = torch.cuda.is_available()
    device = torch.device("cuda" if on_card else "cpu")
    dtype = torch.bfloat16 if on_card else getattr(torch, shape.get("dtype", "float32"))
    # The engine has each core take passes of its own: what one can do, so many times.
    torch.set_num_threads(1)
    share = 1 if on_card else cores()
    touched = _activations(shape) * _elementwise(device) / share
    long = _forward(shape, LONG, device, dtype) / LONG / share
    short = _forward(shape, SHORT, device, dtype, writes=True) / SHORT / share
    # Frozen weights: backward multiplies once more for what goes down, and not for their gradients.
    return {
        "train": OVER["train"] * 2 * long + PASSES["train"] * touched,
        "prefill": OVER["prefill"] * long + PASSES["prefill"] * touched,
        "sample": OVER["sample"] * short + PASSES["sample"] * touched,
        "products": _forward(shape, SHORT, device, dtype) / SHORT / share,
    }


def _forward(
    shape: Mapping[str, Any],
    tokens: int,
    device: torch.device,
    dtype: torch.dtype,
    writes: bool = False,
) -> float:
    """Seconds of the products of a whole forward pass; `writes`: as the engine has them when it
    samples, by packed weights, and the output embedding's in what logits are computed in."""
    import torch

    from posttrain_recipes.engine.model.packing import wide_dtype

    hidden, inner = shape["hidden"], shape["intermediate"]
    queries, keys = (shape[name] * shape["head_dim"] for name in ("heads", "kv_heads"))
    columns = min(shape["vocab"], COLUMNS)
    counts: dict[tuple[int, int], float] = {}
    for rows, columns_, count in (
        (hidden, queries, shape["layers"]),
        (hidden, keys, 2 * shape["layers"]),
        (queries, hidden, shape["layers"]),
        (hidden, inner, 2 * shape["layers"]),
        (inner, hidden, shape["layers"]),
    ):
        counts[rows, columns_] = counts.get((rows, columns_), 0.0) + count
    layers = sum(
        count * _product(tokens, rows, columns_, device, dtype, writes)
        for (rows, columns_), count in counts.items()
    )
    wide = wide_dtype(torch.empty(0, device=device, dtype=dtype)) if writes else dtype
    head = _product(tokens, hidden, columns, device, wide, writes)
    return layers + shape["vocab"] / columns * head


def _activations(shape: Mapping[str, Any]) -> int:
    """Numbers that the layers compute of a token."""
    return Shape(
        layers=shape["layers"],
        hidden=shape["hidden"],
        feed_forward=shape["intermediate"],
        heads=shape["heads"],
        groups=shape["kv_heads"],
        width=shape["head_dim"],
        vocabulary=shape["vocab"],
        tied=True,
    ).activations


def _elementwise(device: torch.device) -> float:
    """Seconds that one core, or a GPU, takes to read two numbers and write one."""
    import torch

    x = torch.randn(LONG, WIDE, device=device)
    y = torch.empty_like(x)  # taken once: what the system takes to give memory is not in it
    return _shortest(lambda: torch.mul(x, x, out=y), device) / x.numel()


def _product(
    tokens: int,
    rows: int,
    columns: int,
    device: torch.device,
    dtype: torch.dtype,
    pack: bool,
) -> float:
    """Seconds of one product: the shortest of a few, as other work can only lengthen it."""
    import torch

    from posttrain_recipes.engine.model import kernels, precision

    onednn = device.type == "cpu" and precision.onednn_leads()
    x = torch.randn(tokens, rows, device=device, dtype=dtype)
    w = torch.randn(columns, rows, device=device, dtype=dtype)
    if pack and (packed := precision.packed(w)) is not None:
        w = packed
    return _shortest(lambda: kernels.matmul(x, w, None, onednn), device)


def _shortest(run: Callable[[], Any], device: torch.device) -> float:
    import torch

    wait: Callable[[], Any] = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    took = []
    for _ in range(REPEATS + 1):  # the first one warms up
        wait()
        began = time.perf_counter()
        run()
        wait()
        took.append(time.perf_counter() - began)
    return min(took[1:])


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1]))))
