"""Whether vLLM serves an adapter beside its base model, and the command that has it do so.

The rules are those of vLLM's loader (vllm/config/lora.py, vllm/lora/peft_helper.py and
vllm/lora/lora_model.py), which looks at the files when it starts.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from posttrain_recipes import ggufs
from posttrain_recipes.exporting.merged import ADAPTER

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What --max-lora-rank may be."""
DEFAULT_RANK = 16
"""What it is by default: an adapter of a higher rank is refused."""
ON_HEAD = ("lm_head", "embed_out", "embed_tokens")
"""Layers that vLLM has adapters on for some architectures alone."""


def faults(adapter: Path) -> list[str]:
    """Why vLLM refuses an adapter, in clauses; none where it takes it."""
    config = json.loads((adapter / ADAPTER[0]).read_text(encoding="utf-8"))
    return list(_faults(config, _names(adapter)))


def _names(adapter: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(adapter / ADAPTER[1], "np") as file:
        return list(file.keys())


def _faults(config: dict[str, Any], names: list[str]) -> Iterator[str]:
    base = str(config.get("base_model_name_or_path", ""))
    if ggufs.is_gguf(base):
        yield "its base is a GGUF file, on which vLLM has no adapters"
    for key in ("r", "lora_alpha", "target_modules"):
        if not config.get(key):
            yield f"its config lacks {key}"
    rank = config.get("r") or 0
    if rank > RANKS[-1]:
        yield f"its rank is {rank}, and vLLM takes up to {RANKS[-1]}"
    if config.get("use_dora"):
        yield "it is a DoRA adapter"
    if config.get("modules_to_save"):
        yield "it has whole layers (modules_to_save)"
    if config.get("bias", "none") != "none":
        yield "it has biases"
    for name in names:
        plain = name.startswith("base_model.model.") and name.endswith(
            (".lora_A.weight", ".lora_B.weight")
        )
        if not plain:
            yield f"it has a tensor that is none of LoRA, {name}"
            return
    if on_head := sorted({part for name in names for part in name.split(".") if part in ON_HEAD}):
        yield (
            f"it is trained on the output layer too ({', '.join(on_head)}, by 'train_unembed: "
            "true'), which vLLM knows for a few architectures alone"
        )


def command(adapter: Path, base: str, name: str, directory: str, template: bool = False) -> str:
    """The command that serves `base` and, as the model `name`, the adapter in `directory`.

    Args:
        template: whether a chat_template.jinja lies there, which vLLM does not look for.
    """
    words = ["vllm", "serve", base, "--enable-lora", "--lora-modules", f"{name}={directory}"]
    words += rank_option(rank(adapter))
    if template:
        words += ["--chat-template", f"{directory}/chat_template.jinja"]
    return shlex.join(words)


def rank(adapter: Path) -> int:
    """Of an adapter."""
    return int(json.loads((adapter / ADAPTER[0]).read_text(encoding="utf-8"))["r"])


def rank_option(rank: int) -> list[str]:
    """The option that lets vLLM take this rank; none where it does by default."""
    if rank <= DEFAULT_RANK:
        return []
    return ["--max-lora-rank", str(next(most for most in RANKS if most >= rank))]
