"""What bfloat16 changes: loss curves beside those of float32, on the same batches of GSM8K, and how
far the log-probabilities of sampled tokens are from those of the training pass.

    python benchmarks/precision.py --model DIR --gsm8k gsm8k_train.jsonl
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import common
import numpy as np

LENGTH, BATCH, HELD = 129, 4, 60
"""Tokens of a text at most, texts of a step, and texts that are not trained on."""
PROMPT, NEW = 40, 48
"""Tokens of a prompt that is continued, and of what follows."""


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tiny", help="tiny, nano or a path")
    parser.add_argument("--gsm8k", required=True, help="a GSM8K file")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rate", type=float, default=3e-4)
    args = parser.parse_args()
    print(common.machine())
    path = common.model_path(args.model, Path())
    rows = _rows(path, args.gsm8k, BATCH * args.steps + HELD)
    found = {dtype: measure(path, rows, dtype, args) for dtype in ("float32", "bfloat16")}
    curve, held = (found["bfloat16"][i] - found["float32"][i] for i in (0, 1))
    noise = np.diff(found["float32"][0]).std()
    print(
        f"bfloat16 - float32, training: {curve.mean():+.4f} nats a token, at most "
        f"{np.abs(curve).max():.4f} at one step; float32 moves by {noise:.4f} a step"
    )
    half = 1.96 * held.std(ddof=1) / len(held) ** 0.5
    print(f"bfloat16 - float32, held out: {held.mean():+.4f} ±{half:.4f}")


def _rows(path: str, file: str, count: int) -> list[Any]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path)
    texts = [f"{question}\n{answer}" for question, answer in common.gsm8k(file, count)]
    return [np.array(tokenizer(text)["input_ids"][:LENGTH]) for text in texts]


def measure(path: str, rows: list[Any], dtype: str, args: argparse.Namespace) -> tuple[Any, Any]:
    """Nats a token of each step, and of each text that is not trained on."""
    import torch

    from posttrain_recipes.engine.generate.batcher import sample
    from posttrain_recipes.engine.model.base import BaseModel, new_adapter
    from posttrain_recipes.engine.train.forward_backward import forward_backward
    from posttrain_recipes.engine.wire import (
        AdamParams,
        AdapterConfig,
        Chunk,
        Datum,
        ModelInput,
        SampleRequest,
        SamplingParams,
    )

    base = BaseModel("bench", path, torch.device("cpu"), getattr(torch, dtype))
    adapter = new_adapter(base, AdapterConfig(rank=16, seed=0, train_unembed=False))

    def run(texts: list[Any], forward_only: bool) -> Any:
        data = [Datum(row[:-1], {"target_tokens": row[1:]}) for row in texts]
        return forward_backward(base, adapter, data, "cross_entropy", {}, forward_only)

    held, curve = rows[:HELD], []
    for start in range(HELD, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        loss = run(batch, False).metrics["loss:sum"]
        adapter.adam_step(AdamParams(learning_rate=args.rate))
        curve.append(loss / sum(row.size - 1 for row in batch))
    apart = np.array([-values.mean() for values in run(held, True).logprobs])
    requests = [
        SampleRequest(
            "bench", index, ModelInput([Chunk(tokens=row[:PROMPT].tolist())]),
            SamplingParams(max_tokens=NEW, stop=[], seed=index), 4,
        )
        for index, row in enumerate(held[:6])
    ]  # fmt: skip
    distances = []
    for request, result in zip(requests, sample(base, adapter.snapshot(), requests), strict=True):
        prompt = request.prompt.tokens()
        for sequence in result.sequences:  # type: ignore[union-attr]
            whole = np.concatenate([prompt, sequence.tokens]).astype(np.int64)
            [trained] = run([whole], True).logprobs
            distances.append(np.abs(trained[prompt.size - 1 :] - sequence.logprobs))
    far = np.concatenate(distances)
    print(
        f"{dtype}: last ten steps {np.mean(curve[-10:]):.4f}, held out {apart.mean():.4f}; sampled "
        f"and trained log-probabilities {far.mean():.5f} apart, mean of {far.size}",
        flush=True,
    )
    return np.array(curve), apart


if __name__ == "__main__":
    main()
