"""Whether llama.cpp, from what `ptl export --gguf` writes, gives the engine's greedy text.

    python benchmarks/gguf_agreement.py MODEL_DIR [--kinds f32 f16 q8_0]

Asks the engine's own sampler, in float32, and llama.cpp, greedy, with the same tokens. Where a
reply parts, it says by how many nats llama.cpp finds its own token likelier than the engine's: how
near the two were. Needs `llama-cpp-python`, which no extra brings.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import common

QUESTIONS = (
    "What is the capital of France?", "Name three primary colours.", "How do plants make food?",
    "Write one sentence about the sea.", "What is 12 plus 30?", "Who wrote Hamlet?",
    "Explain gravity to a child.", "Give me a recipe for pancakes.", "What is a noun?",
    "Translate 'good morning' into Spanish.", "List the days of the week.", "Why is the sky blue?",
    "What does a compiler do?", "Tell me a short joke.", "How many legs has a spider?",
    "What is the largest ocean?", "Define the word 'honest'.", "What is photosynthesis?",
    "Write a Python function that adds two numbers.", "What should I pack for a hike?",
)  # fmt: skip


def main() -> None:
    """Write the files, ask both, and print a row for each kind of weights."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, metavar="MODEL_DIR")
    parser.add_argument("--kinds", nargs="+", default=["f32", "f16", "q8_0"])
    parser.add_argument("--prompts", type=int, default=len(QUESTIONS))
    parser.add_argument("--tokens", type=int, default=64)
    args = parser.parse_args()
    print(common.machine())
    prompts = _prompts(args.model)[: args.prompts]
    replies = _engine(args.model, prompts, args.tokens)
    print(f"{len(prompts)} prompts, {sum(map(len, replies))} tokens\n")
    print("| weights | same replies | where a reply parts: nats between the two tokens |")
    print("|---|---:|---|")
    for kind in args.kinds:
        with tempfile.TemporaryDirectory() as folder:
            file = _written(args.model, Path(folder), kind)
            same, apart = _compared(file, prompts, replies)
        where = ", ".join(apart) or "nowhere"
        print(f"| {kind} | {same} of {len(prompts)} | {where} |", flush=True)


def _prompts(model: Path) -> list[list[int]]:
    from posttrain_recipes.pretrained import load_tokenizer

    tokenizer = load_tokenizer(str(model))
    return [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=False
        )
        for question in QUESTIONS
    ]


def _engine(model: Path, prompts: list[list[int]], most: int) -> list[list[int]]:
    import tinker

    greedy = tinker.SamplingParams(max_tokens=most, temperature=0.0)
    with common.engine(str(model)) as (_, service):
        sampler = service.create_sampling_client(base_model="bench").result()
        futures = [sampler.sample(tinker.ModelInput.from_ints(p), 1, greedy) for p in prompts]
        return [list(future.result().sequences[0].tokens) for future in futures]


def _written(model: Path, folder: Path, kind: str) -> Path:
    import torch

    from posttrain_recipes.exporting import gguf
    from posttrain_recipes.options import AS_EVER
    from posttrain_recipes.pretrained import load_model, load_tokenizer

    gguf.write_model(
        load_model(str(model), torch.float32), load_tokenizer(str(model)), folder, kind, "bench",
        AS_EVER,
    )  # fmt: skip
    return folder / gguf.FILE


def _compared(
    file: Path, prompts: list[list[int]], replies: list[list[int]]
) -> tuple[int, list[str]]:
    """How many replies are the same, and of each other how near the two tokens were."""
    import numpy as np
    from llama_cpp import Llama

    llama = Llama(str(file), n_ctx=512, logits_all=True, verbose=False)
    same, apart = 0, []
    for prompt, reply in zip(prompts, replies, strict=True):
        llama.reset()
        llama.eval(prompt)
        for place, token in enumerate(reply):
            logits = np.asarray(llama.scores[llama.n_tokens - 1], dtype=np.float64)
            best = int(logits.argmax())
            if best != token:
                apart.append(f"{logits[best] - logits[token]:.4f} at {place}")
                break
            llama.eval([token])
        else:
            same += 1
    llama.close()
    return same, apart


if __name__ == "__main__":
    main()
