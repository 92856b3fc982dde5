"""Small models of each architecture, and a checkpoint of one in a home, for tests of exports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from posttrain_recipes.engine.storage.checkpoints import (
    CheckpointPath,
    CheckpointRecord,
    CheckpointStore,
    TrainingRun,
    now,
)
from posttrain_recipes.engine.wire import AdapterConfig
from posttrain_recipes.records import Checkpoint, Estimate
from posttrain_recipes.store import Measured, RunRecord, StageRecord, Store

RUN = "0f-1:train:0"
PATH = CheckpointPath(RUN, "sampler_weights", "final")
TEXTS = ["the cat sat on the mat", "It's 12 o'clock; they're in the garden.\n\nOne, two: 3!"] * 4
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
}


def tokenizer(template: str | None = CHATML, pre: Any = None) -> Any:
    """A byte-level BPE of a few merges, trained on `TEXTS`, with ChatML's tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made: Any = Tokenizer(models.BPE())
    made.pre_tokenizer = pre or pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(
            vocab_size=300,
            special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    fast: Any = PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    fast.chat_template = template
    return fast


def model(arch: str, *, tied: bool = True, seed: int = 0, **config: Any) -> Any:
    """A random model of 64 hidden units in float32; biases and norms are random, too."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    size = {"head_dim": 32} if arch == "qwen3" else {}
    made = AutoConfig.for_model(
        arch,
        **{
            **SMALL, **size, "vocab_size": 304, "tie_word_embeddings": tied, "eos_token_id": 2,
            "bos_token_id": None, "pad_token_id": 0, **config,
        },
    )  # fmt: skip
    torch.manual_seed(seed)
    built: Any = AutoModelForCausalLM.from_config(made, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, weight in built.named_parameters():
            if weight.dim() == 1:
                weight.add_(0.2 * torch.randn_like(weight))
            elif "embed_tokens" in name or "lm_head" in name:
                weight.mul_(0.4)  # so that logits spread by about 1
    return built


def saved(folder: Path, arch: str = "llama", **config: Any) -> Path:
    """A model and its tokenizer in a directory."""
    model(arch, **config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def checkpoint(home: Path, base: str, made: Any, **lora: Any) -> str:
    """A checkpoint of a random adapter on a model, in `home`; its tinker:// path."""
    import torch
    from peft import LoraConfig, get_peft_model

    rank = lora.pop("r", 4)
    layers = lora.pop("target_modules", ["q_proj", "down_proj"])
    torch.manual_seed(1)
    adapted = get_peft_model(
        made,
        LoraConfig(
            r=rank, lora_alpha=32, target_modules=layers, init_lora_weights=False,
            task_type="CAUSAL_LM", **lora,
        ),
    )  # fmt: skip
    adapted.peft_config["default"].base_model_name_or_path = base
    store = CheckpointStore(home / "engine")
    kept = AdapterConfig(rank=rank, seed=1)
    store.add_run(TrainingRun(RUN, "0f-1", base, kept, now()))

    def write(folder: Path) -> None:
        adapted.save_pretrained(folder, save_embedding_layers=False)
        for name in ("README.md",):
            (folder / name).unlink(missing_ok=True)

    store.save(PATH, CheckpointRecord(str(PATH), base, kept, 1, now()), write, False)
    return str(PATH)


def run(home: Path, base: str, **changes: Any) -> RunRecord:
    """A run whose stage made that checkpoint, kept in `home`."""
    worse, better = Estimate(0.1, 0.0, 0.2, 40), Estimate(0.5, 0.4, 0.6, 40)
    stage = StageRecord(
        "sft", "f" * 16, "sft", status="finished", total_steps=3, records=8, model=base,
        checkpoint=Checkpoint(base, None, str(PATH), 3),
        before=[Measured("right", "exact_match", "e", "d", {"exact_match": worse})],
        after=[Measured("right", "exact_match", "e", "d", {"exact_match": better})],
    )  # fmt: skip
    resolved = {
        "name": "demo", "model": base,
        "stages": [{"name": "sft", "dataset": {"use": "jsonl", "path": "/home/ada/rows.jsonl"},
                    "method": {"use": "sft", "learning_rate": 0.001}}],
    }  # fmt: skip
    record = RunRecord(
        "demo-1", "demo", "f" * 16, base, "local", "demo.yaml", None, 0, resolved,
        "2026-01-01T00:00:00+00:00", [stage], "finished", version="0.1.0",
    )  # fmt: skip
    for name, value in changes.items():
        setattr(record, name, value)
    with Store(home).open(record) as directory:
        directory.save()
    return record
