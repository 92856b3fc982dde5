"""What is lost where `gkd` takes a divergence over K tokens and one outcome for all others.

    python benchmarks/top_k_tail.py STUDENT TEACHER [--system TEXT] [--records N]

STUDENT and TEACHER are directories of models with one tokenizer, or `ptl/NAME`; with `--system` the
teacher reads these instructions before each prompt, so that both may be the same weights. Along the
replies of shipped conversations it compares with the divergence over the whole vocabulary the one
with the other tokens as one outcome (`bucket`, which `gkd` takes) and the one renormalized over the
K: its value as a share of the true one, and the cosine of its gradient by the student's logits with
the true gradient, both over all positions together.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain_recipes.models import BUNDLED
from posttrain_recipes.training.distill.divergence import terms, top_k_jsd

DATA = Path(__file__).resolve().parent.parent / "recipes" / "data"
BETAS = (0.0, 0.5, 1.0)
KS = (1, 5, 20, 100)


def load(name: str) -> Any:
    """A model in float32, where it was asked for by name or by directory."""
    where = BUNDLED.get(name, name)
    return AutoModelForCausalLM.from_pretrained(where, dtype=torch.float32).eval()


def logits(model: Any, tokenizer: Any, messages: list[dict[str, str]], reply: str) -> Tensor:
    """What predicts each token of a reply (T, V)."""
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    before = tokenizer(prompt, add_special_tokens=False).input_ids
    own = tokenizer(reply, add_special_tokens=False).input_ids
    with torch.no_grad():
        found: Tensor = model(torch.tensor([before + own])).logits[0]
    return found[len(before) - 1 : len(before) + len(own) - 1].double()


def renormalized(logp: Tensor, logq: Tensor, beta: float) -> Tensor:
    """The divergence of both, renormalized over the K (T, K)."""
    return terms(logp.log_softmax(-1), logq.log_softmax(-1), beta).sum(-1)


def slope(loss: Tensor, by: Tensor) -> Tensor:
    """The gradient of a sum."""
    (found,) = torch.autograd.grad(loss.sum(), by, retain_graph=True)
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("student")
    parser.add_argument("teacher")
    parser.add_argument("--system", default="")
    parser.add_argument("--records", type=int, default=48)
    asked = parser.parse_args()
    student, teacher = load(asked.student), load(asked.teacher)
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED.get(asked.student, asked.student))
    pairs = []
    for line in (DATA / "chat.jsonl").read_text().splitlines()[: asked.records]:
        *prompt, reply = json.loads(line)["messages"]
        shown = [{"role": "system", "content": asked.system}, *prompt] if asked.system else prompt
        z = logits(student, tokenizer, prompt, reply["content"])
        pairs.append((z, logits(teacher, tokenizer, shown, reply["content"]).log_softmax(-1)))
    z = torch.cat([one for one, _ in pairs]).requires_grad_()
    logq, logp = torch.cat([q for _, q in pairs]), z.log_softmax(-1)
    count, vocabulary = logq.shape
    print(f"{count} positions, {vocabulary:,} tokens")
    print(
        "| K | teacher's mass | beta | bucket: value | gradient | renormalized: value | gradient |"
    )
    print("|---:|---:|---:|---:|---:|---:|---:|")
    for k in KS:
        top, ids = logq.topk(k, -1)
        mass = top.exp().sum(-1).mean().item()
        own = logp.gather(-1, ids)
        for beta in BETAS:
            true = terms(logp, logq, beta).sum(-1)
            wanted = slope(true, z).flatten()
            row = []
            known = torch.ones_like(top, dtype=torch.bool)
            for loss in (top_k_jsd(own, top, known, beta), renormalized(own, top, beta)):
                found = slope(loss, z).flatten()
                cosine = torch.nn.functional.cosine_similarity(found, wanted, 0).item()
                row += [f"{(loss.sum() / true.sum()).item():.3f}", f"{cosine:.3f}"]
            print(f"| {k} | {mass:.3f} | {beta:g} | {' | '.join(row)} |")


if __name__ == "__main__":
    main()
