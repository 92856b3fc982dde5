"""Runs one of tinker-cookbook's programs, unmodified, in a process that cannot reach the network.

What a hub would send is put in its place: the tokenizer of a model that the engine serves under a
hub name, and data sets made up here. The programs' code, and the cookbook's loops below them, are
what the wheel has, started as `python -m MODULE key=value ...` starts them.
"""

from __future__ import annotations

import json
import os
import random
import runpy
import sys
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

HUB_NAME = "Qwen/Qwen3-8B"
"""What the bundled model is served as: `sl_loop` and `rl_loop` ask the cookbook's own table of hub
models which renderer to use, and take no other answer."""

PRELOADED = [
    "datasets",
    "tinker_cookbook.distillation.train_on_policy",
    "tinker_cookbook.preference.train_dpo",
    "tinker_cookbook.recipes.math_rl.math_env",
    "tinker_cookbook.supervised.train",
]
"""What the programs take seconds to import: the process that forks them imports it once."""


def additions(count: int) -> list[tuple[int, int]]:
    """`count` pairs to add, with sums below 10."""
    chance = random.Random(0)
    return [(a, chance.randrange(10 - a)) for a in chance.choices(range(10), k=count)]


def boxed(a: int, b: int) -> str:
    """A problem, asked as `rl_loop` asks."""
    return (
        f"What is {a} + {b}? Provide a numerical answer without units, written inside \\boxed{{}}."
    )


def talk(question: str, reply: str) -> dict[str, Any]:
    """A conversation of two messages."""
    asked = {"role": "user", "content": question}
    return {"messages": [asked, {"role": "assistant", "content": reply}]}


def guesses(count: int) -> list[dict[str, Any]]:
    """Conversations that teach to guess numbers in the words that `guess_number` can read."""
    from tinker_cookbook.recipes.multiplayer_rl.guess_number.env import SYSTEM_PROMPT

    chance = random.Random(0)
    rows = []
    for _ in range(count):
        turns = [{"role": "system", "content": SYSTEM_PROMPT}]
        for _ in range(chance.randint(1, 3)):
            turns.append({"role": "assistant", "content": f"Guess: {chance.randrange(1024)}"})
            turns.append({"role": "user", "content": chance.choice(["Too low", "Too high"])})
        rows.append({"messages": turns[:-1]})
    return rows


def write_chat(path: Path, rows: list[dict[str, Any]]) -> Path:
    """A file of conversations, as `chat_sl` reads them."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _splits(rows: list[dict[str, Any]]) -> Any:
    from datasets import Dataset, DatasetDict

    return DatasetDict(train=Dataset.from_list(rows), test=Dataset.from_list(rows[:8]))


def no_robots() -> Any:
    """Conversations that teach to write the sum of two digits into a box."""
    return _splits([talk(boxed(a, b), f"\\boxed{{{a + b}}}") for a, b in additions(400)])


def gsm8k() -> Any:
    """The same problems as GSM8K writes them."""
    return _splits(
        [
            {"question": f"What is {a} + {b}?", "answer": f"{a} + {b} = {a + b}\n#### {a + b}"}
            for a, b in additions(400)
        ]
    )


def hh_rlhf() -> Any:
    """Pairs of replies as HH-RLHF writes them, the polite one chosen."""
    rows = []
    for a, b in additions(64):
        start = f"\n\nHuman: What is {a} + {b}?\n\nAssistant: "
        rows.append({"chosen": f"{start}It is {a + b}.", "rejected": f"{start}Who cares?"})
    return _splits(rows)


def deepmath() -> Any:
    """Questions alone: a student that is distilled answers them itself."""
    from datasets import Dataset

    return Dataset.from_list([{"question": boxed(a, b)} for a, b in additions(64)])


DATA: dict[str, Callable[[], Any]] = {
    "HuggingFaceH4/no_robots": no_robots,
    "openai/gsm8k": gsm8k,
    "Anthropic/hh-rlhf": hh_rlhf,
    "zwhe99/DeepMath-103K": deepmath,
}


def seeded() -> None:
    """Give a seed to whatever the programs draw without one.

    Requests overlap, so each draw is seeded by its prompt and how often that was asked before.
    """
    import numpy as np
    import tinker

    random.seed(0)
    np.random.seed(0)
    asked: Counter[tuple[int, ...]] = Counter()
    sample = tinker.SamplingClient.sample
    create = tinker.ServiceClient.create_lora_training_client

    def drawn(
        self: Any, prompt: Any, num_samples: int, sampling_params: Any, *more: Any, **named: Any
    ) -> Any:
        tokens = tuple(prompt.to_ints())
        asked[tokens] += 1
        if sampling_params.seed is None:
            seed = zlib.crc32(repr((tokens, asked[tokens])).encode())
            sampling_params = sampling_params.model_copy(update={"seed": seed})
        return sample(self, prompt, num_samples, sampling_params, *more, **named)

    def created(
        self: Any,
        base_model: str,
        rank: int = 32,
        seed: int | None = None,
        *more: Any,
        **named: Any,
    ) -> Any:
        return create(self, base_model, rank, seed or 0, *more, **named)

    tinker.SamplingClient.sample = drawn
    tinker.ServiceClient.create_lora_training_client = created


def run(
    module: str,
    arguments: dict[str, Any],
    tokenizer: str,
    output: str,
    environment: dict[str, str],
) -> None:
    """Run `module` as a program; what it prints goes to the file `output`."""
    os.environ.update(environment)
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)

    import datasets
    from tinker_cookbook.tokenizer_utils import get_tokenizer, register_tokenizer

    def load_dataset(name: str, *_: Any, split: str | None = None, **__: Any) -> Any:
        data = DATA[name]()
        return data[split] if split and isinstance(data, datasets.DatasetDict) else data

    seeded()
    datasets.load_dataset = load_dataset
    sys.modules["tinker_cookbook.distillation.datasets"].load_dataset = load_dataset
    register_tokenizer(HUB_NAME, lambda: get_tokenizer(tokenizer))
    sys.argv = [module, *(f"{key}={value}" for key, value in arguments.items())]
    runpy.run_module(module, run_name="__main__")
    sys.stdout.flush()
    os._exit(0)  # as a program ends; multiprocessing would wait for the SDK's threads
