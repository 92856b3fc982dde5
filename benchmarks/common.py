"""What the benchmarks share: models, an engine to talk to, and timing side by side.

Nothing here is fair by itself: what is compared runs in turns, in one process on the client's side,
and what counts is the ratio of medians, which a busy machine changes little.
"""

from __future__ import annotations

import contextlib
import os
import platform
import statistics
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # for every side alike: see engine/__main__.py
os.environ.setdefault("GOMP_SPINCOUNT", "2000")
os.environ.setdefault("TINKER_TELEMETRY", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("NO_PROXY", "127.0.0.1,localhost")

# hidden, intermediate, layers, heads, key heads, vocabulary: random Qwen3, beside the bundled ones
SHAPES = {
    "1m": (128, 384, 4, 4, 2, 1024),
    "100m": (768, 2048, 12, 12, 4, 16_384),
}


@dataclass
class Timed:
    """Seconds of one side of a comparison, one for each repeat."""

    name: str
    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def interleave(sides: dict[str, Callable[[], object]], repeats: int, warm: int = 1) -> list[Timed]:
    """Run each side in turn, `repeats` times after `warm` that do not count."""
    timed = [Timed(name) for name in sides]
    for turn in range(warm + repeats):
        for side, run in zip(timed, sides.values(), strict=True):
            start = time.perf_counter()
            run()
            if turn >= warm:
                side.seconds.append(time.perf_counter() - start)
    return timed


def report(title: str, timed: list[Timed], work: float, unit: str) -> None:
    """Print a row for each side: `work` units in its median time, and the first side's lead."""
    print(f"\n{title}")
    first = timed[0].median
    for side in timed:
        spread = f"{min(side.seconds):.3f} to {max(side.seconds):.3f} s"
        lead = "" if side is timed[0] else f"   {side.median / first:5.2f} x as long"
        print(
            f"  {side.name:<28}{work / side.median:>12,.1f} {unit}   ({spread}){lead}", flush=True
        )


def machine() -> str:
    """The processor and the versions that matter."""
    import torch
    import transformers

    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
        cpu = f"{len(names)} x {names[0]}" if names else platform.processor()
        return f"{cpu}; torch {torch.__version__}, transformers {transformers.__version__}"
    return platform.platform()


def model_path(name: str, folder: Path) -> str:
    """A bundled model's directory (tiny, nano), or that of a random Qwen3 made in `folder`."""
    from posttrain_recipes.models import BUNDLED

    if f"ptl/{name}" in BUNDLED:
        return str(BUNDLED[f"ptl/{name}"])
    if name not in SHAPES:
        return name
    import torch
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    hidden, inner, layers, heads, groups, vocab = SHAPES[name]
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        head_dim=hidden // heads,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        eos_token_id=2,
        pad_token_id=0,
        bos_token_id=None,
    )
    target = folder / name
    Qwen3ForCausalLM(config).save_pretrained(target)
    AutoTokenizer.from_pretrained(BUNDLED["ptl/tiny"]).save_pretrained(target)
    return str(target)


@contextlib.contextmanager
def engine(path: str, dtype: str = "float32") -> Iterator[tuple[object, object]]:
    """An engine that serves `path` as `bench`: (its process, a ServiceClient)."""
    import tinker

    from posttrain_recipes.engine import launch

    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "engine.log"
        with (
            launch.start({"bench": path}, Path(folder), log, dtype=dtype) as process,
            tinker.ServiceClient(base_url=process.base_url, api_key=process.api_key) as service,
        ):
            yield process, service


def computing(process) -> float:  # type: ignore[no-untyped-def]
    """Seconds for which an engine has computed, by its metrics."""
    request = urllib.request.Request(
        f"{process.base_url}/metrics", headers={"X-API-Key": process.api_key}
    )
    with urllib.request.urlopen(request) as reply:
        lines = reply.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("ptl_work_seconds_sum"))


def plain_model(path: str, rank: int = 32):  # type: ignore[no-untyped-def]
    """The model with a PEFT adapter on every linear layer but the last, as people train it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    config = LoraConfig(r=rank, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, config)


def trl_trainer(path: str, trainer, config, options, **more):  # type: ignore[no-untyped-def]
    """A trainer of TRL's: the model in float32 on the CPU, LoRA as `plain_model` has it, quiet.

    `options` are those of its `config` class beside what every trainer here has, `more` its own
    arguments.
    """
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer

    quiet = {
        "output_dir": tempfile.mkdtemp(),
        "report_to": [],
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
        "use_cpu": True,
    }
    return trainer(
        model=AutoModelForCausalLM.from_pretrained(path, dtype="float32"),
        args=config(**quiet, **options),
        processing_class=AutoTokenizer.from_pretrained(path),
        peft_config=LoraConfig(r=32, lora_alpha=32, target_modules="all-linear"),
        **more,
    )


def beside_trl(path: str, work: list, ours, trainer, repeats: int) -> list[Timed]:  # type: ignore[no-untyped-def, type-arg]
    """Time `ours(client, work)` on the engine and `trainer().train()` in turn.

    Two items of the work warm the engine up; making a trainer does not count.
    """
    sides = [Timed("engine, by the SDK"), Timed("")]
    with engine(path) as (_, service):
        client = service.create_lora_training_client("bench", rank=32, train_unembed=False).result()
        ours(client, work[:2])
        for _ in range(repeats):
            theirs = trainer()
            sides[1].name = f"TRL {type(theirs).__name__}"
            for side, run in zip(sides, (lambda: ours(client, work), theirs.train), strict=True):
                start = time.perf_counter()
                run()
                side.seconds.append(time.perf_counter() - start)
    return sides


def gsm8k(path: str, count: int) -> list[tuple[str, str]]:
    """Questions and answers of a GSM8K file (JSON lines)."""
    import json

    lines = Path(path).read_text(encoding="utf-8").splitlines()[:count]
    return [(row["question"], row["answer"]) for row in map(json.loads, lines)]
