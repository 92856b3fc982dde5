"""Measure the peak memory of a training step of the embedded engine, beside the estimate.

    python tools/memory.py --model ptl/tiny --batch 8 --tokens 512 --rank 16

Each call is a process of its own, as memory that was taken once is not given back. The step is of
`batch` sequences of `tokens` random tokens each.
"""

from __future__ import annotations

import argparse
import json
import resource
from pathlib import Path

import numpy as np

from posttrain_recipes import models
from posttrain_recipes.planning import memory
from posttrain_recipes.shape import Shape


def measured(folder: str, batch: int, tokens: int, rank: int) -> int:
    """The peak resident set of this process, in bytes, after one step."""
    import torch

    import posttrain_recipes.engine.app  # noqa: F401  what the engine's process has loaded
    from posttrain_recipes.engine.model.base import BaseModel
    from posttrain_recipes.engine.model.lora import Adapter
    from posttrain_recipes.engine.train.forward_backward import forward_backward
    from posttrain_recipes.engine.wire import AdamParams, AdapterConfig, Datum

    base = BaseModel("measured", folder, torch.device("cpu"))
    adapter = Adapter(AdapterConfig(rank=rank, seed=0), base.targets, base.device)
    draw = np.random.default_rng(0)
    data = []
    for _ in range(batch):
        ids = draw.integers(0, base.vocab, tokens + 1, dtype=np.int64)
        inputs = {"target_tokens": ids[1:], "weights": np.ones(tokens, dtype=np.float32)}
        data.append(Datum(ids[:-1], inputs))
    for _ in range(2):
        forward_backward(base, adapter, data, "cross_entropy", {}, False)
        adapter.adam_step(AdamParams())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="ptl/tiny")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--rank", type=int, default=16)
    args = parser.parse_args()
    folder = models.resolve(args.model)
    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    shape = Shape.of(config)
    assert shape is not None
    estimate = memory.training(shape, args.rank, args.batch, args.tokens, memory.cores())
    found = measured(folder, args.batch, args.tokens, args.rank)
    print(
        f"{args.model} rank {args.rank}, {args.batch} x {args.tokens} tokens: measured "
        f"{found / 2**20:,.0f} MiB, estimated {estimate / 2**20:,.0f} MiB "
        f"({estimate / found - 1:+.0%})"
    )


if __name__ == "__main__":
    main()
