"""Score the bundled models on held-out problems, family by family.

    python tools/score_models.py [ptl/tiny | ptl/nano | DIR ...] [--count 200] [--seed 0]

Columns, all on problems whose keys were never pretrained on, under the chat template, with no
system message:

    strict     the greedy reply is the bare answer, exactly
    anywhere   the answer stands somewhere in the greedy reply
    asked      strict, when the system message asks for the answer alone: what it is able to do
    mean@16    share of right ones among 16 samples at temperature 1
    mixed@16   share of prompts whose 16 samples are neither all right nor all wrong
"""

from __future__ import annotations

import argparse
import random
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from families import VERIFIABLE, Problem, curt_reply, draw, draw_request, polite_reply
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from posttrain_recipes.models import resolve

BARE = "Reply with the answer alone."


@dataclass
class Scorer:
    """A model with its tokenizer, and what is asked of them."""

    model: torch.nn.Module
    tokenizer: object

    @classmethod
    def load(cls, name: str) -> Scorer:
        """Load a bundled model, or one from a directory."""
        path = resolve(name)
        tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
        return cls(
            AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval(), tokenizer
        )

    @torch.no_grad()
    def replies(
        self, prompts: list[str], samples: int = 1, system: str | None = None
    ) -> list[list[str]]:
        """Return greedy replies, or several at temperature 1."""
        head = [{"role": "system", "content": system}] if system else []
        texts = [
            self.tokenizer.apply_chat_template(
                [*head, {"role": "user", "content": p}], tokenize=False, add_generation_prompt=True
            )
            for p in prompts
        ]
        out: list[list[str]] = []
        for start in range(0, len(texts), 64):
            x = self.tokenizer(texts[start : start + 64], return_tensors="pt", padding=True)
            how = (
                {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
                if samples > 1
                else {"do_sample": False}
            )
            y = self.model.generate(**x, max_new_tokens=64, num_return_sequences=samples, **how)
            said = self.tokenizer.batch_decode(
                y[:, x["input_ids"].shape[1] :], skip_special_tokens=True
            )
            out += [said[i : i + samples] for i in range(0, len(said), samples)]
        return out

    @torch.no_grad()
    def mean_logprob(self, prompt: str, reply: str) -> float:
        """Return the mean log-probability of a reply's tokens, its end included."""
        head = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
        a = self.tokenizer(head)["input_ids"]
        b = self.tokenizer(reply + "<|im_end|>")["input_ids"]
        logp = (
            self.model(input_ids=torch.tensor([a + b])).logits[0, len(a) - 1 : -1].log_softmax(-1)
        )
        return float(logp.gather(1, torch.tensor(b)[:, None]).mean())


def contains(reply: str, answer: str) -> bool:
    """Say whether the answer stands in the reply, not as a part of a longer word or number."""
    return re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", reply) is not None


def score(scorer: Scorer, problems: list[Problem], samples: int) -> dict[str, float]:
    """Score one family's problems."""
    prompts, answers = [p.question for p in problems], [p.answer for p in problems]
    greedy = [r[0] for r in scorer.replies(prompts)]
    asked = [r[0] for r in scorer.replies(prompts, system=BARE)]
    few = min(len(problems), 48)
    sampled = scorer.replies(prompts[:few], samples=samples)
    right = [sum(r == a for r in replies) for replies, a in zip(sampled, answers, strict=False)]
    count = len(problems)
    return {
        "strict": sum(r == a for r, a in zip(greedy, answers, strict=True)) / count,
        "anywhere": sum(contains(r, a) for r, a in zip(greedy, answers, strict=True)) / count,
        "asked": sum(r == a for r, a in zip(asked, answers, strict=True)) / count,
        f"mean@{samples}": sum(right) / (few * samples),
        f"mixed@{samples}": sum(0 < r < samples for r in right) / few,
    }


def main() -> None:
    """Print a table for each model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", default=["ptl/tiny", "ptl/nano"])
    parser.add_argument("--count", type=int, default=200, help="problems a family")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for name in args.models:
        torch.manual_seed(args.seed)
        scorer = Scorer.load(name)
        print(f"\n{name}: {sum(p.numel() for p in scorer.model.parameters()):,} parameters\n")
        totals: dict[str, float] = {}
        for family in (*VERIFIABLE, "stories"):
            rng = random.Random(f"{args.seed}:{family}")
            problems = [draw(family, "held_out", rng) for _ in range(args.count)]
            row = score(scorer, problems, args.samples)
            if not totals:
                print("| family | " + " | ".join(row) + " |\n|---|" + "---:|" * len(row))
            print(
                f"| {family} | " + " | ".join(f"{100 * v:.0f}%" for v in row.values()) + " |",
                flush=True,
            )
            if family in VERIFIABLE:
                totals = {k: totals.get(k, 0.0) + v / len(VERIFIABLE) for k, v in row.items()}
        print(
            "| mean of the eight | " + " | ".join(f"{100 * v:.0f}%" for v in totals.values()) + " |"
        )
        rng = random.Random(f"{args.seed}:tone")
        wins = []
        for _ in range(args.count):
            request = draw_request("held_out", rng)
            polite, curt = polite_reply(rng, request), curt_reply(rng, request)
            wins.append(
                scorer.mean_logprob(request.text, polite) > scorer.mean_logprob(request.text, curt)
            )
        print(
            "\npolite reply likelier per token than the curt one: "
            f"{100 * sum(wins) / len(wins):.0f}%"
        )


if __name__ == "__main__":
    main()
