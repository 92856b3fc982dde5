"""What this machine multiplies fast, found by measuring and not by its name.

Two questions. Which library multiplies float32: the BLAS that torch asks (MKL), which on some CPUs
leaves their widest instructions unused, or oneDNN, which torch carries too. And whether bfloat16
pays: a CPU without instructions for it multiplies it slower than float32.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache

import torch
from torch.nn import functional as F

ROWS, WIDTH = 256, 512
"""Tokens and features of the products that are timed: about 2 ms each."""
REPEATS = 7
LEAD = 1.3
"""oneDNN is taken where it is so many times as fast: a choice that chance does not change."""
PAYS = 1.5
"""bfloat16 is worth its rounding where products are so many times as fast."""


@cache
def onednn_leads() -> bool:
    """Whether oneDNN multiplies float32 clearly faster than torch's BLAS does."""
    x, weight = torch.ones(ROWS, WIDTH), torch.ones(WIDTH, WIDTH)
    try:
        asked = torch.ops.mkldnn._linear_pointwise
        asked(x, weight, None, "none", [], "")
    except (AttributeError, RuntimeError, NotImplementedError):  # a build of torch without it
        return False
    blas = _seconds(lambda: F.linear(x, weight))
    return blas >= LEAD * _seconds(lambda: asked(x, weight, None, "none", [], ""))


@cache
def bfloat16_pays() -> bool:
    """Whether bfloat16 products are clearly faster than the fastest float32 ones."""
    x, weight = torch.ones(ROWS, WIDTH), torch.ones(WIDTH, WIDTH)
    wide = _seconds(lambda: F.linear(x, weight))
    if onednn_leads():
        asked = torch.ops.mkldnn._linear_pointwise
        wide = min(wide, _seconds(lambda: asked(x, weight, None, "none", [], "")))
    narrow, by = x.bfloat16(), weight.bfloat16()
    return wide >= PAYS * _seconds(lambda: F.linear(narrow, by))


def _seconds(run: Callable[[], object]) -> float:
    """The shortest of a few times: other work can only lengthen one."""
    took = []
    for _ in range(REPEATS + 1):
        began = time.perf_counter()
        run()
        took.append(time.perf_counter() - began)
    return min(took[1:])
