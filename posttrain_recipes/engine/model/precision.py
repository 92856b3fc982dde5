"""Which library multiplies float32 on this machine, found by measuring and not by its name: the
BLAS that torch asks (MKL), which on some CPUs leaves their widest instructions unused, or oneDNN,
which torch carries too.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache

import torch
from torch.nn import functional as F

ROWS, WIDTH = 256, 512
"""Tokens and features of the product that is timed: about a millisecond."""
REPEATS = 7
LEAD = 1.3
"""oneDNN is taken where it is so many times as fast: a choice that chance does not change."""


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


def _seconds(run: Callable[[], object]) -> float:
    """The shortest of a few times: other work can only lengthen one."""
    took = []
    for _ in range(REPEATS + 1):
        began = time.perf_counter()
        run()
        took.append(time.perf_counter() - began)
    return min(took[1:])
