"""A layer's functions by TorchScript, by Python alone and by torch.compile: what a step of training
and a token for 64 sequences take, and how long it takes to compile them.

    python benchmarks/layers.py --model tiny

Each way runs in a process of its own. torch.compile needs a C++ compiler, which the engine does
not; it does not read packed weights, so that all ways multiply by plain ones here.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common

WAYS = ("TorchScript", "Python", "torch.compile")
RANK = 32
LAYER = (
    "after_attention_kept",
    "after_attention_backward",
    "before_attention_backward",
    "before_attention",
    "after_attention",
)
"""Of `kernels`, what the engine calls for a layer of a pass; it runs them by Python."""


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tiny", help="tiny, nano, 1m, 100m or a path")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--ways", nargs="+", default=WAYS, choices=WAYS)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.alone:
        print(json.dumps(measure(args.alone, args)))
        return
    print(common.machine())
    print(f"{args.model}, {args.dtype}, median of {args.repeats}")
    print(f"  {'':14} {'8 x 128 tokens':>15} {'a token of 64':>15} {'first of each':>15}")
    with tempfile.TemporaryDirectory() as folder:
        path = common.model_path(args.model, Path(folder))
        for way in args.ways:
            command = [sys.executable, __file__, "--model", path, "--dtype", args.dtype]
            command += ["--repeats", str(args.repeats), "--alone", way]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                print(f"  {way:14} failed: {done.stderr.strip().splitlines()[-1]}", flush=True)
                continue
            train, token, first = json.loads(done.stdout.splitlines()[-1])
            print(
                f"  {way:14} {train * 1e3:12.1f} ms {token * 1e3:12.2f} ms {first:13.1f} s",
                flush=True,
            )


def measure(way: str, args: argparse.Namespace) -> list[float]:
    """Seconds of a step of training, of a token for 64 sequences, and of the first of each."""
    import torch

    from posttrain_recipes.engine.model import kernels

    made = {
        "TorchScript": kernels.compiled,
        "Python": lambda function: function,
        "torch.compile": lambda function: torch.compile(function, dynamic=True),
    }[way]
    if way == "torch.compile":
        kernels.matmul = _matmul()
    from posttrain_recipes.engine.generate import decode_step, slots
    from posttrain_recipes.engine.model import base as bases

    slots._step = made(decode_step.step)
    # Inductor takes no view of a tensor that is written to, as backward passes have.
    chosen = [name for name in LAYER if way != "torch.compile" or "backward" not in name]
    for name in chosen:
        setattr(kernels, name, made(getattr(kernels, name)))

    bases.COPY_LIMIT = 0  # neither packed nor merged
    torch.set_num_threads(bases._cores())
    path = common.model_path(args.model, Path())
    base = bases.BaseModel("bench", path, torch.device("cpu"), getattr(torch, args.dtype))
    assert base.decoder is not None, "the engine's own decoder does not take this model"
    times = [_timed(run, args.repeats) for run in (_training(base), _sampling(base))]
    (train, first), (sampled, second) = times
    return [train, sampled / 32, first + second]


def _matmul() -> Callable[..., Any]:
    """`kernels.matmul` as torch.compile takes it, which knows oneDNN's product for constant weights
    alone: as an operation that it does not look into."""
    import torch
    from torch import Tensor
    from torch.nn import functional as F

    schema = "(Tensor x, Tensor weight, Tensor? bias) -> Tensor"

    @torch.library.custom_op("bench::linear", mutates_args=(), schema=schema)
    def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")

    @linear.register_fake
    def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return x.new_empty(x.shape[0], weight.shape[0])

    def matmul(x: Tensor, weight: Tensor, bias: Tensor | None, onednn: bool) -> Tensor:
        contiguous = weight.is_contiguous() or weight.t().is_contiguous()
        if onednn and x.dim() == 2 and x.shape[0] * weight.numel() >= 2097152 and contiguous:
            return torch.ops.bench.linear(x, weight, bias)
        return F.linear(x, weight, bias)

    return matmul


def _timed(run: Callable[[], object], repeats: int) -> tuple[float, float]:
    """The median of `repeats` runs after two, and the time of those two beyond it."""
    took = []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        run()
        took.append(time.perf_counter() - start)
    median = statistics.median(took[2:])
    return median, sum(took[:2]) - 2 * median


def _training(base: Any) -> Callable[[], object]:
    import numpy as np

    from posttrain_recipes.engine.model.base import new_adapter
    from posttrain_recipes.engine.train.forward_backward import forward_backward
    from posttrain_recipes.engine.wire import AdamParams, AdapterConfig, Datum

    adapter = new_adapter(base, AdapterConfig(rank=RANK, seed=0, train_unembed=False))
    rows = np.random.default_rng(0).integers(3, base.vocab, (8, 129))
    data = [Datum(row[:-1], {"target_tokens": row[1:]}) for row in rows]

    def run() -> None:
        forward_backward(base, adapter, data, "cross_entropy", {}, False)
        adapter.adam_step(AdamParams())

    return run


def _sampling(base: Any) -> Callable[[], object]:
    """32 tokens of 64 samples of one prompt, which takes no time to read."""
    from posttrain_recipes.engine.generate.batcher import sample
    from posttrain_recipes.engine.wire import Chunk, ModelInput, SampleRequest, SamplingParams

    asked = SampleRequest(
        "bench", 0, ModelInput([Chunk(tokens=[5, 6, 7, 8])]),
        SamplingParams(max_tokens=32, stop=[], seed=0), 64,
    )  # fmt: skip
    return lambda: sample(base, None, [asked])


if __name__ == "__main__":
    main()
