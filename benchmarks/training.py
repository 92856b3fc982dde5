"""Training steps through the SDK and the embedded engine, beside a plain torch + peft loop and, on
ragged text, TRL's SFTTrainer: the same model, LoRA rank, tokens and AdamW, all in float32 unless
--dtype says otherwise of the engine.

    python benchmarks/training.py --model tiny
    python benchmarks/training.py --model tiny --gsm8k gsm8k_train.jsonl
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import common

if TYPE_CHECKING:
    import numpy as np


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tiny", help="tiny, nano, 1m, 100m or a path")
    parser.add_argument("--gsm8k", help="a GSM8K file: ragged text, max length 512, batch 8")
    parser.add_argument("--steps", type=int, default=20, help="steps of one repeat")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--dtype", default="float32", help="of the engine; that of its peers is float32"
    )
    parser.add_argument("--tokens", default="8x128", help="sequences x tokens of a step")
    parser.add_argument("--checkpoint", action="store_true", help="torch + peft recomputes layers")
    parser.add_argument(
        "--once",
        action="store_true",
        help="one step of the engine and one of torch + peft, the first ones: of long sequences",
    )
    args = parser.parse_args()
    print(common.machine())
    with tempfile.TemporaryDirectory() as folder:
        path = common.model_path(args.model, Path(folder))
        run = ragged if args.gsm8k else fixed
        run(path, args)


def sdk_steps(client, batches) -> None:  # type: ignore[no-untyped-def]
    """One step a batch, the next sent before the last is awaited."""
    import tinker

    adam = tinker.AdamParams(learning_rate=1e-4)
    waiting = []
    for batch in batches:
        waiting.append(client.forward_backward(batch, "cross_entropy"))
        waiting.append(client.optim_step(adam))
        while len(waiting) > 4:
            waiting.pop(0).result()
    for future in waiting:
        future.result()


def datum(tokens, weights=None):  # type: ignore[no-untyped-def]
    """A sequence with its next tokens as targets."""
    import numpy as np
    import tinker

    tokens = np.asarray(tokens)
    weights = np.ones(len(tokens) - 1, np.float32) if weights is None else weights
    return tinker.Datum(
        model_input=tinker.ModelInput.from_ints(tokens[:-1].tolist()),
        loss_fn_inputs={"target_tokens": tokens[1:], "weights": weights},
    )


def fixed(path: str, args: argparse.Namespace) -> None:
    """Sequences of one length, 8 of 128 tokens unless `--tokens` says otherwise."""
    import torch
    from torch.nn import functional as F

    model = common.plain_model(path)
    model.train()
    if args.checkpoint:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    vocab = model.config.vocab_size
    rows, length = map(int, args.tokens.split("x"))
    ids = torch.randint(0, vocab, (rows, length + 1), generator=torch.Generator().manual_seed(0))

    steps = 1 if args.once else args.steps

    def plain() -> None:
        for _ in range(steps):
            logits = model(input_ids=ids[:, :-1]).logits
            F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum").backward()
            optimizer.step()
            optimizer.zero_grad()

    with common.engine(path, args.dtype) as (process, service):
        client = service.create_lora_training_client("bench", rank=32, train_unembed=False).result()
        batch = [datum(row) for row in ids.tolist()]
        title = f"{args.model}: {args.tokens} tokens a step, {args.dtype}"
        sides: dict[str, Callable[[], None]] = {
            "engine, by the SDK": lambda: sdk_steps(client, [batch] * steps),
            "torch + peft": plain,
        }
        if args.once:
            common.report(title, common.interleave(sides, 1, warm=0), 1, "steps/s")
            return
        sides["engine, without the wire"] = in_process(path, ids.numpy(), steps, args.dtype)
        timed = common.interleave(sides, args.repeats)
        start, before = time.perf_counter(), common.computing(process)
        sdk_steps(client, [batch] * (4 * args.steps))
        busy = (common.computing(process) - before) / (time.perf_counter() - start)
    common.report(title, timed, args.steps, "steps/s")
    print(f"  one step ahead, the engine waits for {1 - busy:.1%} of the time")


def in_process(path: str, ids: np.ndarray, steps: int, dtype: str) -> Callable[[], None]:
    """The same steps by the engine's own functions: what the wire and the scheduler add is the
    difference."""
    import torch

    from posttrain_recipes.engine.model.base import BaseModel, new_adapter
    from posttrain_recipes.engine.train.forward_backward import forward_backward
    from posttrain_recipes.engine.wire import AdamParams, AdapterConfig, Datum

    base = BaseModel("bench", path, torch.device("cpu"), getattr(torch, dtype))
    adapter = new_adapter(base, AdapterConfig(rank=32, seed=0, train_unembed=False))
    data = [Datum(row[:-1], {"target_tokens": row[1:]}) for row in ids]

    def run() -> None:
        for _ in range(steps):
            forward_backward(base, adapter, data, "cross_entropy", {}, False)
            adapter.adam_step(AdamParams())

    return run


def ragged(path: str, args: argparse.Namespace) -> None:
    """GSM8K, batch 8, at most 512 tokens, against SFTTrainer on the same token ids."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(path)
    texts = [f"{q}\n{a}" for q, a in common.gsm8k(args.gsm8k, 8 * args.steps)]
    rows = [tokenizer(text, truncation=True, max_length=512)["input_ids"] for text in texts]
    tokens = sum(map(len, rows))
    batches = [[datum(row) for row in rows[i : i + 8]] for i in range(0, len(rows), 8)]
    dataset = Dataset.from_dict({"input_ids": rows})

    options = {
        "per_device_train_batch_size": 8,
        "num_train_epochs": 1,
        "max_length": 512,
        "learning_rate": 1e-4,
    }

    def trainer() -> SFTTrainer:
        return common.trl_trainer(path, SFTTrainer, SFTConfig, options, train_dataset=dataset)

    timed = common.beside_trl(path, batches, sdk_steps, trainer, args.repeats)
    title = f"{args.model}: GSM8K, batch 8, {tokens} tokens, the longest {max(map(len, rows))}"
    common.report(title, timed, tokens, "tokens/s")


if __name__ == "__main__":
    main()
