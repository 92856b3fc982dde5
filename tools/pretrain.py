"""Make the bundled base models: tokenizer and weights, from the text of `families/`.

    python tools/pretrain.py tokenizer --work DIR
    python tools/pretrain.py train --model tiny --work DIR --steps 5000
    python tools/pretrain.py export --model tiny --work DIR

Everything follows from the seed and the arguments. `train` writes a checkpoint as it goes and
continues from it when called again. It is made for a CPU: short documents are padded together by
length, each starting at position 0, the step is compiled, and matrices are multiplied in bfloat16.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from families import BASE_WEIGHTS, FAMILIES, LEVELS, Document, documents, draw
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
VOCAB = 1024
CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
SIZES: dict[str, dict[str, int]] = {
    "tiny": {
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "head_dim": 32,
    },
    "nano": {
        "hidden_size": 96,
        "intermediate_size": 288,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
    },
}
BUCKETS = (32, 48, 64, 96, 160)
PROMPT_WEIGHT = 0.1
"""Weight of a question's tokens in the loss: drawn at random, they have little to teach."""
BARE = "Reply with the answer alone."
MODELS = Path(__file__).resolve().parent.parent / "posttrain_recipes" / "models"


# ---------------------------------------------------------------------------------------- tokenizer


def render(turns: tuple[tuple[str, str], ...]) -> str:
    """Return chat turns as the chat template writes them."""
    return "".join(f"{START}{role}\n{text}{END}\n" for role, text in turns)


def train_tokenizer(work: Path, seed: int) -> None:
    """Train the byte-level BPE both models share."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            # One token a digit and one a capital, so that sums and spelling are about tokens the
            # model sees.
            pre_tokenizers.Split(Regex(r"\p{N}|[A-Z]"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    stream = documents(seed)
    texts = []
    for _ in range(60_000):
        doc = next(stream)
        texts.extend([doc.prose] if doc.prose else [text for _, text in doc.turns])
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*texts, *["user\nassistant\nsystem\n"] * 20_000], trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[START],
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )
    wrapped.save_pretrained(work / "tokenizer")


def load_tokenizer(work: Path) -> Tokenizer:
    """Load the trained tokenizer."""
    return Tokenizer.from_file(str(work / "tokenizer" / "tokenizer.json"))


# --------------------------------------------------------------------------------------------- data


def encode(tokenizer: Tokenizer, docs: list[Document]) -> list[tuple[list[int], list[float]]]:
    """Return the ids and loss weights of documents."""
    texts, marks = [], []
    for i, doc in enumerate(docs):
        if doc.prose:
            texts.append(doc.prose + PAD)
            marks.append((i, 1.0))
        for left, right in doc.sheet:
            texts += [left, right]
            marks += [(i, PROMPT_WEIGHT), (i, 1.0)]
        for role, text in doc.turns:
            texts += [f"{START}{role}\n", f"{text}{END}", "\n"]
            marks += [
                (i, PROMPT_WEIGHT),
                (i, 1.0 if role == "assistant" else PROMPT_WEIGHT),
                (i, PROMPT_WEIGHT),
            ]
    out: list[tuple[list[int], list[float]]] = [([], []) for _ in docs]
    for (i, weight), encoding in zip(marks, tokenizer.encode_batch(texts), strict=True):
        out[i][0].extend(encoding.ids)
        out[i][1].extend([weight] * len(encoding.ids))
    return out


def batches(
    tokenizer: Tokenizer, stream: Iterator[Document], tokens: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Group documents of like length; yield ids and weights, of one shape a bucket."""
    pools: dict[int, list[tuple[list[int], list[float]]]] = defaultdict(list)
    while True:
        for ids, weights in encode(tokenizer, [next(stream) for _ in range(256)]):
            bucket = next((b for b in BUCKETS if len(ids) <= b), None)
            if bucket is None:
                continue  # A handful of long critiques are left out.
            pools[bucket].append((ids, weights))
            rows = tokens // bucket
            if len(pools[bucket]) == rows:
                x, w = torch.zeros(rows, bucket, dtype=torch.long), torch.zeros(rows, bucket)
                for row, (ids_, weights_) in enumerate(pools[bucket]):
                    x[row, : len(ids_)] = torch.tensor(ids_)
                    w[row, : len(ids_)] = torch.tensor(weights_)
                pools[bucket].clear()
                yield x, w


# ---------------------------------------------------------------------------------------- measuring


@torch.no_grad()
def forced_match(
    model: Qwen3ForCausalLM, tokenizer: Tokenizer, pairs: list[tuple[str, str]]
) -> list[bool]:
    """Say for each rendered prompt whether greedy decoding gives exactly this answer and stops.

    One forward pass is enough: greedy decoding gives the answer just when each of its tokens is the
    likeliest given the ones before.
    """
    hits = [False] * len(pairs)
    encoded = [(tokenizer.encode(p).ids, tokenizer.encode(a + END).ids) for p, a in pairs]
    order = sorted(range(len(pairs)), key=lambda i: len(encoded[i][0]) + len(encoded[i][1]))
    for start in range(0, len(order), 64):
        rows = order[start : start + 64]
        width = max(len(encoded[i][0]) + len(encoded[i][1]) for i in rows)
        x = torch.zeros(len(rows), width, dtype=torch.long)
        for r, i in enumerate(rows):
            ids = encoded[i][0] + encoded[i][1]
            x[r, : len(ids)] = torch.tensor(ids)
        guess = model(input_ids=x, use_cache=False).logits.argmax(-1)
        for r, i in enumerate(rows):
            prompt, answer = encoded[i]
            got = guess[r, len(prompt) - 1 : len(prompt) + len(answer) - 1].tolist()
            hits[i] = got == answer
    return hits


def measure(
    model: Qwen3ForCausalLM, tokenizer: Tokenizer, count: int, seed: int
) -> dict[str, dict[str, Any]]:
    """Measure each family on problems never pretrained on: the recipes', not the held-out ones.

    `able`: the bare answer, when the system message asks for it. `strict`: the bare answer unasked.
    """
    rng = random.Random(seed)
    pairs, places = [], []
    for family in FAMILIES:
        for level in range(LEVELS):
            for _ in range(count):
                problem = draw(family, "recipe", rng, level)
                for kind, system in (("able", (("system", BARE),)), ("strict", ())):
                    prompt = render((*system, ("user", problem.question))) + f"{START}assistant\n"
                    pairs.append((prompt, problem.answer))
                    places.append((family, level, kind))
    hits: dict[tuple[str, int, str], list[bool]] = defaultdict(list)
    for place, hit in zip(places, forced_match(model, tokenizer, pairs), strict=True):
        hits[place].append(hit)
    out: dict[str, dict[str, Any]] = {}
    for family in FAMILIES:
        able = [sum(h) / len(h) for level in range(LEVELS) if (h := hits[family, level, "able"])]
        strict = [h for level in range(LEVELS) for h in hits[family, level, "strict"]]
        out[family] = {"able": able, "strict": sum(strict) / len(strict)}
    return out


# ----------------------------------------------------------------------------------------- training


def build(size: str) -> Qwen3ForCausalLM:
    """Return an untrained model."""
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=VOCAB,
            tie_word_embeddings=True,
            max_position_embeddings=2048,
            rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
            bos_token_id=None,
            pad_token_id=0,
            eos_token_id=2,
            **SIZES[size],
        )
    )


def train(args: argparse.Namespace) -> None:
    """Train a model, with a checkpoint every so often."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    work = Path(args.work)
    folder = work / args.model
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = load_tokenizer(work)
    model = build(args.model)
    hidden = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    rest = [p for n, p in model.named_parameters() if not (p.ndim == 2 and "embed" not in n)]
    # Muon learns these small matrices in about half the tokens AdamW needs.
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(hidden, lr=args.muon_lr, weight_decay=0.01, momentum=0.95),
        torch.optim.AdamW(rest, lr=args.adam_lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]
    peaks = (args.muon_lr, args.adam_lr)
    weights = dict(BASE_WEIGHTS)
    levels = {f: [0.6, 0.3, 0.1] for f in FAMILIES}
    state: dict[str, Any] = {"step": 0, "tokens": 0, "seconds": 0.0, "history": []}
    if (folder / "state.pt").exists():
        saved = torch.load(folder / "state.pt", weights_only=False)
        model.load_state_dict(saved["model"])
        for optimizer, o in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(o)
        state, weights, levels = saved["state"], saved["weights"], saved["levels"]

    def loss_of(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=x, use_cache=False).logits
        nll = F.cross_entropy(
            logits[:, :-1].flatten(0, 1).float(), x[:, 1:].flatten(), reduction="none"
        )
        w = w[:, 1:].flatten()
        return (nll * w).sum() / w.sum()

    step_loss = torch.compile(loss_of, dynamic=False) if args.compile else loss_of
    feed = iter(())
    started, losses = time.time() - state["seconds"], []
    while state["step"] < args.steps:
        step = state["step"]
        scale = min(1.0, (step + 1) / 100, (args.steps - step) / (args.steps * args.decay))
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * scale
        if step % args.every == 0 or not losses:
            # A stream for each stretch, so that a run which continues sees what it would have seen.
            feed = batches(
                tokenizer, documents(args.seed + 1000 * step, weights, levels), args.tokens
            )
        x, w = next(feed)
        loss = step_loss(x, w)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
        state["step"] += 1
        state["tokens"] += int((w > 0).sum())
        if state["step"] % 50 == 0:
            state["seconds"] = time.time() - started
            print(
                f"{state['step']} loss {sum(losses[-50:]) / 50:.4f} "
                f"{state['seconds']:.0f}s {state['tokens']} tokens",
                flush=True,
            )
        if state["step"] % args.every == 0 or state["step"] == args.steps:
            scores = measure(model, tokenizer, args.measure, seed=state["step"])
            for family, score in scores.items():
                able = sum(score["able"]) / LEVELS
                # What is weak gets more of the stream and what is strong less, but nothing is
                # starved.
                weights[family] = BASE_WEIGHTS[family] * (0.35 + 1.3 * (1 - able))
                # And what is hard waits for what is easier.
                ready = [1.0, *(0.2 + 0.8 * a for a in score["able"])]
                levels[family] = [(0.15 + 1 - a) * ready[i] for i, a in enumerate(score["able"])]
            state["seconds"] = time.time() - started
            state["history"].append({"step": state["step"], "scores": scores})
            print(
                state["step"],
                " ".join(
                    f"{f}:{'/'.join(f'{a:.2f}' for a in s['able'])},{s['strict']:.2f}"
                    for f, s in scores.items()
                ),
                flush=True,
            )
            held = {
                "model": model.state_dict(),
                "optimizers": [o.state_dict() for o in optimizers],
                "state": state,
                "weights": weights,
                "levels": levels,
                "args": vars(args),
            }
            torch.save(held, folder / "state.tmp")
            os.replace(folder / "state.tmp", folder / "state.pt")


def export(args: argparse.Namespace) -> None:
    """Write a checkpoint as a model directory of the package, in bfloat16."""
    work, out = Path(args.work), Path(args.out or MODELS / args.model)
    saved = torch.load(work / args.model / "state.pt", weights_only=False)
    model = build(args.model)
    model.load_state_dict(saved["model"])
    model = model.to(torch.bfloat16)
    model.generation_config = GenerationConfig(eos_token_id=2, pad_token_id=0)
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    PreTrainedTokenizerFast.from_pretrained(work / "tokenizer").save_pretrained(out)
    # The class every version of transformers knows, and nothing of the machine it was made on.
    told = json.loads((out / "tokenizer_config.json").read_text())
    told["tokenizer_class"] = "PreTrainedTokenizerFast"
    told.pop("is_local", None)
    (out / "tokenizer_config.json").write_text(json.dumps(told, indent=2) + "\n")
    for path in out.iterdir():
        path.chmod(0o644)
    print(json.dumps({k: v for k, v in saved["state"].items() if k != "history"}))


def main() -> None:
    """Run one of the three steps."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("step", choices=("tokenizer", "train", "export"))
    parser.add_argument("--model", choices=tuple(SIZES), default="tiny")
    parser.add_argument("--work", required=True, help="a directory for checkpoints")
    parser.add_argument("--out", help="where to export to; the package's own directory by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument(
        "--tokens", type=int, default=4096, help="tokens in a batch, padding included"
    )
    parser.add_argument("--muon-lr", type=float, default=0.02)
    parser.add_argument("--adam-lr", type=float, default=3e-3)
    parser.add_argument(
        "--decay", type=float, default=0.35, help="share of the steps in which the rate falls to 0"
    )
    parser.add_argument("--every", type=int, default=250, help="steps between measurements")
    parser.add_argument(
        "--measure", type=int, default=16, help="problems a family and level in a measurement"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    args = parser.parse_args()
    if args.step == "tokenizer":
        train_tokenizer(Path(args.work), args.seed)
    elif args.step == "train":
        train(args)
    else:
        export(args)


if __name__ == "__main__":
    main()
