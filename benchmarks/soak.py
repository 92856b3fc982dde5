"""The embedded engine under load for long: 64 clients of the SDK at once, 16 of which train an
adapter each while the others sample, and nothing may be lost, mixed up or kept.

    python benchmarks/soak.py --minutes 10
    python benchmarks/soak.py --minutes 10 --faults 5

Looked at: every request is answered; every adapter took exactly the steps that were asked for, in
their order (some are trained again on a quiet engine, and every loss has to agree); every sample is
as long as it was asked to be; log-probabilities of known prompts do not change; how long samples
are waited for; and how the engine's memory grows once it is warm. With `--faults P` a proxy drops,
delays or doubles P percent of all requests. Exits with 1 where anything is lost, wrong or kept.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import common
from footprint import memory

sys.path.insert(0, str(Path(__file__).parents[1]))  # the proxy is that of the tests

FAULTS = ("cut_before", "cut_after", "late", "slow", "twice")
AHEAD = 2
"""Training steps that a client sends before it waits for the first."""
SAVE_EVERY = 25
"""Steps between two times that an adapter's weights are handed to those who sample."""
WARM_S = 120.0
"""Memory may grow before this; at most `SLOPE` megabytes a minute after it."""
SLOPE = 1.0
TOLERANCE = 1e-3
"""How far a loss or a log-probability may be from that of a quiet engine: in another batch the same
sum is taken in another order."""
ANSWER_S = 120.0


@dataclass
class Seen:
    """What the clients saw."""

    losses: dict[int, list[float]] = field(default_factory=dict)
    """By adapter: the loss of every step."""
    waits: list[float] = field(default_factory=list)
    """Seconds from each request for samples to its answer."""
    probes: int = 0
    faults: list[str] = field(default_factory=list)
    """What was lost or wrong."""
    memory: list[tuple[float, float]] = field(default_factory=list)
    """(seconds since the start, megabytes of the engine)"""


def datum(adapter: int, step: int) -> Any:
    """16 tokens of this step alone: one that is lost, doubled or late changes what follows."""
    import tinker

    tokens = random.Random(1000 * adapter + step).choices(range(3, 200), k=17)
    return tinker.Datum(
        tinker.ModelInput.from_ints(tokens[:-1]),
        {"target_tokens": tokens[1:], "weights": [1.0] * 16},
    )


def train(
    service: Any, adapter: int, going: Callable[[int], bool], share: Callable[[Any], None]
) -> list[float]:
    """Train an adapter for as long as `going(step)` says; the loss of every step."""
    import tinker

    client = service.create_lora_training_client("bench", rank=4, seed=adapter).result(ANSWER_S)
    adam = tinker.AdamParams(learning_rate=1e-3)
    sent: deque[tuple[Any, Any]] = deque()
    losses: list[float] = []

    def take() -> None:
        passed, stepped = sent.popleft()
        losses.append(float(passed.result(ANSWER_S).metrics["loss:sum"]))
        stepped.result(ANSWER_S)

    step = 0
    while going(step):
        data = [datum(adapter, step)]
        sent.append((client.forward_backward(data, "cross_entropy"), client.optim_step(adam)))
        step += 1
        if len(sent) > AHEAD:
            take()
        if step % SAVE_EVERY == 0:
            made = client.save_weights_and_get_sampling_client()
            share(made.result(ANSWER_S) if hasattr(made, "result") else made)
    while sent:
        take()
    return losses


class Soak:
    """One load on one engine."""

    def __init__(self, args: argparse.Namespace, path: str, url: str, key: str, pid: int) -> None:
        self.args, self.path, self.url, self.key, self.pid = args, path, url, key, pid
        self.seen = Seen()
        self.lock = threading.Lock()
        self.samplers: list[Any] = [None] * args.adapters
        self.end = time.monotonic() + 60 * args.minutes

    def service(self) -> Any:
        """A client of its own, with a session of its own."""
        import tinker

        return tinker.ServiceClient(base_url=self.url, api_key=self.key)

    def going(self, _: int = 0) -> bool:
        """Whether there is time left."""
        return time.monotonic() < self.end

    def guarded(self, what: str, work: Callable[[], None]) -> threading.Thread:
        """A thread that does this, and notes where it fails."""

        def run() -> None:
            try:
                work()
            except Exception as error:
                with self.lock:
                    self.seen.faults.append(f"{what}: {type(error).__name__}: {error}"[:300])

        thread = threading.Thread(target=run, daemon=True, name=what)
        thread.start()
        return thread

    def trainer(self, adapter: int) -> None:
        """Train one adapter, and hand its weights to those who sample."""

        def share(sampler: Any) -> None:
            self.samplers[adapter] = sampler

        losses = train(self.service(), adapter, self.going, share)
        with self.lock:
            self.seen.losses[adapter] = losses

    def sampling(self, number: int, known: list[tuple[list[int], list[float]]]) -> None:
        """Sample from adapters in turn, and now and then ask for what is known."""
        import tinker

        draw = random.Random(number)
        base = self.service().create_sampling_client(base_model="bench")
        base = base.result(ANSWER_S) if hasattr(base, "result") else base
        while self.going():
            sampler = draw.choice(self.samplers) or base
            count, length = draw.randint(1, 4), draw.randint(1, 32)
            prompt = tinker.ModelInput.from_ints(draw.choices(range(3, 200), k=draw.randint(1, 64)))
            params = tinker.SamplingParams(max_tokens=length, seed=draw.getrandbits(30), stop=[])
            start = time.perf_counter()
            answer = sampler.sample(prompt, count, params).result(ANSWER_S)
            wait = time.perf_counter() - start
            lengths = [len(one.tokens) for one in answer.sequences]
            with self.lock:
                self.seen.waits.append(wait)
                if len(lengths) != count or any(not 1 <= n <= length for n in lengths):
                    self.seen.faults.append(f"asked for {count} x {length} tokens: {lengths}")
            if draw.random() < 0.2:
                self.probe(base, *draw.choice(known))

    def probe(self, base: Any, tokens: list[int], want: list[float]) -> None:
        """Ask for log-probabilities that are known."""
        import tinker

        got = base.compute_logprobs(tinker.ModelInput.from_ints(tokens)).result(ANSWER_S)[1:]
        with self.lock:
            self.seen.probes += 1
            if max(abs(a - b) for a, b in zip(got, want, strict=True)) > TOLERANCE:
                self.seen.faults.append(f"other log-probabilities of {tokens}")

    def run(self) -> Seen:
        """Do all of it."""
        import tinker

        base = self.service().create_sampling_client(base_model="bench").result(ANSWER_S)
        known = []
        for i in range(16):
            tokens = random.Random(-1 - i).choices(range(3, 200), k=12)
            asked = base.compute_logprobs(tinker.ModelInput.from_ints(tokens))
            known.append((tokens, list(asked.result(ANSWER_S)[1:])))
        start = time.monotonic()
        threads = [
            self.guarded(f"adapter {i}", lambda i=i: self.trainer(i))
            for i in range(self.args.adapters)
        ]
        threads += [
            self.guarded(f"client {i}", lambda i=i: self.sampling(i, known))
            for i in range(self.args.clients - self.args.adapters)
        ]
        while any(thread.is_alive() for thread in threads):
            self.seen.memory.append((time.monotonic() - start, memory(self.pid)))
            for thread in threads:
                if time.monotonic() > self.end + 2 * ANSWER_S:
                    self.seen.faults.append(f"{thread.name} never ended")
                    return self.seen
                thread.join(2.0 / len(threads))
        return self.seen


def check(soak: Soak, url: str, key: str) -> None:
    """Train some adapters again on an engine that does nothing else, and compare every loss."""
    import tinker

    seen, args = soak.seen, soak.args
    missing = [i for i in range(args.adapters) if not seen.losses.get(i)]
    seen.faults += [f"adapter {i} has no losses" for i in missing]
    chosen = [i for i in range(args.adapters) if i not in missing][: args.again]

    def again(adapter: int) -> None:
        losses = seen.losses[adapter]
        service = tinker.ServiceClient(base_url=url, api_key=key)
        quiet = train(service, adapter, lambda step: step < len(losses), lambda _: None)
        for step, (one, other) in enumerate(zip(losses, quiet, strict=True)):
            if abs(one - other) > TOLERANCE * max(1.0, abs(other)):
                seen.faults.append(f"adapter {adapter}: loss {one:.4f}, not {other:.4f} at {step}")
                return

    for thread in [soak.guarded(f"again {i}", lambda i=i: again(i)) for i in chosen]:
        thread.join()


def slope(points: list[tuple[float, float]]) -> float | None:
    """Megabytes a minute, by least squares, of what was measured once the engine was warm."""
    warm = [(t / 60, mb) for t, mb in points if t >= WARM_S]
    if len(warm) < 10:
        return None
    return statistics.linear_regression([t for t, _ in warm], [mb for _, mb in warm]).slope


@contextmanager
def reached(args: argparse.Namespace, url: str) -> Iterator[tuple[str, list[Any]]]:
    """Where clients find the engine: itself, or a proxy that fails now and then."""
    if not args.faults:
        yield url, []
        return
    from tests.faulty_proxy import FaultyProxy

    draw = random.Random(0)

    def fault(path: str, seen: int) -> str | None:
        return draw.choice(FAULTS) if draw.random() < args.faults / 100 else None

    with FaultyProxy(int(url.rsplit(":", 1)[1]), fault) as proxy:
        yield proxy.url, proxy.struck


def main() -> None:
    """Run it, print the table, and say by the exit status whether all went well."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="nano", help="tiny, nano, 1m, 100m or a path")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--adapters", type=int, default=16)
    parser.add_argument("--again", type=int, default=4, help="adapters to train again, to compare")
    parser.add_argument("--faults", type=float, default=0, help="percent of requests")
    args = parser.parse_args()
    print(common.machine())
    with tempfile.TemporaryDirectory() as folder:
        path = common.model_path(args.model, Path(folder))
        with common.engine(path) as (process, _):
            with reached(args, process.base_url) as (url, struck):
                soak = Soak(args, path, url, process.api_key, process.pid)
                seen = soak.run()
            check(soak, process.base_url, process.api_key)
    grown = slope(seen.memory)
    waits = sorted(seen.waits) or [float("nan")]
    steps = sum(map(len, seen.losses.values()))
    end = seen.memory[-1][1] if seen.memory else float("nan")
    print(f"\n{args.clients} clients, {args.adapters} adapters, {args.minutes:g} minutes")
    print(f"training steps           {steps}")
    print(f"requests for samples     {len(seen.waits)}")
    print(f"  waited, median         {statistics.median(waits):.2f} s")
    print(f"  waited, 99th percentile {waits[int(0.99 * (len(waits) - 1))]:.2f} s")
    print(f"known log-probabilities  {seen.probes}")
    print(f"requests that were hit   {len(struck)}")
    print(f"memory at the end        {end:.0f} MB")
    print(f"  grows after 2 minutes  {'too short' if grown is None else f'{grown:+.2f} MB/min'}")
    print(f"lost or wrong            {len(seen.faults)}")
    for fault in seen.faults[:10]:
        print(f"  {fault}")
    sys.exit(bool(seen.faults or (grown is not None and grown > SLOPE)))


if __name__ == "__main__":
    main()
