"""`ptl export`."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import click

from posttrain_recipes import private
from posttrain_recipes.cli.options import home_option
from posttrain_recipes.cli.target import SCHEME, find, require_here
from posttrain_recipes.errors import MissingExtraError, PtlError, UsageError, display_path, writing
from posttrain_recipes.store import default_home

ADAPTER = ("adapter_config.json", "adapter_model.safetensors")


@click.command()
@click.argument("target")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--merge", is_flag=True, help="A whole model, the adapter merged into its base.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    help="Of a merged model's weights; by default that of its base. 16 bits take half the space of "
    "float32 and round the adapter.",
)
@home_option
def export(target: str, directory: Path, merge: bool, dtype: str | None, home: Path | None) -> None:
    """Write a checkpoint to DIRECTORY: a PEFT adapter, or with --merge a Hugging Face model.

    TARGET is a run (sft_then_dpo-1), one of its stages (sft_then_dpo-1/sft), or a tinker:// path.
    """
    home = default_home(home)
    found = find(target, home)
    if not found.model.startswith(SCHEME):
        raise UsageError(
            f"{target} is a base model, not a checkpoint",
            hint="name a run of 'ptl runs', or a tinker:// path",
        )
    require_here(found, home)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UsageError(f"{directory} is there already", hint="name a new directory")
    adapter = _folder(found.model, home)
    directory = directory.resolve()
    with writing(directory), private.within(home, directory):
        directory.parent.mkdir(parents=True, exist_ok=True)
        _write(adapter, directory, merge, dtype, found.renderer.chat_template)
    base = json.loads((adapter / ADAPTER[0]).read_text(encoding="utf-8"))["base_model_name_or_path"]
    what = "model" if merge else f"adapter on {base}"
    click.echo(f"{found.said}: {what} in {display_path(directory)}")


def _write(
    adapter: Path, directory: Path, merge: bool, dtype: str | None, template: str | None
) -> None:
    with tempfile.TemporaryDirectory(prefix=".export-", dir=directory.parent) as temporary:
        out = Path(temporary) / "out"
        out.mkdir()
        if merge:
            _merge(adapter, out, dtype)
        else:
            for name in ADAPTER:
                shutil.copyfile(adapter / name, out / name)
        if template is not None:  # it was trained with another one than its base has
            (out / "chat_template.jinja").write_text(template, encoding="utf-8")
        if directory.exists():
            directory.rmdir()
        os.replace(out, directory)


def _folder(path: str, home: Path) -> Path:
    from posttrain_recipes.engine.storage.checkpoints import CheckpointStore, parse_path
    from posttrain_recipes.engine.wire import RequestError

    kept = CheckpointStore(home / "engine")
    try:
        found = kept.find(parse_path(path))
        kept.verify(found)
        folder = found.folder
        _check_finite(folder / ADAPTER[1])
    except RequestError as error:
        raise PtlError(str(error)) from None
    missing = [name for name in ADAPTER if not (folder / name).is_file()]
    if missing:
        raise PtlError(f"the checkpoint is damaged: {folder} lacks {', '.join(missing)}")
    return folder


def _check_finite(file: Path) -> None:
    import numpy as np
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if not file.is_file():
        return  # which is told of
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise PtlError(f"{display_path(file)} cannot be read", why=str(error)) from None
    if bad := sorted(name for name, values in tensors.items() if not np.isfinite(values).all()):
        raise PtlError(
            f"{display_path(file)} holds NaN or infinity, and is not exported",
            why=f"in {bad[0]}" + (f" and {len(bad) - 1} more" if bad[1:] else ""),
            hint="name an earlier checkpoint, or train again with a lower learning rate",
        )


def _merge(adapter: Path, out: Path, dtype: str | None) -> None:
    """Write base and adapter, added up in float32, as one model that transformers loads."""
    try:
        from peft import PeftModel
    except ImportError:
        raise MissingExtraError(
            "--merge needs the package peft", hint="pip install 'posttrain-recipes[export]'"
        ) from None
    import warnings

    import torch
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as progress

    progress.disable_progress_bar()
    config = json.loads((adapter / ADAPTER[0]).read_text(encoding="utf-8"))
    base = config["base_model_name_or_path"]
    local = Path(base).is_dir()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            base, dtype=torch.float32, local_files_only=local
        )
        tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=local)
        own = AutoConfig.from_pretrained(base, local_files_only=local).get_text_config().dtype
    except (OSError, ValueError) as error:
        raise PtlError(f"the base model {base} does not load", why=str(error)) from None
    if _on_head(adapter):
        _untie(model)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*tie_word_embeddings.*")
        merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    try:
        merged.to(getattr(torch, dtype) if dtype else own or torch.float32).save_pretrained(out)
    except SafetensorError as error:  # it hides what the system said
        raise PtlError(f"{out} cannot be written", why=str(error)) from None
    tokenizer.save_pretrained(out)


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
