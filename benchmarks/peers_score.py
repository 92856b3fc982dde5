"""What a model says on held-out records, with an adapter or without: the one scorer of `peers.py`.

    python benchmarks/peers_score.py MODEL HELD_OUT OUT [--adapter DIR]

transformers and PEFT alone, in float32: what trained an adapter does not measure it. Replies are
greedy and right where they are the answer but for space around them. One is cut off four tokens
after the longest answer of its batch, where it can be right no more.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

BATCH = 64
SPARE = 4


def main() -> None:
    """Score what the command line names and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("held_out", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--adapter", help="a PEFT adapter; the base model alone without one")
    args = parser.parse_args()
    lines = args.held_out.read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    args.out.write_text(json.dumps(scored(args.model, args.adapter, records)), encoding="utf-8")


def scored(path: str, adapter: str | None, records: list[dict[str, Any]]) -> dict[str, Any]:
    """By record: whether the greedy reply is right, the reply, and the answer's negative
    log-likelihood with the token that ends it, nats per token.

    Args:
        records: each with `messages`, of which the last is the answer.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    model.eval()
    ends = [record["messages"][-1]["content"] + tokenizer.eos_token for record in records]
    prompts = [
        tokenizer.apply_chat_template(
            record["messages"][:-1], tokenize=False, add_generation_prompt=True
        )
        for record in records
    ]
    asked = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    wanted = [tokenizer(end)["input_ids"] for end in ends]
    order = sorted(range(len(records)), key=lambda i: len(wanted[i]))
    replies, losses = [""] * len(records), [0.0] * len(records)
    with torch.inference_mode():
        for start in range(0, len(order), BATCH):
            part = order[start : start + BATCH]
            batch = tokenizer([prompts[i] for i in part], return_tensors="pt", padding=True)
            made = model.generate(
                **batch,
                max_new_tokens=len(wanted[part[-1]]) + SPARE,
                do_sample=False,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
            said = tokenizer.batch_decode(
                made[:, batch["input_ids"].shape[1] :], skip_special_tokens=True
            )
            for i, reply in zip(part, said, strict=True):
                replies[i] = reply.strip()
                ids = torch.tensor([asked[i] + wanted[i]])
                logits = model(input_ids=ids, logits_to_keep=len(wanted[i]) + 1).logits[0, :-1]
                of = logits.log_softmax(-1)[range(len(wanted[i])), wanted[i]]
                losses[i] = -of.mean().item()
    answers = [record["messages"][-1]["content"] for record in records]
    return {
        "right": [reply == answer for reply, answer in zip(replies, answers, strict=True)],
        "nll": losses,
        "replies": replies,
    }


if __name__ == "__main__":
    main()
