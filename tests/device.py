"""Where the engine's tests compute: on the CPU in float32, unless the environment says otherwise.

`PTL_TEST_DEVICE=cuda` has them compute on a GPU, and `PTL_TEST_DTYPE=bfloat16` in what the engine
takes there. That is how `benchmarks/gpu.py` runs them; both together work on a CPU too.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from posttrain_recipes.engine.model.base import BaseModel

DEVICE = torch.device(os.environ.get("PTL_TEST_DEVICE", "cpu"))
DTYPE: torch.dtype = getattr(torch, os.environ.get("PTL_TEST_DTYPE", "float32"))
EXACT = torch.float32 == DTYPE

exact = pytest.mark.skipif(
    not EXACT, reason="equality is asserted, which rounding to bfloat16 breaks"
)
on_cpu = pytest.mark.skipif(DEVICE.type != "cpu", reason="about what the engine does on a CPU")


def base_model(folder: Path, name: str = "test", **options: Any) -> BaseModel:
    """The model in `folder`, where and in what the tests compute."""
    return BaseModel(name, str(folder), DEVICE, **{"dtype": DTYPE, **options})


def near(tolerance: float) -> float:
    """A tolerance for float32 on a CPU, as wide as it has to be here."""
    if not EXACT:
        return max(tolerance, 0.25)
    return tolerance if DEVICE.type == "cpu" else 10 * tolerance


def noise(like: Tensor, seed: int) -> Tensor:
    """Normal numbers in the shape of `like`, the same ones on every device."""
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(seed)).to(like.device)


def close(mine: Tensor, theirs: Tensor) -> None:
    """Assert that two gradients are the same but for the order of their sums."""
    if EXACT:
        torch.testing.assert_close(mine, theirs, rtol=near(1e-3), atol=near(1e-4))
        return
    scale = theirs.abs().max()
    torch.testing.assert_close(mine / scale, theirs / scale, rtol=0.0, atol=near(0.0))
