"""Training and sampling of one shape, beside torch + peft and `generate`; a section of `gpu.py`.

Weights are random, made on the card. The matrix and bandwidth ceilings are measured in the same
process. What each figure is a share of:

- training: 4 x weights x tokens (forward, and the gradient of the input: the base is frozen, the
  embedding is no product), 6 x LoRA weights x tokens, and 6 x length^2 x heads x head width a layer
  and sequence (causal attention). What is computed again is not counted.
- sampling: the bytes of weights and of cached keys and values that a step has to read, over its
  time. Writing, logits and the reading of prompts are not counted.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parent))
import common  # noqa: F401, sets the environment before torch is imported
import numpy as np
import torch
from gpu import ROOT, goal, say
from torch.nn import functional as F

T = TypeVar("T")
RANK = 32
REPEATS = 3


@dataclass(frozen=True)
class Shape:
    """A Qwen3 and the work that it is measured by."""

    hidden: int
    inner: int
    layers: int
    heads: int
    groups: int
    width: int
    vocabulary: int
    tied: bool
    train: tuple[int, int] = (8, 1024)  # sequences, tokens of each
    sample: tuple[int, int, int] = (256, 128, 128)  # sequences, tokens of prompt, new tokens


SHAPES = {
    "tiny": Shape(64, 128, 2, 4, 2, 16, 512, True, (4, 32), (8, 8, 12)),
    "0.6b": Shape(1024, 3072, 28, 16, 8, 128, 151_936, True),
    "1.7b": Shape(2048, 6144, 28, 16, 8, 128, 151_936, True, sample=(256, 128, 64)),
    "8b": Shape(4096, 12_288, 36, 32, 8, 128, 151_936, False, sample=(256, 128, 64)),
}
GOALS = {"0.6b", "tiny"}  # the shapes whose figures are held against goals


class OutOfTime(Exception):
    """What is left of the section's time is not enough."""


class Measuring:
    """One shape on one device, within its time."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.name, self.shape = args.shape, SHAPES[args.shape]
        self.device = torch.device(args.device)
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.end = time.monotonic() + args.seconds
        self.goals = Path(args.goals)
        self.matrix = self.copy = 0.0  # FLOP/s, bytes/s: the ceilings
        self.rng = np.random.default_rng(0)
        self.generate: float | None = None  # tokens a second

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def once(self, run: Callable[[], object]) -> float:
        """Seconds of one call, until the device is done."""
        self.synchronize()
        began = time.perf_counter()
        run()
        self.synchronize()
        return time.perf_counter() - began

    def median(self, run: Callable[[], object], repeats: int = REPEATS, warm: int = 1) -> float:
        """The median of a few times after some that do not count. Raises OutOfTime where the next
        would not end in time."""
        took: list[float] = []
        for turn in range(warm + repeats):
            if took and time.monotonic() + max(took) > self.end:
                if turn <= warm:
                    raise OutOfTime
                say(f"(a median of {turn - warm}: time ran out)\n")
                took = took if turn == warm else took[warm:]
                return statistics.median(took)
            took.append(self.once(run))
        return statistics.median(took[warm:])

    def goal(self, what: str, wanted: str, got: str, reached: bool | None) -> None:
        """Note a goal for the table at the end, of a shape that has any."""
        if self.name in GOALS:
            goal(self.goals, f"{self.name}: {what}", wanted, got, reached)

    def part(self, title: str, run: Callable[[], T]) -> T | None:
        """A part of the section: what it returns. Its failure is told in a line, and ends nothing
        else."""
        say(f"\n**{title}**\n")
        on_gpu = self.device.type == "cuda"
        try:
            if time.monotonic() > self.end:
                raise OutOfTime
            if on_gpu:
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated() / 2**30
            result = run()
            if on_gpu:
                peak = torch.cuda.max_memory_allocated() / 2**30
                say(f"- peak memory {peak:.1f} GiB, {before:.1f} GiB before this part")
            return result
        except OutOfTime:
            say("- skipped: its time ran out")
        except Exception as error:
            say(f"- failed: {in_words(error)}")
            traceback.print_exc()
        finally:
            gc.collect()
            if on_gpu:
                with contextlib.suppress(RuntimeError):  # the card itself has failed
                    torch.cuda.empty_cache()
        return None

    # Parts ----------------------------------------------------------------------------------

    def ceilings(self) -> None:
        """The fastest product and the fastest copy."""
        big = self.device.type == "cuda"
        size, length = (8192, 1 << 29) if big else (256, 1 << 20)
        a, b = (torch.randn(size, size, device=self.device, dtype=self.dtype) for _ in range(2))
        source = torch.zeros(length, device=self.device, dtype=self.dtype)
        target = torch.empty_like(source)

        def products() -> None:
            for _ in range(10):
                a @ b

        def copies() -> None:
            for _ in range(10):
                target.copy_(source)

        self.matrix = 10 * 2 * size**3 / self.median(products, 5, 2)
        self.copy = 10 * 2 * source.nbytes / self.median(copies, 5, 2)
        kind = str(self.dtype).removeprefix("torch.")
        say(f"- {size} x {size} products in {kind}: {self.matrix / 1e12:,.2f} TFLOP/s")
        say(f"- copies, read and written: {self.copy / 1e12:.3f} TB/s")

    def random_model(self) -> Any:
        """A model of this shape with random weights, made on the device."""
        from transformers import AutoModelForCausalLM, Qwen3Config

        shape = self.shape
        config = Qwen3Config(
            vocab_size=shape.vocabulary,
            hidden_size=shape.hidden,
            intermediate_size=shape.inner,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.groups,
            head_dim=shape.width,
            max_position_embeddings=4096,
            tie_word_embeddings=shape.tied,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=0,
        )
        torch.manual_seed(0)
        with self.device:
            return AutoModelForCausalLM.from_config(config, dtype=self.dtype).to(self.device).eval()

    def engine(self) -> Any:
        """The engine's base model of this shape."""
        from posttrain_recipes.engine.model.base import BaseModel

        began = time.perf_counter()
        base = BaseModel(self.name, "random", self.device, self.dtype, self.random_model())
        runs = "the engine's own decoder"
        if base.decoder is None:
            runs = "**transformers**: the logits of the engine's own decoder differ from its"
        seconds = time.perf_counter() - began
        say(f"- {base.parameters:,} parameters in {seconds:.1f} s; run by {runs}")
        return base

    def engine_training(self, base: Any) -> None:
        """Steps of LoRA on every linear layer but the last, by the engine's own functions."""
        from posttrain_recipes.engine.model.base import new_adapter
        from posttrain_recipes.engine.train.forward_backward import forward_backward
        from posttrain_recipes.engine.wire import AdamParams, AdapterConfig, Datum

        count, length = self.shape.train
        adapter = new_adapter(base, AdapterConfig(rank=RANK, seed=0, train_unembed=False))
        rows = self.rng.integers(0, self.shape.vocabulary, (count, length + 1))
        data = [Datum(row[:-1], {"target_tokens": row[1:]}) for row in rows]

        def step() -> None:
            forward_backward(base, adapter, data, "cross_entropy", {}, False)
            adapter.adam_step(AdamParams())

        seconds = self.median(step, warm=2)
        self.told_training(seconds, base.parameters, adapter.layout.size, "engine")

    def told_training(self, seconds: float, parameters: int, lora: int, whose: str) -> None:
        """Tokens a second, and the share of the matrix ceiling."""
        shape = self.shape
        count, length = shape.train
        tokens = count * length
        weights = parameters - (0 if shape.tied else shape.vocabulary * shape.hidden)
        attention = 6 * length * shape.heads * shape.width * shape.layers
        rate = tokens * (4 * weights + 6 * lora + attention) / seconds
        share = rate / self.matrix if self.matrix else float("nan")
        say(
            f"- {whose}: {tokens / seconds:,.0f} tokens/s, a step of {count} x {length} tokens in "
            f"{seconds * 1e3:,.1f} ms; {rate / 1e12:,.2f} TFLOP/s, {share:.1%} of the ceiling"
        )
        if whose == "engine":
            what = f"LoRA training, {tokens:,} tokens a step"
            self.goal(what, "at least 15% of the matrix ceiling", f"{share:.1%}", share >= 0.15)

    def peft_training(self) -> None:
        """The same steps as people write them: torch, peft, autocast."""
        try:
            from peft import LoraConfig, get_peft_model
        except ImportError as error:
            say(f"- torch + peft: not measured, peft is not installed ({error})")
            return
        plan = LoraConfig(r=RANK, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(self.random_model(), plan).train()
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-4)
        count, length = self.shape.train
        rows = self.rng.integers(0, self.shape.vocabulary, (count, length + 1))
        ids = torch.from_numpy(rows).to(self.device)
        casting = torch.autocast(self.device.type, torch.bfloat16, self.dtype == torch.bfloat16)

        def step() -> None:
            with casting:
                logits = model(input_ids=ids[:, :-1]).logits
            wanted = ids[:, 1:].flatten()
            F.cross_entropy(logits.flatten(0, 1).float(), wanted, reduction="sum").backward()
            optimizer.step()
            optimizer.zero_grad()

        seconds = self.median(step)
        lora = sum(p.numel() for p in trained)
        every = sum(p.numel() for p in model.parameters())
        self.told_training(seconds, every - lora, lora, "torch + peft")

    def requests(self) -> list[Any]:
        """So many prompts, with nothing in common, of one sample each."""
        from posttrain_recipes.engine.wire import Chunk, ModelInput, SampleRequest, SamplingParams

        count, prompt, new = self.shape.sample
        params = SamplingParams(max_tokens=new, stop=[], temperature=1.0)
        rows = self.rng.integers(0, self.shape.vocabulary, (count, prompt)).tolist()
        return [SampleRequest("s", 0, ModelInput([Chunk(tokens=row)]), params, 1) for row in rows]

    def read_by(self, base: Any, length: float) -> float:
        """Bytes that a step of decoding reads: the weights once, and the cache of every sequence,
        of so many tokens."""
        from posttrain_recipes.engine.model.kv_cache import bytes_per_token

        embedding = 0 if self.shape.tied else self.shape.vocabulary * self.shape.hidden
        weights = (base.parameters - embedding) * base.model.dtype.itemsize
        return float(weights + self.shape.sample[0] * length * bytes_per_token(base.model))

    def engine_sampling(self, base: Any) -> None:
        """Concurrent samples from end to end, prompts included, beside `generate`."""
        from posttrain_recipes.engine.generate.batcher import sample

        requests = self.requests()
        count, prompt, new = self.shape.sample

        def run() -> None:
            for result in sample(base, None, requests):
                if isinstance(result, Exception):
                    raise result

        seconds = self.median(run)
        rate = count * new / seconds
        # The first token is sampled from the prompts' own pass, and nothing follows the last.
        read = (new - 1) * self.read_by(base, prompt + new / 2)
        share = read / seconds / self.copy if self.copy else float("nan")
        say(
            f"- engine, {count} samples of {new} tokens on {prompt}: {rate:,.0f} tokens/s, all in "
            f"{seconds:.3f} s; {read / seconds / 1e12:.3f} TB/s, {share:.1%} of the ceiling"
        )
        wanted = "at least 30% of the bandwidth ceiling"
        self.goal(f"{count} concurrent samples", wanted, f"{share:.1%}", share >= 0.30)
        wanted = f"at least 2 x `generate` at batch {count}"
        ratio = None if self.generate is None else rate / self.generate
        got = "`generate` was not measured" if ratio is None else f"{ratio:.2f} x"
        self.goal(f"{count} concurrent samples", wanted, got, ratio and ratio >= 2)

    def plain_sampling(self) -> None:
        """The same by transformers' `generate`, all prompts in one batch."""
        model = self.random_model()
        count, prompt, new = self.shape.sample
        rows = self.rng.integers(1, self.shape.vocabulary, (count, prompt))
        ids = torch.from_numpy(rows).to(self.device)

        def run(tokens: int = new) -> None:
            with torch.no_grad():
                model.generate(
                    ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0,
                    max_new_tokens=tokens, min_new_tokens=tokens, eos_token_id=None,
                    pad_token_id=0,
                )  # fmt: skip

        run(4)
        seconds = self.median(run, warm=0)
        self.generate = count * new / seconds
        say(f"- `generate`, batch {count}: {self.generate:,.0f} tokens/s, all in {seconds:.3f} s")

    def steps(self, base: Any) -> None:
        """One token of decoding, taken apart: what the CPU asks for, and what the device does."""
        from posttrain_recipes.engine.generate.sampler import prepare
        from posttrain_recipes.engine.generate.sequences import SequenceGroup, sample_tokens
        from posttrain_recipes.engine.generate.slots import SlotBatch

        if base.decoder is None:
            say("- the engine's own decoder does not run this model: transformers does")
            self.goal("decoding", "no Python round trip a layer", "by transformers", False)
            return
        count, prompt, _ = self.shape.sample
        groups = [SequenceGroup(prepare(base, request)) for request in self.requests()]
        with torch.no_grad():
            batch = SlotBatch(base, base.sampling_weights(None))
            sequences = [one for group in groups for one in group.sequences]
            reading = self.once(lambda: batch.join(sequences))
            slot = batch.slots[0]
            asked, whole, drawn = [], [], []
            for turn in range(8):
                drawn.append(self.once(lambda: sample_tokens(base, slot.sequences, slot.logits)))
                began = time.perf_counter()
                slot._step()
                asked.append(time.perf_counter() - began)
                self.synchronize()
                whole.append(time.perf_counter() - began)
                if turn == 2:  # TorchScript has made up its mind, and what came before counts not
                    asked, whole, drawn = [], [], []
            sample_tokens(base, slot.sequences, slot.logits)
            inside = calls_inside(slot._step)
            self.synchronize()
            sample_tokens(base, slot.sequences, slot.logits)
            launches, busy = self.profiled(slot._step)
        step, asking, drawing = map(statistics.median, (whole, asked, drawn))
        share = self.read_by(base, prompt + 6) / step / self.copy * len(slot.sequences) / count
        say(f"- reading {count} prompts of {prompt} tokens, the first time: {reading * 1e3:.0f} ms")
        say(f"- a step of the model: {step * 1e3:.2f} ms, {share:.1%} of the bandwidth ceiling")
        say(f"- drawing the tokens, and keeping account of them: {drawing * 1e3:.2f} ms")
        say(
            f"- until the step is asked for, the CPU takes {asking * 1e3:.2f} ms, "
            f"{asking / step:.0%} of it; {launches}"
        )
        if busy is not None:
            say(f"- kernels keep the device busy for {busy * 1e3:.2f} ms, {busy / step:.0%} of it")
            bound = busy < 0.7 * step
            say(
                "- the CPU holds it up: a CUDA graph would help"
                if bound
                else "- the device is what it waits for, not the CPU"
            )
        say(f"- calls into Python within the layers: {inside}")
        wanted = "no Python round trip a layer"
        self.goal("decoding", wanted, f"{inside} calls into Python", inside == 0)

    def profiled(self, run: Callable[[], object]) -> tuple[str, float | None]:
        """How many kernels a call launches, in words, and the seconds that they take."""
        from torch.profiler import ProfilerActivity, profile

        on_gpu = self.device.type == "cuda"
        kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
        with profile(activities=kinds) as found:
            run()
            self.synchronize()
        events = found.events()
        if not on_gpu:
            return f"{sum(e.name.startswith('aten::') for e in events):,} operations", None
        launched = sum("LaunchKernel" in event.name for event in events)
        kernels = [e for e in events if e.device_type == torch.autograd.DeviceType.CUDA]
        busy = sum(e.time_range.elapsed_us() for e in kernels) / 1e6
        return f"{launched:,} kernels are launched", busy or None

    def adapted(self, base: Any) -> None:
        """Concurrent samples with an adapter, as reinforcement learning asks for them."""
        from posttrain_recipes.engine.generate.batcher import sample
        from posttrain_recipes.engine.model.base import new_adapter
        from posttrain_recipes.engine.wire import AdapterConfig

        config = AdapterConfig(rank=RANK, seed=0, train_unembed=False)
        snapshot = new_adapter(base, config).snapshot()
        requests = self.requests()
        count, _, new = self.shape.sample
        seconds = self.median(lambda: sample(base, snapshot, requests))
        say(f"- engine, with an adapter of rank {RANK}: {count * new / seconds:,.0f} tokens/s")


def in_words(error: Exception) -> str:
    """An error in a line: what it says, its end above all, and where in this project it was."""
    words = " ".join(str(error).split())
    words = words if len(words) <= 400 else f"{words[:100]} ... {words[-300:]}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if str(ROOT) in frame.filename] or frames
    places = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in own[-3:]]
    return f"{type(error).__name__}: {words} ({' > '.join(places)})"


def calls_inside(run: Callable[[], object]) -> int:
    """How often a call enters a Python function of the decoder's layers."""
    files = ("decode_step.py", "kernels.py")
    calls = 0

    def entered(frame: Any, event: str, _: object) -> None:
        nonlocal calls
        calls += event == "call" and frame.f_code.co_filename.endswith(files)

    sys.setprofile(entered)
    try:
        run()
    finally:
        sys.setprofile(None)
    return calls


def main() -> None:
    """Measure one shape, what matters most first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=sorted(SHAPES), required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--goals", required=True, help="a file that goals are noted in")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("torch sees no GPU here: `nvidia-smi` and torch.version.cuda tell why")
    one = Measuring(args)
    one.part("Ceilings", one.ceilings)
    base = one.part("Loading, with the decoder's check against transformers", one.engine)
    if base is not None:
        one.part("Training", lambda: one.engine_training(base))
        one.part("A step of decoding", lambda: one.steps(base))
    one.part("Sampling, `generate`", one.plain_sampling)
    if base is not None:
        one.part("Sampling, the engine", lambda: one.engine_sampling(base))
        one.part("Sampling, the engine with an adapter", lambda: one.adapted(base))
    base = None  # room for the next
    one.part("Training, torch + peft", one.peft_training)


if __name__ == "__main__":
    main()
