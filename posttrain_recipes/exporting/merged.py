"""A base model and its adapter as one: added up in float32."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain_recipes import pretrained
from posttrain_recipes.errors import MissingExtraError, PtlError

ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
"""The files of a PEFT adapter."""


@dataclass(frozen=True)
class WholeModel:
    """A whole model in float32."""

    model: Any
    tokenizer: Any
    dtype: Any
    """Of the weights of its base; None where that does not say."""


def base_of(adapter: Path) -> str:
    """The base model that an adapter names. Raises `PtlError` where it names none."""
    try:
        config = json.loads((adapter / ADAPTER[0]).read_text(encoding="utf-8"))
        return str(config["base_model_name_or_path"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PtlError(
            f"{adapter / ADAPTER[0]} names no base model", why=pretrained.in_a_line(error)
        ) from None


def load(adapter: Path, option: str = "--merge") -> WholeModel:
    """The base model with the adapter added.

    Raises:
        MissingExtraError: peft is not installed; `option` needs it.
        PtlError: the base model does not load, or the adapter does not fit it.
    """
    try:
        from peft import PeftModel
    except ImportError:
        raise MissingExtraError(
            f"{option} needs the package peft", hint="pip install 'posttrain-recipes[export]'"
        ) from None
    import torch
    from transformers.utils import logging as progress

    progress.disable_progress_bar()
    base = base_of(adapter)
    try:
        model = pretrained.load_model(base, torch.float32)
        tokenizer = pretrained.load_tokenizer(base)
        own = pretrained.load_config(base).get_text_config().dtype
    except (PtlError, MemoryError):
        raise
    except Exception as error:  # transformers has no error of its own
        why = pretrained.in_a_line(error)
        raise PtlError(f"the base model {base} does not load", why=why) from None
    try:
        if _on_head(adapter):
            _untie(model)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*tie_word_embeddings.*")
            merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    except MemoryError:
        raise
    except Exception as error:  # peft, torch and safetensors each have their own
        raise PtlError(
            f"the adapter cannot be added to the base model {base}",
            why=pretrained.in_a_line(error),
            hint="the base model has to be the one that it was trained on",
        ) from None
    return WholeModel(merged, tokenizer, own)


def merge(adapter: Path, out: Path, dtype: str | None) -> None:
    """Write base and adapter as one model that transformers loads.

    Raises:
        PtlError: the base does not load, or `out` cannot be written.
    """
    import torch
    from safetensors import SafetensorError

    merged = load(adapter)
    wanted = getattr(torch, dtype) if dtype else merged.dtype or torch.float32
    try:
        _save(merged.model.to(wanted), out)
    except SafetensorError as error:  # it hides what the system said
        raise PtlError(f"{out} cannot be written", why=str(error)) from None
    merged.tokenizer.save_pretrained(out)


def _save(model: Any, out: Path) -> None:
    """Write a model with the generation config of its base as that is: transformers writes none
    that it finds fault with, as one with a temperature and without `do_sample`."""
    from transformers import GenerationConfig

    own = model.generation_config
    try:
        own.validate(strict=True)
    except ValueError:
        model.generation_config = GenerationConfig()
    model.save_pretrained(out)
    if model.generation_config is not own:
        (out / "generation_config.json").write_text(own.to_json_string(), encoding="utf-8")
        model.generation_config = own


def _on_head(adapter: Path) -> bool:
    """Whether the adapter changes the output layer; else that stays tied where the base ties it."""
    from safetensors import safe_open

    with safe_open(adapter / ADAPTER[1], "np") as file:
        return any("lm_head" in name for name in file.keys())  # noqa: SIM118


def _untie(model: Any) -> None:
    """Give the output layer weights of its own: an adapter on it must not reach the embeddings."""
    import torch

    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    if head is not None and head.weight is embeddings.weight:
        head.weight = torch.nn.Parameter(head.weight.detach().clone())
        model.config.get_text_config().tie_word_embeddings = False
        model.config.tie_word_embeddings = False
        model.all_tied_weights_keys = {}
