"""How long others wait beside a saturating stream of samples: a short request, a new model, a step.

    python benchmarks/latency.py --model tiny

One client samples from an adapter with 64 requests under way at all times, of up to 256 tokens.
Beside it another asks for 4 and for 16 tokens of the base model, makes a LoRA model, and trains a
step of 8 x 32 tokens. Of a request for n tokens the bound is its time alone and two decoding steps
of the stream for each token. A step is what the stream alone takes for a token of each sequence.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import common

STREAM, LENGTH = 64, 256


def main() -> int:
    """Time each alone and beside the stream; 1 where a short request missed its bound."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny", help="tiny, nano, 1m, 100m or a path")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    print(common.machine())
    with tempfile.TemporaryDirectory() as folder:
        path = common.model_path(args.model, Path(folder))
        with common.engine(path) as (_, service):
            return compare(args.model, service, args.repeats)


def compare(name: str, service, repeats: int) -> int:  # type: ignore[no-untyped-def]
    """Print a row for each kind of work."""
    import numpy as np
    import tinker

    rng = np.random.default_rng(0)
    prompts = rng.integers(3, 500, (STREAM, 16))
    trained = service.create_lora_training_client("bench", rank=8).result()
    streamed = trained.save_weights_and_get_sampling_client().result()
    base = service.create_sampling_client(base_model="bench").result()
    datum = tinker.Datum(
        model_input=tinker.ModelInput.from_ints(list(range(3, 35))),
        loss_fn_inputs={"target_tokens": list(range(4, 36)), "weights": [1.0] * 32},
    )
    learner = service.create_lora_training_client("bench", rank=8).result()

    def ask(sampler, prompt, tokens: int):  # type: ignore[no-untyped-def]
        plan = tinker.SamplingParams(max_tokens=tokens, stop=[], temperature=1.0)
        return sampler.sample(tinker.ModelInput.from_ints(list(map(int, prompt))), 1, plan)

    def train() -> None:
        passed = learner.forward_backward([datum] * 8, "cross_entropy")
        learner.optim_step(tinker.AdamParams(learning_rate=1e-4)).result()
        passed.result()

    work: dict[str, Callable[[], object]] = {
        "4 tokens": lambda: ask(base, prompts[0], 4).result(),
        "16 tokens": lambda: ask(base, prompts[0], 16).result(),
        "a new LoRA model": lambda: service.create_lora_training_client("bench", rank=8).result(),
        "a step of training": train,
    }
    alone = {kind: _median(run, repeats) for kind, run in work.items()}
    start = time.perf_counter()
    for future in [ask(streamed, prompt, LENGTH) for prompt in prompts]:
        future.result()
    step = (time.perf_counter() - start) / LENGTH
    over = threading.Event()

    def keep_asking(prompt) -> None:  # type: ignore[no-untyped-def]
        while not over.is_set():
            ask(streamed, prompt, LENGTH).result()

    threads = [threading.Thread(target=keep_asking, args=(prompt,)) for prompt in prompts]
    for thread in threads:
        thread.start()
    beside = {kind: _median(run, repeats) for kind, run in work.items()}
    over.set()
    for thread in threads:
        thread.join()
    print(f"\n{name}: beside {STREAM} sequences, a step of which takes {1000 * step:.1f} ms")
    missed = 0
    for kind in work:
        told = ""
        if kind.endswith("tokens"):
            tokens = int(kind.split()[0])
            bound = alone[kind] + 2 * tokens * step
            missed += beside[kind] > bound
            told = f"   bound {bound:.3f} s: {'MISSED' if beside[kind] > bound else 'kept'}"
        print(f"  {kind:<20} alone {alone[kind]:.3f} s, beside it {beside[kind]:.3f} s{told}")
    return 1 if missed else 0


def _median(run: Callable[[], object], repeats: int) -> float:
    taken = []
    for turn in range(repeats + 1):
        start = time.perf_counter()
        run()
        if turn:
            taken.append(time.perf_counter() - start)
    return statistics.median(taken)


if __name__ == "__main__":
    raise SystemExit(main())
