"""One GRPO step, 16 prompts x 16 samples x 64 tokens and one update, through the SDK and the
embedded engine, beside TRL's GRPOTrainer: the same model, prompts, reward and LoRA rank, float32.

    python benchmarks/grpo_step.py --model tiny
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import common

GROUPS, GROUP, TOKENS = 16, 16, 64


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tiny", help="tiny, nano, 1m, 100m or a path")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    print(common.machine())
    with tempfile.TemporaryDirectory() as folder:
        compare(common.model_path(args.model, Path(folder)), args)


def ours(client, prompts: list[list[int]]) -> None:  # type: ignore[no-untyped-def]
    """Sample, score, advantages within each group, one update by importance sampling."""
    import numpy as np
    import tinker

    sampler = client.save_weights_and_get_sampling_client().result()
    plan = tinker.SamplingParams(max_tokens=TOKENS, stop=[], temperature=1.0)
    futures = [sampler.sample(tinker.ModelInput.from_ints(ids), GROUP, plan) for ids in prompts]
    data = []
    for ids, future in zip(prompts, futures, strict=True):
        sequences = future.result().sequences
        rewards = np.array([float(len(set(s.tokens))) for s in sequences])
        advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-6)
        for sequence, advantage in zip(sequences, advantages, strict=True):
            whole = [*ids, *sequence.tokens]
            silent = len(ids) - 1
            spoken = len(sequence.tokens)
            inputs = {
                "target_tokens": np.array(whole[1:]),
                "logprobs": np.array([0.0] * silent + list(sequence.logprobs), np.float32),
                "advantages": np.array([0.0] * silent + [advantage] * spoken, np.float32),
            }
            prompt = tinker.ModelInput.from_ints(whole[:-1])
            data.append(tinker.Datum(model_input=prompt, loss_fn_inputs=inputs))
    passed = client.forward_backward(data, "importance_sampling")
    client.optim_step(tinker.AdamParams(learning_rate=1e-5)).result()
    passed.result()


def compare(path: str, args: argparse.Namespace) -> None:
    """Time the two in turn."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(path)
    texts = [f"Question {i}: what is {i} plus {i + 1}? Answer:" for i in range(GROUPS)]
    prompts = [tokenizer(text)["input_ids"] for text in texts]

    def reward(completion_ids: list[list[int]], **kwargs: object) -> list[float]:
        return [float(len(set(ids))) for ids in completion_ids]

    options = {
        "per_device_train_batch_size": GROUPS * GROUP,
        "num_generations": GROUP,
        "max_completion_length": TOKENS,
        "generation_kwargs": {"min_new_tokens": TOKENS},
        "max_steps": 1,
        "learning_rate": 1e-5,
        "beta": 0.0,
    }

    def trainer() -> GRPOTrainer:
        dataset = Dataset.from_dict({"prompt": texts})
        more = {"reward_funcs": reward, "train_dataset": dataset}
        return common.trl_trainer(path, GRPOTrainer, GRPOConfig, options, **more)

    timed = common.beside_trl(path, prompts, ours, trainer, args.repeats)
    title = f"{args.model}: a GRPO step of {GROUPS} x {GROUP} x {TOKENS} tokens"
    common.report(title, timed, GROUPS * GROUP * TOKENS, "sampled tokens/s")


if __name__ == "__main__":
    main()
