"""What the embedded engine costs beside its computing: the time from its start to the first
answered sample, its memory over many steps and samples, and 32 adapters on one model.

    python benchmarks/footprint.py --model tiny --rounds 200
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import common


def memory(pid: int) -> float:
    """Resident megabytes of a process."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise OSError(f"no memory figure for process {pid}")


def main() -> None:
    """Run all of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tiny", help="tiny, nano, 1m, 100m or a path")
    parser.add_argument("--rounds", type=int, default=100, help="of one step and 10 samples")
    args = parser.parse_args()
    print(common.machine())
    with tempfile.TemporaryDirectory() as folder:
        path = common.model_path(args.model, Path(folder))
        measure(path, args)


def measure(path: str, args: argparse.Namespace) -> None:
    """Print every figure."""
    import numpy as np
    import tinker
    from training import datum

    start = time.perf_counter()
    with common.engine(path) as (process, service):
        sampler = service.create_sampling_client(base_model="bench").result()
        prompt = tinker.ModelInput.from_ints(list(range(3, 35)))
        plan = tinker.SamplingParams(max_tokens=16, stop=[])
        sampler.sample(prompt, 1, plan).result()
        print(f"\nfrom start to the first answered sample: {time.perf_counter() - start:.1f} s")
        print(f"resident then: {memory(process.pid):.0f} MB")

        client = service.create_lora_training_client("bench", rank=32).result()
        rng = np.random.default_rng(0)
        batch = [datum(rng.integers(0, 1000, 33)) for _ in range(4)]
        adam = tinker.AdamParams(learning_rate=1e-4)
        for done in range(args.rounds + 1):
            if done % max(1, args.rounds // 8) == 0:
                print(f"after {done:5d} steps and {10 * done:6d} samples: "
                      f"{memory(process.pid):.0f} MB", flush=True)  # fmt: skip
            client.forward_backward(batch, "cross_entropy")
            client.optim_step(adam).result()
            sampler.sample(prompt, 10, plan).result()

        clients = [client] + [
            service.create_lora_training_client("bench", rank=32).result() for _ in range(31)
        ]
        print(f"with 32 adapters: {memory(process.pid):.0f} MB")

        def steps(count: int) -> None:
            futures = []
            for which in range(32):
                mine = clients[which % count]
                mine.forward_backward(batch, "cross_entropy")
                futures.append(mine.optim_step(adam))
            for future in futures:
                future.result()

        timed = common.interleave(
            {"1 adapter": lambda: steps(1), "32 adapters, in turn": lambda: steps(32)}, 5
        )
        common.report(f"{args.model}: 4 x 32 tokens a step", timed, 32, "steps/s")


if __name__ == "__main__":
    main()
