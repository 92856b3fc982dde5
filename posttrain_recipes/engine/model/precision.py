"""Which library multiplies float32 on this machine, found by measuring and not by its name: the
BLAS that torch asks (MKL), which on some CPUs leaves their widest instructions unused, or oneDNN,
which torch carries too.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from posttrain_recipes import content

ROWS, WIDTH = 256, 512
"""Tokens and features of the product that is timed: about a millisecond."""
REPEATS = 15
LEAD = 1.3
"""oneDNN is taken where it is so many times as fast: a choice that chance does not change."""
PACKED = 1 << 17
"""Numbers of a weight that is packed, at least: the small ones of toys stay in a core's cache."""


@cache
def onednn_leads() -> bool:
    """Whether oneDNN multiplies float32 clearly faster than torch's BLAS does.

    Measured once on a machine and kept: timed anew by each engine, on a busy machine one of them
    would take the other library, and two engines of one run would differ in the last bit.
    """
    if not _carries_onednn():
        return False
    path = content.cache_dir() / "speed" / f"float32-{_machine()}"
    kept = _read(path)
    if kept is None:
        _keep(path, _timed())
        kept = _read(path)  # another engine may have been the first
    return _timed() if kept is None else kept


def _carries_onednn() -> bool:
    try:
        _by_onednn()
    except (AttributeError, RuntimeError, NotImplementedError):  # a build of torch without it
        return False
    return True


@cache
def _timed() -> bool:
    """In turns, so that other work lengthens both: the shortest time of each."""
    blas, onednn = [], []
    for _ in range(REPEATS + 1):
        blas.append(_seconds(_by_blas))
        onednn.append(_seconds(_by_onednn))
    return min(blas[1:]) >= LEAD * min(onednn[1:])


def _by_blas() -> None:
    F.linear(*_operands())


def _by_onednn() -> None:
    torch.ops.mkldnn._linear_pointwise(*_operands(), None, "none", [], "")


@cache
def _operands() -> tuple[Tensor, Tensor]:
    return torch.ones(ROWS, WIDTH), torch.ones(WIDTH, WIDTH)


def _machine() -> str:
    known = [platform.node(), platform.machine(), torch.__version__, torch.get_num_threads()]
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        known += sorted({line for line in lines if line.startswith("model name")})
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()[:16]


def _read(path: Path) -> bool | None:
    """What was kept; None where nothing is, or something else."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return {"onednn": True, "blas": False}.get(path.read_text(encoding="utf-8"))
    return None


def _keep(path: Path, leads: bool) -> None:
    """Write it whole unless it is there: of several engines the first decides for all."""
    if not content.cache_dir().is_dir():  # looking makes no directory
        return
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        if _read(path) is None:  # nothing, or nothing whole
            path.unlink(missing_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.") as file:
            file.write(b"onednn" if leads else b"blas")
            file.flush()
            os.link(file.name, path)


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
    began = time.perf_counter()
    run()
    return time.perf_counter() - began
