"""Models and tokenizers as transformers loads them: of a directory, of the hub, of a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from posttrain_recipes import ggufs
from posttrain_recipes.errors import PtlError


def is_local(location: str) -> bool:
    """Whether a model lies on this machine, by its location."""
    return ggufs.is_gguf(location) or Path(location).is_dir()


def load_model(location: str, dtype: Any) -> Any:
    """The causal language model at `location`, in that dtype.

    Raises:
        OSError, ValueError, KeyError, ImportError: as transformers does.
        PtlError: of a GGUF file: it cannot be read whole.
    """
    from transformers import AutoModelForCausalLM

    if not ggufs.is_gguf(location):
        local = Path(location).is_dir()
        return AutoModelForCausalLM.from_pretrained(location, dtype=dtype, local_files_only=local)
    file, config = Path(location), ggufs.config(location)
    from transformers import modeling_gguf_pytorch_utils as reader

    reader.tqdm = lambda tensors, **_: tensors  # a bar that is drawn into pipes and logs, too
    try:
        model, told = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            config=config,
            dtype=dtype,
            output_loading_info=True,
        )
    except ImportError:
        raise ggufs.needed("a model of a GGUF file") from None
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    lacking = sorted(set(told["missing_keys"]) - tied) + sorted(told["mismatched_keys"])
    if lacking:
        raise PtlError(f"{location} lacks weights", why=f"{lacking[0]}", hint=ggufs.HINT)
    return model


def load_tokenizer(location: str, **options: Any) -> Any:
    """The tokenizer of the model at `location`. Raises what transformers does, or `PtlError`."""
    if ggufs.is_gguf(location):
        return ggufs.tokenizer(location)
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(location, **options)


def load_config(location: str) -> Any:
    """The config of the model at `location`. Raises what transformers does, or `PtlError`."""
    if ggufs.is_gguf(location):
        return ggufs.config(location)
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(location, local_files_only=Path(location).is_dir())
