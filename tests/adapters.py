"""Adapters as the embedded engine keeps them."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file


def folder_of(uri: str) -> Path:
    """Where the weights of a sampler path lie, within an engine's data directory."""
    run_id, _, name = uri.removeprefix("tinker://").split("/")
    return Path("runs") / run_id.replace(":", "_") / "sampler_weights" / name


def adapter(data_dir: Path, uri: str) -> dict[str, torch.Tensor]:
    """The adapter's tensors behind a sampler path of the engine that keeps its data there."""
    return load_file(data_dir / folder_of(uri) / "adapter_model.safetensors")
