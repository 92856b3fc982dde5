"""Which library multiplies float32 on this machine, found by measuring and not by its name: the
BLAS that torch asks (MKL), which on some CPUs leaves their widest instructions unused, or oneDNN,
which torch carries too.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

ROWS, WIDTH = 256, 512
"""Tokens and features of the product that is timed: about a millisecond."""
REPEATS = 7
LEAD = 1.3
"""oneDNN is taken where it is so many times as fast: a choice that chance does not change."""
PACKED = 1 << 17
"""Numbers of a weight that is packed, at least: the small ones of toys stay in a core's cache."""


@cache
def onednn_leads() -> bool:
    """Whether oneDNN multiplies float32 clearly faster than torch's BLAS does."""
    x, weight = torch.ones(ROWS, WIDTH), torch.ones(WIDTH, WIDTH)
    try:
        asked = torch.ops.mkldnn._linear_pointwise
        asked(x, weight, None, "none", [], "")
    except (AttributeError, RuntimeError, NotImplementedError):  # a build of torch without it
        return False
    if _by_amd():
        return True
    blas = _seconds(lambda: F.linear(x, weight))
    return blas >= LEAD * _seconds(lambda: asked(x, weight, None, "none", [], ""))


def _by_amd() -> bool:
    """Whether the processor is AMD's. Torch's BLAS, MKL, takes slower code on those: 219 GFLOP/s
    where oneDNN has 510. Timed on a busy machine that may seem otherwise, and two engines of one
    run would differ in the last bit."""
    with contextlib.suppress(OSError):
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    return False


def packed(weight: Tensor) -> Tensor | None:
    """A copy of `weight` (out, in) in the order in which oneDNN reads it; None where no copy is
    worth its memory: on a GPU, of few numbers, and where oneDNN is not what multiplies them.

    In any other order oneDNN arranges a weight anew, in parts, at every product. With few rows that
    takes as long as the product itself.
    """
    if weight.device.type != "cpu" or weight.numel() < PACKED:
        return None
    if not (onednn_multiplies_bfloat16() if weight.dtype == torch.bfloat16 else onednn_leads()):
        return None
    found: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
    return found


@cache
def onednn_multiplies_bfloat16() -> bool:
    """Whether oneDNN has bfloat16 on this CPU; torch asks it for those products where it does."""
    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError, NotImplementedError):  # a build of torch without it
        return False


def _seconds(run: Callable[[], object]) -> float:
    """The shortest of a few times: other work can only lengthen one."""
    took = []
    for _ in range(REPEATS + 1):
        began = time.perf_counter()
        run()
        took.append(time.perf_counter() - began)
    return min(took[1:])
