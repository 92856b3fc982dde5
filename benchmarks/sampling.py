"""Sampling through the SDK and the embedded engine, beside transformers' `generate`: 64 samples of
64 tokens, as one request or as 64; on prompts of 500 tokens, a group of 16 and 64 that begin alike.

    python benchmarks/sampling.py --model tiny
    python benchmarks/sampling.py --model DIR --short --llama bf16 q8_0
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import common

if TYPE_CHECKING:
    import numpy as np


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tiny", help="tiny, nano, 1m, 100m or a path")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--dtype", default="float32", help="of the engine; that of its peers is float32"
    )
    parser.add_argument("--short", action="store_true", help="64 x 64 tokens alone")
    parser.add_argument(
        "--llama",
        nargs="+",
        default=[],
        choices=["f32", "f16", "bf16", "q8_0"],
        help="llama.cpp too, with weights of these types: pip install llama-cpp-python",
    )
    args = parser.parse_args()
    print(common.machine())
    with tempfile.TemporaryDirectory() as folder:
        compare(common.model_path(args.model, Path(folder)), Path(folder), args)


def compare(path: str, folder: Path, args: argparse.Namespace) -> None:
    """Time the sides in turn, and print them."""
    import numpy as np
    import tinker
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    rng = np.random.default_rng(0)
    prompts = rng.integers(3, model.config.vocab_size, (64, 64))
    long = rng.integers(3, model.config.vocab_size, 500)
    plan = tinker.SamplingParams(max_tokens=64, stop=[], temperature=1.0)

    def generate(ids: np.ndarray) -> None:
        with torch.no_grad():
            model.generate(
                torch.from_numpy(ids), do_sample=True, max_new_tokens=64, min_new_tokens=64,
                eos_token_id=None, pad_token_id=0,
            )  # fmt: skip

    with common.engine(path, args.dtype) as (_, service):
        sampler = service.create_sampling_client(base_model="bench").result()

        def one(ids: np.ndarray, count: int, most: tinker.SamplingParams = plan) -> None:
            sampler.sample(tinker.ModelInput.from_ints(ids.tolist()), count, most).result()

        def each(texts: Sequence[np.ndarray], most: tinker.SamplingParams = plan) -> None:
            futures = [
                sampler.sample(tinker.ModelInput.from_ints(text.tolist()), 1, most)
                for text in texts
            ]
            for future in futures:
                future.result()

        timed = common.interleave(
            {
                "engine, 1 request of 64": lambda: one(prompts[0], 64),
                "engine, 64 requests of 1": lambda: each(prompts),
                "generate, one prompt": lambda: generate(prompts[:1].repeat(64, 0)),
                "generate, 64 prompts": lambda: generate(prompts),
                **llamas(path, folder, args.llama, prompts),
            },
            args.repeats,
        )
        common.report(f"{args.model}: 64 x 64 tokens, {args.dtype}", timed, 64 * 64, "tokens/s")
        if args.short:
            return
        once = tinker.SamplingParams(max_tokens=1, stop=[])
        timed = common.interleave(
            {
                "a group of 16, one token": lambda: one(long, 16, once),
                "one sample, one token": lambda: one(long, 1, once),
            },
            args.repeats,
        )
        common.report(f"{args.model}: a prompt of 500 tokens", timed, 1, "requests/s")
        ends = rng.integers(3, model.config.vocab_size, (64, 8))
        alike = [np.r_[long, end] for end in ends]
        apart = rng.integers(3, model.config.vocab_size, (64, 508))

        timed = common.interleave(
            {
                "500 of 508 tokens in common": lambda: each(alike, once),
                "none in common": lambda: each(apart, once),
            },
            args.repeats,
        )
        common.report(f"{args.model}: first tokens of 64 prompts", timed, 64, "requests/s")


def llamas(
    path: str, folder: Path, kinds: Sequence[str], prompts: np.ndarray
) -> dict[str, Callable[[], object]]:
    """llama.cpp's sides, one prompt and 64, for each type of weights."""
    import llama

    from posttrain_recipes.machine import cores

    sides: dict[str, Callable[[], object]] = {}
    for kind in kinds:
        made = llama.Llama(llama.gguf(path, kind, folder), 64, 128, cores())
        for name, texts in (("one prompt", prompts[:1]), ("64 prompts", prompts)):
            sides[f"llama.cpp {kind}, {name}"] = partial(made.generate, texts, 64, 64)
    return sides


if __name__ == "__main__":
    main()
